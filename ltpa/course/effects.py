"""Models compared with a baseline of the same seeds: effects with intervals, as tables, sentences and a figure."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..errors import counted
from ..metrics.statistics import (
    CONTRADICTED,
    LEAST_SEEDS,
    SUPPORTED,
    TOO_FEW_SEEDS,
    Effect,
    Interval,
    bootstrap_interval,
    t_interval,
    widest,
)
from ..viz.style import FONT, LINE_COLORS, new_figure, style_axes
from ..viz.style import add_legend as add_handles
from ..viz.words import model_in_words
from .grid import AblationConfig, Grid

MARGIN = 0.005  # half a percentage point of accuracy: less would not matter
SEEDS_COLOR, IMAGES_COLOR = LINE_COLORS[0], LINE_COLORS[1]  # of intervals
Scores = Mapping[str, Mapping[int, Tensor]]  # name -> seed -> (N,), a number in [0, 1] for each test image


@dataclass(frozen=True, kw_only=True)
class Comparison(Effect):
    """The effect of a model against a baseline with the same seeds, in [-1, 1].

    `differences` are those of the mean scores, by seed; `over_seeds` is the t-interval of their mean (the chance in
    training), `over_images` the bootstrap interval (the chance in which images are in the test set), and `interval` has
    the farther ends of both, so the verdict is that of both.
    """

    differences: Mapping[int, float]
    over_seeds: Interval
    over_images: Interval


def compare(grid: Grid, baselines: Iterable[str] = ()) -> list[Comparison]:
    """Compare the accuracy of every variant with each baseline; the intervals of all hold together with 95 %.

    Without `baselines` the baseline is that of the parameters. Two baselines are compared with each other once, with
    the first of them as the baseline; one without runs is compared with nothing.
    """
    scores = {name: {r.cell.seed: r.correct.double() for r in grid.results_of(name)} for name in grid.variants}
    scores_by_baseline: dict[str, Scores] = {}
    for baseline in dict.fromkeys(baselines or [grid.config.baseline]):
        scores_by_baseline[baseline] = {name: s for name, s in scores.items() if name not in scores_by_baseline}
    together = sum(len(_shared_seeds(left, baseline)) for baseline, left in scores_by_baseline.items())
    words = {"claim": "Attention improves accuracy", "measure": "test accuracy"}
    return [
        comparison
        for baseline, left in scores_by_baseline.items()
        for comparison in compare_scores(left, baseline, grid.config, together=together, **words)
    ]


def compare_scores(
    scores: Scores,
    baseline: str,
    config: AblationConfig,
    *,
    claim: str,
    measure: str,
    data: str = "",
    together: int = 0,
) -> list[Comparison]:
    """Compare everything with the baseline, paired by seed and by image.

    `data` is what was measured on, if not what the models were tested on. `together` is how many comparisons are looked
    at together, if not just these, see `t_interval`.
    """
    shared = _shared_seeds(scores, baseline)
    together = together or len(shared)
    comparisons = []
    for name, seeds in shared.items():
        for seed in seeds:
            shapes = tuple(scores[name][seed].shape), tuple(scores[baseline][seed].shape)
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{name} and {baseline} were measured on different images with seed {seed}: scores {shapes[0]} "
                    f"and {shapes[1]}"
                )
        each = [scores[name][seed] - scores[baseline][seed] for seed in seeds]
        means = [values.mean().item() for values in each]
        over_seeds = t_interval(means, together, bounds=(-1, 1))
        over_images = bootstrap_interval(torch.stack(each).mean(0).numpy(), together)
        comparison = Comparison(
            claim=claim, model=name, baseline=baseline, measure=measure, data=data or config.data_described(),
            budget=config.described(), seeds=len(seeds), interval=widest([over_images, over_seeds]), margin=MARGIN,
            differences=dict(zip(seeds, means, strict=True)), over_seeds=over_seeds, over_images=over_images,
        )  # fmt: skip
        comparisons.append(comparison)
    return comparisons


def _shared_seeds(scores: Scores, baseline: str) -> dict[str, list[int]]:
    """Return the seeds that each name shares with the baseline, for all that share any."""
    base = scores.get(baseline, {})
    shared = {name: [seed for seed in scores[name] if seed in base] for name in scores if name != baseline}
    return {name: seeds for name, seeds in shared.items() if seeds}


# Tables


def accuracy_table(grid: Grid, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return the accuracy of every variant in %, and its comparison with the baseline."""
    rows = {
        variant: {"seeds": len(grid.results_of(variant)), "accuracy, % [95 %]": grid.accuracy(variant).text(1, 100)}
        for variant in grid.variants
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return table.join(comparison_table(comparisons).drop(columns="seeds")).fillna("") if comparisons else table


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return comparisons with one baseline as a table, in points (hundredths), with both parts of each interval."""
    rows = {
        c.model: {
            "seeds": c.seeds,
            f"minus {c.baseline}, points [95 %]": c.interval.text(1, 100, sign=True),
            "seeds alone": _ends(c.over_seeds),
            "test images alone": _ends(c.over_images),
            "verdict": c.verdict,
        }
        for c in comparisons
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _ends(interval: Interval) -> str:
    return f"[{interval.text(1, 100, sign=True).partition('[')[2]}" if interval.known else "none"


# Sentences


def conclusion(comparisons: Sequence[Comparison]) -> str:
    """Return what can and what cannot be concluded, in a paragraph."""
    if not comparisons:
        return "Nothing can be concluded: no other model has a run with the same seed as the baseline."
    seeds = sorted({c.seeds for c in comparisons})
    count = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    by_baseline = {c.baseline: [other for other in comparisons if other.baseline == c.baseline] for c in comparisons}
    sentences = ". And ".join(map(sorted_out, by_baseline.values()))
    return paragraph(
        f"With {count}, {len(comparisons)} comparisons and intervals that hold together with 95 %: {sentences}.",
        few_seeds(comparisons),
        "This says nothing about longer training, other widths or other data.",
    )


def sorted_out(comparisons: Sequence[Comparison]) -> str:
    """Return which models are better than the baseline, worse, equal and open, as part of a sentence."""

    def names(chosen: list[Comparison]) -> str:
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


def few_seeds(comparisons: Sequence[Comparison]) -> str:
    """Return a sentence on models with too few seeds for an interval; nothing where there are enough."""
    names = list(dict.fromkeys(c.model for c in comparisons if not c.over_seeds.known))
    return f"{TOO_FEW_SEEDS} So nothing is decided about {', '.join(names)}." if names else ""


def paragraph(*sentences: str) -> str:
    """Return sentences as lines of at most 110 characters; empty ones are left out."""
    return textwrap.fill(" ".join(filter(None, sentences)), 110, break_on_hyphens=False)


# Figures


def effects_figure(comparisons: Sequence[Comparison]) -> Figure:
    """Draw comparisons with one baseline: a panel a measure, a row a model, a point a seed, a bar an interval."""
    if not comparisons:
        raise ValueError("there is no comparison to draw: no two runs have the same seed")
    measures = list(dict.fromkeys(c.measure for c in comparisons))
    rows = {name: row for row, name in enumerate(dict.fromkeys(c.model for c in comparisons))}
    down = math.ceil(len(measures) / 2)
    figure = new_figure(1.4 + down * (1.0 + 0.6 * len(rows)))
    panels = figure.subplots(down, 2, sharey=True, sharex=True, squeeze=False).flat
    for axes, measure in zip(panels, measures, strict=False):
        draw_comparisons(axes, [c for c in comparisons if c.measure == measure], rows)
        style_axes(axes, title=textwrap.fill(measure, 34))
    for axes in panels[len(measures) :]:
        axes.axis("off")
    baseline = model_in_words(comparisons[0].baseline)
    figure.supxlabel(f"difference to {baseline} with the same seed (points)", fontsize=FONT)
    add_legend(figure, comparisons)
    return figure


def draw_comparisons(axes: Axes, comparisons: Sequence[Comparison], rows: Mapping[str, int]) -> None:
    """Draw comparisons into rows, which are named at the left, in points."""
    for c in comparisons:
        draw_row(
            axes, rows[c.model], list(c.differences.values()), {SEEDS_COLOR: c.over_seeds, IMAGES_COLOR: c.over_images}
        )
    axes.axvline(0, color="black", linewidth=1)
    style_rows(axes, rows)


def draw_row(axes: Axes, row: int, values: Sequence[float], intervals: Mapping[str, Interval]) -> None:
    """Draw the values of one model in %, spread so that none hides another, and under them its intervals by color."""
    spread = np.linspace(-0.16, 0.0, len(values)) if len(values) > 1 else np.array([-0.08])
    axes.plot(100 * np.array(values), row + spread, "o", color="0.35", markersize=6, alpha=0.8)
    for number, (color, interval) in enumerate(intervals.items()):
        y = row + 0.14 + 0.13 * number
        if interval.known:
            axes.plot(100 * interval.mean, y, "|", color=color, markersize=11, markeredgewidth=3)
            axes.plot([100 * interval.low, 100 * interval.high], [y, y], color=color, linewidth=3)


def style_rows(axes: Axes, rows: Mapping[str, int]) -> None:
    """Name the rows from top to bottom."""
    names = [textwrap.fill(model_in_words(name), 24) for name in rows]
    axes.set_yticks(list(rows.values()), names, fontsize=FONT)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def add_legend(figure: Figure, comparisons: Sequence[Comparison]) -> None:
    """Say what points and bars are, or why there is no bar for the seeds."""
    over_seeds = Line2D([], [], color=SEEDS_COLOR, linewidth=3, label="95 % interval over seeds")
    if not any(c.over_seeds.known for c in comparisons):
        over_seeds = Line2D([], [], linestyle="", label=f"fewer than {LEAST_SEEDS} seeds: no such interval")
    handles = [
        Line2D([], [], marker="o", linestyle="", color="0.35", markersize=6, label="one run (seed)"),
        over_seeds,
        Line2D([], [], color=IMAGES_COLOR, linewidth=3, label="95 % interval over test images"),
    ]
    add_handles(figure, handles)


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
