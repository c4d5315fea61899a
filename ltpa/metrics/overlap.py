"""Measure whether a map is on the object: maps against exact masks, and the controls that a map has to beat."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ..inference import to_float
from ..maps import check_maps, resize

MEASURES = ("share", "pointing", "iou", "best_iou", "average_precision")
CONTROLS = ("uniform", "blurred noise", "center")
OTSU, DIFFERENCE = "Otsu", "difference of Gaussians"
PICTURE_CONTROLS = (OTSU, DIFFERENCE)
_PIXELS = 2**21  # most pixels processed at a time, which limits memory
_NOISE_SIGMA, _CENTER_SIGMA = 0.1, 0.25  # of the controls, as fractions of the shorter side
_FINE, _COARSE = 1 / 16, 1 / 4  # sigmas of the difference of Gaussians: 2 and 8 pixels of 32
_GRAY = (0.299, 0.587, 0.114)


def localization(maps: Tensor, masks: Tensor) -> pd.DataFrame:
    """Return how well each map (N, h, w) finds the object of its mask (N, H, W): one row for each map.

    Maps are resized to the masks. Every measure is at most 1, and NaN if the mask is empty. A map that is zero
    everywhere counts as uniform. The columns:

    - `share`: the part of the map's sum that is on the object;
    - `pointing`: whether the strongest pixel is on the object; with ties, the fraction that is (Zhang et al. 2016);
    - `iou`: intersection over union of the object and the pixels at or above the map's mean;
    - `best_iou`: the same at the best threshold for this map, an upper bound because it uses the mask;
    - `average_precision`: of the ranked pixels, as in scikit-learn.
    """
    return pd.DataFrame({name: values.cpu().numpy() for name, values in localization_tensors(maps, masks).items()})


def localization_tensors(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the columns of `localization` as tensors (N,), on the maps' device."""
    maps = check_maps(maps)
    masks = _check_masks(masks, len(maps)).to(maps.device)
    step = max(1, _PIXELS // masks[0].numel()) if len(masks) else 1
    parts = [_measure(maps[i : i + step], masks[i : i + step]) for i in range(0, max(1, len(maps)), step)]
    return {name: torch.cat([part[name] for part in parts]) for name in MEASURES}


def _check_masks(masks: Tensor, count: int) -> Tensor:
    if not isinstance(masks, Tensor):
        raise TypeError(f"masks must be a tensor (N, H, W), not {type(masks).__name__}")
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        hint = "; choose one object of each scene: masks[:, 0]" if masks.ndim == 4 else ""
        raise ValueError(f"masks must have the shape (N, H, W), not {tuple(masks.shape)}{hint}")
    if len(masks) != count:
        raise ValueError(f"there must be one mask for each map, not {len(masks)} masks for {count} maps")
    if masks.dtype != torch.bool:
        if not ((masks == 0) | (masks == 1)).all():
            raise ValueError("masks must be bool, or hold only 0 and 1; for gray masks: masks > threshold")
        masks = masks == 1
    return masks


def _measure(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    weights = resize(maps, masks.shape[1:]).flatten(1)  # (N, n)
    inside = masks.flatten(1)
    size, pixels = inside.sum(1), inside.shape[1]
    ordered, order = weights.sort(dim=1, descending=True)
    hits = inside.gather(1, order).cumsum(1, dtype=torch.int32)  # of the k + 1 strongest pixels, on the object
    taken = torch.arange(1, pixels + 1, device=hits.device, dtype=torch.int32)
    # Pixels of equal weight share one threshold: only the last of them counts.
    last = torch.ones_like(inside)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    at_thresholds = hits.where(last, 0)
    before = torch.zeros_like(hits)
    before[:, 1:] = at_thresholds.cummax(1).values[:, :-1]
    steps = (at_thresholds - before).clamp_min_(0)  # hits that each threshold adds

    total = weights.sum(1, dtype=torch.float64)
    mean = (total / pixels).unsqueeze(1)
    above = weights >= mean
    both = (above & inside).sum(1)
    strongest = weights == ordered[:, :1]
    measures = {
        "share": torch.where(total > 0, (weights * inside).sum(1, dtype=torch.float64) / total, size / pixels),
        "pointing": (strongest & inside).sum(1) / strongest.sum(1),
        "iou": both / (above.sum(1) + size - both),
        "best_iou": (at_thresholds / (taken - hits + size.unsqueeze(1))).amax(1),
        "average_precision": (steps * (hits / taken)).sum(1) / size,
    }
    return {name: value.to(maps.dtype).where(size > 0, torch.nan) for name, value in measures.items()}


def controls(count: int, size: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """Return maps (count, H, W) that do not depend on the picture, by name; a useful map has to beat them.

    "blurred noise" (sigma 1/10 of the shorter side) is there because several measures favor blurry maps (arXiv
    2304.13836), "center" (a Gaussian, sigma 1/4) because most objects are near the middle.
    """
    height, width = size
    noise = torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed))
    noise = blur(noise.unsqueeze(1), _NOISE_SIGMA * min(size)).squeeze(1)
    y, x = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    center = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * (_CENTER_SIGMA * min(size)) ** 2))
    return {
        "uniform": torch.ones(count, height, width),
        "blurred noise": noise - noise.amin((1, 2), keepdim=True),
        "center": center.expand(count, height, width),
    }


def picture_controls(images: Tensor) -> dict[str, Tensor]:
    """Return maps (N, H, W) that need the picture but no network, by name; a useful map has to beat these, too.

    "Otsu" is 1 on the smaller side of Otsu's threshold of the gray values (Otsu 1979), and 0 elsewhere. "difference of
    Gaussians" is how far gray values blurred by 1/16 of the shorter side are from those blurred by a quarter of it.
    `images` are (N, 3, H, W), uint8, or float in [0, 1].
    """
    gray = torch.einsum("nchw,c->nhw", to_float(images).cpu().float(), torch.tensor(_GRAY))
    side, channel = min(gray.shape[1:]), gray.unsqueeze(1)
    difference = blur(channel, _FINE * side) - blur(channel, _COARSE * side)
    return {OTSU: _otsu(gray), DIFFERENCE: difference.squeeze(1).abs()}


def _otsu(gray: Tensor) -> Tensor:
    """Return which pixels are on the smaller side of the threshold with the largest variance between both sides."""
    values = (gray * 255).round().long().flatten(1)  # 0 to 255
    counts = torch.zeros(len(values), 256, dtype=torch.float64)
    counts.scatter_add_(1, values, torch.ones_like(values, dtype=torch.float64))
    below, total = counts.cumsum(1), (counts * torch.arange(256)).cumsum(1)  # at or below each gray value
    above = below[:, -1:] - below
    between = (total * above - (total[:, -1:] - total) * below).square() / (below * above).clamp(min=1)
    bright = (values > between.argmax(1, keepdim=True)).view(gray.shape)
    mostly = bright.float().mean((1, 2)) > 0.5
    return (bright ^ mostly[:, None, None]).float()


def jaccard(marked: Tensor, masks: Tensor) -> Tensor:
    """Return intersection over union of marked pixels and objects, bool (N, H, W) both; NaN where a mask is empty."""
    both, either = (marked & masks).sum((1, 2)), (marked | masks).sum((1, 2))
    return (both / either).where(masks.any(2).any(1), torch.nan)


@dataclass(frozen=True)
class Threshold:
    """From which weight on a map says "object": `factor` times its "mean" or its "max"."""

    of: str
    factor: float

    def mark(self, maps: Tensor) -> Tensor:
        """Return the marked pixels of maps (N, H, W), bool; a map that is zero everywhere marks every pixel."""
        level = maps.mean((1, 2), keepdim=True) if self.of == "mean" else maps.amax((1, 2), keepdim=True)
        return maps >= self.factor * level

    def __str__(self) -> str:
        return f"{self.factor:.2f} {self.of}"


def best_threshold(maps: Tensor, masks: Tensor) -> Threshold:
    """Return the threshold of the best mean Jaccard index, to be used on other images than these (arXiv 2001.07437)."""
    return max(_THRESHOLDS, key=lambda threshold: jaccard(threshold.mark(maps), masks).nanmean().item())


# From half the mean to 32 times it in steps of a fourth root of 2; from a twentieth of the highest value to all of it.
_THRESHOLDS = (
    *(Threshold("mean", 2 ** (k / 4)) for k in range(-4, 21)),
    *(Threshold("max", k / 20) for k in range(1, 21)),
)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Return images (N, C, H, W) blurred by a Gaussian of `sigma` pixels, cut off at three sigma or the image size."""
    from torchvision.transforms.functional import gaussian_blur  # here, because it takes seconds to import

    kernel = [2 * min(max(1, round(3 * sigma)), side - 1) + 1 for side in (images.shape[3], images.shape[2])]
    # Along one side, then along the other: the same as at once, and much faster for large pictures.
    for size in ([kernel[0], 1], [1, kernel[1]]):
        images = gaussian_blur(images, size, [sigma, sigma])
    return images
