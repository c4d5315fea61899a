"""Real pictures without a download: they come with scikit-image."""

import numpy as np
import torch
from PIL import Image

from .images import crop_square
from .split import Split

PHOTOGRAPHS = {"cat": "cat", "coffee": "coffee", "rocket": "rocket", "woman": "astronaut"}  # to scikit-image's name


def photographs(size: int = 64) -> tuple[Split, tuple[str, ...]]:
    """Return four color photographs (4, 3, size, size), each a class of its own, and their names."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("these pictures come with scikit-image: pip install 'ltpa[notebooks]'") from error
    pictures = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS.values()]
    squares = np.stack([np.asarray(crop_square(picture, size)) for picture in pictures])
    return Split(torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous(), torch.arange(len(squares))), tuple(
        PHOTOGRAPHS
    )
