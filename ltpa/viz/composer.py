"""The explorer's picture. Pillow draws it, because matplotlib is too slow to follow a slider."""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..maps import entropy, relative
from .style import COLORS, HIGHEST, LOWEST, SCALE_LABEL, multiple

UNIFORM, MAXIMUM = "uniform = 1", "each to its maximum"
_PANEL, _BARS, _GAP, _LINE = 224, 300, 14, 24  # pixels
_INK, _PALE = (30, 30, 30), (150, 150, 150)


@dataclass
class Row:
    """One image with the maps and answers of one model or method."""

    title: str
    picture: Tensor  # uint8 (3, H, W)
    maps: Mapping[str, Tensor]  # name -> non-negative weights (h, w)
    probabilities: Mapping[str, float] = field(default_factory=dict)  # class -> probability, for the bars
    truth: str | None = None  # the true class, if it is known


def compose(
    rows: Sequence[Row], *, colors: str = COLORS[0], strength: float = 0.6, scale: str = UNIFORM
) -> Image.Image:
    """Draw the rows: the picture, a panel for each map over it, and bars for the five most probable classes.

    `colors` is one of `COLORS`. `strength` runs from 0 (only the picture) to 1 (only the map). `scale` is `UNIFORM`
    (logarithmic, 1/4 to 32 times the uniform weight) or `MAXIMUM` (0 to each map's maximum).
    """
    panels = 1 + max(len(row.maps) for row in rows)
    bars = any(row.probabilities for row in rows)
    width = _GAP + panels * (_PANEL + _GAP) + ((_BARS + _GAP) if bars else 0)
    height = 3 * _LINE + _PANEL + _GAP  # of a row
    sheet = Image.new("RGB", (max(width, 560), len(rows) * height + 2 * _LINE + _GAP), "white")
    for number, row in enumerate(rows):
        _draw_row(sheet, row, number * height, panels, colors, strength, scale)
    if any(row.maps for row in rows):
        _draw_scale(sheet, len(rows) * height, colors, scale)
    return sheet


def to_png(image: Image.Image) -> bytes:
    """Return the picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _draw_row(sheet: Image.Image, row: Row, top: int, panels: int, colors: str, strength: float, scale: str) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, top + 2), row.title, _INK, _font(17, bold=True))
    top += 2 * _LINE
    pixels = row.picture.permute(1, 2, 0).numpy()
    size, corner = _fitted(pixels.shape[1], pixels.shape[0])
    smooth = Image.Resampling.LANCZOS if max(size) < max(pixels.shape[:2]) else Image.Resampling.NEAREST
    picture = Image.fromarray(pixels).resize(size, smooth)
    sheet.paste(picture, (_GAP + corner[0], top + corner[1]))
    for number, (name, weights) in enumerate(row.maps.items(), start=1):
        left = _GAP + number * (_PANEL + _GAP)
        weights = weights.detach().cpu().float()
        pen.text((left, top - _LINE), f"{name}  {weights.shape[0]}x{weights.shape[1]}", _INK, _font(15))
        spread = entropy(weights[None]).item() + 0.0
        if not math.isfinite(spread):
            pen.rectangle((left, top, left + _PANEL, top + _PANEL), (230, 230, 230))
            pen.text((left + 12, top + _PANEL // 2), "nothing to draw", _INK, _font(15))
            continue
        colored = Image.fromarray(_colored(weights, colors, scale)).resize(size, Image.Resampling.NEAREST)
        sheet.paste(Image.blend(picture, colored, strength), (left + corner[0], top + corner[1]))
        pen.text((left, top + _PANEL + 2), f"entropy {spread:.2f}", _INK, _font(15))
    if row.probabilities:
        _draw_bars(pen, row, _GAP + panels * (_PANEL + _GAP), top)


def _fitted(width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of a picture in its panel, and its upper left corner."""
    factor = _PANEL / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return size, ((_PANEL - size[0]) // 2, (_PANEL - size[1]) // 2)


def _colored(weights: Tensor, colors: str, scale: str) -> NDArray[np.uint8]:
    """Return weights (h, w) as colors (h, w, 3)."""
    if scale == UNIFORM:
        values = relative(weights[None])[0].clamp(LOWEST, HIGHEST)
        place = (values / LOWEST).log() / math.log(HIGHEST / LOWEST)
    else:
        place = weights / weights.max()
    return _table(colors)[(place * 255).round().long().numpy()]


@functools.cache
def _table(colors: str) -> NDArray[np.uint8]:
    return (matplotlib.colormaps[colors](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties), size)


def _draw_bars(pen: ImageDraw.ImageDraw, row: Row, left: int, top: int) -> None:
    best = sorted(row.probabilities.items(), key=lambda item: -item[1])[:5]
    room = _BARS - 120
    for number, (name, probability) in enumerate(best):
        y = top + number * (_PANEL // 5)
        color = (46, 125, 50) if name == row.truth else (120, 144, 170)
        pen.text((left, y), name[:24] + ("  (truth)" if name == row.truth else ""), _INK, _font(15))
        pen.rectangle((left, y + 20, left + max(1, round(room * probability)), y + 34), color)
        pen.text((left + room * probability + 8, y + 17), f"{100 * probability:.1f} %", _INK, _font(15))
    if row.truth is not None and row.truth not in dict(best):
        pen.text((left, top + _PANEL + 2), f"truth: {row.truth}", _INK, _font(15))


def _draw_scale(sheet: Image.Image, top: int, colors: str, scale: str) -> None:
    pen, length, left = ImageDraw.Draw(sheet), 7 * 56, _GAP
    strip = np.repeat(_table(colors)[np.linspace(0, 255, length).round().astype(int)][None], 14, axis=0)
    sheet.paste(Image.fromarray(strip), (left, top))
    marks = {0: "0", length: "its maximum"} if scale == MAXIMUM else _marks(length)
    for x, text in marks.items():
        pen.line((left + x, top, left + x, top + 18), _PALE)
        pen.text((left + x, top + 20), text, _INK, _font(14), anchor="ma" if x else "la")
    if scale == UNIFORM:
        pen.text((left + length + 24, top - 2), f"{SCALE_LABEL} (1 = the even share)", _INK, _font(14))


def _marks(length: int) -> dict[int, str]:
    powers = range(round(math.log2(LOWEST)), round(math.log2(HIGHEST)) + 1)
    places = [round(length * (power - powers[0]) / (powers[-1] - powers[0])) for power in powers]
    return dict(zip(places, map(multiple, powers), strict=True))


def fit_for_display(picture: Tensor, most: int = 2 * _PANEL) -> Tensor:
    """Return a photo, uint8 (3, H, W), scaled down if its longer side has more than `most` pixels."""
    longest = max(picture.shape[1:])
    if longest <= most:
        return picture
    size = [max(1, round(side * most / longest)) for side in (picture.shape[2], picture.shape[1])]
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
