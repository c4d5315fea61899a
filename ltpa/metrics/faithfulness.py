"""Measure whether the model relies on its map: deletion and insertion of pixels, and permuted attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import closest, counted
from ..inference import Model, attend, attend_batches, images_at_once, to_float
from ..maps import check_maps, order_ranks, resize
from ..models.attention import Attention
from ..models.classifier import chosen_classes
from ..models.foreign import Normalization, as_classifier, uncompiled
from .overlap import blur

FILLS = ("mean", "noise", "blur")
FRACTIONS = (0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1)  # of the pixels; an object fills a few percent
_BLUR = 1 / 8  # sigma of the blur that replaces pixels, as a fraction of the shorter side


@dataclass(frozen=True)
class Curves:
    """The probability of a class while pixels are deleted or inserted, strongest first."""

    fractions: Tensor  # (K,), of changed pixels, from 0 to 1, after rounding to whole pixels
    deletion: Tensor  # (N, K), falls early if the map is faithful
    insertion: Tensor  # (N, K), rises early if the map is faithful

    @property
    def deletion_area(self) -> Tensor:
        """Return the area under the curve in [0, 1], (N,): low if the map is faithful."""
        return torch.trapezoid(self.deletion, self.fractions, dim=1)

    @property
    def insertion_area(self) -> Tensor:
        """Return the area under the curve in [0, 1], (N,): high if the map is faithful."""
        return torch.trapezoid(self.insertion, self.fractions, dim=1)


def deletion_insertion(
    model: Model,
    images: Tensor,
    maps: Tensor,
    target: Tensor | int | None = None,
    *,
    fill: str = "mean",
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    precision: str = "auto",
    batch_size: int | None = None,
    normalize: Normalization | None = None,
) -> Curves:
    """Return deletion and insertion curves (Petsiuk et al. 2018, arXiv 1806.07421), a point for each of `fractions`.

    Only the order of a map's pixels counts, and the model was not trained on filled pictures. So compare with the
    curves of `ltpa.metrics.controls`, and of the mask where there is one, over many images (arXiv 1912.01451).

    Args:
        model: a run, any model of `ltpa.create_model`, or your own module from images to logits.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        maps: non-negative weights (N, h, w), resized to the images. Pixels of equal weight come in random order.
        target: the class whose probability is measured, one or (N,); by default the predicted ones.
        fill: what replaces a pixel: the "mean" color of its picture; "noise", the color of a random pixel of its
            picture; or "blur", a Gaussian with sigma 1/8 of the shorter side, through which objects stay visible.
        fractions: rising from 0 to 1, of the pixels that are changed; rounded to whole pixels.
        normalize: (mean, std) per channel, for your own module if it reads normalized images.
    """
    maps = check_maps(maps)
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}: {closest(fill, FILLS)}")
    points = [float(fraction) for fraction in fractions]
    if len(points) < 2 or points[0] != 0 or points[-1] != 1 or sorted(points) != points:
        raise ValueError(f"fractions must rise from 0 to 1, not {points}")
    network = as_classifier(model, normalize)
    logits = attend(network, images, precision, batch_size).logits
    if len(images) != len(maps):
        raise ValueError(
            f"there must be one map for each image, not {counted(len(maps), 'map')} for {counted(len(images), 'image')}"
        )
    target = (logits.argmax(1) if target is None else chosen_classes(target, logits)).expand(len(images))
    pixels = images.shape[2] * images.shape[3]
    counts = (torch.tensor(points, dtype=torch.float64) * pixels).round().long().unique()
    generator = torch.Generator().manual_seed(seed)
    deletion, insertion = torch.empty(2, len(images), len(counts)).unbind()
    batch_size = images_at_once(images, batch_size)
    for start in range(0, len(images), batch_size):
        part = slice(start, min(start + batch_size, len(images)))
        batch = to_float(images[part])
        filled = _filled(batch, fill, generator)
        weights = resize(maps[part].cpu(), batch.shape[2:]).flatten(1)
        rank = order_ranks(weights, generator).view(len(batch), 1, *batch.shape[2:]).to(batch.device)
        for k, count in enumerate(counts.tolist()):
            strongest = rank < count
            for curve, inside, outside in ((deletion, filled, batch), (insertion, batch, filled)):
                changed = torch.where(strongest, inside, outside)
                (((_, output),)) = attend_batches(network, changed, precision, batch_size)
                probabilities = output.logits.float().softmax(1).cpu()
                curve[part, k] = probabilities.gather(1, target[part, None]).squeeze(1)
    return Curves(counts / pixels, deletion, insertion)


def _filled(images: Tensor, fill: str, generator: torch.Generator) -> Tensor:
    """Return what replaces the pixels of float images."""
    if fill == "blur":
        return blur(images, _BLUR * min(images.shape[2:]))
    if fill == "mean":
        return images.mean((2, 3), keepdim=True)
    count, _, height, width = images.shape
    order = torch.rand(count, height * width, generator=generator).argsort(1).to(images.device)
    return images.flatten(2).gather(2, order.unsqueeze(1).expand(-1, 3, -1)).view_as(images)


def permuted_attention(model: Model, images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return how much the answer changes if the weights of one level are permuted, by level.

    The values (N,) are total variation distances between the class probabilities before and after: 0 = the same
    answer, 1 = a completely different one. The test of Jain and Wallace 2019 (arXiv 1902.10186, section 4.2.1).
    """
    network = as_classifier(model)
    levels = {name: level for name, level in getattr(network, "attention", {}).items() if isinstance(level, Attention)}
    if not levels:
        raise ValueError("this model has no attention levels whose weights could be permuted")
    before = attend(network, images, "fp32").logits.softmax(1)
    distances = {}
    for name, level in levels.items():
        permute = partial(_permuted, generator=torch.Generator().manual_seed(seed))
        hook = level.register_forward_hook(permute)
        try:
            with uncompiled(network):
                after = attend(network, images, "fp32").logits.softmax(1)
        finally:
            hook.remove()
        distances[name] = (before - after).abs().sum(1) / 2
    return distances


def _permuted(
    level: Attention, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...], generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return the output of a level with permuted weights: equation 3 again, as in `Attention`."""
    local, weights = inputs[0].flatten(2), output[1].flatten(1)  # (N, C_l, n) and (N, n)
    weights = weights[:, torch.randperm(weights.shape[1], generator=generator).to(weights.device)]
    descriptor = (local.to(weights.dtype) @ weights.unsqueeze(2)).squeeze(2)
    if level.normalizer == "sigmoid":
        descriptor = descriptor / weights.shape[1]
    if level.W is not None:
        descriptor = level.W(descriptor.to(level.W.weight.dtype))
    return descriptor, weights.view_as(output[1]), output[2]
