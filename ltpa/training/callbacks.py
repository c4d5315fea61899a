"""What happens around the training loop: saving, progress, snapshots of maps, health checks, the clock, interrupts."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ..cores import available_cores
from ..data.dataset import Dataset
from ..errors import counted
from ..inference import evaluate_images
from ..progress import Progress, logger
from .base import Callback, Trainer, check_finite
from .checkpoint import load_tensors, remove_checkpoints
from .health import problems
from .optim import Clock, Steps, computing
from .run import Run, rescue_weights, save_epoch, save_snapshot, snapshot_files, snapshot_indices

SAVE_MINUTES = 5.0  # between saves within an epoch
CHECKED_STEPS = 20  # between checks that the loss is finite, each of which waits for the GPU
SLOW = 3  # times as long as expected: steps that get a warning,
LOST_SECONDS = 10.0  # if they also lose more than this


class AfterEpoch(Callback):
    """Call a function with the run after every epoch."""

    def __init__(self, function: Callable[[Run], None]) -> None:
        self._function = function

    def on_epoch(self, trainer: Trainer) -> None:
        """Call the function."""
        self._function(trainer.run)


def as_callbacks(callbacks: Sequence[Callback | Callable[[Run], None]]) -> list[Callback]:
    """Return what the user gave to `fit` as callbacks; refuse what could not be called."""
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list of callbacks or functions, not {callbacks!r:.60}")
    own: list[Callback] = []
    for callback in callbacks:
        if isinstance(callback, type):
            raise TypeError(f"callbacks must be objects, not classes: {callback.__name__}() in place of the class")
        if not isinstance(callback, Callback) and not callable(callback):
            raise TypeError(f"callbacks must be callbacks or functions of a run, not {callback!r:.60}")
        own.append(callback if isinstance(callback, Callback) else AfterEpoch(callback))
    return own


class TimeLimit(Callback):
    """End the training when only the time for a test is left."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_start(self, trainer: Trainer) -> None:
        """Estimate the time of a test from a small one, the second: the first is slower."""
        few = trainer.test[: max(1, min(64, len(trainer.test) // 10))]
        for _ in range(2):
            started = time.monotonic()
            evaluate_images(trainer.run.model, few, trainer.precision)
        seconds = (time.monotonic() - started) * len(trainer.test) / len(few) / trainer.processes.count
        (self._clock.test_seconds,) = trainer.processes.largest(seconds)

    def on_step(self, trainer: Trainer) -> None:
        """End the training in all processes after the same step."""
        trainer.ended = bool(trainer.processes.largest(self._clock.ended(trainer.state.step))[0])

    def on_epoch(self, trainer: Trainer) -> None:
        """Write the finished part of the schedule into the history; 1 ends the run."""
        self._clock.test_seconds = trainer.test_seconds
        (ended,) = trainer.processes.largest(self._clock.ended(trainer.state.step))
        trainer.run.history[-1]["schedule"] = 1.0 if ended else trainer.done

    def on_stop(self, trainer: Trainer) -> None:
        """Log how far the training came."""
        if trainer.run.complete:
            logger.info(
                f"{counted(self._clock.budget / 60, 'minute')} on {_machine(trainer)}: "
                f"{trainer.state.step / trainer.steps_per_epoch:.1f} passes over the training images, "
                f"test accuracy {trainer.run.history[-1]['test_accuracy']:.1%}"
            )


class HealthCheck(Callback):
    """Stop a training whose loss is not finite; warn once of each problem of predictions or maps."""

    def __init__(self) -> None:
        self._noted: set[str] = set()

    def on_step(self, trainer: Trainer) -> None:
        """Check the loss now and then."""
        state = trainer.state
        if state.step % CHECKED_STEPS == 0:
            (diverged,) = trainer.processes.largest(not math.isfinite(state.sums[0].item()))
            if diverged:
                check_finite(trainer)

    def on_epoch(self, trainer: Trainer) -> None:
        """Check the predictions and maps of the test."""
        if trainer.evaluation is None:
            return
        strongest = {} if trainer.run.model.name.endswith("-uniform") else trainer.evaluation.strongest
        for problem in problems(trainer.test.labels, trainer.evaluation.predictions, strongest):
            if problem not in self._noted:
                self._noted.add(problem)
                logger.warning(f"after epoch {len(trainer.run.history)}: {problem}")


class Slowdown(Callback):
    """Warn once that an epoch's steps take far longer than those after the first check, as beside other programs."""

    _expected = 0.0  # seconds a step on whole pictures
    _warmed_up = _noted = False

    def on_start(self, trainer: Trainer) -> None:
        """Start the clock, again after every test."""
        self._since, self._steps = time.monotonic(), 0.0

    on_epoch = on_start

    def on_step(self, trainer: Trainer) -> None:
        """Compare the steps of the epoch with the expected time, whenever `HealthCheck` has waited for the GPU."""
        self._steps += trainer.pixels
        count = self._steps
        if trainer.state.step % CHECKED_STEPS or self._noted:
            return
        seconds = time.monotonic() - self._since
        if not self._warmed_up:
            self._warmed_up = True
            self.on_start(trainer)
        elif not self._expected:
            self._expected = seconds / count
        elif seconds > SLOW * count * self._expected and seconds - count * self._expected > LOST_SECONDS:
            self._noted = True
            now = seconds / count
            logger.warning(
                f"a step takes {now * trainer.pixels:.2g} s on average, {now / self._expected:.1f} times as long as "
                "expected from the first steps: does another program use the same processor?"
            )


class Snapshots(Callback):
    """Save the maps of `count` test images, spread over the classes, before training and after every epoch.

    A resumed run keeps its own number of images.
    """

    def __init__(self, data: Dataset, count: int) -> None:
        self._data, self._count = data, count

    def on_start(self, trainer: Trainer) -> None:
        """Choose the images."""
        run, files = trainer.run, snapshot_files(trainer.run.path)
        kept = load_tensors(files[0])[0] if files else {}
        count = next((len(maps) for maps in kept.values()), self._count)
        self._images = self._data.test[snapshot_indices(self._data, count)].images
        (run.path / "snapshots").mkdir(exist_ok=True)
        if not trainer.state.step:
            attempt(trainer, save_snapshot, run, self._images, trainer.precision)
        elif not files:
            logger.warning(f"the maps are kept from epoch {len(run.history) + 1} on: snapshots was 0 before")

    def on_epoch(self, trainer: Trainer) -> None:
        """Save the maps."""
        attempt(trainer, save_snapshot, trainer.run, self._images, trainer.precision)


class Saving(Callback):
    """Save every few minutes, after every epoch, and when an interrupt ends the training.

    A failure to write is a warning; after the last epoch it is an error.
    """

    def __init__(self, interrupted: "Interrupted") -> None:
        self.interrupted = interrupted
        self.failure: OSError | None = None  # of the last attempt

    def on_start(self, trainer: Trainer) -> None:
        """Make the folder for checkpoints."""
        if trainer.processes.first:
            (trainer.run.path / "checkpoints").mkdir(exist_ok=True)
        self._saved = time.monotonic()

    def on_step(self, trainer: Trainer) -> None:
        """Save when it is time to; after an interrupt save and end, in all processes after the same step."""
        if trainer.ended or trainer.state.step % trainer.steps_per_epoch == 0:
            return  # saved with the results of the epoch
        is_time = time.monotonic() - self._saved > SAVE_MINUTES * 60
        stop, due = trainer.processes.largest(bool(self.interrupted), is_time)
        if stop or due:
            check_finite(trainer)
            trainer.processes.average_norms(trainer.run.model)
            self.failure = self._save_checkpoint(trainer)
        if stop:
            self.end(f"step {trainer.state.step}")

    def on_epoch(self, trainer: Trainer) -> None:
        """Save weights and history, then a checkpoint; a kill between the two only costs the time of an epoch."""
        self.failure = attempt(trainer, save_epoch, trainer.run) if trainer.processes.first else None
        if self.failure and trainer.run.complete:
            rescue_weights(trainer.run, self.failure)
        self.failure = self.failure or self._save_checkpoint(trainer)

    def end(self, after: str) -> None:
        """Log whether everything is saved, and raise KeyboardInterrupt or SystemExit."""
        saved = "it is not saved" if self.failure else "saved: call fit again to continue"
        logger.info(f"interrupted after {after}; {saved}")
        self.interrupted.raise_again()

    def _save_checkpoint(self, trainer: Trainer) -> OSError | None:
        state, sums = trainer.state, trainer.processes.total(trainer.state.sums)
        self._saved = time.monotonic()
        return attempt(trainer, state.save, trainer.run.path / "checkpoints", sums) if trainer.processes.first else None


class Ending(Callback):
    """End an interrupted or complete training after an epoch, when all other callbacks have run."""

    def __init__(self, saving: Saving) -> None:
        self._saving = saving

    def on_epoch(self, trainer: Trainer) -> None:
        """End all processes after the same epoch; a complete run needs no checkpoint."""
        (stop,) = trainer.processes.largest(bool(self._saving.interrupted))
        if stop:
            self._saving.end(f"epoch {len(trainer.run.history)}")
        if trainer.run.complete and trainer.processes.first:
            remove_checkpoints(trainer.run.path / "checkpoints")


class ProgressBar(Callback):
    """Show a bar over steps or seconds."""

    _bar: Progress | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Show the bar."""
        schedule = trainer.schedule
        self._whole = schedule.steps if isinstance(schedule, Steps) else max(1, round(schedule.budget))
        if isinstance(schedule, Steps):
            logger.info(f"{counted(self._whole // trainer.steps_per_epoch, 'epoch')} on {_machine(trainer)}")
        self._bar = Progress(self._whole, self._position(trainer))

    def on_step(self, trainer: Trainer) -> None:
        """Move the bar; after a test show its results."""
        if self._bar:
            self._bar.update(self._position(trainer), partial(_describe, trainer))

    on_epoch = on_step

    def on_stop(self, trainer: Trainer) -> None:
        """Leave the bar as it is."""
        if self._bar:
            self._bar.close()

    def _position(self, trainer: Trainer) -> int:
        schedule = trainer.schedule
        if isinstance(schedule, Clock):
            return min(round(schedule.elapsed()), self._whole)
        done = min(1.0, trainer.state.step / self._whole)
        return round(self._whole * (computing(done) if trainer.progressive else done))


def all_callbacks(
    trainer: Trainer, data: Dataset, snapshots: int, progress: bool, interrupted: "Interrupted"
) -> list[Callback]:
    """Return the callbacks of this module and the trainer's own, in the order of their calls.

    Only the first process writes snapshots and shows a bar.
    """
    first, schedule, saving = trainer.processes.first, trainer.schedule, Saving(interrupted)
    clock = [TimeLimit(schedule)] if isinstance(schedule, Clock) else []
    maps = [Snapshots(data, snapshots)] if first and snapshots else []
    bar = [ProgressBar()] if first and progress else []
    return [*clock, HealthCheck(), Slowdown(), *maps, saving, *bar, *trainer.callbacks, Ending(saving)]


def attempt(trainer: Trainer, save: Callable[..., Any], *arguments: Any) -> OSError | None:
    """Save something; warn of an OSError and return it. What was saved before is kept."""
    try:
        save(*arguments)
    except OSError as error:
        logger.warning(f"step {trainer.state.step} is not saved; what was saved before is kept: {error}")
        return error
    return None


class Interrupted:
    """Whether a signal to stop has come."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def raise_again(self) -> None:
        """Raise KeyboardInterrupt for Ctrl-C and the notebook's stop button, SystemExit for SIGTERM."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.number or signal.SIGTERM))  # none: another process got the signal

    def _set(self, number: int, _: object) -> None:
        self.number = number


@contextmanager
def interrupts() -> Iterator[Interrupted]:
    """Within a `with` block, let SIGINT and SIGTERM only set a flag, so that no step or save is cut in two."""
    interrupted = Interrupted()
    with handled(interrupted._set, "SIGINT", "SIGTERM"):
        yield interrupted


@contextmanager
def handled(handler: Callable[[int, Any], object], *names: str) -> Iterator[None]:
    """Within a `with` block in the main thread, let a function handle the signals that this system has."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier or signal.SIG_DFL)  # None: one that was not set in Python


def _describe(trainer: Trainer) -> tuple[str, str]:
    """Return what the bar shows: the epoch; loss and accuracies so far."""
    run, planned = trainer.run, trainer.run.config.planned_epochs
    loss, correct, count = trainer.state.sums.tolist()
    words = [f"loss {loss / count:.3f}, accuracy {correct / count:.1%}"] if count else []
    if run.history:
        words.append(f"test {run.history[-1]['test_accuracy']:.1%}")
    epoch = math.ceil(trainer.state.step / trainer.steps_per_epoch)
    return f"epoch {epoch}" + (f"/{planned}" if planned else ""), ", ".join(words)


def _machine(trainer: Trainer) -> str:
    device, count = trainer.state.sums.device, trainer.processes.count
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({available_cores()} cores)"
    return f"{name} in {str(trainer.dtype).removeprefix('torch.')}" + (f", {count} processes" if count > 1 else "")
