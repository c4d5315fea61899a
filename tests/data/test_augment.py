"""Augmentation against a slow reference, picture by picture, and the statistics of what it draws."""

import math

import numpy as np
import pytest
import torch

from ltpa.data.augment import AUGMENTATIONS, augmented_batch, choose_augmentation, random_bits

MANY = 20_000
MASK = 2**64 - 1


def some_images(count=12, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def bits_of_one(seed, epoch, sample):
    """The definition, in Python's unbounded integers."""
    state = 0
    for value in (seed, epoch, sample):
        state = (state + value + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state & (2**63 - 1)


def drawn(seed, epoch, sample, height, width, part):
    """(shift of rows, shift of columns, flip) of a sample; the flip of the first epoch alternates."""
    bits, first = bits_of_one(seed, epoch, sample), bits_of_one(seed, 0, sample)
    low, middle, flip = bits % 2**20, (bits >> 20) % 2**20, (first >> 40) % 2 == 1
    down, across = height // part, width // part
    return low % (2 * down + 1) - down, middle % (2 * across + 1) - across, flip != (epoch % 2 == 1)


def slowly(images, index, mode, seed, epoch):
    height, width = images.shape[2:]
    part = 8 if "cutout" in mode else 16
    down, across = height // part, width // part
    result = []
    for sample in index.tolist():
        picture = images[sample].numpy()
        rows, columns, flip = drawn(seed, epoch, sample, height, width, part)
        padded = np.pad(picture, ((0, 0), (down, down), (across, across)), mode="reflect")
        picture = padded[:, down + rows :, across + columns :][:, :height, :width]
        picture = picture[:, :, ::-1].copy() if flip and mode != "shift" else picture.copy()
        if "cutout" in mode:
            bits = bits_of_one(~seed, epoch, sample)
            top, left = bits % 2**20 % height - height // 8, (bits >> 20) % 2**20 % width - width // 8
            square = np.s_[:, max(0, top) : max(0, top + height // 4), max(0, left) : max(0, left + width // 4)]
            picture[square] = np.floor(picture.mean((1, 2), dtype=np.float32, keepdims=True)).astype(np.uint8)
        result.append(picture)
    return torch.from_numpy(np.stack(result))


def test_bits_are_those_of_the_definition():
    index = torch.tensor([0, 1, 2, 49_999, 2**31 - 1, 2**40])
    for seed in (0, 1, 2**31 - 1):
        for epoch in (0, 1, 299):
            expected = [bits_of_one(seed, epoch, sample) for sample in index.tolist()]
            assert random_bits(index, seed, epoch).tolist() == expected


def test_finalizer_is_splitmix64():
    """From zero, the first value of the published generator; 63 bits of it, chained over three values here."""
    state = 0x9E3779B97F4A7C15
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    assert state ^ (state >> 31) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("mode", ["flip+shift", "shift", "flip+shift+cutout"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (33, 47), (16, 8), (7, 5), (1, 1)])
def test_against_a_slow_reference(mode, height, width):
    images = some_images(40, height, width)
    index = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for seed, epoch in ((0, 0), (3, 7)):
        batch = augmented_batch(images, index, mode, seed, epoch)
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, slowly(images, index, mode, seed, epoch))


def test_whole_range_of_shifts_is_drawn():
    """On a ramp the shift can be read off; every one of the 25 and both directions occur about equally often."""
    ramp = torch.arange(32, dtype=torch.uint8)
    image = torch.stack([ramp[:, None].expand(32, 32), ramp.expand(32, 32), torch.zeros(32, 32, dtype=torch.uint8)])
    batch = augmented_batch(image.expand(MANY, 3, 32, 32), torch.arange(MANY), "flip+shift", 0, 0)
    middle = batch[:, :, 15, 15].long()
    rows = middle[:, 0] - 15
    flipped = batch[:, 1, 15, 15] > batch[:, 1, 15, 16]
    columns = torch.where(flipped, middle[:, 1] - 16, middle[:, 1] - 15)
    for shifts in (rows, columns):
        assert shifts.min() == -2
        assert shifts.max() == 2
    table = torch.zeros(5, 5, 2)
    table.index_put_((rows + 2, columns + 2, flipped.long()), torch.ones(MANY), accumulate=True)
    expected = MANY / table.numel()
    chi_square = ((table - expected) ** 2 / expected).sum().item()
    freedom = table.numel() - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_shift_never_flips():
    ramp = torch.arange(32, dtype=torch.uint8).expand(500, 3, 32, 32)
    batch = augmented_batch(ramp, torch.arange(500), "shift", 0, 0)
    assert (batch[..., 16] > batch[..., 15]).all()
    flips = augmented_batch(ramp, torch.arange(500), "flip+shift", 0, 0)
    assert 0.4 < (flips[:, 0, 0, 16] < flips[:, 0, 0, 15]).double().mean() < 0.6


def test_every_picture_is_flipped_in_every_second_epoch():
    ramp = torch.arange(32, dtype=torch.uint8).expand(50, 3, 32, 32)
    flipped = torch.stack(
        [batch[:, 0, 0, 16] < batch[:, 0, 0, 15] for batch in
         (augmented_batch(ramp, torch.arange(50), "flip+shift", 1, epoch) for epoch in range(4))]
    )  # fmt: skip
    assert torch.equal(flipped[0], flipped[2])
    assert torch.equal(flipped[1], flipped[3])
    assert torch.equal(flipped[0], ~flipped[1])


def test_none_is_the_identity():
    images = some_images()
    index = torch.tensor([3, 3, 0, 11])
    assert torch.equal(augmented_batch(images, index, "none", 5, 6), images[index])


@pytest.mark.parametrize("mode", AUGMENTATIONS[1:])
def test_memory_format_and_input(mode):
    images = some_images()
    before = images.clone()
    batch = augmented_batch(images, torch.arange(8), mode, 0, 0)
    assert batch.shape == (8, 3, 32, 32)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    batch.zero_()
    assert torch.equal(images, before)
    assert augmented_batch(images, torch.arange(0), mode, 0, 0).shape == (0, 3, 32, 32)


def test_a_sample_is_changed_alike_in_every_batch():
    images = some_images(50)
    whole = augmented_batch(images, torch.arange(50), "flip+shift", 2, 3)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmented_batch(images, order, "flip+shift", 2, 3), whole[order])
    parts = [augmented_batch(images, part, "flip+shift", 2, 3) for part in torch.arange(50).split(7)]
    assert torch.equal(torch.cat(parts), whole)
    twice = augmented_batch(images, torch.tensor([9, 9]), "flip+shift", 2, 3)
    assert torch.equal(twice[0], twice[1])
    torch.manual_seed(123)  # nor does the global generator matter
    assert torch.equal(augmented_batch(images, torch.arange(50), "flip+shift", 2, 3), whole)


def test_seeds_epochs_and_samples_give_unrelated_bits():
    index = torch.arange(2000)
    draws = {(seed, epoch): random_bits(index, seed, epoch) for seed in range(6) for epoch in range(6)}
    together = torch.cat(list(draws.values()))
    assert len(together.unique()) == len(together)  # above all, seed 1 in epoch 0 is not seed 0 in epoch 1
    assert together.min() >= 0
    # Neither a bit nor the agreement of two bits has a preference: 5 sigma of that many fair coins.
    bits = (together[:, None] >> torch.arange(63) & 1).double() * 2 - 1
    limit = 5 / math.sqrt(len(bits))
    assert bits.mean(0).abs().max() < limit
    related = bits.T @ bits / len(bits) - torch.eye(63)
    assert related.abs().max() < limit
    # The same bits of neighbors: samples, epochs, seeds.
    bits = bits.view(6, 6, 2000, 63)
    for one, other in ((bits[:, :, 1:], bits[:, :, :-1]), (bits[:, 1:], bits[:, :-1]), (bits[1:], bits[:-1])):
        assert (one * other).flatten(0, 2).mean(0).abs().max() < 5 / math.sqrt(one[..., 0].numel())


def test_choice():
    assert AUGMENTATIONS == ("auto", "flip+shift", "flip+shift+cutout", "shift", "crop+flip", "none")
    for dataset in ("cifar10", "cifar100", "shapes", "folder"):
        assert choose_augmentation("auto", dataset) == "flip+shift"
        assert choose_augmentation("auto", dataset, crops=True) == "crop+flip"
    assert choose_augmentation("auto", "svhn") == choose_augmentation("auto", "svhn", crops=True) == "shift"
    for name in AUGMENTATIONS[1:]:
        assert choose_augmentation(name, "svhn") == choose_augmentation(name, "cifar10") == name


@pytest.mark.parametrize("mode", ["auto", "flip", "", None])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=r"mode=.*known: flip\+shift, flip\+shift\+cutout, shift, crop\+flip, none"):
        augmented_batch(some_images(), torch.arange(2), mode, 0, 0)
