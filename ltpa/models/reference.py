"""Weights of the best-known PyTorch version (SaoYan/LearnToPayAttention) and of the 2021 notebook, in our models.

Their networks have attention before pooling, batch norm with epsilon 1e-5, no norm before the classifier, `g` from a
convolution over the whole last map, and a "projector" from level 1 to 512 channels.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import closest
from .attention import NORMALIZERS
from .backbones import VGG_LEVELS, GlobalBranch, VGGTrunk
from .classifier import ImageClassifier
from .foreign import mean_and_std
from .networks import AttentionNetwork, VGGLate

_EPS = 1e-5
_LAYERS = {  # block: our layers; its convolutions and norms are numbered 0, 1, 3, 4, 6, 7, in block 6 0, 1, 4, 5
    1: ("conv1", "conv2"),
    2: ("conv3", "conv4"),
    3: ("conv5", "conv6", "conv7"),
    4: ("conv8", "conv9", "conv10"),
    5: ("conv11", "conv12", "conv13"),
    6: ("conv14", "conv15"),
}
_NESTED = ("state_dict", "model_state_dict", "model", "net")  # where checkpoints keep the weights
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load_reference(
    state_dict_or_path: Mapping[str, Tensor] | str | Path,
    *,
    normalize: tuple[Iterable[float], Iterable[float]],
    normalizer: str = "softmax",
) -> ImageClassifier:
    """Make a model, in evaluation mode, from weights of the best-known PyTorch version, with or without attention.

    Keys: `conv_block1..6.op.*` (or `cv1..6.op.*`, as in the 2021 notebook), `dense.*`, `projector.op.weight`,
    `attn1..3.op.weight`, `classify.*`; each may begin with "module.". With attention the global branch is kept.

    Args:
        state_dict_or_path: the state dict or its file, in safetensors or torch.save's format; no code in it is run.
        normalize: (mean, std) per channel that the weights were trained with, for images in [0, 1].
        normalizer: the one they were trained with, "softmax" or "sigmoid".
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"unknown normalizer {normalizer!r}: {closest(normalizer, NORMALIZERS)}")
    mean, std = mean_and_std(normalize)
    source = state_dict_or_path
    state = _renamed(_tensors(source) if isinstance(source, Mapping) else _read(Path(source)))
    has_attention = any(key.startswith(("attn", "projector")) for key in state)
    names = _names(has_attention)
    counters = {key for key in names if key.endswith("num_batches_tracked")}  # old files lack them
    missing, extra = sorted(set(names) - counters - set(state)), sorted(set(state) - set(names))
    if missing or extra:
        raise ValueError(
            "these are not weights of the reference version: "
            f"missing {', '.join(missing) or 'none'}; extra {', '.join(extra) or 'none'}"
        )
    with torch.device("meta"):  # no memory is allocated before the shapes are known to fit
        model = _model(state, has_attention, normalizer)
    _check_shapes(state, names, model)
    model.to_empty(device="cpu")
    model.name = "vgg-att3-concat-pc" if has_attention else "vgg-late"
    model.set_normalization(mean, std)
    ours = model.state_dict()
    for theirs, name in names.items():
        ours[name] = state[theirs].reshape(ours[name].shape) if theirs in state else torch.tensor(0)
    model.load_state_dict(ours)
    return model.eval()


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove "module." and replace "cv" by "conv_block" in the keys."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(r"^cv(\d)\.", r"conv_block\1.", key.removeprefix("module."))
        if name in renamed:
            raise ValueError(f"{name} is there twice, once as {key}")
        renamed[name] = value
    return renamed


def _check_shapes(state: Mapping[str, Tensor], names: Mapping[str, str], model: ImageClassifier) -> None:
    """Compare every shape with ours; their 1x1 convolutions are linear maps and vectors here."""
    ours = model.state_dict()
    channels = len(state["conv_block1.op.0.weight"])
    for theirs, value in state.items():
        shape = tuple(ours[names[theirs]].shape)
        if theirs.startswith("attn"):
            shape = (1, *shape, 1, 1)
        elif theirs in ("dense.weight", "projector.op.weight") and len(shape) == 2:
            shape = (*shape, 1, 1)
        if value.shape != shape:
            raise ValueError(
                f"{theirs} has the shape {tuple(value.shape)}; with {channels} channels in the first layer it must be "
                f"{shape}"
            )


def _model(state: dict[str, Tensor], has_attention: bool, normalizer: str) -> ImageClassifier:
    """Build the model that the weights' shapes describe."""
    for key, ndim in (("conv_block1.op.0.weight", 4), ("dense.weight", 4), ("classify.bias", 1)):
        if state[key].ndim != ndim or not state[key].numel():
            raise ValueError(
                f"{key} has the shape {tuple(state[key].shape)}; it must have {ndim} dimensions, none empty"
            )
    width = len(state["conv_block1.op.0.weight"]) / 64
    num_classes = len(state["classify.bias"])
    kernel = state["dense.weight"].shape[-1]
    if not has_attention:
        return VGGLate(num_classes, width, dropout=False, kernel=kernel, bn_eps=_EPS)
    return AttentionNetwork(
        num_classes,
        VGGTrunk(width, dropout=False, bn_eps=_EPS),
        partial(GlobalBranch, width, dropout=False, kernel=kernel, bn_eps=_EPS),
        VGG_LEVELS,
        normalizer=normalizer,
        head_norm=False,
        faithful=True,
    )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if _is_safetensors(path):
            return load_file(path)
        return _tensors(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch and pickle raise errors of many kinds on other files
        raise ValueError(
            f"{path} cannot be read as weights: it is damaged or holds more than tensors (none of its code was run)"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is in safetensors format, whatever its name: the length of a header, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict, which may be an entry of a checkpoint beside its epoch and optimizer."""
    for name in _NESTED:
        if isinstance(state.get(name), Mapping):
            state = state[name]
            break
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{key!r} of the state dict is {type(value).__name__}: names and tensors are needed")
    return dict(state)


def _names(has_attention: bool) -> dict[str, str]:
    """Map their names to ours."""
    names = {}
    for block, layers in _LAYERS.items():
        for number, layer in enumerate(layers):
            at = number * (4 if block == 6 else 3)
            place = "global_branch" if block == 6 else "trunk"
            for key in ("weight", "bias"):
                names[f"conv_block{block}.op.{at}.{key}"] = f"{place}.{layer}.0.{key}"
            for key in _NORM:
                names[f"conv_block{block}.op.{at + 1}.{key}"] = f"{place}.{layer}.1.{key}"
    for key in ("weight", "bias"):
        names[f"dense.{key}"] = f"global_branch.fc.{key}"
        names[f"classify.{key}"] = f"head.classifiers.0.{key}"
    if has_attention:
        names["projector.op.weight"] = "attention.conv7.W.weight"
        for number, level in enumerate(VGG_LEVELS, start=1):
            names[f"attn{number}.op.weight"] = f"attention.{level}.u"
    return names
