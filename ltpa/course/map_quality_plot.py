"""Pictures of what was measured: scores of all maps, curves, sanity, and the best and worst cases."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..data.dataset import Split
from ..inference import attend, to_float
from ..metrics.crossed import two_level_interval
from ..models.classifier import ImageClassifier
from ..viz.figures import draw_overlay, outline
from ..viz.overlay import places_by_maximum
from ..viz.style import FONT, LINE_COLORS, add_legend, new_figure, style_axes
from ..viz.words import model_in_words
from .map_quality_effects import Values
from .map_quality_maps import CONTROL, FEATURES, LEVEL, METHOD, ORACLE, compute_maps, methods_of, without_network
from .map_quality_measure import How, Measured

_KINDS = {
    LEVEL: ("attention", LINE_COLORS[0], "-"),
    FEATURES: ("norm of the same features", LINE_COLORS[1], "-."),
    METHOD: ("other methods", LINE_COLORS[3], "--"),
    CONTROL: ("no network", "0.4", ":"),
    ORACLE: ("the object itself", "black", ":"),
}
_PANELS = {
    "average_precision": "finds the object:\naverage precision",
    "jaccard": "segments it:\nJaccard index",
}


def scores_figure(values: Values) -> Figure:
    """Draw a panel for each of two measures, a line a family at the best layer, a point a model, with 95 % intervals.

    The best layer of each network was chosen on the held-out images. `summary` has the numbers by model.
    """
    kinds = {family: kind for family, kind in values.kinds.items() if kind != ORACLE}
    families = list(kinds)
    figure = new_figure(0.36 * len(families) + 1.6)
    for panel, (measure, title) in zip(figure.subplots(1, len(_PANELS), sharey=True), _PANELS.items(), strict=True):
        style_axes(panel, title=title, grid="x")
        for number, model in enumerate(values.models):
            shift = 0.6 * ((number + 0.5) / len(values.models) - 0.5)
            for place, family in enumerate(families):
                if (table := values.table(model, family, measure)) is not None:
                    mean, color = two_level_interval(table), _KINDS[kinds[family]][1]
                    panel.plot([mean.low, mean.high], [place + shift] * 2, color=color, linewidth=1.2, alpha=0.6)
                    panel.plot(mean.mean, place + shift, "o", color=color, markersize=5, label=family)
        panel.set_yticks(range(len(families)), families, fontsize=FONT)
        panel.set_ylim(len(families) - 0.5, -0.5)
        panel.set_xlim(0, 1)
        for place in range(1, len(families)):
            panel.axhline(place - 0.5, color="0.85", linewidth=0.8, zorder=0)
    shown = [_KINDS[kind] for kind in _KINDS if kind in kinds.values()]
    add_legend(figure, [Line2D([], [], marker="o", color=color, label=words) for words, color, _ in shown], columns=4)
    return figure


def selection(values: Values, model: str) -> list[str]:
    """Return the maps of a model that figures show.

    These are the attention levels (of a network without attention, the best feature norm), and of the other methods and
    of the controls the one with the highest mean average precision.
    """
    kinds = [LEVEL, FEATURES] if values.has_attention(model) else [FEATURES]
    best = [_best(values, model, kind) for kind in (*kinds[1:], METHOD, CONTROL)]
    shown = values.maps_of(model, LEVEL) if values.has_attention(model) else [_best(values, model, FEATURES)]
    return [name for name in dict.fromkeys([*shown, *best]) if name]


def _best(values: Values, model: str, kind: str) -> str:
    names = values.maps_of(model, kind)
    return max(names, key=lambda name: np.nanmean(values.of_map(model, name, "average_precision")), default="")


def curves_figure(measured: Measured, model: str) -> Figure:
    """Draw mean deletion (left) and insertion curves (right) of a model's `selection`, and of the object itself."""
    figure = new_figure(5.2)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"deletion": "deletion: low is good", "insertion": "insertion: high is good"}
    for panel, (curve, title) in zip(panels, titles.items(), strict=True):
        lines = _lines(measured, model, curve, oracle=True)
        for name, line, look in lines:
            percent = 100 * np.array([float(x) for x in line.index])
            panel.plot(percent, line.to_numpy(), label=name, linewidth=2.5, **look)
        style_axes(panel, x="pixels changed, strongest first (%)", title=title)
        panel.set_xscale("symlog", linthresh=1, linscale=0.5)
        ticks = [0, 1, 2, 4, 8, 16, 32, 64, 100]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.set(xlim=(0, 100), ylim=(0, 1))
    panels[0].set_ylabel("probability of the answer", fontsize=FONT)
    add_legend(figure, panels[0].get_legend_handles_labels()[0], columns=3)
    return figure


def sanity_figure(measured: Measured, model: str) -> Figure:
    """Draw how alike maps stay while layers become random, from the top down: the `selection` of a model."""
    figure = new_figure(5.0)
    panel = figure.subplots()
    style_axes(panel, x="made random, from the top down to", y="rank agreement with the\ntrained model's map, absolute")
    stops: list[str] = []
    for name, line, look in _lines(measured, model, "sanity"):
        stops = list(line.index)
        panel.plot(range(len(stops) + 1), [1.0, *line], "o", label=name, linewidth=2.5, **look)
    panel.set_xticks(range(len(stops) + 1), ["nothing", *stops], fontsize=FONT)
    panel.set_ylim(0, 1.05)
    add_legend(figure, panel.get_legend_handles_labels()[0], columns=3)
    return figure


def _lines(
    measured: Measured, model: str, curve: str, oracle: bool = False
) -> list[tuple[str, pd.Series, dict[str, Any]]]:
    """Return name, values by x (means over the seeds) and look of each line."""
    values = Values(measured)
    rows = measured.curves[(measured.curves["model"] == model) & (measured.curves["curve"] == curve)]
    names = [*selection(values, model), *(values.maps_of(model, ORACLE) if oracle else [])]
    lines = []
    for number, name in enumerate(name for name in names if name in set(rows["map"])):
        of_map = rows[rows["map"] == name]
        line = of_map.groupby("x", sort=False)["value"].mean()
        kind = of_map["kind"].iloc[0]
        color = "black" if kind == ORACLE else LINE_COLORS[number % len(LINE_COLORS)]
        lines.append((name, line, {"linestyle": _KINDS[kind][2], "color": color}))
    return lines


def cases(scores: Sequence[float]) -> dict[str, int]:
    """Return the best, the median and the worst image: {"best": index, "median": ..., "worst": ...}."""
    known = [(score, -i) for i, score in enumerate(scores) if score == score]
    if not known:
        raise ValueError("no image has a score")
    order = [-i for _, i in sorted(known, reverse=True)]
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}


def cases_figure(values: Values, name: str, model: ImageClassifier, images: Split, how: How) -> Figure:
    """Draw for the `selection` of a model's maps, first seed, the best, the median and the worst image under each map.

    Every map has its own scale, from 0 to its highest value: what counts here is where it lies. The outline is the
    object's. `images` are those that were measured, `model` is the network of the first seed.
    """
    names = selection(values, name)
    side = min(2.15, 9.6 / len(names))  # inches
    figure = new_figure(3 * (side + 0.3) + 1.0, max(6.0, side * len(names) + 0.4))
    axes = figure.subplots(3, len(names), squeeze=False)
    for shown, column in zip(names, axes.T, strict=True):
        precision = values.of_map(name, shown, "average_precision")[0]
        chosen = cases(precision.tolist())
        maps = _maps(model, shown, images, list(chosen.values()), how)
        for panel, i, one in zip(column, chosen.values(), maps, strict=True):
            pixels = (to_float(images.images[i]).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            draw_overlay(panel, pixels, places_by_maximum(one) if one.any() else np.zeros(tuple(one.shape)))
            if images.masks is not None:
                outline(panel, images.masks[i].numpy())
            height, width, _ = pixels.shape
            panel.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            panel.set_xlabel(f"image {i}: {precision[i]:.2f}", fontsize=FONT)
        column[0].set_title(textwrap.fill(shown, round(8.5 * side)), fontsize=FONT)
    for panel, case in zip(axes[:, 0], ("best", "median", "worst"), strict=True):
        panel.set_ylabel(case, fontsize=FONT)
    figure.suptitle(f"{model_in_words(name)}: best, median, worst by average precision", fontsize=FONT)
    return figure


def _maps(model: ImageClassifier, shown: str, images: Split, chosen: list[int], how: How) -> Tensor:
    """Return one kind of map (k, H, W) of the chosen images."""
    assert images.masks is not None
    plan = methods_of(model, images.images[:1], how.methods)
    if shown not in plan:
        return without_network(images.images, images.masks, how.seed)[shown][chosen]
    picked = images.images[chosen]
    target = attend(model, picked, "fp32").logits.argmax(1)
    return compute_maps({shown: plan[shown]}, model, picked, target)[shown][0]
