"""Figures of attention maps and of training.

Maps are drawn over their pictures, which turn gray, in multiples of the even share (1 = no preference), on one
logarithmic scale for the whole figure.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ..checks import check_values
from ..errors import closest
from ..maps import entropy, relative
from .overlay import Pixels, color_bar, overlay, places_by_share
from .style import FONT, HIGHEST, LINE_COLORS, LOWEST, SCALE_LABEL, WIDTH, multiple, new_figure, style_axes
from .words import model_in_words

UNSURE = 0.5  # an answer with less probability is called unsure
_MOST_SNAPSHOTS = 5
_SIDE = 2.15  # inches, of the largest panel
_TALLEST = 1.6  # of a panel, in multiples of its width; a longer picture is drawn smaller
_BAR_ROOM, _NARROW = 1.35, 1.35  # inches: for the color bar; panels under which "entropy 0.94" takes two lines
_LETTERS, LINE = 8.5, 0.23  # letters that fit into an inch; inches of a line


def attention_figure(
    images: Tensor | Sequence[Tensor],
    maps: Mapping[str, Tensor | Sequence[Tensor]],
    *,
    titles: Sequence[str] | None = None,
    masks: Tensor | None = None,
    scale: float | None = None,
) -> Figure:
    """Draw a row for each image: the image, then its map at every level. Without maps, draw four images in a row.

    Args:
        images: (N, 3, H, W), uint8 or float in [0, 1]; or a list of (3, H, W) of any sizes.
        maps: level -> non-negative weights (N, h, w), or a list of (h, w).
        titles: N titles; " | " starts a new line.
        masks: bool (N, H, W), drawn as outlines.
        scale: upper end of the color scale, in multiples of the even share. By default the largest value, rounded up to
            a power of two from 4 to 32.
    """
    columns = {f"{model_in_words(name)} {_size(level)}".rstrip(): level for name, level in maps.items()}
    return _grid(images, columns, titles, masks, scale)


def snapshot_figure(images: Tensor, snapshots: Mapping[int, Mapping[str, Tensor]], level: str) -> Figure:
    """Draw how the maps of one level changed during training: a row for each image, a column for each epoch.

    `snapshots` maps epoch -> level -> weights (N, h, w). At most 5 epochs are drawn, the first and last among them.
    """
    if not snapshots:
        raise ValueError("no snapshots to draw: give at least one, epoch -> {level: maps}")
    for epoch, maps in snapshots.items():
        if level not in maps:
            raise ValueError(f"unknown level {level!r} at epoch {epoch}: {closest(level, maps)}")
    epochs = sorted(snapshots)
    chosen = {epochs[round(i)] for i in np.linspace(0, len(epochs) - 1, _MOST_SNAPSHOTS)}
    figure = _grid(images, {f"epoch {epoch}": snapshots[epoch][level] for epoch in sorted(chosen)})
    figure.suptitle(f"{level} {_size(snapshots[epochs[-1]][level])}", fontsize=FONT)
    return figure


def learning_curve(history: Sequence[Mapping[str, float]], epochs: int | None = None) -> Figure:
    """Draw the loss and the accuracies of a training run, with their last values; `epochs` is the length of the axis.

    Each row of `history` has `epoch` (from 1) and any of `train_loss`, `train_accuracy` and `test_accuracy` (0 to 1).
    """
    figure = new_figure(3.8)
    left, right = figure.subplots(1, 2)
    last = max((row["epoch"] for row in history), default=1)
    for axes, key, color, style, text, factor in (
        (left, "train_loss", LINE_COLORS[0], "o-", "training {:.3f}", 1),
        (right, "train_accuracy", LINE_COLORS[0], "o-", "training {:.1f} %", 100),
        (right, "test_accuracy", LINE_COLORS[3], "s--", "test {:.1f} %", 100),
    ):
        points = [(row["epoch"], row[key] * factor) for row in history if math.isfinite(row.get(key, math.nan))]
        if points:
            x, y = zip(*points, strict=True)
            label = text.format(y[-1]) + (f" (epoch {x[-1]})" if x[-1] < last else "")
            axes.plot(x, y, style, color=color, label=label, markersize=5 if len(x) <= 60 else 0)
    end = epochs or last
    margin = max(0.5, 0.02 * end)
    for axes, name, place in ((left, "loss", "upper right"), (right, "accuracy (%)", "lower right")):
        style_axes(axes, x="epoch", y=name)
        axes.set_xlim(1 - margin, end + margin)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if axes.lines:
            axes.legend(loc=place, fontsize=FONT)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 102)
    return figure


def _grid(
    images: Tensor | Sequence[Tensor],
    columns: Mapping[str, Tensor | Sequence[Tensor]],
    titles: Sequence[str] | None = None,
    masks: Tensor | None = None,
    scale: float | None = None,
) -> Figure:
    """Draw images (3, H, W) and columns of maps, title -> (h, w) for each image."""
    _check(images, columns, titles, masks, scale)
    pictures = [_pixels(image) for image in images]
    figure, axes = _panels(pictures, titles or [""] * len(pictures), list(columns))
    highest = max((_highest(weights) for maps in columns.values() for weights in maps), default=0.0)
    # The margin keeps a rounding error from doubling the scale.
    end = scale or min(HIGHEST, 2.0 ** math.ceil(math.log2(max(highest, 4)) - 1e-6))
    narrow = (WIDTH - _BAR_ROOM) / (1 + len(columns)) < _NARROW
    for column, maps in enumerate(columns.values(), start=1):
        for picture, weights, panel in zip(pictures, maps, axes[:, column], strict=True):
            _draw_map(panel, picture, weights, end, narrow)
    if masks is not None:
        for panel, mask in zip(axes.flat, masks.repeat_interleave(1 + len(columns) if columns else 1, 0), strict=False):
            outline(panel, mask.cpu().numpy())
    if columns:
        _draw_color_bar(figure, axes, end, clipped=highest > end * 1.001)
    return figure


def _panels(pictures: Sequence[Pixels], titles: Sequence[str], heads: Sequence[str]) -> tuple[Figure, Any]:
    """Return a figure with the pictures, their titles and the column heads, and empty panels for the maps."""
    count = len(pictures)
    across = 1 + len(heads) if heads else min(count, 4)
    down = count if heads else math.ceil(count / across)
    room = _BAR_ROOM if heads else 0.0
    side = min(_SIDE, (WIDTH - room) / across)
    texts = ["\n".join(textwrap.fill(line, round(side * _LETTERS)) for line in title.split(" | ")) for title in titles]
    heads = [textwrap.fill(head, round(side * _LETTERS)) for head in heads]
    under = (0.35 if side > _NARROW else 0.35 + LINE) if heads else 0.1  # for the entropy
    rows = []
    for start in range(0, count, 1 if heads else across):
        several = slice(start, start + (1 if heads else across))
        tallest = min(_TALLEST, max(picture.shape[0] / picture.shape[1] for picture in pictures[several]))
        rows.append(side * tallest + under + LINE * (1 + max(text.count("\n") for text in texts[several])))
    above = LINE * (1 + max([text.count("\n") for text in heads], default=0))
    figure = new_figure(sum(rows) + 0.1 + above, max(across * side + room, 0.6 * WIDTH))
    axes = figure.subplots(down, across, squeeze=False, height_ratios=rows)
    for number, panel in enumerate(axes.flat):
        index = number // across if heads else number  # of the picture
        if index >= count:
            panel.axis("off")
            continue
        height, width, _ = pictures[index].shape
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])
    for panel, picture, text in zip(axes[:, 0] if heads else axes.flat, pictures, texts, strict=False):
        panel.imshow(picture, origin="upper")
        panel.set_title(text, fontsize=FONT, parse_math=False)
    for panel, head in zip(axes[0, 1:], heads, strict=False):
        panel.set_title(head, fontsize=FONT, parse_math=False)
    return figure, axes


def _draw_map(panel: Axes, picture: Pixels, weights: Tensor, end: float, narrow: bool) -> None:
    """Draw a map (h, w) over its picture on the scale up to `end`, with its entropy."""
    spread = entropy(weights.detach().cpu().double()[None]).item()
    # "+ 0.0" because the entropy of a single position is minus zero.
    number = "–" if math.isnan(spread) else f"{spread + 0.0:.2f}"
    panel.set_xlabel(f"entropy\n{number}" if narrow else f"entropy {number}", fontsize=FONT)
    if not weights.any():
        panel.add_patch(
            Rectangle((0, 0), 1, 1, transform=panel.transAxes, facecolor="0.9", edgecolor="0.6", hatch="//")
        )
        place: dict[str, Any] = {"transform": panel.transAxes, "ha": "center", "va": "center"}
        panel.text(0.5, 0.5, "all zero", fontsize=FONT, backgroundcolor="white", **place)
        return
    draw_overlay(panel, picture, places_by_share(weights, end))


def draw_overlay(panel: Axes, picture: Pixels, places: NDArray[np.float64]) -> None:
    """Draw the places (h, w) of a map on its scale over the picture, as sharp as both."""
    height, width, _ = picture.shape
    finer = max(1, math.ceil(max(2 * _SIDE * 100 / max(height, width), places.shape[0] / height)))
    large = picture.repeat(finer, axis=0).repeat(finer, axis=1)
    panel.imshow(overlay(large, places), extent=(-0.5, width - 0.5, height - 0.5, -0.5), origin="upper")


def _highest(weights: Tensor) -> float:
    """Return the largest value of a map in multiples of the even share; 0 for a map without any weight."""
    return 0.0 if not weights.any() else float(relative(weights.detach().cpu().double()[None]).max())


def _pixels(image: Tensor) -> Pixels:
    """Return an image (3, H, W) as uint8 (H, W, 3)."""
    pixels = image.detach().cpu().permute(1, 2, 0)
    if image.dtype != torch.uint8:
        pixels = (pixels.double().clamp(0, 1) * 255).round().byte()
    return pixels.numpy()


def _size(maps: Tensor | Sequence[Tensor]) -> str:
    """Return the size of the maps, such as "8x8", or nothing if their sizes differ."""
    sizes = {tuple(one.shape) for one in maps}
    return "x".join(map(str, sizes.pop())) if len(sizes) == 1 else ""


def _check(
    images: Tensor | Sequence[Tensor],
    columns: Mapping[str, Tensor | Sequence[Tensor]],
    titles: Sequence[str] | None,
    masks: Tensor | None,
    scale: float | None,
) -> None:
    shape = tuple(images.shape) if isinstance(images, Tensor) else [tuple(image.shape) for image in images]
    if not len(images) or any(image.ndim != 3 or image.shape[0] != 3 for image in images):
        raise ValueError(f"images must have the shape (N, 3, H, W) with N from 1 up, not {shape}")
    count = len(images)
    for image in images:
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"images must be uint8, or float in [0, 1], not {image.dtype}")
        if image.dtype != torch.uint8:
            check_values(image[None])
    for name, maps in columns.items():
        if len(maps) != count or any(one.ndim != 2 or one.numel() == 0 for one in maps):
            shapes = tuple(maps.shape) if isinstance(maps, Tensor) else [tuple(one.shape) for one in maps]
            raise ValueError(f"maps of {name} must have the shape (N, h, w) for N = {count} images, not {shapes}")
        broken = [number for number, one in enumerate(maps) if not one.isfinite().all()]
        if broken:
            raise ValueError(
                f"maps of {name} have NaN or infinite values in {len(broken)} of {count} maps, first in {broken[0]}"
            )
        if any((one < 0).any() for one in maps):
            raise ValueError(f"maps of {name} must be weights from 0 up, but some are negative; are they scores?")
    if titles is not None and (isinstance(titles, str) or len(titles) != count):
        raise ValueError(f"titles must be a list of {count} texts, one per image, not {titles!r}")
    size = tuple(images[0].shape[1:])
    if masks is not None and (masks.dtype != torch.bool or masks.shape != (count, *size)):
        raise ValueError(f"masks must be bool {(count, *size)}, not {masks.dtype} {tuple(masks.shape)}")
    if scale is not None and not 1 < scale < math.inf:
        raise ValueError(f"scale must be above 1 (the uniform map), not {scale}")


def outline(axes: Axes, mask: NDArray[np.bool_]) -> None:
    """Draw the outline of a mask (H, W) along the edges of its pixels (a contour line would cut corners)."""
    padded = np.pad(mask, 1).astype(np.int8)
    y, x = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    v, u = np.nonzero(np.diff(padded, axis=1)[1:-1])
    ends = np.concatenate([np.stack([x, y, x + 1, y], axis=1), np.stack([u, v, u, v + 1], axis=1)]) - 0.5
    for color, line in (("black", 2.4), ("white", 1.0)):
        axes.add_collection(LineCollection(list(ends.reshape(-1, 2, 2)), colors=color, linewidths=line), autolim=False)


def _draw_color_bar(figure: Figure, axes: Any, end: float, clipped: bool) -> None:
    """Draw the scale: the colors of `overlay` over dark and bright parts of a picture."""
    low, high = math.log2(LOWEST), math.log2(end)
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high)),
        ax=axes,
        shrink=min(1.0, 4.5 / figure.get_figheight()),
        anchor=(0.0, 1.0),
        aspect=13,
    )
    if bar.solids is not None:
        bar.solids.remove()
    bar.ax.imshow(color_bar(256, 32).transpose(1, 0, 2), extent=(0, 1, low, high), origin="lower", aspect="auto")
    powers = list(range(round(low), math.floor(high) + 1, 1 if end <= 64 else 2))
    labels = [f"≤ {multiple(powers[0])}", *map(multiple, powers[1:])]
    if clipped and powers[-1] == high:
        labels[-1] = f"≥ {labels[-1]}"
    bar.set_ticks(powers, labels=labels, fontsize=FONT)
    bar.ax.set(xlim=(0, 1), ylim=(low, high))
    bar.set_label(SCALE_LABEL, fontsize=FONT)
    bar.ax.axhline(0, color="white", linewidth=2)


def captions(logits: Tensor, classes: Sequence[str], labels: Tensor | None = None) -> list[str]:
    """Return the network's answers as titles: "deer 97 %", or, if wrong, "deer 97 % | truth: cat".

    `logits` has the shape (N, num_classes), `labels` (N,); a label below 0 means none of the classes. An answer whose
    probability is below 50 % begins with "unsure: ".
    """
    probability, answer = logits.float().softmax(dim=1).max(dim=1)
    texts = [
        ("unsure: " if p < UNSURE else "") + f"{classes[a]} {p:.0%}".replace("%", " %")
        for a, p in zip(answer.tolist(), probability.tolist(), strict=True)
    ]
    if labels is None:
        return texts
    return [
        text if a == truth else f"{text} | truth: {classes[truth] if truth >= 0 else 'none of these'}"
        for text, a, truth in zip(texts, answer.tolist(), labels.tolist(), strict=True)
    ]
