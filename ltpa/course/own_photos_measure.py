"""Whether the maps of a network for your own photos say anything: measured without masks, against rivals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..attribution import explain
from ..errors import counted
from ..inference import attend
from ..metrics.faithfulness import deletion_insertion
from ..metrics.overlap import controls
from ..metrics.statistics import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Effect,
    Interval,
    bootstrap_interval,
    t_interval,
    widest,
)
from ..models.classifier import ImageClassifier
from ..progress import Progress
from ..viz.style import FONT, LINE_COLORS, add_legend, new_figure, style_axes
from .map_quality_maps import feature_norms

ATTENTION, PERMUTED, NORM, GRADCAM, CENTER = "attention", "permuted", "norm", "Grad-CAM", "center"
CLAIM = "The map orders the pixels of a photo by how much the answer depends on them"
_WORDS = {
    PERMUTED: "its own weights in random order",
    CENTER: "a spot in the center",
    NORM: "the norm of the same features",
    GRADCAM: "Grad-CAM of the same layer",
}
_COLORS = dict(zip((ATTENTION, PERMUTED, NORM, GRADCAM, CENTER), (*LINE_COLORS[:4], "0.4"), strict=True))
_CURVES: dict[str, Any] = {"fill": "blur", "fractions": [k / 8 for k in range(9)]}  # deletion and insertion
_LEAST = 10  # photos; fewer decide nothing
_DIGITS = 2  # decimals of a difference in the table


@dataclass(frozen=True)
class Score:
    """What deletion and insertion say about one kind of map, photo by photo."""

    level: str  # "" for the spot in the center, which belongs to none
    kind: str
    insertion: Tensor  # area under the curve (N,), in [0, 1]
    deletion: Tensor

    @property
    def difference(self) -> Tensor:
        """Insertion minus deletion (N,), in [-1, 1]: about 0 for an order of the pixels that says nothing."""
        return self.insertion - self.deletion


def measure(model: ImageClassifier, photos: Tensor, seed: int = 0, progress: bool = True) -> list[Score]:
    """Measure attention, its rivals at every level, and the spot in the center on photos (N, 3, H, W)."""
    output = attend(model, photos, "fp32")
    target = output.logits.argmax(1)
    norms = feature_norms(model, photos)
    center = controls(len(photos), (photos.shape[2], photos.shape[3]))["center"]
    scores: list[Score] = []
    with Progress(1 + 4 * len(output.maps), show=progress) as bar:

        def add(level: str, kind: str, maps: Tensor) -> None:
            curves = deletion_insertion(model, photos, maps, target, **_CURVES, seed=seed)
            scores.append(Score(level, kind, curves.insertion_area, curves.deletion_area))
            bar.update(len(scores), lambda: (level, kind))

        add("", CENTER, center)
        for level, weights in output.maps.items():
            add(level, ATTENTION, weights)
            add(level, PERMUTED, permuted(weights, seed))
            add(level, NORM, norms[level])
            add(level, GRADCAM, explain(model, photos, "gradcam", target, level))
    return scores


def permuted(maps: Tensor, seed: int) -> Tensor:
    """Return maps (N, h, w) whose weights are in random order, another one for each image."""
    order = torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed)).flatten(1).argsort(1)
    return maps.flatten(1).gather(1, order).view(maps.shape)


def image_interval(values: Tensor, comparisons: int = 1) -> Interval:
    """Return the bootstrap interval of the mean over photos (N,); `comparisons` of them hold together with 95 %."""
    return bootstrap_interval(values.double().numpy(), comparisons, resamples=2_000)


def rival_effects(scores: Sequence[Score], model: str, data: str) -> list[Effect]:
    """Return attention minus each rival, by level; all intervals together hold with 95 % (Bonferroni).

    An interval is the wider of Student's and the bootstrap's, which is too narrow for few photos.
    """
    center = next(score for score in scores if score.kind == CENTER)
    pairs = [
        (attention, rival)
        for attention in scores
        if attention.kind == ATTENTION
        for rival in (center, *(s for s in scores if s.level == attention.level and s.kind != ATTENTION))
    ]
    differences = []
    for attention, rival in pairs:
        values = (attention.difference - rival.difference).double()
        interval = widest([image_interval(values, len(pairs)), t_interval(values.numpy(), len(pairs))])
        undecided = len(values) < _LEAST or not round(interval.mean, _DIGITS)  # too few, or nothing that is shown
        differences.append(
            Effect(
                CLAIM, f"{model}, {attention.level}", rival.kind, "insertion minus deletion", data, "one run", 1,
                interval, verdict=UNDECIDED if undecided else "",
            )
        )  # fmt: skip
    return differences


def effects_table(effects: Sequence[Effect]) -> pd.DataFrame:
    """Return the differences for reading, a row for each level and rival."""
    rows = [
        {
            "level": level_of(effect),
            "attention against": _WORDS[effect.baseline],
            "difference [95 %]": effect.interval.text(_DIGITS, sign=True),
            "attention is better": effect.verdict,
        }
        for effect in effects
    ]
    return pd.DataFrame(rows).set_index("level")


def level_of(effect: Effect) -> str:
    """Return the level that an effect is about."""
    return effect.model.rpartition(", ")[2]


def describe(effects: Sequence[Effect]) -> str:
    """Return which levels' maps say anything, beside which rivals, and how much so few photos can show."""
    by_level: dict[str, list[Effect]] = {}
    for effect in effects:
        by_level.setdefault(level_of(effect), []).append(effect)
    lines, telling, beyond = [], [], []
    for level, of_level in by_level.items():
        groups = {
            word: [_WORDS[e.baseline] for e in of_level if e.verdict == verdict]
            for word, verdict in (("better than", SUPPORTED), ("worse than", CONTRADICTED), ("undecided:", UNDECIDED))
        }
        lines.append(f"  {level}: " + "; ".join(f"{word} {_listed(names)}" for word, names in groups.items() if names))
        supported = {e.baseline for e in of_level if e.verdict == SUPPORTED}
        telling += [level] * ({PERMUTED, CENTER} <= supported)
        beyond += [level] * (NORM in supported)
    count = effects[0].interval.n
    first = f"The attention maps, measured on {counted(count, 'test photo')}:"
    return "\n".join([first, *lines, _conclusion(telling, beyond), _limits(effects, count)])


def _conclusion(telling: Sequence[str], beyond: Sequence[str]) -> str:
    if not telling:
        return (
            "No level's map was shown to say anything about the answer: none is better than both a random order and a "
            "spot in the center. Do not use these maps as explanations."
        )
    text = f"{_listed(telling)}: this map says which parts of a photo the answer depends on."
    if not set(telling) & set(beyond):
        return text + " It was not shown to say more than the plain norm of the same features, without any attention."
    return text + f" At {_listed(beyond)} it says more than the plain norm of the same features."


def _limits(effects: Sequence[Effect], count: int) -> str:
    if count < _LEAST:
        return f"{counted(count, 'photo')} decide nothing here: at least {_LEAST} test photos are needed."
    reach = float(np.median([(e.interval.high - e.interval.low) / 2 for e in effects]))
    return (
        f"With {count} photos, differences under about {reach:.2f} stay undecided; that does not mean that there is "
        "none. And this is one network, trained once."
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def scores_figure(scores: Sequence[Score]) -> Figure:
    """Draw insertion minus deletion of every map, a row for each level, with 95 % intervals over the photos."""
    levels = list(dict.fromkeys(score.level for score in scores if score.level))
    center = image_interval(next(score for score in scores if score.kind == CENTER).difference)
    figure = new_figure(1.6 + 1.3 * len(levels))
    panel = figure.subplots()
    style_axes(panel, x="insertion minus deletion (higher: the answer depends on these parts)", grid="x")
    panel.axvspan(center.low, center.high, color=_COLORS[CENTER], alpha=0.2)
    panel.axvline(center.mean, color=_COLORS[CENTER], linestyle=":", linewidth=2)
    kinds = [ATTENTION, PERMUTED, NORM, GRADCAM]
    for score in scores:
        if score.kind in kinds:
            interval = image_interval(score.difference)
            y = levels.index(score.level) + 0.18 * (kinds.index(score.kind) - 1.5)
            panel.plot([interval.low, interval.high], [y, y], color=_COLORS[score.kind], linewidth=2.5)
            panel.plot(interval.mean, y, "o", color=_COLORS[score.kind], markersize=7)
    panel.set_yticks(range(len(levels)), levels, fontsize=FONT)
    panel.set_ylim(len(levels) - 0.5, -0.5)
    handles = [Line2D([], [], marker="o", color=_COLORS[kind], linewidth=2.5, label=kind) for kind in kinds]
    center_line = Line2D([], [], color=_COLORS[CENTER], linestyle=":", linewidth=2, label="spot in the center")
    add_legend(figure, [*handles, center_line], columns=5)
    return figure
