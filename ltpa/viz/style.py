"""What all pictures share: colors, the scale of maps, fonts, and how a figure becomes a PNG or appears in a notebook.

No figure here belongs to pyplot: nothing is displayed by itself, or twice, or has to be closed.
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
    """Return the label of 2 to the given power: "1/4", "1", "8"."""
    return f"1/{2**-power}" if power < 0 else str(2**power)


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Return the figure as PNG; its size in pixels is its size in inches times `dpi`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def display(figure: Figure, alt: str) -> None:
    """Display the figure in a notebook, with a text for those who cannot see it; elsewhere do nothing."""
    if in_ipython():
        from IPython.display import display as show

        show(_image(figure, alt))


class LivePlot:
    """A figure that is displayed once and then redrawn in place; outside IPython it does nothing.

    Args:
        draw: makes a figure from what `update` gets, for instance `learning_curve`.
        alt: text for those who cannot see the figure.
    """

    def __init__(self, draw: Callable[[Any], Figure], alt: str) -> None:
        self._draw, self._alt = draw, alt
        self._handle: Any = None

    def update(self, value: Any) -> None:
        """Draw `draw(value)`: under the running cell the first time, from then on in the same place."""
        if not in_ipython():
            return
        from IPython.display import display as show

        image = _image(self._draw(value), self._alt)
        if self._handle is None:
            self._handle = show(image, display_id=True)
        else:
            self._handle.update(image)


def in_ipython() -> bool:
    """Whether this runs in IPython, that is, in a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _image(figure: Figure, alt: str) -> Any:
    from IPython.display import Image

    # Not alt=alt: the Image of IPython 7, which Colab has, does not take it. Both versions put this into the output.
    return Image(to_png(figure), format="png", metadata={"alt": alt})
