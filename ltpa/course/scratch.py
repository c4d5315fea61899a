"""Notebook 00: attention from scratch. Its parameters, its picture, and figures of features and scores."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pydantic import Field
from torch import Tensor

from ..config import Seed, SettingsBase, settings
from ..data.shapes import CLASSES, draw_shapes
from ..errors import with_article as with_article
from ..viz.style import FONT, WIDTH, new_figure
from . import setup
from .exercise_checks import numbers as numbers
from .exercises import Checks as Checks
from .setup import report as report

_COLORS = ("#e41a1c", "#377eb8", "#ff7f00", "#984ea3")


@settings
class ScratchConfig(SettingsBase):
    """Parameters of the notebook that builds attention from scratch."""

    seed: Seed = Field(3, description="of the picture")
    solutions: bool = Field(False, description="fill in the exercises that are not filled in")

    # No parameters: everything is small, and printed digits should be the same everywhere.
    device: ClassVar[str] = "cpu"
    precision: ClassVar[str] = "fp32"


parameters = partial(setup.parameters, kind=ScratchConfig)


def two_objects(seed: int) -> tuple[Tensor, Tensor, tuple[str, str]]:
    """Draw pictures of two objects; return one with hues that differ, its masks, and the objects' classes.

    The hues of the two objects and of the ground differ more than in any other of the pictures.

    The picture is float (3, 64, 64) in [0, 1], the masks are bool (2, 64, 64).
    """
    images, labels, masks = draw_shapes(256, 64, seed, objects=2)
    parts = torch.cat([masks, ~masks.any(1, keepdim=True)], 1).double()
    colors = torch.einsum("nchw,nohw->noc", images.double() / 255, parts) / parts.sum((2, 3)).unsqueeze(2)
    hues = colors - colors.mean(dim=2, keepdim=True)
    differences = torch.stack([(hues[:, a] - hues[:, b]).norm(dim=1) for a, b in ((0, 1), (0, 2), (1, 2))])
    chosen = int(differences.amin(0).argmax())
    first, other = (CLASSES[label] for label in labels[chosen].tolist())
    return images[chosen] / 255, masks[chosen], (first, other)


def grid(values: Any) -> Tensor:
    """Return an exercise's map, of whatever kind and shape it was accepted in, as a float tensor (16, 16)."""
    return numbers(values).float().reshape(16, 16)


def values_figure(
    values: Mapping[str, Tensor], label: str, *, picture: Tensor | None = None, top: float | None = None
) -> Figure:
    """Draw a number per position (h, w) on one linear color scale: channels of local features, scores, weights.

    `label` is that of the color bar. `top` is the upper end of the scale, which then begins at 0; without it the scale
    spans the values.
    """
    panels = len(values) + (picture is not None)
    across = min(panels, 4)
    down = -(-panels // across)
    side = min(2.6, (WIDTH - 1.2) / across)
    figure = new_figure(down * (side + 0.3) + 0.2, across * side + 1.2)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in axes[panels:]:
        panel.axis("off")
    everything = torch.stack(list(values.values()))
    norm = Normalize(0 if top else float(everything.min()), top or float(everything.max()))
    if picture is not None:
        _picture(axes[0], picture)
    for panel, (title, one) in zip(axes[panels - len(values) :], values.items(), strict=False):
        panel.imshow(one.numpy(), norm=norm, cmap="viridis")
        panel.set(xticks=[], yticks=[])
        panel.set_title(title, fontsize=FONT)
    bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, shrink=0.9, aspect=18)
    bar.set_label(label, fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    return figure


def vectors_figure(
    vectors: Mapping[str, Tensor],
    channels: Sequence[str],
    *,
    picture: Tensor | None = None,
    places: Mapping[str, tuple[int, int]] | None = None,
    positions: int = 16,
) -> Figure:
    """Draw vectors (C,) side by side as bars on one axis, and frame where in the picture they come from.

    `places` gives row and column of a frame, in a grid of `positions` by `positions`; it has the color of the bars.
    """
    across = len(vectors) + (picture is not None)
    figure = new_figure(3.3, min(WIDTH, 1.2 + 2.7 * across))
    axes = list(figure.subplots(1, across, squeeze=False).flat)
    colors = dict(zip(vectors, _COLORS * len(vectors), strict=False))
    if picture is not None:
        _picture(axes[0], picture)
        step = picture.shape[2] / positions
        for line in range(1, positions):
            for draw in (axes[0].axhline, axes[0].axvline):
                draw(line * step - 0.5, color="white", linewidth=0.4, alpha=0.5)
        for title, (row, column) in (places or {}).items():
            corner = (column * step - 0.5, row * step - 0.5)
            for color, width in (("white", 5), (colors[title], 3)):
                axes[0].add_patch(Rectangle(corner, step, step, fill=False, edgecolor=color, linewidth=width))
    ends = torch.stack(list(vectors.values()))
    for number, (panel, (title, vector)) in enumerate(zip(axes[-len(vectors) :], vectors.items(), strict=True)):
        panel.barh(range(len(channels)), vector.tolist(), color=colors[title] if places else "#377eb8")
        panel.set_xlim(min(0, 1.1 * float(ends.min())), 1.1 * float(ends.max()))
        panel.set_yticks(range(len(channels)), channels if number == 0 else [""] * len(channels), fontsize=FONT)
        panel.invert_yaxis()
        panel.axvline(0, color="black", linewidth=0.8)
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(axis="x", labelsize=FONT)
        panel.set_title(title, fontsize=FONT)
    return figure


def _picture(axes: Axes, picture: Tensor) -> None:
    axes.imshow(picture.permute(1, 2, 0).numpy())
    axes.set(xticks=[], yticks=[])
    axes.set_title("the picture", fontsize=FONT)
