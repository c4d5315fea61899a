"""Notebook 03: what attention adds to the accuracy, what it costs, and whether the network looks at its query."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..errors import counted
from ..metrics.crossed import holm
from ..metrics.statistics import Effect, packed, t_interval, write_effects
from ..viz.style import FONT, LINE_COLORS, MARKERS, new_figure, style_axes
from ..viz.words import model_in_words
from . import setup
from .effects import (
    MARGIN,
    Scores,
    add_legend,
    compare_pairs,
    comparison_table,
    draw_row,
    few_seeds,
    paragraph,
    sorted_out,
    style_rows,
)
from .global_feature import attention_models, exchanged_maps, gradient_table, moved_attention
from .grid import MODELS, AblationConfig, Cell, Grid, Result, collect, train_missing
from .setup import report
from .uniform_levels import uniform_levels, uniform_table

__all__ = [
    "CONTRASTS", "MODELS", "AblationConfig", "Cell", "Grid", "Result", "ablation_figure", "accuracy_table",
    "attention_models", "collect", "compare", "comparison_table", "conclusion", "cost_figure", "cost_table",
    "exchanged_maps", "gradient_table", "moved_attention", "parameters", "report", "train_missing",
    "uniform_levels", "uniform_table", "write_results",
]  # fmt: skip

parameters = partial(setup.parameters, kind=AblationConfig)

LATE, UNIFORM = "vgg-late-norm", "vgg-att3-concat-uniform"
MAPS, LEVELS = "Attention maps improve accuracy", "Reading three levels improves accuracy"
#: What is compared: claim, model, baseline. The difference between two of them is one part of the network.
CONTRASTS = (
    (MAPS, "vgg-att3-concat-pc", UNIFORM),
    (MAPS, "vgg-att3-concat-add", UNIFORM),
    (LEVELS, UNIFORM, LATE),
)


def compare(
    scores: Scores, *, data: str, budget: str, baseline: str = "vgg-late", also: Sequence[str] = ()
) -> list[Effect]:
    """Test the `CONTRASTS` whose models have scores, with Holm's correction; without any, all against the baseline.

    The intervals are for new seeds and new images, see `ltpa.metrics.crossed_difference`. The spread is pooled over the
    models compared, and those named in `also`.
    """
    planned = [(claim, name, other) for claim, name, other in CONTRASTS if name in scores and other in scores]
    pairs = planned or [
        (f"Better than {baseline}", n, baseline) for n in scores if n != baseline and baseline in scores
    ]
    compared = dict.fromkeys([*(name for pair in pairs for name in pair[1:]), *(n for n in also if n in scores)])
    words = {"measure": "test accuracy", "data": data, "budget": budget}
    return compare_pairs({name: scores[name] for name in compared}, pairs, partial(holm, value=MARGIN), **words)


def conclusion(effects: Sequence[Effect]) -> str:
    """Return what can and what cannot be concluded, in a paragraph."""
    if not effects:
        return "Nothing can be concluded: no two models that are to be compared have runs."
    by_baseline = {e.baseline: [other for other in effects if other.baseline == e.baseline] for e in effects}
    sentences = ". And ".join(map(sorted_out, by_baseline.values()))
    return paragraph(
        f"With {counted(min(e.seeds for e in effects), 'seed')}, {counted(len(effects), 'comparison')} and verdicts "
        f"that are all right with 95 %: {sentences}.",
        few_seeds(effects),
        "This says nothing about longer training, other widths or other data.",
    )


# Tables


def accuracy_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of every model in %, its interval over seeds alone, and its operations.

    `runs` is as `Grid.frame` returns it, a row a run.
    """
    rows = {
        variant: {
            "seeds": len(of),
            "accuracy, % [95 % over seeds]": t_interval(of["accuracy"], bounds=(0, 1)).text(1, 100),
            "GMAC an image": f"{of['gmac'].iloc[0]:.3f}",
        }
        for variant, of in runs.groupby("variant", sort=False)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return parameters, operations and seconds of a run, and the entropy of each level's maps, means over seeds."""
    rows = {}
    for variant, of in runs.groupby("variant", sort=False):
        row = {"parameters": f"{of['parameters'].iloc[0]:,}", "GMAC an image": f"{of['gmac'].iloc[0]:.3f}"}
        row["seconds a run"] = f"{of['seconds'].mean():.0f}"
        for column in of.filter(like="entropy_").dropna(axis="columns"):
            row[column.replace("_", " ")] = f"{of[column].mean():.2f}"
        rows[variant] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model").fillna("")


# Figures


def ablation_figure(runs: pd.DataFrame, effects: Sequence[Effect]) -> Figure:
    """Draw accuracy (left), a row a model, a point a run, and the differences that are tested (right)."""
    variants = _variants(runs)
    figure = new_figure(2.2 + 0.5 * max(len(variants), len(effects)))
    left, right = figure.subplots(1, 2)
    style_axes(left, x="test accuracy (%)")
    style_axes(right, x="difference (points)")
    for row, variant in enumerate(variants):
        values = runs[runs["variant"] == variant]["accuracy"].tolist()
        draw_row(left, row, values, t_interval(values, bounds=(0, 1)))
    style_rows(left, {variant: row for row, variant in enumerate(variants)})
    names = [f"{model_in_words(e.model)}\nminus {model_in_words(e.baseline)}" for e in effects]
    for row, effect in enumerate(effects):
        draw_row(right, row, [], effect.interval)
    right.axvline(0, color="black", linewidth=1)
    right.axvline(100 * MARGIN, color="0.4", linestyle=":", linewidth=2)
    style_rows(right, {name: row for row, name in enumerate(names)})
    add_legend(figure, any(e.interval.known for e in effects), points=True)
    return figure


def cost_figure(runs: pd.DataFrame) -> Figure:
    """Draw the accuracy of every run against the operations that one image costs."""
    figure = new_figure(4.5)
    axes = figure.subplots()
    for number, variant in enumerate(_variants(runs)):
        of = runs[runs["variant"] == variant]
        look: dict[str, Any] = {
            "marker": MARKERS[number % len(MARKERS)],
            "color": LINE_COLORS[number % len(LINE_COLORS)],
        }
        axes.plot(
            1000 * of["gmac"], 100 * of["accuracy"], linestyle="", label=model_in_words(variant), markersize=9,
            alpha=0.8, **look,
        )  # fmt: skip
    style_axes(axes, x="million multiply-accumulate operations an image", y="test accuracy (%)")
    axes.set_xlim(left=0)
    figure.legend(loc="outside right upper", fontsize=FONT)
    return figure


def write_results(grid: Grid, effects: Sequence[Effect], folder: str | Path = "runs") -> list[Path]:
    """Write every run, which images each classifies rightly (packed), and the effects; return the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"ablation_runs.csv": grid.frame(), "ablation_correct.csv": correct_table(grid.scores())}
    for name, table in tables.items():
        table.to_csv(folder / name, index=False, lineterminator="\n")
    return [*(folder / name for name in tables), write_effects(effects, folder / "effects_03.csv")]


def correct_table(scores: Scores) -> pd.DataFrame:
    """Return which images every run classifies rightly: variant, seed, images, and the answers as `packed` text."""
    rows = [
        {"variant": name, "seed": seed, "images": len(correct), "correct": packed(correct)}
        for name, of_seeds in scores.items()
        for seed, correct in of_seeds.items()
    ]
    return pd.DataFrame(rows)


def _variants(runs: pd.DataFrame) -> list[str]:
    if runs.empty:
        raise ValueError("there is no run to draw")
    return list(dict.fromkeys(runs["variant"]))
