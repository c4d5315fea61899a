"""Measure whether a map predicts what changes the answer: draw the same scene again with one thing changed.

The changed scenes come from the distribution that the pictures come from (but for those without an object), and what
changed is known exactly. So, unlike deleted pixels, they show the model nothing that it has never seen.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.dataset import Split
from ..data.shapes import CHANGES, draw_shapes
from ..inference import Model, attend, to_float
from ..maps import check_maps, rank_correlation, resize
from ..models.foreign import Normalization, as_classifier
from .statistics import Interval, bootstrap_interval

NO_OBJECT = CHANGES[0]
CHANCE_MARGIN = 0.05  # how much more often than by chance a label may be guessed from a scene without its object


@dataclass(frozen=True)
class Interventions:
    """What K changes of N pictures do to the answers of a model."""

    names: tuple[str, ...]  # of the changes
    moved: Tensor  # (N, K), total variation distance of the probabilities: 0 = the same answer, 1 = a different one
    drop: Tensor  # (N, K), how much less probable the first answer to the unchanged picture became
    answers: Tensor  # int64 (N, K), the first answers to the changed pictures
    changes: Tensor  # (N, K, H, W), how much each pixel changed: the mean over the channels, 0 to 1


def changed_scenes(images: Tensor, seed: int = 1, redraws: int = 2) -> dict[str, Split]:
    """Draw pictures again with one thing changed: no object, another object or background, or moved distractors.

    Everything else stays as it is, noise included. The changes are named "no object", "other object 1" and so on; all
    but the first are drawn `redraws` times. The labels say which object is there, or was there before.

    Args:
        images: the first N pictures of "shapes" with one object.
        seed: of `draw_shapes`: 2 s + 1 for the test pictures of `ltpa.load_data("shapes", seed=s)`.
        redraws: how many other objects, backgrounds and places each picture gets.
    """
    count, side = len(images), images.shape[-1]
    if not torch.equal(draw_shapes(count, side, seed)[0], images.cpu()):
        raise ValueError(
            f"these are not the first {count} drawn pictures of seed {seed}, so they cannot be drawn again; take the "
            'first images of ltpa.load_data("shapes", seed=s).test, and seed = 2 s + 1'
        )
    scenes = {NO_OBJECT: Split(*draw_shapes(count, side, seed, change=NO_OBJECT))}
    for change in CHANGES[1:]:
        for number in range(redraws):
            scenes[f"{change} {number + 1}"] = Split(*draw_shapes(count, side, seed, change=change, redraw=number))
    return scenes


def intervene(
    model: Model,
    images: Tensor,
    changed: Mapping[str, Split | Tensor] | Iterable[tuple[str, Tensor]],
    *,
    precision: str = "auto",
    batch_size: int | None = None,
    normalize: Normalization | None = None,
) -> Interventions:
    """Return what changes of the pictures do to the answers of a model.

    Args:
        model: a run, any model of `ltpa.create_model`, or your own module from images to logits.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        changed: name -> the same pictures changed, such as `changed_scenes` returns; or pairs of both.
        normalize: (mean, std) per channel, for your own module if it reads normalized images.
    """
    network = as_classifier(model, normalize)
    before = attend(network, images, precision, batch_size).logits.softmax(1)
    first = before.argmax(1, keepdim=True)
    names, moved, drop, answers, changes = [], [], [], [], []
    for name, pictures in _pairs(changed):
        if pictures.shape != images.shape:
            shapes = f"{tuple(images.shape)}, not {tuple(pictures.shape)}"
            raise ValueError(f"{name!r} must hold the same pictures changed, of shape {shapes}")
        after = attend(network, pictures, precision, batch_size).logits.softmax(1)
        names.append(name)
        moved.append((before - after).abs().sum(1) / 2)
        drop.append((before - after).gather(1, first).squeeze(1))
        answers.append(after.argmax(1))
        changes.append((to_float(pictures.cpu()) - to_float(images.cpu())).abs().mean(1))
    if not names:
        raise ValueError("there are no changes; ltpa.metrics.changed_scenes(images) draws some")
    stacked = (torch.stack(values, 1) for values in (moved, drop, answers, changes))
    return Interventions(tuple(names), *stacked)


def _pairs(changed: Mapping[str, Split | Tensor] | Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, pictures in changed.items() if isinstance(changed, Mapping) else changed:
        yield name, pictures.images if isinstance(pictures, Split) else pictures


def effect_prediction(maps: Tensor, effects: Interventions) -> dict[str, Tensor]:
    """Return how well each map (N, h, w) predicts which changes of its picture move the answer.

    A map claims that the answer comes from where its weight lies. So for every picture the K changes are ranked twice:
    by the change that the map weighs, `sum_p map_p |change_p| / sum_p map_p`, and by how far the answer moved.
    Spearman's correlation of the two is 1 if the map predicts which changes matter most. It is the "single deletion"
    of FunnyBirds (Hesse et al. 2023, arXiv 2308.06248) with redrawn scenes in place of missing parts, and the total
    variation distance, since attention has no class whose drop it could predict.

    Compare with the controls, not with 0: a uniform map predicts that the largest change matters most. Where a map is
    spread out, large changes collect much of its weight; `prediction_per_pixel` leaves the size of a change out.

    Args:
        maps: non-negative weights, resized to the pictures; a map that is zero everywhere counts as uniform.
        effects: of the same pictures.

    Returns:
        "weighed": (N, K), the changes in [0, 1] as each map weighs them;
        "prediction": (N,), the rank correlation of these and of `effects.moved`;
        "prediction_per_pixel": (N,), the same with the map's mean weight over a change, `weighed` / mean change.
        NaN where all changes of a picture move the answer alike, and per pixel for a uniform map.
    """
    changes = effects.changes.flatten(2).double()
    maps = check_maps(maps).cpu()
    if len(maps) != len(effects.moved):
        raise ValueError(f"there must be one map for each picture, not {len(maps)} for {len(effects.moved)}")
    flat = resize(maps, effects.changes.shape[2:]).flatten(1).double()
    flat = torch.where(flat.sum(1, keepdim=True) > 0, flat, 1.0)
    weighed = torch.einsum("nkp,np->nk", changes.expand(len(flat), -1, -1), flat / flat.sum(1, keepdim=True))
    per_pixel = weighed / changes.mean(2).clamp(min=1e-12)
    # In float32, so that equal sums stay equal.
    return {
        "weighed": weighed.float(),
        "prediction": rank_correlation(weighed.float(), effects.moved),
        "prediction_per_pixel": rank_correlation(per_pixel.float(), effects.moved),
    }


def accuracy_without_object(effects: Interventions, labels: Tensor, classes: int) -> Interval:
    """Return how often the absent object is still named, minus chance, with its 95 % interval over the pictures.

    Unless the whole interval is below `CHANCE_MARGIN`, the scene without its object gives the label away, and the
    interventions measure nothing; or there are too few pictures to tell.
    """
    right = effects.answers[:, effects.names.index(NO_OBJECT)] == labels.cpu()
    return bootstrap_interval(right.double().numpy()).minus(1 / classes)
