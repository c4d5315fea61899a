"""Scenes of two objects, and queries for them that are drawn from images of single objects."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.dataset import Split

KINDS = ("1st", "2nd", "absent")  # what the three queries of a scene show


@dataclass(frozen=True)
class Queries:
    """Scenes of two objects, each with three queries.

    Attributes:
        scenes: N scenes, labels (N, 2), masks (N, 2, H, W).
        images: uint8 (3, N, 3, h, w): an image of the first object's class, one of the second's, and one of a class
            that is not in the scene.
        labels: int64 (3, N), their classes.
    """

    scenes: Split
    images: Tensor
    labels: Tensor

    @property
    def masks(self) -> Tensor:
        """The masks of the scenes' objects, (N, 2, H, W)."""
        assert self.scenes.masks is not None  # `draw_queries` has looked
        return self.scenes.masks

    def sheet(self, chosen: Tensor, classes: tuple[str, ...]) -> tuple[Tensor, list[str]]:
        """Return each chosen scene followed by its queries, as images of one size (4 K, 3, H, W), and their titles."""
        height, width = self.scenes.images.shape[2:]
        images, titles = [], []
        for scene in chosen.tolist():
            images.append(self.scenes.images[scene])
            titles.append(" and ".join(classes[label] for label in self.scenes.labels[scene].tolist()))
            for query, label, kind in zip(self.images, self.labels, KINDS, strict=True):
                wide, high = width - query.shape[3], height - query.shape[2]
                border = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
                images.append(torch.nn.functional.pad(query[scene], border, value=255))
                titles.append(f"query: {classes[label[scene]]} ({kind})")
        return torch.stack(images), titles


def draw_queries(scenes: Split, bank: Split, seed: int = 0) -> Queries:
    """Draw the queries for scenes of two objects, of different classes.

    The bank's images show one object each: of every class in the scenes, and of three classes at least.
    """
    if scenes.labels.ndim != 2 or scenes.labels.shape[1] != 2 or scenes.masks is None or not len(scenes):
        raise ValueError("queries need scenes of two objects: labels (N, 2) and masks (N, 2, H, W)")
    count = int(max(scenes.labels.max(), bank.labels.max())) + 1
    numbers = torch.bincount(bank.labels, minlength=count)
    if (numbers[scenes.labels] == 0).any() or (numbers > 0).sum() < 3:
        raise ValueError("the single images must show every class that is in the scenes, and three classes at least")
    generator = torch.Generator().manual_seed(seed)
    strangers = (numbers > 0).float().expand(len(scenes), -1).scatter(1, scenes.labels, 0.0)
    absent = torch.multinomial(strangers, 1, generator=generator).squeeze(1)
    labels = torch.stack([*scenes.labels.unbind(1), absent])  # (3, N)
    # In `order` the images are sorted by class; those of a class begin at its `first`.
    order, first = bank.labels.argsort(stable=True), numbers.cumsum(0) - numbers
    among = (torch.rand(labels.shape, generator=generator, dtype=torch.float64) * numbers[labels]).long()
    return Queries(scenes, bank.images[order[first[labels] + among]], labels)


def side_by_side(split: Split, count: int, seed: int = 0) -> Split:
    """Return `count` scenes of two images of different classes side by side, (N, 3, H, 2W); each mask is a half.

    Real images without masks allow that.
    """
    if len(split.labels.unique()) < 2:
        raise ValueError("scenes need images of two classes at least")
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(len(split), (count,), generator=generator)
    differs = (split.labels[left, None] != split.labels).float()  # (N, M)
    right = torch.multinomial(differs, 1, generator=generator).squeeze(1)
    images = torch.cat([split.images[left], split.images[right]], dim=3)
    width = split.images.shape[3]
    masks = torch.zeros(count, 2, *images.shape[2:], dtype=torch.bool)
    masks[:, 0, :, :width] = True
    masks[:, 1, :, width:] = True
    return Split(images, torch.stack([split.labels[left], split.labels[right]], dim=1), masks)
