"""Features of a frozen backbone: computed once for each view of an image, then read in place of the image."""

import math
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.augment import augmented_batch
from ..data.dataset import Dataset, Split
from ..data.memory import memory_for_images
from ..inference import autocast, images_at_once, to_float
from ..models.classifier import AttentionOutput, evaluation_mode
from ..models.networks import AttentionNetwork
from ..progress import logger
from .loader import Loader
from .run import Run

VIEWS = 8  # of a training image: itself, then crops and flips; epoch k reads view k modulo VIEWS
AT_ONCE = 16  # images


class FrozenNetwork(nn.Module):
    """A network with a frozen trunk: features in place of images go in, logits come out."""

    def __init__(self, model: AttentionNetwork, image_size: int) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad(), evaluation_mode(model):
            image = torch.zeros(1, 3, image_size, image_size, device=model.mean.device)
            self.shapes = {name: x.shape[1:] for name, x in model.trunk(model.normalize(image)).items()}

    @property
    def length(self) -> int:
        """The number of features of an image."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def packed(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the features of all levels, (N, length), of uint8 images (N, 3, H, W), in the precision `dtype`.

        Every batch is filled up to the same size: so the features of an image do not depend on its batch.
        """
        parts = []
        filled = torch.cat([images, images[:1].expand(-len(images) % AT_ONCE, -1, -1, -1)])
        with torch.no_grad(), autocast(images.device, dtype):
            for batch in filled.split(AT_ONCE):
                batch = to_float(batch).contiguous(memory_format=torch.channels_last)
                levels = self.model.trunk(self.model.normalize(batch)).values()
                parts.append(torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in levels], 1))
        return torch.cat(parts)[: len(images)]

    def attend(self, packed: Tensor) -> AttentionOutput:
        """Return the network's output for these features."""
        values = packed.split([math.prod(shape) for shape in self.shapes.values()], 1)
        levels = OrderedDict(
            (name, value.unflatten(1, (*shape[1:], shape[0])).permute(0, 3, 1, 2))
            for (name, shape), value in zip(self.shapes.items(), values, strict=True)
        )
        return self.model.read(levels, levels, len(packed))

    def forward(self, packed: Tensor) -> Tensor:
        """(N, length) -> logits (N, num_classes)."""
        return self.attend(packed).logits


class FeatureLoader(Loader):
    """Batches of features of training images; those that fit into memory are computed once.

    Args:
        train, device, mode, seed: see `Loader`.
        network, dtype: what computes the features, and in which precision.
        room: bytes for the features.
        views: augmented versions of each image.
    """

    def __init__(
        self,
        train: Split,
        device: torch.device,
        mode: str,
        seed: int,
        *,
        network: FrozenNetwork,
        dtype: torch.dtype,
        room: int,
        views: int = VIEWS,
    ) -> None:
        super().__init__(train, device, mode, seed)
        self.network, self.dtype, self.views = network, dtype, 1 if mode == "none" else views
        wanted = self.views * len(train)
        row = network.length * (4 if dtype == torch.float32 else 2)
        self.kept = min(wanted, max(0, room) // row)  # rows; those of the first views come first
        if self.kept < wanted:
            logger.warning(
                f"the features of the frozen backbone take {wanted * row / 1e9:.2g} GB, and there is room for "
                f"{self.kept * row / 1e9:.2g} GB (memory_gb changes it): the rest is computed in every epoch"
            )
        self.bytes = self.kept * row
        self._rows: Tensor | None = None
        self._known = torch.zeros(wanted, dtype=torch.bool)

    def of(self, index: Tensor, epoch: int) -> Tensor:
        """Return the features (n, length) of samples (n,) as this epoch sees them."""
        view = epoch % self.views
        rows = view * len(self.train) + index
        stored = self._known[rows]
        missing = index[~stored]
        fresh = torch.empty(0)
        if len(missing):
            images, here = self.train[missing].images.to(self.device), missing.to(self.device)
            mode = self.mode if view else "none"
            at = torch.arange(len(missing), device=self.device)
            fresh = self.network.packed(augmented_batch(images, here, mode, self.seed, view, at), self.dtype).cpu()
            if self._rows is None:
                self._rows = torch.empty(self.kept, self.network.length, dtype=fresh.dtype)
            keep = ~stored & (rows < self.kept)
            self._rows[rows[keep]] = fresh[keep[~stored]]
            self._known[rows[keep]] = True
        if len(missing) == len(index):
            return fresh
        assert self._rows is not None
        features = torch.empty(len(index), self.network.length, dtype=self._rows.dtype)
        features[stored] = self._rows[rows[stored]]
        if len(missing):
            features[~stored] = fresh
        return features

    def batches(self, epoch: int, parts: Sequence[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield features (n, length) and labels (n,) on the device, for the samples (n,) of each part."""
        for part in parts:
            yield self.of(part, epoch).to(self.device), self.train.labels[part].to(self.device)

    def outputs(self, part: slice) -> Iterator[tuple[slice, AttentionOutput]]:
        """Yield slices within a part of the images and the network's outputs for them, without augmentation."""
        index = torch.arange(len(self.train))[part]
        with torch.no_grad(), evaluation_mode(self.network):
            for start in range(0, len(index), images_at_once(self.train)):
                chosen = index[start : start + images_at_once(self.train)]
                features = self.of(chosen, 0).to(self.device)
                with autocast(self.device, self.dtype):
                    output = self.network.attend(features)
                yield slice(start, start + len(chosen)), output


def frozen_parts(
    run: Run, data: Dataset, device: torch.device, mode: str, dtype: torch.dtype
) -> tuple[FrozenNetwork, FeatureLoader, FeatureLoader]:
    """Return what trains a run whose backbone is frozen: the network, and features of training and test images."""
    assert isinstance(run.model, AttentionNetwork)
    network = FrozenNetwork(run.model, int(data.train.shape[-1]))
    room = memory_for_images(run.config.memory_gb)
    if run.config.memory_gb is not None:  # without it, half of what the images have left free
        room -= sum(0 if split.in_files else split.images.nbytes for split in (data.train, data.test))
    parts: dict[str, Any] = {"network": network, "dtype": dtype}
    test = FeatureLoader(data.test, device, "none", run.config.seed, room=room, **parts)
    train = FeatureLoader(data.train, device, mode, run.config.seed, room=room - test.bytes, **parts)
    return network, train, test
