"""The optimizer, the learning rate, and when a run ends: after a number of steps, or by the clock."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.9  # of SGD
FILTER_MOMENTUM = 0.6  # of Muon
NEWTON_SCHULZ_STEPS = 3
SLOW = 0.1  # the rate of a pretrained backbone, as a part of the rate of what reads it
SGD_SHARE = 1.7  # with Muon: the rate of what is not a filter, as a multiple of the filters' rate
WARM_UP = {"muon": 0.02, "sgd": 0.25, "adamw": 0.1}  # part of the schedule in which the learning rate rises


class Muon(torch.optim.SGD):
    """SGD with Nesterov momentum whose `filters` take orthogonalized steps of fixed size (Jordan et al. 2024).

    The filter bank of a convolution is a matrix, a row for each output channel. Before its step the bank is scaled to
    norm sqrt(rows), which batch norm makes harmless; then it moves by the learning rate along the momentum with its
    singular values set to about 1. Filters do not decay.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step: filters by Muon, all other parameters by SGD."""
        groups = [group for group in self.param_groups if group.get("filters")]
        gradients = [(p, p.grad) for group in groups for p in group["params"]]
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_filters(parameter, group["lr"])
                    parameter.grad = None  # nothing is left for SGD
        loss = super().step(closure)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return loss

    def _step_filters(self, filters: Tensor, rate: float) -> None:
        gradient = filters.grad
        assert gradient is not None
        momentum = self.state[filters].setdefault("momentum_buffer", torch.zeros_like(filters))
        momentum.mul_(FILTER_MOMENTUM).add_(gradient)
        direction = gradient.add(momentum, alpha=FILTER_MOMENTUM)
        rows = direction.permute(0, 2, 3, 1).flatten(1)  # no copy in channels_last
        step = orthogonalized(rows).reshape(direction.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        filters.mul_(len(filters) ** 0.5 / filters.norm().clamp(min=1e-12)).add_(step, alpha=-rate)


def orthogonalized(matrix: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """Return about U V^T of a matrix U S V^T: Newton-Schulz steps bring its singular values to between 0.7 and 1.2.

    Each step applies 3.4445 s - 4.7750 s^3 + 2.0315 s^5 to the singular values (Jordan et al. 2024). Three steps leave
    those that are below about a tenth of the Frobenius norm smaller.
    """
    x = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    x = x / x.norm().clamp(min=1e-12)
    if tall := len(x) > x.shape[1]:
        x = x.T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if tall else x).to(matrix.dtype)


def make_optimizer(
    model: nn.Module,
    *,
    optimizer: str = "muon",
    learning_rate: float,
    weight_decay: float,
    slow: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return an optimizer of a model's trainable parameters; matrices and filters decay, but not biases, norms and `u`.

    The rate of each group of parameters is the highest of its schedule. With "muon", `learning_rate` is that of the
    filters of all convolutions but the first, which do not decay; SGD moves the rest. The `slow` parameters, those of a
    pretrained backbone, learn at a tenth of the rate.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    banks = [p for p in model.parameters() if p.ndim == 4]  # in the order of the layers
    filters = [p for p in banks[1:] if p.requires_grad] if optimizer == "muon" else []
    others = [p for p in trained if all(p is not f for f in filters)]
    rate = learning_rate * SGD_SHARE if optimizer == "muon" else learning_rate
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay, "lr": rate},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "lr": rate},
    ]
    if optimizer == "muon":
        groups.append({"params": filters, "weight_decay": 0.0, "lr": learning_rate, "filters": True})
    if slow_ones := {id(p) for p in slow}:
        groups = [
            {
                **group,
                "params": [p for p in group["params"] if (id(p) in slow_ones) == is_slow],
                "lr": group["lr"] * part,
            }
            for group in groups
            for is_slow, part in ((False, 1.0), (True, SLOW))
        ]
    if optimizer == "adamw":
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate)
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True)
    return Muon([g for g in groups if g["params"]], lr=rate, momentum=MOMENTUM, nesterov=True)


def schedule(done: float, warm_up: float) -> float:
    """Return the factor on the learning rate at `done` in [0, 1]: linear up to 1 at `warm_up`, then down to 0."""
    return min(done / warm_up, (1 - done) / (1 - warm_up))


# Training begins with smaller pictures: until this part of the schedule, at this part of their side.
GROWTH = ((0.3, 0.5), (0.6, 0.75))


def growth(done: float) -> float:
    """Return the part of the pictures' side at `done` in [0, 1] of the schedule: half, three quarters, then all."""
    return next((part for until, part in GROWTH if done < until), 1.0)


def grown_side(side: int, part: float) -> int:
    """Return a part of a side, as a multiple of 4 from 16 up."""
    return side if part == 1 else max(16, round(side * part / 4) * 4)


def computing(done: float) -> float:
    """Return the part of all computing that is finished at `done` of the schedule: a step costs by its pixels."""
    spent, before = [0.0, 0.0], 0.0  # until `done`, and in total
    for until, part in (*GROWTH, (1.0, 1.0)):
        for number, end in enumerate((done, 1.0)):
            spent[number] += part**2 * max(0.0, min(end, until) - before)
        before = until
    return spent[0] / spent[1]


class Steps:
    """The schedule of a run with a fixed number of steps, tested after every epoch."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def done(self, step: int) -> float:
        """Return the part of the schedule at a step, counted from 0."""
        return (step + 1) / (self.steps + 1)

    def has_time_for_a_test(self) -> bool:
        """Return whether to test at the end of an epoch that does not end the run."""
        return True


class Clock:
    """The schedule of a run of `budget` seconds, last test included; earlier processes have `spent` some of them."""

    def __init__(self, budget: float, spent: float) -> None:
        self.budget = budget
        self.test_seconds = 0.0  # how long a test takes
        self._started = time.monotonic() - spent
        self._first: int | None = None  # the first step of this process

    def elapsed(self) -> float:
        """Return the seconds spent on the run."""
        return time.monotonic() - self._started

    def done(self, step: int) -> float:
        """Return the part of the schedule at a step; 1 when only the time for a test is left."""
        if self._first is None:
            self._first = step
        return min(1.0, self.elapsed() / max(self.budget - self.test_seconds, 1e-9))

    def ended(self, step: int) -> bool:
        """Return whether only the time for a test is left; every process trains at least one step."""
        return self._first is not None and step > self._first and self.done(step) >= 1

    def has_time_for_a_test(self) -> bool:
        """Return whether there is time for a test now, some training, and the last test."""
        return self.elapsed() + 2.5 * self.test_seconds < self.budget
