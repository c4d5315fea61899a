"""Does the network look at its global feature? The gradient of each part, and models with the paper's whole graph.

With softmax and `pc` the map does not depend on `g` (see `ltpa.attention`), and since classification uses the
descriptors alone, the loss cannot reach the branch that computes `g`. Here that is measured.
"""

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ..inference import attend, to_float
from ..models.networks import AttentionNetwork, ImageClassifier
from ..training.run import Run

PARTS = {  # what the parameters of a VGG with attention belong to, by the beginning of their names
    "conv1 to conv13": "trunk.",
    "attention": "attention.",
    "classifier": "head.",
    "conv14, conv15": "global_branch.conv",
    "fc, which gives g": "global_branch.fc",
}


def whole_model(run: Run) -> ImageClassifier:
    """A run's model with its global branch, even where that is without effect and was therefore not built.

    The branch is then as it was before training, which is also how training would have left it, weight decay aside.
    """
    if getattr(run.model, "global_branch", None) is not None or not isinstance(run.model, AttentionNetwork):
        return run.model
    config = run.config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = config.create_model(len(run.classes), faithful=True)
    lacking = model.load_state_dict(run.model.state_dict(), strict=False).missing_keys
    assert all(name.startswith("global_branch.") for name in lacking), lacking
    return model.to(run.model.mean.device).eval()


def gradient_sums(model: ImageClassifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Sum of |gradient| of the cross-entropy with respect to each part's parameters, in float64 and evaluation mode.

    Args:
        model: a VGG with attention; it stays as it is.
        images: (N, 3, H, W), uint8, or float in [0, 1].
        labels: int64 (N,).

    Returns:
        a sum for every part of `PARTS` that the model has.
    """
    exact = copy.deepcopy(model).double().eval().requires_grad_(True)
    place = exact.mean.device
    logits = exact(to_float(images.to(place)).double())
    torch.nn.functional.cross_entropy(logits, labels.to(place)).backward()
    sums = {}
    for part, beginning in PARTS.items():
        of = [p for name, p in exact.named_parameters() if name.startswith(beginning)]
        if of:
            sums[part] = float(sum(p.grad.abs().sum() for p in of if p.grad is not None))
    return sums


def exchanged_maps(models: Mapping[str, ImageClassifier], images: Tensor, level: str) -> dict[str, Tensor]:
    """Maps of one level with each image's own global feature, and with that of the image before it in its place.

    Args:
        models: name -> model.
        images: (N, 3, H, W), uint8, or float in [0, 1]; N from 2 up.
        level: name of the level.

    Returns:
        "<name>, own g" and "<name>, other g" for every model: (N, h, w).

    Raises:
        ValueError: one image, which has no other.
    """
    if len(images) < 2:
        raise ValueError("global features are exchanged between two images or more")
    maps = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that `pc` cannot be asked is what is to be shown
        for name, model in models.items():
            maps[f"{name}, own g"] = attend(model, images, "fp32").maps[level]
            maps[f"{name}, other g"] = attend(model, images, "fp32", query=images.roll(1, 0)).maps[level]
    return maps


def change(own: Tensor, other: Tensor) -> float:
    """How much of the attention lies elsewhere: half the sum of |a - a'| of maps that sum to 1, the mean over images.

    0 = the maps are the same, 1 = they have nothing in common.

    Args:
        own, other: maps (N, h, w), which are first divided by their sums.
    """
    a, b = (maps / maps.sum(dim=(1, 2), keepdim=True) for maps in (own, other))
    return ((a - b).abs().sum(dim=(1, 2)) / 2).mean().item()


def gradient_table(sums: Mapping[str, Mapping[str, float]]) -> str:
    """Sums of several models, {model: {part: sum}}, as lines of text."""
    width = max(map(len, sums))
    lines = [f"{'':{width}}  " + "  ".join(f"{part:>17}" for part in PARTS)]
    for name, of in sums.items():
        cells = (f"{of[part]:17.1e}" if part in of else f"{'none':>17}" for part in PARTS)
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    return "\n".join(lines)
