"""A figure of a sweep: a metric against a parameter."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..errors import closest
from ..metrics.statistics import t_interval
from .style import LINE_COLORS, MARKERS, add_legend, new_figure, style_axes

_POINTS = 0.3  # opacity of single runs


def sweep_figure(table: pd.DataFrame, x: str, y: str = "test_accuracy", by: str | None = None) -> Figure:
    """Draw a metric of a sweep against a parameter: a point for each run, and means with 95 % intervals.

    Args:
        table: from `ltpa.load_sweep`; rows without the metric are left out. If other parameters vary, select rows
            first: the interval is over all rows with the same x.
        x: a column; numbers that span a factor of ten or more get a logarithmic axis; others are evenly spaced.
        y: a column of numbers.
        by: a column; each of its values has its own line.
    """
    for name in (x, y, *([by] if by else [])):
        if name not in table.columns:
            raise ValueError(f"unknown column {name!r}: {closest(name, map(str, table.columns))}")
    if not pd.api.types.is_numeric_dtype(table[y]):
        raise ValueError(f"column {y!r} does not hold numbers")
    rows = table.dropna(subset=[y])
    if rows.empty:
        raise ValueError(f"no row has a value of {y!r}")
    numeric = pd.api.types.is_numeric_dtype(rows[x]) and not pd.api.types.is_bool_dtype(rows[x])
    values = sorted(rows[x].unique()) if numeric else list(dict.fromkeys(rows[x].astype(str)))
    places = {value: float(value) if numeric else float(number) for number, value in enumerate(values)}
    figure = new_figure(4.6)
    axes = figure.subplots()
    lines = list(rows.groupby(by, sort=False)) if by else [("", rows)]
    gap = 0.0 if numeric or len(lines) == 1 else 0.5 / len(lines)
    handles = []
    for number, (value, own) in enumerate(lines):
        shift = gap * (number - (len(lines) - 1) / 2)
        at = (own[x] if numeric else own[x].astype(str)).map(places) + shift
        style = {"color": LINE_COLORS[number % len(LINE_COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        handles.append(_draw(axes, at, own[y], label=str(value), linestyle="-" if numeric else "", **style))
    if numeric and values[0] > 0 and values[-1] >= 10 * values[0]:
        axes.set_xscale("log")
    if not numeric or len(values) <= 8:
        axes.set_xticks(list(places.values()), [str(value) for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
    style_axes(axes, x=x, y=y)
    if by:
        add_legend(figure, handles)
    return figure


def _draw(axes: Axes, at: "pd.Series[float]", values: "pd.Series[float]", **style: Any) -> Any:
    """Draw the runs as points, and mean and interval at each place; return the handle for a legend."""
    axes.plot(at, values, style["marker"], color=style["color"], alpha=_POINTS, markersize=5)
    intervals = {place: t_interval(group.to_numpy(float)) for place, group in values.groupby(at)}
    means = [i.mean for i in intervals.values()]
    ends = [(i.mean - i.low, i.high - i.mean) if i.known else (math.nan, math.nan) for i in intervals.values()]
    return axes.errorbar(list(intervals), means, yerr=list(zip(*ends, strict=True)), markersize=7, capsize=4, **style)
