"""What a handful of seeds and a test set allow one to say: intervals, corrected for their number, and verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "not decidable at this budget"


@dataclass(frozen=True)
class Interval:
    """A mean of n values with its confidence interval; the ends are NaN where the values allow none."""

    mean: float
    low: float
    high: float
    n: int = 0

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def t_interval(values: ArrayLike, comparisons: int = 1, confidence: float = 0.95) -> Interval:
    """Student's t-interval of the mean, for few values such as the accuracies of a few seeds.

    Args:
        values: independent values, (n,); for a paired comparison the n differences.
        comparisons: how many such intervals are looked at together: each gets the confidence that makes all of them
            hold at once with the one that is asked for (Bonferroni).
        confidence: in (0, 1).

    Raises:
        ValueError: no values, or a number out of range.
        ImportError: scipy is missing.
    """
    x = _checked(values)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, math.nan, math.nan, len(x))
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError("confidence intervals need scipy: pip install 'ltpa[notebooks]'") from error
    reach = float(t.ppf(1 - _tail(comparisons, confidence), len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - reach, mean + reach, len(x))


def bootstrap_interval(
    values: ArrayLike, comparisons: int = 1, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), for many values such as one per test image.

    Args:
        values: (n,), one a test image; for a paired comparison the n differences.
        comparisons, confidence: see `t_interval`.
        resamples: how often n values are drawn with replacement.
        seed: of the draws.

    Raises:
        ValueError: no values, or a number out of range.
    """
    x = _checked(values)
    if len(x) < 2:
        return Interval(float(x.mean()), math.nan, math.nan, len(x))
    tail = _tail(comparisons, confidence)
    # Right and wrong answers take few values: it is enough to draw how often each of them occurs.
    distinct, counts = np.unique(x, return_counts=True)
    draw = np.random.default_rng(seed)
    at_once = max(1, 10**7 // len(distinct))
    means = [
        draw.multinomial(len(x), counts / len(x), size=min(at_once, resamples - start)) @ distinct / len(x)
        for start in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def verdict(intervals: Sequence[Interval], margin: float = 0.0) -> str:
    """What the intervals of one effect, from different sources of chance, say of the claim "the effect is above zero".

    Args:
        intervals: of the same effect, for instance over seeds and over test images; all of them must agree.
        margin: the smallest effect that would matter. Where every interval ends below it, the claim is not supported.

    Returns:
        "supported" if every interval lies above zero, "not supported" if every interval ends below the margin, or
        below zero; else "not decidable at this budget".
    """
    if not intervals:
        return UNDECIDED
    if all(i.low > 0 for i in intervals):
        return SUPPORTED
    if all(i.high < max(margin, 0.0) or i.high < 0 for i in intervals):
        return NOT_SUPPORTED
    return UNDECIDED


def _checked(values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"an interval needs one finite value or more in a row, not an array of shape {x.shape}: {x!r}")
    return x


def _tail(comparisons: int, confidence: float) -> float:
    """The part of the distribution beyond one end of the interval."""
    if not 0 < confidence < 1 or comparisons < 1:
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence}; comparisons 1 or more")
    return (1 - confidence) / 2 / comparisons
