"""Notebook 05: does a query steer the attention?

The paper's query-driven attention scores the local features of one image with the global feature of another. Whether
the map then goes to what the query shows is measured on scenes of two objects with exact masks. Each scene gets a query
for either object, so that an object that attracts attention under every query counts for nothing.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import Field
from torch import Tensor

from ..config import EachOnce, FilePath, Seed, Variant, settings
from ..data.dataset import Split
from ..data.samples import photographs
from ..inference import attend
from ..maps import rank_agreement
from ..metrics.overlap import localization_tensors
from ..metrics.statistics import (
    CONTRADICTED,
    LEAST_SEEDS,
    SUPPORTED,
    TOO_FEW_SEEDS,
    UNDECIDED,
    Effect,
    Interval,
    bootstrap_interval,
    t_interval,
    verdict,
    widest,
)
from ..metrics.statistics import write_effects as write_effects
from ..models.networks import ImageClassifier
from ..training.run import Run, load_run
from ..viz.figures import attention_figure
from ..viz.style import FONT, LINE_COLORS, add_legend, new_figure, style_axes
from ..viz.words import model_in_words
from . import setup
from .grid import AblationConfig
from .grid import collect as collect
from .grid import train_missing as train_missing
from .query_scenes import KINDS, Queries, side_by_side
from .query_scenes import draw_queries as draw_queries
from .query_training import learn_to_ask as learn_to_ask
from .setup import report as report

CHANCE, MARGIN = 0.5, 0.1  # attention that follows the query in less than three of five cases is not steered
CLAIM = f"Attention follows the query in more than {100 * (CHANCE + MARGIN):.0f} % of the cases"

Levels = dict[str, dict[str, Tensor]]  # level -> measure -> (N,)
Networks = Mapping[str, Mapping[int, ImageClassifier]]  # name -> seed -> model


@settings
class QueryConfig(setup.QuickRuns):
    """Parameters of the notebook on queries."""

    models: Annotated[Sequence[Variant], EachOnce] = Field(
        tuple(f"vgg-att3-concat-{kind}{normalizer}" for kind in ("dp", "add", "pc") for normalizer in ("", " sigmoid")),
        description="variants as in notebook 03; each is trained on single objects, or found under `runs/`",
    )
    run: FilePath = Field("auto", description="a run on real images; 'auto' takes pictures of scikit-image instead")
    data_dir: FilePath = Field("auto", description="where that run's data lie; 'auto' is where they were in training")
    scenes: Annotated[int, Field(ge=2, le=2000)] = Field(500, description="scenes of two objects to measure on")
    steps: Annotated[int, Field(ge=0, le=10**6)] = Field(
        300, description="optimizer steps of the model that is trained with queries; 0 leaves that out"
    )
    examples: Annotated[int, Field(ge=1, le=64)] = Field(3, description="pictures a figure")
    seeds: Annotated[Sequence[Seed], EachOnce] = Field((0,), description="each of the models is trained once with each")
    seed: Seed = Field(0, description="of the queries")

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Refuse a folder of images without the run that they belong to."""
        if values.get("run") == "auto" and values.get("data_dir", "auto") != "auto":
            return [f"data_dir={values['data_dir']!r} holds the images of a run; name the run, too"]
        return []

    def grid(self) -> AblationConfig:
        """Return the runs on single objects as the grid that `train_missing` trains."""
        shared = self.defaults().keys() & AblationConfig.defaults().keys() - {"data_dir"}
        values = {name: getattr(self, name) for name in shared}
        return AblationConfig(baseline=self.models[0], **values)


parameters = partial(setup.parameters, kind=QueryConfig)


def real_queries(config: QueryConfig, otherwise: Run) -> tuple[Run, Queries, tuple[str, ...]]:
    """Return a run, pairs of real pictures with queries, and the names of the classes.

    The run that `config.run` names gets pairs of its even test images, with its odd ones as queries. With "auto" the
    run `otherwise` gets pairs of four photographs, each with itself as the query.
    """
    if config.run == "auto":
        run, (even, classes) = otherwise, photographs()
        odd, count = even, config.examples
    else:
        run = load_run(config.run, config.device)
        data = setup.images_of_run(run.config, run.classes, config.data_dir)
        even, odd, classes, count = data.test[::2], data.test[1::2], data.classes, config.scenes
    return run, draw_queries(side_by_side(even, count, config.seed), odd, config.seed), classes


# Measures


def steer(model: ImageClassifier, queries: Queries, precision: str = "auto") -> Levels:
    """Measure how far the queries steer a model's maps: level -> measure -> (N,), the means over a scene's objects.

    `queried`: share of the attention on the object that the query shows; `other`: share on the other object;
    `absent`: share on an object when the query shows a class that is not in the scene;
    `swing`: `queried` - `other`, which is also how much an object's share grows when the query changes to it;
    `follows`: how often the object with the highest score is that of the query (a tie counts 1/2). Only the order of
    positions matters: exactly 1/2 where the map ignores the query, and for all `pc`;
    `agreement`: Spearman's correlation of the scores under both queries, 1 = the same order of positions.

    Softmax with `pc` warns that queries cannot steer it.
    """
    images, masks = queries.scenes.images, queries.masks
    outputs = [attend(model, images, precision, query=query) for query in queries.images]
    levels: Levels = {}
    for level in outputs[0].maps:
        of_query = [[localization_tensors(o.maps[level], m)["share"] for m in masks.unbind(1)] for o in outputs]
        shares = torch.stack([torch.stack(of_objects, 1) for of_objects in of_query])  # (query, scene, object)
        first, second = (_first_leads(output.scores[level], masks) for output in outputs[:2])
        queried = (shares[0, :, 0] + shares[1, :, 1]) / 2
        other = (shares[0, :, 1] + shares[1, :, 0]) / 2
        # Ranks of numbers from zero up, as of maps.
        ranked = (o.scores[level] - o.scores[level].amin((1, 2), keepdim=True) for o in outputs[:2])
        levels[level] = {
            "queried": queried,
            "other": other,
            "absent": shares[2].mean(1),
            "swing": queried - other,
            "follows": (first + 1 - second) / 2,
            "agreement": rank_agreement(*ranked),
        }
    return levels


def _first_leads(scores: Tensor, masks: Tensor) -> Tensor:
    """Return whether the first of the objects (N, 2, H, W) has the highest score (N, h, w): 1, 0, or 1/2 for a tie.

    Scores are not blended with their neighbors, so that only their order counts.
    """
    scaled = torch.nn.functional.interpolate(scores[:, None], masks.shape[2:], mode="nearest")
    highest = scaled.masked_fill(~masks, -torch.inf).amax((2, 3))  # (N, 2)
    return ((highest[:, 0] - highest[:, 1]).sign() + 1) / 2


def answers(model: ImageClassifier, queries: Queries, precision: str = "auto") -> dict[str, float]:
    """Measure how often a model names the class of the query, that of the other object, and that of an absent one.

    If it names the class of a query that is not in the scene, the answer comes from the query itself, by a leak through
    the map, and right answers prove nothing about attention.
    """
    first, second, absent = (
        attend(model, queries.scenes.images, precision, query=query).logits.argmax(1) for query in queries.images
    )
    one, two, missing = queries.labels
    return {
        "queried": torch.cat([first == one, second == two]).double().mean().item(),
        "other": torch.cat([first == two, second == one]).double().mean().item(),
        "absent": (absent == missing).double().mean().item(),
    }


def geometry(model: ImageClassifier, split: Split, precision: str = "auto") -> dict[str, float]:
    """Measure what the global feature knows of the classes, on single images with labels (N,), several of each class.

    `cosine`: mean cosine similarity of the class means of `g`, of different classes: near 1, all point the same way;
    `nearest_mean`: how often `g` is nearest to the mean of its own class, means of even images, tested on odd ones;
    `classifier`: accuracy of the model itself on the same images.
    """
    output = attend(model, split.images, precision)
    if output.global_feature is None:
        raise ValueError("this model computes no global feature: no map of it depends on one")
    g, labels = output.global_feature, split.labels
    even = torch.arange(len(g)) % 2 == 0
    classes = labels[even].unique()
    means = torch.stack([g[even & (labels == c)].mean(0) for c in classes])
    cosines = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=2)
    nearest = classes[torch.cdist(g[~even], means).argmin(1)]
    return {
        "cosine": cosines[~torch.eye(len(means), dtype=torch.bool)].mean().item(),
        "nearest_mean": (nearest == labels[~even]).double().mean().item(),
        "classifier": (output.logits.argmax(1) == labels)[~even].double().mean().item(),
    }


# Several models


@dataclass(frozen=True)
class Steering:
    """What `steer` measured of several models, by name and seed; `comparisons` intervals hold together with 95 %."""

    models: Mapping[str, Mapping[int, Levels]]
    comparisons: int

    @classmethod
    def measure(cls, models: Networks, queries: Queries) -> "Steering":
        """Measure models; the intervals of all their levels hold together."""
        measured = {name: {s: steer(m, queries) for s, m in seeds.items()} for name, seeds in models.items()}
        return cls(measured, sum(len(next(iter(seeds.values()))) for seeds in measured.values()))

    def with_model(self, name: str, seeds: Mapping[int, ImageClassifier], queries: Queries) -> "Steering":
        """Return a copy with one more model, whose intervals are as wide as those of the others."""
        return replace(self, models={**self.models, name: {s: steer(m, queries) for s, m in seeds.items()}})

    def select(self, *names: str) -> "Steering":
        """Return a copy with some of the models, whose intervals stay what they are."""
        return replace(self, models={name: self.models[name] for name in names})

    def values(self, name: str, level: str, measure: str) -> Tensor:
        """Return a measure of every seed and scene (S, N)."""
        return torch.stack([levels[level][measure] for levels in self.models[name].values()]).double()

    @property
    def few_seeds(self) -> bool:
        """Whether there are too few seeds for intervals over them: then intervals are over scenes alone."""
        return any(len(seeds) < LEAST_SEEDS for seeds in self.models.values())

    @cached_property
    def intervals(self) -> dict[tuple[str, str], dict[str, Interval]]:
        """(model, level) -> the intervals of "swing" and "follows", the farther ends of those over seeds and scenes."""
        return {
            (name, level): {
                measure: self._interval(self.values(name, level, measure), bounds)
                for measure, bounds in (("swing", (-1, 1)), ("follows", (0, 1)))
            }
            for name, seeds in self.models.items()
            for level in next(iter(seeds.values()))
        }

    def _interval(self, values: Tensor, bounds: tuple[float, float]) -> Interval:
        over_scenes = bootstrap_interval(values.mean(0).numpy(), self.comparisons)
        over_seeds = t_interval(values.mean(1).numpy(), self.comparisons, bounds=bounds)
        return widest([over_scenes, over_seeds]) if len(values) >= LEAST_SEEDS else over_scenes

    def table(self) -> pd.DataFrame:
        """Return a table with one row for each level: shares of the attention in %, swing in points, follows in %."""
        rows = {}
        for (name, level), intervals in self.intervals.items():
            means = {
                key: self.values(name, level, key).nanmean() for key in ("queried", "other", "absent", "agreement")
            }
            rows[name, level] = {
                **{f"on {key}, %": f"{100 * means[key]:.1f}" for key in ("queried", "other", "absent")},
                "swing, points [95 %]": intervals["swing"].text(1, 100, sign=True),
                "follows, % [95 %]": intervals["follows"].text(1, 100),
                "same order": f"{means['agreement']:.3f}",
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["model", "level"])

    def figure(self) -> Figure:
        """Draw how often attention follows the query, and the swing of its share, with intervals."""
        return steering_figure(self.intervals, CHANCE + MARGIN)

    def objects_table(self, masks: Tensor) -> pd.DataFrame:
        """Return how much of the attention lies on both objects, and how much of it the query moves, for each model.

        A model is read at the level that finds the objects best; masks are those of the scenes, (N, 2, H, W).
        """
        rows = {}
        for name, seeds in self.models.items():
            means = {
                level: {key: self.values(name, level, key).mean().item() for key in ("queried", "other", "swing")}
                for level in next(iter(seeds.values()))
            }
            both = {level: of["queried"] + of["other"] for level, of in means.items()}
            level = max(both, key=both.__getitem__)
            rows[name] = {
                "level": level,
                "their area, %": f"{100 * masks.any(1).double().mean():.0f}",
                "attention on both objects, %": f"{100 * both[level]:.0f}",
                "swing, points": Interval(means[level]["swing"]).text(1, 100, sign=True),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")

    def effects(self, budget: str = "") -> list[Effect]:
        """Return for each level how much more often attention follows the query than a map that ignores it.

        The claim is that the whole interval lies above the margin; with too few seeds nothing is decided.
        """
        words = ("ignoring the query (50 %)", "follows the query", "shapes, two objects", budget)
        end = (MARGIN, UNDECIDED) if self.few_seeds else (MARGIN,)
        return [
            Effect(CLAIM, f"{name} at {level}", *words, len(self.models[name]), of["follows"].minus(CHANCE), *end)
            for (name, level), of in self.intervals.items()
        ]

    def frame(self) -> pd.DataFrame:
        """Return a row for each model, seed and level: in how many quarters of a scene's cases attention follows.

        A scene has two queries, and a tie counts half: a digit from 0 (never) to 4 (both times), scene by scene.
        """
        rows = [
            {"model": name, "seed": seed, "level": level, "scenes": len(values["follows"])}
            | {key: round(values[key].double().mean().item(), 6) for key in ("queried", "other", "absent", "follows")}
            | {"follows_by_scene": "".join(str(round(4 * value)) for value in values["follows"].tolist())}
            for name, seeds in self.models.items()
            for seed, levels in seeds.items()
            for level, values in levels.items()
        ]
        return pd.DataFrame(rows)

    def conclusion(self) -> str:
        """Return whether the claim holds, in sentences; with `pc` positions keep their order, so it does not count."""
        effects = [effect for effect in self.effects() if not effect.model.split()[0].rstrip(",").endswith("-pc")]
        if not effects:
            return "Nothing can be concluded: no model that a query can steer was measured."
        words = (SUPPORTED, UNDECIDED, CONTRADICTED)
        levels = {word: [e.model for e in effects if e.verdict == word] for word in words}
        outcome = next(word for word in words if levels[word])
        best = max(effects, key=lambda effect: effect.interval.mean)
        against_chance = [verdict(effect.interval) for effect in effects]
        interval_of = "over scenes" if self.few_seeds else "over seeds and scenes"
        return (
            f'"{CLAIM}": {outcome}.\n'
            f"{SUPPORTED} at {', '.join(levels[SUPPORTED]) or 'none'}; {UNDECIDED} at {len(levels[UNDECIDED])} and "
            f"{CONTRADICTED} at {len(levels[CONTRADICTED])} of {len(effects)} levels.\n"
            f"A map that ignores the query reaches 50 %: of {len(effects)} levels, {against_chance.count(SUPPORTED)} "
            f"lie above that and {against_chance.count(CONTRADICTED)} below.\n"
            f"The highest is {best.model}: {best.interval.minus(-CHANCE).text(1, 100)} %.\n"
            f"The intervals are {interval_of}, and {self.comparisons} of them hold together with 95 %."
            + (f" {TOO_FEW_SEEDS}\nSo nothing is decided about networks trained with other seeds." * self.few_seeds)
        )


def answers_table(models: Networks, queries: Queries) -> pd.DataFrame:
    """Return a table of `answers` in %, with one row for each model, means over its seeds."""
    table = _means({n: [answers(model, queries) for model in seeds.values()] for n, seeds in models.items()})
    return (100 * table).round(1).rename(columns="names {}, %".format)


def geometry_table(models: Networks, split: Split) -> pd.DataFrame:
    """Return a table of `geometry`, with one row for each model that has a global feature, means over its seeds."""
    rows = {
        name: [geometry(model, split) for model in seeds.values() if model.uses_global_feature]
        for name, seeds in models.items()
    }
    return _means({name: of for name, of in rows.items() if of}).round(2)


def _means(rows: Mapping[str, list[dict[str, float]]]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.DataFrame(of).mean() for name, of in rows.items()}).T.rename_axis("model")


def typical(levels: Levels, count: int) -> tuple[str, Tensor]:
    """Return what to show, chosen by the measure: the best level, and `count` scenes from best to worst swing."""
    level = max(levels, key=lambda level: levels[level]["follows"].mean().item())
    order = levels[level]["swing"].argsort(descending=True, stable=True)
    return level, order[torch.linspace(0, len(order) - 1, count).long()]


# Figures


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
