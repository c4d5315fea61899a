"""Intervals against scipy and against slow re-computations; verdicts."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from ltpa.metrics.statistics import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Interval,
    bootstrap_interval,
    t_interval,
    verdict,
)


@pytest.mark.parametrize("comparisons", [1, 7])
@pytest.mark.parametrize("n", [2, 5, 40])
def test_t_interval_is_scipys(n, comparisons):
    values = np.random.default_rng(n).normal(0.3, 2.0, size=n)
    found = t_interval(values, comparisons)
    low, high = stats.t.interval(1 - 0.05 / comparisons, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-12)


def test_t_intervals_hold_as_often_as_they_say():
    """Of many draws, 95 % of the intervals hold the truth; together with the correction all five do."""
    draw = np.random.default_rng(0)
    together = alone = 0
    for _ in range(1000):
        samples = draw.normal(1.0, 1.0, size=(5, 4))
        corrected = [t_interval(sample, 5) for sample in samples]
        together += all(i.low <= 1.0 <= i.high for i in corrected)
        plain = t_interval(samples[0])
        alone += plain.low <= 1.0 <= plain.high
    assert 0.93 <= alone / 1000 <= 0.97
    assert 0.93 <= together / 1000 <= 0.98


def slow_bootstrap(values, resamples, tail):
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(resamples))
    return means[round(tail * resamples)], means[round((1 - tail) * resamples) - 1]


def test_bootstrap_is_drawing_with_replacement():
    values = np.random.default_rng(1).choice([-1.0, -0.2, 0.0, 0.0, 0.4], size=150)
    found = bootstrap_interval(values)
    low, high = slow_bootstrap(list(values), 4000, 0.025)
    spread = values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert abs(found.low - low) < 0.15 * spread
    assert abs(found.high - high) < 0.15 * spread
    wider = bootstrap_interval(values, comparisons=10)
    assert wider.low < found.low - 0.3 * spread
    assert wider.high > found.high + 0.3 * spread


def test_bootstrap_of_values_that_all_differ():
    values = np.random.default_rng(2).normal(size=300)
    found = bootstrap_interval(values, resamples=4000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", vectorized=True)
    spread = values.std() / math.sqrt(len(values))
    assert abs(found.low - expected.confidence_interval.low) < 0.15 * spread
    assert abs(found.high - expected.confidence_interval.high) < 0.15 * spread


def test_one_value_allows_no_interval():
    for found in (t_interval([0.5]), bootstrap_interval([0.5])):
        assert found.mean == 0.5
        assert math.isnan(found.low)
        assert math.isnan(found.high)


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "one finite value or more"),
        (([1.0, math.nan],), "one finite value or more"),
        (([[1.0, 2.0]],), "one finite value or more"),
        (([1.0, 2.0], 0), "comparisons 1 or more"),
        (([1.0, 2.0], 1, 1.0), "confidence must be above 0 and below 1"),
    ],
)
def test_what_allows_no_interval_is_refused(interval, arguments, message):
    with pytest.raises(ValueError, match=message):
        interval(*arguments)


@pytest.mark.parametrize(
    ("ends", "margin", "expected"),
    [
        ([(0.1, 0.3), (0.2, 0.4)], 0.0, SUPPORTED),
        ([(-0.1, 0.3), (0.2, 0.4)], 0.0, UNDECIDED),
        ([(-0.3, -0.1), (-0.4, -0.2)], 0.0, NOT_SUPPORTED),
        ([(-0.3, -0.1), (-0.4, 0.2)], 0.0, UNDECIDED),
        ([(-0.3, 0.004), (-0.4, 0.002)], 0.005, NOT_SUPPORTED),
        ([(-0.3, 0.006), (-0.4, 0.002)], 0.005, UNDECIDED),
        ([(0.001, 0.004)], 0.005, SUPPORTED),
        ([(math.nan, math.nan), (0.1, 0.2)], 0.005, UNDECIDED),
        ([], 0.0, UNDECIDED),
    ],
)
def test_verdicts(ends, margin, expected):
    assert verdict([Interval((low + high) / 2, low, high) for low, high in ends], margin) == expected
