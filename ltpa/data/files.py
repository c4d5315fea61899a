"""Image files: decoded, cut square and scaled; all at once into memory, or again and again where they do not fit."""

import os
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # whatever a file's name says
MAX_PIXELS = 50_000_000  # of one image file; a few kilobytes can unpack to gigabytes
THREADS = 8
PORTION = 256  # files that are decoded at once
LOADER_BYTES = 256 * 2**20  # what the workers of a loader have read and nobody has taken yet: about so much at most
_HEIC = (
    b"heic",
    b"heix",
    b"hevc",
    b"heim",
    b"heis",
    b"hevm",
    b"mif1",
    b"msf1",
    b"avif",
    b"avis",
)  # kinds of ftyp boxes
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFiles(torch.utils.data.Dataset):
    """Images that stay in their files: stands for a tensor uint8 (N, 3, S, S) of which only parts are ever in memory.

    Args:
        files: their paths.
        size: S, the side in pixels to which the middle squares are scaled.
    """

    dtype, ndim = torch.uint8, 4

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = list(files), size
        self._checksums: dict[int, int] = {}
        self._levels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def __getitem__(self, index: Any) -> Tensor:
        """Decodes images: one (3, S, S) for a number, (n, 3, S, S) for a slice or a tensor of numbers or of truths."""
        if isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0):
            return torch.from_numpy(read_image(self.files[int(index)], self.size)[0])
        return torch.cat([torch.empty(0, *self.shape[1:], dtype=self.dtype), *self.portions(index)])

    def part(self, index: Any) -> "ImageFiles":
        """The images that a slice or a tensor of numbers selects, none of which is read."""
        return ImageFiles([self.files[i] for i in torch.arange(len(self))[index].tolist()], self.size)

    def portions(self, index: Any = slice(None)) -> Iterator[Tensor]:
        """Decodes images in portions (n, 3, S, S), by threads."""
        for images, _ in _read_portions(self.part(index).files, self.size):
            yield images

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Decodes batches ahead of their use, in worker processes.

        Args:
            parts: the numbers of the images of each batch, in the order in which they are wanted.

        Yields:
            uint8 (n, 3, S, S). So many are read ahead that they take about `LOADER_BYTES`, but at least one a worker.
        """
        batch = max((len(part) for part in parts), default=1) * 3 * self.size**2
        ahead = max(1, LOADER_BYTES // batch)
        workers = min(loader_workers(), ahead)
        loader = torch.utils.data.DataLoader(
            self,
            batch_sampler=[part.tolist() for part in parts],
            num_workers=workers,
            prefetch_factor=max(1, min(4, ahead // workers)),
            collate_fn=_stacked,
            worker_init_fn=_follow_parent,
            generator=torch.Generator(),  # of the workers' seeds, which nothing uses: the global one stays as it is
        )
        for images in loader:
            yield torch.from_numpy(images)

    def scan(self, start: int = 0) -> list[bytes]:
        """Decodes every file once, and keeps what is asked of all pixels: `levels` and `checksum(start)`.

        Returns:
            the digests of the files' contents.

        Raises:
            ValueError: a file that is no image, named.
        """
        digests, value, levels = [], start, torch.zeros(3, 256, dtype=torch.int64)
        for images, found in _read_portions(self.files, self.size):
            value = zlib.crc32(images.numpy(), value)
            levels += count_levels(images)
            digests += found
        self._checksums[start], self._levels = value, levels
        return digests

    def checksum(self, start: int = 0) -> int:
        """CRC-32 of the pixels, continued from `start`: that of the tensor that these images would be."""
        if start not in self._checksums:
            self.scan(start)
        return self._checksums[start]

    def levels(self) -> Tensor:
        """How many pixels of each channel have each value, int64 (3, 256)."""
        if self._levels is None:
            self.scan()
        return self._levels


def count_levels(images: Tensor) -> Tensor:
    """How many pixels of uint8 images (N, 3, H, W) have each value, int64 (3, 256)."""
    return torch.stack([torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(3)])


def loader_workers() -> int:
    """Worker processes of a loader: as many as this process may use cores, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


def _stacked(images: list[Tensor]) -> np.ndarray:
    """As an array it goes through a pipe: tensors need shared memory, of which containers have little."""
    return torch.stack(images).numpy()


def _follow_parent(_: int) -> None:
    """Signals are the parent's business, which Ctrl-C reaches too; but no worker outlives it, not even a killed one.

    Else a worker that waits to hand over a batch would wait for ever, and hold the run's lock, which it inherited.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def read_images(files: Sequence[Path], size: int) -> tuple[Tensor, list[bytes]]:
    """Decodes image files into memory, uint8 (N, 3, size, size), and the digests of the files' contents.

    Raises:
        ValueError: a file that is no image, named.
    """
    images, digests = torch.empty(len(files), 3, size, size, dtype=torch.uint8), []
    for portion, found in _read_portions(files, size):
        images[len(digests) : len(digests) + len(found)] = portion
        digests += found
    return images, digests


def _read_portions(files: Sequence[Path], size: int) -> Iterator[tuple[Tensor, list[bytes]]]:
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        for start in range(0, len(files), PORTION):
            # What Pillow warns about, such as broken EXIF data, nobody needs to know here.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read = list(pool.map(lambda file: read_image(file, size), files[start : start + PORTION]))
            yield torch.from_numpy(np.stack([pixels for pixels, _ in read])), [digest for _, digest in read]


def read_image(file: Path, size: int) -> tuple[np.ndarray, bytes]:
    """Decodes one file: uint8 (3, size, size), and the digest of its content.

    Raises:
        ValueError: it is no image, or cannot be read.
    """
    try:
        content = file.read_bytes()
        image = open_image(content)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}; replace or delete it") from error
    pixels = np.asarray(crop_square(image, size)).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels), blake2b(content, digest_size=16).digest()


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file and brings it to RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits, of an animation the
    first frame is taken; gray, palette and CMYK images are converted.

    Raises:
        ValueError: not an image that Pillow can read, or one of more than `max_pixels`.
    """
    if not content:
        raise ValueError("the file is empty")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        raise ValueError("a HEIC or AVIF photo, which cannot be read here: save it as JPEG or PNG first")
    problem = f"more than {max_pixels:,} pixels: scale it down first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns about is refused below, or nobody needs to know
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
    """Brings a Pillow image to RGB and upright, see `open_image`."""
    image.load()
    with suppress(Exception):  # no orientation, or EXIF data so broken that they say nothing
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
    """The middle square of an image, scaled to `size` pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)
