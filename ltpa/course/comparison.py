"""What an ablation says: every variant against the baseline, with intervals, tables and a computed sentence."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..metrics.statistics import CONTRADICTED, SUPPORTED, Interval, bootstrap_interval, t_interval, verdict, widest
from ..models.cost import gmac, parameters
from .ablation import Grid, Result
from .tables import write_rows

MARGIN = 0.005  # half a percentage point of accuracy: less would not matter


@dataclass(frozen=True)
class Comparison:
    """A variant against the baseline; differences of accuracy, in [-1, 1].

    Attributes:
        variant: the variant.
        differences: accuracy minus that of the baseline with the same seed, by seed.
        over_seeds: t-interval of their mean: the chance in training.
        over_images: bootstrap interval of the same mean: the chance in which images are in the test set.
        verdict: whether "it is better than the baseline" is supported, see `ltpa.metrics.statistics.verdict`.
    """

    variant: str
    differences: dict[int, float]
    over_seeds: Interval
    over_images: Interval
    verdict: str

    @property
    def interval(self) -> Interval:
        """The mean with the farther ends of both intervals (NaN where one has none): its verdict is that of both."""
        return widest([self.over_seeds, self.over_images])


def compare(grid: Grid, baseline: str | None = None) -> list[Comparison]:
    """Compares every variant with the baseline, paired by seed; the intervals of all hold together with 95 %.

    Args:
        grid: what was collected.
        baseline: another baseline than that of the parameters.
    """
    return compare_scores(_scores(grid), baseline or grid.config.baseline)


def compare_with_each(grid: Grid, baselines: Sequence[str]) -> dict[str, list[Comparison]]:
    """Compares every variant with each of several baselines; the intervals of all hold together with 95 %.

    Two baselines are compared with each other once, and the comparison stands with the first of them.

    Args:
        grid: what was collected.
        baselines: variants; one that has no results is compared with nothing.

    Returns:
        baseline -> the comparisons with it.
    """
    scores, baselines = _scores(grid), list(dict.fromkeys(baselines))
    each = {
        baseline: _differences({name: s for name, s in scores.items() if name not in baselines[:number]}, baseline)
        for number, baseline in enumerate(baselines)
    }
    together = sum(map(len, each.values()))
    return {
        baseline: [_paired(name, by_seed, together) for name, by_seed in found.items()]
        for baseline, found in each.items()
    }


def _scores(grid: Grid) -> dict[str, dict[int, Tensor]]:
    return {variant: {r.cell.seed: r.correct.double() for r in grid.of(variant)} for variant in grid.variants}


def compare_scores(
    scores: Mapping[str, Mapping[int, Tensor]], baseline: str, together: int | None = None
) -> list[Comparison]:
    """Compares everything with the baseline, paired by seed and by image.

    Args:
        scores: name -> seed -> float64 (N,), a number for each test image: 1 where it is classified rightly, else 0.
        baseline: one of the names; nothing is found where it has no scores.
        together: how many comparisons are looked at together, if not just these, see `t_interval`.
    """
    each = _differences(scores, baseline)
    return [_paired(name, by_seed, together or len(each)) for name, by_seed in each.items()]


def _differences(scores: Mapping[str, Mapping[int, Tensor]], baseline: str) -> dict[str, dict[int, Tensor]]:
    """Name -> seed -> scores minus those of the baseline with the same seed, for all that share a seed with it."""
    base = scores.get(baseline, {})
    return {
        name: {seed: values - base[seed] for seed, values in by_seed.items() if seed in base}
        for name, by_seed in scores.items()
        if name != baseline and set(by_seed) & set(base)
    }


def _paired(name: str, each: Mapping[int, Tensor], together: int) -> Comparison:
    differences = {seed: values.mean().item() for seed, values in each.items()}
    over_seeds = t_interval(list(differences.values()), together)
    over_images = bootstrap_interval(torch.stack(list(each.values())).mean(0).numpy(), together)
    return Comparison(name, differences, over_seeds, over_images, verdict(widest([over_seeds, over_images]), MARGIN))


def conclusion(by_baseline: Mapping[str, Sequence[Comparison]]) -> str:
    """What can and what cannot be concluded, in a paragraph.

    Args:
        by_baseline: see `compare_with_each`.
    """
    found = {baseline: comparisons for baseline, comparisons in by_baseline.items() if comparisons}
    if not found:
        names = " or ".join(by_baseline)
        return f"Nothing can be concluded: there is no pair of a variant and {names} with the same seed."

    together = [c for comparisons in found.values() for c in comparisons]
    seeds = {len(c.differences) for c in together}
    count = f"{min(seeds)} seeds" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds"
    sentences = ". And ".join(sorted_out(comparisons, baseline) for baseline, comparisons in found.items())
    return textwrap.fill(
        f"With {count}, {len(together)} comparisons and intervals that hold together with 95 %: "
        f"{sentences}. This says nothing about longer training, other widths or other data.",
        width=110,
        break_on_hyphens=False,
    )


def sorted_out(comparisons: Sequence[Comparison], baseline: str) -> str:
    """Which of them are better than the baseline, worse, equal and open, as part of a sentence."""

    def names(chosen: list[Comparison]) -> str:
        return ", ".join(f"{c.variant} ({100 * c.over_seeds.mean:+.1f} points)" for c in chosen) or "none"

    better = [c for c in comparisons if c.verdict == SUPPORTED]
    worse = [c for c in comparisons if c.verdict == CONTRADICTED and c.over_seeds.high < 0 and c.over_images.high < 0]
    equal = [c for c in comparisons if c.verdict == CONTRADICTED and c not in worse]
    open_ = [c for c in comparisons if c not in better + worse + equal]
    return (
        f"better than {baseline}: {names(better)}; worse: {names(worse)}; "
        f"better by less than {100 * MARGIN:g} points, if at all: {names(equal)}; "
        f"not decidable at this budget: {names(open_)}"
    )


def accuracy_table(grid: Grid, comparisons: Sequence[Comparison], baseline: str | None = None) -> str:
    """Accuracy of every variant with its interval over seeds, and its difference to the baseline, as lines of text.

    Args:
        grid: what was collected.
        comparisons: with one baseline.
        baseline: which, if it is not that of the parameters.
    """
    baseline = baseline or grid.config.baseline
    by_variant = {c.variant: c for c in comparisons}
    width = max(map(len, grid.config.models))
    lines = [f"{'':{width}}  seeds  accuracy in % [95 %]    minus {baseline}: over seeds, over test images"]
    for variant in grid.variants:
        accuracies = [result.accuracy for result in grid.of(variant)]
        line = f"{variant:{width}}  {len(accuracies):5}  {_points(t_interval(accuracies), '.1f'):22}"
        if c := by_variant.get(variant):
            line += f"  {_points(c.over_seeds, '+.1f'):20} {_points(c.over_images, '+.1f'):20} {c.verdict}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def cost_table(grid: Grid) -> str:
    """Parameters, operations, time of a run and entropy of each level's maps, the mean over seeds, as lines of text."""
    width = max(map(len, grid.config.models))
    lines = [f"{'':{width}}  parameters    GMAC  seconds  mean entropy of the maps (1 = uniform)"]
    for variant in grid.variants:
        of = grid.of(variant)
        model, seconds = of[0].run.model, sum(result.seconds for result in of) / len(of)
        entropies = "  ".join(f"{level} {value:.2f}" for level, value in _mean_entropies(of).items())
        lines.append(
            f"{variant:{width}}  {parameters(model):10,}  {gmac(model, of[0].run.config.image_size):6.3f}"
            f"  {seconds:7.0f}  {entropies}".rstrip()
        )
    return "\n".join(lines)


def _mean_entropies(results: Sequence[Result]) -> dict[str, float]:
    levels = results[0].entropies
    return {level: sum(r.entropies[level] for r in results) / len(results) for level in levels}


def _points(interval: Interval, form: str) -> str:
    """An interval of accuracies in percentage points."""
    mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]" if low == low else f"{mean:{form}}"


def write_csv(grid: Grid, comparisons: Sequence[Comparison], folder: str | Path = "runs") -> tuple[Path, Path]:
    """Writes `ablation.csv`, a row a variant, and `ablation_runs.csv`, a row a run; returns their paths."""
    by_variant = {c.variant: c for c in comparisons}
    setting = {
        name: "" if value is None else value
        for name, value in grid.config.common().items()
        if name not in ("data_dir", "device")
    }
    runs, variants = [], []
    for variant in grid.variants:
        of = grid.of(variant)
        model, size = of[0].run.model, of[0].run.config.image_size
        cost = {"parameters": parameters(model), "gmac": round(gmac(model, size), 4)}
        for r in of:
            entropies = {f"entropy_{level}": round(value, 4) for level, value in r.entropies.items()}
            runs.append(
                {
                    "variant": variant,
                    "seed": r.cell.seed,
                    "accuracy": round(r.accuracy, 6),
                    "test_images": len(r.correct),
                }
                | {"seconds": round(r.seconds, 1), **cost, **entropies, **setting}
            )
        row = {"variant": variant, "seeds": len(of), "test_images": len(of[0].correct)}
        row |= _columns("accuracy", t_interval([r.accuracy for r in of]))
        if c := by_variant.get(variant):
            row |= {"baseline": grid.config.baseline, **_columns("difference_over_seeds", c.over_seeds)}
            row |= {**_columns("difference_over_images", c.over_images), "verdict": c.verdict}
        row |= {**cost, "seconds": round(sum(r.seconds for r in of) / len(of), 1)}
        row |= {f"entropy_{level}": round(value, 4) for level, value in _mean_entropies(of).items()}
        variants.append(row)
    folder = Path(folder)
    return write_rows(folder / "ablation.csv", variants), write_rows(folder / "ablation_runs.csv", runs)


def write_effects(grid: Grid, by_baseline: Mapping[str, Sequence[Comparison]], folder: str | Path = "runs") -> Path:
    """Writes `effects_03.csv`, which the page of verdicts is made of: is each variant better than each baseline?"""
    claim = "Attention improves accuracy"
    rows = [
        row
        for baseline, comparisons in by_baseline.items()
        for row in effect_rows(claim, grid, {"test accuracy": comparisons}, baseline)
    ]
    return write_rows(Path(folder) / "effects_03.csv", rows)


def effect_rows(
    claim: str,
    grid: Grid,
    effects: Mapping[str, Sequence[Comparison]],
    baseline: str | None = None,
    data: str | None = None,
) -> list[dict[str, Any]]:
    """A row for the effect of every variant in every measure: model, data, budget, n, effect, its interval, verdict.

    Args:
        claim: what is put to the test.
        grid: the runs.
        effects: what was measured, in words -> comparisons.
        baseline: what they are comparisons with, if not the baseline of the parameters.
        data: what was measured on, in words, if not what the models were tested on.
    """
    config = grid.config
    return [
        {"claim": claim, "model": c.variant, "baseline": baseline or config.baseline, "measure": measure}
        | {"data": data or config.data_described(), "budget": config.described(), "n": len(c.differences)}
        | {name.removeprefix("effect_"): value for name, value in _columns("effect", c.interval).items()}
        | {"verdict": c.verdict}
        for measure, comparisons in effects.items()
        for c in comparisons
    ]


def _columns(name: str, interval: Interval) -> dict[str, Any]:
    ends = {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: round(value, 6) if value == value else "" for key, value in ends.items()}
