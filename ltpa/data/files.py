"""Image files: decoded once by threads, or batch by batch in worker processes where memory is short."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cores import available_cores
from .images import Levels, crop_square, decode, is_deep, to_rgb, value_range
from .split import Channels, Index, Split, count_levels, crc32, level_statistics

PORTION = 256  # files decoded at a time
LOADER_BYTES = 256 * 2**20  # that a loader's workers may read ahead, approximately


@dataclass
class Findings:
    """What a pass over picture files found."""

    good: list[int] = field(default_factory=list)  # numbers of the files
    digests: list[bytes] = field(default_factory=list)  # of the good files' contents; the same for copies
    values: list[tuple[float, float]] = field(
        default_factory=list
    )  # least, largest: of gray ones with more than 8 bits
    broken: list[str] = field(default_factory=list)  # file and reason


@dataclass(frozen=True)
class DecodedFile:
    """The middle square of a picture, uint8 (3, size, size), and the digest of the file's content."""

    pixels: np.ndarray
    digest: bytes
    values: tuple[float, float] | None  # least and largest, where it is gray with more than 8 bits


class FileSplit(Split):
    """Images with labels that stay in their files; the middle squares are scaled to `size` pixels.

    `levels` are those of gray pictures with more than 8 bits, one rule for a whole data set.
    """

    in_files = True
    dtype = torch.uint8
    files: list[Path]
    size: int
    levels: Levels | None
    _scans: dict[int, tuple[int, Tensor]]

    def __init__(self, files: Sequence[Path], labels: Tensor, size: int, levels: Levels | None = None) -> None:
        vars(self).update(files=list(files), labels=labels, masks=None, size=size, levels=levels, _scans={})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Index) -> Split:
        """Return the chosen images, decoded into memory."""
        numbers = torch.arange(len(self))[index]
        images, found = read_images([self.files[i] for i in numbers.flatten().tolist()], self.size, self.levels)
        if found.broken:
            raise ValueError(f"{found.broken[0]}; it could be read before")
        return Split(images.unflatten(0, numbers.shape) if numbers.ndim else images[0], self.labels[index])

    @property
    def images(self) -> Tensor:
        """All images, decoded at each access, uint8 (N, 3, S, S)."""
        return self[:].images

    @property
    def shape(self) -> torch.Size:
        """The images' shape (N, 3, S, S)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def part(self, index: slice | Tensor) -> "FileSplit":
        """Return the chosen images without decoding any."""
        numbers = torch.arange(len(self))[index].tolist()
        return FileSplit([self.files[i] for i in numbers], self.labels[index], self.size, self.levels)

    def batches(self, parts: Sequence[slice | Tensor]) -> Iterator[Tensor]:
        """Yield the images of each part, decoded ahead of use in worker processes; closing the iterator ends them."""
        numbers = [torch.arange(len(self))[part].tolist() for part in parts]
        ahead = max(1, LOADER_BYTES // (max(map(len, numbers), default=1) * 3 * self.size**2))
        workers = min(loader_workers(), ahead)
        files: Any = self.files
        loader: Iterable[np.ndarray] = torch.utils.data.DataLoader(
            files,
            batch_sampler=numbers,
            num_workers=workers,
            prefetch_factor=max(1, min(4, ahead // workers)),
            collate_fn=partial(_decoded, size=self.size, levels=self.levels),
            worker_init_fn=_follow_parent,
            generator=torch.Generator(),  # keeps the global generator as it is
        )
        for images in loader:
            yield torch.from_numpy(images)

    def scan(self, start: int = 0) -> Findings:
        """Decode every file once, keep `checksum(start)` and `statistics`, and return what was found.

        Where files are broken, `without_broken` must be used from then on.
        """
        found, value, levels = Findings(), start, torch.zeros(3, 256, dtype=torch.int64)
        for images in _read_portions(self.files, self.size, self.levels, found):
            value, levels = crc32(images, value), levels + count_levels(images)
        self._scans[start] = crc32(self.labels[found.good], value), levels
        return found

    def without_broken(self, found: Findings) -> "FileSplit":
        """Return the files that `scan` could read."""
        if not found.broken:
            return self
        good = self.part(torch.tensor(found.good, dtype=torch.int64))
        good._scans.update(self._scans)
        return good

    def checksum(self, start: int = 0) -> int:
        """Return the CRC-32 of pixels and labels, the same as for a split in memory."""
        if start not in self._scans:
            self.scan(start)
        return self._scans[start][0]

    def statistics(self) -> tuple[Channels, Channels]:
        """Return mean and standard deviation per channel, the same as for a split in memory."""
        if not self._scans:
            self.scan()
        return level_statistics(next(iter(self._scans.values()))[1])


def loader_workers() -> int:
    """Return the number of worker processes: one for each core that this process may use, at most 8."""
    return max(1, min(8, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


def _decoded(files: list[Path], size: int, levels: Levels | None) -> np.ndarray:
    """Decode a batch; an array goes through a pipe, a tensor would need shared memory, which containers lack."""
    return np.stack([read_image(file, size, levels).pixels for file in files])


def _follow_parent(_: int) -> None:
    """Ignore signals but exit with the parent, even a killed one; a blocked worker would keep the run's lock."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def read_images(files: Sequence[Path], size: int, levels: Levels | None = None) -> tuple[Tensor, Findings]:
    """Decode image files into uint8 (N, 3, size, size), without the broken ones."""
    images, findings, count = torch.empty(len(files), 3, size, size, dtype=torch.uint8), Findings(), 0
    for portion in _read_portions(files, size, levels, findings):
        images[count : count + len(portion)] = portion
        count += len(portion)
    return images[:count], findings


def _read_portions(files: Sequence[Path], size: int, levels: Levels | None, findings: Findings) -> Iterator[Tensor]:
    """Yield the decoded files, many at a time, and add what is found in them to `findings`."""

    def read(file: Path) -> DecodedFile | ValueError:
        try:
            return read_image(file, size, levels)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(max_workers=8) as pool:
        for start in range(0, len(files), PORTION):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as Pillow's about broken EXIF data
                results = list(pool.map(read, files[start : start + PORTION]))
            pixels = []
            for number, result in enumerate(results, start):
                if isinstance(result, ValueError):
                    findings.broken.append(str(result))
                    continue
                if result.values is not None:
                    findings.values.append(result.values)
                findings.good.append(number)
                findings.digests.append(result.digest)
                pixels.append(result.pixels)
            if pixels:
                yield torch.from_numpy(np.stack(pixels))


def read_image(file: Path, size: int, levels: Levels | None = None) -> DecodedFile:
    """Decode the middle square of one file; a ValueError names the file."""
    try:
        content = file.read_bytes()
        image = decode(content, 2 * size)
        values = value_range(image) if is_deep(image) else None
        square = crop_square(to_rgb(image, levels), size)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
    pixels = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
    return DecodedFile(pixels, blake2b(content, digest_size=16).digest(), values)
