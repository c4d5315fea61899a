"""The order of the training images, where they are kept, and augmented batches of them on the device."""

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from ..data.augment import augmented_batch
from ..data.dataset import Split
from ..data.files import loader_workers
from ..progress import logger


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Return the samples of every step of an epoch: a permutation given by (seed, epoch), in nearly equal batches.

    Sizes differ by one at most. No batch is a single image, which batch norm could not take: an odd number in pairs
    gives one batch of three.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return list(order.tensor_split(steps_per_epoch(count, batch_size)))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches of `epoch_batches`."""
    return max(1, min(math.ceil(count / batch_size), count // 2))


class Loader:
    """Batches of training images, augmented on the device.

    The images are kept in the fastest place with room for them: the device, the computer's memory, or their files.

    Args:
        train: images, uint8 or float in [0, 1] (N, 3, H, W), and labels.
        device: where the batches are wanted.
        mode: see `ltpa.data.augment.augmented_batch`.
        seed: seed of the augmentation.
    """

    def __init__(self, train: Split, device: torch.device, mode: str, seed: int) -> None:
        self.train, self.device, self.mode, self.seed = train, device, mode, seed
        self._labels: Tensor | None = None  # on the device, from the first batch on
        self._images: Tensor | None = None  # on the device, where they fit

    def __len__(self) -> int:
        return len(self.train)

    def _place(self) -> Tensor:
        if self.train.in_files:
            logger.warning(f"training images are read from their files by {loader_workers()} worker processes")
        elif _fits(self.train.images, self.device):
            self._images = self.train.images.to(self.device)
        else:
            logger.warning("the training images do not fit on the GPU: they stay in the computer's memory")
        return self.train.labels.to(self.device)

    def batches(self, epoch: int, parts: Sequence[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield images (n, 3, H, W), channels last, and labels (n,) on the device, for the samples (n,) of each part.

        Closing the iterator ends its worker processes.
        """
        if self._labels is None:
            self._labels = self._place()
        picked = self.train.batches(parts)
        # All numbers at once: each transfer would make a GPU wait.
        indices = torch.cat([torch.empty(0, dtype=torch.int64), *parts]).to(self.device).split([*map(len, parts)])
        for index in indices:
            images, at = self._images, None
            if images is None:
                images, at = next(picked).to(self.device), torch.arange(len(index), device=self.device)
            yield augmented_batch(images, index, self.mode, self.seed, epoch, at), self._labels[index]


def _fits(images: Tensor, device: torch.device) -> bool:
    """Return whether the images leave half of a GPU's free memory to the training."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() * images.element_size() <= free / 2
