"""The embedded data set: silhouettes on cluttered backgrounds, drawn by code, with the exact mask of every object.

Only the outline tells an object from its ground, so a map that lies on objects has learned outlines:

- Objects are darker or brighter than the base color of their picture, at random; so are the strokes.
- The ground has soft light and dark patches as large as an object, and objects and ground have the same mean
  brightness over the set. Somewhere an outline may vanish where object and patch are equal; its sharp rest shows it.
- Fine texture, light and noise are the same on objects and ground.

Therefore simple filters (brightness, darkness, their distance from the mean, saturation, gradients, differences of
Gaussians), blurred or not, reach an average precision of less than 0.40 against the masks; tests check that.

All randomness is the raw stream of a seeded bit generator, which no version of numpy may change, and all geometry is
float64, so the pictures are the same on every machine. Each block of 500 has its own seed: the first 1,000 of 10,000
pictures are the same as 1,000 alone.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import closest

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross", "crescent", "heart", "arrow", "hourglass")
CHANGES = ("no object", "other object", "other background", "moved distractors")
_BLOCK = 500
_PIXELS = 2**20  # drawn at a time, to bound the memory
_GAP = 0.1  # between two objects, as a fraction of the side: masks do not touch even at 16 pixels

Array = NDArray[np.float64]


def draw_shapes(
    count: int, image_size: int = 32, seed: int = 0, objects: int = 1, change: str | None = None, redraw: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pictures, balanced over the classes within every block of 500.

    Args:
        count: N, number of pictures.
        image_size: S, side in pixels, at least 16.
        seed: pictures of different seeds are independent.
        objects: 1, or 2 for two objects of different classes that do not overlap.
        change: one of `CHANGES`, for the same pictures of one object with one thing changed and all else the same, even
            the noise: "no object" (its mask is empty), "other object" (another class with the same place, size, angle
            and color), "other background" (other light and dark patches), "moved distractors" (strokes elsewhere).
        redraw: another number draws other classes, patches and places.

    Returns:
        images uint8 (N, 3, S, S), labels int64 (N,), masks bool (N, S, S); with two objects labels (N, 2) and masks
        (N, 2, S, S). A pixel is in the mask if the object covers at least two of four points spread evenly over it.
    """
    if count < 1 or image_size < 16 or seed < 0 or objects not in (1, 2):
        raise ValueError(f"cannot draw {count=} shapes with {image_size=}, {seed=}, {objects=}: see the docstring")
    if change is not None and change not in CHANGES:
        raise ValueError(f"unknown change {change!r}: {closest(change, CHANGES)}")
    if change is not None and objects != 1:
        raise ValueError("only pictures of one object can be changed: leave objects out")
    portions = []
    for number in range(-(-count // _BLOCK)):
        key, end, step = (seed, objects, number), min(_BLOCK, count - number * _BLOCK), max(1, _PIXELS // image_size**2)
        labels = _labels(_Uniform(key, 0, _BLOCK))[:, :objects]
        for start in range(0, end, step):
            stop = min(start + step, end)
            draw, new = _Uniform(key, start, stop), _Uniform((*key, redraw + 1), start, stop)
            portions.append(_draw_portion(draw, labels[start:stop], image_size, change, new))
    images, labels, masks = (np.concatenate(parts) for parts in zip(*portions, strict=True))
    if objects == 1:
        labels, masks = labels[:, 0], masks[:, 0]
    return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(masks)


class _Uniform:
    """Uniform numbers in [low, high) from the raw 64-bit stream of PCG64, for some pictures of a block."""

    def __init__(self, key: tuple[int, ...], start: int, stop: int) -> None:
        self._bits, self._start, self._stop = np.random.PCG64(key), start, stop

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        """Return numbers (n, *shape) for the n pictures, skipping those of the block's other pictures."""
        each = int(np.prod(shape))
        self._bits.advance(self._start * each)
        raw = self._bits.random_raw((self._stop - self._start) * each) >> np.uint64(11)
        self._bits.advance((_BLOCK - self._stop) * each)
        return low + (high - low) * (raw.astype(np.float64) * 2.0**-53).reshape(-1, *shape)


def _labels(draw: _Uniform) -> NDArray[np.int64]:
    """Return two different classes for each picture of a block, (n, 2)."""
    first = np.argsort(draw(), kind="stable") % len(CLASSES)
    return np.stack([first, _another(draw, first)], axis=1).astype(np.int64)


def _another(draw: _Uniform, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw another class for each picture: any of the others, all equally likely."""
    step = 1 + (draw(*labels.shape[1:]) * (len(CLASSES) - 1)).astype(np.int64)
    return (labels + step) % len(CLASSES)


def _draw_portion(
    draw: _Uniform, labels: NDArray[np.int64], size: int, change: str | None, new: _Uniform
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Draw pictures; what a change replaces is drawn from its own stream `new`, and its old numbers are skipped."""
    _labels(draw)  # advances the stream
    if change == "other object":
        labels = _another(new, labels)
    n, objects = labels.shape
    base = draw(3, low=0.35, high=0.65)
    picture = _ground(draw, base, size)
    if change == "other background":
        picture = _ground(new, base, size)
    for _ in range(4):
        stroke = _stroke(draw, size, new if change == "moved distractors" else None)
        picture = _paint(picture, stroke, _color(draw, base))
    masks = np.empty((n, objects, size, size), dtype=bool)
    places = _places(draw, objects)
    for i in range(objects):
        cover = _object(draw, labels[:, i], places[:, i], size) * (change != "no object")
        masks[:, i] = cover >= 0.5
        picture = _paint(picture, cover, _color(draw, base))
    picture += _texture(draw, size)
    picture *= _light(draw, size)
    picture += 0.05 * (draw(3, size, size, low=-1) + draw(3, size, size, high=1))
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8), labels, masks


def _paint(picture: Array, cover: Array, color: Array) -> Array:
    """Blend a color (n, 3) over a picture (n, 3, S, S) where cover (n, S, S) is not zero."""
    return picture + cover[:, None] * (color[:, :, None, None] - picture)


def _color(draw: _Uniform, base: Array) -> Array:
    """Return colors (n, 3): brighter or darker than the base color at random, in a hue of their own."""
    sign = np.where(draw(1) < 0.5, -1.0, 1.0)
    hue = draw(3, low=-0.28, high=0.28)
    return base + sign * draw(1, low=0.32, high=0.37) + hue - hue.mean(1, keepdims=True)


def _ground(draw: _Uniform, base: Array, size: int) -> Array:
    """Draw large soft patches, colored, light and dark, (n, 3, S, S)."""
    return base[:, :, None, None] + _blotches(draw, 3, 4, 0.15, size) + _blotches(draw, 1, 4, 0.45, size)


def _blotches(draw: _Uniform, channels: int, cells: int, strength: float, size: int) -> Array:
    """Draw random values on a grid and interpolate between them, (n, channels, S, S)."""
    up = _upsample(cells, size)
    return np.asarray(up @ draw(channels, cells, cells, low=-strength, high=strength) @ up.T)


def _texture(draw: _Uniform, size: int) -> Array:
    """Draw what lies over ground and objects alike: small soft blotches and a grating, (n, 3, S, S)."""
    y, x = _grid(size)
    angle, waves, phase = draw(high=np.pi), draw(low=2, high=7), draw(high=2 * np.pi)
    along = (np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y) / size
    grating = np.sin(2 * np.pi * waves[:, None, None] * along + phase[:, None, None])
    picture = grating[:, None] * draw(3, low=-0.05, high=0.05)[:, :, None, None]
    return picture + _blotches(draw, 3, 8, 0.05, size)


def _upsample(cells: int, size: int) -> Array:
    """Return the matrix (S, cells) of linear interpolation."""
    at = np.linspace(0, cells - 1, size)[:, None]
    return (1 - np.abs(at - np.arange(cells))).clip(0)


def _grid(size: int) -> tuple[Array, Array]:
    """Return the pixel centers y (S, 1) and x (1, S)."""
    centers: Array = np.arange(size, dtype=np.float64) + 0.5
    return centers[:, None], centers[None, :]


def _stroke(draw: _Uniform, size: int, elsewhere: _Uniform | None = None) -> Array:
    """Draw a distractor, a line with round ends of up to half the side; return its coverage (n, S, S).

    `elsewhere` draws where it begins, if given.
    """
    y, x = _grid(size)
    x0, y0, angle = draw(high=size), draw(high=size), draw(high=2 * np.pi)
    if elsewhere is not None:
        x0, y0 = elsewhere(high=size), elsewhere(high=size)
    length = size * 0.5 * draw() ** 2
    radius = draw(low=0.02, high=0.05) * size
    dx, dy = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    px, py = x - x0[:, None, None], y - y0[:, None, None]
    along = (px * dx + py * dy).clip(0, length[:, None, None])
    distance = np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2)
    return (radius[:, None, None] - distance + 0.5).clip(0, 1)


def _places(draw: _Uniform, objects: int) -> Array:
    """Draw diameter, x and y of each object as fractions of the side, wholly inside the picture, (n, objects, 3).

    Two objects lie side by side or one above the other, with a gap.
    """
    part = (1 - _GAP * (objects - 1)) / objects
    diameter = draw(objects, low=0.35, high=0.5) if objects == 1 else draw(objects, low=0.3, high=0.4)
    along, across = draw(objects), draw(objects)
    split = np.arange(objects) * (part + _GAP) + diameter / 2 + along * (part - diameter)
    free = diameter / 2 + across * (1 - diameter)
    upright = draw(1) < 0.5
    return np.stack([diameter, np.where(upright, free, split), np.where(upright, split, free)], axis=2)


def _object(draw: _Uniform, labels: NDArray[np.int64], place: Array, size: int) -> Array:
    """Return the coverage (n, S, S) in quarters, from four sample points per pixel."""
    angle = draw(high=2 * np.pi)
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
    """Return which points are in the silhouette, within the unit circle."""
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
        x, y = 1.36 * u, 1.36 * v + 0.1
        return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
    if name == "arrow":
        shaft = (np.abs(u) <= 0.2) & (v >= -0.97) & (v <= 0)
        return shaft | ((v >= 0) & (np.abs(u) <= 0.75 * (1 - v)))
    assert name == "hourglass"
    return (np.abs(v) <= 0.85) & (np.abs(u) <= 0.62 * np.abs(v))


def _light(draw: _Uniform, size: int) -> Array:
    """Draw lighting from one random side: factors (n, 1, S, S) around 1."""
    y, x = _grid(size)
    angle, strength = draw(high=2 * np.pi), draw(high=0.35)
    along = (np.cos(angle)[:, None, None] * (x / size - 0.5) + np.sin(angle)[:, None, None] * (y / size - 0.5)) * 2
    return (1 + strength[:, None, None] * along)[:, None]
