"""The trained networks of notebook 06 under attack: its settings, and which images every run still gets right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..config import EachOnce, Variant, settings
from ..data.dataset import Dataset
from ..data.split import Split, stratified
from ..inference import evaluate_images
from ..metrics.adversarial import ATTACKS, perturb
from ..models.classifier import ImageClassifier
from .grid import MODELS, AblationConfig, Cell, Grid, Result

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
    config = attack_config(grid)
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


def attack_config(grid: Grid) -> AttackConfig:
    """Return the settings of a grid that was collected with an `AttackConfig`."""
    assert isinstance(grid.config, AttackConfig), "the grid must be collected with an AttackConfig"
    return grid.config
