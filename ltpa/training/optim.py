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
NORM_SHARE = 4.0  # with Muon: the rate of biases and norms, as a multiple of the rate of everything else
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
        gradients = []
        for group in self.param_groups:
            banks = [p for p in group["params"] if p.grad is not None] if group.get("filters") else []
            gradients += [(bank, bank.grad) for bank in banks]
            for shape in dict.fromkeys(bank.shape for bank in banks):
                self._step_filters([bank for bank in banks if bank.shape == shape], group["lr"])
            for bank in banks:
                bank.grad = None  # nothing is left for SGD
        loss = super().step(closure)
        for bank, gradient in gradients:
            bank.grad = gradient
        return loss

    def _step_filters(self, banks: list[Tensor], rate: float) -> None:
        """Step filter banks (C', C, h, w) of one shape, all at once."""
        directions = []
        for bank in banks:
            assert bank.grad is not None
            momentum = self.state[bank].setdefault("momentum_buffer", torch.zeros_like(bank))
            momentum.mul_(FILTER_MOMENTUM).add_(bank.grad)
            direction = bank.grad.add(momentum, alpha=FILTER_MOMENTUM)
            directions.append(direction.permute(0, 2, 3, 1))  # no copy in channels_last
        rows = torch.stack([direction.flatten(1) for direction in directions])
        steps = orthogonalized(rows).unflatten(2, directions[0].shape[1:])
        for bank, step in zip(banks, steps, strict=True):
            bank.mul_(len(bank) ** 0.5 / bank.norm().clamp(min=1e-12)).add_(step.permute(0, 3, 1, 2), alpha=-rate)


def orthogonalized(matrices: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """Return about U V^T of each matrix U S V^T: Newton-Schulz steps bring its singular values to between 0.7 and 1.2.

    Each step applies 3.4445 s - 4.7750 s^3 + 2.0315 s^5 to the singular values (Jordan et al. 2024). Three steps leave
    those that are below about a tenth of the Frobenius norm smaller. `matrices` are (N, rows, columns). GPUs that have
    bfloat16 compute in it.
    """
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    if x.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False):
        x = x.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def make_optimizer(
    model: nn.Module,
    *,
    optimizer: str = "muon",
    learning_rate: float,
    weight_decay: float,
    slow: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return an optimizer of a model's trainable parameters; matrices and filters decay, but not biases, norms and `u`.

    The rate of each group of parameters is the highest of its schedule. With "muon", the filters of all convolutions
    but the first do not decay; SGD moves the rest, biases and norms at four times the rate. The `slow` parameters,
    those of a pretrained backbone, learn at a tenth of the rate.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay, "lr": learning_rate},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "lr": learning_rate},
    ]
    if optimizer == "muon":
        banks = [p for p in model.parameters() if p.ndim == 4][1:]  # in the order of the layers
        _part_off(groups, banks, weight_decay=0.0, filters=True)
        _part_off(groups, _biases_and_norms(model), factor=NORM_SHARE)
    _part_off(groups, slow, factor=SLOW)
    groups = [group for group in groups if group["params"]]
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    kind = Muon if optimizer == "muon" else torch.optim.SGD
    return kind(groups, lr=learning_rate, momentum=MOMENTUM, nesterov=True)


def _part_off(
    groups: list[dict[str, Any]], parameters: Iterable[nn.Parameter], *, factor: float = 1.0, **options: Any
) -> None:
    """Move parameters into groups of their own, with other options and a factor on their rate."""
    chosen = {id(p) for p in parameters}
    for group in list(groups):
        moved = [p for p in group["params"] if id(p) in chosen]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            parted = {**group, "params": moved, **options}
            groups.append({**parted, "lr": factor * parted["lr"]})


def _biases_and_norms(model: nn.Module) -> list[nn.Parameter]:
    return [
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)
    ]


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
