"""Measure whether the map of an answer lies on that answer's object, in scenes of two objects."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..data.dataset import Split
from ..inference import Model, attend
from ..maps import check_maps, resize
from ..models.foreign import Normalization, as_classifier

MapsOfClass = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


def class_contrast(
    model: Model, scenes: Split, maps_of: MapsOfClass, *, normalize: Normalization | None = None
) -> dict[str, dict[str, Tensor]]:
    """Return whether the maps of two classes lie on the objects of these classes, for scenes with both.

    Of a map's weight on both objects, the part on one of them counts, so 0.5 is chance; weight on neither object counts
    for nothing. This is the grid pointing game (Böhle et al. 2021, arXiv 2104.00032; compared with others in
    2303.11884), with whole scenes in place of two pictures side by side.

    An attention map is the same for all classes, so its "own" and its "right" are 0.5 by construction: it cannot say
    which object speaks for which class. Its "answer" can be higher: the map may prefer the object that the model names.

    Args:
        model: a run, any model of `ltpa.create_model`, or your own module; trained on pictures of one object.
        scenes: images with labels (N, 2) and masks (N, 2, H, W): `ltpa.load_data("shapes", objects=2).test`.
        maps_of: (images, classes (N,)) -> {name: maps (N, h, w) of what speaks for these classes}, such as
            `lambda images, classes: {"saliency": ltpa.explain(model, images, "saliency", classes)}`.
        normalize: (mean, std) per channel, for your own module if it reads normalized images.

    Returns:
        name -> {"own": (N,), the part of the weight on both objects that is on the class's own, mean of both classes;
        "right": (N,), the fraction of the two classes for which that is above one half (a tie counts half);
        "answer": (N,), "own" for the model's first answer alone, NaN where it names neither object}. A map without
        weight on either object gives NaN; "right" counts it as a tie.
    """
    if scenes.masks is None or scenes.masks.ndim != 4 or scenes.labels.shape != (len(scenes), 2):
        raise ValueError('contrast needs scenes of two objects: ltpa.load_data("shapes", objects=2).test')
    first = attend(as_classifier(model, normalize), scenes.images).logits.argmax(1)
    shares: dict[str, list[Tensor]] = {}
    for number in (0, 1):
        for name, maps in maps_of(scenes.images, scenes.labels[:, number]).items():
            on_objects = _weight_on(maps, scenes.masks)
            shares.setdefault(name, []).append(on_objects[:, number] / on_objects.sum(1))
    named = first[:, None] == scenes.labels  # (N, 2), at most one is True
    results = {}
    for name, both in shares.items():
        own = torch.stack(both, 1)  # (N, 2), of each class
        right = (own > 0.5).double() + 0.5 * ((own == 0.5) | own.isnan())
        answer = own.where(named, 0.0).sum(1).where(named.any(1), torch.nan)
        results[name] = {"own": own.mean(1).float(), "right": right.mean(1).float(), "answer": answer.float()}
    return results


def _weight_on(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the sum of each map (N, h, w) on each of its objects, float64 (N, k)."""
    maps = resize(check_maps(maps).cpu(), masks.shape[2:]).double()
    return torch.einsum("nhw,nkhw->nk", maps, masks.double())
