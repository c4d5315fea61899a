"""Pictures of what `map_quality_measure` measured: scores of all maps, curves, sanity, and the best and worst cases."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..data.dataset import Split
from ..inference import to_float
from ..viz.figures import draw_overlay, outline
from ..viz.overlay import places_by_maximum
from ..viz.style import FONT, LINE_COLORS, add_legend, new_figure, style_axes
from ..viz.words import model_in_words
from .map_quality_measure import CONTROL, LEVEL, METHOD, Row, cases

_KINDS = {
    LEVEL: ("attention", LINE_COLORS[0]),
    METHOD: ("other methods", LINE_COLORS[3]),
    CONTROL: ("no network", "0.4"),
}
_PANELS = {
    "average_precision": "finds the object:\naverage precision",
    "insertion": "the model goes by it:\ninsertion area",
}
_LINES: dict[str, Any] = {LEVEL: "-", METHOD: "--", CONTROL: ":"}


def scores_figure(rows: Sequence[Row]) -> Figure:
    """Draw a panel for each of two measures, a line a kind of map, a point a model, with 95 % intervals over images.

    `table` has the other measures, and the models by name.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    names.sort(key=lambda name: [LEVEL, METHOD, CONTROL].index(next(r.kind for r in rows if r.name == name)))
    models = list(dict.fromkeys(row.model for row in rows))
    figure = new_figure(0.36 * len(names) + 1.6)
    for panel, (measure, title) in zip(figure.subplots(1, len(_PANELS), sharey=True), _PANELS.items(), strict=True):
        style_axes(panel, title=title, grid="x")
        for row in rows:
            if (mean := row.interval(measure)).n:
                y = names.index(row.name) + 0.6 * ((models.index(row.model) + 0.5) / len(models) - 0.5)
                color = _KINDS[row.kind][1]
                panel.plot([mean.low, mean.high], [y, y], color=color, linewidth=1.2, alpha=0.6)
                panel.plot(mean.mean, y, "o", color=color, markersize=5, label=row.name)
        panel.set_yticks(range(len(names)), names, fontsize=FONT)
        panel.set_ylim(len(names) - 0.5, -0.5)
        for place in range(1, len(names)):
            panel.axhline(place - 0.5, color="0.85", linewidth=0.8, zorder=0)
    kinds = [_KINDS[kind] for kind in _KINDS if any(row.kind == kind for row in rows)]
    add_legend(figure, [Line2D([], [], marker="o", color=color, label=words) for words, color in kinds], columns=3)
    return figure


def selection(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one model that figures show: all levels, and the best of the other methods and the controls.

    The best has the highest mean average precision.
    """

    def precision(row: Row) -> float:
        return row.interval("average_precision").mean

    best = [
        max((row for row in rows if row.kind == kind and not math.isnan(precision(row))), key=precision, default=None)
        for kind in (METHOD, CONTROL)
    ]
    return [*(row for row in rows if row.kind == LEVEL), *(row for row in best if row is not None)]


def curves_figure(rows: Sequence[Row]) -> Figure:
    """Draw mean deletion (left) and insertion curves (right) of the `selection` of one model's rows."""
    curves = [(row, row.curves) for row in selection(rows) if row.curves is not None]
    figure = new_figure(5.2)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, number, title in zip(panels, (1, 2), ("deletion: low is good", "insertion: high is good"), strict=True):
        for index, (row, values) in enumerate(curves):
            panel.plot(values[0] * 100, values[number], _LINES[row.kind], color=LINE_COLORS[index], linewidth=2.5)
        style_axes(panel, x="pixels changed, strongest first (%)", title=title)
        panel.set(xlim=(0, 100), ylim=(0, 1))
    panels[0].set_ylabel("probability of the answer", fontsize=FONT)
    handles = [
        Line2D([], [], linestyle=_LINES[row.kind], color=LINE_COLORS[index], linewidth=2.5, label=row.name)
        for index, (row, _) in enumerate(curves)
    ]
    add_legend(figure, handles, columns=3)
    return figure


def sanity_figure(rows: Sequence[Row]) -> Figure:
    """Draw how alike maps stay while layers become random, from the top down: the `selection` of one model's rows."""
    rows = [row for row in selection(rows) if row.sanity]
    stops = list(rows[0].sanity) if rows else []
    figure = new_figure(5.0)
    panel = figure.subplots()
    style_axes(panel, x="made random, from the top down to", y="rank agreement with\nthe trained model's map")
    for index, row in enumerate(rows):
        means = [1.0, *(row.sanity[stop].nanmean().item() for stop in stops)]
        line = ("o-" if row.kind == LEVEL else "s--", LINE_COLORS[index])
        panel.plot(range(len(means)), means, line[0], color=line[1], linewidth=2.5, label=row.name)
    panel.set_xticks(range(len(stops) + 1), ["nothing", *(stop for stop in stops)], fontsize=FONT)
    panel.axhline(0, color="0.5", linewidth=1)
    panel.set_ylim(min(-0.5, *panel.get_ylim()), 1.05)
    add_legend(figure, panel.get_legend_handles_labels()[0], columns=3)
    return figure


def cases_figure(rows: Sequence[Row], images: Split) -> Figure:
    """Draw for the `selection` of one model's rows the best, the median and the worst image under its map.

    Every map has its own scale, from 0 to its highest value: what counts here is where it lies. The outline is the
    object's. `images` are those that were measured.
    """
    rows = selection(rows)
    side = min(2.15, 9.6 / len(rows))  # inches
    figure = new_figure(3 * (side + 0.3) + 1.0, max(6.0, side * len(rows) + 0.4))
    axes = figure.subplots(3, len(rows), squeeze=False)
    for row, column in zip(rows, axes.T, strict=True):
        for panel, i in zip(column, cases(row).values(), strict=True):
            pixels = (to_float(images.images[i]).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            maps = row.maps[i]
            draw_overlay(panel, pixels, places_by_maximum(maps) if maps.any() else np.zeros(tuple(maps.shape)))
            if images.masks is not None:
                outline(panel, images.masks[i].numpy())
            height, width, _ = pixels.shape
            panel.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            panel.set_xlabel(f"image {i}: {row.values['average_precision'][i]:.2f}", fontsize=FONT)
        column[0].set_title(textwrap.fill(row.name, round(8.5 * side)), fontsize=FONT)
    for panel, case in zip(axes[:, 0], ("best", "median", "worst"), strict=True):
        panel.set_ylabel(case, fontsize=FONT)
    figure.suptitle(f"{model_in_words(rows[0].model)}: best, median, worst by average precision", fontsize=FONT)
    return figure
