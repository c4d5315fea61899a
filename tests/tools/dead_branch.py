"""The proof of docs/dead_branch.md: which layers a gradient reaches, layer by layer, for four kinds of attention."""

import argparse
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from ltpa import create_model, load_data
from ltpa.viz import to_png
from ltpa.viz.style import FONT, LINE_COLORS, MARKERS, new_figure, style_axes

LAYERS = (*(f"conv{number}" for number in range(1, 16)), "fc")
DEAD = LAYERS[13:]
KINDS = (("pc", "softmax"), ("pc", "sigmoid"), ("dp", "softmax"), ("add", "softmax"))


def gradients(compatibility: str, normalizer: str, width: float) -> dict[str, float]:
    """Return the sum of |gradient| over the parameters of each layer: random weights, four pictures, float64."""
    torch.manual_seed(0)
    name = f"vgg-att3-concat-{compatibility}"
    model = create_model(name, 10, width=width, normalizer=normalizer, dropout=False, faithful=True).double()
    split = load_data("shapes", train_limit=1, test_limit=4).test
    torch.nn.functional.cross_entropy(model(split.images.double() / 255), split.labels).backward()
    sums = dict.fromkeys(LAYERS, 0.0)
    for parameter_name, parameter in model.named_parameters():
        if (layer := parameter_name.split(".")[1]) in sums and parameter.grad is not None:
            sums[layer] += parameter.grad.abs().sum().item()
    return sums


def table(sums: pd.DataFrame) -> str:
    """Return the sums over the layers that attention reads, and over those that compute `g`."""
    rows = {
        "conv1 to conv13": sums.drop(columns=list(DEAD)).sum(axis=1),
        "conv14, conv15": sums[list(DEAD[:2])].sum(axis=1),
        "fc": sums[DEAD[2]],
    }
    text = pd.DataFrame(rows).map("{:.1e}".format).rename_axis("score")
    return text.to_markdown(tablefmt="github", disable_numparse=True)


def picture(sums: pd.DataFrame) -> Figure:
    """Draw the sums by layer, on a logarithmic scale."""
    figure = new_figure(4.2)
    axes = figure.subplots()
    style_axes(axes, y="sum of |gradient|")
    for number, (kind, values) in enumerate(sums.iterrows()):
        look = {"color": LINE_COLORS[number], "marker": MARKERS[number], "linewidth": 2}
        axes.plot(range(len(LAYERS)), values.clip(lower=1e-18), label=kind, **look)
    axes.set_yscale("log")
    axes.axvspan(LAYERS.index(DEAD[0]) - 0.5, len(LAYERS) - 0.5, color="0.9", zorder=0)
    axes.text(len(LAYERS) - 2, axes.get_ylim()[1], "these compute g", ha="center", va="bottom", fontsize=FONT)
    axes.set_xticks(range(len(LAYERS)), LAYERS, rotation=60, fontsize=FONT)
    figure.legend(loc="outside right upper", fontsize=FONT)
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools dead-branch`."""
    parser.add_argument("--width", type=float, default=1.0, help="factor on every channel count (default: the paper's)")
    parser.add_argument("--save", type=Path, help="where the picture goes, such as docs/images/dead_branch.png")


def main(arguments: argparse.Namespace) -> None:
    """Print the table, and draw the picture."""
    sums = {f"{kind}, {normalizer}": gradients(kind, normalizer, arguments.width) for kind, normalizer in KINDS}
    frame = pd.DataFrame.from_dict(sums, orient="index")
    print(table(frame))
    if arguments.save is not None:
        arguments.save.write_bytes(to_png(picture(frame)))
