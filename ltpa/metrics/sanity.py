"""Measure whether a map depends on what the model learned: make layers random again, from the top down."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_images
from ..errors import closest
from ..inference import Model, attend
from ..maps import correlation, rank_agreement
from ..models.attention import Attention
from ..models.backbones import ResNet164, VGGTrunk
from ..models.foreign import as_classifier, uncompiled, unwrapped

MapsByName = Callable[[Any, Tensor], Mapping[str, Tensor]]


def randomization(
    model: Model,
    images: Tensor,
    maps_of: MapsByName | None = None,
    *,
    stops: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = 1,
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Return how similar maps stay while layers of a copy of the model become random (Adebayo et al. 2018).

    A map that does not change says nothing about what the model learned in these layers (arXiv 1810.03292). One that
    does change may still do so for other reasons, and random layers keep information: see `entropy_rise`.

    Args:
        model: a run, any model of `ltpa.create_model`, or your own module, which needs `maps_of`.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        maps_of: (model, images) -> {name: maps (N, h, w)}; by default the attention maps. For other methods, fix the
            target, because the random model predicts other classes:
            `lambda model, images: {"saliency": ltpa.explain(model, images, "saliency", target)}`.
        stops: layers of `layers_top_down` after which maps are compared; by default all.
        draws: how many sets of random weights are drawn; the similarities are the means over them.

    Returns:
        layer -> name -> {"rank_agreement": (N,), "correlation": (N,)} after this layer and all above it became random:
        Spearman's and Pearson's correlation, as absolute values, since an inverted map keeps its structure. So they are
        above 0 even between unrelated maps, the more the fewer positions a map has. NaN if a map is constant.
    """
    model = unwrapped(model)
    maps_of = maps_of or (lambda net, batch: attend(net, batch, "fp32").maps)
    layers = layers_top_down(model, images)
    if not layers:
        raise ValueError("this network has no layers with weights that could become random")
    stops = layers if stops is None else stops
    for stop in stops:
        if stop not in layers:
            raise ValueError(f"unknown layer {stop!r}: {closest(stop, layers)}")
    before = _maps(maps_of, model, images)
    similarities: dict[str, dict[str, dict[str, Tensor]]] = {}
    for draw in range(draws):
        for layer, changed in _random_from_the_top(model, layers, seed + draw * 1_000_003):
            if layer not in stops:
                continue
            after = maps_of(changed, images)
            for name, maps in before.items():
                total = similarities.setdefault(layer, {}).setdefault(name, {})
                for measure, compared in (("rank_agreement", rank_agreement), ("correlation", correlation)):
                    total[measure] = total.get(measure, 0.0) + compared(maps, after[name]).abs() / draws
    return similarities


def entropy_rise(
    model: Model, images: Tensor, maps_of: MapsByName | None = None, *, seed: int = 0, draws: int = 5
) -> dict[str, dict[str, Tensor]]:
    """Return by how much the entropy of each map rises when the whole model becomes random (eMPRT).

    The entropy H is that of `histogram_entropy`. A map that shows what the model learned should be less orderly without
    it: higher is better, and 0 means that learning leaves no trace. Unlike `randomization` it compares no
    positions and needs no order of layers.

    Maps with few positions fill few bins, so compare maps of one size. Arguments as in `randomization`.

    Returns:
        name -> {"relative": (N,), (H_random - H) / H as in the paper (Hedström et al. 2024, arXiv 2401.06465), which is
        huge where a map is almost one spot, so take medians; "difference": (N,), H_random - H in nats}. Both are means
        over `draws` sets of random weights; "relative" is NaN where all values of a map are equal.
    """
    model = unwrapped(model)
    maps_of = maps_of or (lambda net, batch: attend(net, batch, "fp32").maps)
    layers = layers_top_down(model, images)
    before = {name: histogram_entropy(maps) for name, maps in _maps(maps_of, model, images).items()}
    after = {name: torch.zeros_like(value) for name, value in before.items()}
    for draw in range(draws):
        *_, (_, changed) = _random_from_the_top(model, layers, seed + draw * 1_000_003)
        maps = maps_of(changed, images)
        for name in before:
            after[name] += histogram_entropy(maps[name]) / draws
    rises = {name: after[name] - before[name] for name in before}
    return {
        name: {"relative": (rise / before[name]).where(before[name] > 0, torch.nan), "difference": rise}
        for name, rise in rises.items()
    }


def histogram_entropy(maps: Tensor, bins: int = 100) -> Tensor:
    """Return the entropy in nats of a histogram of each map's values, (N, h, w) -> (N,); 0 if all values are equal.

    The `bins` are equal and reach from the lowest value of the map to its highest.
    """
    values = maps.cpu().flatten(1).double()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    at = ((values - low) / (high - low).clamp(min=1e-300) * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(values), bins, dtype=torch.float64)
    counts.scatter_add_(1, at, torch.ones_like(values))
    return torch.special.entr(counts / values.shape[1]).sum(1).float()


def _maps(maps_of: MapsByName, model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    if maps := maps_of(model, images):
        return maps
    raise ValueError("this model has no attention maps; give maps_of, such as one that calls ltpa.explain")


def _random_from_the_top(model: nn.Module, layers: Sequence[str], seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield each layer and one copy of the model in which this layer and all above it are random."""
    changed = copy.deepcopy(model)
    device = as_classifier(model).mean.device
    devices = [device] if device.type == "cuda" else []
    for number, layer in enumerate(layers):
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed * 1_000 + number)
            for module in changed.get_submodule(layer).modules():
                _make_random(module)
        yield layer, changed


def layers_top_down(model: Model, images: Tensor) -> list[str]:
    """Return the names of the layers with weights, from the logits down to the image.

    A layer is a convolution with its norm (`trunk.conv13`), a stage of a ResNet, the global branch, the attention of a
    level, the head, or, in other models, a direct child. One image is run through the network to find the order.
    """
    check_images(images)
    model = unwrapped(model)
    blocks = {name: block for name, block in _blocks(model) or [("", model)] if any(True for _ in block.parameters())}
    called: list[str] = []
    hooks = [b.register_forward_pre_hook(lambda *_, name=name: called.append(name)) for name, b in blocks.items()]
    try:
        with uncompiled(model):
            attend(model, images[:1], "fp32")
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


def _make_random(module: nn.Module) -> None:
    """Reset a module's own weights, not those of its children, as in a new model."""
    if isinstance(module, nn.Conv2d):  # as in `ltpa.models.backbones.conv_block`
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        if hasattr(module, "u"):
            module.u.copy_(torch.randn_like(module.u) / len(module.u) ** 0.5)
        if hasattr(module, "b"):
            module.b.zero_()
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()
    elif any(True for _ in module.parameters(recurse=False)):
        raise ValueError(f"{type(module).__name__} has weights but no reset_parameters() that makes them random again")
