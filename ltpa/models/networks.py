"""Names to networks: every model takes images in [0, 1], normalizes inside, and can be asked where it looks."""

import fnmatch
import itertools
import math
import numbers
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor, nn

from ..errors import closest
from .attention import COMPATIBILITIES, NORMALIZERS, Attention
from .backbones import (
    BN_EPS,
    VGG16_POOLS,
    VGG_LEVELS,
    GlobalBranch,
    ResNet164,
    ResNetGlobalBranch,
    VGGTrunk,
    check_images,
    scaled,
)


@dataclass
class AttentionOutput:
    """What `model.attend(images)` saw.

    Attributes:
        logits: (N, num_classes). With a query they classify the images (not the query) from what the map of the query
            gathers from them.
        maps: level -> attention weights (N, h, w), in the network's order; empty for models without attention.
            Softmax weights sum to 1 over the positions, sigmoid weights are gates in (0, 1).
        scores: level -> compatibility scores (N, h, w), before the normalization.
        global_feature: `g`, (N, C), of the query where one was given; None where it was not computed because no map
            can depend on it.
        descriptors: level -> `g_s` (N, C), the weighted sums that the classifier reads; empty for models without
            attention, whose classifier reads `g` (class activation maps: neither).
    """

    logits: Tensor
    maps: "OrderedDict[str, Tensor]"
    scores: "OrderedDict[str, Tensor]"
    global_feature: Tensor | None
    descriptors: "OrderedDict[str, Tensor]" = field(default_factory=OrderedDict)


class ImageClassifier(nn.Module):
    """What all models share: normalization inside, `model(images)` and `model.attend(images)`.

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

    def set_normalization(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Sets mean and standard deviation per channel (R, G, B), for images in [0, 1].

        Raises:
            ValueError: not three finite numbers each, or a standard deviation that is not above 0.
        """
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
        """Checks the images (N, 3, H, W) and brings them to zero mean and unit variance per channel.

        Raises:
            TypeError, ValueError: see `ltpa.models.backbones.check_images`, which calls them by `name`.
        """
        check_images(images, name)
        return ((images - self.mean) / self.std).to(self.mean.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], H and W from 32 up -> logits (N, num_classes)."""
        return self.attend(images).logits

    def attend(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Classifies images (N, 3, H, W) in [0, 1] and returns the attention maps with the logits.

        Args:
            images: (N, 3, H, W) in [0, 1].
            query: other images, whose global feature takes the place of the images' own: see `AttentionNetwork.attend`.
                All other models have no map that it could steer, and refuse it.

        Raises:
            TypeError, ValueError: images or a query that cannot be used.
        """
        raise NotImplementedError

    def _refuse(self, query: Tensor | None, instead: str = "") -> None:
        """For models whose maps no query can steer."""
        if query is not None:
            raise ValueError(
                f"a query steers attention maps, and {type(self).__name__} has none that it could steer{instead}; "
                "models that can be asked are list_models('*-dp') and list_models('*-add')"
            )


class VGG(ImageClassifier):
    """The paper's baseline: VGG-16 with batch norm, pooling early; a twelfth of the attention models' cost."""

    def __init__(self, num_classes: int, width: float, dropout: bool) -> None:
        super().__init__()
        channels = scaled(512, width)
        self.trunk = VGGTrunk(width, dropout, VGG16_POOLS)
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        self.fc = nn.Linear(channels, channels)
        self.head = Head([channels], num_classes, dropout)

    def attend(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """See `ImageClassifier.attend`; there are no maps."""
        self._refuse(query)
        last = self.trunk(self.normalize(images))["conv13"]
        g = self.fc(self.dropout(nn.functional.max_pool2d(last, 2).mean((2, 3))))
        return AttentionOutput(self.head([g]), OrderedDict(), OrderedDict(), g)


class VGGLate(ImageClassifier):
    """The trunk of the attention models with its late pools, classified from `g` by a linear layer.

    The fair control for what attention adds: it costs what the attention models cost. (They also have a batch norm and
    a ReLU before the classifier.)
    """

    def __init__(self, num_classes: int, width: float, dropout: bool, kernel: int = 1, bn_eps: float = BN_EPS) -> None:
        super().__init__()
        self.trunk = VGGTrunk(width, dropout, bn_eps=bn_eps)
        self.global_branch = GlobalBranch(width, dropout, kernel=kernel, bn_eps=bn_eps)
        self.head = Head([scaled(512, width)], num_classes, dropout=False, norm=False)

    def attend(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """See `ImageClassifier.attend`; there are no maps."""
        self._refuse(query)
        g = self.global_branch(self.trunk(self.normalize(images))["conv13"])
        return AttentionOutput(self.head([g]), OrderedDict(), OrderedDict(), g)


class VGGGAP(ImageClassifier):
    """Global average pooling of conv13, then linear (Zhou et al. 2016); its map is the class activation map."""

    def __init__(self, num_classes: int, width: float, dropout: bool) -> None:
        super().__init__()
        self.trunk = VGGTrunk(width, dropout)
        self.head = Head([self.trunk.channels["conv13"]], num_classes, dropout=False, norm=False)

    def attend(
        self, images: Tensor, target: Tensor | int | None = None, *, query: Tensor | None = None
    ) -> AttentionOutput:
        """Classifies images and returns class activation maps.

        Args:
            images: (N, 3, H, W) in [0, 1].
            target: the class whose map is wanted, one or (N,); None means the predicted one.
            query: refused: this model is asked by `target`.

        Returns:
            `.scores["cam"]` is the map sum_k w_k f_k (N, h, w), whose mean and the bias make the logit; `.maps["cam"]`
            is its positive part.

        Raises:
            ValueError: a target that is not one class, or one an image, of those that the model knows; a query.
        """
        self._refuse(query, " (it is asked for a class: target=...)")
        features = self.trunk(self.normalize(images))["conv13"]
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        logits = self.head([features.mean((2, 3))])
        chosen = logits.argmax(dim=1) if target is None else chosen_classes(target, logits)
        with torch.autocast(features.device.type, enabled=False):
            weights = self.head.classifiers[0].weight[chosen.expand(len(logits))]  # (N, C)
            cam = torch.einsum("nc,nchw->nhw", weights, features)
        return AttentionOutput(logits, OrderedDict(cam=cam.relu()), OrderedDict(cam=cam), None)


def chosen_classes(target: Tensor | int, logits: Tensor) -> Tensor:
    """`target` as a tensor of classes, () or (N,), that `logits` (N, num_classes) has."""
    known = f"target must be a class from 0 to {logits.shape[1] - 1}, or one for each of {len(logits)} images"
    try:
        chosen = torch.as_tensor(target, device=logits.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{known}, not {target!r}") from error
    whole = chosen.dtype in (torch.int64, torch.int32, torch.uint8)
    fits = chosen.shape in ((), (len(logits),))
    if not whole or not fits or chosen.min() < 0 or chosen.max() >= logits.shape[1]:
        raise ValueError(f"{known}, not {target!r}")
    return chosen.long()


class AttentionNetwork(ImageClassifier):
    """The paper's networks: levels of a trunk, read through attention, classify; `g` itself never does.

    With softmax and `pc` the constant <u, g> drops out of the map (see `ltpa.attention`), so the loss cannot reach the
    global branch: it is then neither built nor computed, unless `faithful` asks for the paper's graph.

    Args:
        num_classes: number of classes.
        trunk: from normalized images to {level: local features}; `trunk.channels` has their widths.
        make_global_branch: builds the module from the last level's local features to `g`, of the same width.
        levels: the levels to read, in the network's order.
        combine: "concat", one classifier on all descriptors, or "indep", one a level whose logits are averaged.
        compatibility, normalizer: see `ltpa.models.attention.Attention`.
        dropout: dropout (rate 0.5) in the head.
        head_norm: batch norm, ReLU and dropout on every descriptor before the classifier, as in the authors' code.
        faithful: keep the global branch where it is without effect.
    """

    def __init__(
        self,
        num_classes: int,
        trunk: VGGTrunk | ResNet164,
        make_global_branch: Callable[[], nn.Module],
        levels: tuple[str, ...],
        combine: str,
        compatibility: str,
        normalizer: str,
        dropout: bool,
        head_norm: bool = True,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        channels = trunk.channels[levels[-1]]
        self.attention = nn.ModuleDict(
            {name: Attention(trunk.channels[name], channels, compatibility, normalizer) for name in levels}
        )
        self.uses_global_feature = any(level.uses_global_feature for level in self.attention.values())
        self.head = Head([channels] * len(levels), num_classes, dropout, combine, head_norm)
        # Built last, so that the other weights drawn from one seed are the same with and without it.
        self.global_branch = make_global_branch() if self.uses_global_feature or faithful else None

    def attend(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Classifies images and returns the attention maps; with a query, where they resemble another image.

        The paper's query-driven attention: the local features of `images` are scored with the global feature of
        `query`. A position still counts for what the images have there, so the logits answer what *the images* show at
        the places that the query asks for. The model was trained with g of the same image only; whether it then finds
        what a query shows is to be measured (notebook 05).

        With `pc` a query cannot change which position ranks before which. With softmax it changes nothing at all: it
        is checked and not used, and a warning says so once. With sigmoid it makes the whole map stronger or weaker.

        Args:
            images: (N, 3, H, W) in [0, 1].
            query: None, or images (M, 3, H', W') in [0, 1], of any size from 32x32 up: N, one for each of the images;
                or one for all of them; or any number for a single image, which then stands for M.

        Raises:
            TypeError, ValueError: images or a query that no network here can read, or whose numbers do not match.
        """
        local = asked = self.trunk(self.normalize(images))
        count = len(images)
        if query is not None:
            other = self.normalize(query, "query")
            count = pairs(len(images), len(query))
            local = OrderedDict((name, x.expand(count, *x.shape[1:])) for name, x in local.items())
            if self.uses_global_feature:
                asked = self.trunk(other)
            else:
                _warn_that_no_query_matters()
        levels = list(self.attention)
        g = None if self.global_branch is None else self.global_branch(asked[levels[-1]]).expand(count, -1)
        descriptors, maps, scores = OrderedDict(), OrderedDict(), OrderedDict()
        for name in levels:
            descriptors[name], maps[name], scores[name] = self.attention[name](local[name], g)
        return AttentionOutput(self.head(list(descriptors.values())), maps, scores, g, descriptors)


def pairs(images: int, queries: int) -> int:
    """How many pairs so many images and queries make: as many as there are images, or one of either for all others.

    Raises:
        ValueError: the numbers do not match.
    """
    if (queries != images and 1 not in (images, queries)) or not queries:
        raise ValueError(
            f"{images} images and {queries} queries: give one query for each image, one for all, or one image for all"
        )
    return max(images, queries) if images else 0


@cache
def _warn_that_no_query_matters() -> None:
    """Warns the first time it is called in a process."""
    warnings.warn(
        "the query changes nothing: with softmax and pc no map depends on the global feature, because softmax cancels "
        "the term <u, g> that pc adds to every score; models that can be asked are those with dp or add",
        stacklevel=3,
    )


class VGGPAN(ImageClassifier):
    """Progressive attention (Seo et al. 2016) as in the authors' code: gates on conv10, then attention on conv13.

    conv10 has a global feature of its own, `pc` scores and sigmoid gates that multiply its map position by position;
    the gated map goes on to conv13, which is read through `pc` and the normalizer. With softmax the global branch of
    conv13 is without effect and is left out, unless `faithful`.

    Args:
        num_classes, width, dropout: see `create_model`.
        normalizer: of conv13; conv10 always has gates.
        faithful: keep the global branch of conv13 where it is without effect.
    """

    def __init__(self, num_classes: int, width: float, dropout: bool, normalizer: str, faithful: bool) -> None:
        super().__init__()
        self.trunk = VGGTrunk(width, dropout)
        channels = scaled(512, width)
        self.gate_branch = GlobalBranch(width, dropout, first_pool=4)
        self.attention = nn.ModuleDict(
            {
                "conv10": Attention(channels, channels, "pc", "sigmoid"),
                "conv13": Attention(channels, channels, "pc", normalizer),
            }
        )
        self.head = Head([channels], num_classes, dropout)
        needed = self.attention["conv13"].uses_global_feature or faithful
        self.global_branch = GlobalBranch(width, dropout) if needed else None

    def attend(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """See `ImageClassifier.attend`; `.global_feature` is that of conv10, which the gates come from."""
        self._refuse(query, " (both its levels use pc)")
        maps, scores = OrderedDict(), OrderedDict()
        x = self.normalize(images)
        for name in self.trunk.channels:
            x = self.trunk.layer(name, x)
            if name == "conv10":
                gate_feature = self.gate_branch(x)
                _, maps[name], scores[name] = self.attention[name](x, gate_feature)
                x = x * maps[name].unsqueeze(1).to(x.dtype)
        g = None if self.global_branch is None else self.global_branch(x)
        descriptor, maps["conv13"], scores["conv13"] = self.attention["conv13"](x, g)
        return AttentionOutput(self.head([descriptor]), maps, scores, gate_feature, OrderedDict(conv13=descriptor))


class PlainResNet164(ImageClassifier):
    """ResNet-164 without attention: batch norm, ReLU, mean, linear."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        self.trunk = ResNet164(width)
        channels = self.trunk.channels["stage3"]
        self.norm = nn.BatchNorm2d(channels)
        self.head = Head([channels], num_classes, dropout=False, norm=False)

    def attend(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """See `ImageClassifier.attend`; there are no maps."""
        self._refuse(query)
        g = self.norm(self.trunk(self.normalize(images))["stage3"]).relu().mean((2, 3))
        return AttentionOutput(self.head([g]), OrderedDict(), OrderedDict(), g)


class Head(nn.Module):
    """Descriptors to logits, in at least float32: normalize each, then one linear layer or the mean of several.

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
            return torch.stack(logits).mean(0)


_LEVELS = {
    "vgg-att3": VGG_LEVELS,
    "vgg-att2": VGG_LEVELS[1:],
    "vgg-att": VGG_LEVELS[2:],
    "resnet164-att2": ("stage2", "stage3"),
    "resnet164-att": ("stage3",),
}
_PLAIN = ("vgg", "vgg-late", "vgg-gap", "vgg-pan", "resnet164")
_ATTENTION = {
    f"{family}-{combine}-{compatibility}": (family, combine, compatibility)
    for family, combine, compatibility in itertools.product(_LEVELS, ("concat", "indep"), COMPATIBILITIES)
}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows and that match a shell pattern such as "vgg-att3-*"."""
    return fnmatch.filter([*_PLAIN, *_ATTENTION], pattern)


def parse_variant(text: str) -> tuple[str, str]:
    """A model and its normalizer from "<name>" (softmax) or "<name> <normalizer>".

    Raises:
        ValueError: an unknown name or normalizer, with the closest known one.
    """
    name, _, normalizer = str(text).partition(" ")
    if name not in list_models():
        raise ValueError(f"unknown model {name!r}: {closest(name, list_models())}")
    if normalizer and normalizer not in NORMALIZERS:
        raise ValueError(f"unknown normalizer {normalizer!r} of {name}: {closest(normalizer, NORMALIZERS)}")
    return name, normalizer or NORMALIZERS[0]


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

    `vgg-att3-concat-pc` is (VGG-att3)-concat-pc: three levels, one classifier on all descriptors, parametrized
    compatibility. In "indep" each level has a classifier and their logits are averaged (the authors add them: the
    answer is the same). See `list_models()`.

    Args:
        name: one of `list_models()`.
        num_classes: number of classes, from 2 up.
        width: factor on every channel count; 1.0 is the paper's network.
        normalizer: "softmax" or "sigmoid"; without effect on models without attention.
        dropout: whether to use the authors' dropout rates.
        mean, std: normalization of images in [0, 1], per channel.
        head_norm: see `AttentionNetwork`; without effect on all other models.
        faithful: see `AttentionNetwork` and `VGGPAN`; without effect on all other models.

    Raises:
        ValueError: for an unknown name or normalizer, or a number out of range.
        TypeError: for an argument of the wrong type.
    """
    if not isinstance(name, str) or name not in list_models():
        raise ValueError(f"unknown model {name!r}: {closest(name, list_models())}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, numbers.Integral):
        raise TypeError(f"num_classes must be a whole number, not {num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, not {num_classes}")
    if isinstance(width, bool) or not isinstance(width, numbers.Real):
        raise TypeError(f"width must be a number, not {width!r}")
    if not 0 < width <= 4:
        raise ValueError(f"width must be above 0 and at most 4 (1.0 is the paper's network), not {width}")
    for label, value in (("dropout", dropout), ("head_norm", head_norm), ("faithful", faithful)):
        if not isinstance(value, bool):
            raise TypeError(f"{label} must be True or False, not {value!r}")
    if normalizer not in NORMALIZERS:
        raise ValueError(f"unknown normalizer {normalizer!r}: {closest(normalizer, NORMALIZERS)}")
    model = _build(name, int(num_classes), float(width), normalizer, dropout, head_norm, faithful)
    model.set_normalization(mean, std)
    return model


def _build(
    name: str, num_classes: int, width: float, normalizer: str, dropout: bool, head_norm: bool, faithful: bool
) -> ImageClassifier:
    if name == "vgg":
        return VGG(num_classes, width, dropout)
    if name == "vgg-late":
        return VGGLate(num_classes, width, dropout)
    if name == "vgg-gap":
        return VGGGAP(num_classes, width, dropout)
    if name == "vgg-pan":
        return VGGPAN(num_classes, width, dropout, normalizer, faithful)
    if name == "resnet164":
        return PlainResNet164(num_classes, width)
    family, combine, compatibility = _ATTENTION[name]
    if family.startswith("vgg"):
        trunk, make_global_branch = VGGTrunk(width, dropout), partial(GlobalBranch, width, dropout)
    else:
        trunk, make_global_branch = ResNet164(width), partial(ResNetGlobalBranch, width, dropout)
    return AttentionNetwork(
        num_classes,
        trunk,
        make_global_branch,
        _LEVELS[family],
        combine,
        compatibility,
        normalizer,
        dropout,
        head_norm,
        faithful,
    )
