"""The picture of an ablation: every run a point, every interval a bar, nothing hidden behind a mean."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..metrics.statistics import Interval, t_interval
from ..models.cost import gmac
from .ablation import Grid
from .comparison import Comparison

_FONT, _TITLE_FONT = 12, 13


def ablation_figure(grid: Grid, comparisons: Sequence[Comparison]) -> Figure:
    """Draws accuracy (left) and difference to the baseline with the same seed (right), a row a variant, a point a seed.

    Raises:
        ValueError: no run to draw.
    """
    _check(grid)
    rows = {variant: row for row, variant in enumerate(grid.variants)}
    figure = Figure(figsize=(12, 1.9 + 0.5 * len(rows)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for variant, row in rows.items():
        accuracies = [result.accuracy for result in grid.of(variant)]
        _points(left, row, accuracies, {"C0": t_interval(accuracies)})
    for c in comparisons:
        _points(right, rows[c.variant], list(c.differences.values()), {"C0": c.over_seeds, "C1": c.over_images})
    right.axvline(0, color="black", linewidth=1)
    left.set_yticks(list(rows.values()), list(rows), fontsize=_FONT)
    left.set_ylim(len(rows) - 0.5, -0.5)
    low, high = left.get_xlim()
    left.set_xlim(max(low, -1), min(high, 101))
    if grid.config.baseline in rows:
        right.text(0, rows[grid.config.baseline], "baseline ", ha="right", va="center", fontsize=_FONT, color="0.35")
    left.set_xlabel("test accuracy (%)", fontsize=_TITLE_FONT)
    right.set_xlabel(f"minus {grid.config.baseline}, same seed (points)", fontsize=_TITLE_FONT)
    for axes in (left, right):
        axes.tick_params(labelsize=_FONT)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def effects_figure(effects: Mapping[str, Sequence[Comparison]], baseline: str, across: int = 2) -> Figure:
    """Draws every comparison: a panel a measure, a row a name, a point a seed, a bar an interval.

    Args:
        effects: measure -> comparisons with the baseline.
        baseline: its name.
        across: panels side by side.

    Raises:
        ValueError: no comparison to draw.
    """
    effects = {measure: of for measure, of in effects.items() if of}
    if not effects:
        raise ValueError("there is no comparison to draw: no two runs have the same seed")
    names = list(dict.fromkeys(c.variant for of in effects.values() for c in of))
    down = math.ceil(len(effects) / across)
    figure = Figure(figsize=(12, 0.9 + down * (1.0 + 0.5 * len(names))), dpi=100, layout="constrained")
    panels = figure.subplots(down, across, sharey=True, sharex=True, squeeze=False)
    for axes, (measure, comparisons) in zip(panels.flat, effects.items(), strict=False):
        for c in comparisons:
            bars = {"C0": c.over_seeds, "C1": c.over_images}
            _points(axes, names.index(c.variant), list(c.differences.values()), bars)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_title(measure, fontsize=_TITLE_FONT)
        axes.set_yticks(range(len(names)), names, fontsize=_FONT)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(labelsize=_FONT)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(effects) :]:
        axes.axis("off")
    low, high = panels[0, 0].get_xlim()
    panels[0, 0].set_xlim(max(low, -101), min(high, 101))
    figure.supxlabel(f"minus {baseline}, same seed (points)", fontsize=_TITLE_FONT)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], marker="o", linestyle="", color="0.35", markersize=6),
        Line2D([], [], color="C0", linewidth=3),
        Line2D([], [], color="C1", linewidth=3),
    ]
    texts = ["one run (seed)", "95 % interval over seeds", "95 % interval over test images"]
    figure.legend(handles, texts, loc="outside upper center", ncols=3, fontsize=_FONT, frameon=False)


def cost_figure(grid: Grid) -> Figure:
    """Draws the accuracy of every run against the operations that one image costs.

    Raises:
        ValueError: no run to draw.
    """
    _check(grid)
    figure = Figure(figsize=(9, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    dearest = 0.0
    for number, variant in enumerate(grid.variants):
        of = grid.of(variant)
        cost = 1000 * gmac(of[0].run.model, of[0].run.config.image_size)
        dearest = max(dearest, cost)
        marker = "os^Dvp*Xhd"[number % 10]
        axes.plot([cost] * len(of), [100 * r.accuracy for r in of], marker, label=variant, markersize=8, alpha=0.7)
    axes.set_xlabel("million multiply-accumulate operations an image", fontsize=_TITLE_FONT)
    axes.set_ylabel("test accuracy (%)", fontsize=_TITLE_FONT)
    axes.set_xlim(0, 1.08 * dearest)
    axes.tick_params(labelsize=_FONT)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=_FONT)
    return figure


def _check(grid: Grid) -> None:
    if not grid.variants:
        raise ValueError("there is no run to draw: " + grid.complaints())


def _points(axes: Axes, row: int, values: Sequence[float], intervals: dict[str, Interval]) -> None:
    """The values of one variant, spread a little so that none hides another, and bars under them."""
    spread = np.linspace(-0.16, 0.0, len(values)) if len(values) > 1 else np.array([-0.08])
    axes.plot(100 * np.array(values), row + spread, "o", color="0.35", markersize=6, alpha=0.8)
    for number, (color, interval) in enumerate(intervals.items()):
        y = row + 0.14 + 0.13 * number
        axes.plot(100 * interval.mean, y, "|", color=color, markersize=11, markeredgewidth=3)
        if interval.low == interval.low:
            axes.plot([100 * interval.low, 100 * interval.high], [y, y], color=color, linewidth=3)
