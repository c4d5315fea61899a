"""Notebook 06: images changed a little so that a network errs, what trained networks withstand, and whether it is real.

FGSM (Goodfellow et al. 2015, arXiv 1412.6572) takes one step along the sign of the gradient of the loss; PGD (Madry et
al. 2018, arXiv 1706.06083) takes many small ones from a random start and stays within epsilon of the image. Epsilons
are in levels of a pixel: 2 is 2/255 of the range. A network whose gradient says nothing withstands such attacks without
being robust (gradient masking, Athalye et al. 2018, arXiv 1802.00420): `checks` looks for signs of that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Annotated, Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import Field
from torch import Tensor

from ..checks import check_images
from ..config import EachOnce, Variant, settings
from ..data.dataset import Dataset
from ..data.split import Split, stratified
from ..errors import closest
from ..inference import attend, evaluate_images, to_float
from ..metrics.statistics import UNDECIDED, Effect, Interval, bootstrap_interval, packed
from ..metrics.statistics import write_effects as write_effects
from ..models.classifier import ImageClassifier, evaluation_mode
from ..training.run import Run
from ..viz.figures import attention_figure, captions
from ..viz.style import FONT, LINE_COLORS, add_legend, new_figure
from ..viz.words import model_in_words
from . import setup
from .effects import (
    MARGIN,
    compare_scores,
    draw_runs,
    effects_figure,
    few_seeds,
    paragraph,
    sorted_out,
    style_runs,
)
from .grid import MODELS, AblationConfig, Cell, Grid, Result, collect, train_missing
from .setup import report

__all__ = [
    "ATTACKS", "AttackConfig", "Attacked", "Check", "accuracy_figure", "accuracy_table", "attack_grid", "check_table",
    "checks", "collect", "conclusion", "effects", "effects_figure", "example_figure", "frame", "maps_figure",
    "parameters", "perturb", "report", "train_missing", "write_effects",
]  # fmt: skip

ATTACKS = ("FGSM", "PGD")
CLAIM = "Attention makes a network more robust"
KEPT = "still right, of images that both classify rightly"
_BATCH = 100  # and on a GPU ten times as many, which then has less to wait for

Epsilon = Annotated[float, Field(gt=0, le=255)]


@settings
class AttackConfig(AblationConfig):
    """Parameters of the test of robustness: those of the ablation whose runs are attacked, and the attacks'."""

    models: Annotated[Sequence[Variant], EachOnce] = MODELS
    images: Annotated[int, Field(ge=2, le=10**6)] = Field(
        200, description="test images that are attacked, balanced over the classes"
    )
    epsilons: Annotated[Sequence[Epsilon], EachOnce] = Field(
        (0.5, 1, 2, 4, 255),
        description="how far each channel of a pixel may change, in levels of 0 ... 255; with the largest, 255, the "
        "attack may choose any image",
    )
    epsilon: Epsilon = Field(1, description="at which of `epsilons` the models are compared")
    pgd_steps: Annotated[int, Field(ge=1, le=1000)] = Field(10, description="steps of PGD")
    restarts: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="random starts of PGD at `epsilon`; an image counts as right only if it is right after each"
    )

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Refuse an epsilon that is not among the epsilons."""
        lines, epsilon, epsilons = super().contradictions(values), values.get("epsilon"), values.get("epsilons")
        if epsilon and epsilons and epsilon not in epsilons:
            lines.append(f"epsilon={epsilon!r} must be one of epsilons, {list(epsilons)!r}")
        return lines

    def sample(self, data: Dataset) -> Split:
        """Return the test images that are attacked."""
        return data.test[stratified(data.test.labels, self.images, seed=0)]


parameters = partial(setup.parameters, kind=AttackConfig)


# Attacks


def perturb(
    model: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    attack: str = "FGSM",
    steps: int = 10,
    seed: int = 0,
) -> Tensor:
    """Change images so that the model's loss grows, in float32 and evaluation mode.

    `images` are (N, 3, H, W), uint8, or float in [0, 1]; the result is float32 on the CPU, in [0, 1], and no value is
    farther than epsilon / 255 from the image's. PGD takes `steps` of 2.5 epsilon / steps from a random start, the same
    for every model.
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack={attack!r}: {closest(attack, ATTACKS)}")
    check_images(images)
    radius, device = epsilon / 255, model.mean.device
    step, count = (radius, 1) if attack == "FGSM" else (2.5 * radius / steps, steps)
    changed = []
    with evaluation_mode(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        size = 10 * _BATCH if device.type == "cuda" else _BATCH
        for batch, truth in zip(images.split(size), labels.split(size), strict=True):
            clean = to_float(batch.to(device)).float().contiguous(memory_format=torch.channels_last).detach()
            x = clean
            if attack == "PGD":
                x = (clean + (torch.rand_like(clean) * radius * 2 - radius)).clamp(0, 1)
            for _ in range(count):
                x = x + step * _gradient(model, x, truth).sign()
                x = (clean + (x - clean).clamp(-radius, radius)).clamp(0, 1)
            changed.append(x.cpu())
    return torch.cat(changed).contiguous()


def _gradient(model: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of each image's cross-entropy with respect to the image.

    The loss is in float64, where sure answers have a gradient, too; on the CPU, because not all GPUs know float64.
    """
    x = images.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(x).cpu().double(), labels.cpu(), reduction="sum")
    return torch.autograd.grad(loss, x)[0]


@dataclass(frozen=True)
class Attacked:
    """A run of the grid under attack: whether each image is classified rightly, bool (N,).

    Attributes:
        clean: without attack.
        white_box: (attack, epsilon) -> after an attack that knows the network.
        transferred: (attack, source) -> with images made at `epsilon` against another network: the same model with
            another seed ("other seed"), or another model with the same seed ("other model").
    """

    result: Result
    clean: Tensor
    white_box: dict[tuple[str, float], Tensor]
    transferred: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        """Its place in the grid."""
        return self.result.cell


def attack_grid(grid: Grid, split: Split) -> list[Attacked]:
    """Attack every run of a grid that was collected with an `AttackConfig`, and print what it withstands."""
    config = _config(grid)
    attacked, changed = [], {}
    for result in grid.results:
        model, white_box = result.run.model, {}
        for attack, epsilon in product(ATTACKS, config.epsilons):
            restarts = config.restarts if (attack, epsilon) == ("PGD", config.epsilon) else 1
            starts = [
                perturb(model, split.images, split.labels, epsilon, attack, config.pgd_steps, seed)
                for seed in range(restarts)
            ]
            white_box[attack, epsilon] = torch.stack([_correct(model, x, split.labels) for x in starts]).all(0)
            if epsilon == config.epsilon:
                changed[result.cell.variant, result.cell.seed, attack] = starts[0]
        run = Attacked(result, _correct(model, split.images, split.labels), white_box)
        after = ", ".join(f"{name} {100 * mean_accuracy([white_box[name, config.epsilon]]):.1f}" for name in ATTACKS)
        print(f"{run.cell}: {100 * mean_accuracy([run.clean]):.1f} % right; at epsilon {config.epsilon:g}: {after}")
        attacked.append(run)
    for run in attacked:
        for (source, cell), attack in product(_sources(run.cell, grid).items(), ATTACKS):
            images = changed[cell.variant, cell.seed, attack]
            run.transferred[attack, source] = _correct(run.result.run.model, images, split.labels)
    return attacked


def _correct(model: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
    return evaluate_images(model, Split(images, labels), "fp32").correct


def mean_accuracy(correct: Sequence[Tensor]) -> float:
    """Return the mean of bool (N,), one a seed."""
    return torch.stack(list(correct)).double().mean().item()


def _sources(cell: Cell, grid: Grid) -> dict[str, Cell]:
    """Return the runs whose adversarial images are tried on this one."""
    cells = [result.cell for result in grid.results]
    seeds = [c for c in cells if c.variant == cell.variant]
    others = [c for c in cells if c.seed == cell.seed and c.variant != cell.variant]
    others.sort(key=lambda c: c.variant != grid.config.baseline)  # the baseline first; else the order of the grid
    sources = {"other seed": seeds[(seeds.index(cell) + 1) % len(seeds)]} if len(seeds) > 1 else {}
    return sources | ({"other model": others[0]} if others else {})


def accuracy_table(grid: Grid, attacked: Sequence[Attacked]) -> pd.DataFrame:
    """Return the accuracy in %, the mean over seeds, without attack and at every epsilon."""
    rows = {}
    for attack, variant in product(ATTACKS, grid.variants):
        runs = [run for run in attacked if run.cell.variant == variant]
        row = {"clean": mean_accuracy([run.clean for run in runs])}
        for epsilon in _epsilons(grid):
            row[f"{epsilon:g}/255"] = mean_accuracy([run.white_box[attack, epsilon] for run in runs])
        rows[attack, variant] = {name: round(100 * value, 1) for name, value in row.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["attack", "model"])


def frame(attacked: Sequence[Attacked]) -> pd.DataFrame:
    """Return a table with one row for each run, attack and epsilon: accuracy, and which images are right (`packed`)."""
    rows = [
        {"variant": run.cell.variant, "seed": run.cell.seed, "attack": attack, "epsilon": epsilon}
        | {"images": len(correct), "accuracy": round(mean_accuracy([correct]), 6), "correct": packed(correct)}
        for run in attacked
        for (attack, epsilon), correct in {("none", 0): run.clean, **run.white_box}.items()
    ]
    return pd.DataFrame(rows)


def _epsilons(grid: Grid) -> list[float]:
    return sorted(_config(grid).epsilons)


def _config(grid: Grid) -> AttackConfig:
    assert isinstance(grid.config, AttackConfig), "the grid must be collected with an AttackConfig"
    return grid.config


# Gradient masking


@dataclass(frozen=True)
class Check:
    """Whether an attack that should be at least as strong as another one is.

    `excess` is by how much the accuracy of `variant` is higher than it may be, the mean over seeds and images; the
    bootstrap intervals over images of all checks hold together with 95 %.
    """

    name: str
    variant: str
    excess: Interval

    @property
    def sign(self) -> bool:
        """Whether it is a sign of gradient masking: the excess is more than chance."""
        return self.excess.low > 0


def checks(grid: Grid, attacked: Sequence[Attacked]) -> list[Check]:
    """Return whether each sign of gradient masking shows in each model.

    Signs are PGD weaker than FGSM, an attack that knows the network weaker than one that does not, and right answers
    where the attack may choose any image (PGD at the largest epsilon).
    """
    config = _config(grid)
    largest = max(config.epsilons)
    values: dict[tuple[str, str], list[Tensor]] = {}
    for run in attacked:
        white_box = {key: correct.double() for key, correct in run.white_box.items()}
        excesses = {f"PGD against FGSM at {e:g}": white_box["PGD", e] - white_box["FGSM", e] for e in config.epsilons}
        for (attack, source), correct in run.transferred.items():
            name = f"{attack} at {config.epsilon:g} against images of the {source}"
            excesses[name] = white_box[attack, config.epsilon] - correct.double()
        excesses[f"PGD at {largest:g} against 0"] = white_box["PGD", largest]
        for name, excess in excesses.items():
            values.setdefault((name, run.cell.variant), []).append(excess)
    means = {key: torch.stack(each).mean(0).numpy() for key, each in values.items()}
    return [Check(*key, bootstrap_interval(mean, len(means))) for key, mean in means.items()]


def check_table(found: Sequence[Check]) -> pd.DataFrame:
    """Return for each check the model with the largest excess, and which models show a sign of masking."""
    rows = {}
    for name in dict.fromkeys(check.name for check in found):
        each = [check for check in found if check.name == name]
        worst = max(each, key=lambda check: check.excess.mean)
        rows[name] = {
            "largest excess of accuracy, points [95 %]": worst.excess.text(1, 100, sign=True),
            "in model": worst.variant,
            "signs of masking": ", ".join(check.variant for check in each if check.sign) or "none",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("check")


# Effects


def effects(grid: Grid, attacked: Sequence[Attacked], found: Sequence[Check]) -> list[Effect]:
    """Compare every model with the baseline at `epsilon`, for both attacks: the share of images that stay right.

    Only images that both classify rightly without attack, with every seed, count: otherwise a model with fewer right
    answers has less to lose. Where the checks show a sign of masking in the model or the baseline, the attack did not
    do what it could, and nothing is decided. The intervals of all comparisons hold together with 95 %.
    """
    config = _config(grid)
    masked = {check.variant for check in found if check.sign}
    runs = {name: {r.cell.seed: r for r in attacked if r.cell.variant == name} for name in grid.variants}
    baseline = runs.pop(config.baseline, {})
    comparisons: list[Effect] = []
    for attack, (name, by_seed) in product(ATTACKS, runs.items()):
        pair = {name: by_seed, config.baseline: baseline}
        seeds = [seed for seed in by_seed if seed in baseline]
        clean = [of[seed].clean for of in pair.values() for seed in seeds]
        right = torch.stack(clean).all(0) if seeds else torch.zeros(0, dtype=torch.bool)
        if right.sum() < 2:
            continue
        key = attack, config.epsilon
        scores = {
            which: {seed: of[seed].white_box[key][right].double() for seed in seeds} for which, of in pair.items()
        }
        words = {"claim": CLAIM, "measure": f"{attack} {config.epsilon:g}/255: {KEPT}"}
        together = len(ATTACKS) * len(runs)
        comparisons += compare_scores(scores, config.baseline, config, together=together, **words)
    return [replace(c, verdict=UNDECIDED) if masked & {c.model, c.baseline} else c for c in comparisons]


def conclusion(comparisons: Sequence[Effect], found: Sequence[Check]) -> str:
    """Return what can and what cannot be concluded, in a few sentences."""
    if not comparisons:
        return (
            "Nothing can be concluded: no other model has a run with the same seed as the baseline and images that\n"
            "both classify rightly."
        )
    signs = sorted({check.variant for check in found if check.sign})
    by_measure = {c.measure: [other for other in comparisons if other.measure == c.measure] for c in comparisons}
    return "\n".join(
        [
            paragraph(
                f"{len(comparisons)} comparisons with {comparisons[0].baseline}, intervals that hold together with "
                f"95 %, a margin of {100 * MARGIN:g} points; signs of gradient masking: {', '.join(signs) or 'none'}"
                + (" (nothing is decided about these)." if signs else "."),
                few_seeds(comparisons),
            ),
            *(paragraph(f"{measure}: {sorted_out(each)}.") for measure, each in by_measure.items()),
            paragraph("This says nothing about networks trained to withstand attacks, nor about larger ones."),
        ]
    )


# Figures


def accuracy_figure(grid: Grid, attacked: Sequence[Attacked]) -> Figure:
    """Draw accuracy against epsilon, a panel an attack, a color a model, a point a run; the lines are means."""
    if not attacked:
        raise ValueError("there is no run to draw: " + grid.complaints())
    epsilons = _epsilons(grid)
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
