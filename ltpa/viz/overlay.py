"""How a map is laid over a picture, in figures and in the explorer, and the color bar that matches it.

The picture turns gray and stays visible under every color, so that the hue comes from the map alone. The bar shows each
color over dark and over bright parts of a picture.
"""

import functools
import math

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..maps import relative
from .style import COLORS, HIGHEST, LOWEST, STRENGTH

Pixels = NDArray[np.uint8]  # (H, W, 3)


def overlay(
    picture: Pixels, places: NDArray[np.float64], colors: str = COLORS[0], strength: float = STRENGTH
) -> Pixels:
    """Return a picture (H, W, 3) in gray under the colors of `places` (h, w), the map's places on its scale, 0 to 1.

    `strength` runs from 0 (only the picture) to 1 (only the map).
    """
    height, width = picture.shape[:2]
    rows = (np.arange(height) + 0.5) * places.shape[0] // height
    columns = (np.arange(width) + 0.5) * places.shape[1] // width
    numbers = np.rint(places.clip(0, 1) * 255).astype(np.intp)[rows.astype(np.intp)][:, columns.astype(np.intp)]
    gray = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float32)[:, :, None]
    return np.rint((1 - strength) * gray + strength * _table(colors)[numbers]).astype(np.uint8)


def places_by_share(weights: Tensor, highest: float = HIGHEST) -> NDArray[np.float64]:
    """Return the places of weights (h, w) on the scale from 1/4 to `highest` times the even share, by logarithms."""
    shares = relative(weights.detach().cpu().double()[None])[0].clamp(LOWEST, highest)
    return (shares / LOWEST).log().numpy() / math.log(highest / LOWEST)


def places_by_maximum(weights: Tensor) -> NDArray[np.float64]:
    """Return the places of weights (h, w) on the linear scale from 0 to their maximum."""
    weights = weights.detach().cpu().double()
    return (weights / weights.max()).numpy()


def color_bar(length: int, thickness: int, colors: str = COLORS[0], strength: float = STRENGTH) -> Pixels:
    """Return a bar (thickness, length, 3): the colors of the scale over a picture that is white above, black below."""
    shades = np.linspace(255, 0, thickness).astype(np.uint8)[:, None, None]
    return overlay(np.tile(shades, (1, length, 3)), np.linspace(0, 1, length)[None], colors, strength)


@functools.cache
def _table(colors: str) -> NDArray[np.float32]:
    return (matplotlib.colormaps[colors](np.arange(256))[:, :3] * 255).round().astype(np.float32)
