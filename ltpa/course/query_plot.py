"""The figures of notebook 05: how often attention follows a query, and maps under queries."""

import textwrap
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..inference import attend
from ..metrics.statistics import Interval
from ..models.networks import ImageClassifier
from ..viz.figures import attention_figure
from ..viz.style import FONT, LINE_COLORS, add_legend, new_figure, style_axes
from ..viz.words import model_in_words
from .query_scenes import KINDS, Queries


def steering_figure(intervals: Mapping[tuple[str, str], Mapping[str, Interval]], threshold: float) -> Figure:
    """Draw how often attention follows the query (left) and the swing of its share (right).

    A row for each model, a color for each level; from `threshold` on the attention counts as steered.
    """
    if not intervals:
        raise ValueError("there is nothing to draw: measure a model first")
    models, levels = (list(dict.fromkeys(names)) for names in zip(*intervals, strict=True))
    figure = new_figure(2.5 + 0.65 * len(models))
    left, right = figure.subplots(1, 2, sharey=True)
    style_axes(left, x="attention follows the query\n(% of the cases)")
    style_axes(right, x="swing: share that moves to\nthe queried object (points)")
    for (model, level), by_measure in intervals.items():
        number = levels.index(level)
        y = models.index(model) + 0.22 * (number - (len(levels) - 1) / 2)
        _draw_interval(left, y, by_measure["follows"], LINE_COLORS[number])
        _draw_interval(right, y, by_measure["swing"], LINE_COLORS[number])
    left.axvline(50, color="black", linewidth=1)
    left.axvline(100 * threshold, color="black", linewidth=1, linestyle=":")
    right.axvline(0, color="black", linewidth=1)
    names = [textwrap.fill(model_in_words(model), 24) for model in models]
    left.set_yticks(range(len(models)), names, fontsize=FONT)
    left.set_ylim(len(models) - 0.5, -0.5)
    left.set_xlim(min(35, left.get_xlim()[0]), max(65, left.get_xlim()[1]))
    handles = [
        Line2D([], [], marker="o", color=LINE_COLORS[number], linewidth=3, label=level)
        for number, level in enumerate(levels)
    ]
    handles.append(Line2D([], [], color="black", linewidth=1, label="ignores the query"))
    handles.append(Line2D([], [], color="black", linewidth=1, linestyle=":", label="steered from here on"))
    add_legend(figure, handles, columns=3)
    return figure


def query_figure(
    model: ImageClassifier, queries: Queries, chosen: Tensor, level: str, classes: tuple[str, ...]
) -> Figure:
    """Draw the maps of the chosen scenes (K,) at one level: with their own g, and with each of their three queries."""
    scenes = queries.scenes[chosen]
    maps = {"own g": attend(model, scenes.images).maps[level]}
    for kind, query in zip(KINDS, queries.images, strict=True):
        maps[f"query: {kind}"] = attend(model, scenes.images, query=query[chosen]).maps[level]
    titles = [f"1st {classes[a]} | 2nd {classes[b]}" for a, b in scenes.labels.tolist()]
    figure = attention_figure(scenes.images, maps, titles=titles, masks=queries.masks[chosen].any(1))
    figure.suptitle(level, fontsize=FONT)
    return figure


def _draw_interval(axes: Axes, y: float, interval: Interval, color: str) -> None:
    axes.plot([100 * interval.low, 100 * interval.high], [y, y], color=color, linewidth=3)
    axes.plot(100 * interval.mean, y, "o", color=color, markersize=6)
