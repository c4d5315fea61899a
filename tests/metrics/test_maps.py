"""Measures of maps alone: against slow loops and scipy."""

import math

import numpy as np
import pytest
import torch

from ltpa.maps import resize
from ltpa.metrics import correlation, effective_positions, entropy, rank_agreement


def maps(n=6, h=8, w=8, seed=0, steps=None):
    """Random maps; with `steps`, of so few different values that most positions are tied."""
    values = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed))
    return values if steps is None else (values * steps).round() / steps


def test_effective_positions_count_positions():
    some = torch.zeros(3, 4, 5)
    some[0, 1, 2] = 7.0
    some[1, :2, :3] = 0.5
    some[2] = 0.1
    torch.testing.assert_close(effective_positions(some), torch.tensor([1.0, 6.0, 20.0]))
    assert effective_positions(torch.zeros(1, 2, 2)).isnan().all()


def test_effective_positions_are_the_exponential_of_the_entropy():
    some = maps(5, 6, 7)
    torch.testing.assert_close(effective_positions(some), (entropy(some) * math.log(42)).exp())


@pytest.mark.parametrize("steps", [None, 3])
def test_rank_agreement_is_scipys(steps):
    from scipy.stats import pearsonr, spearmanr

    first, second = maps(8, steps=steps), maps(8, seed=5, steps=steps)
    for i, (rank, line) in enumerate(zip(rank_agreement(first, second), correlation(first, second), strict=True)):
        x, y = first[i].flatten().double().numpy(), second[i].flatten().double().numpy()
        assert rank.item() == pytest.approx(spearmanr(x, y).statistic, abs=1e-6)
        assert line.item() == pytest.approx(pearsonr(x, y).statistic, abs=1e-6)


def test_rank_agreement_knows_order_only():
    some = maps()
    torch.testing.assert_close(rank_agreement(some, some.exp() * 3), torch.ones(6))
    torch.testing.assert_close(rank_agreement(some, 1 - some), -torch.ones(6))
    assert rank_agreement(some, torch.ones(6, 8, 8)).isnan().all()


def test_rank_agreement_of_two_sizes_is_that_at_the_larger():
    fine, coarse = maps(4, 16, 16), maps(4, 8, 8, seed=2)
    expected = rank_agreement(fine, resize(coarse, (16, 16)))
    torch.testing.assert_close(rank_agreement(fine, coarse), expected)
    torch.testing.assert_close(rank_agreement(coarse, fine), expected)
    tall, wide = maps(4, 16, 8), maps(4, 8, 16)
    torch.testing.assert_close(
        rank_agreement(tall, wide), rank_agreement(resize(tall, (16, 16)), resize(wide, (16, 16)))
    )


def test_rank_agreement_needs_pairs():
    with pytest.raises(ValueError, match="the same number of maps, not 6 and 5"):
        rank_agreement(maps(6), maps(5))


def slow_bilinear(one, height, width):
    """Half-pixel centers, clamped at the border."""
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * one.shape[0] / height - 0.5, 0), one.shape[0] - 1)
            u = min(max((x + 0.5) * one.shape[1] / width - 0.5, 0), one.shape[1] - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, one.shape[0] - 1), min(x0 + 1, one.shape[1] - 1)
            top = one[y0, x0] * (1 - (u - x0)) + one[y0, x1] * (u - x0)
            bottom = one[y1, x0] * (1 - (u - x0)) + one[y1, x1] * (u - x0)
            out[y, x] = top * (1 - (v - y0)) + bottom * (v - y0)
    return out


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (4, 3)])
def test_resize_is_bilinear(size):
    some = maps(2, 4, 3)
    for one, scaled in zip(some, resize(some, size), strict=True):
        np.testing.assert_allclose(scaled.numpy(), slow_bilinear(one.double().numpy(), *size), rtol=1e-6)


@pytest.mark.parametrize("value", [1 / 3, 1e-7])
def test_resize_keeps_equal_values_equal(value):
    scaled = resize(torch.full((1, 7, 5), value), (32, 31))
    assert (scaled == torch.tensor(value)).all()


def test_resize_to_a_smaller_size_sees_every_position():
    """Plain bilinear sampling would see some and miss others."""
    each = torch.eye(64).view(64, 8, 8)
    scaled = resize(each, (2, 2))
    assert (scaled.sum((1, 2)) > 0).all()
    torch.testing.assert_close(scaled.sum(0), torch.ones(2, 2))  # each of the four is a weighted mean
    assert scaled[0].argmax() == 0
    assert scaled[7].argmax() == 1
