"""Colors, fonts and the scale of maps, and how a figure becomes a PNG or appears in a notebook.

Figures do not use pyplot, so none is displayed by itself or twice, and none has to be closed.
"""

import io
import sys
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

COLORS = ("viridis", "cividis", "magma", "inferno")  # perceptually uniform; cividis looks the same to the color-blind
LOWEST, HIGHEST = 0.25, 32.0  # ends of the color scale, in multiples of the uniform map
FONT, TITLE_FONT = 11, 12  # points
SCALE_LABEL = "attention / uniform"


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
