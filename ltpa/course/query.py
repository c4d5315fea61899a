"""Notebook 05: does a query steer the attention?

The paper's query-driven attention scores the local features of one image with the global feature of another. Whether
the map then goes to what the query shows is measured on scenes of two objects with exact masks. Each scene gets a query
for either object, so that an object that attracts attention under every query counts for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from ..config import EachOnce, FilePath, Seed, Variant, settings
from ..data.dataset import Split
from ..data.samples import photographs
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
from . import setup
from .grid import AblationConfig
from .grid import collect as collect
from .grid import train_missing as train_missing
from .query_measure import Levels, answers, geometry, steer
from .query_measure import typical as typical
from .query_plot import query_figure as query_figure
from .query_plot import steering_figure
from .query_scenes import Queries, side_by_side
from .query_scenes import draw_queries as draw_queries
from .query_training import learn_to_ask as learn_to_ask
from .setup import report as report

CHANCE, MARGIN = 0.5, 0.1  # attention that follows the query in less than three of five cases is not steered
CLAIM = f"Attention follows the query in more than {100 * (CHANCE + MARGIN):.0f} % of the cases"

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
    seeds: Annotated[Sequence[Seed], EachOnce] = Field((0,), description="each model is trained once for each seed")
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
