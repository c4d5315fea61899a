"""The exercises of notebook 00: right answers pass however they are written, wrong ones are explained."""

import dataclasses
import math
import re
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

import ltpa
from ltpa.course import exercises, scratch
from ltpa.course.exercises import EXERCISES, Checks
from ltpa.models import attention

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_attention_from_scratch.ipynb"
CELLS = nbformat.read(NOTEBOOK, as_version=4).cells
inf = math.inf


def scene(seed=3):
    """The notebook's local features, by the notebook's own cell, and the positions of the two objects."""
    picture, masks, _ = scratch.two_objects(seed)
    source = next(cell.source for cell in CELLS if "def features" in cell.source)
    namespace = {"torch": torch, "picture": picture, **vars(torch.nn.functional)}
    with redirect_stdout(None):
        exec(source, namespace)
    on_first, on_other = torch.nn.functional.avg_pool2d(masks.float(), 4) >= 0.5
    return namespace["local"], on_first, on_other


LOCAL, ON_FIRST, ON_OTHER = scene()
G, G_OTHER = LOCAL[:, ON_FIRST].mean(1), LOCAL[:, ON_OTHER].mean(1)


def verdict(name, answer, capsys, solutions=False):
    """What is printed for an answer, and whether it was accepted."""
    context = {"local": LOCAL, "on_other": ON_OTHER} if name == "steer" else {}
    accepted = Checks(solutions)(name, answer, **context)
    return capsys.readouterr().out, accepted


def flat_softmax(scores):
    return scores.flatten().softmax(0).view_as(scores)


def masked_by_loop(scores):
    """Weights without the border, number by number, as lists."""
    h, w = scores.shape
    powers = [[scores[y, x].exp() * (0 < y < h - 1) * (0 < x < w - 1) for x in range(w)] for y in range(h)]
    total = sum(map(sum, powers))
    return [[float(power / total) for power in row] for row in powers]


def border_in_place(scores):
    scores[0] = scores[-1] = -inf
    scores[:, 0] = scores[:, -1] = -inf
    return flat_softmax(scores)


def border_afterwards(scores):
    inside = torch.zeros_like(scores)
    inside[1:-1, 1:-1] = 1
    weights = flat_softmax(scores) * inside
    return weights / weights.sum()


def border_filled_with(value):
    def border_free(scores):
        masked = torch.full_like(scores, value)
        masked[1:-1, 1:-1] = scores[1:-1, 1:-1]
        return flat_softmax(masked)

    return border_free


def zeroed_without_renewal(scores):
    weights = flat_softmax(scores)
    weights[0] = weights[-1] = 0
    weights[:, 0] = weights[:, -1] = 0
    return weights


def uniform_inside(scores):
    weights = torch.zeros_like(scores)
    weights[1:-1, 1:-1] = 1
    return weights / weights.sum()


def only_rows(scores):
    scores[0] = scores[-1] = -inf
    return flat_softmax(scores)


def maps(score, local, g, other):
    return score(local, g).flatten().softmax(0), score(local, other).flatten().softmax(0)


def kullback_leibler(score, local, g, other):
    a, b = maps(score, local, g, other)
    return (a * (a / b).log()).sum()


def root_mean_square(score, local, g, other):
    a, b = (one.numpy() for one in maps(score, local, g, other))
    return np.sqrt(np.mean((a - b) ** 2))


def largest_by_loop(score, local, g, other):
    return max(abs(float(x) - float(y)) for x, y in zip(*maps(score, local, g, other), strict=True))


def strongest_moved(score, local, g, other):
    a, b = maps(score, local, g, other)
    return abs(int(a.argmax()) - int(b.argmax()))


def dp_whatever(score, local, g, other):
    a, b = maps(lambda local, g: torch.einsum("chw,c->hw", local, g), local, g, other)
    return (a - b).abs().sum()


def add_by_loop(local, g, W_l, W_g, u):
    _, h, w = local.shape
    return [[torch.dot(u, torch.tanh(W_l @ local[:, y, x] + W_g @ g)) for x in range(w)] for y in range(h)]


def add_flat(local, g, W_l, W_g, u):
    return torch.tanh(local.flatten(1).T @ W_l.T + g @ W_g.T) @ u  # (n,)


def add_of_the_package(local, g, W_l, W_g, u):
    module = attention.Attention(len(g), len(g), "add")
    module.load_state_dict({"u": u, "W_l.weight": W_l, "W_g.weight": W_g})
    return module(local[None], g[None])[2]  # (1, h, w), with a gradient


def add_variant(squash=torch.tanh, outer=lambda scores: scores, of_l=lambda m: m, of_g=lambda m: m, swap=False):
    def add(local, g, W_l, W_g, u):
        W_l, W_g = (W_g, W_l) if swap else (W_l, W_g)
        mapped = torch.einsum("dc,chw->dhw", of_l(W_l), local) + (of_g(W_g) @ g)[:, None, None]
        return outer(torch.einsum("dhw,d->hw", squash(mapped), u))

    return add


def gates_by_loop(local, scores):
    h, w = scores.shape
    gates = [[1 / (1 + math.exp(-scores[y, x])) for x in range(w)] for y in range(h)]
    return gates, [sum(gates[y][x] * c[y, x] for y in range(h) for x in range(w)) / (h * w) for c in local]


def gated(normalize=torch.sigmoid, divide=lambda gates: gates.numel()):
    def gated(local, scores):
        gates = normalize(scores)
        return gates, (gates * local).sum((1, 2)) / divide(gates)

    return gated


def entropy(weights):
    return -(weights * weights.log()).nansum()


RIGHT = {
    "shift": [(1, "a"), (1.0, "A"), (torch.ones(16, 16), " (a) "), (np.float32(1), "a)")],
    "relative": [
        lambda weights: weights / weights.mean(),
        lambda weights: weights.numpy() * weights.shape[0] * weights.shape[1],
        lambda weights: [[float(a) * weights.numel() for a in row] for row in weights],
        lambda weights: weights.flatten()[None] * weights.numel(),
        lambda weights: [row * weights.numel() for row in weights],
    ],
    "positions": [
        lambda weights: math.exp(sum(-a * math.log(a) for a in weights.flatten().tolist() if a > 0)),
        lambda weights: 1 / (weights**2).sum(),
        lambda weights: (1 / weights.max()).reshape(1, 1),
        lambda weights: np.exp(entropy(weights).numpy()),
        lambda weights: 2 ** (entropy(weights) / math.log(2)),
        lambda weights: [weights.numel() ** ltpa.metrics.entropy(weights[None])],
    ],
    "border": [
        masked_by_loop,
        border_in_place,
        border_afterwards,
        border_filled_with(-1e4),
        lambda scores: torch.nn.functional.pad(flat_softmax(scores[1:-1, 1:-1]), (1, 1, 1, 1)),
        lambda scores: border_in_place(scores).flatten(),
        lambda scores: border_in_place(scores)[None, None].requires_grad_(),
    ],
    "steer": [
        8 * G_OTHER - 8 * G,
        (8 * (G_OTHER - LOCAL.mean((1, 2)))).tolist(),
        torch.tensor([-5, 10, 0, 0, 0, 0, 0]),
        (10 * (G_OTHER - G)).numpy().reshape(7, 1),
        torch.nn.Parameter(10 * (G_OTHER - G)),
    ],
    "moved": [
        kullback_leibler,
        root_mean_square,
        largest_by_loop,
        lambda *inputs: (maps(*inputs)[0] - maps(*inputs)[1]).max(),
        lambda *inputs: (maps(*inputs)[0] / maps(*inputs)[1]).log().abs().max(),
        lambda *inputs: sum((a - b).abs() for a, b in zip(*maps(*inputs), strict=True)) / 2,
        lambda *inputs: 1 - torch.minimum(*maps(*inputs)).sum(),
    ],
    "add": [add_by_loop, add_flat, add_of_the_package, add_variant()],
    "gates": [
        gates_by_loop,
        gated(),
        lambda local, scores: [1 / (1 + (-scores).exp()), (scores.sigmoid() * local).flatten(1).mean(1, keepdim=True)],
        lambda local, scores: (
            scores.sigmoid().numpy(),
            np.einsum("hw,chw->c", scores.sigmoid(), local) / scores.numel(),
        ),
    ],
}

WRONG = {
    "shift": [
        ((5, "a"), "added to the scores; the weights come after exp"),
        ((math.exp(5), "a"), "What happens to the sum"),
        ((148.4, "a"), "What happens to the sum"),
        ((0, "a"), "would make all weights vanish"),
        ((2, "a"), "Not 2: compute"),
        (("one", "a"), "factor should be a number, not the text 'one'\\.\n"),
        (("1", "a"), "factor should be a number, not the text '1'. Leave out the quotes"),
        ((1, "b"), "try 500 instead of 5"),
        ((1, "c"), "change any one score"),
        ((1, "because it cancels"), "should be 'a', 'b' or 'c'"),
    ],
    "relative": [
        (lambda weights: weights / weights.max(), "The strongest position always gets 1 from you"),
        (lambda weights: weights, "The uniform map of 15 positions should be 1 everywhere; you give 0.0667"),
        (lambda weights: weights * len(weights), "should be 1 everywhere; you give 0.2\\."),
        (lambda weights: weights * 256, "should be 1 everywhere; you give 17.1"),
        (lambda weights: (weights - weights.min()) / (weights.max() - weights.min()), "contains a nan .* divide by 0"),
        (lambda weights: 1 + weights - weights.mean(), r"times the even share; you give 1\.\d+"),
        (lambda weights: weights.mean() / weights, r"times the even share; you give 0\.\d+"),
        (lambda weights: (weights * weights.numel()).T, "transposed"),
        (lambda weights: weights.sum(), r"a number for each position, \(3, 5\), not the shape \(\)"),
    ],
    "positions": [
        (entropy, "That is the entropy itself"),
        (lambda weights: entropy(weights) / math.log(weights.numel()), "as a fraction of that of the uniform map"),
        (lambda weights: weights.max(), "That is its reciprocal"),
        (lambda weights: (weights > 0).sum(), "yours goes 2, 2, 2.* Counting .* is not enough"),
        (lambda weights: (weights >= 1 / weights.numel()).sum(), "Counting those above a threshold"),
        (lambda weights: (-(weights * weights.log()).sum()).exp(), "contains a nan or an infinity"),
        (lambda weights: weights.numel(), "2 equal weights among 8 should count as 2; you give 8"),
        (lambda weights: 1 / weights**2, "infinity"),
        (lambda weights: weights + 1, "should be one number; yours has the shape"),
        (lambda weights: bool(weights.max() > 0.5), "return a number that says how much"),
    ],
    "border": [
        (flat_softmax, "The top border still gets"),
        (border_filled_with(0.0), "A score of 0 is a score like any other"),
        (only_rows, "The left border still gets"),
        (zeroed_without_renewal, r"the weights sum to 0\.\d+, not 1"),
        (uniform_inside, "not the softmax of its scores"),
        (lambda scores: flat_softmax(scores[1:-1, 1:-1]), r"\(5, 5\), not the shape \(3, 3\)"),
        (lambda scores: scores * uniform_inside(scores), "the weights sum to"),
        (lambda scores: border_filled_with(-inf)(scores * 2), "not the softmax of its scores"),
        (lambda scores: border_in_place(scores).log(), "contains a nan or an infinity"),
        (lambda scores: torch.stack([row.softmax(0) for row in scores]), "The top border still gets"),
    ],
    "steer": [
        (G, "6.3% of the attention .* The strongest position lies elsewhere: which channels"),
        (G_OTHER, r"19\.\d% of the attention .* points the right way: a longer one makes the map sharper"),
        (G - G_OTHER, "The strongest position lies elsewhere"),
        (torch.zeros(7), "the map is uniform, and its share there is the area, 4"),
        (torch.ones(6), "each of the 7 channels; yours has 6"),
        (LOCAL, "each of the 7 channels; yours has 1792"),
        ("heart", "g_mine should be numbers, not the text 'heart'"),
    ],
    "moved": [
        (lambda *inputs: (maps(*inputs)[0] - maps(*inputs)[1]).sum(), "with their signs cancel"),
        (strongest_moved, "the strongest position may stay in its place"),
        (
            lambda score, local, g, other: (score(local, g) - score(local, other)).abs().max(),
            "scores instead of the weights",
        ),
        (dp_whatever, "do you not use `score`"),
        (lambda score, local, g, other: (g - other).norm(), "For pc you measure .* scores instead of the weights"),
        (lambda score, local, g, other: 0, "For dp and another g you measure 0, but a weight changes by"),
        (lambda score, local, g, other: 0.5, "For the same g twice you measure 0.5"),
        (lambda *inputs: (maps(*inputs)[0] - maps(*inputs)[1]).min(), "a change has no sign"),
        (lambda *inputs: torch.equal(*maps(*inputs)), "return a number that says how much"),
        (lambda *inputs: (maps(*inputs)[0] - maps(*inputs)[1]).abs(), r"one number; yours has the shape \(20,\)"),
        (
            lambda score, local, g, other: score(local, g).view(16, 16).sum(),
            r"raised RuntimeError: shape '\[16, 16\]' is invalid.* \(line 1 of your function\)",
        ),
    ],
    "add": [
        (add_variant(squash=lambda x: x), "without tanh"),
        (add_variant(squash=lambda x: x, outer=torch.tanh), "tanh belongs around the vector"),
        (add_variant(of_l=torch.t), "W_l is transposed"),
        (add_variant(of_g=torch.t), "W_g is transposed"),
        (add_variant(of_g=torch.zeros_like), "g is missing"),
        (add_variant(of_g=lambda m: torch.eye(len(m))), "W_g is missing"),
        (add_variant(of_l=lambda m: torch.eye(len(m))), "W_l is missing"),
        (add_variant(swap=True), "exchanged"),
        (add_variant(squash=torch.sigmoid), r"A score of a random picture should be -?\d+\.\d+, and you give"),
        (add_variant(outer=torch.t), "transposed"),
        (lambda local, g, W_l, W_g, u: (W_l @ local + (W_g @ g)).tanh() @ u, "Your code "),
        (lambda local, g, W_l, W_g, u: torch.tanh(local), "a number for each position"),
    ],
    "gates": [
        (gated(divide=lambda gates: 1), "it is the sum over the 16 positions; with gates it is the mean"),
        (gated(divide=torch.sum), "you divide by the sum of the gates"),
        (gated(normalize=flat_softmax, divide=lambda gates: 1), "That is softmax"),
        (gated(normalize=lambda scores: scores.sigmoid() / scores.sigmoid().sum()), "divided by their sum"),
        (gated(normalize=torch.tanh), r"should give the gate 1/\(1 \+ e\^-c\) = 0\.\d+; you give"),
        (gated(divide=lambda gates: 2 * gates.numel()), "its first number should be"),
        (lambda local, scores: scores.sigmoid(), "Return two things, .* not a tensor of shape"),
        (
            lambda local, scores: (scores.sigmoid(), (scores.sigmoid() * local).mean()),
            r"one number for each channel, 3 in all; .* \(\)",
        ),
        (lambda local, scores: (scores.sigmoid(), scores.sigmoid() * local), r"has the shape \(3, 4, 4\)"),
    ],
}


@pytest.mark.parametrize("name", EXERCISES)
def test_right_answers_pass_however_they_are_written(name, capsys):
    for answer in RIGHT[name]:
        printed, accepted = verdict(name, answer, capsys)
        assert f": right. {EXERCISES[name].point}" in printed
        assert "solution" not in printed
        assert accepted is answer


@pytest.mark.parametrize("name", EXERCISES)
def test_wrong_answers_are_refused_and_explained(name, capsys):
    for answer, message in WRONG[name]:
        printed, accepted = verdict(name, answer, capsys, solutions=True)  # the teacher's switch replaces no answer
        assert accepted is None
        assert ": not yet. " in printed
        assert "solution" not in printed
        assert re.search(message, printed), printed
        assert printed.count("\n") == 1


def test_every_exercise_has_right_and_wrong_answers():
    assert list(RIGHT) == list(WRONG) == list(EXERCISES)


@pytest.mark.parametrize("name", EXERCISES)
def test_solutions_pass_the_same_check(name, capsys):
    context = {"local": LOCAL, "on_other": ON_OTHER} if name == "steer" else {}
    printed, accepted = verdict(name, exercises.solve(name, **context), capsys)
    assert accepted is not None, printed
    nothing = (None, None) if name == "shift" else None
    printed, accepted = verdict(name, nothing, capsys, solutions=True)
    assert "(the solution): right. " in printed
    assert accepted is not None


@pytest.mark.parametrize("name", EXERCISES)
def test_a_wrong_solution_would_be_refused(name, capsys, monkeypatch):
    """A check does not compare an answer with the solution: a broken solution is refused."""
    broken = "answer = (5, 'b')\ng_mine = torch.zeros(7)\n" + "\n".join(
        f"def {f}(*inputs):\n    return inputs[0].flatten()[0] if hasattr(inputs[0], 'flatten') else -1.0"
        for f in ("relative", "positions", "border_free", "moved", "add", "gated")
    )
    monkeypatch.setitem(EXERCISES, name, dataclasses.replace(EXERCISES[name], solution=broken))
    printed, accepted = verdict(name, None, capsys, solutions=True)
    assert accepted is None
    assert "(the solution): not yet. " in printed


@pytest.mark.parametrize("name", EXERCISES)
def test_nothing_that_a_student_writes_stops_the_notebook(name, capsys):
    def divides_by_zero(*inputs):
        first = 1
        return first / 0

    def two_lines(*inputs):
        raise KeyError("first\nsecond")

    def empty(*inputs):
        pass

    values = [torch.eye(3), "text", 7, {"a": 1}, object(), [[1, 2], [3]], []]
    returned = [*values, torch.tensor([]), 1j, torch.nan, [None], [empty]]
    junk = [divides_by_zero, two_lines, lambda: 1, *values, *(lambda *inputs, value=v: value for v in returned)]
    for answer in [(one, "a") for one in junk] if name == "shift" else junk:
        printed, accepted = verdict(name, answer, capsys)
        assert accepted is None, answer
        assert re.match(r"Exercise \d: not yet\. \w", printed), printed
        assert printed.count("\n") == 1
    if name not in ("shift", "steer"):
        printed, _ = verdict(name, divides_by_zero, capsys)
        assert "raised ZeroDivisionError: division by zero (line 3 of your function)" in printed
        printed, _ = verdict(name, empty, capsys)
        assert "not filled in yet" in printed
        assert "is `return` missing?" in printed


def test_blank_answers_are_not_called_wrong(capsys):
    checks = Checks()
    for name in EXERCISES:
        assert checks(name, (None, None) if name == "shift" else None) is None
        assert "not filled in yet" in capsys.readouterr().out
    assert checks.summary() == "0 of 8 exercises are right; not filled in: 1, 2, 3, 4, 5, 6, 7, 8"


def test_half_an_answer_is_blank(capsys):
    assert "not filled in yet: reason is None" in verdict("shift", (1, None), capsys)[0]
    assert "not filled in yet: factor is None" in verdict("shift", (None, "a"), capsys)[0]


def test_summary_counts(capsys):
    checks = Checks()
    checks("shift", (1, "a"))
    checks("relative", lambda weights: weights)
    checks("border", border_in_place)
    assert checks.summary() == "2 of 8 exercises are right; not yet right: 2; not filled in: 3, 5, 6, 7, 8"
    checks("relative", lambda weights: weights / weights.mean())  # tried again
    assert checks.summary() == "3 of 8 exercises are right; not filled in: 3, 5, 6, 7, 8"


def test_checks_leave_the_random_numbers_of_the_notebook_alone(capsys):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name in EXERCISES:
        verdict(name, RIGHT[name][0], capsys)
    assert torch.equal(torch.rand(3), expected)


def test_the_solution_finds_the_other_object_on_other_pictures(capsys):
    for seed in (0, 11):
        local, _, on_other = scene(seed)
        assert Checks(True)("steer", None, local=local, on_other=on_other) is not None, capsys.readouterr().out


# The notebook


def test_folded_texts_in_the_notebook_are_those_of_the_package():
    questions = [cell.source for cell in CELLS if cell.source.startswith("### Exercise")]
    assert len(questions) == len(EXERCISES)
    for number, (name, question) in enumerate(zip(EXERCISES, questions, strict=True), start=1):
        assert question.startswith(f"### Exercise {number}: ")
        own, _, folded = question.partition("<details>")
        assert f"<details>{folded}" == exercises.folded(name)
        assert len(own) > 100, "there is no question"


@pytest.mark.parametrize("name", EXERCISES)
def test_folded_solution_can_be_pasted(name):
    folded = exercises.folded(name)
    (code,) = re.findall(r"```python\n(.*?)\n```", folded, re.DOTALL)
    namespace = {"torch": torch, "local": LOCAL, "on_other": ON_OTHER}
    exec(code, namespace)
    assert EXERCISES[name].variable in namespace
    assert folded.count("<details>") == folded.count("</details>") == 2


@pytest.fixture(scope="module")
def after_the_notebook(tmp_path_factory):
    """The names that the notebook has made, all exercises being filled in."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("notebook"))  # the notebook goes to the project's folder
    patch.setenv("LTPA_FOLDER", str(tmp_path_factory.mktemp("project")))
    namespace = {}
    with redirect_stdout(None):
        for cell in CELLS:
            if cell.cell_type == "code":
                exec(cell.source.replace("solutions = False", "solutions = True"), namespace)
    patch.undo()
    return namespace


@pytest.mark.parametrize("name", EXERCISES)
def test_the_notebook_goes_on_with_every_right_answer(name, after_the_notebook, monkeypatch):
    """Also with one that is a list, an array, or of another shape: its cell draws or prints what came out."""
    shown, printed = [], []
    monkeypatch.setattr(ltpa.viz, "display", lambda figure, alt: shown.append(alt))
    (cell,) = (cell.source for cell in CELLS if f'check("{name}"' in cell.source)
    answers = RIGHT[name][:3]
    for answer in answers:
        exec(cell, {**after_the_notebook, "check": lambda *_, answer=answer, **__: answer, "print": printed.append})
    assert len(shown) + len(printed) == {"shift": 0, "moved": 2}.get(name, 1) * len(answers)


def test_each_exercise_has_a_cell_to_fill_behind_its_question():
    for cell, below in pairwise(CELLS):
        if cell.source.startswith("### Exercise"):
            assert below.cell_type == "code"
            assert re.search(r"= None  # your|return None  # your code", below.source)
            (name,) = re.findall(r'check\("(\w+)"', below.source)
            assert exercises.folded(name) in cell.source
