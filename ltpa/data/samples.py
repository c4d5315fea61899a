"""Real pictures without a download: they come with scikit-image."""

import numpy as np
import torch
from PIL import Image

from ..errors import optional_module
from .images import crop_square
from .split import Split

PHOTOGRAPHS = {"cat": "cat", "coffee": "coffee", "rocket": "rocket", "woman": "astronaut"}  # to scikit-image's name


def photographs(size: int = 64) -> tuple[Split, tuple[str, ...]]:
    """Return four color photographs (4, 3, size, size), each a class of its own, and their names."""
    data = optional_module("skimage", "these pictures come with scikit-image").data
    pictures = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS.values()]
    squares = np.stack([np.asarray(crop_square(picture, size)) for picture in pictures])
    return Split(torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous(), torch.arange(len(squares))), tuple(
        PHOTOGRAPHS
    )
