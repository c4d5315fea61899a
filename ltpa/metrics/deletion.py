"""Deletion in the data's own distribution: hide cells of the picture from a model that has learned to do without them.

A model that has never seen hidden pixels answers to the hole as well as to what is missing. So before cells are
deleted in the order of a map, a copy of the model is trained a little more, on pictures with a random part hidden
(F-Fidelity, arXiv 2410.02970; IDSDS, Hesse et al. 2024, arXiv 2407.11910).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.augment import choose_augmentation
from ..data.dataset import Split
from ..inference import Model, attend, choose_precision, to_float
from ..maps import check_maps, order_ranks, resize
from ..models.classifier import ImageClassifier, chosen_classes
from ..models.foreign import Normalization, as_classifier
from ..training.loader import Loader, epoch_batches, steps_per_epoch
from ..training.optim import WARM_UP, make_optimizer, schedule
from ..training.trainer import train_step

CELLS = 8  # along a side: what is hidden at a time is a cell of the picture, here 4 pixels of 32
_RATE = 1e-3  # of AdamW, which suits every network
_BATCH = 100


def train_with_hidden_cells(
    model: Model,
    train: Split,
    seed: int = 0,
    epochs: int = 1,
    *,
    learning_rate: float = _RATE,
    augment: str = "flip+shift",
    normalize: Normalization | None = None,
) -> ImageClassifier:
    """Return a copy of a model, trained further with a random part of every picture hidden.

    Each cell of a picture is hidden with the same probability, drawn anew for each picture: u² with u uniform in
    [0, 1), so that any part may be hidden, and a small part is frequent. So the copy knows pictures like those of
    `delete_cells`, except that there the map chooses the cells. Before you trust the copy, look at its accuracy on
    whole pictures, which is a little lower.

    Args:
        model: a run, any model of `ltpa.create_model`, or your own module; it stays as it is.
        train: the training images, best in memory.
        seed: of order, augmentation and hidden cells.
        epochs: passes through the images; AdamW, whose rate rises for a tenth of the steps and falls to zero.
        augment: "flip+shift", "shift", "crop+flip" or "none"; do not flip digits.
        normalize: (mean, std) per channel, for your own module if it reads normalized images.
    """
    network = copy.deepcopy(as_classifier(model, normalize)).requires_grad_(True).train()
    device = network.mean.device
    dtype = choose_precision("auto", device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    optimizer = make_optimizer(network, optimizer="adamw", learning_rate=learning_rate, weight_decay=0.0)
    loader = Loader(train, device, choose_augmentation(augment, ""), seed)
    generator = torch.Generator().manual_seed(seed)
    step, steps = 0, epochs * steps_per_epoch(len(train), _BATCH)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # of dropout
        for epoch in range(epochs):
            parts = epoch_batches(len(train), _BATCH, seed, epoch)
            for images, labels in loader.batches(epoch, parts):
                part = torch.rand(len(images), 1, generator=generator) ** 2
                hidden = torch.rand(len(images), CELLS**2, generator=generator) < part
                images = hide(to_float(images), hidden, network.mean)
                factor = schedule((step + 1) / (steps + 1), WARM_UP["adamw"])
                train_step(network, optimizer, scaler, images, labels, factor=factor, smoothing=0.0, dtype=dtype)
                step += 1
    return network.eval()


def hide(images: Tensor, hidden: Tensor, color: Tensor) -> Tensor:
    """Return float images (N, 3, H, W) with cells (N, `CELLS`²), row by row, in a color (1, 3, 1, 1)."""
    cells = hidden.view(-1, 1, CELLS, CELLS).to(images.device, torch.float32)
    covered = torch.nn.functional.interpolate(cells, size=images.shape[2:], mode="nearest-exact").bool()
    return torch.where(covered, color.to(images), images)


@dataclass(frozen=True)
class Deletion:
    """The probability of a class while cells are hidden in the order of a map, and in the opposite order."""

    fractions: Tensor  # (K,), of hidden cells, from 0 to 1
    most_first: Tensor  # (N, K), the most important cells first: falls early if the map is right
    least_first: Tensor  # (N, K), the least important cells first: falls late if the map is right

    @property
    def gain(self) -> Tensor:
        """The symmetric relevance gain (N,): the area between both curves, from -1 to 1, 0 for a random map."""
        return torch.trapezoid(self.least_first - self.most_first, self.fractions, dim=1)


def delete_cells(
    model: Model,
    images: Tensor,
    maps: Tensor,
    target: Tensor | int | None = None,
    *,
    steps: int = 8,
    seed: int = 0,
    precision: str = "auto",
    normalize: Normalization | None = None,
) -> Deletion:
    """Return what hiding cells in both orders of a map does to the probability of a class.

    Deletion in one order alone depends on how a model reacts to holes. The difference of both orders, the symmetric
    relevance gain (Blücher et al. 2024, arXiv 2401.06654), nearly removes this. Only the order of a map's cells counts.

    Args:
        model: preferably a copy from `train_with_hidden_cells`, with the copy's own maps (as in IDSDS) or those of the
            original model (as in F-Fidelity).
        images: (N, 3, H, W), uint8 or float in [0, 1].
        maps: non-negative weights (N, h, w); cells of equal weight come in random order.
        target: the class whose probability is measured, one or (N,); by default the predicted ones.
        steps: K - 1, the number of equal steps from all cells to none.
        normalize: (mean, std) per channel, for your own module if it reads normalized images.
    """
    network = as_classifier(model, normalize)
    before = attend(network, images, precision).logits
    target = (before.argmax(1) if target is None else chosen_classes(target, before)).expand(len(images))
    rank = _cell_ranks(maps, images, seed)
    counts = torch.linspace(0, CELLS**2, steps + 1, dtype=torch.float64).round().long()
    pictures = to_float(images).cpu()
    curves = []
    for order in (rank, CELLS**2 - 1 - rank):
        curve = []
        for count in counts.tolist():
            logits = attend(network, hide(pictures, order < count, network.mean), precision).logits
            curve.append(logits.softmax(1).gather(1, target[:, None]).squeeze(1))
        curves.append(torch.stack(curve, 1))
    return Deletion((counts / CELLS**2).float(), *curves)


def _cell_ranks(maps: Tensor, images: Tensor, seed: int) -> Tensor:
    """Return the rank of every cell under its map, (N, `CELLS`²): 0 for the heaviest, ties in random order."""
    maps = check_maps(maps).cpu()
    if len(maps) != len(images):
        raise ValueError(f"there must be one map for each image, not {len(maps)} for {len(images)}")
    pixels = resize(maps, images.shape[2:]).unsqueeze(1)
    weights = torch.nn.functional.adaptive_avg_pool2d(pixels, CELLS).flatten(1)
    return order_ranks(weights, torch.Generator().manual_seed(seed))


def each_cell_hidden(model: Model, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the pictures with one cell hidden, for each cell in turn, as changes for `intervene`.

    With `effect_prediction` this is the in-domain single-deletion score (IDSDS, arXiv 2407.11910): how well the weight
    of a map on a cell predicts what hiding that cell does to the answer. There the drop of a logit is predicted, here
    the total variation distance.

    Args:
        model: preferably a copy from `train_with_hidden_cells`.
        images: (N, 3, H, W), uint8 or float in [0, 1].
    """
    color, images = as_classifier(model).mean, to_float(images).cpu()
    for cell in range(CELLS**2):
        hidden = torch.arange(CELLS**2).eq(cell).expand(len(images), -1)
        yield f"cell {cell}", hide(images, hidden, color)
