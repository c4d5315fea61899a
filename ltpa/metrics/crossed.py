"""Means and differences for new seeds and new images: crossed variance components, and Holm's correction.

Every seed of a model answers the same images, so a table of answers (S, N) has two kinds of chance: which seeds were
trained, and which images were tested. The two models' seeds are independent, their images are the same.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .statistics import CONFIDENCE, LEAST_SEEDS, Interval, bootstrap_interval, student_t, tail_of

SIMILAR = 0.05  # p-value of Brown and Forsythe's test from which on the spreads of models are taken as equal
_DRAWS_IN_TAIL = 50  # of the bootstrap over images
Part = tuple[float, int]  # of a variance, and its degrees of freedom


@dataclass(frozen=True)
class Difference:
    """A difference with its standard error and Satterthwaite's degrees of freedom; NaN where nothing can be said."""

    mean: float
    error: float = math.nan
    freedom: float = math.nan
    images: int = 0

    def interval(self, comparisons: int = 1) -> Interval:
        """Return the 95 % interval within [-1, 1]; `comparisons` of them hold together (Bonferroni correction)."""
        tail = tail_of(comparisons)
        if math.isnan(self.error):
            return Interval(self.mean, n=self.images)
        reach = float(student_t().ppf(1 - tail, self.freedom)) * self.error
        return Interval(self.mean, max(self.mean - reach, -1.0), min(self.mean + reach, 1.0), self.images)

    def p_value(self, value: float = 0.0) -> float:
        """Return the two-sided p-value of the hypothesis that the difference is `value`; 1 if nothing can be said."""
        if math.isnan(self.error):
            return 1.0
        return float(2 * student_t().sf(abs(self.mean - value) / self.error, self.freedom))


def crossed_difference(scores: ArrayLike, baseline: ArrayLike, pool: Iterable[ArrayLike] = ()) -> Difference:
    """Estimate the difference of two models' mean scores, and its error for new seeds and new images.

    The variance of the difference is V_a / S_a + V_b / S_b + W / N - E_a / (S_a N) - E_b / (S_b N), where V is the
    variance of the seeds' means, W that of the images' mean differences, and E the residual mean square of a table,
    which V and W both contain. It is not taken as smaller than the part of the seeds or that of the images.

    Args:
        scores, baseline: (S_a, N) and (S_b, N), for each seed and image a number such as 1 for a right answer. With
            fewer than three seeds, or if the seeds' means are all equal, there is no standard error.
        pool: tables of further models. If the seeds' means of all models, these two included, spread alike (Brown and
            Forsythe's test), V is their pooled variance; otherwise each model has its own.
    """
    tables = [np.asarray(table, dtype=np.float64) for table in (scores, baseline)]
    for table in tables:
        if table.ndim != 2 or table.shape[1] != tables[0].shape[1] or not table.size or not np.isfinite(table).all():
            shapes = " and ".join(str(t.shape) for t in tables)
            raise ValueError(
                f"a difference needs two tables (seeds, images) of finite scores of the same images: {shapes}"
            )
    (seeds, images), other_seeds = tables[0].shape, len(tables[1])
    difference = float(tables[0].mean() - tables[1].mean())
    if min(seeds, other_seeds) < LEAST_SEEDS or images < 2:
        return Difference(difference, images=images)
    means = [table.mean(1) for table in tables]
    of_seeds = _seed_parts(means, [np.asarray(table, dtype=np.float64).mean(1) for table in pool])
    if _variance(of_seeds) == 0:
        return Difference(difference, images=images)
    of_images = [(float(np.var(tables[0].mean(0) - tables[1].mean(0), ddof=1)) / images, images - 1)]
    in_both = [(-_residual(table) / table.size, (len(table) - 1) * (images - 1)) for table in tables]
    parts = max([*of_seeds, *of_images, *in_both], of_seeds, of_images, key=_variance)
    freedom = _variance(parts) ** 2 / sum(part**2 / degrees for part, degrees in parts)
    return Difference(difference, math.sqrt(_variance(parts)), freedom, images)


def holm(differences: Sequence[Difference], value: float = 0.0) -> list[Interval]:
    """Return the interval of each difference at the level at which Holm's method (1979) tests it against `value`.

    An interval excludes the value exactly where the method rejects it, so that all these verdicts together are right
    with 95 %. (That all intervals hold together is not claimed.)
    """
    order = sorted(range(len(differences)), key=lambda k: differences[k].p_value(value))
    intervals, left = dict[int, Interval](), len(differences)
    going_on = True
    for k in order:
        intervals[k] = differences[k].interval(left)
        going_on = going_on and differences[k].p_value(value) < (1 - CONFIDENCE) / left
        left -= going_on
    return [intervals[k] for k in range(len(differences))]


def two_level_interval(
    values: ArrayLike, minus: ArrayLike | None = None, comparisons: int = 1, resamples: int = 10_000
) -> Interval:
    """Return the interval of a mean over seeds and images, for new seeds and for new images; n counts images.

    The variance of the mean has a part from the seeds, one from the images, and one from both together, estimated from
    the table (crossed random effects). The half-width is the root of the sum of two squares, one from the seeds and
    one from the images, each with its own quantile of Student's t. Simulations show that the interval misses the truth
    no more often than it may, even far out in the tail. With fewer than three seeds, the interval is a bootstrap over
    the images, for these networks alone.

    Args:
        values: (seeds, images), such as the difference of two measures in each image of each trained network. An image
            that has a NaN anywhere is left out.
        minus: values of another model for the same images, (its seeds, images), whose mean is subtracted.
        comparisons: how many intervals hold together with 95 % (Bonferroni correction).
        resamples: of the bootstrap; more are drawn if `comparisons` needs them, so that 50 lie in the tail.
    """
    tables = [np.asarray(table, dtype=np.float64) for table in (values, minus) if table is not None]
    if any(table.ndim != 2 or table.shape[1:] != tables[0].shape[1:] for table in tables):
        shapes = " and ".join(str(table.shape) for table in tables)
        raise ValueError(f"values must be tables (seeds, images) of the same images, not {shapes}")
    tail = tail_of(comparisons)
    known = ~np.any([np.isnan(table).any(0) for table in tables], axis=0)
    tables = [table[:, known] for table in tables]
    by_image = tables[0].mean(0) - (tables[1].mean(0) if minus is not None else 0)
    images = len(by_image)
    if images < 2:
        return Interval(float(by_image.mean()) if images else math.nan, n=images)
    if min(map(len, tables)) < LEAST_SEEDS:
        draws = max(resamples, round(_DRAWS_IN_TAIL / tail))
        return bootstrap_interval(by_image, comparisons, draws)
    return _crossed(by_image, tables, tail)


def _crossed(by_image: NDArray[np.float64], tables: list[NDArray[np.float64]], tail: float) -> Interval:
    """Add the squared reaches of images and seeds, and take away what both estimates hold."""
    t = student_t()

    def squared_reach(variance: float, freedom: int) -> float:
        return float(t.ppf(1 - tail, freedom)) ** 2 * variance

    images, shared = len(by_image), 0.0
    parts = [squared_reach(by_image.var(ddof=1) / images, images - 1)]
    for table in tables:
        seeds = len(table)
        parts.append(squared_reach(table.mean(1).var(ddof=1) / seeds, seeds - 1))
        shared += squared_reach(_residual(table) / table.size, (seeds - 1) * (images - 1))
    mean, reach = float(by_image.mean()), math.sqrt(max(sum(parts) - shared, *parts))
    return Interval(mean, mean - reach, mean + reach, images)


def _variance(parts: Sequence[Part]) -> float:
    return sum(part for part, _ in parts)


def _seed_parts(means: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> list[Part]:
    """Return the parts of the variance that come from seeds."""
    groups = [*means, *(other for other in others if len(other) > 1)]
    if _spread_alike(groups):
        freedom = sum(len(group) - 1 for group in groups)
        pooled = float(sum(((group - group.mean()) ** 2).sum() for group in groups)) / freedom
        return [(pooled * sum(1 / len(group) for group in means), freedom)]
    return [(float(np.var(group, ddof=1)) / len(group), len(group) - 1) for group in means]


def _spread_alike(groups: Sequence[np.ndarray]) -> bool:
    from scipy.stats import levene

    if all(np.ptp(np.abs(group - np.median(group))) == 0 for group in groups):  # the test would divide by zero
        return False
    return bool(levene(*groups, center="median").pvalue >= SIMILAR)


def _residual(table: np.ndarray) -> float:
    """Return the mean square of what neither the seed nor the image explains."""
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return float((rest**2).sum()) / ((table.shape[0] - 1) * (table.shape[1] - 1))
