"""Image files: decoded once by threads, or batch by batch in worker processes where memory is short."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .images import crop_square, open_image
from .split import Channels, Index, Split, count_levels, crc32, level_statistics

PORTION = 256  # files decoded at a time
LOADER_BYTES = 256 * 2**20  # that a loader's workers may read ahead, approximately


class FileSplit(Split):
    """Images with labels that stay in their files; the middle squares are scaled to `size` pixels."""

    in_files = True
    dtype = torch.uint8
    files: list[Path]
    size: int
    _scans: dict[int, tuple[int, Tensor]]

    def __init__(self, files: Sequence[Path], labels: Tensor, size: int) -> None:
        vars(self).update(files=list(files), labels=labels, masks=None, size=size, _scans={})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Index) -> Split:
        """Return the chosen images, decoded into memory."""
        numbers = torch.arange(len(self))[index]
        images, _ = read_images([self.files[i] for i in numbers.flatten().tolist()], self.size)
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
        return FileSplit([self.files[i] for i in numbers], self.labels[index], self.size)

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
            collate_fn=partial(_decoded, size=self.size),
            worker_init_fn=_follow_parent,
            generator=torch.Generator(),  # keeps the global generator as it is
        )
        for images in loader:
            yield torch.from_numpy(images)

    def scan(self, start: int = 0) -> list[bytes]:
        """Decode every file once, keep `checksum(start)` and `statistics`, and return the files' digests."""
        digests: list[bytes] = []
        value, levels = start, torch.zeros(3, 256, dtype=torch.int64)
        for images, portion_digests in _read_portions(self.files, self.size):
            value, levels = crc32(images, value), levels + count_levels(images)
            digests += portion_digests
        self._scans[start] = crc32(self.labels, value), levels
        return digests

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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


def _decoded(files: list[Path], size: int) -> np.ndarray:
    """Decode a batch; an array goes through a pipe, a tensor would need shared memory, which containers lack."""
    return np.stack([read_image(file, size)[0] for file in files])


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


def read_images(files: Sequence[Path], size: int) -> tuple[Tensor, list[bytes]]:
    """Decode image files into uint8 (N, 3, size, size); also return the digests of their contents."""
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    digests: list[bytes] = []
    for portion, portion_digests in _read_portions(files, size):
        images[len(digests) : len(digests) + len(portion)] = portion
        digests += portion_digests
    return images, digests


def _read_portions(files: Sequence[Path], size: int) -> Iterator[tuple[Tensor, list[bytes]]]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        for start in range(0, len(files), PORTION):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as Pillow's about broken EXIF data
                read = list(pool.map(lambda file: read_image(file, size), files[start : start + PORTION]))
            yield torch.from_numpy(np.stack([pixels for pixels, _ in read])), [digest for _, digest in read]


def read_image(file: Path, size: int) -> tuple[np.ndarray, bytes]:
    """Decode one file into uint8 (3, size, size); also return the digest of its content."""
    try:
        content = file.read_bytes()
        image = open_image(content, 2 * size)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}; replace or delete it") from error
    pixels = np.asarray(crop_square(image, size)).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels), blake2b(content, digest_size=16).digest()
