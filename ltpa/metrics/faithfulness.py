"""Does a map say something about the model? Deletion and insertion of pixels, and layers made random again.

Both concern a model and its maps together; a map that lies on the object need not be what the model goes by.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import closest
from ..inference import attend, attend_batches, images_at_once, to_float
from ..maps import check_maps, correlation, rank_agreement, resize
from ..models.attention import Attention
from ..models.backbones import ResNet164, VGGTrunk
from ..models.networks import ImageClassifier, chosen_classes
from .overlap import blur

FILLS = ("blur", "mean")
_BLUR = 1 / 8  # sigma of the blur that takes the place of pixels, as a fraction of the shorter side


@dataclass(frozen=True)
class Curves:
    """What becomes of the probability of a class while pixels go and come, in the order of a map.

    Attributes:
        fractions: (K,), of the pixels that were changed, from 0 to 1; the true ones, after rounding to whole pixels.
        deletion: (N, K), the probability while the strongest pixels are filled first; low where the map is faithful.
        insertion: (N, K), the probability while they are put into the filled picture first; high where it is faithful.
        deletion_area, insertion_area: (N,), the areas under the curves in [0, 1], by the trapezoid rule.
    """

    fractions: Tensor
    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_area(self) -> Tensor:
        """(N,), low where the map is faithful."""
        return torch.trapezoid(self.deletion, self.fractions, dim=1)

    @property
    def insertion_area(self) -> Tensor:
        """(N,), high where the map is faithful."""
        return torch.trapezoid(self.insertion, self.fractions, dim=1)


def deletion_insertion(
    model: ImageClassifier,
    images: Tensor,
    maps: Tensor,
    target: Tensor | int | None = None,
    *,
    fill: str = "blur",
    steps: int = 16,
    seed: int = 0,
    precision: str = "auto",
    batch_size: int | None = None,
) -> Curves:
    """Deletion and insertion curves (Petsiuk et al. 2018), with both end points and the true fractions.

    Only the order of a map's pixels counts, and the filled pictures are none that the model was trained on: compare
    with the curves of `ltpa.metrics.controls`, over many images (arXiv 1912.01451).

    Args:
        model: any model of `ltpa.create_model`.
        images: uint8, or float in [0, 1], (N, 3, H, W).
        maps: non-negative weights, (N, h, w), scaled bilinearly to the size of the images. Pixels of equal weight
            come in a random order; a uniform map is so a random order of all pixels.
        target: the class whose probability is followed, one or (N,); None means the predicted ones.
        fill: what takes the place of a pixel: "blur", the picture under a Gaussian of an eighth of its shorter side, or
            "mean", the picture's mean color.
        steps: K - 1; how often pixels are changed.
        seed: of the order of equal weights.
        precision, batch_size: see `ltpa.inference.attend_batches`.

    Raises:
        TypeError, ValueError: see `ltpa.metrics.localize` and `attend_batches`; numbers of maps and images that
            differ; an unknown fill; fewer than 1 step; a target that is no class.
    """
    maps = check_maps(maps)
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}: {closest(fill, FILLS)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    logits = attend(model, images, precision, batch_size).logits
    if len(images) != len(maps):
        raise ValueError(f"there must be one map an image, not {len(maps)} maps for {len(images)} images")
    target = (logits.argmax(1) if target is None else chosen_classes(target, logits)).expand(len(images))
    pixels = images.shape[2] * images.shape[3]
    counts = torch.linspace(0, pixels, steps + 1, dtype=torch.float64).round().long().unique()
    generator = torch.Generator().manual_seed(seed)
    deletion, insertion = torch.empty(2, len(images), len(counts)).unbind()
    batch_size = images_at_once(images, batch_size)
    for start in range(0, len(images), batch_size):
        part = slice(start, min(start + batch_size, len(images)))
        batch = to_float(images[part])
        filled = blur(batch, _BLUR * min(batch.shape[2:])) if fill == "blur" else batch.mean((2, 3), keepdim=True)
        place = _places(resize(maps[part].cpu(), batch.shape[2:]), generator).to(batch.device)
        for k, count in enumerate(counts.tolist()):
            strongest = (place < count).unsqueeze(1)
            for curve, inside, outside in ((deletion, filled, batch), (insertion, batch, filled)):
                changed = torch.where(strongest, inside, outside)
                (((_, seen),)) = attend_batches(model, changed, precision, batch_size)
                probabilities = seen.logits.float().softmax(1).cpu()
                curve[part, k] = probabilities.gather(1, target[part, None]).squeeze(1)
    return Curves(counts / pixels, deletion, insertion)


def _places(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Each pixel's place in the order from the strongest, from 0; equal ones in random order; (N, H, W)."""
    weights = maps.flatten(1)
    shuffled = torch.rand(weights.shape, generator=generator).argsort(dim=1)
    order = weights.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, order)
    places = torch.arange(weights.shape[1]).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)


def layers_top_down(model: nn.Module, images: Tensor) -> list[str]:
    """Names of the layers with weights, in the order from the logits down to the image.

    A layer is a convolution with its norm (`trunk.conv13`), a stage of a ResNet, the global branch, the attention of a
    level, the head; of other models, what the model itself is made of.

    Args:
        model: the network.
        images: one image is enough, (N, 3, H, W), which is run through it to see the order.
    """
    blocks = {name: block for name, block in _blocks(model) if any(True for _ in block.parameters())}
    called: list[str] = []
    hooks = [
        block.register_forward_pre_hook(lambda *_, name=name: called.append(name)) for name, block in blocks.items()
    ]
    try:
        for _ in attend_batches(model, images[:1], "fp32"):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(reversed(called)))


def _blocks(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    blocks = []
    for name, child in model.named_children():
        inner = isinstance(child, VGGTrunk | ResNet164 | nn.ModuleDict)
        blocks += _blocks(child, f"{prefix}{name}.") if inner else [(prefix + name, child)]
    return blocks


MapsOf = Callable[[ImageClassifier, Tensor], Mapping[str, Tensor]]


def randomization(
    model: ImageClassifier,
    images: Tensor,
    maps_of: MapsOf | None = None,
    *,
    stops: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """The sanity check of Adebayo et al. 2018 (arXiv 1810.03292): do maps change when the model forgets what it learnt?

    On a copy of the model the layers are made random again, one after the other from the top down, as they are in a new
    model; after each, the maps are compared with those of the trained model. A map that stays as it was says nothing
    about what the model has learnt in these layers.

    Args:
        model: any model of `ltpa.create_model`; it is not changed.
        images: uint8, or float in [0, 1], (N, 3, H, W).
        maps_of: from a model and images to maps by name, {name: (N, h, w)}; without it, the attention maps. For others:
            `lambda model, images: {"saliency": ltpa.explain(model, images, "saliency", target)}`. Give a target: the
            class that the random model predicts is another one.
        stops: layers of `layers_top_down` after which maps are compared; None means after each.
        seed: of the random weights.

    Returns:
        layer -> name -> {"rank_agreement": (N,), "correlation": (N,)} between the maps before and after that layer and
        all above it became random; the correlation is the absolute value of Pearson's, as a map turned upside down
        still has the old structure. NaN where a map is constant.

    Raises:
        TypeError, ValueError: see `attend_batches`; a stop that is no layer; a model without maps.
    """
    maps_of = maps_of or (lambda net, batch: attend(net, batch, "fp32").maps)
    layers = layers_top_down(model, images)
    stops = layers if stops is None else stops
    for stop in stops:
        if stop not in layers:
            raise ValueError(f"unknown layer {stop!r}: {closest(stop, layers)}")
    before = maps_of(model, images)
    if not before:
        raise ValueError("this model has no attention maps; give maps_of, such as one that calls ltpa.explain")
    changed = copy.deepcopy(model)
    found = {}
    devices = [model.mean.device] if model.mean.is_cuda else []
    for number, layer in enumerate(layers):
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed * 1_000 + number)
            for module in changed.get_submodule(layer).modules():
                _make_random(module)
        if layer in stops:
            after = maps_of(changed, images)
            found[layer] = {
                name: {
                    "rank_agreement": rank_agreement(maps, after[name]),
                    "correlation": correlation(maps, after[name]).abs(),
                }
                for name, maps in before.items()
            }
    return found


def permuted_attention(model: ImageClassifier, images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """How much the answer depends on where a map lies: its weights are permuted among the positions.

    The experiment of "Attention is not explanation" (Jain and Wallace 2019, arXiv 1902.10186, section 4.2.1): where the
    answer stays the same, the map explains little of it.

    Args:
        model: a model with attention levels.
        images: uint8, or float in [0, 1], (N, 3, H, W).
        seed: of the permutation, one for each level and batch of images.

    Returns:
        level -> (N,), the total variation distance between the class probabilities with the map as it is and permuted,
        0 = the same answer, 1 = another one for certain; the other levels keep their maps.

    Raises:
        ValueError: a model without attention levels; see also `attend_batches`.
    """
    levels = getattr(model, "attention", None)
    if levels is None:
        raise ValueError("this model has no attention levels whose weights could be permuted")
    before = attend(model, images, "fp32").logits.softmax(1)
    found = {}
    for name, level in levels.items():
        generator = torch.Generator().manual_seed(seed)
        hook = level.register_forward_hook(lambda *seen, g=generator: _permuted(*seen, g))
        try:
            after = attend(model, images, "fp32").logits.softmax(1)
        finally:
            hook.remove()
        found[name] = (before - after).abs().sum(1) / 2
    return found


def _permuted(
    level: Attention, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...], generator: torch.Generator
) -> tuple[Tensor, ...]:
    """What a level gives if its weights lie at other positions: equation 3 once more, see `ltpa.attention`."""
    local, weights = inputs[0].flatten(2), output[1].flatten(1)  # (N, C_l, n) and (N, n)
    weights = weights[:, torch.randperm(weights.shape[1], generator=generator).to(weights.device)]
    descriptor = (local.to(weights.dtype) @ weights.unsqueeze(2)).squeeze(2)
    if level.normalizer == "sigmoid":
        descriptor = descriptor / weights.shape[1]
    if level.W is not None:
        descriptor = level.W(descriptor)
    return descriptor, weights.view_as(output[1]), output[2]


def _make_random(module: nn.Module) -> None:
    """A module's own weights as in a new model (its parts are left to themselves)."""
    if isinstance(module, nn.Conv2d):  # see `ltpa.models.backbones.conv_block`
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        if module.compatibility != "dp":
            module.u.copy_(torch.randn_like(module.u) / len(module.u) ** 0.5)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()
    elif any(True for _ in module.parameters(recurse=False)):
        raise ValueError(f"{type(module).__name__} has weights but no reset_parameters() that makes them random again")
