"""Real pictures without a download: some that scikit-image ships."""

import numpy as np
import torch
from PIL import Image

from .data import Split
from .files import crop_square

PHOTOGRAPHS = {"cat": "cat", "coffee": "coffee", "rocket": "rocket", "woman": "astronaut"}  # what, scikit-image's name


def photographs(size: int = 64) -> tuple[Split, tuple[str, ...]]:
    """Four colour photographs, each a class of its own: images (4, 3, size, size), labels 0 to 3; and their names.

    Args:
        size: side in pixels; the middle square is scaled.

    Raises:
        ImportError: scikit-image is missing.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("these pictures come with scikit-image: pip install 'ltpa[notebooks]'") from error
    squares = [crop_square(Image.fromarray(getattr(data, name)()), size) for name in PHOTOGRAPHS.values()]
    images = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.arange(len(images))), tuple(PHOTOGRAPHS)
