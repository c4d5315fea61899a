"""The training loops that the benchmark times: a plain one, and ours with each of its measures left out.

A loop is a generator: every `next` of it is one step, data included; closing it ends the workers that load its data.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from ltpa.config import TrainConfig
from ltpa.data.augment import augmented_batch
from ltpa.data.dataset import Split
from ltpa.inference import choose_device
from ltpa.training.optim import make_optimizer
from ltpa.training.trainer import train_step

WORKERS = 2
AHEAD = 2 * WORKERS  # batches that the workers of a loader have ready when it was idle
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_ENDLESS = 10**9


@dataclass(frozen=True)
class Measures:
    """What `ltpa.fit` does to be fast, each of which can be left out.

    Attributes:
        dtype: of the convolutions.
        channels_last: the memory format of weights and activations.
        resident: all images lie on the device; otherwise they come from the workers of a DataLoader, as uint8.
        batched: a batch is augmented at once on the device; otherwise the workers augment each image with PIL, and
            nothing is resident either.
        skips_dead_branch: layers that no gradient reaches are left out, see `ltpa.models.networks.AttentionNetwork`.
        compiled: the network goes through torch.compile.
    """

    dtype: torch.dtype
    channels_last: bool = True
    resident: bool = True
    batched: bool = True
    skips_dead_branch: bool = True
    compiled: bool = False


class Pictures(Dataset):
    """Single images, as a folder or torchvision's CIFAR-10 gives them: a Pillow image goes through `transform`."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor] | None) -> None:
        self.images, self.labels = split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        """One image and its label; without a transform the image is a uint8 array (H, W, 3)."""
        image = self.images[number]
        return (self.transform(Image.fromarray(image)) if self.transform else image), self.labels[number]


def loader(pictures: Pictures, batch_size: int) -> DataLoader:
    """Batches in random order without an end, from two workers."""
    order = RandomSampler(pictures, replacement=True, num_samples=_ENDLESS)
    return DataLoader(pictures, batch_size, sampler=order, num_workers=WORKERS)


# The plain loop: it shares nothing with ours but the network.


def plain_loop(config: TrainConfig, split: Split, num_classes: int) -> Callable[[], Iterator[None]]:
    """A loop as in many notebooks of 2021: float32, NCHW, every image augmented alone with Pillow by two workers.

    The network has the layers that no gradient reaches, and gets images that are normalized by the transform.
    """
    device = choose_device(config.device)
    model = config.create_model(num_classes, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), faithful=True).to(device)
    side = split.images.shape[-1]
    transform = transforms.Compose(
        [
            transforms.RandomCrop(side, padding=side // 8),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    pictures = Pictures(split, transform)
    criterion, sgd = plain_parts(model, config)

    def steps() -> Iterator[None]:
        model.train()
        for images, labels in loader(pictures, config.batch_size):
            plain_step(model, criterion, sgd, images.to(device), labels.to(device))
            yield

    return steps


def plain_parts(model: nn.Module, config: TrainConfig) -> tuple[nn.Module, torch.optim.SGD]:
    """Loss and optimizer of the plain loop; its weight decay is on all parameters, ours on some."""
    sgd = torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay, nesterov=True
    )
    return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing), sgd


def plain_step(
    model: nn.Module, criterion: nn.Module, sgd: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    """One step on normalized float32 images; returns the loss, as a notebook would to show it."""
    sgd.zero_grad()
    loss = criterion(model(images), labels)
    loss.backward()
    sgd.step()
    return loss.item()


# Ours


def our_loop(config: TrainConfig, split: Split, num_classes: int, measures: Measures) -> Callable[[], Iterator[None]]:
    """The steps of `ltpa.fit`, with the measures that are asked for.

    Args:
        config: its model, width, batch size and so on.
        split: the images, on the device of the configuration where they are to be resident, else on the CPU.
        num_classes: of the network.
        measures: what is done to be fast.
    """
    device = choose_device(config.device)
    layout = torch.channels_last if measures.channels_last else torch.contiguous_format
    model = config.create_model(num_classes, mean=MEAN, std=STD, faithful=not measures.skips_dead_branch)
    model.to(device, memory_format=layout)

    @cache
    def network() -> nn.Module:
        return torch.compile(model) if measures.compiled else model

    sgd = make_optimizer(
        model, optimizer=config.optimizer or "muon", learning_rate=0.06, weight_decay=config.weight_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=measures.dtype == torch.float16)
    settings = {"factor": 1.0, "smoothing": config.label_smoothing, "dtype": measures.dtype}
    batches = our_batches(split, config.batch_size, measures, device)

    def steps() -> Iterator[None]:
        model.train()
        sums = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        for batch, labels in batches():
            loss, correct = train_step(
                network(), sgd, scaler, batch.contiguous(memory_format=layout), labels, **settings
            )
            sums += torch.stack([loss, correct])
            yield

    return steps


def our_batches(
    split: Split, batch_size: int, measures: Measures, device: torch.device
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Augmented batches, uint8 (B, 3, H, W), with their labels, on the device, and without an end."""

    def resident() -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(0)
        while True:
            index = torch.randint(len(split), (batch_size,), generator=draw).to(device)
            yield augmented_batch(split.images, index, "flip+shift", 0, 0), split.labels[index]

    def loaded() -> Iterator[tuple[Tensor, Tensor]]:
        index = torch.arange(batch_size, device=device)
        for images, labels in loader(pictures, batch_size):
            images = images.to(device).permute(0, 3, 1, 2)
            yield augmented_batch(images, index, "flip+shift", 0, 0), labels.to(device)

    def one_by_one() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader(pictures, batch_size):
            yield images.to(device), labels.to(device)

    if measures.resident and measures.batched:
        return resident
    side = split.images.shape[-1]
    alone = [
        transforms.RandomCrop(side, padding=side // 8, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    pictures = Pictures(split, None if measures.batched else transforms.Compose(alone))
    return loaded if measures.batched else one_by_one
