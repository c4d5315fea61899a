"""The looks of all figures, the scale of maps, and how a figure becomes a PNG or appears in a notebook.

Figures do not use pyplot, so none is displayed by itself or twice, and none has to be closed. They are 1,000 pixels
wide, and their text has 18 pixels, readable from the last row of a lecture room.
"""

import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, DPI = 10.0, 100  # inches, pixels an inch
FONT = 13  # points: 18 pixels
COLORS = ("viridis", "cividis", "magma", "inferno")  # perceptually uniform; cividis looks the same to the color-blind
LOWEST, HIGHEST = 0.25, 32.0  # ends of the color scale, in multiples of the uniform map
STRENGTH = 0.6  # of a map over its picture
SCALE_LABEL = "times the even share"
# Lines and points, told apart with any color vision (Okabe and Ito 2008; olive for their yellow, which is faint).
LINE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vP*X"


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of a size in inches, with automatic layout."""
    return Figure((width, height), dpi=DPI, layout="constrained")


def style_axes(
    axes: Axes, *, x: str = "", y: str = "", title: str = "", grid: Literal["x", "y", "both"] | None = "both"
) -> None:
    """Label the axes, set their text to the size used in all figures, and draw grid lines."""
    axes.set_xlabel(x, fontsize=FONT)
    axes.set_ylabel(y, fontsize=FONT)
    axes.set_title(title, fontsize=FONT)
    axes.tick_params(labelsize=FONT)
    if grid:
        axes.grid(axis=grid, alpha=0.3)


def add_legend(figure: Figure, handles: Sequence[Any], columns: int = 2) -> None:
    """Put a legend above the axes, without a frame."""
    columns = min(columns, len(handles))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=FONT, frameon=False)


def multiple(power: int) -> str:
    """Return 2 to the given power as a label: "1/4", "1", "8"."""
    return f"1/{2**-power}" if power < 0 else str(2**power)


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Return the figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def display(figure: Figure, alt: str) -> None:
    """Display the figure in a notebook, with alternative text; elsewhere do nothing."""
    if in_ipython():
        from IPython.display import display as show

        show(_image(figure, alt))


class LivePlot:
    """A figure in a notebook that `update(value)` replaces by `draw(value)`, in the same place."""

    def __init__(self, draw: Callable[[Any], Figure], alt: str) -> None:
        self._draw, self._alt = draw, alt
        self._handle: Any = None

    def update(self, value: Any) -> None:
        """Show `draw(value)`: the first time under the running cell. Outside IPython, do nothing."""
        if not in_ipython():
            return
        from IPython.display import display as show

        image = _image(self._draw(value), self._alt)
        if self._handle is None:
            self._handle = show(image, display_id=True)
        else:
            self._handle.update(image)


def in_ipython() -> bool:
    """Return whether this runs in IPython, as in a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _image(figure: Figure, alt: str) -> Any:
    from IPython.display import Image

    # IPython 7, which Colab has, knows no argument `alt`. Both versions write this metadata to the output.
    return Image(to_png(figure), format="png", metadata={"alt": alt})
