"""Attention maps against other explanations and against maps that know nothing: one table, from trained models.

Every map of every model is measured on the same images: does it lie on the object (`localize`), does the model go by it
(deletion and insertion), does it depend on what the model learnt (layers made random), and what does it cost.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..attribution import explain
from ..data.dataset import Split
from ..inference import attend, to_float
from ..maps import entropy, rank_agreement
from ..metrics import statistics
from ..metrics.faithfulness import deletion_insertion, layers_top_down, permuted_attention, randomization
from ..metrics.overlap import MEASURES, controls, localization
from ..metrics.statistics import CONTRADICTED, SUPPORTED, Interval
from ..models.networks import VGGGAP, ImageClassifier
from ..progress import Progress
from .tables import write_rows

NAMES = {  # of the methods, as they stand in tables and pictures
    "gradcam": "Grad-CAM",
    "saliency": "saliency",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
    "cam": "CAM",
}
OTSU = "Otsu"
FINDS, SEGMENTS = "The map finds the object, and the model goes by it", "The binarized map segments the object"
_SEGMENT = (NAMES["gradcam"], NAMES["saliency"], OTSU, "uniform")  # what segmentation is compared with
COLUMNS = (*MEASURES, "jaccard", "entropy", "deletion", "insertion", "sanity", "ms")
_TENTH = 0.1  # of the probability: an answer that moves less hardly depends on a map
_STEPS = 10  # of deletion and insertion
_DRAWS = 2_000  # of the bootstrap


@dataclass
class Row:
    """What was measured of one kind of map of one model.

    Attributes:
        model, name: such as "pc softmax" and "conv10"; kind: "level", "method" or "control".
        maps: (N, H, W), at the resolution of the images.
        values: measure -> (N,), or (K,) for deletion, insertion, sanity and agreement, which are measured on the first
            K images; "ms" is milliseconds an image, (1,).
        sanity: layer -> (K,), the rank agreement with the maps after that layer and all above it became random.
        curves: fractions, mean deletion and mean insertion, (steps + 1,) each.
        threshold: of the Jaccard index, chosen on the held-out images.
        held_out: the mean average precision on the held-out images, by which a model's best level is chosen.
    """

    model: str
    name: str
    kind: str
    maps: Tensor
    values: dict[str, Tensor]
    sanity: dict[str, Tensor] = field(default_factory=dict)
    curves: tuple[Tensor, Tensor, Tensor] | None = None
    threshold: "Threshold | None" = None
    held_out: float = math.nan


@dataclass(frozen=True)
class Claim:
    """That a difference is above 0, with its interval; its verdict is that of `ltpa.metrics.statistics.verdict`.

    Attributes:
        model, text: of which model, and what is better than what.
        effect: the mean difference over the images, with its interval.
        about: which claim of the paper it belongs to, `FINDS` or `SEGMENTS`.
    """

    model: str
    text: str
    effect: Interval
    about: str = FINDS

    @property
    def verdict(self) -> str:
        """In words."""
        return statistics.verdict(self.effect)


def compare(
    models: Mapping[str, ImageClassifier],
    images: Split,
    held_out: Split,
    *,
    methods: Sequence[str] = ("gradcam", "saliency", "occlusion", "cam"),
    costly: int = 50,
    fill: str = "blur",
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Measures every level of every model, the other methods, and the controls.

    Args:
        models: by the names that they have in the table.
        images: the images that are measured, with masks.
        held_out: other images with masks, on which the threshold of the Jaccard index and the level of a model that the
            claims are about are chosen.
        methods: of `ltpa.explain`; Grad-CAM is taken at every level that the model attends to, CAM where there is one.
        costly: deletion, insertion and the sanity check are measured on so many of the images.
        fill: see `deletion_insertion`.
        seed: of the controls, of ties and of random weights.
        progress: show a bar.

    Returns:
        the rows, model by model: its levels, the methods, the controls (whose maps are the same for every model, but
        not their deletion and insertion).

    Raises:
        ValueError: images without masks, or without images; see also `ltpa.explain`.
        ImportError: captum or scikit-image is missing.
    """
    if images.masks is None or held_out.masks is None:
        raise ValueError("maps are measured against masks, which these data lack; the dataset 'shapes' has them")
    if not len(images) or not len(held_out):
        raise ValueError("there must be images to measure on, and held-out ones to choose thresholds on")
    size = tuple(images.images.shape[-2:])
    fixed = controls(len(images), size, seed) | {OTSU: otsu(images.images)}
    fixed_held_out = controls(len(held_out), size, seed + 1) | {OTSU: otsu(held_out.images)}
    plans = {name: _maps_of(model, images.images[:1], methods) for name, model in models.items()}
    few, rows = images[: min(costly, len(images))], []
    with Progress(sum(len(plan) + len(fixed) for plan in plans.values()), show=progress) as bar:
        for model_name, plan in plans.items():
            model = models[model_name]
            target = attend(model, images.images, "fp32").logits.argmax(1)
            for name, (kind, function) in plan.items():
                start = time.perf_counter()
                maps = function(model, images.images, target)
                ms = (time.perf_counter() - start) / len(images) * 1000
                row = _measured(model_name, name, kind, maps, images, function(model, held_out.images, None), held_out)
                row.values["ms"] = torch.tensor([ms])
                row.sanity = _sanity(model, few.images, target[: len(few)], function, seed)
                row.values["sanity"] = list(row.sanity.values())[-1]
                rows.append(row)
                _faithfulness(row, model, few.images, target[: len(few)], fill, seed)
                bar.update(len(rows), lambda row=row: (row.model, row.name))
            for name, maps in fixed.items():
                row = _measured(model_name, name, "control", maps, images, fixed_held_out[name], held_out)
                rows.append(row)
                _faithfulness(row, model, few.images, target[: len(few)], fill, seed)
                bar.update(len(rows), lambda row=row: (row.model, row.name))
            for level, distance in _permuted(model, few.images, seed).items():
                next(r for r in rows if (r.model, r.name) == (model_name, level)).values["permuted"] = distance
    return rows


_MapsOf = Callable[[ImageClassifier, Tensor, Tensor | None], Tensor]


def _maps_of(model: ImageClassifier, image: Tensor, methods: Sequence[str]) -> dict[str, tuple[str, _MapsOf]]:
    """What is compared for a model: name -> kind, and a function from model, images and targets to maps."""

    def function(method: str, layer: str | None) -> _MapsOf:
        return lambda model, images, target: explain(model, images, method, target, layer)

    levels = [level for level in attend(model, image, "fp32").maps if level != "cam"]
    plan = {level: ("level", function("attention", level)) for level in levels}
    for method in methods:
        if method == "gradcam" and levels:
            plan |= {f"{NAMES[method]} {level}": ("method", function(method, level)) for level in levels}
        elif method != "cam" or isinstance(model, VGGGAP):
            plan[NAMES[method]] = ("method", function(method, None))
    return plan


def _measured(
    model: str, name: str, kind: str, maps: Tensor, images: Split, maps_held_out: Tensor, held_out: Split
) -> Row:
    row = Row(model, name, kind, maps, localization(maps, images.masks))
    row.threshold = best_threshold(maps_held_out, held_out.masks)
    row.values["jaccard"] = jaccard(row.threshold.mark(maps), images.masks)
    row.values["entropy"] = entropy(maps)
    row.held_out = localization(maps_held_out, held_out.masks)["average_precision"].nanmean().item()
    return row


def _faithfulness(row: Row, model: ImageClassifier, images: Tensor, target: Tensor, fill: str, seed: int) -> None:
    found = deletion_insertion(model, images, row.maps[: len(images)], target, fill=fill, steps=_STEPS, seed=seed)
    row.values |= {"deletion": found.deletion_area, "insertion": found.insertion_area}
    row.curves = (found.fractions, found.deletion.mean(0), found.insertion.mean(0))


def _sanity(model: ImageClassifier, images: Tensor, target: Tensor, function: _MapsOf, seed: int) -> dict[str, Tensor]:
    """Layer -> rank agreement, at a few stops from the top down: head, attention, and thirds of the trunk."""
    layers = layers_top_down(model, images)
    trunk = [layer for layer in layers if layer.startswith("trunk.")]
    above = [layer for layer in layers if layer not in trunk]
    stops = list(dict.fromkeys([above[0], above[-1], trunk[len(trunk) // 3], trunk[-1]]))
    found = randomization(model, images, lambda net, x: {"": function(net, x, target)}, stops=stops, seed=seed)
    return {layer: named[""]["rank_agreement"] for layer, named in found.items()}


def _permuted(model: ImageClassifier, images: Tensor, seed: int) -> dict[str, Tensor]:
    return permuted_attention(model, images, seed) if hasattr(model, "attention") else {}


def otsu(images: Tensor) -> Tensor:
    """The picture alone as a map: 1 on the smaller side of Otsu's threshold (1979) of its gray values, else 0.

    Args:
        images: uint8, or float in [0, 1], (N, 3, H, W).

    Returns:
        (N, H, W); 0 everywhere for a picture of a single gray.

    Raises:
        ImportError: scikit-image is missing.
    """
    try:
        from skimage.filters import threshold_otsu
    except ImportError as error:
        raise ImportError("Otsu's threshold needs scikit-image: pip install 'ltpa[notebooks]'") from error
    gray = torch.einsum("nchw,c->nhw", to_float(images).cpu(), torch.tensor([0.299, 0.587, 0.114]))
    gray = (gray * 255).round().byte()  # whole numbers: in bins of its own making scikit-image cuts values in two
    bright = torch.stack([one > int(threshold_otsu(one.numpy())) for one in gray])
    mostly = bright.float().mean((1, 2)) > 0.5
    return (bright ^ mostly[:, None, None]).float()


@dataclass(frozen=True)
class Threshold:
    """From which weight on a map says "object": `factor` times its "mean" or its "max"."""

    of: str
    factor: float

    def mark(self, maps: Tensor) -> Tensor:
        """Maps (N, H, W) -> bool (N, H, W); a map that is zero everywhere marks every pixel."""
        level = maps.mean((1, 2), keepdim=True) if self.of == "mean" else maps.amax((1, 2), keepdim=True)
        return maps >= self.factor * level


def jaccard(marked: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of marked pixels and objects, bool (N, H, W) both -> (N,); NaN where a mask is empty."""
    both, either = (marked & masks).sum((1, 2)), (marked | masks).sum((1, 2))
    return (both / either).where(masks.any(2).any(1), torch.nan)


def best_threshold(maps: Tensor, masks: Tensor) -> Threshold:
    """The threshold of the best mean Jaccard index, to be used on other images than these (arXiv 2001.07437)."""
    return max(_THRESHOLDS, key=lambda threshold: jaccard(threshold.mark(maps), masks).nanmean().item())


# From half the mean to 32 times it in steps of a fourth root of 2; from a twentieth of the highest value to all of it.
_THRESHOLDS = (
    *(Threshold("mean", 2 ** (k / 4)) for k in range(-4, 21)),
    *(Threshold("max", k / 20) for k in range(1, 21)),
)


def interval(values: Tensor, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean over images and its percentile bootstrap interval (Efron 1979), from 2,000 seeded draws.

    Args:
        values: (N,), of images that were drawn independently; NaN is left out.
        confidence: of the interval; for m comparisons at 95 % together: 1 - 0.05 / m (Bonferroni).
        seed: of the draws.

    Raises:
        ValueError: a confidence out of range.
    """
    values = values[~values.isnan()].double()
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    return statistics.bootstrap_interval(values.numpy(), confidence=confidence, resamples=_DRAWS, seed=seed)


def best_levels(rows: Sequence[Row]) -> dict[str, Row]:
    """Of each model with attention the level with the best average precision on the held-out images."""
    models = dict.fromkeys(row.model for row in rows if row.kind == "level")
    return {model: _best([row for row in rows if row.model == model and row.kind == "level"]) for model in models}


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row.held_out)


def claims(rows: Sequence[Row], seed: int = 0) -> list[Claim]:
    """What the table says about the best level of each model, with intervals that hold together at 95 % (Bonferroni).

    The level, and the layer of Grad-CAM that it is compared with, are the best on the held-out images.

    Args:
        rows: of `compare`.
        seed: of the bootstrap.
    """
    texts: list[tuple[str, str, Tensor]] = []
    for model, best in best_levels(rows).items():
        others = [row for row in rows if row.model == model and row.kind != "level"]
        rivals = [[row for row in others if row.name.startswith(name)] for name in ("center", *NAMES.values())]
        center = rivals[0][0]
        for rival in (_best(found) for found in rivals if found):
            difference = best.values["average_precision"] - rival.values["average_precision"]
            texts.append(
                (model, f"{best.name} finds the object better than {rival.name} (average precision)", difference)
            )
        difference = best.values["insertion"] - center.values["insertion"]
        texts.append((model, f"the model goes by {best.name} more than by the center (insertion area)", difference))
        difference = center.values["deletion"] - best.values["deletion"]
        texts.append((model, f"the model misses {best.name} more than the center (deletion area)", difference))
    return _together(texts, FINDS, seed)


def _together(found: Sequence[tuple[str, str, Tensor]], about: str, seed: int) -> list[Claim]:
    """Model, words and differences (N,) as claims, whose intervals hold together at 95 % (Bonferroni)."""
    confidence = 1 - 0.05 / max(1, len(found))
    return [Claim(model, text, interval(values, confidence, seed), about) for model, text, values in found]


def segmentation_claims(rows: Sequence[Row], seed: int = 0) -> list[Claim]:
    """Whether a map of attention, cut into two, segments the object better than other maps do: the Jaccard index.

    Of each model the level, and the layer of Grad-CAM, with the best average precision on the held-out images; every
    map at the threshold that was chosen for it there. The intervals hold together at 95 % (Bonferroni).

    Args:
        rows: of `compare`.
        seed: of the bootstrap.
    """
    found: list[tuple[str, str, Tensor]] = []
    for model, best in best_levels(rows).items():
        others = [row for row in rows if row.model == model and row.kind != "level"]
        rivals = [[row for row in others if row.name.startswith(name)] for name in _SEGMENT]
        for rival in (_best(of) for of in rivals if of):
            text = f"{best.name}, binarized, segments better than {rival.name} (Jaccard index)"
            found.append((model, text, best.values["jaccard"] - rival.values["jaccard"]))
    return _together(found, SEGMENTS, seed)


def segmentation_verdict(found: Sequence[Claim]) -> str:
    """How many models' maps segment better than each of the others, in one sentence made from the claims."""
    if not found:
        return "There is no model with attention among these, so there is nothing to decide."
    parts = []
    for rival in _SEGMENT:
        of = [claim for claim in found if f"better than {rival}" in claim.text]
        wins, losses = (sum(claim.verdict == word for claim in of) for word in (SUPPORTED, CONTRADICTED))
        if of:
            parts.append(f"than {rival} in {wins} of {len(of)} models (worse in {losses})")
    return (
        f"The binarized map of the best level segments the object better {', '.join(parts)}; the rest is not decided."
    )


def verdict(found: Sequence[Claim]) -> str:
    """The answer to the question of the notebook, in one sentence made from the claims."""
    models = list(dict.fromkeys(claim.model for claim in found))
    if not models:
        return "There is no model with attention among these, so there is nothing to decide."
    truthful = [m for m in models if all(c.verdict == SUPPORTED for c in found if c.model == m and "center" in c.text)]
    others = [c for c in found if "center" not in c.text]
    wins, losses = (sum(c.verdict == word for c in others) for word in (SUPPORTED, CONTRADICTED))
    return (
        f"Of {len(models)} models with attention, {len(truthful)} have a level whose map finds the object and is what "
        f"the model goes by, both more than a spot in the center would"
        + (f" ({', '.join(truthful)})" if truthful else "")
        + f"; of {len(others)} comparisons with other explanations at finding the object, attention wins {wins}, "
        f"loses {losses}, and {len(others) - wins - losses} are not decided."
    )


def explanation(rows: Sequence[Row], seed: int = 0) -> list[str]:
    """What these data say about "Attention is not explanation" (Jain and Wallace 2019, arXiv 1902.10186), in sentences.

    They found that attention agrees little with the gradient, and that permuting it often leaves the answer as it was.

    Args:
        rows: of `compare`.
        seed: of the bootstrap.

    Returns:
        a sentence for each level, with 95 % intervals, and one about all.
    """
    sentences, small, large = [], 0, 0
    levels = [row for row in rows if row.kind == "level"]
    for row in levels:
        moved = interval(row.values["permuted"], seed=seed)
        small, large = small + (moved.high < _TENTH), large + (moved.low > _TENTH)
        gradient = [other for other in rows if other.model == row.model and other.name == NAMES["saliency"]]
        words = f"{row.model} {row.name}: permuting its weights moves {_words(moved, '.0%')} of the probability"
        if gradient:
            found = interval(rank_agreement(row.maps, gradient[0].maps), seed=seed)
            words += f"; rank agreement with saliency {_words(found, '.2f')}"
        sentences.append(words)
    sentences.append(
        f"Of {len(levels)} levels, {small} can be permuted without moving a tenth of the probability: whatever their "
        f"maps show, the answers hardly depend on it. For {large} it matters where they lie; "
        f"{len(levels) - small - large} are not decided."
    )
    return sentences


def _words(value: Interval, form: str) -> str:
    return f"{value.mean:{form}} ({value.low:{form}} to {value.high:{form}})".replace("%", " %")


def cases(row: Row, measure: str = "average_precision") -> dict[str, int]:
    """The best, the median and the worst image of a row by a measure: {"best": index, "median": ..., "worst": ...}.

    Raises:
        ValueError: no image has a value.
    """
    known = (~row.values[measure].isnan()).nonzero().flatten()
    if not len(known):
        raise ValueError(f"no image of {row.model}, {row.name} has a value of {measure}")
    order = known[row.values[measure][known].argsort(descending=True, stable=True)].tolist()
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}


def table(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """Means as plain text, a block a model; "–" where there is no value. `best_iou` knows the mask of each image."""
    widths = [max(7, len(_HEADS.get(column, column)) + 2) for column in columns]
    heads = [_HEADS.get(column, column).rjust(width) for column, width in zip(columns, widths, strict=True)]
    lines = [" " * 22 + "".join(heads)]
    for number, row in enumerate(rows):
        if number == 0 or row.model != rows[number - 1].model:
            lines.append(row.model)
        cells = (_cell(row.values.get(c), 1 if c == "ms" else 2).rjust(w) for c, w in zip(columns, widths, strict=True))
        lines.append(f"  {row.name:<20}" + "".join(cells))
    return "\n".join(lines)


_HEADS = {"best_iou": "best IoU", "iou": "IoU", "average_precision": "AP", "jaccard": "Jaccard", "ms": "ms/image"}


def _cell(values: Tensor | None, digits: int) -> str:
    mean = math.nan if values is None else values.nanmean().item()
    return "–" if math.isnan(mean) else f"{mean + 0.0:.{digits}f}"


def save(rows: Sequence[Row], found: Sequence[Claim], folder: str | Path, name: str) -> list[Path]:
    """Writes the table as `<name>.csv` and the claims as `<name>_claims.csv`; means with 95 % bootstrap intervals.

    Raises:
        OSError: the folder cannot be written.
    """
    measured = [column for column in (*COLUMNS, "permuted") if column != "ms"]
    lines = []
    for row in rows:
        line: dict[str, object] = {"model": row.model, "map": row.name, "kind": row.kind}
        for column in measured:
            value = interval(row.values[column]) if column in row.values else None
            line[column], line[f"{column}_low"], line[f"{column}_high"], line[f"{column}_n"] = (
                (_number(value.mean), _number(value.low), _number(value.high), value.n) if value else ("", "", "", "")
            )
        line["threshold"] = f"{row.threshold.factor:.2f} {row.threshold.of}"
        line["ms_per_image"] = _number(row.values["ms"].item()) if "ms" in row.values else ""
        lines.append(line)
    told = [
        {
            "model": claim.model,
            "claim": claim.text,
            "difference": _number(claim.effect.mean),
            "low": _number(claim.effect.low),
            "high": _number(claim.effect.high),
            "n": claim.effect.n,
            "verdict": claim.verdict,
        }
        for claim in found
    ]
    return [write_rows(Path(folder) / f"{name}.csv", lines), write_rows(Path(folder) / f"{name}_claims.csv", told)]


def write_effects(found: Sequence[Claim], budget: str, folder: str | Path = "runs") -> Path:
    """Writes `effects_04.csv`, which the page of verdicts is made of.

    Args:
        found: see `claims` and `segmentation_claims`.
        budget: how the models were trained, in words.
        folder: where to.
    """
    rows = [
        {"claim": claim.about, "model": claim.model, "baseline": "in the measure"}
        | {"measure": claim.text, "data": "shapes", "budget": budget, "n": claim.effect.n}
        | {"effect": _number(claim.effect.mean), "low": _number(claim.effect.low), "high": _number(claim.effect.high)}
        | {"verdict": claim.verdict}
        for claim in found
    ]
    return write_rows(Path(folder) / "effects_04.csv", rows)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
