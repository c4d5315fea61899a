"""Pictures of attacks: accuracy against epsilon, every run a line, and what a network sees before and after."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..data.dataset import Split
from ..inference import attend, to_float
from ..training.run import Run
from ..viz.figures import attention_figure, captions
from .ablation import Grid
from .robustness import ATTACKS, Attacked, mean_accuracy, perturb

_FONT, _TITLE_FONT = 12, 13


def accuracy_figure(grid: Grid, attacked: Sequence[Attacked]) -> Figure:
    """Draws accuracy against epsilon, a panel an attack, a color a model, a point a run; the lines are means.

    Raises:
        ValueError: no run to draw.
    """
    if not attacked:
        raise ValueError("there is no run to draw: " + grid.complaints())
    epsilons = sorted(grid.config.epsilons)
    figure = Figure(figsize=(12, 5.2), dpi=100, layout="constrained")
    for axes, attack in zip(figure.subplots(1, 2, sharey=True), ATTACKS, strict=True):
        for number, variant in enumerate(grid.variants):
            of = [run for run in attacked if run.cell.variant == variant]
            shift = 0.09 * (number - (len(grid.variants) - 1) / 2)
            columns = [[run.clean for run in of], *([run.white_box[attack, e] for run in of] for e in epsilons)]
            places = [place + shift for place in range(len(columns))]
            for place, column in zip(places, columns, strict=True):
                each = [100 * right.double().mean().item() for right in column]
                axes.plot([place] * len(each), each, "o", color=f"C{number}", markersize=5, alpha=0.6)
            axes.plot(places, [100 * mean_accuracy(column) for column in columns], color=f"C{number}", linewidth=1.5)
        chance = 100 / len(attacked[0].result.run.classes)
        axes.axhline(chance, color="0.4", linestyle=":", linewidth=1.5)
        labels = ["clean", *(f"{e:g}\n{e / 255:.2g}" for e in epsilons)]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_title(attack, fontsize=_TITLE_FONT)
        axes.set_xlabel("epsilon: levels of 255, and in [0, 1]; steps not to scale", fontsize=_FONT)
        axes.tick_params(labelsize=_FONT)
        axes.grid(alpha=0.3)
        axes.set_ylim(-2, 102)
    figure.axes[0].set_ylabel("accuracy (%)", fontsize=_TITLE_FONT)
    handles = [Line2D([], [], color=f"C{i}", marker="o", label=variant) for i, variant in enumerate(grid.variants)]
    handles.append(Line2D([], [], color="0.4", linestyle=":", label="chance"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(4, len(handles)), fontsize=_FONT, frameon=False
    )
    return figure


def example_figure(run: Run, split: Split, epsilon: float) -> Figure:
    """Draws a row an image: the image, what FGSM changes in it, the image after FGSM and after PGD, with the answers.

    The change is scaled so that the largest is black or white; gray is none.

    Args:
        run: whose model is attacked.
        split: the images.
        epsilon: in levels of 255.
    """
    images = to_float(split.images)
    made = [perturb(run.model, images, split.labels, epsilon, name) for name in ATTACKS]
    change = 0.5 + 0.5 * (made[0] - images) / (made[0] - images).abs().max().clamp_min(1e-9)
    clean, *after = (
        captions(attend(run.model, seen, "fp32").logits, run.classes, split.labels) for seen in (images, *made)
    )
    titles = zip(clean, ["the change, enlarged"] * len(images), *after, strict=True)
    words = ["", "", *(f"{name} | " for name in ATTACKS)]
    texts = [word + text for row in titles for word, text in zip(words, row, strict=True)]
    return attention_figure(torch.stack([images, change, *made], dim=1).flatten(0, 1), {}, titles=texts)
