"""Attacks: images changed a little so that a network errs, what trained networks withstand, and whether it is real.

FGSM (Goodfellow et al. 2015, arXiv 1412.6572) takes one step along the sign of the gradient of the loss; PGD (Madry et
al. 2018, arXiv 1706.06083) takes many small ones from a random start and stays within epsilon of the image. Epsilons
are in levels of a pixel: 2 is 2/255 of the range. A network whose gradient says nothing withstands such attacks without
being robust (gradient masking, Athalye et al. 2018, arXiv 1802.00420): `checks` looks for signs of that.
"""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..config import EachOnce, Variant, settings
from ..data.dataset import Dataset
from ..data.split import Split, stratified
from ..errors import closest
from ..inference import attend_batches, to_float
from ..metrics.statistics import UNDECIDED, Interval, bootstrap_interval
from ..models.classifier import ImageClassifier, evaluation_mode
from .ablation import MODELS, AblationConfig, Cell, Grid, Result
from .comparison import MARGIN, Comparison, compare_scores, sorted_out

ATTACKS = ("FGSM", "PGD")
_BATCH = 100


Epsilon = Annotated[float, Field(gt=0, le=255)]


@settings
class AttackConfig(AblationConfig):
    """Parameters of the test of robustness: those of the ablation whose runs are attacked, and the attacks'."""

    models: Annotated[Sequence[Variant], EachOnce] = MODELS
    images: Annotated[int, Field(ge=2, le=10**6)] = Field(
        200, description="test images that are attacked, balanced over the classes"
    )
    epsilons: Annotated[Sequence[Epsilon], EachOnce] = Field(
        (0.5, 1, 2, 4, 128),
        description="how far each channel of a pixel may change, in levels of 0 ... 255; the largest should be beyond "
        "all that a network can withstand",
    )
    epsilon: Epsilon = Field(1, description="the one of them at which the models are compared")
    pgd_steps: Annotated[int, Field(ge=1, le=1000)] = Field(10, description="steps of PGD")

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Refuse an epsilon that is not among the epsilons."""
        lines, epsilon, epsilons = super().contradictions(values), values.get("epsilon"), values.get("epsilons")
        if epsilon and epsilons and epsilon not in epsilons:
            lines.append(f"epsilon={epsilon!r} must be one of epsilons, {list(epsilons)!r}")
        return lines

    def sample(self, data: Dataset) -> Split:
        """The test images that are attacked."""
        return data.test[stratified(data.test.labels, self.images, seed=0)]


def perturb(
    model: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    attack: str = "FGSM",
    steps: int = 10,
    seed: int = 0,
) -> Tensor:
    """Changes images so that the model's loss grows, in float32 and evaluation mode, with captum.

    Args:
        model: any model of `ltpa.create_model`; it stays as it is.
        images: (N, 3, H, W), uint8, or float in [0, 1].
        labels: the true classes, int64 (N,).
        epsilon: how far each value may change, in levels of 0 ... 255.
        attack: "FGSM", or "PGD" with steps of 2.5 epsilon / steps from a random start.
        steps: of PGD.
        seed: of PGD's start; the same start is used for every model.

    Returns:
        float32 (N, 3, H, W) in [0, 1] on the CPU, no value farther than epsilon / 255 from the image's.

    Raises:
        ValueError: an unknown attack.
        ImportError: captum is missing.
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack={attack!r}: {closest(attack, ATTACKS)}")
    try:
        from captum.robust import FGSM, PGD
    except ImportError as error:
        raise ImportError("attacks need captum: pip install 'ltpa[notebooks]'") from error
    attacker = (FGSM if attack == "FGSM" else PGD)(model, _losses, 0.0, 1.0)
    # captum takes gradients below 1e-6 for zero: a confident network would seem robust.
    (attacker if attack == "FGSM" else attacker.fgsm).zero_thresh = 0.0
    radius = epsilon / 255
    how = {"epsilon": radius}
    if attack == "PGD":
        how = {"radius": radius, "step_size": 2.5 * radius / steps, "step_num": steps, "random_start": True}
    device = model.mean.device
    found = []
    own_random = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with evaluation_mode(model), own_random, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the images are made to require a gradient
        torch.manual_seed(seed)
        for batch, of in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
            batch = to_float(batch.to(device)).float().contiguous(memory_format=torch.channels_last)
            found.append(attacker.perturb(batch.detach().clone(), target=of.to(device), **how).detach().cpu())
    return torch.cat(found).contiguous()


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, in float64, where sure answers have a gradient (on the CPU: not all GPUs can)."""
    return torch.nn.functional.cross_entropy(logits.cpu().double(), labels.cpu(), reduction="none")


@dataclass(frozen=True)
class Attacked:
    """A run of the grid under attack.

    Attributes:
        result: the run.
        clean: bool (N,), whether each image is classified rightly when nobody attacks.
        white_box: (attack, epsilon) -> bool (N,), the same after an attack that knows the network.
        transferred: (attack, source) -> bool (N,), the same with images made at `epsilon` against another network:
            the same model with another seed ("other seed"), or another model with the same seed ("other model").
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
    """Attacks every run of a grid, and tells what it withstands.

    Args:
        grid: what was collected with an `AttackConfig`.
        split: the images to attack, see `AttackConfig.sample`.
    """
    config = grid.config
    found, made = [], {}
    for result in grid.results:
        model, white_box = result.run.model, {}
        for attack, epsilon in product(ATTACKS, config.epsilons):
            images = perturb(model, split.images, split.labels, epsilon, attack, config.pgd_steps)
            white_box[attack, epsilon] = _right(model, images, split.labels)
            if epsilon == config.epsilon:
                made[result.cell.variant, result.cell.seed, attack] = images
        found.append(Attacked(result, _right(model, split.images, split.labels), white_box))
        after = ", ".join(f"{attack} {_percent(white_box[attack, config.epsilon])}" for attack in ATTACKS)
        print(f"{result.cell}: {_percent(found[-1].clean)} % right; at epsilon {config.epsilon:g}: {after}")
    for run in found:
        for (source, cell), attack in product(_sources(run.cell, grid).items(), ATTACKS):
            images = made[cell.variant, cell.seed, attack]
            run.transferred[attack, source] = _right(run.result.run.model, images, split.labels)
    return found


def _right(model: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
    batches = attend_batches(model, images, "fp32")
    return torch.cat([seen.logits.argmax(1).cpu() for _, seen in batches]) == labels


def _percent(right: Tensor) -> str:
    return f"{100 * right.double().mean():.1f}"


def _sources(cell: Cell, grid: Grid) -> dict[str, Cell]:
    """The runs whose adversarial images are tried on this one."""
    cells = [result.cell for result in grid.results]
    seeds = [c for c in cells if c.variant == cell.variant]
    others = [c for c in cells if c.seed == cell.seed and c.variant != cell.variant]
    others.sort(key=lambda c: c.variant != grid.config.baseline)  # the baseline first; else the order of the grid
    found = {"other seed": seeds[(seeds.index(cell) + 1) % len(seeds)]} if len(seeds) > 1 else {}
    return found | ({"other model": others[0]} if others else {})


# Gradient masking


@dataclass(frozen=True)
class Check:
    """Whether an attack that should be at least as strong as another one is.

    Attributes:
        name: what is looked at.
        variant: in which model.
        excess: by how much the accuracy is higher than it may be, the mean over seeds and images, with its bootstrap
            interval over images; the intervals of all checks hold together with 95 %.
    """

    name: str
    variant: str
    excess: Interval

    @property
    def sign(self) -> bool:
        """Whether it is a sign of gradient masking: the excess is more than chance."""
        return self.excess.low > 0


def checks(grid: Grid, attacked: Sequence[Attacked]) -> list[Check]:
    """Signs of gradient masking: PGD weaker than FGSM, an attack that knows the network weaker than one that does not,
    or an accuracy above chance where the image is all but gone (PGD at the largest epsilon).

    Args:
        grid: the runs.
        attacked: what they withstand.
    """
    config, largest = grid.config, max(grid.config.epsilons)
    values: dict[tuple[str, str], list[Tensor]] = {}
    for run in attacked:
        white, of = run.white_box, {}
        for epsilon in config.epsilons:
            of[f"PGD against FGSM at {epsilon:g}"] = white["PGD", epsilon].double() - white["FGSM", epsilon].double()
        for (attack, source), right in run.transferred.items():
            name = f"{attack} at {config.epsilon:g} against images of the {source}"
            of[name] = white[attack, config.epsilon].double() - right.double()
        of[f"PGD at {largest:g} against chance"] = white["PGD", largest].double() - 1 / len(run.result.run.classes)
        for name, value in of.items():
            values.setdefault((name, run.cell.variant), []).append(value)
    means = {key: torch.stack(each).mean(0).numpy() for key, each in values.items()}
    return [Check(*key, bootstrap_interval(mean, len(means))) for key, mean in means.items()]


def check_table(found: Sequence[Check]) -> str:
    """The checks as lines of text: of all models the one with the largest excess, and which show a sign of masking."""
    by_name: dict[str, list[Check]] = {}
    for check in found:
        by_name.setdefault(check.name, []).append(check)
    width = max(map(len, by_name), default=0)
    lines = [f"{'':{width}}  largest excess of accuracy in points [95 %]   signs of masking"]
    for name, of in by_name.items():
        worst = max(of, key=lambda check: check.excess.mean)
        mean, low, high = (100 * v for v in (worst.excess.mean, worst.excess.low, worst.excess.high))
        excess = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] {worst.variant}"
        signs = ", ".join(check.variant for check in of if check.sign) or "none"
        lines.append(f"{name:{width}}  {excess:45}  {signs}")
    return "\n".join(lines)


# What is concluded


def effects(grid: Grid, attacked: Sequence[Attacked], found: Sequence[Check]) -> dict[str, list[Comparison]]:
    """Every model against the baseline at `epsilon`, for both attacks: what remains right, and how little was lost.

    What remains right is the accuracy after the attack. What was lost is that minus the accuracy without attack: it
    tells a robust model from one that is better anyway. Where the checks show a sign of masking in the model or the
    baseline, the attack did not do what it could, and nothing is decided.

    Args:
        grid: the runs.
        attacked: what they withstand.
        found: the checks.

    Returns:
        measure -> comparisons; the intervals of all of them hold together with 95 %.
    """
    config = grid.config
    masked = {check.variant for check in found if check.sign}
    measures: dict[str, dict[str, dict[int, Tensor]]] = {}
    for attack, run in product(ATTACKS, attacked):
        right, of = run.white_box[attack, config.epsilon].double(), (run.cell.variant, run.cell.seed)
        for words, score in (("accuracy", right), ("accuracy minus clean accuracy", right - run.clean.double())):
            by_variant = measures.setdefault(f"{attack} {config.epsilon:g}/255: {words}", {})
            by_variant.setdefault(of[0], {})[of[1]] = score
    together = len(measures) * max(1, len(grid.variants) - 1)
    compared = {name: compare_scores(scores, config.baseline, together) for name, scores in measures.items()}
    return {name: [_unless(masked, c, config.baseline) for c in of] for name, of in compared.items()}


def _unless(masked: set[str], comparison: Comparison, baseline: str) -> Comparison:
    return replace(comparison, verdict=UNDECIDED) if masked & {comparison.variant, baseline} else comparison


def accuracy_table(grid: Grid, attacked: Sequence[Attacked]) -> str:
    """Accuracy in %, the mean over seeds, without attack and at every epsilon (levels of 255), as lines of text."""
    epsilons, width = grid.config.epsilons, max(map(len, grid.config.models))
    lines = [f"{'':{width}}        clean" + "".join(f"{f'{epsilon:g}/255':>9}" for epsilon in epsilons)]
    for attack, variant in product(ATTACKS, grid.variants):
        of = [run for run in attacked if run.cell.variant == variant]
        cells = [mean_accuracy([r.clean for r in of])]
        cells += [mean_accuracy([r.white_box[attack, epsilon] for r in of]) for epsilon in epsilons]
        first, *others = (f"{100 * value:.1f}" for value in cells)
        lines.append(f"{variant:{width}}  {attack:4}  {first:>5}" + "".join(f"{value:>9}" for value in others))
    return "\n".join(lines)


def mean_accuracy(right: Sequence[Tensor]) -> float:
    """Of bool (N,), one a seed."""
    return torch.stack(list(right)).double().mean().item()


def conclusion(grid: Grid, measures: Mapping[str, Sequence[Comparison]], found: Sequence[Check]) -> str:
    """What can and what cannot be concluded, in a few sentences."""
    count = sum(map(len, measures.values()))
    if not count:
        return f"Nothing can be concluded: there is no pair of a model and {grid.config.baseline} with the same seed."
    signs = sorted({check.variant for check in found if check.sign})
    lines = [
        f"{count} comparisons with {grid.config.baseline}, intervals that hold together with 95 %, a margin of "
        f"{100 * MARGIN:g} points; signs of gradient masking: {', '.join(signs) or 'none'}"
        + (" (nothing is decided about these)." if signs else ".")
    ]
    lines += [f"{name}: {sorted_out(of, grid.config.baseline)}." for name, of in measures.items()]
    lines.append("This says nothing about networks that were trained to withstand attacks, nor about larger ones.")
    return "\n".join(textwrap.fill(line, 110, break_on_hyphens=False) for line in lines)
