"""One picture: decoded, reduced if it is large, converted to RGB and turned upright."""

import importlib.util
import os
import threading
import warnings
from contextlib import nullcontext, suppress
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

# Files with these extensions are taken for pictures without looking at their content.
_OLD_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_SUFFIXES = frozenset((*_OLD_SUFFIXES, ".webp", ".heic", ".heif", ".avif"))
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 150_000_000  # a few kilobytes can unpack to gigabytes
HUGE_PIXELS = 50_000_000  # larger pictures are decoded one at a time, to bound the memory
LARGE_PIXELS = 8_000_000  # larger pictures are reduced while they are decoded
MIN_SIDE, MAX_SIDE = 32, 1024  # of the shorter side that a network reads, in pixels
_AVIF = (b"avif", b"avis")  # brands in ftyp boxes
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"mif1", b"msf1")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"P5", b"P6")
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_huge = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_one_huge=threading.Lock()))


class Levels(NamedTuple):
    """The values of gray pictures with more than 8 bits that become black and white."""

    black: float
    white: float

    @classmethod
    def of(cls, least: float, most: float) -> "Levels":
        """Return the levels for values from `least` to `most`.

        Black is 0 and white the largest number of as many bits as `most` needs: 4095 for 12 bits. If there are
        negative values, black is the least and white the largest value.
        """
        if least < 0:
            return cls(least, max(most, least + 1))
        return cls(0, 2 ** max(1, int(most).bit_length()) - 1)


def open_image(content: bytes, side: int = MAX_SIDE, levels: Levels | None = None) -> Image.Image:
    """Decode an image file and convert it with `to_rgb`; for `side` see `decode`."""
    return to_rgb(decode(content, side), levels)


def decode(content: bytes, side: int = MAX_SIDE) -> Image.Image:
    """Decode an image file in its own mode and turn it upright; an animation gives its first frame.

    A picture of more than 8 megapixels is reduced, but its shorter side keeps at least `side` pixels.
    """
    if not content:
        raise ValueError("the file is empty")
    formats = IMAGE_FORMATS if content[4:8] != b"ftyp" else _newer_formats(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is refused below
            return _decode(content, side, formats)
    except Image.DecompressionBombError:
        problem = f"more than {MAX_PIXELS:,} pixels: scale it down first"
    except UnidentifiedImageError:
        problem = f"not an image of a known format ({', '.join(IMAGE_FORMATS)})"
    except _Refused as error:
        problem = str(error)
    except Exception as error:  # Pillow's decoders raise what they like on broken files
        raise ValueError(f"not a readable image ({type(error).__name__}: {error}); is it cut off?") from error
    raise ValueError(problem)


class _Refused(Exception):
    """A picture that must not be decoded, or would not decode to what its owner expects."""


def check_pixels(width: int, height: int) -> None:
    """Refuse a picture that would unpack to gigabytes."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels: scale it down first")


def _decode(content: bytes, side: int, formats: tuple[str, ...]) -> Image.Image:
    try:
        image = Image.open(BytesIO(content), formats=formats)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if _is_raw(image, content):
            raise _Refused("a camera's raw file, of which only a thumbnail could be read: save it as JPEG or PNG first")
        if image.width * image.height > LARGE_PIXELS:
            image.draft(None, (side, side))  # JPEG: decodes a half, a quarter or an eighth of the size
        return reduce_large(image, side)
    except ValueError:
        shorter = _without_text(content)  # Pillow refuses text and color profiles of more than a megabyte
        if shorter == content:
            raise
        return _decode(shorter, side, formats)


def reduce_large(image: Image.Image, side: int) -> Image.Image:
    """Load a Pillow image and turn it upright; reduce it as described at `decode`."""
    pixels = image.width * image.height
    with _one_huge if pixels > HUGE_PIXELS else nullcontext():
        image.load()
        orientation = None
        with suppress(Exception):  # no orientation, or broken EXIF data
            orientation = _UPRIGHT[image.getexif()[0x0112]]
        factor = min(image.size) // side
        if pixels > LARGE_PIXELS and factor > 1:
            if image.mode.startswith("I;"):
                image = image.convert("I")
            elif image.mode in ("1", "P", "PA") or "transparency" in image.info:
                image = image.convert("L" if image.mode == "1" else "RGBA")
            image = image.reduce(factor)
        return image if orientation is None else image.transpose(orientation)


def _is_raw(image: Image.Image, content: bytes) -> bool:
    """Return whether a TIFF file is a raw photo: DNG, CR2, or another whose first picture is only a thumbnail."""
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and (50706 in tags or tags.get(254, 0) & 1 == 1 or content[8:10] == b"CR")


def _without_text(content: bytes) -> bytes:
    """Return a PNG file without its texts and color profile; other files as they are."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    start, kept = 8, [content[:8]]
    while start + 8 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _newer_formats(content: bytes) -> tuple[str, ...]:
    """Return the name of the format of a HEIC or AVIF photo, if Pillow or a plugin can decode it."""
    end = max(16, min(int.from_bytes(content[:4], "big"), 256))
    brands = {content[start : start + 4] for start in range(8, end, 4)}
    kind, module, remedy = "HEIC", "pillow_heif", "pip install pillow-heif"
    if brands & {*_AVIF}:
        if importlib.util.find_spec("PIL._avif"):
            return ("AVIF",)
        kind, module, remedy = "AVIF", "pillow_avif", "install Pillow 11.3 or later, or pip install pillow-avif-plugin"
    elif not brands & {*_HEIC}:
        raise ValueError(f"not an image of a known format ({', '.join(IMAGE_FORMATS)}), perhaps a video")
    try:
        plugin = importlib.import_module(module)
    except ImportError:
        raise ValueError(f"a {kind} photo, which cannot be read here: {remedy}; or save it as JPEG") from None
    if kind == "HEIC":
        plugin.register_heif_opener()
        return ("HEIF",)
    return ("AVIF",)


def is_image(start: bytes) -> bool:
    """Return whether a file is a picture by its first 32 bytes; it may still be broken."""
    if start[4:8] == b"ftyp":
        return start[8:12] in _AVIF + _HEIC
    return start.startswith(_SIGNATURES) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP")


def is_deep(image: Image.Image) -> bool:
    """Return whether a Pillow image is gray with more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def value_range(image: Image.Image) -> tuple[float, float]:
    """Return the least and the largest value of a gray Pillow image."""
    values = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    if not np.isfinite((least, most)).all():
        raise ValueError("some of its pixels are not finite numbers")
    return least, most


def to_rgb(image: Image.Image, levels: Levels | None = None) -> Image.Image:
    """Convert a Pillow image to RGB; transparent parts become white.

    `levels` scale gray values of more than 8 bits; without them, the picture's own range does.
    """
    if is_deep(image):
        own = value_range(image)
        black, white = levels or Levels.of(*own)
        values = (np.asarray(image, dtype=np.float64) - black) * (255 / (white - black))
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
