"""Pictures of what `map_quality_measure` measured: scores of all maps, curves, sanity, and the best and worst cases."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..data.dataset import Split
from ..inference import to_float
from ..viz.figures import outline
from ..viz.style import FONT, TITLE_FONT
from .map_quality_measure import CONTROL, LEVEL, METHOD, Row, cases

_MARKERS = "osD^vP*Xdph<>"
# Colors that people with any color vision tell apart (Okabe and Ito 2008; olive for their yellow, which is faint).
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999933")
_PANELS = {
    "average_precision": "finds the object:\naverage precision",
    "insertion": "the model goes by it:\ninsertion area",
    "deletion": "the model misses it:\ndeletion area (low is good)",
    "sanity": "stays as it was with\nrandom weights (near 0 is good)",
}


def scores_figure(rows: Sequence[Row]) -> Figure:
    """Draw one panel a measure, one line a kind of map, one point a model, with 95 % intervals over the images."""
    names = list(dict.fromkeys(row.name for row in rows))
    names.sort(key=lambda name: [LEVEL, METHOD, CONTROL].index(next(r.kind for r in rows if r.name == name)))
    models = list(dict.fromkeys(row.model for row in rows))
    figure = Figure((3.0 * len(_PANELS) + 1.4, 0.55 * len(names) + 1.9), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(_PANELS), sharey=True)
    for panel, (measure, title) in zip(axes, _PANELS.items(), strict=True):
        for number, model in enumerate(models):
            means = [(names.index(row.name), row.interval(measure)) for row in rows if row.model == model]
            means = [(place, mean) for place, mean in means if mean.n]
            shift = 0.7 * ((number + 0.5) / len(models) - 0.5)
            panel.errorbar(
                [m.mean for _, m in means],
                [place + shift for place, _ in means],
                xerr=[[m.mean - m.low for _, m in means], [m.high - m.mean for _, m in means]],
                fmt=_MARKERS[number % len(_MARKERS)], color=_COLORS[number % len(_COLORS)], markersize=5, linewidth=1.2,
                label=model,
            )  # fmt: skip
        panel.set_title(title, fontsize=TITLE_FONT)
        panel.set_yticks(range(len(names)), names, fontsize=TITLE_FONT)
        panel.tick_params(axis="x", labelsize=FONT)
        panel.set_ylim(len(names) - 0.5, -0.5)
        for place in range(1, len(names)):
            panel.axhline(place - 0.5, color="0.85", linewidth=0.8, zorder=0)
        panel.grid(axis="x", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=FONT)
    return figure


def curves_figure(rows: Sequence[Row]) -> Figure:
    """Draw mean deletion (left) and insertion curves (right) of the rows of one model, each with its area."""
    curves = [(row, row.curves) for row in rows if row.curves is not None]
    figure = Figure((11, 4.2 + 0.25 * -(-len(curves) // 3)), dpi=100, layout="constrained")
    axes = figure.subplots(1, 2)
    for panel, number, title in zip(axes, (1, 2), ("deletion: low is good", "insertion: high is good"), strict=True):
        for index, (row, values) in enumerate(curves):
            style = {LEVEL: "-", METHOD: "--", CONTROL: ":"}[row.kind]
            areas = " / ".join(f"{row.values[name].mean():.2f}" for name in ("deletion", "insertion"))
            label, color = f"{row.name} {areas}", _COLORS[index % len(_COLORS)]
            panel.plot(values[0] * 100, values[number], style, color=color, linewidth=2, label=label)
        panel.set_title(title, fontsize=TITLE_FONT)
        panel.set_xlabel("pixels changed, strongest first (%)", fontsize=TITLE_FONT)
        panel.set_ylabel("probability of the answer", fontsize=TITLE_FONT)
        panel.set(xlim=(0, 100), ylim=(0, 1))
        panel.tick_params(labelsize=FONT)
        panel.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    title = "area under deletion / insertion"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=FONT, title=title)
    return figure


def sanity_figure(rows: Sequence[Row]) -> Figure:
    """Draw for the rows of one model how alike maps stay while layers become random, from the top down."""
    rows = [row for row in rows if row.sanity]
    stops = list(rows[0].sanity) if rows else []
    figure = Figure((10, 4.2), dpi=100, layout="constrained")
    panel = figure.subplots()
    for index, row in enumerate(rows):
        means = [1.0, *(row.sanity[stop].nanmean().item() for stop in stops)]
        style = ("o-" if row.kind == LEVEL else "s--", _COLORS[index % len(_COLORS)])
        panel.plot(range(len(means)), means, style[0], color=style[1], linewidth=2, label=row.name)
    panel.set_xticks(range(len(stops) + 1), ["nothing", *(f"down to\n{stop}" for stop in stops)], fontsize=FONT)
    panel.set_xlabel("made random", fontsize=TITLE_FONT)
    panel.set_ylabel("rank agreement with\nthe trained model's map", fontsize=TITLE_FONT)
    panel.axhline(0, color="0.5", linewidth=1)
    panel.set_ylim(min(-0.5, *panel.get_ylim()), 1.05)
    panel.tick_params(axis="y", labelsize=FONT)
    panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=FONT)
    return figure


def cases_figure(rows: Sequence[Row], images: Split) -> Figure:
    """Draw for each row of one model the best, the median and the worst image, each with its map and its value.

    Every map has its own scale, from 0 to its highest value: what counts here is where it lies. The outline is the
    object's. `images` are those that were measured.
    """
    height = 1.95 * len(rows) + 0.5
    figure = Figure((11, height), dpi=100)  # not "constrained", which takes seconds for so many axes
    axes = figure.subplots(len(rows), 6, squeeze=False)
    figure.subplots_adjust(0.06, 0.1 / height, 0.995, 1 - 0.8 / height, wspace=0.05, hspace=0.2)
    for row, line in zip(rows, axes, strict=True):
        for number, (case, i) in enumerate(cases(row).items()):
            left, right = line[2 * number], line[2 * number + 1]
            left.imshow(to_float(images.images[i]).permute(1, 2, 0).clamp(0, 1).numpy())
            right.imshow(row.maps[i].numpy(), cmap="viridis", vmin=0, interpolation="nearest")
            for panel in (left, right):
                panel.set(xticks=[], yticks=[])
                if images.masks is not None:
                    outline(panel, images.masks[i].numpy())
            left.set_title(f"image {i}", fontsize=FONT)
            right.set_title(f"{case} {row.values['average_precision'][i]:.2f}", fontsize=FONT)
        line[0].set_ylabel(row.name.replace(" ", "\n"), fontsize=TITLE_FONT)
    title = f"{rows[0].model}: best, median and worst by average precision"
    figure.suptitle(title, y=1 - 0.1 / height, va="top", fontsize=TITLE_FONT + 1)
    return figure
