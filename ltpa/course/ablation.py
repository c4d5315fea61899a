"""Notebook 03: what attention adds to the accuracy, what it costs, and whether the network looks at its query."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ..metrics.statistics import write_effects
from ..viz.style import FONT, TITLE_FONT
from . import setup
from .effects import (
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
    figure = Figure(figsize=(12, 1.9 + 0.5 * len(rows)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for variant, row in rows.items():
        draw_row(left, row, [r.accuracy for r in grid.results_of(variant)], {"C0": grid.accuracy(variant)})
    style_rows(left, rows)
    draw_comparisons(right, comparisons, rows)
    baseline = grid.config.baseline
    if baseline in rows:
        right.text(0, rows[baseline], "baseline ", ha="right", va="center", fontsize=FONT, color="0.35")
    left.set_xlabel("test accuracy (%)", fontsize=TITLE_FONT)
    right.set_xlabel(f"difference to {baseline} with the same seed (points)", fontsize=TITLE_FONT)
    add_legend(figure, comparisons)
    return figure


def cost_figure(grid: Grid) -> Figure:
    """Draw the accuracy of every run against the operations that one image costs."""
    _check(grid)
    figure = Figure(figsize=(9, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    for number, variant in enumerate(grid.variants):
        cost, accuracies = 1000 * grid.costs(variant)["GMAC"], [100 * r.accuracy for r in grid.results_of(variant)]
        marker = "os^Dvp*Xhd"[number % 10]
        axes.plot([cost] * len(accuracies), accuracies, marker, label=variant, markersize=8, alpha=0.7)
    axes.set_xlabel("million multiply-accumulate operations an image", fontsize=TITLE_FONT)
    axes.set_ylabel("test accuracy (%)", fontsize=TITLE_FONT)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=FONT)
    axes.grid(alpha=0.3)
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
