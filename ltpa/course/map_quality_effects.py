"""Claims about maps, with intervals over seeds first and images second; what they rest on is chosen on other images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..data.shapes import CLASSES
from ..metrics.agreement import measure_agreement
from ..metrics.crossed import two_level_interval
from ..metrics.interventions import CHANCE_MARGIN
from ..metrics.overlap import DIFFERENCE, OTSU
from ..metrics.statistics import CONTRADICTED, LEAST_SEEDS, SUPPORTED, UNDECIDED, Effect, Interval
from .map_quality_maps import ATTENTION, CENTER, CONTROL, FEATURES, KINDS, LEVEL, METHOD, NAMES, NETWORK, NORM, UNIFORM
from .map_quality_measure import Measured

BEATS_PICTURE = "The attention map finds the object better than maps without a network"
BEATS_METHODS = "The attention map finds the object better than other explanations"
BEATS_NORM = "The attention map finds the object better than the norm of the features"
SEGMENTS = "The binarized attention map segments the object better than other maps"
PREDICTS = "The attention map predicts what changes the answer better than other maps"
PER_PIXEL = "For its size, the attention map weighs what changes the answer better than other maps"
HIDES = "Hiding parts in the order of the attention map tells more about the answer than in that of other maps"
NAMES_IT = "Of two objects, attention lies on the one that the network names"
LEAKS = "Without its object a picture still gives the answer away"
DEPENDS = "Permuting the map moves more than a tenth of the probability"
DIGITS = 3  # decimals of an effect
_RANKED = (
    "average_precision",
    "jaccard",
    "prediction",
    "prediction_per_pixel",
    "gain",
    "deletion",
    "insertion",
    "sanity",
    "entropy_rise",
)
_LOW_IS_GOOD = ("deletion", "sanity")
_FEW = 1_000  # draws of the bootstrap for each number of a large table
_TENTH = 0.1  # of the probability: where the answer moves less, it hardly depends on the map
_METHODS = tuple(NAMES[method] for method in ("gradcam", "saliency", "integrated_gradients", "occlusion"))
_OTHERS = ("vgg-late", "vgg-gap")  # networks without attention, and with the same layers
_CAM = (NAMES["cam"], "vgg-gap")
_GAIN = "symmetric relevance gain"
_CORRELATION = "rank correlation, predicted and measured changes"
_RELATIVE = "rank correlation, mean weight on a change and measured changes"
Rival = tuple[str, str]  # family and model; the model is "" for the same network
_CLAIMS: dict[str, tuple[str, Sequence[Rival]]] = {  # claim -> measure, and what attention is compared with
    BEATS_PICTURE: ("average precision", [(CENTER, ""), (DIFFERENCE, "")]),
    BEATS_METHODS: ("average precision", [*((family, "") for family in _METHODS), _CAM]),
    BEATS_NORM: ("average precision", [(NORM, ""), *((NORM, other) for other in _OTHERS)]),
    SEGMENTS: (
        "Jaccard index",
        [(NORM, ""), (NAMES["gradcam"], ""), (NAMES["saliency"], ""), (OTSU, ""), (DIFFERENCE, ""), _CAM],
    ),
    PREDICTS: (
        _CORRELATION,
        [(NORM, ""), (NAMES["gradcam"], ""), (NAMES["saliency"], ""), (DIFFERENCE, ""), (UNIFORM, "")],
    ),
    PER_PIXEL: (_RELATIVE, [(NORM, ""), (NAMES["gradcam"], ""), (NAMES["saliency"], ""), (DIFFERENCE, "")]),
    HIDES: (_GAIN, [(NORM, ""), (NAMES["gradcam"], ""), (NAMES["saliency"], ""), (DIFFERENCE, ""), (CENTER, "")]),
}
_COLUMNS = {
    "average precision": "average_precision",
    "Jaccard index": "jaccard",
    _CORRELATION: "prediction",
    _RELATIVE: "prediction_per_pixel",
    _GAIN: "gain",
}


class Values:
    """What was measured, as tables (seeds, images), with the best layer of each network.

    `layers[model]` is {seed: layer}: the attention level, or where there is none the layer whose feature norm has the
    best average precision on the held-out images. `kinds` is {family: kind}, in the order of the tables.
    """

    def __init__(self, measured: Measured) -> None:
        self.answers = measured.by_image[measured.by_image["kind"] == NETWORK]
        frame = measured.by_image[measured.by_image["kind"] != NETWORK]
        self.models = list(dict.fromkeys(frame["model"]))
        self.maps = frame.drop_duplicates(["model", "seed", "map"]).set_index(["model", "seed"])
        self._values = frame.set_index(["model", "map", "seed", "image"]).sort_index()
        self.layers = {model: self._best_layers(model) for model in self.models}
        kinds = self.maps.drop_duplicates("family").set_index("family")["kind"]
        self.kinds = dict(sorted(kinds.items(), key=lambda item: KINDS.index(item[1])))

    def _best_layers(self, model: str) -> dict[int, str]:
        maps = self.maps.loc[[model]].droplevel(0)
        kind = LEVEL if (maps["kind"] == LEVEL).any() else FEATURES
        best = maps[maps["kind"] == kind].sort_values("held_out", ascending=False, kind="stable")
        return {int(seed): rows["layer"].iloc[0] for seed, rows in best.groupby(level=0, sort=True)}

    def has_attention(self, model: str) -> bool:
        """Return whether a network has attention levels."""
        return bool((self.maps.loc[[model], "kind"] == LEVEL).any())

    def table(
        self, model: str, family: str, measure: str, layers: Mapping[int, str] | None = None
    ) -> NDArray[np.float64] | None:
        """Return the values (seeds, images) of a family at a layer for each seed, by default the best, or None.

        Where a family has no map of the layer, it is that of the pixels.
        """
        rows, tables = self.maps.loc[[model]].droplevel(0), []
        for seed, layer in (layers or self.layers[model]).items():
            of_family = rows[(rows["family"] == family) & (rows.index == seed)]
            if of_family.empty:
                return None
            # At this layer, else the map of the pixels, else the only one there is (CAM).
            chosen = min(of_family.itertuples(), key=lambda row: [layer, "", row.layer].index(row.layer))
            tables.append(self._values.loc[(model, chosen.map, seed), measure])
        table = pd.DataFrame([values.to_numpy() for values in tables], dtype=np.float64).dropna(axis=1, how="all")
        return table.to_numpy() if table.size else None

    def of_map(self, model: str, name: str, measure: str) -> NDArray[np.float64]:
        """Return the values (seeds, images) of one map of a network; images that were not measured are left out."""
        table = self._values.loc[(model, name), measure].unstack("image")
        return table.dropna(axis=1, how="all").to_numpy(dtype=np.float64)

    def maps_of(self, model: str, kind: str) -> list[str]:
        """Return the names of a network's maps of one kind, in the order of measurement."""
        rows = self.maps.loc[[model]].droplevel(0)
        return list(dict.fromkeys(rows[rows["kind"] == kind]["map"]))


@dataclass(frozen=True)
class _Difference:
    model: str
    baseline: str
    measure: str
    values: NDArray[np.float64]
    minus: NDArray[np.float64] | None


def object_effects(values: Values, budget: str) -> list[Effect]:
    """Return how the attention of the best level compares with other maps, claim by claim.

    A rival of the same network is that of the same layer, or smoothed to its grid. All intervals of one claim hold
    together with 95 % (Bonferroni).
    """
    effects: list[Effect] = []
    for claim, (measure, rivals) in _CLAIMS.items():
        differences = [
            difference
            for model in values.models
            if values.has_attention(model)
            for rival in rivals
            if (difference := _difference(values, model, measure, rival)) is not None
        ]
        for each in differences:
            interval = two_level_interval(each.values, each.minus, comparisons=len(differences))
            verdict = "" if round(interval.mean, DIGITS) else UNDECIDED  # a difference that the table does not show
            seeds = len(each.values)
            effects.append(
                Effect(
                    claim, each.model, each.baseline, each.measure, "shapes", budget, seeds, interval, verdict=verdict
                )
            )
    return effects


def _difference(values: Values, model: str, measure: str, rival: Rival) -> _Difference | None:
    family, other = rival
    column, layers = _COLUMNS[measure], values.layers[model]
    own = values.table(model, ATTENTION, column)
    words = f"{measure}, attention at {' or '.join(sorted(set(layers.values())))} - {family}"
    if own is None:
        return None
    if not other:
        rivals = values.table(model, family, column)
        return None if rivals is None else _Difference(model, family, words, own - rivals, None)
    if other not in values.models:
        return None
    # The layer that most seeds chose, since seeds of two networks are not pairs.
    layer = max(sorted(set(layers.values())), key=list(layers.values()).count)
    rivals = values.table(other, family, column, dict.fromkeys(values.layers[other], layer))
    return None if rivals is None else _Difference(model, f"{family} of {other}", words, own, rivals)


def leak_effects(values: Values, budget: str) -> list[Effect]:
    """Return how much more often than by chance a network names an object that is not there.

    Unless this is contradicted, that is below `CHANCE_MARGIN` as a whole, interventions measure nothing. The intervals
    hold together.
    """
    effects = []
    for model in values.models:
        rows = values.answers[values.answers["model"] == model]
        table = rows.pivot(index="seed", columns="image", values="right_without_object").to_numpy(dtype=np.float64)
        interval = two_level_interval(table, comparisons=len(values.models)).minus(1 / len(CLASSES))
        words = (LEAKS, model, "chance", "accuracy without the object", "shapes", budget, len(table))
        effects.append(Effect(*words, interval, margin=CHANCE_MARGIN))
    return effects


def contrast_effects(values: Values, budget: str) -> list[Effect]:
    """Return by how much more than half of the weight on two objects lies on the one that the network names.

    These are the attention maps of the best level; scenes in which a network names neither are left out. The intervals
    hold together.
    """
    tables = {model: values.table(model, ATTENTION, "answer") for model in values.models}
    known = {model: table for model, table in tables.items() if table is not None}
    effects = []
    for model, table in known.items():
        interval = two_level_interval(table, comparisons=len(known)).minus(0.5)
        words = (NAMES_IT, model, "one half", "part of the weight on the named object", "shapes, two objects", budget)
        effects.append(Effect(*words, len(table), interval))
    return effects


def permutation_effects(values: Values, budget: str) -> list[Effect]:
    """Return how much of the probability moves when a level's weights are permuted; the intervals hold together."""
    levels = [(model, level) for model in values.models for level in values.maps_of(model, LEVEL)]
    effects = []
    for model, level in levels:
        table = values.of_map(model, level, "permuted")
        measure = f"total variation distance, {level} permuted"
        words = (DEPENDS, model, "the map as it is", measure, "shapes", budget, len(table))
        effects.append(Effect(*words, two_level_interval(table, comparisons=len(levels)), margin=_TENTH))
    return effects


def agreement(values: Values) -> pd.DataFrame:
    """Return Kendall's tau of every two measures over the maps of a network: mean, lowest and highest of the networks.

    `contradict` counts the networks in which one measure ranks the maps against the other (tau < 0, p < 0.05).
    """
    parts = []
    for model in values.models:
        names = [name for kind in (LEVEL, FEATURES, METHOD, CONTROL) for name in values.maps_of(model, kind)]
        means = {name: {m: _mean(values.of_map(model, name, m)) for m in _RANKED} for name in names}
        scores = pd.DataFrame.from_dict(means, orient="index").dropna(axis=1, how="all")
        parts.append(measure_agreement(scores, [m for m in _LOW_IS_GOOD if m in scores]))
    pairs = pd.concat(parts).groupby(["first", "second"], sort=False)
    table = pairs["tau"].agg(["mean", "min", "max"]).round(2)
    table = table.join(pairs["contradict"].sum()).assign(networks=pairs.size())
    return table.sort_values("mean", kind="stable").reset_index()


def _mean(table: NDArray[np.float64]) -> float:
    return float(np.nanmean(table)) if table.size else math.nan


# Sentences, computed from effects


def describe(effects: Sequence[Effect]) -> str:
    """Return for each claim in how many comparisons it is supported and contradicted, and what that holds for."""
    if not effects:
        return "There is no model with attention among these, so there is nothing to decide."
    lines = []
    for claim in dict.fromkeys(effect.claim for effect in effects):
        verdicts = [effect.verdict for effect in effects if effect.claim == claim]
        lines.append(
            f"{claim}: supported in {verdicts.count(SUPPORTED)} of {len(verdicts)} comparisons, contradicted in "
            f"{verdicts.count(CONTRADICTED)}, undecided in {verdicts.count(UNDECIDED)}."
        )
    if min(effect.seeds for effect in effects) < LEAST_SEEDS:
        lines.append(
            f"With fewer than {LEAST_SEEDS} seeds all of this holds for these trained networks only: it cannot say "
            "anything about networks trained again."
        )
    return "\n".join(lines)


# Tables


def effects_table(effects: Sequence[Effect]) -> pd.DataFrame:
    """Return effects for reading; a file of them is made by `save`."""
    return pd.DataFrame(
        {
            "model": [e.model for e in effects],
            "against": [e.baseline for e in effects],
            "measure": [e.measure for e in effects],
            "seeds": [e.seeds for e in effects],
            "images": [e.interval.n for e in effects],
            "effect [interval]": [e.interval.text(DIGITS, sign=True) for e in effects],
            "verdict": [e.verdict for e in effects],
        }
    )


def summary(values: Values, measure: str = "average_precision") -> pd.DataFrame:
    """Return means with 95 % intervals: a row for each family, at the best layer of a model, and a column a model."""
    columns: dict[str, dict[str, str]] = {}
    for model in values.models:
        tables = {family: values.table(model, family, measure) for family in values.kinds}
        columns[model] = {
            family: two_level_interval(table, resamples=_FEW).text(2)
            for family, table in tables.items()
            if table is not None
        }
    return (
        pd.DataFrame(columns, index=list(values.kinds))
        .dropna(how="all")
        .fillna("")
        .rename_axis(measure.replace("_", " "))
    )


def means(values: Values, measures: Sequence[str]) -> pd.DataFrame:
    """Return the means of all measures with their 95 % intervals, a row for each map of each model."""
    lines = []
    for (model, name), rows in values.maps.reset_index().groupby(["model", "map"], sort=False):
        line: dict[str, object] = {"model": model, "map": name, "kind": rows["kind"].iloc[0], "seeds": len(rows)}
        for measure in measures:
            table = values.of_map(str(model), str(name), measure)
            interval = two_level_interval(table, resamples=_FEW) if table.size else Interval(np.nan)
            line |= {measure: interval.mean} | {
                f"{measure}_{end}": getattr(interval, end) for end in ("low", "high", "n")
            }
        lines.append(line)
    return pd.DataFrame(lines).round(4)
