"""Names to networks: every model takes images in [0, 1], normalises inside, and can be asked where it looks."""

import fnmatch
import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import COMPATIBILITIES, NORMALIZERS, Attention
from .backbones import BN_EPS, VGG_LEVELS, GlobalBranch, VGGTrunk, check_images, scaled
from .errors import closest


@dataclass
class Attended:
    """What `model.attend(images)` saw.

    Attributes:
        logits: (N, num_classes).
        maps: level -> attention weights (N, h, w), in the network's order; empty for models without attention.
            Softmax weights sum to 1 over the positions, sigmoid weights are gates in (0, 1).
        scores: level -> compatibility scores (N, h, w), before the normalisation.
        global_feature: `g`, (N, C); None where it was not computed because no map can depend on it.
    """

    logits: Tensor
    maps: "OrderedDict[str, Tensor]"
    scores: "OrderedDict[str, Tensor]"
    global_feature: Tensor | None


class ImageClassifier(nn.Module):
    """What all models share: normalisation inside, `model(images)` and `model.attend(images)`.

    Attributes:
        mean, std: buffers (1, 3, 1, 1), of images in [0, 1]; `ltpa.fit` sets them from the training data.
        uses_global_feature: False exactly where no map can depend on `g`; True for models without attention.
    """

    mean: Tensor
    std: Tensor
    uses_global_feature = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))

    def set_normalisation(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Sets mean and standard deviation per channel (R, G, B), for images in [0, 1]."""
        for buffer, values in ((self.mean, mean), (self.std, std)):
            buffer.copy_(torch.as_tensor(tuple(values), dtype=buffer.dtype).view(1, 3, 1, 1))

    def normalise(self, images: Tensor) -> Tensor:
        """Checks the images (N, 3, H, W) and brings them to zero mean and unit variance per channel.

        Raises:
            TypeError, ValueError: see `ltpa.backbones.check_images`.
        """
        check_images(images)
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], H and W from 32 up -> logits (N, num_classes)."""
        return self.attend(images).logits

    def attend(self, images: Tensor) -> Attended:
        """Classifies images (N, 3, H, W) in [0, 1] and returns the attention maps with the logits."""
        raise NotImplementedError


class VGG(ImageClassifier):
    """The paper's baseline: VGG-16 with batch norm, pooling early; a twelfth of the attention models' cost."""

    def __init__(self, num_classes: int, width: float, dropout: bool) -> None:
        super().__init__()
        channels = scaled(512, width)
        self.trunk = VGGTrunk(width, dropout, late_pools=False)
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        self.fc = nn.Linear(channels, channels)
        self.head = Head([channels], num_classes, dropout)

    def attend(self, images: Tensor) -> Attended:
        """See `ImageClassifier.attend`; there are no maps."""
        last = self.trunk(self.normalise(images))["conv13"]
        g = self.fc(self.dropout(nn.functional.max_pool2d(last, 2).mean((2, 3))))
        return Attended(self.head([g]), OrderedDict(), OrderedDict(), g)


class VGGLate(ImageClassifier):
    """The trunk of the attention models with its late pools, classified from `g` by a linear layer.

    The fair control: it costs what the attention models cost, and lacks only the attention.
    """

    def __init__(self, num_classes: int, width: float, dropout: bool, bn_eps: float = BN_EPS) -> None:
        super().__init__()
        self.trunk = VGGTrunk(width, dropout, bn_eps=bn_eps)
        self.global_branch = GlobalBranch(width, dropout, bn_eps)
        self.head = nn.Linear(self.global_branch.channels, num_classes)

    def attend(self, images: Tensor) -> Attended:
        """See `ImageClassifier.attend`; there are no maps."""
        g = self.global_branch(self.trunk(self.normalise(images))["conv13"])
        return Attended(self.head(g), OrderedDict(), OrderedDict(), g)


class VGGAttention(ImageClassifier):
    """(VGG-att), (VGG-att2), (VGG-att3) of the paper: levels of the trunk, read through attention, classify.

    With softmax and `pc` the constant <u, g> drops out of the map (see `ltpa.attention`), so the loss cannot reach the
    global branch: it is then neither built nor computed, unless `faithful` asks for the paper's graph.

    Args:
        num_classes: number of classes.
        levels: some of "conv7", "conv10", "conv13", in this order.
        combine: "concat", one classifier on all descriptors, or "indep", one a level whose logits are averaged.
        compatibility, normalizer: see `ltpa.attention.Attention`.
        width, dropout, bn_eps: see `ltpa.backbones.VGGTrunk`.
        head_norm: batch norm, ReLU and dropout on every descriptor before the classifier, as in the authors' code.
        faithful: keep the global branch where it is without effect.
    """

    def __init__(
        self,
        num_classes: int,
        levels: tuple[str, ...],
        combine: str,
        compatibility: str,
        normalizer: str,
        width: float,
        dropout: bool,
        head_norm: bool = True,
        faithful: bool = False,
        bn_eps: float = BN_EPS,
    ) -> None:
        super().__init__()
        self.trunk = VGGTrunk(width, dropout, bn_eps=bn_eps)
        channels = scaled(512, width)
        self.attention = nn.ModuleDict(
            {name: Attention(self.trunk.channels[name], channels, compatibility, normalizer) for name in levels}
        )
        self.uses_global_feature = any(level.uses_global_feature for level in self.attention.values())
        self.head = Head([channels] * len(levels), num_classes, dropout, combine, head_norm)
        # Built last, so that the other weights drawn from one seed are the same with and without it.
        self.global_branch = GlobalBranch(width, dropout, bn_eps) if self.uses_global_feature or faithful else None

    def attend(self, images: Tensor) -> Attended:
        """See `ImageClassifier.attend`."""
        local = self.trunk(self.normalise(images))
        g = None if self.global_branch is None else self.global_branch(local["conv13"])
        descriptors, maps, scores = [], OrderedDict(), OrderedDict()
        for name, attention in self.attention.items():
            descriptor, maps[name], scores[name] = attention(local[name], g)
            descriptors.append(descriptor)
        return Attended(self.head(descriptors), maps, scores, g)


class Head(nn.Module):
    """Descriptors to logits, in at least float32: normalise each, then one linear layer or the mean of several.

    Args:
        channels: width of each descriptor.
        num_classes: number of classes.
        dropout: whether to drop (rate 0.5) after each norm.
        combine: "concat" or "indep" (the predictions of the levels are averaged).
        norm: batch norm, ReLU and dropout on every descriptor.
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

    def forward(self, descriptors: list[Tensor]) -> Tensor:
        """[(N, C_1), (N, C_2), ...] -> logits (N, num_classes)."""
        with torch.autocast(descriptors[0].device.type, enabled=False):
            exact = torch.promote_types(descriptors[0].dtype, torch.float32)
            normed = [norm(d.to(exact)) for norm, d in zip(self.norms, descriptors, strict=True)]
            if self.combine == "concat":
                normed = [torch.cat(normed, dim=1)]
            logits = [classifier(d) for classifier, d in zip(self.classifiers, normed, strict=True)]
            return sum(logits[1:], logits[0]) / len(logits)


_ATTENTION_NAMES = {
    f"vgg-{att}-{combine}-{compatibility}": (VGG_LEVELS[3 - count :], combine, compatibility)
    for (att, count), combine, compatibility in itertools.product(
        (("att", 1), ("att2", 2), ("att3", 3)), ("concat",), COMPATIBILITIES
    )
}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows and that match a shell pattern such as "vgg-att3-*"."""
    return fnmatch.filter(["vgg", "vgg-late", *_ATTENTION_NAMES], pattern)


def create_model(
    name: str,
    num_classes: int,
    *,
    width: float = 1.0,
    normalizer: str = "softmax",
    dropout: bool = True,
    mean: Iterable[float] = (0.5, 0.5, 0.5),
    std: Iterable[float] = (0.25, 0.25, 0.25),
    head_norm: bool = True,
    faithful: bool = False,
) -> ImageClassifier:
    """Creates a network with random weights, by the paper's names.

    `vgg-att3-concat-pc` is (VGG-att3)-concat-pc: three levels, one classifier on all descriptors, parametrised
    compatibility. See `list_models()`.

    Args:
        name: one of `list_models()`.
        num_classes: number of classes, from 2 up.
        width: factor on every channel count; 1.0 is the paper's network.
        normalizer: "softmax" or "sigmoid"; without effect on models without attention.
        dropout: whether to use the authors' dropout rates.
        mean, std: normalisation of images in [0, 1], per channel.
        head_norm: see `VGGAttention`; without effect on models without attention.
        faithful: see `VGGAttention`.

    Raises:
        ValueError: for an unknown name or normalizer, or a number out of range.
        TypeError: for an argument of the wrong type.
    """
    if not isinstance(name, str) or name not in list_models():
        raise ValueError(f"unknown model {name!r}: {closest(name, list_models())}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes must be a whole number, not {num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, not {num_classes}")
    if isinstance(width, bool) or not isinstance(width, int | float):
        raise TypeError(f"width must be a number, not {width!r}")
    if not 0 < width <= 4:
        raise ValueError(f"width must be above 0 and at most 4 (1.0 is the paper's network), not {width}")
    if normalizer not in NORMALIZERS:
        raise ValueError(f"unknown normalizer {normalizer!r}: {closest(normalizer, NORMALIZERS)}")
    if name == "vgg":
        model = VGG(num_classes, width, dropout)
    elif name == "vgg-late":
        model = VGGLate(num_classes, width, dropout)
    else:
        levels, combine, compatibility = _ATTENTION_NAMES[name]
        model = VGGAttention(
            num_classes, levels, combine, compatibility, normalizer, width, dropout, head_norm, faithful
        )
    model.set_normalisation(mean, std)
    return model
