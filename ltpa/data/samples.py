"""Real pictures without a download: some that scikit-image and scikit-learn ship."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .dataset import Dataset
from .images import crop_square
from .split import Split, channel_statistics

PHOTOGRAPHS = {"cat": "cat", "coffee": "coffee", "rocket": "rocket", "woman": "astronaut"}  # what, scikit-image's name
UNKNOWN = -1  # the label of a picture that shows none of the classes
STAND_INS = (  # what it shows, the class of CIFAR-10 if it is one, the library's picture, (left, top, right, bottom)
    ("a cat", "cat", "chelsea", (0, 0, 300, 300)),
    ("a cat's face", "cat", "chelsea", (75, 0, 375, 300)),
    ("a horse (a silhouette)", "horse", "horse", None),
    ("a rocket", None, "rocket", (160, 107, 480, 427)),
    ("a space shuttle (a model)", None, "astronaut", (300, 0, 512, 212)),
    ("an astronaut", None, "astronaut", (80, 0, 380, 300)),
    ("a cup of coffee", None, "coffee", (60, 0, 460, 400)),
    ("a tower", None, "china.jpg", (0, 0, 427, 427)),
    ("a flower", None, "flower.jpg", (107, 0, 534, 427)),
)


@dataclass(frozen=True)
class Photographs(Dataset):
    """A handful of pictures in the place of a data set: `test` holds them, `train` is empty.

    Labels of pictures that show none of the classes are `UNKNOWN`.

    Attributes:
        names: what each shows.
    """

    names: tuple[str, ...] = ()


def photographs(size: int = 64) -> tuple[Split, tuple[str, ...]]:
    """Four color photographs, each a class of its own: images (4, 3, size, size), labels 0 to 3; and their names.

    Args:
        size: side in pixels; the middle square is scaled.

    Raises:
        ImportError: scikit-image is missing.
    """
    images = _batch([crop_square(_picture(name), size) for name in PHOTOGRAPHS.values()])
    return Split(images, torch.arange(len(images))), tuple(PHOTOGRAPHS)


def stand_ins(classes: Sequence[str], size: int = 32) -> Photographs:
    """Nine pictures to look at where there are no test images: two of a cat, a drawn horse, and six of other things.

    Args:
        classes: names of the classes that a network knows; what is among them has its label.
        size: side in pixels.

    Raises:
        ImportError: scikit-image or scikit-learn is missing.
    """
    squares, labels, cache = [], [], {}
    for _, kind, source, box in STAND_INS:
        if source not in cache:
            cache[source] = _picture(source)
        squares.append(cache[source].resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=3.0))
        labels.append(list(classes).index(kind) if kind is not None and kind in classes else UNKNOWN)
    split = Split(_batch(squares), torch.tensor(labels))
    return Photographs(
        "photographs", tuple(classes), split[:0], split, *channel_statistics(split.images),
        names=tuple(name for name, *_ in STAND_INS),
    )  # fmt: skip


def _picture(source: str) -> Image.Image:
    if source.endswith(".jpg"):
        try:
            from sklearn.datasets import load_sample_image
        except ImportError as error:
            raise ImportError("these pictures come with scikit-learn: pip install 'ltpa[notebooks]'") from error
        return Image.fromarray(load_sample_image(source))
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("these pictures come with scikit-image: pip install 'ltpa[notebooks]'") from error
    picture = getattr(data, source)()
    if picture.dtype == bool:  # the silhouette
        picture = np.uint8(255) * picture
    return Image.fromarray(picture).convert("RGB")


def _batch(squares: Sequence[Image.Image]) -> torch.Tensor:
    """Images of one size as uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2).contiguous()
