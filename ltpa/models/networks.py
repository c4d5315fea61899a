"""The paper's networks, their baselines, and its attention on backbones of timm, by name: `create_model`."""

import fnmatch
import itertools
import numbers
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import alike, closest
from .attention import COMPATIBILITIES, EXTRA_COMPATIBILITIES, NORMALIZERS, Attention
from .backbones import (
    BN_EPS,
    VGG16_POOLS,
    VGG_LEVELS,
    GlobalBranch,
    ResNet164,
    ResNetGlobalBranch,
    Trunk,
    VGGTrunk,
    max_pool,
    scaled,
)
from .classifier import AttentionOutput, Head, ImageClassifier, chosen_classes, pairs
from .timm_backbones import TESTED, BackboneTrunk, PooledFeature, check_backbone, image_size_of, parse_name


class AttentionNetwork(ImageClassifier):
    """The paper's networks: attention descriptors of a trunk's levels are classified; `g` itself is not.

    With softmax and `pc` the constant <u, g> drops out of the map (see `ltpa.models.attention`), so the loss cannot
    reach the global branch: it is left out, unless `faithful` asks for the paper's graph.

    Args:
        num_classes: number of classes.
        trunk: maps normalized images to {level: local features}.
        make_global_branch: builds the module from the last level's local features to `g`, of the same width.
        levels: the levels to read, in the network's order.
        combine, dropout, head_norm: of the classifier, see `Head`; the authors' code has the norm.
        compatibility, normalizer: see `ltpa.models.attention.Attention`.
        faithful: keep the global branch even where it has no effect.
    """

    def __init__(
        self,
        num_classes: int,
        trunk: Trunk,
        make_global_branch: Callable[[], nn.Module],
        levels: tuple[str, ...],
        *,
        combine: str = "concat",
        compatibility: str = "pc",
        normalizer: str = "softmax",
        dropout: bool = False,
        head_norm: bool = True,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        channels = trunk.channels[levels[-1]]
        attention = {name: Attention(trunk.channels[name], channels, compatibility, normalizer) for name in levels}
        self.attention = nn.ModuleDict(attention)
        self.uses_global_feature = any(level.uses_global_feature for level in attention.values())
        self.head = Head([channels] * len(levels), num_classes, dropout, combine, head_norm)
        # Built last, so that with one seed the other weights are the same with and without it.
        self.global_branch = make_global_branch() if self.uses_global_feature or faithful else None

    def compute(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Score the local features of the images with the global feature of the images or of the query."""
        local = scoring = self.trunk(self.normalize(images))
        count = images.shape[0]  # not len, which an export would fix
        if query is not None:
            normalized_query = self.normalize(query, "query")
            count = pairs(images.shape[0], query.shape[0])
            local = OrderedDict((name, x.expand(count, *x.shape[1:])) for name, x in local.items())
            if self.uses_global_feature:
                scoring = self.trunk(normalized_query)
            else:
                _warn_that_no_query_matters()
        return self.read(local, scoring, count)

    def read(
        self, local: "OrderedDict[str, Tensor]", scoring: "OrderedDict[str, Tensor]", count: int
    ) -> AttentionOutput:
        """Read the trunk's features `local`, scored with the global feature of `scoring`; both of `count` images."""
        levels = list(self.attention)
        g = None if self.global_branch is None else self.global_branch(scoring[levels[-1]]).expand(count, -1)
        descriptors, maps, scores = OrderedDict(), OrderedDict(), OrderedDict()
        for name in levels:
            descriptors[name], maps[name], scores[name] = self.attention[name](local[name], g)
        return AttentionOutput(self.head(list(descriptors.values())), maps, scores, g, descriptors)


@cache
def _warn_that_no_query_matters() -> None:
    """Warn once per process."""
    warnings.warn(
        "the query changes nothing: with softmax and pc no map depends on the global feature, because softmax cancels "
        "the term <u, g> that pc adds to every score; models that take a query are those with dp or add",
        stacklevel=4,
    )


class VGG(ImageClassifier):
    """The paper's baseline: VGG-16 with batch norm and early pooling, at a twelfth of the attention models' cost."""

    def __init__(self, num_classes: int, width: float, dropout: bool) -> None:
        super().__init__()
        channels = scaled(512, width)
        self.trunk = VGGTrunk(width, dropout, VGG16_POOLS)
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        self.fc = nn.Linear(channels, channels)
        self.head = Head([channels], num_classes, dropout)

    def compute(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Classify images; there are no maps."""
        self._refuse_query(query)
        last = self.trunk(self.normalize(images))["conv13"]
        g = self.fc(self.dropout(max_pool(last, 2).mean((2, 3))))
        return AttentionOutput(self.head([g]), global_feature=g)


class VGGLate(ImageClassifier):
    """The trunk of the attention models, with `g` classified by a linear layer: the control at the same cost.

    Only `norm` gives it the batch norm, ReLU and dropout that the attention models have before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        width: float,
        dropout: bool,
        kernel: int = 1,
        bn_eps: float = BN_EPS,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = VGGTrunk(width, dropout, bn_eps=bn_eps)
        self.global_branch = GlobalBranch(width, dropout, kernel=kernel, bn_eps=bn_eps)
        self.head = Head([scaled(512, width)], num_classes, dropout and norm, norm=norm)

    def compute(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Classify images; there are no maps."""
        self._refuse_query(query)
        g = self.global_branch(self.trunk(self.normalize(images))["conv13"])
        return AttentionOutput(self.head([g]), global_feature=g)


class VGGGAP(ImageClassifier):
    """Global average pooling of conv13, then linear (Zhou et al. 2016); its map is the class activation map."""

    def __init__(self, num_classes: int, width: float, dropout: bool) -> None:
        super().__init__()
        self.trunk = VGGTrunk(width, dropout)
        self.head = Head([self.trunk.channels["conv13"]], num_classes, dropout=False, norm=False)

    def attend(
        self, images: Tensor, target: Tensor | int | None = None, *, query: Tensor | None = None
    ) -> AttentionOutput:
        """Classify images and return the class activation maps of `target`, one class or (N,); None = predicted.

        `.scores["cam"]` is the map sum_k w_k f_k (N, h, w), whose mean plus the bias is the logit; `.maps["cam"]` is
        its positive part.
        """
        self._check(images, query)
        return self.compute(images, target, query=query)

    def compute(
        self, images: Tensor, target: Tensor | int | None = None, *, query: Tensor | None = None
    ) -> AttentionOutput:
        """Classify images and return the class activation maps of `target`, see `attend`."""
        self._refuse_query(query, " (choose a class instead: target=...)")
        features = self.trunk(self.normalize(images))["conv13"]
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        logits = self.head([features.mean((2, 3))])
        classes = logits.argmax(dim=1) if target is None else chosen_classes(target, logits)
        with torch.autocast(features.device.type, enabled=False):
            weights = self.head.weight[classes.expand(logits.shape[0])].to(features.dtype)  # (N, C)
            cam = torch.einsum("nc,nchw->nhw", weights, features)
        return AttentionOutput(logits, OrderedDict(cam=cam.relu()), OrderedDict(cam=cam))


class VGGPAN(ImageClassifier):
    """Progressive attention (Seo et al. 2016) as in the authors' code: gates on conv10, then attention on conv13.

    conv10 has its own global feature, and its `pc` scores with sigmoid gates multiply its features position by position
    before they go on to conv13, which is read through `pc` and the normalizer. With softmax the global branch of conv13
    has no effect and is left out, unless `faithful`.
    """

    def __init__(self, num_classes: int, width: float, dropout: bool, normalizer: str, faithful: bool) -> None:
        super().__init__()
        self.trunk = VGGTrunk(width, dropout)
        channels = scaled(512, width)
        self.gate_branch = GlobalBranch(width, dropout, first_pool=4)
        gates = Attention(channels, channels, "pc", "sigmoid")
        attention = Attention(channels, channels, "pc", normalizer)
        self.attention = nn.ModuleDict({"conv10": gates, "conv13": attention})
        self.head = Head([channels], num_classes, dropout)
        self.global_branch = GlobalBranch(width, dropout) if attention.uses_global_feature or faithful else None

    def compute(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Classify images and return the gates and the map; `.global_feature` is that of conv10's gates."""
        self._refuse_query(query, " (both its levels use pc)")
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

    def compute(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Classify images; there are no maps."""
        self._refuse_query(query)
        g = self.norm(self.trunk(self.normalize(images))["stage3"]).relu().mean((2, 3))
        return AttentionOutput(self.head([g]), global_feature=g)


_PLAIN = ("vgg", "vgg-late", "vgg-late-norm", "vgg-gap", "vgg-pan", "resnet164")
# family -> trunk and global branch, made from (width, dropout), and levels
_FAMILIES: dict[str, tuple[Callable[[float, bool], Trunk], Callable[[float, bool], nn.Module], tuple[str, ...]]] = {
    "vgg-att3": (VGGTrunk, GlobalBranch, VGG_LEVELS),
    "vgg-att2": (VGGTrunk, GlobalBranch, VGG_LEVELS[1:]),
    "vgg-att": (VGGTrunk, GlobalBranch, VGG_LEVELS[2:]),
    "resnet164-att2": (lambda width, _: ResNet164(width), ResNetGlobalBranch, ("stage2", "stage3")),
    "resnet164-att": (lambda width, _: ResNet164(width), ResNetGlobalBranch, ("stage3",)),
}
# One level with uniform weights is average pooling with the head of the attention models.
_CONTROLS = ("vgg-att-concat-uniform", *(f"vgg-att3-concat-{kind}" for kind in EXTRA_COMPATIBILITIES))
#: The names of the paper's networks, their baselines and controls.
PAPER_NAMES = (
    *_PLAIN,
    *map("-".join, itertools.product(_FAMILIES, ("concat", "indep"), COMPATIBILITIES)),
    *_CONTROLS,
)
_BACKBONE_NAMES = [f"{name}-att3-concat-{kind}" for name in TESTED for kind in COMPATIBILITIES]


def list_models(pattern: str = "*") -> list[str]:
    """Return the names for `create_model` that match a shell pattern such as "vgg-att3-*".

    Other backbones of timm work, too, but only a few tested ones are listed, each with "att3-concat".
    """
    return fnmatch.filter([*PAPER_NAMES, *_BACKBONE_NAMES], pattern)


def is_backbone(name: str) -> bool:
    """Return whether a model's name is that of a timm backbone with attention."""
    return name not in PAPER_NAMES and isinstance(name, str) and parse_name(name) is not None


def backbone_of(model: nn.Module) -> BackboneTrunk:
    """Return the timm backbone of a model."""
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, BackboneTrunk):
        raise ValueError(f"{getattr(model, 'name', type(model).__name__)} has no backbone of timm")
    return trunk


def image_size_for(name: str) -> int:
    """Return the side in pixels of the images that suit a model."""
    backbone = parse_name(name) if is_backbone(name) else None
    return image_size_of(backbone.backbone) if backbone else 32


def check_name(name: str) -> str:
    """Return a name that `create_model` knows; for others a ValueError names the closest one."""
    if name in PAPER_NAMES:
        return name
    hint = alike(name, list_models())
    problem = (
        f"{hint}known: {', '.join(PAPER_NAMES)}; and backbones of timm with such an ending: resnet50-att3-concat-add"
    )
    parts = parse_name(name) if isinstance(name, str) else None
    if parts is not None:
        try:
            check_backbone(parts.backbone)
            return name
        except ValueError as error:
            if not hint.startswith(("did you mean 'vgg-", "did you mean 'resnet164-")):
                problem = str(error)
    raise ValueError(f"unknown model {name!r}: {problem}")


def parse_variant(text: str) -> tuple[str, str]:
    """Return model and normalizer from "<name>" (softmax) or "<name> <normalizer>"."""
    name, _, normalizer = str(text).partition(" ")
    check_name(name)
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
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    head_norm: bool = True,
    faithful: bool = False,
    pretrained: bool = False,
    layers: Sequence[str] | None = None,
) -> ImageClassifier:
    """Create a network with random weights, by the paper's names, or on a backbone of timm.

    `vgg-att3-concat-pc` is (VGG-att3)-concat-pc: three levels, one classifier on all descriptors, parametrized
    compatibility. With "indep" each level has a classifier and their logits are averaged (the authors add them, which
    predicts the same class). `resnet50-att3-concat-pc` reads the last three levels of timm's ResNet-50 in the same way;
    its `g` is the mean of the last level. `ltpa.models.attention` explains the other endings, such as "uniform".

    Args:
        name: one of `list_models()`, or "<a backbone of timm>-att<number of levels>-<concat|indep>-<dp|pc|add|sdp>".
        num_classes: at least 2.
        width: factor on every channel count, above 0 and at most 4; 1.0 is the paper's network. Backbones have none.
        normalizer: "softmax" or "sigmoid"; no effect without attention.
        dropout: whether to use the authors' dropout rates; with a backbone, 0.5 before the classifier.
        mean, std: normalization of images in [0, 1], per channel. None is (0.5, 0.5, 0.5) and (0.25, 0.25, 0.25), or
            what the backbone's weights were trained with.
        head_norm: see `AttentionNetwork`; no effect on other models.
        faithful: keep a global branch that no map depends on (softmax with `pc`), as in the paper's graph.
        pretrained: load the backbone's weights, see `ltpa.models.timm_backbones.BackboneTrunk`. For trained networks of
            the paper see `load_pretrained`.
        layers: the levels that a backbone is read at, such as ("stride8", "stride32").
    """
    check_name(name)
    _check_arguments(num_classes, width, normalizer)
    flags = {"dropout": dropout, "head_norm": head_norm, "faithful": faithful, "pretrained": pretrained}
    for label, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{label} must be True or False, not {value!r}")
    num_classes, width = int(num_classes), float(width)
    options: dict[str, Any] = {"normalizer": normalizer, "dropout": dropout}
    options |= {"head_norm": head_norm, "faithful": faithful}
    model: ImageClassifier
    if is_backbone(name):
        if width != 1:
            raise ValueError(f"width={width:g}: {name!r} has the width of its backbone; leave width out")
        model = _build_on_backbone(name, num_classes, layers, pretrained, options)
        mean, std = mean or backbone_of(model).mean, std or backbone_of(model).std
    elif pretrained or layers is not None:
        raise ValueError(
            f"{name!r} has no backbone of timm, to which pretrained and layers belong; trained networks of the paper: "
            "ltpa.load_pretrained"
        )
    elif name in _PLAIN:
        model = _build_plain(name, num_classes, width, normalizer, dropout, faithful)
    else:
        family, combine, compatibility = name.rsplit("-", 2)
        make_trunk, make_global_branch, levels = _FAMILIES[family]
        parts = make_trunk(width, dropout), partial(make_global_branch, width, dropout), levels
        model = AttentionNetwork(num_classes, *parts, combine=combine, compatibility=compatibility, **options)
    model.name = name
    model.options = {"name": name, "num_classes": num_classes, "width": width, "normalizer": normalizer, **flags}
    model.options["layers"] = None if layers is None else list(layers)
    model.set_normalization(mean or (0.5,) * 3, std or (0.25,) * 3)
    return model


def _check_arguments(num_classes: int, width: float, normalizer: str) -> None:
    if normalizer not in NORMALIZERS:
        raise ValueError(f"unknown normalizer {normalizer!r}: {closest(normalizer, NORMALIZERS)}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, numbers.Integral):
        raise TypeError(f"num_classes must be a whole number, not {num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, not {num_classes}")
    if isinstance(width, bool) or not isinstance(width, numbers.Real):
        raise TypeError(f"width must be a number, not {width!r}")
    if not 0 < width <= 4:
        raise ValueError(f"width must be above 0 and at most 4 (1.0 is the paper's network), not {width}")


def _build_plain(
    name: str, num_classes: int, width: float, normalizer: str, dropout: bool, faithful: bool
) -> ImageClassifier:
    if name == "vgg-pan":
        return VGGPAN(num_classes, width, dropout, normalizer, faithful)
    if name == "resnet164":
        return PlainResNet164(num_classes, width)
    if name == "vgg-late-norm":
        return VGGLate(num_classes, width, dropout, norm=True)
    return {"vgg": VGG, "vgg-late": VGGLate, "vgg-gap": VGGGAP}[name](num_classes, width, dropout)


def _build_on_backbone(
    name: str, num_classes: int, layers: Sequence[str] | None, pretrained: bool, options: dict[str, Any]
) -> AttentionNetwork:
    parts = parse_name(name)
    assert parts is not None, "it is the name of a backbone"
    trunk = BackboneTrunk(parts.backbone, parts.levels, layers, pretrained)
    levels = (*trunk.channels,)
    return AttentionNetwork(
        num_classes, trunk, PooledFeature, levels, combine=parts.combine, compatibility=parts.compatibility, **options
    )
