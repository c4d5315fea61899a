"""What notebooks 01 and 02 conclude about one run, in sentences computed from numbers."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..maps import entropy
from ..metrics.overlap import localization_tensors
from ..metrics.statistics import SUPPORTED, bootstrap_interval, verdict
from ..training.health import COLLAPSED_MAPS, UNIFORM_MAPS, map_defects

_ONE_RUN = "All of this is one run with one seed; 03 trains several and asks whether attention is what helps."
_DEFECTS = {
    COLLAPSED_MAPS: "are collapsed: almost all weight lies at one position of every image",
    UNIFORM_MAPS: "are uniform in every image, so they say nothing",
}


def describe_training(
    labels: Tensor, predictions: Tensor, strongest: Mapping[str, tuple[Tensor, int]], scores: Mapping[str, float]
) -> str:
    """Return whether the network has learned anything, and whether its maps are healthy.

    `strongest` is as for `ltpa.training.health.problems`, `scores` of `ltpa.evaluate`, with each level's mean entropy.
    """
    accuracy = bootstrap_interval((predictions == labels).double().numpy())
    guess = labels.bincount().max().item() / len(labels)
    lines = [
        f"{accuracy.text(1, 100)} % of {len(labels)} test images are right; always the most frequent class: "
        f"{guess:.1%}. (In brackets: 95 % interval over the images.)",
        f"That the network has learned to tell the classes apart is {verdict(accuracy.minus(guess))}.",
    ]
    defects = map_defects(strongest)
    entropies = {level: f"{scores[f'entropy_{level}']:.2f}" for level in strongest}
    lines += [f"The maps at {level} {_DEFECTS[defect]}." for level, defect in defects.items()]
    flat = [level for level in strongest if level not in defects and entropies[level] == "1.00"]
    if flat:
        lines.append(f"The maps at {' and '.join(flat)} are almost uniform: their mean entropy is 1.00.")
    healthy = [f"{level} {entropies[level]}" for level in strongest if level not in defects and level not in flat]
    if healthy:
        lines.append(f"Maps that are neither uniform nor collapsed (mean entropy): {', '.join(healthy)}. Look at them.")
    if not strongest:
        lines.append("It has no attention maps.")
    return "\n".join([*lines, _ONE_RUN])


def describe_maps(maps: Mapping[str, Tensor], right: Tensor, masks: Tensor | None = None) -> str:
    """Return whether the maps of all test images lie on the objects, a line for each level and a conclusion.

    Right and wrong answers are compared; all intervals hold together with 95 %.

    `maps` are level -> weights (N, h, w), `masks` (N, H, W); without masks the lines are about entropies.
    """
    if not maps:
        return "This model has no attention maps: nothing was shown."
    maps, right = {level: level_maps.cpu() for level, level_maps in maps.items()}, right.cpu()
    if masks is None:
        values = {level: entropy(level_maps) for level, level_maps in maps.items()}
        lines = ["The mean entropy of the maps (1 = uniform, 0 = a single position), in right and in wrong answers:"]
        lines += [f"  {level}: {_compare_answers(value, right, 2 * len(maps), 2)}" for level, value in values.items()]
        last = "Whether they lie on objects cannot be said: these data have no masks (the dataset 'shapes' has)."
        return "\n".join([*lines, last])

    area = masks.float().mean((1, 2))
    lines = [f"The object fills {area.mean().item():.1%} of a picture. Of the attention lies on it, in percent:"]
    verdicts = {}
    for level, level_maps in maps.items():
        share = localization_tensors(level_maps, masks)["share"]
        verdicts[level] = verdict(bootstrap_interval(_finite(share - area), 3 * len(maps)))
        answers = _compare_answers(share, right, 3 * len(maps), 1, 100)
        lines.append(f"  {level}: {answers}; more than the even share: {verdicts[level]}")
    return "\n".join([*lines, _conclude(verdicts)])


def _conclude(verdicts: Mapping[str, str]) -> str:
    """Return which levels find the object, from the verdict on each."""
    finds = [level for level, word in verdicts.items() if word == SUPPORTED]
    others = ", ".join(level for level in verdicts if level not in finds)
    if not finds:
        return f"No level was shown to have more of its attention on the object than the even share ({others})."
    if not others:
        return f"Every level has more of its attention on the object than the even share: {', '.join(finds)}."
    return f"More of their attention on the object than the even share have {', '.join(finds)}; not shown for {others}."


def _compare_answers(values: Tensor, right: Tensor, comparisons: int, digits: int, scale: float = 1) -> str:
    """Return the means of right and of wrong answers with intervals, and whether they differ in the digits printed."""
    groups = {"right": _finite(values[right]), "wrong": _finite(values[~right])}
    intervals = {name: bootstrap_interval(group, comparisons) for name, group in groups.items() if len(group)}
    words = ", ".join(f"{name} {interval.text(digits, scale)}" for name, interval in intervals.items())
    if len(intervals) < 2:
        return words
    a, b = intervals.values()
    apart = a.low > b.high or b.low > a.high
    printed_apart = round(scale * a.mean, digits) != round(scale * b.mean, digits)
    return words + (", they differ" if apart and printed_apart else ", no difference is shown")


def _finite(values: Tensor) -> NDArray[np.float64]:
    return values[~values.isnan()].double().numpy()
