"""Notebooks 00 and 02: how much attention the border of a map gets because of the zeros around the picture.

    python -m ltpa.course.border [NAME | FOLDER OF A RUN]

measures it on pictures of a single color, in which no position differs from any other, and on drawn pictures.
"""

import sys

import pandas as pd
import torch
from torch import Tensor

from ..data.dataset import load_data
from ..inference import attend, to_float
from ..maps import border
from ..models.classifier import ImageClassifier
from ..pretrained import DEFAULT
from ..viz.show import network_of


def border_table(model: ImageClassifier, images: Tensor) -> pd.DataFrame:
    """Return the attention in the outermost ring of the maps, in multiples of the even share, a row for each level.

    "as it is" is the mean over images (N, 3, H, W). For "continued", every image is padded with its own outermost
    pixels, half its size on each side, and the same part of the larger map is measured: there, no layer sees zeros.
    """
    images = to_float(images)
    height, width = images.shape[2:]
    rows, columns = height // 2, width // 2
    around = torch.nn.functional.pad(images, (columns, columns, rows, rows), mode="replicate")
    plain, continued = attend(model, images).maps, attend(model, around).maps
    table = {}
    for level, maps in plain.items():
        h, w = maps.shape[1:]
        inside = continued[level][:, h // 2 : h // 2 + h, w // 2 : w // 2 + w]
        table[level] = {"as it is": border(maps).nanmean().item(), "continued": border(inside).nanmean().item()}
    return pd.DataFrame.from_dict(table, orient="index").round(2)


def plain_pictures(count: int = 200, size: int = 32, seed: int = 0) -> Tensor:
    """Return pictures of a single random color each, float (count, 3, size, size) in [0, 1]."""
    colors = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    return colors.expand(-1, -1, size, size).contiguous()


def main(name: str = DEFAULT) -> None:
    """Print the tables for the weights or the run of this name."""
    model = network_of(name)
    pictures = {
        "pictures of a single color": plain_pictures(),
        "drawn pictures": load_data("shapes", train_limit=10, test_limit=500).test.images,
    }
    for words, images in pictures.items():
        print(f"{words}: attention in the outermost ring, in multiples of the even share")
        print(border_table(model, images).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:2])
