"""The learning rate of a step, when a run ends, and when it is tested: by counting steps, or by the clock."""

import time

WARM_UP = 0.25  # of the schedule: the learning rate rises, then falls to zero


def one_cycle(done: float, peak: float) -> float:
    """One-cycle schedule: up from near zero to the peak over the first quarter, then down to zero (linear).

    Args:
        done: how much of the schedule is done, in [0, 1].
        peak: the highest learning rate.
    """
    return peak * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


class Steps:
    """A run of so many steps, tested after every epoch.

    Args:
        steps: how many.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def done(self, step: int) -> float:
        """The part of the schedule at which a step is taken (counted from 0)."""
        return (step + 1) / (self.steps + 1)

    def ended(self, step: int) -> bool:
        """Whether all is trained after so many steps."""
        return step >= self.steps

    def tests(self) -> bool:
        """Whether there is to be a test at the end of an epoch that does not end the run."""
        return True

    def tested(self, seconds: float) -> None:
        """Takes note of how long a test took."""


class Clock:
    """A run that ends after so many seconds, its last test included.

    Args:
        budget: seconds.
        spent: seconds that earlier processes have spent on the run.
    """

    def __init__(self, budget: float, spent: float) -> None:
        self.budget, self._test = budget, 0.0
        self._started = time.monotonic() - spent
        self._first: int | None = None  # the first step of this process

    def elapsed(self) -> float:
        """Seconds spent on the run."""
        return time.monotonic() - self._started

    def done(self, step: int) -> float:
        """The part of the schedule at which a step is taken; 1 where only the time for a test is left."""
        if self._first is None:
            self._first = step
        return min(1.0, self.elapsed() / max(self.budget - self._test, 1e-9))

    def ended(self, step: int) -> bool:
        """Whether only the time for a test is left; at least one step is trained, however little time there is."""
        return self._first is not None and step > self._first and self.done(step) >= 1

    def tests(self) -> bool:
        """Whether there is time for a test now, and for one at the end with some training before it."""
        return self.elapsed() + 2.5 * self._test < self.budget

    def tested(self, seconds: float) -> None:
        """Takes note of how long a test takes."""
        self._test = seconds
