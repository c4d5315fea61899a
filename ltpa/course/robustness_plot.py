"""The figures of notebook 06: accuracy under attack, and images and maps before and after one."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..data.split import Split
from ..inference import attend, to_float
from ..metrics.adversarial import ATTACKS, perturb
from ..training.run import Run
from ..viz.figures import attention_figure, captions
from ..viz.style import FONT, LINE_COLORS, add_legend, new_figure
from ..viz.words import model_in_words
from .effects import draw_runs, style_runs
from .grid import Grid
from .robustness_runs import Attacked, attack_config, mean_accuracy


def accuracy_figure(grid: Grid, attacked: Sequence[Attacked]) -> Figure:
    """Draw accuracy against epsilon, a panel an attack, a color a model, a point a run; the lines are means."""
    if not attacked:
        raise ValueError("there is no run to draw: " + grid.complaints())
    epsilons = sorted(attack_config(grid).epsilons)
    figure = new_figure(5.6)
    for axes, attack in zip(figure.subplots(1, 2, sharey=True), ATTACKS, strict=True):
        for number, variant in enumerate(grid.variants):
            runs = [run for run in attacked if run.cell.variant == variant]
            columns = [[r.clean for r in runs], *([r.white_box[attack, e] for r in runs] for e in epsilons)]
            accuracies = [[mean_accuracy([correct]) for correct in column] for column in columns]
            draw_runs(axes, accuracies, 0.09 * (number - (len(grid.variants) - 1) / 2), _color(number))
        names = ["no\nattack", *(f"{e:g}\n{e / 255:.2g}" for e in epsilons)]
        style_runs(axes, attack, names, len(attacked[0].result.run.classes))
    figure.supxlabel("strength of the attack, epsilon: levels of 255, and in [0, 1] (not to scale)", fontsize=FONT)
    figure.axes[0].set_ylabel("accuracy (%)", fontsize=FONT)
    handles = [
        Line2D([], [], color=_color(number), marker="o", label=model_in_words(variant))
        for number, variant in enumerate(grid.variants)
    ]
    add_legend(figure, [*handles, Line2D([], [], color="0.4", linestyle=":", label="chance")], columns=3)
    return figure


def _color(number: int) -> str:
    return LINE_COLORS[number % len(LINE_COLORS)]


def example_figure(run: Run, split: Split, epsilon: float) -> Figure:
    """Draw a row for each image: itself, what FGSM changes in it, and the image after FGSM and after PGD, with answers.

    The change is scaled so that the largest is black or white; gray is none.
    """
    images = to_float(split.images)
    changed = [perturb(run.model, images, split.labels, epsilon, name) for name in ATTACKS]
    change = 0.5 + 0.5 * (changed[0] - images) / (changed[0] - images).abs().max().clamp_min(1e-9)
    clean, *attacked = (
        captions(attend(run.model, x, "fp32").logits, run.classes, split.labels) for x in (images, *changed)
    )
    titles = [
        text
        for own, fgsm, pgd in zip(clean, *attacked, strict=True)
        for text in (own, "the change, enlarged", f"FGSM | {fgsm}", f"PGD | {pgd}")
    ]
    return attention_figure(torch.stack([images, change, *changed], dim=1).flatten(0, 1), {}, titles=titles)


def maps_figure(run: Run, split: Split, epsilon: float) -> Figure:
    """Draw images with the maps of the middle level before and after FGSM; the titles are the answers after it."""
    changed = perturb(run.model, split.images, split.labels, epsilon)
    clean, after = (attend(run.model, images, "fp32") for images in (split.images, changed))
    levels = list(clean.maps)
    middle = levels[len(levels) // 2 : len(levels) // 2 + 1]  # none where the model has no attention
    outputs = {"clean": clean, "FGSM": after}
    maps = {f"{level}, {words}": output.maps[level] for level in middle for words, output in outputs.items()}
    titles = captions(after.logits, run.classes, split.labels)
    return attention_figure(split.images, maps, titles=titles, masks=split.masks)
