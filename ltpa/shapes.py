"""The embedded data set: silhouettes on cluttered backgrounds, drawn by code, with the exact mask of every object.

Every number comes from the raw stream of a seeded bit generator (its values are fixed for all versions of numpy) and
all geometry is float64, so the pictures are the same on every machine. A split is drawn in blocks with a seed each:
the first 1,000 of 10,000 pictures are the same as 1,000 alone.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross", "crescent", "heart", "arrow", "hourglass")
SIZE_RANGE = (0.25, 0.5)  # diameter of an object, as a fraction of the side
_BLOCK = 500
_STROKES = 5  # distractors a picture

Array = NDArray[np.float64]


def draw_shapes(count: int, image_size: int = 32, seed: int = 0, objects: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Draws pictures, balanced over the classes within every block of 500.

    Args:
        count: N, number of pictures.
        image_size: S, side in pixels, from 16 up.
        seed: pictures of different seeds are independent.
        objects: 1, or 2 objects of different classes that do not overlap.

    Returns:
        images uint8 (N, 3, S, S); labels int64 (N,) and masks bool (N, S, S), for two objects (N, 2) and (N, 2, S, S).
        A pixel belongs to the mask if at least half of it is covered by the object.
    """
    starts = range(0, count, _BLOCK)
    blocks = [_draw_block(image_size, (seed, objects, number), objects) for number in range(len(starts))]
    images, labels, masks = (np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True))
    if objects == 1:
        labels, masks = labels[:, 0], masks[:, 0]
    return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(masks)


class _Uniform:
    """Uniform numbers in [low, high) from the raw 64-bit stream of PCG64."""

    def __init__(self, key: tuple[int, ...]) -> None:
        self._bits = np.random.PCG64(key)

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        raw = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)
        return low + (high - low) * (raw.astype(np.float64) * 2.0**-53).reshape(shape)


def _draw_block(
    size: int, key: tuple[int, ...], objects: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    draw = _Uniform(key)
    n = _BLOCK
    first = np.argsort(draw(n), kind="stable") % len(CLASSES)
    labels = np.stack([first, (first + 1 + (draw(n) * (len(CLASSES) - 1)).astype(np.int64)) % len(CLASSES)], axis=1)
    labels = labels[:, :objects]

    base = draw(n, 3, low=0.1, high=0.5)
    picture = _background(draw, base, size)
    for _ in range(_STROKES):
        picture = _paint(picture, _stroke(draw, n, size), _colour(draw, base))
    masks = np.empty((n, objects, size, size), dtype=bool)
    places = _places(draw, n, objects)
    for i in range(objects):
        cover = _object(draw, labels[:, i], places[:, i], size)
        masks[:, i] = cover >= 0.5
        picture = _paint(picture, cover, _colour(draw, base))
    picture *= _light(draw, n, size)
    picture += 0.05 * (draw(n, 3, size, size, low=-1) + draw(n, 3, size, size, high=1))
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8), labels.astype(np.int64), masks


def _paint(picture: Array, cover: Array, colour: Array) -> Array:
    """Blends a colour (n, 3) over a picture (n, 3, S, S) where cover (n, S, S) is not zero."""
    return picture + cover[:, None] * (colour[:, :, None, None] - picture)


def _colour(draw: _Uniform, base: Array) -> Array:
    """Colours (n, 3), brighter than the base colour in every channel; objects and strokes alike."""
    return base + draw(*base.shape, low=0.1, high=0.5)


def _background(draw: _Uniform, base: Array, size: int) -> Array:
    """Base colour, soft blotches at two scales and a grating: (n, 3, S, S)."""
    n = len(base)
    picture = np.broadcast_to(base[:, :, None, None], (n, 3, size, size)).copy()
    for cells, strength in ((3, 0.12), (8, 0.10)):
        up = _upsample(cells, size)
        picture += up @ draw(n, 3, cells, cells, low=-strength, high=strength) @ up.T
    y, x = _grid(size)
    angle, waves, phase = draw(n, high=np.pi), draw(n, low=2, high=7), draw(n, high=2 * np.pi)
    along = (np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y) / size
    grating = np.sin(2 * np.pi * waves[:, None, None] * along + phase[:, None, None])
    return picture + grating[:, None] * draw(n, 3, low=-0.1, high=0.1)[:, :, None, None]


def _upsample(cells: int, size: int) -> Array:
    """Matrix (S, cells) of linear interpolation."""
    at = np.linspace(0, cells - 1, size)[:, None]
    return (1 - np.abs(at - np.arange(cells))).clip(0)


def _grid(size: int) -> tuple[Array, Array]:
    """Pixel centres: y (S, 1) and x (1, S)."""
    centres = np.arange(size) + 0.5
    return centres[:, None], centres[None, :]


def _stroke(draw: _Uniform, n: int, size: int) -> Array:
    """A distractor that is no class: a line with round ends, from speck to half the side long; coverage (n, S, S)."""
    y, x = _grid(size)
    x0, y0, angle = draw(n, high=size), draw(n, high=size), draw(n, high=2 * np.pi)
    length = size * 0.5 * draw(n) ** 2
    radius = draw(n, low=0.02, high=0.05) * size
    dx, dy = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    px, py = x - x0[:, None, None], y - y0[:, None, None]
    along = (px * dx + py * dy).clip(0, length[:, None, None])
    distance = np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2)
    return (radius[:, None, None] - distance + 0.5).clip(0, 1)


def _places(draw: _Uniform, n: int, objects: int) -> Array:
    """Diameter and centre of each object as fractions of the side, wholly inside the picture: (n, objects, 3).

    Two objects lie in different halves, side by side or one above the other.
    """
    diameter = draw(n, objects, low=SIZE_RANGE[0], high=SIZE_RANGE[1])
    along, across = draw(n, objects), draw(n, objects)
    room = 1.0 / objects - diameter
    split = np.arange(objects) / objects + diameter / 2 + along * room
    free = diameter / 2 + across * (1 - diameter)
    upright = draw(n, 1) < 0.5
    return np.stack([diameter, np.where(upright, free, split), np.where(upright, split, free)], axis=2)


def _object(draw: _Uniform, labels: NDArray[np.int64], place: Array, size: int) -> Array:
    """Coverage (n, S, S) in quarters: four sample points a pixel."""
    angle = draw(len(labels), high=2 * np.pi)
    cover = np.zeros((len(labels), size, size))
    for label in range(len(CLASSES)):
        rows = np.flatnonzero(labels == label)
        diameter, cx, cy = (place[rows].T * size)[:, :, None, None]
        cos, sin = np.cos(angle[rows])[:, None, None], np.sin(angle[rows])[:, None, None]
        y, x = _grid(size)
        for sub_y in (-0.25, 0.25):
            for sub_x in (-0.25, 0.25):
                px, py = (x + sub_x - cx) / (diameter / 2), (y + sub_y - cy) / (diameter / 2)
                cover[rows] += 0.25 * _inside(CLASSES[label], cos * px + sin * py, cos * py - sin * px)
    return cover


def _inside(name: str, u: Array, v: Array) -> NDArray[np.bool_]:
    """Whether points lie inside the silhouette, which itself lies in the unit circle."""
    r = np.hypot(u, v)
    if name == "disc":
        return r <= 0.85
    if name == "ring":
        return (r <= 1) & (r >= 0.55)
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.707
    if name == "triangle":
        return (v >= -0.5) & (v <= 1 - 3**0.5 * np.abs(u))
    if name == "star":
        fifth = np.abs((np.arctan2(v, u) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        x, y = r * np.cos(fifth), r * np.sin(fifth)
        tip, dent = (1.0, 0.0), (0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5))
        return (dent[0] - tip[0]) * (y - tip[1]) - (dent[1] - tip[1]) * (x - tip[0]) >= 0
    if name == "cross":
        long, wide = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
        return (long <= 0.95) & (wide <= 0.28)
    if name == "crescent":
        return (r <= 1) & (np.hypot(u - 0.5, v) >= 0.8)
    if name == "heart":
        x, y = 1.2 * u, 1.2 * v + 0.1
        return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
    if name == "arrow":
        shaft = (np.abs(u) <= 0.2) & (v >= -1) & (v <= 0)
        return shaft | ((v >= 0) & (np.abs(u) <= 0.75 * (1 - v)))
    assert name == "hourglass"
    return (np.abs(v) <= 0.85) & (np.abs(u) <= 0.62 * np.abs(v))


def _light(draw: _Uniform, n: int, size: int) -> Array:
    """Brightness that changes over the picture, from one random side: factors (n, 1, S, S) around 1."""
    y, x = _grid(size)
    angle, strength = draw(n, high=2 * np.pi), draw(n, high=0.35)
    along = (np.cos(angle)[:, None, None] * (x / size - 0.5) + np.sin(angle)[:, None, None] * (y / size - 0.5)) * 2
    return (1 + strength[:, None, None] * along)[:, None]
