"""Single images: decoded, converted to RGB and turned upright."""

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import check_whole

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 50_000_000  # of an image of a data set; a few kilobytes can unpack to gigabytes
MAX_PHOTO_PIXELS = 20_000_000  # of your own picture, which is kept whole
MAX_ASPECT = 4  # longer pictures are squeezed to this ratio of the sides, to bound the memory
MIN_SIDE, MAX_SIDE = 32, 1024  # of the shorter side, in pixels
DEFAULT_SIDE = 224  # to which larger pictures are scaled unless a side is given; a phone's photo would fill the memory
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"mif1", b"msf1", b"avif", b"avis")  # in ftyp boxes
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor
"""A path, an encoded file, a Pillow image, an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W)."""


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file and convert it with `to_rgb`; an animation gives its first frame."""
    if not content:
        raise ValueError("the file is empty")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        raise ValueError("a HEIC or AVIF photo, which cannot be read here: save it as JPEG or PNG first")
    problem = f"more than {max_pixels:,} pixels: scale it down first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of it is refused below
            image = Image.open(BytesIO(content), formats=IMAGE_FORMATS)
            if image.width * image.height <= max_pixels:
                return to_rgb(image)
    except Image.DecompressionBombError:
        pass
    except UnidentifiedImageError:
        problem = f"not an image of a known format ({', '.join(IMAGE_FORMATS)})"
    except Exception as error:  # Pillow's decoders raise what they like on broken files
        raise ValueError(f"not a readable image ({type(error).__name__}: {error}); is it cut off?") from error
    raise ValueError(problem)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to upright RGB, with transparency on white and 16-bit values scaled to 8 bits."""
    image.load()
    with suppress(Exception):  # no orientation, or broken EXIF data
        image = image.transpose(_UPRIGHT[image.getexif()[0x0112]])
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, save it with 8 bits")
    if image.mode.startswith("I"):  # 16 bits, or 32 with unknown limits
        values = np.asarray(image, dtype=np.float64)
        if image.mode != "I" or values.max() > 255:
            values = values / 257
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def crop_square(image: Image.Image, size: int) -> Image.Image:
    """Return the middle square of an image, scaled to `size` pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def read_pictures(source: Picture | Sequence[Picture]) -> list[Tensor]:
    """Return a uint8 tensor (3, H, W) for each picture: a `Picture`, a list of them, or a batch.

    A batch is an array (N, H, W, 3) or a tensor (N, 3, H, W). Arrays and tensors are uint8, or float in [0, 1].
    """
    many = isinstance(source, list | tuple) or (isinstance(source, Tensor | np.ndarray) and source.ndim == 4)
    pictures: Any = source if many else [source]
    if not len(pictures):
        raise ValueError("there is no picture")
    return [_read(picture) for picture in pictures]


def at_resolution(picture: Tensor, side: int) -> Tensor:
    """Scale the shorter side of a picture uint8 (3, H, W) to `side` pixels, from 32 to 1024.

    The proportions stay, except that a picture more than four times as long as wide is squeezed to four times.
    """
    check_whole("side", side, MIN_SIDE, MAX_SIDE)
    _, height, width = picture.shape
    shorter = min(height, width)
    wide, high = (min(MAX_ASPECT * side, round(length * side / shorter)) for length in (width, height))
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    return _tensor(image.resize((wide, high), Image.Resampling.BILINEAR))


def _read(picture: Any) -> Tensor:
    if isinstance(picture, str | os.PathLike):
        path = Path(os.path.expanduser(picture))
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r} (looked in {Path.cwd()})")
        try:
            return _tensor(open_image(path.read_bytes(), MAX_PHOTO_PIXELS))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if isinstance(picture, bytes | bytearray | memoryview):
        return _tensor(open_image(bytes(picture), MAX_PHOTO_PIXELS))
    if isinstance(picture, Image.Image):
        _check_pixels(picture.width, picture.height)
        return _tensor(to_rgb(picture))
    if isinstance(picture, Tensor):
        values = picture.detach().cpu().numpy()
        if values.ndim != 3 or values.shape[0] != 3:
            raise ValueError(f"a picture must have the shape (3, H, W), not {tuple(values.shape)}")
        return _from_numbers(values.transpose(1, 2, 0))
    if isinstance(picture, np.ndarray):
        if picture.ndim != 2 and (picture.ndim != 3 or picture.shape[2] not in (3, 4)):
            raise ValueError(f"a picture must have the shape (H, W), (H, W, 3) or (H, W, 4), not {picture.shape}")
        return _from_numbers(picture)
    raise TypeError(
        f"a {type(picture).__name__} is no picture: give a path, the bytes of a file ({', '.join(IMAGE_FORMATS)}), a "
        "Pillow image, an array (H, W, 3) or a tensor (3, H, W)"
    )


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PHOTO_PIXELS:
        raise ValueError(f"more than {MAX_PHOTO_PIXELS:,} pixels: scale it down first")


def _from_numbers(values: np.ndarray) -> Tensor:
    """Read an array (H, W), (H, W, 3) or (H, W, 4)."""
    if 0 in values.shape:
        raise ValueError(f"a picture must have the shape (H, W, 3) with at least one pixel, not {values.shape}")
    _check_pixels(values.shape[1], values.shape[0])
    if values.dtype != np.uint8:
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"a picture must be uint8, or float in [0, 1], not {values.dtype}")
        if not np.isfinite(values).all() or values.min() < -0.01 or values.max() > 1.01:
            raise ValueError("a picture of float numbers must lie in [0, 1]; divide by 255 if it goes up to 255")
        values = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return _tensor(to_rgb(Image.fromarray(np.ascontiguousarray(values))))


def _tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
