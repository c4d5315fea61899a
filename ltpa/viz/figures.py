"""Figures of attention maps and of training.

Maps are drawn in multiples of the uniform weight (1 = no preference), on one logarithmic scale for the whole figure. A
map is opaque, so that its colors match the color bar; the picture appears over it as faint light and shade.
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
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ..errors import closest
from ..maps import entropy, relative
from .style import COLORS, FONT, HIGHEST, LOWEST, SCALE_LABEL, TITLE_FONT, multiple

_MOST_SNAPSHOTS = 8


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
        scale: upper end of the color scale, in multiples of uniform. By default the largest value, rounded up to a
            power of two from 4 to 32.
    """
    columns = {f"{name} {_size(level)}".rstrip(): level for name, level in maps.items()}
    return _grid(images, columns, titles, masks, scale)


def snapshot_figure(
    images: Tensor, snapshots: Mapping[int, Mapping[str, Tensor]], level: str, *, titles: Sequence[str] | None = None
) -> Figure:
    """Draw how the maps of one level changed during training: a row for each image, a column for each epoch.

    `snapshots` maps epoch -> level -> weights (N, h, w). At most 8 epochs are drawn, the first and last among them.
    """
    if not snapshots:
        raise ValueError("no snapshots to draw: give at least one, epoch -> {level: maps}")
    for epoch, maps in snapshots.items():
        if level not in maps:
            raise ValueError(f"unknown level {level!r} at epoch {epoch}: {closest(level, maps)}")
    epochs = sorted(snapshots)
    chosen = {epochs[round(i)] for i in np.linspace(0, len(epochs) - 1, _MOST_SNAPSHOTS)}
    figure = _grid(images, {f"epoch {epoch}": snapshots[epoch][level] for epoch in sorted(chosen)}, titles)
    figure.suptitle(f"{level} {_size(snapshots[epochs[-1]][level])}", fontsize=TITLE_FONT + 1)
    return figure


def learning_curve(history: Sequence[Mapping[str, float]], epochs: int | None = None) -> Figure:
    """Draw the loss and the accuracies of a training run, with their last values; `epochs` is the length of the axis.

    Each row of `history` has `epoch` (from 1) and any of `train_loss`, `train_accuracy` and `test_accuracy` (0 to 1).
    """
    figure = Figure(figsize=(10, 3.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    last = max((row["epoch"] for row in history), default=1)
    for axes, key, style, text, factor in (
        (left, "train_loss", "C0o-", "train {:.3f}", 1),
        (right, "train_accuracy", "C0o-", "train {:.1f} %", 100),
        (right, "test_accuracy", "C1s--", "test {:.1f} %", 100),
    ):
        points = [(row["epoch"], row[key] * factor) for row in history if math.isfinite(row.get(key, math.nan))]
        if points:
            x, y = zip(*points, strict=True)
            label = text.format(y[-1]) + (f" (epoch {x[-1]})" if x[-1] < last else "")
            axes.plot(x, y, style, label=label, markersize=4 if len(x) <= 60 else 0)
    end = epochs or last
    margin = max(0.5, 0.02 * end)
    for axes, name, place in ((left, "loss", "upper right"), (right, "accuracy (%)", "lower right")):
        axes.set_xlim(1 - margin, end + margin)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch", fontsize=TITLE_FONT)
        axes.set_ylabel(name, fontsize=TITLE_FONT)
        axes.tick_params(labelsize=FONT)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(loc=place, fontsize=TITLE_FONT)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 102)
    return figure


def _grid(
    images: Tensor | Sequence[Tensor],
    columns: Mapping[str, Tensor | Sequence[Tensor]],
    titles: Sequence[str] | None,
    masks: Tensor | None = None,
    scale: float | None = None,
) -> Figure:
    """Draw images (3, H, W) and columns of maps, title -> (h, w) for each image."""
    _check(images, columns, titles, masks, scale)
    pictures = [_pixels(image) for image in images]
    figure, axes = _panels(pictures, titles or [""] * len(pictures), list(columns))
    norm = LogNorm(LOWEST, 4)
    highest = 0.0
    for column, maps in enumerate(columns.values(), start=1):
        for picture, weights, panel in zip(pictures, maps, axes[:, column], strict=True):
            highest = max(highest, _draw_map(panel, picture, weights, norm))
    if masks is not None:
        for panel, mask in zip(axes.flat, masks.repeat_interleave(1 + len(columns) if columns else 1, 0), strict=False):
            outline(panel, mask.cpu().numpy())
    if columns:
        # The margin keeps a rounding error from doubling the scale.
        norm.vmax = scale or min(HIGHEST, 2.0 ** math.ceil(math.log2(max(highest, 4)) - 1e-6))
        _color_bar(figure, axes, norm, clipped=highest > norm.vmax * 1.001)
    return figure


def _panels(pictures: Sequence[NDArray[np.float64]], titles: Sequence[str], heads: Sequence[str]) -> tuple[Figure, Any]:
    """Return a figure with the pictures, their titles and the column heads, and empty panels for the maps."""
    count = len(pictures)
    across = 1 + len(heads) if heads else min(count, 4)
    down = count if heads else math.ceil(count / across)
    side = min(2.2, max(1.4, 11 / across))  # inches
    texts = ["\n".join(textwrap.fill(line, round(side * 11)) for line in title.split(" | ")) for title in titles]
    heads = [textwrap.fill(head, round(side * 10)) for head in heads]
    lines = max(text.count("\n") for text in texts) + 1
    tallest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    row = side * tallest + 0.19 * lines + (0.3 if heads else 0.15)
    above = 0.2 * (1 + max([text.count("\n") for text in heads], default=0))
    size = (across * side + (1.4 if heads else 0), down * row + 0.1 + above)
    figure = Figure(size, dpi=100, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
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
        panel.set_title(head, fontsize=TITLE_FONT, parse_math=False)
    return figure, axes


def _draw_map(panel: Axes, picture: NDArray[np.float64], map_: Tensor, norm: LogNorm) -> float:
    """Draw a map (h, w) with its entropy; return its largest value in multiples of uniform."""
    weights = map_.detach().cpu().double()[None]
    shares, spread = relative(weights)[0].clamp_min(LOWEST).numpy(), entropy(weights).item()
    # "+ 0.0" because the entropy of a single position is minus zero.
    panel.set_xlabel(f"entropy {'–' if math.isnan(spread) else f'{spread + 0.0:.2f}'}", fontsize=FONT)
    if defect := _defect(map_):
        _hatch(panel, defect)
    else:
        box = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
        panel.imshow(shares, cmap=COLORS[0], norm=norm, extent=box, origin="upper", interpolation="nearest")
        panel.imshow(_light_and_shade(picture), origin="upper")
    return float(np.nan_to_num(shares).max())


def _pixels(image: Tensor) -> NDArray[np.float64]:
    """Return an image (3, H, W) as (H, W, 3) in [0, 1]."""
    pixels = image.detach().cpu().permute(1, 2, 0).double().numpy()
    return pixels / 255 if image.dtype == torch.uint8 else pixels.clip(0, 1)


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
        # The tolerance is for pictures that were scaled smoothly.
        if image.dtype != torch.uint8 and (image.min() < -0.2 or image.max() > 1.2):
            raise ValueError(f"float images must be in [0, 1], not from {image.min():.3g} to {image.max():.3g}")
    for name, maps in columns.items():
        if len(maps) != count or any(one.ndim != 2 or one.numel() == 0 for one in maps):
            shapes = tuple(maps.shape) if isinstance(maps, Tensor) else [tuple(one.shape) for one in maps]
            raise ValueError(f"maps of {name} must have the shape (N, h, w) for N = {count} images, not {shapes}")
        if any((one < 0).any() for one in maps):
            raise ValueError(f"maps of {name} must be weights from 0 up, but some are negative; are they scores?")
    if titles is not None and (isinstance(titles, str) or len(titles) != count):
        raise ValueError(f"titles must be a list of {count} texts, one per image, not {titles!r}")
    size = tuple(images[0].shape[1:])
    if masks is not None and (masks.dtype != torch.bool or masks.shape != (count, *size)):
        raise ValueError(f"masks must be bool {(count, *size)}, not {masks.dtype} {tuple(masks.shape)}")
    if scale is not None and not 1 < scale < math.inf:
        raise ValueError(f"scale must be above 1 (the uniform map), not {scale}")


def _light_and_shade(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a picture (H, W, 3) as a layer (H, W, 4) of white and black, transparent at its mean brightness."""
    strength = 0.2  # if it were stronger, a bright object would look attended to on a uniform map
    gray = picture @ [0.299, 0.587, 0.114]
    relief = ((gray - gray.mean()) / (2 * max(gray.std(), 0.05))).clip(-1, 1)
    return np.stack([relief > 0] * 3 + [strength * np.abs(relief)], axis=2).astype(np.float64)


def outline(axes: Axes, mask: NDArray[np.bool_]) -> None:
    """Draw the outline of a mask (H, W) along the edges of its pixels (a contour line would cut corners)."""
    padded = np.pad(mask, 1).astype(np.int8)
    y, x = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    v, u = np.nonzero(np.diff(padded, axis=1)[1:-1])
    ends = np.concatenate([np.stack([x, y, x + 1, y], axis=1), np.stack([u, v, u, v + 1], axis=1)]) - 0.5
    for color, line in (("black", 2.4), ("white", 1.0)):
        axes.add_collection(LineCollection(list(ends.reshape(-1, 2, 2)), colors=color, linewidths=line), autolim=False)


def _defect(one: Tensor) -> str:
    """Return why a map (h, w) cannot be drawn, or nothing."""
    if one.isnan().any():
        return "NaN"
    if one.isinf().any():
        return "infinite"
    return "" if one.any() else "all zero"


def _hatch(axes: Axes, text: str) -> None:
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor="0.9", edgecolor="0.6", hatch="//"))
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=14, backgroundcolor="white")


def _color_bar(figure: Figure, axes: Any, norm: LogNorm, clipped: bool) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, COLORS[0]),
        ax=axes,
        extend="both" if clipped else "min",
        shrink=min(1.0, 4.5 / figure.get_figheight()),
        anchor=(0.0, 1.0),
        aspect=18,
    )
    highest = norm.vmax or HIGHEST
    powers = range(-2, math.floor(math.log2(highest)) + 1, 1 if highest <= 64 else 2)
    bar.set_ticks([2.0**power for power in powers], labels=[multiple(power) for power in powers], fontsize=FONT)
    bar.minorticks_off()
    bar.set_label(SCALE_LABEL, fontsize=TITLE_FONT)
    bar.ax.axhline(1, color="white", linewidth=2)


def captions(logits: Tensor, classes: Sequence[str], labels: Tensor | None = None) -> list[str]:
    """Return the network's answers as titles: "deer 97 %", or, if wrong, "deer 97 % | truth: cat".

    `logits` has the shape (N, num_classes), `labels` (N,); a label below 0 means none of the classes.
    """
    probability, answer = logits.float().softmax(dim=1).max(dim=1)
    texts = [f"{classes[a]} {p:.0%}".replace("%", " %") for a, p in zip(answer.tolist(), probability, strict=True)]
    if labels is None:
        return texts
    return [
        text if a == truth else f"{text} | truth: {classes[truth] if truth >= 0 else 'none of these'}"
        for text, a, truth in zip(texts, answer.tolist(), labels.tolist(), strict=True)
    ]
