"""Real pictures without a download: they come with scikit-image and scikit-learn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .dataset import Dataset
from .images import crop_square
from .split import Split

PHOTOGRAPHS = {"cat": "cat", "coffee": "coffee", "rocket": "rocket", "woman": "astronaut"}  # to scikit-image's name
UNKNOWN = -1  # the label of a picture that shows none of the classes
STAND_INS = (  # description, class of CIFAR-10 or "", name in its library, (left, top, right, bottom)
    ("a cat", "cat", "chelsea", (0, 0, 300, 300)),
    ("a cat's face", "cat", "chelsea", (75, 0, 375, 300)),
    ("a horse (a silhouette)", "horse", "horse", None),
    ("a rocket", "", "rocket", (160, 107, 480, 427)),
    ("a space shuttle (a model)", "", "astronaut", (300, 0, 512, 212)),
    ("an astronaut", "", "astronaut", (80, 0, 380, 300)),
    ("a cup of coffee", "", "coffee", (60, 0, 460, 400)),
    ("a tower", "", "china.jpg", (0, 0, 427, 427)),
    ("a flower", "", "flower.jpg", (107, 0, 534, 427)),
)


@dataclass(frozen=True)
class Photographs(Dataset):
    """A few pictures in place of a data set: `test` holds them, `train` is empty."""

    names: tuple[str, ...] = ()  # what each picture shows


def photographs(size: int = 64) -> tuple[Split, tuple[str, ...]]:
    """Return four color photographs (4, 3, size, size), each a class of its own, and their names."""
    images = _batch([crop_square(_picture(name), size) for name in PHOTOGRAPHS.values()])
    return Split(images, torch.arange(len(images))), tuple(PHOTOGRAPHS)


def stand_ins(classes: Sequence[str], size: int = 32) -> Photographs:
    """Return nine pictures for a network that knows `classes`: two of a cat, a drawn horse, and six of other things.

    A picture of none of the classes has the label `UNKNOWN`.
    """
    pictures = {source: _picture(source) for _, _, source, _ in STAND_INS}
    squares = [
        pictures[source].resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
        for _, _, source, box in STAND_INS
    ]
    labels = [list(classes).index(kind) if kind in classes else UNKNOWN for _, kind, _, _ in STAND_INS]
    split, names = Split(_batch(squares), torch.tensor(labels)), tuple(name for name, *_ in STAND_INS)
    mean, std = split.statistics()
    return Photographs("photographs", tuple(classes), split[:0], split, mean, std, names=names)


def _picture(source: str) -> Image.Image:
    try:
        if source.endswith(".jpg"):
            from sklearn.datasets import load_sample_image

            return Image.fromarray(load_sample_image(source))
        from skimage import data
    except ImportError as error:
        library = "scikit-learn" if source.endswith(".jpg") else "scikit-image"
        raise ImportError(f"these pictures come with {library}: pip install 'ltpa[notebooks]'") from error
    picture = getattr(data, source)()
    if picture.dtype == bool:  # the silhouette
        picture = np.uint8(255) * picture
    return Image.fromarray(picture).convert("RGB")


def _batch(squares: Sequence[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2).contiguous()
