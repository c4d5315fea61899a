"""Augmentation of whole batches, drawn for each sample from (seed, epoch, sample) alone.

An image is therefore changed in the same way in every batch, process and machine, even after an interruption.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import closest

Augmentation = Literal["auto", "flip+shift", "flip+shift+cutout", "shift", "crop+flip", "none"]
AUGMENTATIONS = get_args(Augmentation)


CROPPED = (0.35, 1.0)  # part of the area that a crop shows


def choose_augmentation(name: str, dataset: str, crops: bool = False) -> str:
    """Resolve "auto" for a data set: flips, and shifts or `crops`, but neither flips nor crops of digits."""
    if name != "auto":
        return name
    return "shift" if dataset == "svhn" else "crop+flip" if crops else "flip+shift"


def augmented_batch(
    images: Tensor, index: Tensor, mode: str, seed: int, epoch: int, at: Tensor | None = None
) -> Tensor:
    """Pick samples; flip each in every second epoch, and shift it by up to a sixteenth of the side, with reflection.

    Half of the samples, drawn by the seed, are flipped in even epochs and the others in odd ones, so that a network
    sees both sides of each picture equally often (Jordan 2024, alternating flip).

    "flip+shift+cutout", for long trainings, shifts by up to an eighth of the side and covers a square of a quarter of
    the side, somewhere, with the picture's mean color (DeVries and Taylor 2017).

    "crop+flip" scales a random part of the image to its whole size instead of shifting it.

    Args:
        images: uint8 (N, 3, H, W), on any device.
        index: int64 (B,), the samples' numbers in the data set, on the same device.
        mode: "flip+shift", "flip+shift+cutout", "shift", "crop+flip" or "none".
        seed, epoch: together with the sample's number they determine its augmentation.
        at: int64 (B,), the samples' positions in `images`; None means `index`.

    Returns:
        uint8 (B, 3, H, W) in channels_last memory format.
    """
    if mode not in AUGMENTATIONS[1:]:
        raise ValueError(f"mode={mode!r}: {closest(mode, AUGMENTATIONS[1:])}")
    at = index if at is None else at
    if mode == "none":
        return images[at].contiguous(memory_format=torch.channels_last)
    height, width = images.shape[-2:]
    bits = random_bits(index, seed, epoch)
    if mode == "crop+flip":
        return _cropped(images, at, bits)
    cutout = mode == "flip+shift+cutout"
    rows = _shifted(bits, height, 8 if cutout else 16)
    columns = _shifted(bits >> 20, width, 8 if cutout else 16)
    if mode != "shift":
        flipped = (random_bits(index, seed, 0) >> 40 & 1) != epoch % 2
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    # Advanced indices around a slice put the channels last: (B, H, W, 3), which is what convolutions want.
    batch = images[at[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    if cutout:
        bits = random_bits(index, ~seed, epoch)
        covered = _near(bits, height)[:, :, None] & _near(bits >> 20, width)[:, None, :]
        mean = batch.float().mean((1, 2), keepdim=True).to(batch.dtype)
        batch = torch.where(covered.unsqueeze(3), mean, batch)
    return batch.permute(0, 3, 1, 2)


def _cropped(images: Tensor, at: Tensor, bits: Tensor) -> Tensor:
    """Crop and flip one image after the other, each with a generator of its own."""
    from torchvision.transforms import v2  # here, because it takes seconds to import

    transform = v2.Compose([v2.RandomResizedCrop(images.shape[-2:], scale=CROPPED), v2.RandomHorizontalFlip()])
    cropped = []
    with torch.random.fork_rng(devices=[]):
        for position, seed in zip(at.tolist(), bits.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)  # torchvision draws from this one only
            cropped.append(transform(images[position]))
    batch = torch.stack(cropped) if cropped else images[at]
    return batch.contiguous(memory_format=torch.channels_last)


def random_bits(index: Tensor, seed: int, epoch: int) -> Tensor:
    """Hash (seed, epoch, sample) to 63 random bits per sample, as int64: the SplitMix64 finalizer, chained."""
    bits = torch.zeros_like(index)
    for value in (seed, epoch, index):
        bits = bits + value + -7046029254386353131  # 0x9E3779B97F4A7C15; int64 arithmetic wraps
        for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
            bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * factor
        bits = bits ^ (bits >> 31 & (1 << 33) - 1)
    return bits & (1 << 63) - 1


def _near(bits: Tensor, side: int) -> Tensor:
    """Return which positions (B, side) lie in a window of a quarter of the side, bool; it may stick out at an end."""
    center = (bits & (1 << 20) - 1) % side
    start = center[:, None] - side // 8
    position = torch.arange(side, device=bits.device)
    return (position >= start) & (position < start + side // 4)


def _shifted(bits: Tensor, side: int, part: int) -> Tensor:
    """Return the source positions (B, side) of a shift by at most side / part, reflected at both ends."""
    most = side // part
    shift = (bits & (1 << 20) - 1) % (2 * most + 1) - most
    position = torch.arange(side, device=bits.device) + shift[:, None]
    return (side - 1) - ((side - 1) - position.abs()).abs()
