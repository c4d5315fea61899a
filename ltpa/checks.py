"""Checks of images: every public function that takes images calls `check_images` first."""

import torch
from torch import Tensor

LOWEST, HIGHEST = -0.05, 1.05  # of float images; the tolerance is for pictures that were scaled smoothly
SMALLEST = 32  # pixels that a side of an image must have


def check_images(images: Tensor, name: str = "images") -> None:
    """Raise unless `images` are uint8, or float in [0, 1] with a small tolerance, (N, 3, H, W) from 32x32 up.

    The message calls them `name`, and says which image is wrong and what its values look like.
    """
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        _check_sides(images, name)
    else:
        check_shape(images, name)
        check_values(images, name)


def check_shape(images: Tensor, name: str = "images", smallest: int = SMALLEST) -> None:
    """Raise unless `images` is a float tensor (N, 3, H, W) with H and W at least 32; values are not checked."""
    if not isinstance(images, Tensor):
        hints = {"ndarray": "; for an array (N, H, W, 3): torch.from_numpy(array).permute(0, 3, 1, 2)"}
        hints |= dict.fromkeys(("str", "PosixPath", "WindowsPath"), "; ltpa.show takes files")
        kind = type(images).__name__
        raise TypeError(f"{name} must be a tensor (N, 3, H, W), not {kind}{hints.get(kind, '')}")
    if not images.is_floating_point():
        raise TypeError(
            f"{name} must be a float tensor with values in [0, 1], not {images.dtype}; for uint8: {name} / 255"
        )
    _check_sides(images, name, smallest)


def _check_sides(images: Tensor, name: str, smallest: int = SMALLEST) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        hint = f"; for a single image: {name}[None]" if images.ndim == 3 and images.shape[0] == 3 else ""
        raise ValueError(f"{name} must have the shape (N, 3, H, W), not {tuple(images.shape)}{hint}")
    if min(images.shape[-2:]) < smallest:
        height, width = images.shape[-2:]
        raise ValueError(f"{name} must be at least 32x32 pixels, not {height}x{width}; scale them up")


def check_values(images: Tensor, name: str = "images") -> None:
    """Raise a ValueError unless all float images (N, ...) are finite and in [0, 1], with a small tolerance."""
    if not images.numel():
        return
    low, high = torch.aminmax(images.detach())  # NaN if there is any
    if low >= LOWEST and high <= HIGHEST:
        return
    flat = images.detach().flatten(1).float()
    finite = flat.isfinite().all(1)
    if not finite.all():
        broken = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"{name} must be in [0, 1]; {_not_finite(broken, len(images))} (NaN or infinite values)")
    lows, highs = flat.amin(1), flat.amax(1)
    wrong = ((lows < LOWEST) | (highs > HIGHEST)).nonzero().flatten().tolist()
    looks = range_in_words(float(lows[wrong].min()), float(highs[wrong].max()))
    which = f", in {len(wrong)} of {len(images)} images, the first of them image {wrong[0]}" if len(images) > 1 else ""
    raise ValueError(f"{name} must be in [0, 1]; {looks}{which}")


def _not_finite(broken: list[int], count: int) -> str:
    if count == 1:
        return "they are not finite"
    others = f", nor are {len(broken) - 1} more of {count}" if len(broken) > 1 else ""
    return f"image {broken[0]} is not finite{others}"


def range_in_words(low: float, high: float) -> str:
    """Say what float images from `low` to `high`, which are not in [0, 1], look like, and what to do."""
    values = f"they go from {low:.3g} to {high:.3g}"
    if low < LOWEST and max(-low, high) <= 12:
        return (
            f"{values} and look normalized: give pictures in [0, 1]; models of ltpa normalize inside; for other "
            "networks use normalize=(mean, std)"
        )
    if low >= LOWEST and high > 2:
        for most in (255, 65535):
            if high <= most:
                return f"{values} and look like 0 to {most}: divide by {most}"
    if low >= LOWEST and high <= 2:
        return f"{values}: scale or clamp them (images.clamp(0, 1))"
    return f"{values}, which is not a range of pictures"
