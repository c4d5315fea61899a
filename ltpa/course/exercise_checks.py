"""What is wrong with an answer to an exercise of notebook 00: one check for each exercise, which raises `Wrong`.

A check tests what the question asks for, on inputs of its own, so that every right answer passes, however it is
written. It knows no solution: a solution has to pass like a student's answer.
"""

import math
import traceback
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_LARGEST_IS_1 = (
    "The strongest position always gets 1 from you, so an almost uniform map looks as lively as a collapsed one. "
    "Divide by the even share 1/n, not by the largest weight."
)


class Wrong(Exception):
    """What is wrong with an answer, in words for the student."""


class Blank(Exception):
    """The student has written nothing yet; the text says what is missing."""


def check_shift(answer: Any) -> None:
    """Check (factor, reason): by what adding 5 to every score multiplies the weights, and why ("a", "b" or "c")."""
    for name, part in zip(("factor", "reason"), answer, strict=True):
        if part is None:
            raise Blank(f": {name} is None.")
    factor, reason = answer
    value = numbers(factor, "factor", "a number")
    first = value.flatten()[0].item()
    if _differs(value, torch.ones_like(value), 1e-3):
        if abs(first - math.exp(5)) < 1:
            raise Wrong("Every numerator gets the factor e^5. What happens to the sum that it is divided by?")
        if first == 0:
            raise Wrong("A factor of 0 would make all weights vanish. How large is the new weight over the old one?")
        if first in (5, 6):
            raise Wrong(f"Not {first:g}: the 5 is added to the scores; the weights come after exp and division.")
        raise Wrong(f"Not {first:g}: compute softmax(scores + 5) and divide it by softmax(scores).")
    letter = str(reason).strip(" ().").lower()
    hints = {
        "b": "The factor is right, the reason is not: try 500 instead of 5. Does the map change?",
        "c": "The factor is right, the reason is not: change any one score, and all weights change.",
    }
    if letter != "a":
        raise Wrong(hints.get(letter, f"The factor is right; reason should be 'a', 'b' or 'c', not {reason!r}."))


def check_relative(answer: Any) -> None:
    """Check a function from weights (h, w) to multiples of the even share (h, w)."""
    for height, width in ((3, 5), (4, 4)):
        n = height * width
        even = _map(_call(answer, "relative", torch.full((height, width), 1 / n)), (height, width))
        if _differs(even, torch.ones_like(even)):
            raise Wrong(f"The uniform map of {n} positions should be 1 everywhere; you give {even[0, 0]:.3g}.")
        weights = _softmax(_random(height, width, seed=n)).float()
        given = _map(_call(answer, "relative", weights), (height, width))
        wanted = n * weights.double()
        if _differs(given, wanted):
            if abs(given.max() - 1) < 1e-4:
                raise Wrong(_LARGEST_IS_1)
            raise Wrong(
                f"One of {n} positions has {weights.max():.3f}, which is {wanted.max():.2f} times the even share; "
                f"you give {given.flatten()[weights.argmax()]:.2f}."
            )


def check_positions(answer: Any) -> None:
    """Check a function from weights (h, w) to the effective number of positions; any measure of it will do."""

    def count(*weights: float) -> float:
        return _number(_call(answer, "positions", torch.tensor(weights).view(2, -1)))

    for equal, n in ((2, 8), (1, 4), (4, 4), (3, 6), (8, 8)):
        given = count(*[1 / equal] * equal, *[0.0] * (n - equal))
        if abs(given - equal) > 1e-3:
            mistakes = {
                "That is the entropy itself: take its exponential.": math.log(equal),
                "That is the entropy as a fraction of that of the uniform map.": math.log(equal) / math.log(n),
                "That is its reciprocal.": 1 / equal,
            }
            why = _mistake(given, mistakes)
            raise Wrong(f"{equal} equal weights among {n} should count as {equal}; you give {given:.3g}. {why}".strip())
    steps = [count(p, 1 - p, 0, 0) for p in (0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 0.99)]
    if any(later > earlier - 1e-4 for earlier, later in pairwise(steps)):
        raise Wrong(
            "While one of two positions takes over, from 50 % to 99 %, the number should fall all the way from 2 to 1; "
            f"yours goes {', '.join(f'{step:.3g}' for step in steps)}. Counting those above a threshold is not enough."
        )


def check_border(answer: Any) -> None:
    """Check a function from scores (h, w) to weights (h, w), the softmax over positions that are not at the border."""
    for seed, (height, width) in enumerate(((5, 5), (4, 7))):
        scores = _random(height, width, seed=seed, scale=2)
        given = _map(_call(answer, "border_free", scores), (height, width))
        for side, line in {"top": given[0], "bottom": given[-1], "left": given[:, 0], "right": given[:, -1]}.items():
            if line.abs().max() > 1e-6:
                raise Wrong(
                    f"The {side} border still gets {line.abs().sum():.1%} of the attention. "
                    "(A score of 0 is a score like any other: e to the 0 is 1.)"
                )
        if abs(given.sum() - 1) > 1e-4:
            raise Wrong(
                f"The border is empty, but the weights sum to {given.sum():.3f}, not 1. "
                "(If you set the border to 0 after softmax, its share is now missing.)"
            )
        if _differs(given[1:-1, 1:-1], _softmax(scores[1:-1, 1:-1])):
            raise Wrong(
                "The border is empty and the sum is 1, but the inside is not the softmax of its scores: where a score "
                "is higher by 1, the weight should be 2.72 times as large."
            )


def check_steer(answer: Any, local: Tensor, on_other: Tensor) -> None:
    """Check a g (C,) whose map, by dp and softmax over `local` (C, h, w), has 80 % on the other object, bool (h, w)."""
    g = numbers(answer, "g_mine").flatten()
    if len(g) != len(local):
        raise Wrong(f"g_mine needs one number for each of the {len(local)} channels; yours has {len(g)}.")
    weights = _softmax(torch.einsum("chw,c->hw", local.double(), g))
    share, area = weights[on_other].sum().item(), on_other.float().mean().item()
    if share >= 0.8:
        return
    if not g.any():
        raise Wrong(f"With g = 0 all scores are 0: the map is uniform, and its share there is the area, {area:.1%}.")
    advice = (
        "g points the right way: a longer one makes the map sharper."
        if weights[on_other].max() == weights.max()
        else "The strongest position lies elsewhere: which channels does the other object have, and nothing else?"
    )
    raise Wrong(f"{share:.1%} of the attention lies on the other object; it should be 80 %. {advice}")


def check_moved(answer: Any) -> None:
    """Check a function of a score function, local (C, h, w) and two g (C,) that says how much the map changes."""

    def dp(local: Tensor, g: Tensor) -> Tensor:
        return torch.einsum("chw,c->hw", local, g)

    for seed in (0, 10):
        local = _random(6, 4, 5, seed=seed).double()
        g, other, u = (_random(6, seed=seed + i).double() for i in (1, 2, 3))

        def pc(local: Tensor, g: Tensor, u: Tensor = u) -> Tensor:
            return torch.einsum("chw,c->hw", local + g[:, None, None], u)

        for score, first, second in ((dp, g, other), (dp, g, 1.5 * g), (dp, g, g), (pc, g, other), (pc, g, 5 * other)):
            value = _number(_call(answer, "moved", score, local, first, second))
            change = float((_softmax(score(local, first)) - _softmax(score(local, second))).abs().max())
            if value < -1e-5:
                raise Wrong(f"{value:.3g} is negative: a change has no sign. Take the absolute value of differences.")
            if score is pc and value > 1e-5:
                raise Wrong(
                    f"For pc you measure {value:.3g}, but no weight changes by more than {change:.0e}. Do you compare "
                    "scores instead of the weights after softmax, or do you not use `score`?"
                )
            if second is first and value > 1e-5:
                raise Wrong(f"For the same g twice you measure {value:.3g}; it should be 0.")
            if change > 0.01 and value < 1e-5:
                raise Wrong(
                    f"For dp and another g you measure {value:.2g}, but a weight changes by {change:.1%}. (Differences "
                    "with their signs cancel, as both maps sum to 1; and the strongest position may stay in its place.)"
                )


def check_add(answer: Any) -> None:
    """Check a function from local (C, h, w), g (C,), W_l (C, C), W_g (C, C), u (C,) to additive scores (h, w)."""
    for seed, (channels, height, width) in enumerate(((4, 3, 5), (3, 4, 4))):
        local, g, u = (_random(*shape, seed=seed) for shape in ((channels, height, width), (channels,), (channels,)))
        W_l, W_g = _random(channels, channels, seed=7), _random(channels, channels, seed=8)
        given = _map(_call(answer, "add", local, g, W_l, W_g, u), (height, width))
        wanted = _additive(local, g, W_l, W_g, u)
        if not _differs(given, wanted):
            continue
        linear, eye = _additive(local, g, W_l, W_g, u, squash=torch.Tensor.double), torch.eye(channels)
        columns = "is transposed: each of its rows makes one number of the result"
        mistakes = {
            "This is without tanh: then g adds the same at every position, as in pc.": linear,
            "tanh belongs around the vector W_l l_i + W_g g, before the product with u.": linear.tanh(),
            f"W_l {columns}.": _additive(local, g, W_l.T, W_g, u),
            f"W_g {columns}.": _additive(local, g, W_l, W_g.T, u),
            "g is missing.": _additive(local, 0 * g, W_l, W_g, u),
            "W_g is missing: g is added as it is.": _additive(local, g, W_l, eye, u),
            "W_l is missing.": _additive(local, g, eye, W_g, u),
            "The two matrices are exchanged: W_l is for the local features.": _additive(local, g, W_g, W_l, u),
        }
        why = _mistake(given, mistakes)
        worst = int((given - wanted).abs().argmax())
        here, there = wanted.flatten()[worst], given.flatten()[worst]
        raise Wrong(f"A score of a random picture should be {here:.3f}, and you give {there:.3f}. {why}".strip())


def check_gates(answer: Any) -> None:
    """Check a function from local (C, h, w) and scores (h, w) to sigmoid gates (h, w) and the descriptor (C,)."""
    for seed, (channels, height, width) in enumerate(((3, 4, 4), (5, 3, 6))):
        local, scores = _random(channels, height, width, seed=seed), _random(height, width, seed=seed + 5, scale=2)
        given, n = _call(answer, "gated", local, scores), height * width
        if not isinstance(given, list | tuple) or len(given) != 2:
            raise Wrong(f"Return two things, the gates and the descriptor, not {_kind(given)}.")
        gates = _map(given[0], (height, width), "The first thing that you return")
        wanted = 1 / (1 + (-scores.double()).exp())
        if _differs(gates, wanted):
            mistakes = {
                "That is softmax, which sums to 1. A gate knows only its own score: 1/(1 + e^-c).": _softmax(scores),
                "Your gates are divided by their sum; leave each as it is, between 0 and 1.": wanted / wanted.sum(),
            }
            right = f"A score of {scores[0, 0]:.2f} should give the gate 1/(1 + e^-c) = {wanted[0, 0]:.3f}"
            raise Wrong(_mistake(gates, mistakes) or f"{right}; you give {gates[0, 0]:.3f}.")
        descriptor = numbers(given[1], "The descriptor").squeeze()
        if descriptor.shape != (channels,):
            raise Wrong(
                f"The descriptor should have one number for each channel, {channels} in all; yours has the shape "
                f"{tuple(descriptor.shape)}."
            )
        total = (wanted * local).sum((1, 2))
        if _differs(descriptor, total / n):
            mistakes = {
                f"it is the sum over the {n} positions; with gates it is the mean, or larger pictures get more.": total,
                "you divide by the sum of the gates; by n, nearly closed gates count less.": total / wanted.sum(),
            }
            why = _mistake(descriptor, mistakes)
            why = why or f"its first number should be {total[0] / n:.3f}, not {descriptor[0]:.3f}."
            raise Wrong(f"The gates are right, the descriptor is not: {why}")


def numbers(value: Any, what: str = "What you return", wanted: str = "numbers") -> Tensor:
    """Return an answer of any kind (tensor, array, nested list, number) as a float64 tensor, detached.

    `Wrong` is raised where it holds no numbers, or some that are not finite; the message calls the answer `what`.
    """
    try:
        if isinstance(value, list | tuple):
            return torch.stack([numbers(one, what, wanted) for one in value])
        tensor = torch.as_tensor(value).detach().cpu()
        tensor = tensor if tensor.is_complex() else tensor.double()
    except (TypeError, ValueError, RuntimeError):
        quoted = isinstance(value, str) and any(character.isdigit() for character in value)
        advice = " Leave out the quotes." if quoted else ""
        raise Wrong(f"{what} should be {wanted}, not {_kind(value)}.{advice}") from None
    if not tensor.numel() or tensor.is_complex():
        raise Wrong(f"{what} is {'complex' if tensor.numel() else 'empty'}.")
    if not tensor.isfinite().all():
        raise Wrong(f"{what} contains a nan or an infinity. (Did you divide by 0, or take the log of 0?)")
    return tensor


# What several checks need


def _random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Return normal numbers without touching the notebook's own random state."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _call(function: Any, variable: str, *inputs: Any) -> Any:
    """Return what the student's function gives for copies of the inputs; an error in it becomes one line."""
    if not callable(function):
        raise Wrong(f"{variable} has to be a function, not {_kind(function)}; give its name without brackets.")
    try:
        given = function(*(value.clone() if isinstance(value, Tensor) else value for value in inputs))
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        raise Wrong(f"Your code raised {type(error).__name__}: {text}{_line(error, function)}") from None
    if given is None:
        raise Blank(f": {variable} returns nothing. (If you have written something: is `return` missing?)")
    return given


def _line(error: Exception, function: Any) -> str:
    """Return in which line of the student's function an error came up, in words."""
    code = getattr(function, "__code__", None)
    lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    return f" (line {lines[-1] - code.co_firstlineno + 1} of your function)" if code and lines else ""


def _number(value: Any) -> float:
    tensor = numbers(value)
    if tensor.numel() != 1:
        raise Wrong(f"What you return should be one number; yours has the shape {tuple(tensor.shape)}.")
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise Wrong(f"You return {bool(value)}; return a number that says how much.")
    return tensor.item()


def _map(value: Any, shape: tuple[int, int], what: str = "What you return") -> Tensor:
    """Return one number for each position as (h, w); a row of n numbers, or extra dimensions of length 1, will do."""
    tensor = numbers(value, what)
    slim = tuple(tensor.squeeze().shape)
    if slim == shape[::-1] != shape:
        raise Wrong(f"{what} is transposed: {slim} for scores of {shape}.")
    if slim not in (shape, (math.prod(shape),)):
        raise Wrong(f"{what} should have a number for each position, {shape}, not the shape {tuple(tensor.shape)}.")
    return tensor.reshape(shape)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    kinds = {"str": "the text", "int": "the number", "float": "the number", "dict": "the dictionary"}
    kind = type(value).__name__
    return f"{kinds.get(kind, f'the {kind}')} {' '.join(repr(value).split())[:40]}"


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over all positions of (h, w)."""
    return scores.double().flatten().softmax(0).view_as(scores)


def _additive(
    local: Tensor, g: Tensor, W_l: Tensor, W_g: Tensor, u: Tensor, squash: Callable[[Tensor], Tensor] = torch.tanh
) -> Tensor:
    """Return additive compatibility, position by position: <u, tanh(W_l l_i + W_g g)>."""
    local, g, W_l, W_g, u = (values.double() for values in (local, g, W_l, W_g, u))
    return torch.stack(
        [torch.stack([u @ squash(W_l @ l_i + W_g @ g) for l_i in row]) for row in local.permute(1, 2, 0)]
    )


def _differs(given: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((given - wanted).abs().max() > tolerance * max(1.0, float(wanted.abs().max())))


def _mistake(given: Tensor | float, mistakes: Mapping[str, Tensor | float]) -> str:
    """Return the known mistake that gives the same result; "" where none does."""
    pairs = ((text, torch.as_tensor(result).double()) for text, result in mistakes.items())
    return next((text for text, result in pairs if not _differs(torch.as_tensor(given), result)), "")
