"""Confidence intervals over seeds and images, effects, and their verdicts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..errors import optional_module

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
CONFIDENCE = 0.95
LEAST_SEEDS = 3  # with two, Student's t has one degree of freedom, and the interval is useless
TOO_FEW_SEEDS = f"Fewer than {LEAST_SEEDS} seeds: no interval over seeds can be given."
COLUMNS = (
    "claim", "model", "baseline", "measure", "data", "budget", "seeds", "n", "effect", "low", "high", "margin",
    "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean of n values with its confidence interval; the ends are NaN if there are too few values."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    @property
    def known(self) -> bool:
        """Return whether the interval has ends."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def text(self, digits: int = 1, scale: float = 1, sign: bool = False) -> str:
        """Return "61.3 [58.0, 64.2]", or the mean alone; `scale` 100 gives percent, `sign` writes "+" as well."""
        # Twice, so that the last bit of a sum decides no tie; "+ 0.0" because a rounded number may be minus zero.
        mean, low, high = (
            f"{round(round(scale * v, 9), digits) + 0.0:{'+' if sign else ''}.{digits}f}"
            for v in (self.mean, self.low, self.high)
        )
        return f"{mean} [{low}, {high}]" if self.known else mean

    def minus(self, value: float) -> "Interval":
        """Return the interval of the mean minus a constant."""
        return replace(self, mean=self.mean - value, low=self.low - value, high=self.high - value)

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def t_interval(
    values: ArrayLike, comparisons: int = 1, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """Return Student's t-interval of the mean of a few values (n,), such as the accuracies of a few seeds.

    Args:
        values: independent values; fewer than three, or equal ones, which show no spread, give no interval.
        comparisons: how many intervals hold together with 95 % (Bonferroni correction).
        bounds: limits of the quantity, such as (0, 1) for an accuracy; the interval is cut there.
    """
    x = _checked(values)
    mean = float(x.mean())
    tail = tail_of(comparisons)
    if len(x) < LEAST_SEEDS or np.ptp(x) == 0:
        return Interval(mean, n=len(x))
    reach = float(student_t().ppf(1 - tail, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, max(mean - reach, bounds[0]), min(mean + reach, bounds[1]), len(x))


def bootstrap_interval(values: ArrayLike, comparisons: int = 1, resamples: int = 10_000) -> Interval:
    """Return the percentile bootstrap interval (Efron 1979) of the mean of many values (n,), such as one per image.

    NaN values are left out; `comparisons` is the number of intervals that hold together with 95 %.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[~np.isnan(x)] if x.ndim == 1 else x
    if x.ndim == 1 and not len(x):
        return Interval(math.nan)
    x = _checked(x)
    if len(x) < 2:
        return Interval(float(x.mean()), n=len(x))
    tail = tail_of(comparisons)
    # Right and wrong answers have few distinct values, so it is enough to draw how often each occurs.
    distinct, counts = np.unique(x, return_counts=True)
    draw = np.random.default_rng(0)
    at_once = max(1, 10**7 // len(distinct))
    means = [
        draw.multinomial(len(x), counts / len(x), size=min(at_once, resamples - start)) @ distinct / len(x)
        for start in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def widest(intervals: Sequence[Interval]) -> Interval:
    """Return the first interval's mean with the lowest and the highest end of all: chance in seeds and in images."""
    ends = [(i.low, i.high) for i in intervals]
    return replace(intervals[0], low=float(np.min(ends)), high=float(np.max(ends)))


def verdict(interval: Interval, margin: float = 0.0) -> str:
    """Return the verdict on the claim "the effect is larger than the margin".

    "supported" if the whole interval is above the margin, "contradicted" if it is below, and "undecided" otherwise,
    also if there is no interval or if it has no width: equal values do not show what chance can do.
    """
    if not interval.low < interval.high:
        return UNDECIDED
    if interval.low > margin:
        return SUPPORTED
    return CONTRADICTED if interval.high < margin else UNDECIDED


@dataclass(frozen=True)
class Effect:
    """One measured difference between a model and a baseline, with everything needed to understand it alone."""

    claim: str  # that is tested, in words
    model: str
    baseline: str
    measure: str  # whose difference the effect is
    data: str
    budget: str  # how the models were trained, in words
    seeds: int  # number of trainings of each side; 0 if nothing was trained
    interval: Interval  # of the effect; its n counts images, scenes or seeds
    margin: float = 0.0  # the smallest effect that matters; the claim is that the effect is larger
    verdict: str = ""  # by default computed from interval and margin

    def __post_init__(self) -> None:
        """Compute the verdict."""
        if not self.verdict:
            object.__setattr__(self, "verdict", verdict(self.interval, self.margin))


def effects_frame(effects: Iterable[Effect]) -> pd.DataFrame:
    """Return effects as a table with `COLUMNS`, rounded to six decimals."""
    rows = [
        vars(e) | {"n": e.interval.n, "effect": e.interval.mean, "low": e.interval.low, "high": e.interval.high}
        for e in effects
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).round({"effect": 6, "low": 6, "high": 6})


def write_effects(effects: Iterable[Effect], path: str | Path) -> Path:
    """Write effects as CSV, such as `runs/effects_03.csv`, and return the path."""
    effects_frame(effects).to_csv(path, index=False, lineterminator="\n")
    return Path(path)


def packed(correct: ArrayLike) -> str:
    """Return right and wrong answers (N,) as text for a table, eight in two hexadecimal digits; see `unpacked`."""
    return np.packbits(np.asarray(correct, dtype=bool)).tobytes().hex()


def unpacked(text: str, count: int) -> np.ndarray:
    """Return the answers, bool (count,), of `packed` text."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), "uint8"))[:count].astype(bool)


def _checked(values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(
            f"an interval needs a row of one or more finite values, not an array of shape {x.shape}: {x!r}"
        )
    return x


def student_t() -> Any:
    """Return scipy's Student's t distribution; an ImportError says how to install it."""
    return optional_module("scipy.stats", "confidence intervals need scipy").t


def tail_of(comparisons: int) -> float:
    """Return the probability beyond one end of an interval, of which so many hold together with 95 %."""
    if comparisons < 1:
        raise ValueError(f"comparisons must be at least 1, not {comparisons}")
    return (1 - CONFIDENCE) / 2 / comparisons
