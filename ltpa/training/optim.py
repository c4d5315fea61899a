"""The optimizer, the learning rate, and when a run ends: after so many steps, or by the clock."""

import time

import torch
from torch import nn

MOMENTUM = 0.9
WARM_UP = 0.25  # of the schedule: the learning rate rises, then falls to zero


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum; matrices and filters decay, but not biases, norms and `u`.

    Any optimizer would do: `train_step` sets the rate of all groups, and checkpoints hold whatever tensors it keeps.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=MOMENTUM, nesterov=True)


def one_cycle(done: float, peak: float) -> float:
    """Return the learning rate at `done` in [0, 1] of the schedule: linear up to the peak, then down to zero."""
    return peak * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


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
