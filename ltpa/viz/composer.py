"""The explorer's picture. Pillow draws it, because matplotlib is too slow to follow a slider."""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.sources import MAX_ASPECT
from ..maps import entropy
from .figures import UNSURE
from .overlay import color_bar, overlay, places_by_maximum, places_by_share
from .style import COLORS, HIGHEST, LOWEST, SCALE_LABEL, STRENGTH, multiple

UNIFORM, MAXIMUM = SCALE_LABEL, "each to its maximum"
_PANEL, _BARS, _GAP, _LINE = 224, 330, 14, 32  # pixels
_TEXT, _HEADING = 22, 24  # pixels, of a picture that is shown at four fifths of its size
_INK, _RULE, _WARNING = (0, 0, 0), (70, 70, 70), (176, 0, 32)


@dataclass
class Row:
    """One image with the maps and answers of one model or method."""

    title: str
    picture: Tensor  # uint8 (3, H, W)
    maps: Mapping[str, Tensor]  # name -> non-negative weights (h, w)
    probabilities: Mapping[str, float] = field(default_factory=dict)  # class -> probability, for the bars
    truth: str | None = None  # the true class, if it is known


def compose(
    rows: Sequence[Row], *, colors: str = COLORS[0], strength: float = STRENGTH, scale: str = UNIFORM
) -> Image.Image:
    """Draw the rows: the picture, a panel for each map over it, and bars for the five most probable classes.

    `colors` is one of `COLORS`. `strength` runs from 0 (only the picture) to 1 (only the map). `scale` is `UNIFORM`
    (logarithmic, 1/4 to 32 times the even share) or `MAXIMUM` (0 to each map's maximum). The color bar shows the
    colors at the same strength.
    """
    panels = 1 + max(len(row.maps) for row in rows)
    bars = any(row.probabilities for row in rows)
    width = _GAP + panels * (_PANEL + _GAP) + ((_BARS + _GAP) if bars else 0)
    height = 3 * _LINE + _PANEL + _GAP  # of a row
    sheet = Image.new("RGB", (max(width, 760), len(rows) * height + 2 * _LINE + _GAP), "white")
    for number, row in enumerate(rows):
        _draw_row(sheet, row, number * height, panels, colors, strength, scale)
    if any(row.maps for row in rows):
        _draw_scale(sheet, len(rows) * height, colors, strength, scale)
    return sheet


def to_png(image: Image.Image) -> bytes:
    """Return the picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _draw_row(sheet: Image.Image, row: Row, top: int, panels: int, colors: str, strength: float, scale: str) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, top + 2), row.title, _INK, _font(_HEADING, bold=True))
    top += 2 * _LINE
    pixels = row.picture.permute(1, 2, 0).numpy()
    size, margin = _fitted(pixels.shape[1], pixels.shape[0])
    smooth = Image.Resampling.LANCZOS if max(size) < max(pixels.shape[:2]) else Image.Resampling.NEAREST
    picture = Image.fromarray(pixels).resize(size, smooth)
    sheet.paste(picture, (_GAP + margin, top))
    for number, (name, weights) in enumerate(row.maps.items(), start=1):
        left = _GAP + number * (_PANEL + _GAP)
        weights = weights.detach().cpu().float()
        head = f"{name}  {weights.shape[0]}x{weights.shape[1]}"
        pen.text((left, top - _LINE), head, _INK, _fitting_font(head))
        spread = entropy(weights[None]).item() + 0.0
        if not math.isfinite(spread):
            pen.rectangle((left, top, left + _PANEL, top + _PANEL), (230, 230, 230))
            pen.text((left + 12, top + _PANEL // 2), "nothing to draw", _INK, _font(_TEXT))
            continue
        places = places_by_share(weights) if scale == UNIFORM else places_by_maximum(weights)
        colored = Image.fromarray(overlay(np.asarray(picture), places, colors, strength))
        sheet.paste(colored, (left + margin, top))
        pen.text((left, top + size[1] + 2), f"entropy {spread:.2f}", _INK, _font(_TEXT))
    if row.probabilities:
        _draw_bars(pen, row, _GAP + panels * (_PANEL + _GAP), top)


def _fitted(width: int, height: int) -> tuple[tuple[int, int], int]:
    """Return the size of a picture in its panel, and its distance from the left."""
    factor = _PANEL / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return size, (_PANEL - size[0]) // 2


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties), size)


def _fitting_font(text: str) -> ImageFont.FreeTypeFont:
    """Return the largest font up to the usual one in which the text is no wider than a panel."""
    return next((font for size in range(_TEXT, 12, -1) if (font := _font(size)).getlength(text) <= _PANEL), _font(12))


def _draw_bars(pen: ImageDraw.ImageDraw, row: Row, left: int, top: int) -> None:
    best = sorted(row.probabilities.items(), key=lambda item: -item[1])[:5]
    if best[0][1] < UNSURE:
        pen.text((left, top - _LINE), f"unsure: under {100 * UNSURE:.0f} %", _WARNING, _font(_TEXT, bold=True))
    room = _BARS - 110
    for number, (name, probability) in enumerate(best):
        y = top + number * 45
        color = (46, 125, 50) if name == row.truth else (84, 110, 140)
        pen.text((left, y - 4), name[:18] + ("  (truth)" if name == row.truth else ""), _INK, _font(_TEXT))
        pen.rectangle((left, y + 24, left + max(1, round(room * probability)), y + 38), color)
        pen.text((left + room * probability + 8, y + 31), f"{100 * probability:.1f} %", _INK, _font(20), anchor="lm")
    if row.truth is not None and row.truth not in dict(best):
        pen.text((left, top + _PANEL + 4), f"truth: {row.truth}", _INK, _font(_TEXT))


def _draw_scale(sheet: Image.Image, top: int, colors: str, strength: float, scale: str) -> None:
    pen, length, left = ImageDraw.Draw(sheet), 7 * 70, _GAP
    sheet.paste(Image.fromarray(color_bar(length, 28, colors, strength)), (left, top))
    marks = {0: "0", length: "its maximum"} if scale == MAXIMUM else _marks(length)
    for x, text in marks.items():
        pen.line((left + x, top, left + x, top + 32), _RULE)
        pen.text((left + x, top + 34), text, _INK, _font(_TEXT), anchor="ma" if x else "la")
    words = SCALE_LABEL if scale == UNIFORM else "weight of a position"
    pen.text((left + length + 24, top + 14), words, _INK, _font(_TEXT), anchor="lm")


def _marks(length: int) -> dict[int, str]:
    powers = range(round(math.log2(LOWEST)), round(math.log2(HIGHEST)) + 1)
    places = [round(length * (power - powers[0]) / (powers[-1] - powers[0])) for power in powers]
    return dict(zip(places, map(multiple, powers), strict=True))


def fit_for_display(picture: Tensor, most: int = 2 * _PANEL) -> Tensor:
    """Return a photo, uint8 (3, H, W), scaled down if its longer side has more than `most` pixels.

    A picture longer than `MAX_ASPECT` times its shorter side is squeezed to that, as the network reads it.
    """
    _, height, width = picture.shape
    least = math.ceil(max(height, width) / MAX_ASPECT)
    wide, high = max(width, least), max(height, least)
    factor = min(1.0, most / max(wide, high))
    size = max(1, round(wide * factor)), max(1, round(high * factor))
    if size == (width, height):
        return picture
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
