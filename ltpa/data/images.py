"""One's own pictures, in whatever form they come: shown whole, and brought to a resolution that a network can read."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import IMAGE_FORMATS, open_image, to_rgb

MOST_PIXELS = 20_000_000  # of a photo
LONGEST = 4  # times the shorter side; a longer picture is squeezed to that, or it would need too much memory
LEAST, MOST = 32, 1024  # pixels of the shorter side
READ = 224  # pixels at most of the shorter side that a model reads unasked; a phone's photo would fill the memory

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor
"""A path, an encoded file, a Pillow image, an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W)."""


def read_pictures(source: Picture | Sequence[Picture]) -> list[Tensor]:
    """Reads one picture or several.

    EXIF rotation is applied, transparency laid on white, of an animation the first frame is taken; gray, palette,
    16-bit and CMYK pictures are converted. Arrays and tensors are uint8, or float in [0, 1].

    Args:
        source: a picture (see `Picture`), a list of pictures, which may differ in size, or a batch: an array
            (N, H, W, 3) or a tensor (N, 3, H, W).

    Returns:
        a uint8 tensor (3, H, W) for each.

    Raises:
        ValueError: no picture, one that cannot be read (HEIC, more than 20 megapixels, no image at all), or numbers
            that are not a picture's.
        TypeError: something that is no picture.
        FileNotFoundError: a path that does not exist.
    """
    many = isinstance(source, list | tuple) or (isinstance(source, Tensor | np.ndarray) and source.ndim == 4)
    pictures = list(source) if many else [source]
    if not pictures:
        raise ValueError("there is no picture")
    return [_read(picture) for picture in pictures]


def at_resolution(picture: Tensor, side: int) -> Tensor:
    """A picture uint8 (3, H, W), whole, with its shorter side scaled to `side` pixels; its proportions stay.

    A picture more than four times as long as wide is squeezed to four times.

    Raises:
        ValueError: a side below 32 or above 1024.
        TypeError: a side that is no whole number.
    """
    if isinstance(side, bool) or not isinstance(side, int):
        raise TypeError(f"the side must be a whole number of pixels, not {side!r}")
    if not LEAST <= side <= MOST:
        raise ValueError(f"the side must be at least {LEAST} and at most {MOST} pixels, not {side}")
    _, height, width = picture.shape
    shorter = min(height, width)
    size = [min(LONGEST * side, round(length * side / shorter)) for length in (width, height)]
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    return _tensor(image.resize(size, Image.Resampling.BILINEAR))


def _read(picture: Any) -> Tensor:
    if isinstance(picture, str | os.PathLike):
        path = Path(os.path.expanduser(picture))
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r} (looked in {Path.cwd()})")
        try:
            return _tensor(open_image(path.read_bytes(), MOST_PIXELS))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if isinstance(picture, bytes | bytearray | memoryview):
        return _tensor(open_image(bytes(picture), MOST_PIXELS))
    if isinstance(picture, Image.Image):
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"more than {MOST_PIXELS:,} pixels: scale it down first")
        return _tensor(to_rgb(picture))
    if isinstance(picture, Tensor):
        return _from_numbers(picture.detach().cpu().numpy(), channels_first=True)
    if isinstance(picture, np.ndarray):
        return _from_numbers(picture, channels_first=False)
    raise TypeError(
        f"a {type(picture).__name__} is no picture: give a path, the bytes of a file ({', '.join(IMAGE_FORMATS)}), a "
        "Pillow image, an array (H, W, 3) or a tensor (3, H, W)"
    )


def _from_numbers(values: np.ndarray, channels_first: bool) -> Tensor:
    form = "(3, H, W)" if channels_first else "(H, W), (H, W, 3) or (H, W, 4)"
    if channels_first:
        fits = values.ndim == 3 and values.shape[0] == 3
        values = values.transpose(1, 2, 0) if fits else values
    else:
        fits = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    if not fits or 0 in values.shape:
        raise ValueError(f"a picture must have the shape {form}, not {tuple(values.shape)}")
    if values.shape[0] * values.shape[1] > MOST_PIXELS:
        raise ValueError(f"more than {MOST_PIXELS:,} pixels: scale it down first")
    if values.dtype != np.uint8:
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"a picture must be uint8, or float in [0, 1], not {values.dtype}")
        if not np.isfinite(values).all() or values.min() < -0.01 or values.max() > 1.01:
            raise ValueError("a picture of float numbers must lie in [0, 1]; divide by 255 if it goes up to 255")
        values = (values.clip(0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(values))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _tensor(image.convert("RGB"))


def _tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
