"""Intervals against scipy and against slow re-computations; verdicts."""

import math
import random

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltpa.metrics.statistics import (
    COLUMNS,
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Effect,
    Interval,
    bootstrap_interval,
    effects_frame,
    t_interval,
    verdict,
    widest,
    write_effects,
)


@pytest.mark.parametrize("comparisons", [1, 7])
@pytest.mark.parametrize("n", [3, 5, 40])
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


def test_few_values_allow_no_interval():
    """Student's t of two seeds gave "61.3 [-181.0, 303.7] %"."""
    for interval in (t_interval([0.5]), t_interval([0.4, 0.6]), bootstrap_interval([0.5])):
        assert interval.mean == 0.5
        assert not interval.known
        assert verdict(interval) == UNDECIDED
    assert t_interval([0.4, 0.5, 0.6]).known
    assert not bootstrap_interval([math.nan]).known


def test_an_interval_ends_where_the_quantity_ends():
    wide, bounded = t_interval([0.5, 0.9, 1.0]), t_interval([0.5, 0.9, 1.0], bounds=(0, 1))
    assert wide.low < 0.5 < 1 < wide.high
    assert (bounded.low, bounded.high) == (max(wide.low, 0), 1)


def test_what_has_no_value_is_left_out_of_the_bootstrap():
    assert bootstrap_interval([1.0, math.nan, 2.0, 4.0]) == bootstrap_interval([1.0, 2.0, 4.0])


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, math.inf],), "one or more finite values"),
        (([[1.0, 2.0]],), "one or more finite values"),
        (([1.0, 2.0, 4.0], 0), "comparisons must be at least 1, not 0"),
    ],
)
def test_what_allows_no_interval_is_refused(interval, arguments, message):
    with pytest.raises(ValueError, match=message):
        interval(*arguments)


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.1, 0.3, 0.0, SUPPORTED),
        (-0.1, 0.3, 0.0, UNDECIDED),
        (-0.3, -0.1, 0.0, CONTRADICTED),
        (-0.3, 0.004, 0.005, CONTRADICTED),
        (-0.3, 0.006, 0.005, UNDECIDED),
        (0.004, 0.1, 0.005, UNDECIDED),
        (0.006, 0.1, 0.005, SUPPORTED),
        (math.nan, math.nan, 0.005, UNDECIDED),
    ],
)
def test_verdicts(low, high, margin, expected):
    assert verdict(Interval((low + high) / 2, low, high), margin) == expected


def test_the_widest_interval_holds_both_kinds_of_chance():
    both = widest([Interval(1.0, 0.5, 1.5, 3), Interval(1.0, 0.8, 1.9, 200)])
    assert (both.mean, both.low, both.high, both.n) == (1.0, 0.5, 1.9, 3)
    assert not widest([Interval(1.0, n=2), Interval(1.0, 0.8, 1.9, 200)]).known


def test_text():
    assert Interval(0.6131, 0.58, 0.642, 5).text(scale=100) == "61.3 [58.0, 64.2]"
    assert Interval(-0.0001, -0.02, 0.01, 5).text(2, sign=True) == "+0.00 [-0.02, +0.01]"
    assert Interval(0.5, n=1).text(2) == "0.50"


def test_effects_are_a_table(tmp_path):
    shared = {"claim": "c", "baseline": "b", "measure": "m", "data": "d", "budget": "u", "seeds": 3}
    effects = [
        Effect(model="x", interval=Interval(0.02, 0.01, 0.03, 200), margin=0.005, **shared),
        Effect(model="y", interval=Interval(1 / 3, n=2), **shared),
        Effect(model="z", interval=Interval(0.02, 0.01, 0.03, 200), verdict=UNDECIDED, **shared),
    ]
    assert [e.verdict for e in effects] == [SUPPORTED, UNDECIDED, UNDECIDED]
    read = pd.read_csv(write_effects(effects, tmp_path / "effects.csv"))
    assert list(read.columns) == list(COLUMNS)
    assert list(read.loc[0, ["seeds", "n", "effect", "low", "high"]]) == [3, 200, 0.02, 0.01, 0.03]
    assert read.loc[1, "effect"] == pytest.approx(1 / 3, abs=1e-6)
    assert read.loc[1, ["low", "high"]].isna().all()
    assert list(effects_frame([]).columns) == list(COLUMNS)


def test_the_last_bit_of_a_number_decides_no_printed_digit():
    texts = {Interval(0.75, np.nextafter(0.625, to), 0.9, 9).text(2) for to in (0, 0.625, 1)}
    assert len(texts) == 1
