"""The interval over seeds and images: how often it misses, against formulas, and what it does with few seeds."""

import math

import numpy as np
import pytest
from scipy.stats import t

from ltpa.metrics import bootstrap_interval, two_level_interval


def tables(count, seeds, images, over_seeds, over_images, rest):
    """Values with mean 0: (count, seeds, images), with chance of three kinds; that of the images is skewed."""
    draw = np.random.default_rng(0)
    easy = over_images * (draw.gamma(1, size=(count, 1, images)) - 1)
    lucky = over_seeds * draw.normal(size=(count, seeds, 1))
    return lucky + easy + rest * draw.normal(size=(count, seeds, images))


@pytest.mark.parametrize("spread", [(0.05, 0.3, 0.3), (0.1, 0.1, 0.1), (0.0, 0.3, 0.3), (0.05, 0.0, 0.4)])
def test_it_misses_the_truth_no_more_often_than_it_may(spread):
    """800 tables: a miss rate of 5 % is at most 6.8 % here, and one of 0.5 % at most 1.4 %, by chance of 1 in 100."""
    misses = {1: 0, 10: 0}
    for values in tables(800, 5, 120, *spread):
        for comparisons in misses:
            interval = two_level_interval(values, comparisons=comparisons)
            misses[comparisons] += not interval.low <= 0 <= interval.high
    assert misses[1] <= 54
    assert misses[10] <= 11


def test_two_models_have_seeds_of_their_own_and_share_the_images():
    shared = tables(1, 1, 100, 0, 0.5, 0)[0]
    first, second = shared + tables(2, 5, 100, 0.02, 0, 0.05)
    interval = two_level_interval(first, second[:4])
    assert interval.mean == pytest.approx(first.mean() - second[:4].mean())
    assert interval.high - interval.low < 0.2, "what makes an image easy for both is no chance of the difference"
    wide = two_level_interval(first)
    assert wide.high - wide.low > 0.15


def test_where_all_images_are_alike_it_is_students_interval_of_the_seeds():
    seeds = np.random.default_rng(1).normal(size=5)
    interval = two_level_interval(np.repeat(seeds[:, None], 50, axis=1), comparisons=4)
    reach = t.ppf(1 - 0.025 / 4, 4) * seeds.std(ddof=1) / math.sqrt(5)
    assert (interval.low, interval.high) == pytest.approx((seeds.mean() - reach, seeds.mean() + reach))
    assert interval.n == 50


def test_fewer_than_three_seeds_give_the_interval_of_these_networks_with_enough_draws_in_the_tail():
    values = tables(1, 2, 60, 0.1, 0.3, 0.1)[0]
    assert two_level_interval(values) == bootstrap_interval(values.mean(0))
    expected = bootstrap_interval(values.mean(0), comparisons=50, resamples=100_000)
    assert two_level_interval(values, comparisons=50) == expected


def test_images_with_a_nan_are_left_out():
    values = tables(1, 5, 30, 0.1, 0.1, 0.1)[0]
    holes = values.copy()
    holes[2, 7] = math.nan
    assert two_level_interval(holes) == two_level_interval(np.delete(values, 7, axis=1))
    assert two_level_interval(holes[:, 7:8]).n == 0


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match=r"tables \(seeds, images\) of the same images, not \(3,\)"):
        two_level_interval(np.zeros(3))
    with pytest.raises(ValueError, match="same images"):
        two_level_interval(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="comparisons"):
        two_level_interval(np.zeros((3, 4)), comparisons=0)
