"""What notebooks 01 and 02 conclude about one run, in sentences made from numbers."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ..maps import entropy
from ..metrics.overlap import localization
from ..metrics.statistics import SUPPORTED, Interval, bootstrap_interval, verdict
from ..training.health import problems

_ONE_RUN = "All of this is one run with one seed; 03 trains several and asks whether attention is what helps."


def trained(labels: Tensor, predictions: Tensor, strongest: Mapping[str, tuple[Tensor, int]]) -> str:
    """Has the network learnt anything, and are its maps healthy?

    Args:
        labels, predictions: (N,), indices into the classes.
        strongest: see `ltpa.training.health.problems`.

    Returns:
        a few lines: accuracy with its 95 % interval over the images, beside what the most frequent class alone would
        reach; and which maps are uniform or collapsed.

    Raises:
        ValueError: no image.
    """
    right = (predictions == labels).double().numpy()
    accuracy, guess = bootstrap_interval(right), labels.bincount().max().item() / len(labels)
    above = Interval(accuracy.mean - guess, accuracy.low - guess, accuracy.high - guess, accuracy.n)
    lines = [
        f"{_percent(accuracy)} of {len(labels)} test images are right; always the most frequent class: {guess:.1%}.",
        f"That the network has learnt to tell the classes apart is {verdict(above)}.",
    ]
    told = [problem for problem in problems(labels, predictions, strongest) if problem.startswith("attention")]
    if not strongest:
        lines.append("It has no attention maps.")
    elif told:
        lines += [f"{problem[0].upper()}{problem[1:]}." for problem in told]
    else:
        lines.append(f"No level's maps ({', '.join(strongest)}) are all uniform or all collapsed: look at them.")
    return "\n".join([*lines, _ONE_RUN])


def looked(maps: Mapping[str, Tensor], right: Tensor, masks: Tensor | None = None) -> str:
    """What the maps of all test images showed: do they lie on the object, and is that so in wrong answers as well?

    Args:
        maps: level -> weights (N, h, w).
        right: bool (N,), whether the answer was right.
        masks: of the objects, (N, H, W); without them nothing is said about objects, only about entropies.

    Returns:
        a line a level, all their intervals hold together with 95 %, and a sentence.
    """
    if not maps:
        return "This model has no attention maps: nothing was shown."
    maps, right = {level: level_maps.cpu() for level, level_maps in maps.items()}, right.cpu()
    if masks is None:
        values = {level: entropy(level_maps) for level, level_maps in maps.items()}
        lines = ["The mean entropy of the maps (1 = uniform, 0 = a single position), in right and in wrong answers:"]
        lines += [f"  {level}: {_groups(value, right, 2 * len(maps), '.2f')}" for level, value in values.items()]
        last = "Whether they lie on objects cannot be said: these data have no masks (the dataset 'shapes' has)."
        return "\n".join([*lines, last])

    area = masks.float().mean((1, 2))
    lines, on = [f"The object fills {area.mean().item():.1%} of a picture. Of the attention lies on it:"], []
    for level, level_maps in maps.items():
        share = localization(level_maps, masks)["share"]
        more = bootstrap_interval(_finite(share - area), 3 * len(maps))
        said = verdict(more)
        on += [level] * (said == SUPPORTED)
        lines.append(f"  {level}: {_groups(share, right, 3 * len(maps), '.1%')}; more than the even share: {said}")
    others = ", ".join(level for level in maps if level not in on)
    lines.append(
        f"Levels that find the object: {', '.join(on) or 'none'}; that do not, or not decidably: {others or 'none'}."
    )
    return "\n".join(lines)


def _groups(values: Tensor, right: Tensor, together: int, form: str) -> str:
    """Means of right and of wrong answers with intervals, and whether these are apart."""
    groups = {"right": _finite(values[right]), "wrong": _finite(values[~right])}
    found = {name: bootstrap_interval(group, together) for name, group in groups.items() if len(group)}
    words = ", ".join(f"{name} {_interval(of, form)}" for name, of in found.items())
    if len(found) < 2:
        return words
    a, b = found.values()
    return words + (", they differ" if a.low > b.high or b.low > a.high else ", no difference is shown")


def _finite(values: Tensor) -> np.ndarray:
    return values[~values.isnan()].double().numpy()


def _percent(of: Interval) -> str:
    return _interval(of, ".1%")


def _interval(of: Interval, form: str) -> str:
    return f"{of.mean:{form}} ({of.low:{form}} to {of.high:{form}})" if of.low == of.low else f"{of.mean:{form}}"
