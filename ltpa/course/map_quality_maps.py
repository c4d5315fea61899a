"""What notebook 04 measures: every map of a network, maps that no network made, and the object itself."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..attribution import explain
from ..inference import attend, images_at_once, to_float
from ..maps import resize
from ..metrics.overlap import CONTROLS, controls, picture_controls
from ..models.classifier import ImageClassifier, evaluation_mode
from ..models.networks import VGGGAP
from ..viz.words import METHOD_NAMES

LEVEL, FEATURES, METHOD, CONTROL, ORACLE = "level", "features", "method", "control", "oracle"  # kinds of maps
KINDS = (LEVEL, FEATURES, METHOD, CONTROL, ORACLE)  # in the order of tables and figures
NETWORK = "network"  # the kind of a row that is about no map
ATTENTION, NORM, OBJECT = "attention", "feature norm", "the object"  # families
UNIFORM, NOISE, CENTER = CONTROLS
NAMES = {method: name for method, name in METHOD_NAMES.items() if method != "attention"}  # in tables and pictures
MapsOf = Callable[[Any, Tensor, Tensor | None], Tensor]  # model, images and targets -> maps (N, H, W)


@dataclass(frozen=True)
class Method:
    """One kind of map that a network has.

    Attributes:
        family: such as "Grad-CAM", the same at every layer.
        kind: `LEVEL`, `FEATURES` or `METHOD`.
        layer: whose positions the map has; "" for the pixels of the picture.
        source: the name of the method itself, the same for the maps that are smoothed to the grids of layers.
        maps_of: of the source.
        grid: what the source is averaged to; None leaves it as it is.
    """

    family: str
    kind: str
    layer: str
    source: str
    maps_of: MapsOf
    grid: tuple[int, int] | None = None

    def maps(self, model: ImageClassifier, images: Tensor, target: Tensor | None) -> Tensor:
        """Return the maps (N, H, W)."""
        return smoothed(self.maps_of(model, images, target), self.grid)


def methods_of(model: ImageClassifier, image: Tensor, methods: Sequence[str]) -> dict[str, Method]:
    """Return what is measured of a network by name; `methods` are those of `ltpa.explain` beside attention."""
    norms = feature_norms(model, image)
    levels = [level for level in attend(model, image, "fp32").maps if level != "cam"]
    plan = {level: Method(ATTENTION, LEVEL, level, level, partial(_explained, "attention", level)) for level in levels}
    for layer in norms:
        name = f"{NORM} {layer}"
        plan[name] = Method(NORM, FEATURES, layer, name, partial(_norm, layer))
    for method in methods:
        family, maps_of = NAMES[method], partial(_explained, method, None)
        if method == "gradcam":
            for layer in norms:
                name = f"{family} {layer}"
                plan[name] = Method(family, METHOD, layer, name, partial(_explained, method, layer))
        elif method != "cam":
            plan[family] = Method(family, METHOD, "", family, maps_of)
            for layer, norm in norms.items():
                grid = (norm.shape[1], norm.shape[2])
                if grid != tuple(image.shape[2:]):
                    plan[f"{family}, as {layer}"] = Method(family, METHOD, layer, family, maps_of, grid)
        elif isinstance(model, VGGGAP):
            plan[family] = Method(family, METHOD, list(norms)[-1], family, maps_of)
    return plan


def compute_maps(
    plan: Mapping[str, Method], model: ImageClassifier, images: Tensor, target: Tensor | None
) -> dict[str, tuple[Tensor, float]]:
    """Return the maps (N, H, W) of each method by name, and the milliseconds that an image took."""
    sources: dict[str, tuple[Tensor, float]] = {}
    for method in plan.values():
        if method.source not in sources:
            start = time.perf_counter()
            maps = method.maps_of(model, images, target)
            sources[method.source] = maps, 1000 * (time.perf_counter() - start) / len(images)
    return {
        name: (smoothed(sources[method.source][0], method.grid), sources[method.source][1])
        for name, method in plan.items()
    }


def without_network(images: Tensor, masks: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return maps (N, H, W) by name: three that do not know the picture, two that do, and the object itself."""
    blind = controls(len(images), (images.shape[2], images.shape[3]), seed)
    return blind | picture_controls(images) | {OBJECT: masks.float()}


def kind_without_network(name: str) -> str:
    """Return the kind of a map of `without_network`."""
    return ORACLE if name == OBJECT else CONTROL


def smoothed(maps: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Return maps (N, H, W) as coarse as a grid: averaged to it, then scaled up as attention maps are."""
    if grid is None:
        return maps
    return resize(adaptive_avg_pool2d(maps, grid), (maps.shape[1], maps.shape[2]))


def feature_norms(model: ImageClassifier, images: Tensor) -> dict[str, Tensor]:
    """Return layer -> the norm (N, h, w) of the local features that a network reads, or could."""
    trunk: Any = model.trunk
    parts: dict[str, list[Tensor]] = {}
    with evaluation_mode(model), torch.inference_mode():
        for batch in images.split(images_at_once(images)):
            x = to_float(batch.to(model.mean.device)).to(model.mean.dtype)
            for layer, features in trunk(model.normalize(x)).items():
                parts.setdefault(layer, []).append(features.float().norm(dim=1).cpu())
    return {layer: torch.cat(norms) for layer, norms in parts.items()}


def _norm(layer: str, model: ImageClassifier, images: Tensor, _: Tensor | None) -> Tensor:
    return resize(feature_norms(model, images)[layer], (images.shape[2], images.shape[3]))


def _explained(method: str, layer: str | None, model: ImageClassifier, images: Tensor, target: Tensor | None) -> Tensor:
    return explain(model, images, method, target, layer)
