"""Models compared with a baseline: effects for new seeds and new images, as tables, sentences and figures."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..metrics.crossed import Difference, crossed_difference
from ..metrics.statistics import CONTRADICTED, LEAST_SEEDS, SUPPORTED, TOO_FEW_SEEDS, Effect, Interval
from ..viz.style import FONT, LINE_COLORS, new_figure, style_axes
from ..viz.style import add_legend as add_handles
from ..viz.words import model_in_words
from .grid import AblationConfig

MARGIN = 0.005  # half a percentage point of accuracy: less would not matter
INTERVAL_COLOR = LINE_COLORS[0]
Scores = Mapping[str, Mapping[int, Tensor]]  # name -> seed -> (N,), a number in [0, 1] for each test image


def table_of(scores: Mapping[int, Tensor]) -> np.ndarray:
    """Return the scores of one model by seed as a table (seeds, images)."""
    return torch.stack([scores[seed].double() for seed in sorted(scores)]).numpy()


def compare_scores(
    scores: Scores,
    baseline: str,
    config: AblationConfig,
    *,
    claim: str,
    measure: str,
    data: str = "",
    together: int = 0,
) -> list[Effect]:
    """Compare everything with the baseline; the intervals are for new seeds and new images, see `crossed_difference`.

    `data` is what was measured on, if not what the models were tested on. `together` is how many intervals hold
    together with 95 %, if not just these (Bonferroni correction).
    """
    pairs = [(claim, name, baseline) for name in scores if name != baseline and baseline in scores]
    words = {"measure": measure, "data": data or config.data_described(), "budget": config.described()}
    return compare_pairs(scores, pairs, lambda found: [d.interval(together or len(pairs)) for d in found], **words)


def compare_pairs(
    scores: Scores,
    pairs: Sequence[tuple[str, str, str]],
    intervals_of: Callable[[Sequence[Difference]], list[Interval]],
    **words: str,
) -> list[Effect]:
    """Compare pairs (claim, model, baseline); the spread is pooled over all models that have scores.

    `intervals_of` makes intervals of the differences, and `words` say what was measured on which data.
    """
    if not pairs:
        return []
    check_same_images(scores, pairs[0][2])
    tables = {name: table_of(of_seeds) for name, of_seeds in scores.items()}
    differences = [
        crossed_difference(tables[name], tables[other], [t for n, t in tables.items() if n not in (name, other)])
        for _, name, other in pairs
    ]
    return [
        Effect(
            claim=claim, model=name, baseline=other, seeds=min(len(tables[name]), len(tables[other])),
            interval=interval, margin=MARGIN, **words,
        )
        for (claim, name, other), interval in zip(pairs, intervals_of(differences), strict=True)
    ]  # fmt: skip


def check_same_images(scores: Scores, baseline: str) -> None:
    """Refuse scores of different numbers of images."""
    shape = tuple(next(iter(scores[baseline].values())).shape)
    for name, of_seeds in scores.items():
        for seed, values in of_seeds.items():
            if tuple(values.shape) != shape:
                raise ValueError(
                    f"{name} and {baseline} were measured on different images with seed {seed}: scores "
                    f"{tuple(values.shape)} and {shape}"
                )


def comparison_table(effects: Sequence[Effect]) -> pd.DataFrame:
    """Return effects as a table, in points (hundredths)."""
    rows = [
        {
            "model": e.model,
            "minus": e.baseline,
            "seeds": e.seeds,
            "points [95 %]": e.interval.text(1, 100, sign=True),
            "verdict": e.verdict,
        }
        for e in effects
    ]
    return pd.DataFrame(rows, columns=["model", "minus", "seeds", "points [95 %]", "verdict"]).set_index("model")


# Sentences


def sorted_out(comparisons: Sequence[Effect]) -> str:
    """Return which models are better than the baseline, worse, equal and open, as part of a sentence."""

    def names(chosen: list[Effect]) -> str:
        points = [f"{c.model} ({Interval(c.interval.mean).text(1, 100, sign=True)} points)" for c in chosen]
        return ", ".join(points) or "none"

    better = [c for c in comparisons if c.verdict == SUPPORTED]
    # A difference that rounds to nothing is none.
    contradicted = [c for c in comparisons if c.verdict == CONTRADICTED]
    worse = [c for c in contradicted if c.interval.high < 0 and round(100 * c.interval.mean, 1) < 0]
    equal = [c for c in contradicted if c not in worse]
    undecided = [c for c in comparisons if c not in better + worse + equal]
    groups = {"worse": worse, f"better by less than {100 * MARGIN:g} points, if at all": equal, "undecided": undecided}
    others = [f"; {words}: {names(chosen)}" for words, chosen in groups.items() if chosen]
    return f"better than {comparisons[0].baseline}: {names(better)}" + "".join(others)


def few_seeds(comparisons: Sequence[Effect]) -> str:
    """Return a sentence on models with too few seeds for an interval; nothing where there are enough."""
    names = list(dict.fromkeys(c.model for c in comparisons if c.seeds < LEAST_SEEDS))
    return f"{TOO_FEW_SEEDS} So nothing is decided about {', '.join(names)}." if names else ""


def paragraph(*sentences: str) -> str:
    """Return sentences as lines of at most 110 characters; empty ones are left out."""
    return textwrap.fill(" ".join(filter(None, sentences)), 110, break_on_hyphens=False)


# Figures


def effects_figure(comparisons: Sequence[Effect]) -> Figure:
    """Draw comparisons with one baseline: a panel a measure, a row a model, a bar an interval."""
    if not comparisons:
        raise ValueError("there is no comparison to draw: only one model has runs")
    measures = list(dict.fromkeys(c.measure for c in comparisons))
    rows = {name: row for row, name in enumerate(dict.fromkeys(c.model for c in comparisons))}
    down = math.ceil(len(measures) / 2)
    figure = new_figure(1.4 + down * (1.0 + 0.6 * len(rows)))
    panels = figure.subplots(down, 2, sharey=True, sharex=True, squeeze=False).flat
    for axes, measure in zip(panels, measures, strict=False):
        for c in comparisons:
            if c.measure == measure:
                draw_row(axes, rows[c.model], [], c.interval)
        axes.axvline(0, color="black", linewidth=1)
        style_rows(axes, rows)
        style_axes(axes, title=textwrap.fill(measure, 34))
    for axes in panels[len(measures) :]:
        axes.axis("off")
    baseline = model_in_words(comparisons[0].baseline)
    figure.supxlabel(f"difference to {baseline} (points)", fontsize=FONT)
    add_legend(figure, any(c.interval.known for c in comparisons))
    return figure


def draw_row(axes: Axes, row: int, values: Sequence[float], interval: Interval) -> None:
    """Draw values in %, spread so that none hides another, and under them their mean and its interval."""
    spread = np.linspace(-0.16, 0.0, len(values)) if len(values) > 1 else np.array([-0.08])[: len(values)]
    axes.plot(100 * np.array(values), row + spread, "o", color="0.35", markersize=6, alpha=0.8)
    y = row + (0.2 if values else 0)
    axes.plot(100 * interval.mean, y, "|", color=INTERVAL_COLOR, markersize=11, markeredgewidth=3)
    if interval.known:
        axes.plot([100 * interval.low, 100 * interval.high], [y, y], color=INTERVAL_COLOR, linewidth=3)


def style_rows(axes: Axes, rows: Mapping[str, int]) -> None:
    """Name the rows from top to bottom."""
    names = [textwrap.fill(model_in_words(name), 24) for name in rows]
    axes.set_yticks(list(rows.values()), names, fontsize=FONT)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def add_legend(figure: Figure, known: bool, points: bool = False) -> None:
    """Say what points and bars are, or why there are no bars."""
    bar = Line2D([], [], color=INTERVAL_COLOR, linewidth=3, label="95 % interval")
    if not known:
        bar = Line2D([], [], linestyle="", label=f"fewer than {LEAST_SEEDS} seeds, or no spread: no interval")
    point = Line2D([], [], marker="o", linestyle="", color="0.35", markersize=6, label="one run (seed)")
    add_handles(figure, [point, bar] if points else [bar])


def draw_runs(axes: Axes, columns: Sequence[Sequence[float]], shift: float, color: str, style: str = "-") -> None:
    """Draw accuracies in %: a column of points (runs) for each condition, hollow if dashed; a line of means."""
    fill = "none" if style == "--" else "full"
    places = [place + shift for place in range(len(columns))]
    for place, column in zip(places, columns, strict=True):
        percent = [100 * value for value in column]
        axes.plot([place] * len(column), percent, "o", color=color, markersize=5, alpha=0.7, fillstyle=fill)
    axes.plot(places, [100 * sum(column) / len(column) for column in columns], style, color=color, linewidth=2.5)


def style_runs(axes: Axes, title: str, conditions: Sequence[str], classes: int) -> None:
    """Name the conditions, and mark chance."""
    style_axes(axes, title=title)
    axes.axhline(100 / classes, color="0.4", linestyle=":", linewidth=2)
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set_ylim(-2, 102)
