"""Does the network look at its global feature? The gradient of each part, and maps with another image's feature.

With softmax and `pc` the map does not depend on `g` (see `ltpa.models.attention`), and since classification uses the
descriptors alone, the loss cannot reach the branch that computes `g`. Here that is measured.
"""

import copy
import warnings
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from ..data.split import Split
from ..inference import attend, to_float
from ..models.networks import AttentionNetwork, ImageClassifier
from ..training.run import Run
from .grid import Grid

PARTS = {  # of a VGG with attention, and how the names of their parameters begin
    "conv1 to conv13": "trunk.",
    "attention": "attention.",
    "classifier": "head.",
    "conv14, conv15": "global_branch.conv",
    "fc, which gives g": "global_branch.fc",
}


def attention_models(grid: Grid) -> dict[str, ImageClassifier]:
    """Return the whole model of each VGG variant whose maps follow the picture, by a short name such as "dp"."""
    return {
        variant.removeprefix("vgg-att3-concat-"): whole_model(grid.results_of(variant)[0].run)
        for variant in grid.variants
        if variant.startswith("vgg-att") and not variant.split()[0].endswith(("-uniform", "-static"))
    }


def whole_model(run: Run) -> ImageClassifier:
    """Return a run's model with its global branch, even where that is without effect and was therefore not built.

    The branch is then as it was before training, which training would not have changed, weight decay aside.
    """
    if getattr(run.model, "global_branch", None) is not None or not isinstance(run.model, AttentionNetwork):
        return run.model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.config.seed)
        model = run.config.create_model(len(run.classes), faithful=True)
    lacking = model.load_state_dict(run.model.state_dict(), strict=False).missing_keys
    assert all(name.startswith("global_branch.") for name in lacking), lacking
    return model.to(run.model.mean.device).eval()


def gradient_sums(model: ImageClassifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the sum of |gradient| of the cross-entropy over the parameters of each of the `PARTS` that the model has.

    A copy of the model in float64 and evaluation mode is measured, on the CPU: Apple GPUs have no float64.
    """
    exact = copy.deepcopy(model).cpu().double().eval().requires_grad_(True)
    logits = exact(to_float(images.to(exact.mean.device)).double())
    torch.nn.functional.cross_entropy(logits, labels.to(logits.device)).backward()
    sums = {}
    for part, beginning in PARTS.items():
        gradients = [p.grad for name, p in exact.named_parameters() if name.startswith(beginning)]
        if gradients:
            sums[part] = sum(g.abs().sum().item() for g in gradients if g is not None)
    return sums


def gradient_table(models: Mapping[str, ImageClassifier], split: Split) -> pd.DataFrame:
    """Return `gradient_sums` of several models as a table, a row a model."""
    sums = {name: gradient_sums(model, split.images, split.labels) for name, model in models.items()}
    table = pd.DataFrame.from_dict(sums, orient="index", columns=list(PARTS)).rename_axis("model")
    return table.map(lambda value: f"{value:.1e}" if value == value else "none")


def exchanged_maps(models: Mapping[str, ImageClassifier], images: Tensor, level: str) -> dict[str, Tensor]:
    """Return maps of one level with each image's own global feature, and with that of the image before it instead.

    The names are "<model>, own g" and "<model>, other g"; models without this level are left out.
    """
    if len(images) < 2:
        raise ValueError("global features are exchanged between two images or more")
    maps = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a query has no effect on `pc` is what is to be shown
        for name, model in models.items():
            if level in getattr(model, "attention", ()):
                maps[f"{name}, own g"] = attend(model, images, "fp32").maps[level]
                maps[f"{name}, other g"] = attend(model, images, "fp32", query=images.roll(1, 0)).maps[level]
    return maps


def change(own: Tensor, other: Tensor) -> float:
    """Return how much of the attention lies elsewhere in other maps (N, h, w): half the sum of |a - a'|, the mean.

    0 = the maps are the same, 1 = they have nothing in common. Maps are first divided by their sums.
    """
    a, b = (maps / maps.sum(dim=(1, 2), keepdim=True) for maps in (own, other))
    return ((a - b).abs().sum(dim=(1, 2)) / 2).mean().item()


def moved_attention(models: Mapping[str, ImageClassifier], images: Tensor, level: str) -> pd.DataFrame:
    """Return the `change` of each model's maps when the global feature is exchanged, as a table."""
    maps = exchanged_maps(models, images, level)
    names = [name.removesuffix(", own g") for name in maps if name.endswith(", own g")]
    moved = {name: change(maps[f"{name}, own g"], maps[f"{name}, other g"]) for name in names}
    return pd.DataFrame({"attention that moves": moved}).rename_axis("model").round(4)
