"""Notebook 04: does the map tell the truth? Settings, effects with verdicts, sentences and tables."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field
from torch import Tensor

from ..config import Count, EachOnce, Seed, TrainConfig, Variant, settings
from ..data.dataset import Split
from ..metrics.overlap import MEASURES
from ..metrics.statistics import CONTRADICTED, SUPPORTED, UNDECIDED, Effect, write_effects
from ..models.networks import parse_variant
from ..training.run import Run
from . import setup
from .map_quality_measure import (
    ATTENTION,
    CENTER,
    LEVEL,
    NAMES,
    OTSU,
    UNIFORM,
    Row,
    agreement_with_saliency,
    best_row,
    image_interval,
)
from .map_quality_measure import compare as compare
from .map_quality_measure import controls as controls
from .map_quality_plot import cases_figure as cases_figure
from .map_quality_plot import curves_figure as curves_figure
from .map_quality_plot import sanity_figure as sanity_figure
from .map_quality_plot import scores_figure as scores_figure
from .setup import report as report

FINDS = "The map finds the object, and the model goes by it"
SEGMENTS = "The binarized map segments the object"
DEPENDS = "Permuting the map moves more than a tenth of the probability"
COLUMNS = (*MEASURES, "jaccard", "entropy", "deletion", "insertion", "sanity", "permuted")
_DIGITS = 3  # decimals of an effect
_TENTH = 0.1  # of the probability: where the answer moves less, it hardly depends on the map
_SEGMENT_RIVALS = (NAMES["gradcam"], NAMES["saliency"], OTSU, UNIFORM)
Difference = tuple[str, str, str, Tensor]  # model, baseline, measure, and the difference of each image (N,)
_NO_ATTENTION = "There is no model with attention among these, so there is nothing to decide."


@settings
class MapQualityConfig(setup.QuickRuns):
    """Parameters of the notebook that measures maps; the runs that it compares are those of `ltpa.QUICK`."""

    models: Annotated[Sequence[Variant], EachOnce] = Field(
        (
            *(f"vgg-att3-concat-{kind}{normalizer}" for kind in ("pc", "dp", "add") for normalizer in ("", " sigmoid")),
            "vgg-gap",
        ),
        description="names of `ltpa.list_models()`, with the normalizer behind the name where it is not softmax",
    )
    methods: Annotated[
        Sequence[Literal["gradcam", "saliency", "integrated_gradients", "occlusion", "cam"]], EachOnce
    ] = Field(("gradcam", "saliency", "occlusion", "cam"), description="of `ltpa.explain`, to compare attention with")
    images: Annotated[int, Field(ge=2, le=10**6)] = Field(200, description="test images that are measured")
    held_out: Count = Field(100, description="other test images, which choose thresholds and levels")
    costly_images: Annotated[int, Field(ge=2, le=10**6)] = Field(
        50, description="how many of `images` deletion, insertion and the sanity check take"
    )
    fill: Literal["blur", "mean"] = Field("blur", description="what replaces deleted pixels")
    seed: Seed = Field(0, description="of the runs and of the controls")

    def runs(self) -> dict[str, TrainConfig]:
        """Return the settings of the runs by short names: "pc softmax" is vgg-att3-concat-pc with softmax."""
        configs = {}
        for variant in self.models:
            model, normalizer = parse_variant(variant)
            short = model.removeprefix("vgg-att3-concat-")
            name = f"{short} {normalizer}" if "-att" in model or model == "vgg-pan" else short
            configs[name] = TrainConfig(
                **{"dataset": "shapes", "model": model, "normalizer": normalizer, **self.common()}
            )
        return configs

    def split(self, test: Split) -> tuple[Split, Split]:
        """Return the test images to measure, and others to choose on."""
        needed = self.images + self.held_out
        if needed > len(test):
            raise ValueError(
                f"images={self.images} and held_out={self.held_out} need {needed} test images, "
                f"and there are {len(test)}; lower them"
            )
        return test[: self.images], test[self.images : needed]


parameters = partial(setup.parameters, kind=MapQualityConfig)


def accuracy_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return the last test accuracy of each run, in percent."""
    accuracies = {name: 100 * run.history[-1]["test_accuracy"] for name, run in runs.items()}
    return pd.DataFrame({"test accuracy, %": accuracies}).round(1)


# Effects: differences image by image, with 95 % intervals over the images. The models are of one seed.


def object_effects(rows: Sequence[Row], budget: str) -> list[Effect]:
    """Return whether each model's best level finds the object better than other maps, and is what the model goes by.

    The level, and the layer of Grad-CAM that it is compared with, are the best on the held-out images. All intervals
    hold together with 95 % (Bonferroni).
    """
    differences: list[Difference] = []
    for best, rivals in _best_levels(rows, (CENTER, *NAMES.values())):
        for rival in rivals:
            measure = f"average precision, {best.name} - {rival.name}"
            difference = best.values["average_precision"] - rival.values["average_precision"]
            differences.append((best.model, rival.family, measure, difference))
        center = rivals[0]
        difference = best.values["insertion"] - center.values["insertion"]
        differences.append((best.model, CENTER, f"insertion area, {best.name} - {CENTER}", difference))
        difference = center.values["deletion"] - best.values["deletion"]
        differences.append((best.model, CENTER, f"deletion area, {CENTER} - {best.name}", difference))
    return _effects(FINDS, differences, budget)


def segmentation_effects(rows: Sequence[Row], budget: str) -> list[Effect]:
    """Return whether each model's best level, cut into two, segments the object better than other maps do.

    Every map is cut at the threshold that was best for it on the held-out images. All intervals hold together with
    95 % (Bonferroni).
    """
    differences = []
    for best, rivals in _best_levels(rows, _SEGMENT_RIVALS):
        for rival in rivals:
            difference = best.values["jaccard"] - rival.values["jaccard"]
            differences.append((best.model, rival.family, f"Jaccard index, {best.name} - {rival.name}", difference))
    return _effects(SEGMENTS, differences, budget)


def permutation_effects(rows: Sequence[Row], budget: str) -> list[Effect]:
    """Return how much of the probability moves when a level's weights are permuted; each interval holds alone."""
    effects = []
    for row in rows:
        if row.kind == LEVEL:
            measure, interval = f"total variation distance, {row.name} permuted", row.interval("permuted")
            words = (DEPENDS, row.model, "the map as it is", measure, "shapes", budget)
            effects.append(Effect(*words, seeds=1, interval=interval, margin=_TENTH))
    return effects


def _best_levels(rows: Sequence[Row], families: Sequence[str]) -> list[tuple[Row, list[Row]]]:
    """Return each model's best level, and the best row of each of the families that were measured for the model."""
    pairs = []
    for model in dict.fromkeys(row.model for row in rows if row.kind == LEVEL):
        of_model = {family: [r for r in rows if (r.model, r.family) == (model, family)] for family in families}
        levels = [row for row in rows if (row.model, row.family) == (model, ATTENTION)]
        pairs.append((best_row(levels), [best_row(rivals) for rivals in of_model.values() if rivals]))
    return pairs


def _effects(claim: str, differences: Sequence[Difference], budget: str) -> list[Effect]:
    effects = []
    for model, baseline, measure, values in differences:
        interval = image_interval(values, len(differences))
        verdict = "" if round(interval.mean, _DIGITS) else UNDECIDED  # a difference that the table does not show
        effects.append(Effect(claim, model, baseline, measure, "shapes", budget, 1, interval, verdict=verdict))
    return effects


# Sentences, computed from effects


def describe_object_effects(effects: Sequence[Effect]) -> str:
    """Return for which models the map tells the truth, and how it compares with other explanations."""
    models = list(dict.fromkeys(effect.model for effect in effects))
    if not models:
        return _NO_ATTENTION
    beside_center = {m: {e.verdict for e in effects if (e.model, e.baseline) == (m, CENTER)} for m in models}
    truthful = [model for model, verdicts in beside_center.items() if verdicts == {SUPPORTED}]
    others = [effect.verdict for effect in effects if effect.baseline != CENTER]
    wins, losses = others.count(SUPPORTED), others.count(CONTRADICTED)
    first = f"No model ({', '.join(models)}) was shown to have a best level whose map"
    if truthful:
        first = f"In {len(truthful)} of {len(models)} models with attention ({', '.join(truthful)})"
        first += " the best level's map"
    first += " finds the object and is what the model goes by, both more than a spot in the center would."
    return (
        f"{first} Of {len(others)} comparisons with other explanations at finding the object, attention wins {wins}, "
        f"loses {losses}, and {len(others) - wins - losses} are undecided. All of this is one seed."
    )


def describe_segmentation_effects(effects: Sequence[Effect]) -> str:
    """Return in how many models the map segments better, and in how many worse, than each of the other maps."""
    if not effects:
        return _NO_ATTENTION
    parts = []
    for baseline in dict.fromkeys(effect.baseline for effect in effects):
        verdicts = [effect.verdict for effect in effects if effect.baseline == baseline]
        counts = f"in {verdicts.count(SUPPORTED)} of {len(verdicts)} models (worse in {verdicts.count(CONTRADICTED)})"
        parts.append(f"than {baseline} {counts}")
    return f"The binarized map of the best level segments the object better {', '.join(parts)}; the rest is undecided."


def describe_permutation_effects(effects: Sequence[Effect]) -> str:
    """Return for how many levels it matters where the weights lie."""
    verdicts = [effect.verdict for effect in effects]
    if not verdicts:
        return _NO_ATTENTION
    large, small = verdicts.count(SUPPORTED), verdicts.count(CONTRADICTED)
    first = "No level was shown to be without effect when its weights are permuted."
    if small:
        first = (
            f"{small} of {len(verdicts)} levels can be permuted without moving a tenth of the probability: whatever "
            "their maps show, the answers hardly depend on it."
        )
    second = f"For {large or 'none'} of {len(verdicts)} levels it matters where the weights lie"
    return f"{first} {second}; {len(verdicts) - small - large} are undecided."


# Tables


def table(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Return the means over the images, a row for each map of each model; NaN where something was not measured."""
    means = [{c: row.values[c].nanmean().item() for c in columns if c in row.values} for row in rows]
    index = pd.MultiIndex.from_tuples([(row.model, row.name) for row in rows], names=["model", "map"])
    return pd.DataFrame(means, index=index, columns=list(columns)).round(1 if columns == ["ms"] else 2)


def effects_table(effects: Sequence[Effect]) -> pd.DataFrame:
    """Return effects for reading; a file of them is made by `save`."""
    return pd.DataFrame(
        {
            "model": [e.model for e in effects],
            "against": [e.baseline for e in effects],
            "measure": [e.measure for e in effects],
            "images": [e.interval.n for e in effects],
            "effect [interval]": [e.interval.text(_DIGITS, sign=True) for e in effects],
            "verdict": [e.verdict for e in effects],
        }
    )


def permutation_table(rows: Sequence[Row], effects: Sequence[Effect]) -> pd.DataFrame:
    """Return for each level what `permutation_effects` found, and how much its maps agree with the gradient."""
    agreement = agreement_with_saliency(rows)
    levels = [(row.model, row.name) for row in rows if row.kind == LEVEL]
    columns = {
        "probability moved, % [95 %]": [effect.interval.text(1, 100) for effect in effects],
        "more than a tenth": [effect.verdict for effect in effects],
        "rank agreement with saliency [95 %]": [agreement[k].text(2) if k in agreement else "" for k in levels],
    }
    return pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(levels, names=["model", "level"]))


def save(rows: Sequence[Row], effects: Sequence[Effect], folder: str | Path = "runs") -> list[Path]:
    """Write `04_maps_measured.csv` (all means with 95 % intervals over the images) and `effects_04.csv`."""
    lines = []
    for row in rows:
        line: dict[str, object] = {"model": row.model, "map": row.name, "kind": row.kind}
        for column in COLUMNS:
            value = row.interval(column)
            ends = {f"{column}_{end}": getattr(value, end) for end in ("low", "high", "n")}
            line |= {column: value.mean, **ends}
        if row.threshold is not None:
            line["threshold"] = f"{row.threshold.factor:.2f} {row.threshold.of}"
        lines.append(line)
    path = Path(folder) / "04_maps_measured.csv"
    pd.DataFrame(lines).round(4).to_csv(path, index=False, lineterminator="\n")
    return [path, write_effects(effects, Path(folder) / "effects_04.csv")]
