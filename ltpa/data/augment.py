"""Augmentation of whole batches, drawn for each sample from (seed, epoch, sample) alone.

So a picture is changed in the same way in every batch, process and machine, and however often the run was
interrupted.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import closest

Augmentation = Literal["auto", "flip+shift", "shift", "none"]
AUGMENTATIONS = get_args(Augmentation)
_DIGITS = ("svhn",)


def choose_augmentation(name: str, dataset: str) -> str:
    """Return what "auto" means for a data set: flips and shifts, but no flips of digits."""
    if name != "auto":
        return name
    return "shift" if dataset in _DIGITS else "flip+shift"


def augmented_batch(
    images: Tensor, index: Tensor, mode: str, seed: int, epoch: int, at: Tensor | None = None
) -> Tensor:
    """Pick samples and augment them: flipped with probability 1/2, shifted by up to an eighth of the side.

    What a shift leaves free is filled by reflection. Returns uint8 (B, 3, H, W) in channels_last memory format.

    Args:
        images: all training images, uint8 (N, 3, H, W), on any device.
        index: int64 (B,), the samples' numbers in the data set, on the same device.
        mode: "flip+shift", "shift" or "none".
        seed, epoch: with the sample's number they determine its augmentation.
        at: int64 (B,), where `images` has the samples, if that is not given by their numbers.
    """
    if mode not in AUGMENTATIONS[1:]:
        raise ValueError(f"mode={mode!r}: {closest(mode, AUGMENTATIONS[1:])}")
    at = index if at is None else at
    if mode == "none":
        return images[at].contiguous(memory_format=torch.channels_last)
    height, width = images.shape[-2:]
    bits = random_bits(index, seed, epoch)
    rows = _shifted(bits, height)
    columns = _shifted(bits >> 20, width)
    if mode == "flip+shift":
        columns = torch.where((bits >> 40 & 1).bool()[:, None], columns.flip(1), columns)
    # Advanced indices around a slice put the channels last: (B, H, W, 3), which is what convolutions want.
    batch = images[at[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return batch.permute(0, 3, 1, 2)


def random_bits(index: Tensor, seed: int, epoch: int) -> Tensor:
    """Return 63 random bits a sample, as int64, from (seed, epoch, sample): the SplitMix64 finalizer, chained."""
    bits = torch.zeros_like(index)
    for value in (seed, epoch, index):
        bits = bits + value + -7046029254386353131  # 0x9E3779B97F4A7C15; int64 arithmetic wraps
        for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
            bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * factor
        bits = bits ^ (bits >> 31 & (1 << 33) - 1)
    return bits & (1 << 63) - 1


def _shifted(bits: Tensor, side: int) -> Tensor:
    """Return the source positions (B, side) of a shift by -side/8 ... side/8, reflected at both ends."""
    most = side // 8
    shift = (bits & (1 << 20) - 1) % (2 * most + 1) - most
    position = torch.arange(side, device=bits.device) + shift[:, None]
    return (side - 1) - ((side - 1) - position.abs()).abs()
