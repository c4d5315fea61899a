"""Figures of maps and of training, `ltpa.show`, and the explorer."""

from .figures import attention_figure, captions, learning_curve, outline, snapshot_figure
from .style import LivePlot, display, to_png
from .sweep import sweep_figure

__all__ = [
    "LivePlot", "attention_figure", "captions", "display", "learning_curve", "outline", "snapshot_figure",
    "sweep_figure", "to_png",
]  # fmt: skip
