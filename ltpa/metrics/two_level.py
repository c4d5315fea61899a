"""One interval for two kinds of chance: which seeds the networks were trained with, and which images they see."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .statistics import LEAST_SEEDS, Interval, bootstrap_interval, student_t, tail_of

_DRAWS_IN_TAIL = 50  # of the bootstrap over images


def two_level_interval(
    values: ArrayLike,
    minus: ArrayLike | None = None,
    comparisons: int = 1,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Return the interval of a mean over seeds and images, for new seeds and for new images; n counts images.

    The variance of the mean has a part of the seeds, one of the images, and one of both together, estimated from the
    table (crossed random effects). Seeds and images each have their own quantile of Student's t, and the squares of
    their reaches are added: this never misses more often than it may, also far out in the tail (tested). With fewer
    than three seeds there is no such interval: then it is that of these networks alone, a bootstrap over the images.

    Args:
        values: (seeds, images), such as the difference of two measures in each image of each trained network. An image
            that has a NaN anywhere is left out.
        minus: values of another model for the same images, (its seeds, images), whose mean is subtracted.
        comparisons: how many intervals hold together with `confidence` (Bonferroni correction).
        resamples: of the bootstrap; more where `comparisons` ask for a far tail, 50 in it.
    """
    tables = [np.asarray(table, dtype=np.float64) for table in (values, minus) if table is not None]
    if any(table.ndim != 2 or table.shape[1:] != tables[0].shape[1:] for table in tables):
        shapes = " and ".join(str(table.shape) for table in tables)
        raise ValueError(f"values must be tables (seeds, images) of the same images, not {shapes}")
    tail = tail_of(comparisons, confidence)
    known = ~np.any([np.isnan(table).any(0) for table in tables], axis=0)
    tables = [table[:, known] for table in tables]
    by_image = tables[0].mean(0) - (tables[1].mean(0) if minus is not None else 0)
    images = len(by_image)
    if images < 2:
        return Interval(float(by_image.mean()) if images else math.nan, n=images)
    if min(map(len, tables)) < LEAST_SEEDS:
        draws = max(resamples, round(_DRAWS_IN_TAIL / tail))
        return bootstrap_interval(by_image, comparisons, confidence, resamples=draws)
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
        rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        freedom = (seeds - 1) * (images - 1)
        shared += squared_reach(float((rest**2).sum()) / freedom / seeds / images, freedom)
    mean, reach = float(by_image.mean()), math.sqrt(max(sum(parts) - shared, *parts))
    return Interval(mean, mean - reach, mean + reach, images)
