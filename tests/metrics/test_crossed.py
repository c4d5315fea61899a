"""Differences against a slow analysis of variance, their coverage by simulation, and Holm's rule."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from ltpa.metrics.crossed import Difference, crossed_difference, holm
from ltpa.metrics.statistics import UNDECIDED, verdict


def answers(draw, seeds, images, seed_spread, easy, effect=0.0):
    """A table of right (1) and wrong answers: a chance by image (the same for all models), moved by each seed."""
    logits = easy + effect + seed_spread * draw.normal(size=(seeds, 1))
    return (draw.random((seeds, images)) < 1 / (1 + np.exp(-logits))).astype(float)


def slow_analysis(a, b, pooled):
    """Difference, squared standard error and degrees of freedom, with sums written out."""

    def mean(values):
        values = list(values)
        return math.fsum(values) / len(values)

    def parts(table):
        seeds, images = len(table), len(table[0])
        rows = [mean(row) for row in table]
        columns = [mean(row[j] for row in table) for j in range(images)]
        grand = mean(rows)
        spread = math.fsum((row - grand) ** 2 for row in rows) / (seeds - 1)
        rest = [(table[i][j] - rows[i] - columns[j] + grand) ** 2 for i, j in product(range(seeds), range(images))]
        return grand, columns, spread, math.fsum(rest) / ((seeds - 1) * (images - 1))

    (mean_a, of_a, spread_a, rest_a), (mean_b, of_b, spread_b, rest_b) = parts(a), parts(b)
    n, s, t = len(a[0]), len(a), len(b)
    differences = [x - y for x, y in zip(of_a, of_b, strict=True)]
    middle = mean(differences)
    images = math.fsum((d - middle) ** 2 for d in differences) / (n - 1)
    if pooled:
        freedom = s + t - 2
        spread = ((s - 1) * spread_a + (t - 1) * spread_b) / freedom
        seeds = [(spread / s + spread / t, freedom)]
    else:
        seeds = [(spread_a / s, s - 1), (spread_b / t, t - 1)]
    terms = [*seeds, (images / n, n - 1)]
    terms += [(-rest_a / (s * n), (s - 1) * (n - 1)), (-rest_b / (t * n), (t - 1) * (n - 1))]
    variance = math.fsum(term for term, _ in terms)
    return mean_a - mean_b, variance, variance**2 / math.fsum(term**2 / df for term, df in terms)


@pytest.mark.parametrize(("spreads", "pooled"), [((0.8, 0.8), True), ((0.1, 6.0), False)])
def test_a_difference_is_a_slow_analysis_of_variance(spreads, pooled):
    draw = np.random.default_rng(5)
    easy = draw.normal(1, 2, size=60)
    harder = easy + 2 * draw.normal(size=60)  # other images are hard for the other model
    a, b = answers(draw, 7, 60, spreads[0], easy, 0.5), answers(draw, 8, 60, spreads[1], harder)
    found = crossed_difference(a, b)
    difference, variance, freedom = slow_analysis(a.tolist(), b.tolist(), pooled)
    assert found.mean == pytest.approx(difference, abs=1e-12)
    assert (found.error**2, found.freedom) == pytest.approx((variance, freedom), rel=1e-9)
    interval = found.interval(3)
    reach = stats.t.ppf(1 - 0.025 / 3, freedom) * math.sqrt(variance)
    assert (interval.mean, interval.low, interval.high) == pytest.approx(
        (difference, difference - reach, difference + reach)
    )
    assert interval.n == 60
    assert found.p_value(difference) == pytest.approx(1)
    statistic = (difference - 0.01) / math.sqrt(variance)
    assert found.p_value(0.01) == pytest.approx(2 * stats.t.cdf(-abs(statistic), freedom), rel=1e-9)


@pytest.mark.parametrize(("spreads", "easy_spread"), [((0.3, 0.3), 2.0), ((0.1, 0.6), 1.0), ((0.02, 0.02), 2.0)])
def test_intervals_hold_for_new_seeds_and_new_images(spreads, easy_spread):
    """Images and seeds are drawn anew; the truth is the difference over all of them. Ignoring either is too sure."""
    draw = np.random.default_rng(0)
    everything = draw.normal(1, easy_spread, size=200_000)
    shifts = draw.normal(size=200_000)
    truth = np.mean([(1 / (1 + np.exp(-everything - e - s * shifts))).mean() * sign
                     for sign, e, s in ((1, 0.3, spreads[0]), (-1, 0.0, spreads[1]))]) * 2  # fmt: skip
    held = seeds_alone = 0
    for _ in range(250):
        easy = draw.normal(1, easy_spread, size=300)
        a, b = answers(draw, 8, 300, spreads[0], easy, 0.3), answers(draw, 8, 300, spreads[1], easy)
        interval = crossed_difference(a, b).interval()
        held += interval.low <= truth <= interval.high
        plain = stats.ttest_ind(a.mean(1), b.mean(1), equal_var=False).confidence_interval()
        seeds_alone += plain.low <= truth <= plain.high
    assert 0.92 <= held / 250 <= 0.99
    if spreads == (0.1, 0.6):
        assert seeds_alone <= held + 5


def test_the_pool_gives_degrees_of_freedom_only_if_its_models_spread_alike():
    draw = np.random.default_rng(2)
    easy = draw.normal(1, 2, size=2000)
    a, b, c, d = (answers(draw, 3, 2000, 0.2, easy) for _ in range(4))
    alone, pooled = crossed_difference(a, b), crossed_difference(a, b, [c, d])
    assert pooled.freedom > alone.freedom
    wild = answers(draw, 8, 2000, 5.0, easy)
    apart = crossed_difference(a, b, [wild])
    assert apart.freedom < pooled.freedom
    assert apart.error < 1.5 * alone.error, "the wild model's spread does not enter"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.eye(2), np.ones((2, 2))),  # two seeds
        (np.ones((3, 4)), np.zeros((5, 4))),  # no spread at all
        (np.tile([1.0, 0.0, 1.0], (4, 1)), np.tile([0.0, 0.0, 1.0], (4, 1))),  # none between seeds
        (np.ones((3, 1)), np.zeros((3, 1))),  # one image
    ],
)
def test_where_chance_cannot_be_seen_nothing_is_decided(a, b):
    found = crossed_difference(a, b)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert not found.interval().known
    assert found.p_value() == 1
    assert verdict(found.interval()) == UNDECIDED


def test_the_variance_is_not_smaller_than_a_part_of_it():
    """Seeds that differ less than their answers would by chance make the whole smaller than the part of the images."""
    a, b = (np.array([np.roll([1.0] * k + [0.0] * (12 - k), s) for s in range(4)]) for k in (9, 5))
    a[0, 11] = b[1, 11] = 1
    found = crossed_difference(a, b)
    images = np.var(a.mean(0) - b.mean(0), ddof=1) / 12
    assert found.error**2 >= images - 1e-15


def test_holm_tests_the_clearest_first_and_stops_at_the_first_that_fails():
    error = 0.01
    differences = [Difference(z * error, error, 1e6, 100) for z in (2.0, 2.6, -2.1, 9.0)]
    intervals = holm(differences)
    for interval, level in zip(intervals, (2, 3, 2, 4), strict=True):
        reach = stats.norm.ppf(1 - 0.025 / level) * error
        assert (interval.low, interval.high) == pytest.approx((interval.mean - reach, interval.mean + reach), rel=1e-4)
    # 9.0 at 0.05 / 4, 2.6 at 0.05 / 3, -2.1 fails at 0.05 / 2, and so 2.0 does not get the level 0.05.
    assert [i.low > 0 or i.high < 0 for i in intervals] == [False, True, False, True]
    assert [i.low > 0.05 for i in holm(differences, 0.05)] == [False, False, False, True]
    assert holm([]) == []


def test_verdicts_by_holm_are_all_right_as_often_as_they_say():
    draw = np.random.default_rng(3)
    wrong = 0
    for _ in range(800):
        differences = [Difference(x, 1.0, 1e6, 9) for x in draw.normal(size=3) + np.array([0, 0, 3])]
        wrong += any(i.low > 0 or i.high < 0 for i in holm(differences)[:2])
    assert wrong / 800 <= 0.065


def test_tables_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        crossed_difference(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="finite"):
        crossed_difference(np.full((3, 4), np.nan), np.zeros((3, 4)))
