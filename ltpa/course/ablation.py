"""Notebook 03: what attention adds to the accuracy, what it costs, and whether the network looks at its query."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..metrics.statistics import write_effects
from ..viz.style import FONT, LINE_COLORS, MARKERS, new_figure, style_axes
from ..viz.words import model_in_words
from . import setup
from .effects import (
    SEEDS_COLOR,
    Comparison,
    accuracy_table,
    add_legend,
    compare,
    comparison_table,
    conclusion,
    draw_comparisons,
    draw_row,
    style_rows,
)
from .global_feature import attention_models, exchanged_maps, gradient_table, moved_attention
from .grid import MODELS, AblationConfig, Cell, Grid, Result, collect, train_missing
from .setup import report

__all__ = [
    "MODELS", "AblationConfig", "Cell", "Comparison", "Grid", "Result", "ablation_figure", "accuracy_table",
    "attention_models", "collect", "compare", "comparison_table", "conclusion", "cost_figure", "cost_table",
    "exchanged_maps", "gradient_table", "moved_attention", "parameters", "report", "train_missing", "write_results",
]  # fmt: skip

parameters = partial(setup.parameters, kind=AblationConfig)


def cost_table(grid: Grid) -> pd.DataFrame:
    """Return parameters, operations and seconds of a run, and the entropy of each level's maps, means over seeds."""
    rows = {}
    for variant in grid.variants:
        results, costs = grid.results_of(variant), grid.costs(variant)
        row = {"parameters": f"{costs['parameters']:,}", "GMAC an image": f"{costs['GMAC']:.3f}"}
        row["seconds a run"] = f"{sum(r.seconds for r in results) / len(results):.0f}"
        for level in results[0].entropies:
            row[f"entropy {level}"] = f"{sum(r.entropies[level] for r in results) / len(results):.2f}"
        rows[variant] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model").fillna("")


def ablation_figure(grid: Grid, comparisons: Sequence[Comparison]) -> Figure:
    """Draw accuracy (left) and difference to the baseline (right), a row a variant, a point a seed."""
    _check(grid)
    rows = {variant: row for row, variant in enumerate(grid.variants)}
    figure = new_figure(2.2 + 0.55 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    style_axes(left, x="test accuracy (%)")
    style_axes(right, x=f"difference to {model_in_words(grid.config.baseline)}\nwith the same seed (points)")
    for variant, row in rows.items():
        draw_row(left, row, [r.accuracy for r in grid.results_of(variant)], {SEEDS_COLOR: grid.accuracy(variant)})
    style_rows(left, rows)
    draw_comparisons(right, comparisons, rows)
    baseline = grid.config.baseline
    if baseline in rows:
        right.text(0, rows[baseline], "baseline ", ha="right", va="center", fontsize=FONT, color="0.35")
    add_legend(figure, comparisons)
    return figure


def cost_figure(grid: Grid) -> Figure:
    """Draw the accuracy of every run against the operations that one image costs."""
    _check(grid)
    figure = new_figure(4.5)
    axes = figure.subplots()
    for number, variant in enumerate(grid.variants):
        cost, accuracies = 1000 * grid.costs(variant)["GMAC"], [100 * r.accuracy for r in grid.results_of(variant)]
        look: dict[str, Any] = {
            "marker": MARKERS[number % len(MARKERS)],
            "color": LINE_COLORS[number % len(LINE_COLORS)],
        }
        label = model_in_words(variant)
        axes.plot([cost] * len(accuracies), accuracies, linestyle="", label=label, markersize=9, alpha=0.8, **look)
    style_axes(axes, x="million multiply-accumulate operations an image", y="test accuracy (%)")
    axes.set_xlim(left=0)
    figure.legend(loc="outside right upper", fontsize=FONT)
    return figure


def write_results(grid: Grid, comparisons: Sequence[Comparison], folder: str | Path = "runs") -> list[Path]:
    """Write `ablation_runs.csv`, a row a run, and `effects_03.csv`, a row a comparison; return their paths."""
    runs = Path(folder) / "ablation_runs.csv"
    runs.parent.mkdir(parents=True, exist_ok=True)
    grid.frame().to_csv(runs, index=False, lineterminator="\n")
    return [runs, write_effects(comparisons, runs.with_name("effects_03.csv"))]


def _check(grid: Grid) -> None:
    if not grid.variants:
        raise ValueError("there is no run to draw: " + grid.complaints())
