"""Where the training images are kept, and how augmented batches of them come to the device.

The fastest place that they fit into: the device itself; the computer's memory; their files.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..data.augment import augmented_batch
from ..data.dataset import Split
from ..data.files import loader_workers


class Feed:
    """Batches of training images, augmented in batches on the device.

    Args:
        train: images, uint8 or float in [0, 1] (N, 3, H, W), in memory or in files; and labels.
        device: where the batches are wanted.
        mode: see `ltpa.data.augment.augmented_batch`.
        seed: of the augmentation.
        note: is told where the images are kept if that is not on the device.
    """

    def __init__(
        self, train: Split, device: torch.device, mode: str, seed: int, note: Callable[[str], None] = print
    ) -> None:
        self.train, self.device, self.mode, self.seed = train, device, mode, seed
        self.labels = train.labels.to(device)
        self._resident = train.images.to(device) if not train.in_files and _fits(train.images, device) else None
        if train.in_files:
            note(f"training images are read from their files by {loader_workers()} worker processes")
        elif self._resident is None:
            note("the training images do not fit on the GPU: they stay in the computer's memory")

    def batches(self, epoch: int, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (n, 3, H, W), channels last, and labels (n,) on the device, for the samples (n,) of each part.

        Closing the iterator ends its worker processes.
        """
        picked = self.train.batches(parts)
        # All numbers at once: each transfer would make a GPU wait.
        indices = torch.cat([torch.empty(0, dtype=torch.int64), *parts]).to(self.device).split([*map(len, parts)])
        for index in indices:
            images, at = self._resident, None
            if images is None:
                images, at = next(picked).to(self.device), torch.arange(len(index), device=self.device)
            yield augmented_batch(images, index, self.mode, self.seed, epoch, at), self.labels[index]


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images leave at least half of a GPU's free memory to the training."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() * images.element_size() <= free / 2
