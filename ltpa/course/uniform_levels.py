"""Which maps a trained network uses: its accuracy with uniform weights at one level, or at all, instead."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn

from ..data.dataset import Dataset
from ..data.split import Split, stratified
from ..inference import to_float
from ..metrics.statistics import Effect, bootstrap_interval
from ..models.attention import Attention
from ..models.classifier import ImageClassifier
from ..models.networks import AttentionNetwork
from .effects import MARGIN

CLAIM = "The trained network uses its maps"
_BATCH = 250


@torch.no_grad()
def uniform_levels(model: ImageClassifier, data: Dataset, images: int = 10_000) -> dict[str, Tensor]:
    """Return which test images a network classifies rightly, bool (N,), with these levels made uniform.

    "none" is the network as it is, then each level by its name, then "all". The batch norms before the classifier get
    the mean and variance of the descriptors of (at most) `images` training images, also for "none". In float32.
    """
    if not isinstance(model, AttentionNetwork):
        raise ValueError(f"{model.name} has no attention whose levels could be made uniform")
    if model.head.combine != "concat" and len(model.attention) > 1:
        raise ValueError(f"{model.name} has a classifier for each level; choose a model with concat")
    own = copy.deepcopy(model).float().eval()
    uniform = copy.deepcopy(own)
    for module in uniform.attention.values():
        assert isinstance(module, Attention)
        module.compatibility, module.normalizer = "uniform", "softmax"
    chosen = stratified(data.train.labels, min(images, len(data.train)), seed=0)
    (train, _), (test, labels) = (_descriptors(own, uniform, split) for split in (data.train[chosen], data.test))
    levels = list(own.attention)
    answers = {}
    for name, replaced in {"none": [], **{level: [level] for level in levels}, "all": levels}.items():
        kinds = ["uniform" if level in replaced else "own" for level in levels]
        head = copy.deepcopy(own.head)
        for norm, level, kind in zip(head.norms, levels, kinds, strict=True):
            _set_statistics(norm, train[kind, level])
        logits = head([test[kind, level] for level, kind in zip(levels, kinds, strict=True)])
        answers[name] = (logits.argmax(1) == labels).cpu()
    return answers


def uniform_table(answers_by_model: Mapping[str, dict[str, Tensor]]) -> pd.DataFrame:
    """Return each network's accuracy in %, and its change in points [95 %] by the level that is made uniform."""
    rows = {}
    for model, answers in answers_by_model.items():
        rows[model] = {"as it is, %": f"{100 * answers['none'].double().mean().item():.1f}"}
        for effect in uniform_effects(answers, "", ""):
            lost = effect.interval
            change = replace(lost, mean=-lost.mean, low=-lost.high, high=-lost.low)
            rows[model][f"{effect.model} uniform"] = change.text(1, 100, sign=True)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model").fillna("")


def uniform_effects(answers: dict[str, Tensor], data: str, budget: str) -> Sequence[Effect]:
    """Return what the maps of each level are worth to the network: its accuracy minus that with uniform weights."""
    others = [name for name in answers if name != "none"]
    return [
        Effect(
            claim=CLAIM, model=name, baseline="uniform weights", measure="test accuracy", data=data, budget=budget,
            seeds=1, margin=MARGIN,
            interval=bootstrap_interval(answers["none"].double() - answers[name].double(), len(others)),
        )
        for name in others
    ]  # fmt: skip


def _descriptors(
    own: AttentionNetwork, uniform: AttentionNetwork, split: Split
) -> tuple[dict[tuple[str, str], Tensor], Tensor]:
    """Return the descriptors of all images by ("own" or "uniform", level), each (N, C), and the labels."""
    device = own.mean.device
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for images in split.images.split(_BATCH):
        local = own.trunk(own.normalize(to_float(images.to(device)).float()))
        for kind, network in (("own", own), ("uniform", uniform)):
            for level, values in network.read(local, local, len(images)).descriptors.items():
                parts.setdefault((kind, level), []).append(values)
    return {key: torch.cat(values) for key, values in parts.items()}, split.labels.to(device)


def _set_statistics(norm: nn.Module, values: Tensor) -> None:
    """Give a batch norm the mean and variance of values (N, C)."""
    for module in norm.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean, module.running_var = values.mean(0), values.var(0)
