"""What all networks have in common: images in [0, 1] go in, logits and attention maps come out."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import SMALLEST, check_shape, check_values
from .backbones import BN_EPS
from .sharing import push_model, save_model


@dataclass
class AttentionOutput:
    """What `model.attend(images)` returns, with the levels in the network's order.

    Attributes:
        logits: (N, num_classes).
        maps: level -> attention weights `a` (N, h, w): softmax weights sum to 1 over the positions, sigmoid weights are
            gates in (0, 1). Empty for models without attention.
        scores: level -> compatibility scores `c` (N, h, w), before the normalization.
        global_feature: `g` (N, C), of the query if there is one; None if no map depends on it, so it is not computed.
        descriptors: level -> `g_s` (N, C), the weighted sums that the classifier reads.
    """

    logits: Tensor
    maps: "OrderedDict[str, Tensor]" = field(default_factory=OrderedDict)
    scores: "OrderedDict[str, Tensor]" = field(default_factory=OrderedDict)
    global_feature: Tensor | None = None
    descriptors: "OrderedDict[str, Tensor]" = field(default_factory=OrderedDict)


class ImageClassifier(nn.Module):
    """Base of all models, which normalize images themselves: `model(images)` and `model.attend(images)`.

    `print(model)` is a short summary; `print(model.trunk)` and `torch.nn.Module.__repr__(model)` list the layers.
    """

    mean: Tensor  # buffers (1, 3, 1, 1), for images in [0, 1]; `ltpa.fit` sets them from the training data
    std: Tensor
    uses_global_feature = True  # False exactly where no map can depend on `g`
    name: str = ""  # in `create_model`
    options: dict[str, Any]  # of `create_model`, which rebuild the network
    facts: dict[str, Any]  # data, accuracy and so on, for the model card; set by `ltpa.fit` and what loads networks
    classes: tuple[str, ...] | None = None  # set by `ltpa.fit`, `ltpa.load_run` and `ltpa.load_pretrained`

    def __init__(self) -> None:
        super().__init__()
        self.options, self.facts = {}, {}
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))

    def set_normalization(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Set mean and standard deviation per channel, for images in [0, 1]."""
        for name, values in (("mean", mean), ("std", std)):
            try:
                triple = [float(value) for value in values]
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} must be three numbers, not {values!r}") from error
            if len(triple) != 3 or not all(map(math.isfinite, triple)) or (name == "std" and min(triple) <= 0):
                above = " above 0" if name == "std" else ""
                raise ValueError(f"{name} must be three finite numbers{above} (red, green, blue), not {values!r}")
            buffer = getattr(self, name)
            buffer.copy_(torch.tensor(triple, dtype=buffer.dtype).view(1, 3, 1, 1))

    def normalize(self, images: Tensor, name: str = "images") -> Tensor:
        """Check the images (N, 3, H, W), subtract the mean and divide by the standard deviation."""
        check_shape(images, name, smallest=1 if self.training else SMALLEST)  # training begins with small images
        return ((images - self.mean) / self.std).to(self.mean.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], H and W at least 32 -> logits (N, num_classes)."""
        return self.compute(images).logits

    def attend(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Classify images (N, 3, H, W) in [0, 1] and return the attention maps with the logits.

        Values that are not in [0, 1] are refused here; `forward`, which training calls, does not look at them.

        With a query, the paper's query-driven attention: the local features of `images` are scored with the global
        feature of `query`, and the logits classify what its map selects from `images`. The model was trained with `g`
        of the same image only; notebook 05 measures whether it finds what a query shows. With `pc` a query never
        changes the order of the positions: with sigmoid it makes the whole map stronger or weaker, with softmax it
        changes nothing, which a warning says once. Models without a map that it could steer refuse it.

        Args:
            images: (N, 3, H, W) in [0, 1].
            query: images (M, 3, H', W') in [0, 1], of any size from 32x32 up. Either M = N, or M = 1 for one query for
                all images, or N = 1, which gives an output of M rows.
        """
        self._check(images, query)
        return self.compute(images, query=query)

    def compute(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Compute what `attend` returns; every network has its own, which looks at shapes but not at values."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, configuration and a model card into a folder, for `ltpa.load_pretrained(folder)`."""
        return save_model(self, folder)

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub, as "owner/name"; return its address.

        Log in first (`hf auth login`), or pass a token.
        """
        return push_model(self, repository, private, token)

    def _check(self, images: Tensor, query: Tensor | None) -> None:
        for name, value in {"images": images, **({} if query is None else {"query": query})}.items():
            check_shape(value, name)
            check_values(value, name)

    def _refuse_query(self, query: Tensor | None, hint: str = "") -> None:
        if query is not None:
            raise ValueError(
                f"a query steers attention maps, and {type(self).__name__} has none that it could steer{hint}; "
                "models that take a query are list_models('*-dp') and list_models('*-add')"
            )

    def __repr__(self) -> str:
        trunk: Any = getattr(self, "trunk", None)
        head, levels = getattr(self, "head", None), getattr(self, "attention", {})
        if trunk is None or head is None:
            return super().__repr__()
        count = sum(parameter.numel() for parameter in self.parameters())
        lines = [f"{self.name or type(self).__name__}: {count:,} parameters, {len(head.weight)} classes"]
        if self.classes:
            shown = self.classes if len(self.classes) <= 12 else (*self.classes[:10], "...", self.classes[-1])
            lines.append(f"  classes: {', '.join(shown)}")
        lines.append(f"  trunk: {type(trunk).__name__} with {list(trunk.channels.values())[-1]} channels at its end")
        for level, attention in levels.items():
            lines.append(
                f"  attention at {level}: {trunk.channels[level]} channels, {attention.compatibility} scores, "
                f"{attention.normalizer}{'' if attention.uses_global_feature else ', independent of g'}"
            )
        mean, std = (", ".join(f"{value:.3f}" for value in buffer.flatten()) for buffer in (self.mean, self.std))
        return "\n".join([*lines, f"  images in [0, 1], from 32x32 pixels up; mean {mean}; std {std}"])


class Head(nn.Module):
    """Descriptors to logits, in the precision of the weights, also under autocast.

    Args:
        channels: width of each descriptor.
        num_classes: number of classes.
        dropout: whether to use dropout (rate 0.5) after each norm.
        combine: "concat" for one classifier on all descriptors, "indep" for one each, whose logits are averaged.
        norm: whether batch norm, ReLU and dropout come before the classifiers.
    """

    def __init__(
        self, channels: list[int], num_classes: int, dropout: bool, combine: str = "concat", norm: bool = True
    ) -> None:
        super().__init__()
        rate = 0.5 if dropout else 0.0
        self.norms = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(c, eps=BN_EPS), nn.ReLU(), nn.Dropout(rate)) if norm else nn.Identity()
            for c in channels
        )
        inputs = [sum(channels)] if combine == "concat" else channels
        self.combine = combine
        self.classifiers = nn.ModuleList(nn.Linear(c, num_classes) for c in inputs)

    @property
    def weight(self) -> Tensor:
        """The weights (num_classes, C) of the first classifier."""
        first = self.classifiers[0]
        assert isinstance(first, nn.Linear)
        return first.weight

    def forward(self, descriptors: list[Tensor]) -> Tensor:
        """[(N, C_1), (N, C_2), ...] -> logits (N, num_classes)."""
        with torch.autocast(descriptors[0].device.type, enabled=False):
            normed = [norm(d.to(self.weight.dtype)) for norm, d in zip(self.norms, descriptors, strict=True)]
            if self.combine == "concat":
                normed = [torch.cat(normed, dim=1)]
            logits = [classifier(d) for classifier, d in zip(self.classifiers, normed, strict=True)]
            return torch.stack(logits).mean(0)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and restore the mode of every module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        model.train(modes[model])  # first, for modules with a `train` of their own, such as merged adapters
        for module, training in modes.items():
            module.training = training


def chosen_classes(target: Tensor | int, logits: Tensor) -> Tensor:
    """Return `target` as a tensor () or (N,) of classes, checked against `logits` (N, num_classes)."""
    message = f"target must be a class from 0 to {logits.shape[1] - 1}, or one for each of {len(logits)} images"
    try:
        classes = torch.as_tensor(target, device=logits.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{message}, not {target!r}") from error
    whole = classes.dtype in (torch.int64, torch.int32, torch.uint8)
    fits = classes.shape in ((), (len(logits),))
    if not whole or not fits or classes.min() < 0 or classes.max() >= logits.shape[1]:
        raise ValueError(f"{message}, not {target!r}")
    return classes.long()


def pairs(images: int, queries: int) -> int:
    """Return the number of pairs: as many queries as images, or one of either for all of the others."""
    if (queries != images and 1 not in (images, queries)) or not queries:
        raise ValueError(
            f"{images} images and {queries} queries: give one query for each image, one for all, or one image for all"
        )
    return max(images, queries) if images else 0
