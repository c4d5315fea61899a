"""The figure of notebook 07: accuracy on the other data set against the number of labels, for every classifier."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..viz.style import FONT, TITLE_FONT
from .transfer_probe import PIXELS, UNTRAINED, Probes, count_words


def transfer_figure(probes: Probes) -> Figure:
    """Draw accuracy against labels: what the networks' own classifiers read (left), and the global features (right).

    A color for each network, dashed for its untrained self, black for the pixels; the lines are means over seeds.
    """
    if not probes.trained:
        raise ValueError("there is nothing to draw: " + probes.grid.complaints())
    variants = list(dict.fromkeys(name.rpartition(": ")[0] for name in probes.trained))
    read = {variant: "g_s" if f"{variant}: g_s" in probes.trained else "g" for variant in variants}
    left = {f"{variant}: {kind}": variant for variant, kind in read.items()}
    right = {f"{variant}: g": variant for variant in variants if f"{variant}: g" in probes.trained}
    figure = Figure(figsize=(12, 5.6), dpi=100, layout="constrained")
    panels = (("what the network's classifier reads: g_s, or g", left), ("the global feature g", right))
    for axes, (title, names) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        lines = {PIXELS: ("black", "-")}
        for name, variant in names.items():
            color = f"C{variants.index(variant)}"
            lines |= {name: (color, "-"), name + UNTRAINED: (color, "--")}
        for number, (name, (color, style)) in enumerate(lines.items()):
            fill = "none" if style == "--" else "full"
            shift = 0.03 * (number - (len(lines) - 1) / 2)
            columns = [[100 * value for value in probes.accuracies(count, name)] for count in probes.correct]
            for place, column in enumerate(columns):
                axes.plot(
                    [place + shift] * len(column), column, "o", color=color, markersize=5, alpha=0.7, fillstyle=fill
                )
            places = [place + shift for place in range(len(columns))]
            axes.plot(places, [sum(c) / len(c) for c in columns], style, color=color, linewidth=1.5)
        axes.set_xticks(
            range(len(probes.correct)), [count_words(count).replace(" a ", "\na ") for count in probes.correct]
        )
        axes.axhline(100 / len(probes.target.classes), color="0.4", linestyle=":", linewidth=1.5)
        axes.set_title(title, fontsize=TITLE_FONT)
        axes.tick_params(labelsize=FONT)
        axes.grid(alpha=0.3)
        axes.set_ylim(-2, 102)
    figure.axes[0].set_ylabel(f"accuracy on {probes.target.name} (%)", fontsize=TITLE_FONT)
    handles = [Line2D([], [], color=f"C{i}", marker="o", label=variant) for i, variant in enumerate(variants)]
    handles += [
        Line2D([], [], color="0.4", linestyle="--", marker="o", fillstyle="none", label="the same, untrained"),
        Line2D([], [], color="black", marker="o", label="pixels"),
        Line2D([], [], color="0.4", linestyle=":", label="chance"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=FONT, frameon=False)
    return figure
