"""The exercises of notebook 00: hints, solutions, and `Checks`, which checks answers and fills in solutions.

Each solution exists once, here: `folded` makes the notebook's folded texts from it, and a test compares them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import exercise_checks
from .exercise_checks import Blank, Wrong

UNFILLED = "not filled in yet"


class Checks:
    """Check answers, one after the other, and remember the outcome in `results`: name -> what is wrong, "" if nothing.

    `solutions`, for teachers, fills in the solution where the student has written nothing.
    """

    def __init__(self, solutions: bool = False) -> None:
        self.solutions = solutions
        self.results = dict.fromkeys(EXERCISES, UNFILLED)

    def __call__(self, name: str, answer: Any, **context: Any) -> Any:
        """Print in one line whether an answer is right, and return it if it is (or the solution filled in), else None.

        None, or a function that returns None, is not filled in. `context` is what the exercise needs of the notebook.
        """
        exercise, by = EXERCISES[name], ""
        result = exercise.outcome(answer, context)
        if result.startswith(UNFILLED) and self.solutions:
            answer, by = solve(name, **context), " (the solution)"
            result = exercise.outcome(answer, context)
        self.results[name] = result
        print(f"Exercise {list(EXERCISES).index(name) + 1}{by}: {result or 'right. ' + exercise.point}")
        return None if result else answer

    def summary(self) -> str:
        """Return one line: how many exercises are right, which are not, and which are not filled in."""
        blank = [str(i) for i, result in enumerate(self.results.values(), 1) if result.startswith(UNFILLED)]
        wrong = [str(i) for i, result in enumerate(self.results.values(), 1) if result and str(i) not in blank]
        right = len(self.results) - len(blank) - len(wrong)
        parts = [f"{right} of {len(self.results)} exercises are right"]
        parts += [f"not yet right: {', '.join(wrong)}"] if wrong else []
        parts += [f"not filled in: {', '.join(blank)}"] if blank else []
        return "; ".join(parts)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        variable: what the student assigns or defines, and what the code of the solution defines.
        hint: markdown.
        solution: code, which may use `torch` and the context.
        point: what a right answer shows, in a sentence.
        check: raises `Wrong` for a wrong answer and `Blank` for none.
    """

    variable: str
    hint: str
    solution: str
    point: str
    check: Callable[..., None]

    def outcome(self, answer: Any, context: dict[str, Any]) -> str:
        """Return what is wrong with an answer, or that there is none; "" for a right one."""
        if answer is None:
            return f"{UNFILLED}. Hint and solution are folded under the question."
        try:
            self.check(answer, **context)
        except Blank as blank:
            return f"{UNFILLED}{blank}"
        except Wrong as wrong:
            return f"not yet. {wrong}"
        return ""


def solve(name: str, **context: Any) -> Any:
    """Run the code of a solution and return what it defines; `context` as for `Checks`."""
    namespace = {"torch": torch, **context}
    exec(EXERCISES[name].solution, namespace)
    return namespace[EXERCISES[name].variable]


def folded(name: str) -> str:
    """Return hint and solution as markdown that a notebook shows when it is unfolded."""
    exercise = EXERCISES[name]
    solution = f"```python\n{exercise.solution.strip()}\n```\n\n{exercise.point}"
    return "\n\n".join(
        f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"
        for title, text in (("Hint", exercise.hint), ("Solution", solution))
    )


EXERCISES = {
    "shift": Exercise(
        variable="answer",
        hint="Write down $\\exp(c_i + 5)$ as a product. Or try: `(scores + 5).flatten().softmax(0)` is one line.",
        solution="""
# exp(c + 5) = exp(5) exp(c): numerator and sum get the same factor, and it cancels.
factor = 1
reason = "a"
answer = (factor, reason)
""",
        point="Only differences between scores count: what is added everywhere changes no map.",
        check=exercise_checks.check_shift,
    ),
    "relative": Exercise(
        variable="relative",
        hint="Divide every weight by the even share. `weights.numel()` is the number of positions.",
        solution="""
def relative(weights):
    return weights * weights.numel()  # a_i / (1/n)
""",
        point="Whether a weight of 0.004 is large depends on n; dividing by 1/n shows it.",
        check=exercise_checks.check_relative,
    ),
    "positions": Exercise(
        variable="positions",
        hint="""The entropy $H = -\\sum_i a_i \\log a_i$ of k equal weights is $\\log k$. Which function undoes the
logarithm? And what does a weight of exactly 0 do to the sum? (See `torch.special.entr`.) There is also a way without
logarithms: what is $\\sum_i a_i^2$ for k equal weights?""",
        solution="""
def positions(weights):
    return torch.special.entr(weights).sum().exp()  # or 1 / (weights**2).sum()
""",
        point="One number says how far a map spreads. (The figures print the entropy as a fraction of log n instead.)",
        check=exercise_checks.check_positions,
    ),
    "border": Exercise(
        variable="border_free",
        hint="""Which score gives a weight of 0? Change the scores and leave the rest to softmax: then the
weights sum to 1 by themselves.""",
        solution="""
def border_free(scores):
    masked = torch.full_like(scores, -torch.inf)
    masked[1:-1, 1:-1] = scores[1:-1, 1:-1]
    return masked.flatten().softmax(0).view_as(scores)
""",
        point="A score of minus infinity removes a position; the others share its weight in their proportions.",
        check=exercise_checks.check_border,
    ),
    "steer": Exercise(
        variable="g_mine",
        hint="""Start with the mean local feature of the other object. What else in the picture gets a high score
from it, and which channels tell the two objects apart? Numbers in `g` may be negative. And what does a `g` three times
as long do to the differences between scores?""",
        solution="""
# Least squares: the g whose score comes closest to 1 on the object and 0 elsewhere; a long g makes the map sharp.
wanted = on_other.flatten().float()
g_mine = 40 * torch.linalg.lstsq(local.flatten(1).T, wanted[:, None]).solution[:, 0]
""",
        point="With dp the global feature is a question to every position: ask another question, and the map changes.",
        check=exercise_checks.check_steer,
    ),
    "moved": Exercise(
        variable="moved",
        hint="""Two maps, `a` and `b`, from `score(local, g)` and `score(local, other)`, each through softmax. Both sum
to 1, so the sum of their differences is always 0: take absolute values, or the largest one.""",
        solution="""
def moved(score, local, g, other):
    a = score(local, g).flatten().softmax(0)
    b = score(local, other).flatten().softmax(0)
    return (a - b).abs().max()
""",
        point="In pc, g adds the same number to every score, the product of u and g; exercise 1 says what follows.",
        check=exercise_checks.check_moved,
    ),
    "add": Exercise(
        variable="add",
        hint="""`torch.einsum("dc,chw->dhw", W_l, local)` maps the feature of every position. `W_g @ g` is one vector;
`[:, None, None]` lets you add it at every position. Then take tanh, then the product with `u` as in pc.""",
        solution="""
def add(local, g, W_l, W_g, u):
    mapped = torch.einsum("dc,chw->dhw", W_l, local)
    return torch.einsum("dhw,d->hw", (mapped + (W_g @ g)[:, None, None]).tanh(), u)
""",
        point="After tanh, what g adds depends on the position: now the map depends on g.",
        check=exercise_checks.check_add,
    ),
    "gates": Exercise(
        variable="gated",
        hint="The gates are `scores.sigmoid()`. The sum is as with softmax, divided by the number of positions.",
        solution="""
def gated(local, scores):
    gates = scores.sigmoid()
    return gates, torch.einsum("hw,chw->c", gates, local) / gates.numel()
""",
        point="Gates do not compete: all can be open or all closed, and adding 5 to every score opens nearly all.",
        check=exercise_checks.check_gates,
    ),
}
