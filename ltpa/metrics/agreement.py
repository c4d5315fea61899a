"""Measure whether the measures agree: do they rank the same maps in the same order?"""

from collections.abc import Collection
from itertools import combinations

import pandas as pd

from ..errors import optional_module


def measure_agreement(scores: pd.DataFrame, lower_is_better: Collection[str] = ()) -> pd.DataFrame:
    """Return Kendall's tau-b between every two measures, a row for each pair, the worst agreement first.

    tau is 1 if both rank all maps alike, -1 if one ranks them backwards; `p_value` tests tau = 0, on as many maps as
    `maps` says. LATEC (arXiv 2409.16756) found that measures of one kind often contradict each other.
    With few maps tau is rough, and maps of one model are no independent sample.

    Args:
        scores: a row for each map, a column for each measure; a pair leaves out maps of which one is NaN.
        lower_is_better: columns that are low for a good map.

    Returns:
        Columns "first", "second", "tau", "p_value", "maps", "discordant" (part of the pairs of maps that the two order
        differently, without ties), "best_of_first" and "best_of_second" (names of their best maps), and "contradict":
        whether tau < 0 and p < 0.05.
    """
    kendalltau = optional_module("scipy.stats", "Kendall's tau needs scipy").kendalltau
    if unknown := set(lower_is_better) - set(scores.columns):
        raise ValueError(f"lower_is_better names no column of the table: {', '.join(sorted(map(str, unknown)))}")
    oriented = scores.astype("float64")
    oriented = oriented.assign(**{name: -oriented[name] for name in lower_is_better})
    rows = []
    for first, second in combinations(oriented.columns, 2):
        both = oriented[[first, second]].dropna()
        tau, p_value = kendalltau(both[first], both[second]) if len(both) > 1 else (float("nan"),) * 2
        steps = [(a - b).prod() for a, b in combinations(both.to_numpy(), 2)]
        ordered = [step for step in steps if step != 0]
        rows.append(
            {
                "first": first,
                "second": second,
                "tau": float(tau),
                "p_value": float(p_value),
                "maps": len(both),
                "discordant": sum(step < 0 for step in ordered) / len(ordered) if ordered else float("nan"),
                "best_of_first": _best(both[first]),
                "best_of_second": _best(both[second]),
                "contradict": bool(tau < 0 and p_value < 0.05),
            }
        )
    return pd.DataFrame(rows).sort_values("tau", ignore_index=True, kind="stable")


def _best(scores: pd.Series) -> str:
    """Return the name of the best map; of a table with several index levels all parts of it."""
    if scores.empty:
        return ""
    name = scores.idxmax()
    return " ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def ranks(scores: pd.DataFrame, lower_is_better: Collection[str] = ()) -> pd.DataFrame:
    """Return the rank of every map under every measure, 1 for the best; ties share the mean of their ranks."""
    oriented = scores.assign(**{name: -scores[name] for name in lower_is_better})
    return oriented.rank(ascending=False)
