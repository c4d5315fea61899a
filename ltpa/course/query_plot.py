"""Pictures of steering: how often attention follows the query, how much of it moves, and maps under each question."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..inference import attend
from ..metrics.statistics import Interval, bootstrap_interval
from ..models.networks import ImageClassifier
from ..viz.figures import attention_figure
from .query import WORTHWHILE, Steering, follows_interval
from .query_scenes import Questions

_FONT, _TITLE_FONT = 12, 13


def steering_figure(measured: Mapping[str, Steering]) -> Figure:
    """Draws how often attention follows the query (left) and the swing of its share (right), with 95 % intervals.

    Args:
        measured: {variant: what `steer` found}; a row a variant, a color a level.

    Raises:
        ValueError: nothing was measured.
    """
    if not measured:
        raise ValueError("there is nothing to draw: measure a model first")
    figure = Figure(figsize=(12, 1.8 + 0.55 * len(measured)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    levels = list(dict.fromkeys(level for of in measured.values() for level in of))
    for row, of in enumerate(measured.values()):
        for level, values in of.items():
            number = levels.index(level)
            at = row + 0.22 * (number - (len(levels) - 1) / 2)
            for axes, interval in (
                (left, follows_interval(values)),
                (right, bootstrap_interval(values["swing"].double().numpy())),
            ):
                _whisker(axes, at, interval, f"C{number}")
    left.axvline(50, color="black", linewidth=1)
    left.axvline(100 * WORTHWHILE, color="black", linewidth=1, linestyle=":")
    right.axvline(0, color="black", linewidth=1)
    left.set_yticks(range(len(measured)), list(measured), fontsize=_FONT)
    left.set_ylim(len(measured) - 0.5, -0.5)
    left.set_xlim(min(35, left.get_xlim()[0]), max(65, left.get_xlim()[1]))
    left.set_xlabel("attention follows the query (% of the cases)", fontsize=_TITLE_FONT)
    right.set_xlabel("swing: share moved to what is asked for (points)", fontsize=_TITLE_FONT)
    for axes in (left, right):
        axes.tick_params(labelsize=_FONT)
        axes.grid(alpha=0.3)
    marks = [Line2D([], [], marker="o", color=f"C{i}", linewidth=3) for i in range(len(levels))]
    marks += [Line2D([], [], color="black", linewidth=1, linestyle=style) for style in ("-", ":")]
    texts = [*levels, "ignores the query", "steered from here on"]
    figure.legend(marks, texts, loc="outside upper center", ncols=len(texts), fontsize=_FONT, frameon=False)
    return figure


def asked_figure(
    model: ImageClassifier, questions: Questions, chosen: Tensor, level: str, classes: tuple[str, ...]
) -> Figure:
    """Draws the maps of some scenes at one level: with their own g, and asked for either object and an absent class.

    Args:
        model: what is asked.
        questions: scenes and queries.
        chosen: numbers of the scenes, (K,).
        level: name of the level.
        classes: class names.

    Raises:
        KeyError: the model has no such level.
    """
    scenes = questions.scenes[chosen]
    maps = {"own g": attend(model, scenes.images).maps[level]}
    for asked, query in zip(("1st", "2nd", "absent"), questions.queries, strict=True):
        maps[f"asked: {asked}"] = attend(model, scenes.images, query=query[chosen]).maps[level]
    titles = [f"1st {classes[a]} | 2nd {classes[b]}" for a, b in scenes.labels.tolist()]
    figure = attention_figure(scenes.images, maps, titles=titles, masks=scenes.masks.any(1))
    figure.suptitle(level, fontsize=_TITLE_FONT)
    return figure


def _whisker(axes: Axes, at: float, interval: Interval, color: str) -> None:
    axes.plot([100 * interval.low, 100 * interval.high], [at, at], color=color, linewidth=3)
    axes.plot(100 * interval.mean, at, "o", color=color, markersize=6)
