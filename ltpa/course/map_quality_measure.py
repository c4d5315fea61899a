"""Measure attention maps, other explanations, and maps that know nothing, on the same images.

A method is a function from a model, images and targets to maps; a control is a map that no model made. Every map of
every model becomes a `Row`: does it lie on the object, does the model go by it, does it depend on what it learned.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attribution import explain
from ..data.dataset import Split
from ..inference import attend, to_float
from ..maps import entropy, rank_agreement
from ..metrics.faithfulness import deletion_insertion, permuted_attention
from ..metrics.overlap import controls as controls_without_picture
from ..metrics.overlap import localization_tensors
from ..metrics.sanity import layers_top_down, randomization
from ..metrics.statistics import Interval, bootstrap_interval
from ..models.networks import VGGGAP, ImageClassifier
from ..progress import Progress
from ..viz.words import METHOD_NAMES

LEVEL, METHOD, CONTROL = "level", "method", "control"  # kinds of rows
ATTENTION, CENTER, OTSU, UNIFORM = "attention", "center", "Otsu", "uniform"
NAMES = {method: name for method, name in METHOD_NAMES.items() if method != "attention"}  # in tables and pictures
_STEPS = 10  # of deletion and insertion
_RESAMPLES = 2_000  # of the bootstrap

MapsOf = Callable[[ImageClassifier, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Method:
    """One kind of map that a model has; its family, such as "Grad-CAM", is the same at every layer."""

    family: str
    kind: str
    maps_of: MapsOf


@dataclass(frozen=True)
class Threshold:
    """From which weight on a map says "object": `factor` times its "mean" or its "max"."""

    of: str
    factor: float

    def mark(self, maps: Tensor) -> Tensor:
        """Return the marked pixels of maps (N, H, W), bool; a map that is zero everywhere marks every pixel."""
        level = maps.mean((1, 2), keepdim=True) if self.of == "mean" else maps.amax((1, 2), keepdim=True)
        return maps >= self.factor * level


@dataclass
class Row:
    """What was measured of one kind of map of one model.

    Attributes:
        name: such as "Grad-CAM conv10"; its family is "Grad-CAM".
        kind: `LEVEL`, `METHOD` or `CONTROL`.
        maps: (N, H, W), at the resolution of the images.
        values: measure -> (N,), or (K,) for deletion, insertion, sanity and permuted, which are measured on the first K
            images; "ms" is milliseconds an image, (1,).
        sanity: layer -> (K,), the rank agreement with the maps after that layer and all above it became random.
        curves: fractions, mean deletion and mean insertion, (steps + 1,) each.
        threshold: of the Jaccard index, chosen on the held-out images.
        held_out: the mean average precision on the held-out images, by which a model's best level is chosen.
    """

    model: str
    name: str
    family: str
    kind: str
    maps: Tensor
    values: dict[str, Tensor]
    sanity: dict[str, Tensor] = field(default_factory=dict)
    curves: tuple[Tensor, Tensor, Tensor] | None = None
    threshold: Threshold | None = None
    held_out: float = math.nan

    def title(self) -> tuple[str, str]:
        """Return the names of model and map."""
        return self.model, self.name

    def interval(self, measure: str) -> Interval:
        """Return the mean of a measure with its 95 % interval over the images; n is 0 where it was not measured."""
        return image_interval(self.values[measure]) if measure in self.values else Interval(math.nan)


def image_interval(values: Tensor, comparisons: int = 1) -> Interval:
    """Return the bootstrap interval of the mean over images (N,); `comparisons` of them hold together with 95 %."""
    return bootstrap_interval(values.double().numpy(), comparisons, resamples=_RESAMPLES)


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
    """Measure every level of every model, the other methods, and the controls; the rows come in this order, by model.

    Args:
        models: by the names that they have in the table.
        images: the images that are measured, with masks.
        held_out: other images with masks; they choose each row's threshold and each model's best level.
        methods: of `ltpa.explain`; Grad-CAM is taken at every level that the model attends to, CAM where there is one.
        costly: how many of the images deletion, insertion and the sanity check take.
        fill: as for `ltpa.metrics.deletion_insertion`.
        seed: of the controls, of ties and of random weights.
        progress: show a bar.
    """
    if images.masks is None or held_out.masks is None:
        raise ValueError("maps are measured against masks, which these data lack; the dataset 'shapes' has them")
    if not len(images) or not len(held_out):
        raise ValueError("there must be images to measure on, and held-out ones to choose thresholds on")
    few = images.images[: min(costly, len(images))]
    own, others = controls(images.images, seed), controls(held_out.images, seed + 1)
    pairs = {name: (own[name], others[name]) for name in own}
    shared = _Measurement(images.images, images.masks, few, held_out.images, held_out.masks, pairs, fill, seed)
    plans = {name: methods_of(model, images.images[:1], methods) for name, model in models.items()}
    rows: list[Row] = []
    with Progress(sum(len(plan) + len(own) for plan in plans.values()), show=progress) as bar:
        for name, plan in plans.items():
            for row in shared.rows(name, models[name], plan):
                rows.append(row)
                bar.update(len(rows), row.title)
    return rows


def methods_of(model: ImageClassifier, image: Tensor, methods: Sequence[str]) -> dict[str, Method]:
    """Return what is measured of a model by name: its attention levels, and those of the methods that it allows."""

    def maps_of(method: str, layer: str | None) -> MapsOf:
        return lambda model, images, target: explain(model, images, method, target, layer)

    levels = [level for level in attend(model, image, "fp32").maps if level != "cam"]
    plan = {level: Method(ATTENTION, LEVEL, maps_of("attention", level)) for level in levels}
    for method in methods:
        family = NAMES[method]
        if method == "gradcam" and levels:
            plan |= {f"{family} {level}": Method(family, METHOD, maps_of(method, level)) for level in levels}
        elif method != "cam" or isinstance(model, VGGGAP):
            plan[family] = Method(family, METHOD, maps_of(method, None))
    return plan


def controls(images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return maps (N, H, W) that no model made, by name: three that do not know the picture, and `otsu`, which does."""
    height, width = images.shape[-2:]
    return controls_without_picture(len(images), (height, width), seed) | {OTSU: otsu(images)}


@dataclass(frozen=True)
class _Measurement:
    """What all rows are measured with; `few` are the images for what is costly."""

    images: Tensor
    masks: Tensor
    few: Tensor
    held_out: Tensor
    held_out_masks: Tensor
    controls: Mapping[str, tuple[Tensor, Tensor]]  # maps of the images, and of the held-out ones
    fill: str
    seed: int

    def rows(self, name: str, model: ImageClassifier, plan: Mapping[str, Method]) -> Iterator[Row]:
        target = attend(model, self.images, "fp32").logits.argmax(1)
        permuted = permuted_attention(model, self.few, self.seed) if hasattr(model, "attention") else {}
        for map_name, method in plan.items():
            start = time.perf_counter()
            maps = method.maps_of(model, self.images, target)
            seconds = time.perf_counter() - start
            row = Row(name, map_name, method.family, method.kind, maps, {})
            self._localize(row, method.maps_of(model, self.held_out, None))
            self._faithfulness(row, model, target)
            self._sanity(row, model, target, method.maps_of)
            row.values["ms"] = torch.tensor([seconds / len(self.images) * 1000])
            if method.kind == LEVEL:
                row.values["permuted"] = permuted[map_name]
            yield row
        for control, (maps, held_out_maps) in self.controls.items():
            row = Row(name, control, control, CONTROL, maps, {})
            self._localize(row, held_out_maps)
            self._faithfulness(row, model, target)
            yield row

    def _localize(self, row: Row, held_out_maps: Tensor) -> None:
        row.values |= localization_tensors(row.maps, self.masks)
        row.threshold = best_threshold(held_out_maps, self.held_out_masks)
        row.values["jaccard"] = jaccard(row.threshold.mark(row.maps), self.masks)
        row.values["entropy"] = entropy(row.maps)
        precision = localization_tensors(held_out_maps, self.held_out_masks)["average_precision"]
        row.held_out = precision.nanmean().item()

    def _faithfulness(self, row: Row, model: ImageClassifier, target: Tensor) -> None:
        few = len(self.few)
        curves = deletion_insertion(
            model, self.few, row.maps[:few], target[:few], fill=self.fill, steps=_STEPS, seed=self.seed
        )
        row.values |= {"deletion": curves.deletion_area, "insertion": curves.insertion_area}
        row.curves = (curves.fractions, curves.deletion.mean(0), curves.insertion.mean(0))

    def _sanity(self, row: Row, model: ImageClassifier, target: Tensor, maps_of: MapsOf) -> None:
        """Compare the maps at stops from the top down: head, attention, a third of the trunk and all of it."""
        target = target[: len(self.few)]
        layers = layers_top_down(model, self.few)
        trunk = [layer for layer in layers if layer.startswith("trunk.")]
        above = [layer for layer in layers if layer not in trunk]
        stops = list(dict.fromkeys([above[0], above[-1], trunk[len(trunk) // 3], trunk[-1]]))
        similarities = randomization(
            model, self.few, lambda net, x: {"": maps_of(net, x, target)}, stops=stops, seed=self.seed
        )
        row.sanity = {layer: by_name[""]["rank_agreement"] for layer, by_name in similarities.items()}
        row.values["sanity"] = row.sanity[stops[-1]]


def otsu(images: Tensor) -> Tensor:
    """Return the picture itself as a map (N, H, W): 1 on the smaller side of Otsu's threshold of its gray values.

    It is 0 elsewhere, and everywhere for a picture of a single gray. Otsu 1979; `images` are uint8, or float in [0, 1].
    """
    try:
        from skimage.filters import threshold_otsu
    except ImportError as error:
        raise ImportError("Otsu's threshold needs scikit-image: pip install 'ltpa[notebooks]'") from error
    gray = torch.einsum("nchw,c->nhw", to_float(images).cpu(), torch.tensor([0.299, 0.587, 0.114]))
    gray = (gray * 255).round().byte()  # whole numbers: scikit-image's own bins would cut values in two
    bright = torch.stack([one > int(threshold_otsu(one.numpy())) for one in gray])
    mostly = bright.float().mean((1, 2)) > 0.5
    return (bright ^ mostly[:, None, None]).float()


def jaccard(marked: Tensor, masks: Tensor) -> Tensor:
    """Return intersection over union of marked pixels and objects, bool (N, H, W) both; NaN where a mask is empty."""
    both, either = (marked & masks).sum((1, 2)), (marked | masks).sum((1, 2))
    return (both / either).where(masks.any(2).any(1), torch.nan)


def best_threshold(maps: Tensor, masks: Tensor) -> Threshold:
    """Return the threshold of the best mean Jaccard index, to be used on other images than these (arXiv 2001.07437)."""
    return max(_THRESHOLDS, key=lambda threshold: jaccard(threshold.mark(maps), masks).nanmean().item())


# From half the mean to 32 times it in steps of a fourth root of 2; from a twentieth of the highest value to all of it.
_THRESHOLDS = (
    *(Threshold("mean", 2 ** (k / 4)) for k in range(-4, 21)),
    *(Threshold("max", k / 20) for k in range(1, 21)),
)


def best_row(rows: Sequence[Row]) -> Row:
    """Return the row with the best average precision on the held-out images."""
    return max(rows, key=lambda row: row.held_out)


def agreement_with_saliency(rows: Sequence[Row]) -> dict[tuple[str, str], Interval]:
    """Return (model, level) -> the rank agreement of its maps with the gradient, where saliency was measured."""
    maps_by_model = {row.model: row.maps for row in rows if row.family == NAMES["saliency"]}
    return {
        (row.model, row.name): image_interval(rank_agreement(row.maps, maps_by_model[row.model]))
        for row in rows
        if row.kind == LEVEL and row.model in maps_by_model
    }


def cases(row: Row, measure: str = "average_precision") -> dict[str, int]:
    """Return the best, the median and the worst image of a row: {"best": index, "median": ..., "worst": ...}."""
    known = (~row.values[measure].isnan()).nonzero().flatten()
    if not len(known):
        raise ValueError(f"no image of {row.model}, {row.name} has a value of {measure}")
    order = known[row.values[measure][known].argsort(descending=True, stable=True)].tolist()
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
