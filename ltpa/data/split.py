"""Images with labels, and how subsets of them are chosen."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import counted

Index = int | slice | Tensor
Channels = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels, in memory.

    `FileSplit` has the same interface for images that stay in their files. There `split.images` decodes all of them,
    so code for both uses `split[index].images` or `split.batches(...)`.
    """

    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # int64 (N,), indices into the classes; (N, k) for scenes of k objects
    masks: Tensor | None = None  # bool (N, H, W), True on the object; (N, k, H, W) for k objects
    in_files: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({counted(len(self), 'image')} {tuple(self.shape[1:])})"

    def __getitem__(self, index: Index) -> "Split":
        """Return the chosen images, in memory."""
        return Split(self.images[index], self.labels[index], None if self.masks is None else self.masks[index])

    @property
    def shape(self) -> torch.Size:
        """The images' shape (N, 3, H, W)."""
        return self.images.shape

    @property
    def dtype(self) -> torch.dtype:
        """The images' type."""
        return self.images.dtype

    def part(self, index: slice | Tensor) -> "Split":
        """Return the chosen images without decoding any."""
        return self[index]

    def batches(self, parts: Sequence[slice | Tensor]) -> Iterator[Tensor]:
        """Yield the images (n, 3, H, W) of each part."""
        for part in parts:
            yield self.images[part]

    def checksum(self, start: int = 0) -> int:
        """Return the CRC-32 of images and labels, continued from `start`."""
        return crc32(self.labels, crc32(self.images, start))

    def statistics(self) -> tuple[Channels, Channels]:
        """Return mean and standard deviation per channel, for values in [0, 1].

        A constant channel gets the standard deviation 1/255, so that dividing by it is safe.
        """
        return level_statistics(count_levels(self.images))


def crc32(values: Tensor, start: int) -> int:
    """Return the CRC-32 of a tensor's bytes, continued from `start`."""
    array: Any = values.cpu().contiguous().numpy()
    return zlib.crc32(array, start)


def count_levels(images: Tensor) -> Tensor:
    """Return the histogram of each channel of uint8 images (N, 3, H, W), int64 (3, 256)."""
    return torch.stack([torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(3)])


def level_statistics(levels: Tensor) -> tuple[Channels, Channels]:
    """Return mean and standard deviation per channel from `count_levels`, see `Split.statistics`."""
    shares = levels.double() / levels.double().sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ values
    std = (shares @ values**2 - mean**2).clamp_min(0).sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def stratified(labels: Tensor, count: int, seed: int, proportional: bool = False) -> Tensor:
    """Return the ascending indices of `count` seeded samples, balanced over the classes or in their proportions.

    The class of a scene is that of its first object.
    """
    labels = labels.flatten(1)[:, 0] if labels.ndim > 1 else labels
    shuffled = torch.from_numpy(np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable"))
    rank = torch.empty(len(labels), dtype=torch.float64)  # of each sample within its class
    for label in labels.unique():
        of_class = shuffled[labels[shuffled] == label]
        rank[of_class] = torch.arange(0.5, len(of_class), dtype=torch.float64) / (len(of_class) if proportional else 1)
    order = shuffled[torch.argsort(rank[shuffled], stable=True)]
    return order[:count].sort().values


def part_off(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices into kept ones and `count` taken ones, the same fraction of each class."""
    taken = stratified(labels, count, seed, proportional=True)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[taken] = False
    return kept.nonzero().squeeze(1), taken


def at_most(labels: Tensor, limit: int | None, seed: int) -> slice | Tensor:
    """Return an index of at most `limit` samples, balanced over the classes."""
    return slice(limit) if limit in (None, 0) or limit >= len(labels) else stratified(labels, limit, seed)
