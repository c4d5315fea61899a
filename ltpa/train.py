"""Training: `fit(config)` makes a run, a folder that can be killed at any moment and goes on where it was.

What happens in step k is a function of the settings and of k alone: the order of the samples of (seed, epoch), the
augmentation of (seed, epoch, sample), dropout of (seed, step), the learning rate of the step. So a checkpoint needs
no random state, and a resumed run on a CPU gives the same weights, bit by bit.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .augment import augmented_batch, choose_augmentation
from .backbones import check_images
from .checkpoint import (
    load_checkpoint,
    load_tensors,
    remove_checkpoints,
    remove_parts,
    save_checkpoint,
)
from .config import TrainConfig
from .data import Data, Split, hold_out, load_data
from .health import problems
from .inference import choose_device, choose_precision, examine, to_float
from .interrupts import interrupts
from .models import create_model
from .progress import Progress
from .runs import (
    Run,
    claim_folder,
    fill,
    locked,
    read_history,
    rescue_weights,
    save_epoch,
    save_snapshot,
    snapshot_indices,
)
from .schedule import Clock, Steps, one_cycle
from .step import optimiser, train_step

SAVE_MINUTES = 5.0  # a long epoch is saved this often
CHECKED_STEPS = 20  # so often it is looked whether the loss is still a number, for which a GPU has to wait
TIMED_STEPS = 5  # after the first one, which is slower; then it is said how long the run will take


class TrainingDiverged(FloatingPointError):
    """Loss or weights are no longer finite numbers; the weights of the last finished epoch are kept."""


def fit(
    config: TrainConfig,
    data: Data | None = None,
    *,
    resume: bool = True,
    on_epoch: Callable[[Run], None] | None = None,
    progress: bool = True,
) -> Run:
    """Trains a model, or goes on with a run that was interrupted; returns at once if it is complete.

    SGD with Nesterov momentum and a one-cycle schedule (linear up over a quarter of the steps, or of the minutes where
    those are set, linear down to zero); test accuracy after every epoch, of the weights that are saved; nothing is
    chosen by it.

    SIGTERM and Ctrl-C (the notebook's stop button) take effect after the step under way, when it is saved. What cannot
    be written in between is reported, and training goes on. Only one process at a time trains in a folder: a second
    one on the same machine waits for it.

    Args:
        config: the settings.
        data: the data set; None loads the one that the settings name (`data_for`). It is used as it is: a data set of
            one's own is split for validation with `hold_out`.
        resume: go on with what `config.path` holds; False refuses a folder that holds a run.
        on_epoch: called with the run after every epoch, and once at the start of a resumed run.
        progress: show a progress bar and messages on standard output; otherwise nothing is printed.

    Raises:
        ValueError: settings and machine, or settings and data, or settings and run folder do not fit together.
        FileExistsError: resume is False and the folder holds a run.
        TrainingDiverged: the loss is not finite.
        OSError: the run folder cannot be written, at the start or after the last epoch (the message then says where
            the weights are instead); what it holds stays.
    """
    say = tqdm.write if progress else (lambda message: None)
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    data = data_for(config) if data is None else data
    for note in data.notes:
        say(f"note: {note}")
    _check_data(data)
    path = config.path
    with locked(path, say), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        claim_folder(path, config, data, resume)
        for folder in (path, path / "checkpoints", path / "snapshots"):
            remove_parts(folder)
        _seed(config.seed, device)
        model = create_model(
            config.model,
            len(data.classes),
            width=config.width,
            normalizer=config.normalizer,
            dropout=config.dropout,
            mean=data.mean,
            std=data.std,
        ).to(device, memory_format=torch.channels_last)
        run = Run(config, data.classes, model.eval(), path, notes=list(data.notes))

        def note(message: str) -> None:
            run.notes.append(message)
            say(f"note: {message}")

        state = _State.start(run, dtype, device)
        from_checkpoint = state.restore(say, note)
        if run.history and on_epoch:
            on_epoch(run)
        if not run.complete:
            _train(run, state, data, device, dtype, on_epoch, progress, say, note)
        elif from_checkpoint:
            save_epoch(run)  # the run may have ended when this could not be written
        remove_checkpoints(path / "checkpoints")
    return run


def data_for(config: TrainConfig, download: bool = True) -> Data:
    """The data set that the settings name; where they ask for validation, the held-out part stands in for the test.

    Raises:
        See `ltpa.load_data`.
    """
    data = load_data(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
        download=download,
    )
    return hold_out(data, config.validation) if config.validation else data


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The samples of every step of an epoch: a permutation given by (seed, epoch), in batches of nearly equal size.

    No sample is left out, and no batch is a small remainder: sizes differ by one at most. Only where one sample would
    be left alone (an odd number in pairs), a batch of three takes it in: batch norm compares images.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return list(order.tensor_split(_steps_per_epoch(count, batch_size)))


def _steps_per_epoch(count: int, batch_size: int) -> int:
    return max(1, min(math.ceil(count / batch_size), count // 2))


@dataclass
class _State:
    """What a checkpoint holds beside the run itself: optimiser, scaler, position, sums of the epoch under way."""

    run: Run
    optimiser: torch.optim.SGD
    scaler: torch.amp.GradScaler
    step: int = 0
    sums: Tensor | None = None  # of the epoch under way, on the device: loss, correct, samples
    seconds: float = 0.0  # of the epoch under way

    @classmethod
    def start(cls, run: Run, dtype: torch.dtype, device: torch.device) -> "_State":
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        return cls(run, optimiser(run.model, run.config), scaler, sums=_zeros(device))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def save(self) -> None:
        tensors = {f"model.{name}": value for name, value in self.run.model.state_dict().items()}
        for number, parameter in enumerate(self._parameters()):
            momentum = self.optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{number}"] = momentum
        meta = {
            "history": self.run.history,
            "sums": self.sums.tolist(),
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.run.path / "checkpoints", self.step, tensors, meta)

    def restore(self, say: Callable[[str], None], note: Callable[[str], None]) -> bool:
        """Takes up the newest whole checkpoint (then True); without one, a complete run's weights; or starts anew."""
        run = self.run
        found = load_checkpoint(run.path / "checkpoints", note)
        if found is not None:
            tensors, meta = found
            weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            fill(run.model, weights, run.path / "checkpoints")
            for number, parameter in enumerate(self._parameters()):
                if f"momentum.{number}" in tensors:
                    momentum = tensors[f"momentum.{number}"].to(parameter.device)
                    self.optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
            self.step, self.seconds = meta["step"], meta["seconds"]
            self.sums = torch.tensor(meta["sums"], dtype=self.sums.dtype, device=self.sums.device)
            if meta["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(meta["scaler"])
            run.history[:] = meta["history"]
            planned = run.config.planned_epochs
            epochs = f"{len(run.history)} epochs" if planned is None else f"{len(run.history)} of {planned} epochs"
            say(f"going on with {run.path} after {epochs} (step {self.step})")
        elif (run.path / "weights.safetensors").is_file() and (run.path / "history.csv").is_file():
            run.history[:] = read_history(run.path)
            if run.complete:
                weights = run.path / "weights.safetensors"
                fill(run.model, load_tensors(weights)[0], weights)
                say(f"{run.path} is complete: nothing to train")
            else:
                run.history.clear()
                note(f"{run.path} has no checkpoint to go on from: it is trained from the start")
        return found is not None


def _train(
    run: Run,
    state: _State,
    data: Data,
    device: torch.device,
    dtype: torch.dtype,
    on_epoch: Callable[[Run], None] | None,
    progress: bool,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    config = run.config
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    mode = choose_augmentation(config.augment, config.dataset)
    per_epoch = _steps_per_epoch(len(images), config.batch_size)
    if config.minutes is None:
        schedule = Steps(per_epoch * config.epochs)
    else:
        spent = sum(row["seconds"] for row in run.history) + state.seconds
        schedule = Clock(60 * config.minutes, spent)
        schedule.tested(_test_seconds(run, data.test))
    watched = data.test.images[snapshot_indices(data, config.snapshots)] if config.snapshots else None

    def failed(save: Callable[..., Any], *args: Any) -> OSError | None:
        """Saves; where that cannot be, the error: it is noted, and what was saved before is still there."""
        try:
            save(*args)
        except OSError as error:
            note(f"step {state.step} is not saved, what was saved before stays: {error}")
            return error
        return None

    for folder in ("checkpoints", "snapshots") if config.snapshots else ("checkpoints",):
        (run.path / folder).mkdir(exist_ok=True)
    if watched is not None and state.step == 0:
        failed(save_snapshot, run, watched, 0)
    told: set[str] = set()  # each problem is told once
    first, saved, error = state.step, time.monotonic(), None
    with _progress(schedule, state, progress) as bar, interrupts() as interrupted:
        while not run.complete:
            epoch, position = divmod(state.step, per_epoch)
            batches = epoch_batches(len(images), config.batch_size, config.seed, epoch)
            tick = time.monotonic()
            run.model.train()
            for number in range(position, per_epoch):
                index = batches[number].to(device)
                batch = augmented_batch(images, index, mode, config.seed, epoch)
                done = schedule.done(state.step)
                rate = one_cycle(done, config.learning_rate)
                _seed(config.seed * 1_000_003 + state.step, device)
                loss, correct = _step(run.model, state, batch, labels[index], rate, dtype)
                state.sums += torch.stack([loss * len(index), correct, torch.full_like(loss, len(index))])
                state.step += 1
                bar.update(_position(schedule, state), partial(_words, state, run, epoch))
                if state.step % CHECKED_STEPS == 0 and not math.isfinite(state.sums[0].item()):
                    _check_finite(state, run)
                if state.step - first in (1, 1 + TIMED_STEPS):
                    state.sums.tolist()  # waits for the GPU
                    if state.step - first == 1:
                        started = time.monotonic()
                    elif isinstance(schedule, Steps):
                        left = (schedule.steps - state.step) * (time.monotonic() - started) / TIMED_STEPS
                        left *= 1 + len(data.test) / (3 * len(images))  # a test costs a third of training on as many
                        say(f"{config.epochs} epochs on {_describe(device, dtype)}: about {_duration(left)} to go")
                if number + 1 == per_epoch or schedule.ended(state.step):
                    break  # saved below, with the results of the epoch
                if interrupted or time.monotonic() - saved > SAVE_MINUTES * 60:
                    state.seconds += time.monotonic() - tick
                    _check_finite(state, run)
                    error = failed(state.save)
                    tick = saved = time.monotonic()
                    if interrupted:
                        say(_interrupted_words(f"step {state.step}", error))
                        interrupted.raise_again()
            _check_finite(state, run)
            if not schedule.ended(state.step) and not schedule.tests():
                state.seconds += time.monotonic() - tick
                continue
            before = time.monotonic()
            examined = examine(run.model, data.test, config.precision)
            scores = dict(examined.scores)
            loss, correct, seen = state.sums.tolist()
            schedule.tested(time.monotonic() - before)
            state.seconds += time.monotonic() - tick
            if isinstance(schedule, Clock):
                scores["schedule"] = 1.0 if schedule.ended(state.step) else done
            epoch = len(run.history)
            run.history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": loss / seen,
                    "train_accuracy": correct / seen,
                    "test_loss": scores.pop("loss"),
                    "test_accuracy": scores.pop("accuracy"),
                    "learning_rate": rate,
                    "seconds": state.seconds,
                    **scores,
                }
            )
            state.sums, state.seconds = _zeros(device), 0.0
            run.model.eval()
            error = failed(save_epoch, run)
            if error is None and watched is not None:
                failed(save_snapshot, run, watched, epoch + 1)
            if error is None:
                failed(state.save)
            saved = time.monotonic()
            bar.update(_position(schedule, state), partial(_words, state, run, epoch))
            for problem in problems(data.test.labels, examined.predictions, examined.strongest):
                if problem not in told:
                    told.add(problem)
                    note(f"after epoch {epoch + 1}: {problem}")
            if error is not None and run.complete:
                rescue_weights(run, error)
            if on_epoch:
                on_epoch(run)
            if interrupted:
                say(_interrupted_words(f"epoch {epoch + 1}", error))
                interrupted.raise_again()
    if isinstance(schedule, Clock):
        say(
            f"{config.minutes:g} minutes on {_describe(device, dtype)}: {state.step / per_epoch:.1f} passes over the "
            f"training images, test accuracy {run.history[-1]['test_accuracy']:.1%}"
        )


def _test_seconds(run: Run, split: Split) -> float:
    """How long a test will take, from a small one; the first is slower and does not count."""
    few = split[: max(1, min(64, len(split) // 10))]
    for _ in range(2):
        started = time.monotonic()
        examine(run.model, few, run.config.precision)
    return (time.monotonic() - started) * len(split) / len(few)


def _progress(schedule: Steps | Clock, state: "_State", show: bool) -> Progress:
    """A bar over steps, or over seconds."""
    whole = schedule.steps if isinstance(schedule, Steps) else max(1, round(schedule.budget))
    return Progress(whole, _position(schedule, state), show)


def _position(schedule: Steps | Clock, state: "_State") -> int:
    if isinstance(schedule, Steps):
        return state.step
    return min(round(schedule.elapsed()), max(1, round(schedule.budget)))


def _interrupted_words(after: str, error: OSError | None) -> str:
    return f"interrupted after {after}; " + ("saved: call fit again to go on" if error is None else "it is not saved")


def _step(
    network: nn.Module, state: _State, batch: Tensor, labels: Tensor, rate: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    smoothing = state.run.config.label_smoothing
    settings = {"rate": rate, "smoothing": smoothing, "dtype": dtype}
    return train_step(network, state.optimiser, state.scaler, batch, labels, **settings)


def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def _check_finite(state: _State, run: Run) -> None:
    """Before anything is saved: the loss of the epoch so far is a number, and so are the weights."""
    finite = all(bool(value.isfinite().all()) for value in run.model.state_dict().values())
    if not finite or not math.isfinite(state.sums[0].item()):
        kept = f"the weights of epoch {len(run.history)} are kept in {run.path}" if run.history else "nothing was saved"
        raise TrainingDiverged(
            f"the {'loss' if finite else 'loss or a weight'} is not finite after step {state.step}; {kept}. "
            f"Try a lower learning rate (it was {run.config.learning_rate}) or precision='fp32'"
        )


def _seed(seed: int, device: torch.device) -> None:
    """`torch.manual_seed`, but only for the generators that `fit` uses and restores: not for those of other GPUs."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _check_data(data: Data) -> None:
    if data.train.labels.ndim != 1:
        raise ValueError("training needs one label an image; scenes of two objects are for looking, not for training")
    if len(data.train) < 2 or not len(data.test):
        raise ValueError(f"{len(data.train)} training and {len(data.test)} test images are too few to train and test")
    if len(data.classes) < 2 or not all(isinstance(name, str) for name in data.classes):
        raise ValueError(f"a classifier needs the names of at least two classes, not {data.classes!r}")
    for name, split in (("training", data.train), ("test", data.test)):
        if split.labels.shape != (len(split),) or split.labels.dtype != torch.int64:
            raise ValueError(f"{name} labels must be {len(split)} of int64, as many as images")
        outside = int(((split.labels < 0) | (split.labels >= len(data.classes))).sum())
        if outside:
            raise ValueError(f"{outside} {name} labels lie outside 0 ... {len(data.classes) - 1}, the known classes")
        if split.images.dtype not in (torch.uint8, torch.float32):
            raise TypeError(f"{name} images must be uint8 (or float32 in [0, 1]), not {split.images.dtype}")
        check_images(to_float(split.images[:1]))


def _words(state: _State, run: Run, epoch: int) -> tuple[str, str]:
    """What the progress bar says: the epoch; loss and accuracies so far."""
    loss, correct, seen = state.sums.tolist()
    words = [f"loss {loss / seen:.3f}, accuracy {correct / seen:.1%}"] if seen else []
    if run.history:
        words.append(f"test {run.history[-1]['test_accuracy']:.1%}")
    of = "" if run.config.planned_epochs is None else f"/{run.config.planned_epochs}"
    return f"epoch {epoch + 1}{of}", ", ".join(words)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _describe(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({os.cpu_count()} cores)"
    return f"{name} in {str(dtype).removeprefix('torch.')}"
