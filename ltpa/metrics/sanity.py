"""Measure whether a map depends on what the model learned: make layers random again, from the top down."""

import copy
from collections.abc import Callable, Mapping, Sequence
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
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Return how similar maps stay while layers of a copy of the model become random (Adebayo et al. 2018).

    A map that does not change says nothing about what the model learned in these layers (arXiv 1810.03292).

    Args:
        model: a run, any model of `ltpa.create_model`, or your own module, which needs `maps_of`.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        maps_of: (model, images) -> {name: maps (N, h, w)}; by default the attention maps. For other methods, fix the
            target, because the random model predicts other classes:
            `lambda model, images: {"saliency": ltpa.explain(model, images, "saliency", target)}`.
        stops: layers of `layers_top_down` after which maps are compared; by default all.

    Returns:
        layer -> name -> {"rank_agreement": (N,), "correlation": (N,)} after this layer and all above it became random.
        The correlation is Pearson's, as an absolute value, since an inverted map keeps its structure. NaN if a map is
        constant.
    """
    check_images(images)
    model = unwrapped(model)
    maps_of = maps_of or (lambda net, batch: attend(net, batch, "fp32").maps)
    layers = layers_top_down(model, images)
    if not layers:
        raise ValueError("this network has no layers with weights that could become random")
    stops = layers if stops is None else stops
    for stop in stops:
        if stop not in layers:
            raise ValueError(f"unknown layer {stop!r}: {closest(stop, layers)}")
    before = maps_of(model, images)
    if not before:
        raise ValueError("this model has no attention maps; give maps_of, such as one that calls ltpa.explain")
    changed = copy.deepcopy(model)
    similarities = {}
    device = as_classifier(model).mean.device
    devices = [device] if device.type == "cuda" else []
    for number, layer in enumerate(layers):
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed * 1_000 + number)
            for module in changed.get_submodule(layer).modules():
                _make_random(module)
        if layer in stops:
            after = maps_of(changed, images)
            similarities[layer] = {
                name: {
                    "rank_agreement": rank_agreement(m, after[name]),
                    "correlation": correlation(m, after[name]).abs(),
                }
                for name, m in before.items()
            }
    return similarities


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
