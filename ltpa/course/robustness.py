"""Notebook 06: what trained networks withstand, and whether it is real.

A network whose gradient says nothing withstands attacks without being robust (gradient masking, Athalye et al. 2018,
arXiv 1802.00420): `checks` looks for signs of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from ..metrics.adversarial import ATTACKS, perturb
from ..metrics.statistics import UNDECIDED, Effect, Interval, bootstrap_interval, packed
from ..metrics.statistics import write_effects as write_effects
from . import setup
from .effects import (
    MARGIN,
    compare_scores,
    effects_figure,
    few_seeds,
    paragraph,
    sorted_out,
)
from .grid import Grid, collect, train_missing
from .robustness_plot import accuracy_figure, example_figure, maps_figure
from .robustness_runs import AttackConfig, Attacked, attack_config, attack_grid, mean_accuracy
from .setup import report

__all__ = [
    "ATTACKS", "AttackConfig", "Attacked", "Check", "accuracy_figure", "accuracy_table", "attack_grid", "check_table",
    "checks", "collect", "conclusion", "effects", "effects_figure", "example_figure", "frame", "maps_figure",
    "parameters", "perturb", "report", "train_missing", "write_effects",
]  # fmt: skip

CLAIM = "Attention makes a network more robust"
KEPT = "still right, of images that both classify rightly"

parameters = partial(setup.parameters, kind=AttackConfig)


def accuracy_table(grid: Grid, attacked: Sequence[Attacked]) -> pd.DataFrame:
    """Return the accuracy in %, the mean over seeds, without attack and at every epsilon."""
    rows = {}
    for attack, variant in product(ATTACKS, grid.variants):
        runs = [run for run in attacked if run.cell.variant == variant]
        row = {"clean": mean_accuracy([run.clean for run in runs])}
        for epsilon in sorted(attack_config(grid).epsilons):
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
    config = attack_config(grid)
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


def effects(grid: Grid, attacked: Sequence[Attacked], found: Sequence[Check]) -> list[Effect]:
    """Compare every model with the baseline at `epsilon`, for both attacks: the share of images that stay right.

    Only images that both classify rightly without attack, with every seed, count: otherwise a model with fewer right
    answers has less to lose. Where the checks show a sign of masking in the model or the baseline, the attack did not
    do what it could, and nothing is decided. The intervals of all comparisons hold together with 95 %.
    """
    config = attack_config(grid)
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
