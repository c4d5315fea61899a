"""Training: `fit(config)` makes a run, a folder that can be killed at any moment and goes on where it was.

What happens in step k is a function of the settings and of k alone: the order of the samples of (seed, epoch), the
augmentation of (seed, epoch, sample), dropout of (seed, step), the learning rate of the step. So a checkpoint needs
no random state, and a resumed run on a CPU gives the same weights, bit by bit.

Under torchrun several processes share every batch (DistributedDataParallel). Which samples a step sees, and how they
are augmented, does not depend on how many there are; batch norm does: each process normalizes by its own part, and the
running statistics are averaged. So does dropout, which every process draws for itself.
"""

import inspect
import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..config import TrainConfig
from ..data.augment import choose_augmentation
from ..data.dataset import Dataset, Split, hold_out, load_data
from ..distributed import ALONE, Processes, joined
from ..inference import choose_device, choose_precision, evaluate_images, to_float
from ..models.classifier import ImageClassifier, check_images
from ..progress import Progress
from .checkpoint import remove_checkpoints, remove_parts
from .health import problems
from .interrupts import interrupts
from .loader import Feed
from .run import Run, claim_folder, fingerprint, locked, rescue_weights, save_epoch, save_snapshot, snapshot_indices
from .schedule import Clock, Steps, one_cycle
from .state import State, zeros
from .step import train_step

SAVE_MINUTES = 5.0  # a long epoch is saved this often
CHECKED_STEPS = 20  # so often it is looked whether the loss is still a number, for which a GPU has to wait
TIMED_STEPS = 5  # after the first one, which is slower; then it is said how long the run will take


class OutOfMemory(MemoryError):
    """A batch does not fit into the device's memory; what was saved of the run stays."""


class TrainingDiverged(FloatingPointError):
    """Loss or weights are no longer finite numbers; the weights of the last finished epoch are kept."""


def fit(
    config: TrainConfig,
    data: Dataset | None = None,
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
        config: the settings. Under torchrun `batch_size` is divided among the processes.
        data: the data set; None loads the one that the settings name (`data_for`). It is used as it is: a data set of
            one's own is split for validation with `hold_out`.
        resume: go on with what `config.path` holds; False refuses a folder that holds a run.
        on_epoch: called with the run after every epoch, and once at the start of a resumed run; under torchrun in the
            first process only, as all that is printed and written.
        progress: show a progress bar and messages on standard output; otherwise nothing is printed.

    Raises:
        ValueError: settings and machine, or settings and data, or settings and run folder do not fit together.
        FileExistsError: resume is False and the folder holds a run.
        TrainingDiverged: the loss is not finite.
        OutOfMemory: the batch is too large for the device.
        ProcessLost: another process that trains this run has ended.
        OSError: the run folder cannot be written, at the start or after the last epoch (the message then says where
            the weights are instead); what it holds stays.
    """
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    with joined(device) as processes:
        progress = progress and processes.first
        say = tqdm.write if progress else (lambda message: None)
        data = processes.in_turn(lambda: data_for(config)) if data is None else data
        for note in data.notes:
            say(f"note: {note}")
        processes.together(lambda: _check(data, config, processes))
        _check_alike(processes, config, data, dtype)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
            processes.together(lambda: _enter_folder(stack, config, data, resume, say) if processes.first else None)
            _seed(config.seed, device)
            model = config.create_model(len(data.classes), mean=data.mean, std=data.std)
            model.classes = data.classes
            model.to(device, memory_format=torch.channels_last)
            run = Run(config, data.classes, model.eval(), config.path, notes=list(data.notes))

            def note(message: str) -> None:
                run.notes.append(message)
                say(f"note: {message}")

            state = State.start(run, dtype, device)
            from_checkpoint = processes.together(lambda: processes.first and state.restore(say, note))
            state.copy_from_first(processes)
            if run.history and on_epoch and processes.first:
                on_epoch(run)
            if not run.complete:
                machine = _Machine(device, dtype, processes)
                try:
                    _train(run, state, data, machine, on_epoch, progress, say, note)
                except RuntimeError as error:
                    if not _is_out_of_memory(error):
                        raise
                if not run.complete:  # out of the except block, whose traceback keeps the tensors of the step
                    raise OutOfMemory(_out_of_memory_words(run, machine))
            elif from_checkpoint:
                save_epoch(run)  # the run may have ended when this could not be written
            if processes.first:
                remove_checkpoints(config.path / "checkpoints")
    return run


def _enter_folder(
    stack: ExitStack, config: TrainConfig, data: Dataset, resume: bool, say: Callable[[str], None]
) -> None:
    stack.enter_context(locked(config.path, say))
    claim_folder(config.path, config, data, resume)
    for folder in (config.path, config.path / "checkpoints", config.path / "snapshots"):
        remove_parts(folder)


def data_for(config: TrainConfig, download: bool = True) -> Dataset:
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
        memory_gb=config.memory_gb,
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


@dataclass(frozen=True)
class _Machine:
    """What a run is computed with."""

    device: torch.device
    dtype: torch.dtype
    processes: Processes


def _train(
    run: Run,
    state: State,
    data: Dataset,
    machine: _Machine,
    on_epoch: Callable[[Run], None] | None,
    progress: bool,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    config, processes = run.config, machine.processes
    feed = Feed(data.train, machine.device, choose_augmentation(config.augment, config.dataset), config.seed, note)
    network = _shared(run.model, machine)
    per_epoch = _steps_per_epoch(len(data.train), config.batch_size)
    if config.minutes is None:
        schedule = Steps(per_epoch * config.epochs)
    else:
        spent = sum(row["seconds"] for row in run.history) + state.seconds
        schedule = Clock(60 * config.minutes, spent)
        schedule.tested(*processes.largest(_test_seconds(run, data.test, processes)))
    watched = data.test[snapshot_indices(data, config.snapshots)].images if config.snapshots else None

    def failed(save: Callable[..., Any], *args: Any) -> OSError | None:
        """Saves; where that cannot be, the error: it is noted, and what was saved before is still there."""
        if not processes.first:
            return None
        try:
            save(*args)
        except OSError as error:
            note(f"step {state.step} is not saved, what was saved before stays: {error}")
            return error
        return None

    def save() -> OSError | None:
        processes.average_norms(run.model)
        return failed(state.save, processes.total(state.sums))

    if processes.first:
        for folder in ("checkpoints", "snapshots") if config.snapshots else ("checkpoints",):
            (run.path / folder).mkdir(exist_ok=True)
    if watched is not None and state.step == 0:
        failed(save_snapshot, run, watched, 0)
    told: set[str] = set()  # each problem is told once
    first, saved, error = state.step, time.monotonic(), None
    with _progress(schedule, state, progress) as bar, interrupts() as interrupted:
        while not run.complete:
            epoch, position = divmod(state.step, per_epoch)
            whole = epoch_batches(len(data.train), config.batch_size, config.seed, epoch)[position:]
            parts = [processes.share(index) for index in whole]
            tick = time.monotonic()
            run.model.train()
            with closing(feed.batches(epoch, parts)) as batches:
                for number, index in enumerate(whole, position):
                    batch, labels = next(batches)
                    (done,) = processes.largest(schedule.done(state.step))
                    rate = one_cycle(done, config.learning_rate)
                    _seed(config.seed * 1_000_003 + state.step + processes.rank * 500_009, machine.device)
                    weight = len(labels) * processes.count / len(index)
                    loss, correct = _step(network, state, batch, labels, rate, machine.dtype, weight)
                    state.sums += torch.stack([loss * len(labels), correct, torch.full_like(loss, len(labels))])
                    state.step += 1
                    bar.update(_position(schedule, state), partial(_words, state, run, epoch))
                    if state.step % CHECKED_STEPS == 0:
                        _check_loss(state, run, processes)
                    if state.step - first in (1, 1 + TIMED_STEPS):
                        state.sums.tolist()  # waits for the GPU
                        if state.step - first == 1:
                            started = time.monotonic()
                        elif isinstance(schedule, Steps):
                            left = (schedule.steps - state.step) * (time.monotonic() - started) / TIMED_STEPS
                            left *= 1 + len(data.test) / (3 * len(data.train))  # a test costs a third of training
                            say(f"{config.epochs} epochs on {_describe(machine)}: about {_duration(left)} to go")
                    ended, stop, due = processes.largest(
                        schedule.ended(state.step), bool(interrupted), time.monotonic() - saved > SAVE_MINUTES * 60
                    )
                    if number + 1 == per_epoch or ended:
                        break  # saved below, with the results of the epoch
                    if stop or due:
                        state.seconds += time.monotonic() - tick
                        _check_finite(state, run, processes)
                        error = save()
                        tick = saved = time.monotonic()
                        if stop:
                            say(_interrupted_words(f"step {state.step}", error))
                            interrupted.raise_again()
            _check_finite(state, run, processes)
            processes.average_norms(run.model)
            ended, tests = processes.largest(ended, schedule.tests())
            if not ended and not tests:
                state.seconds += time.monotonic() - tick
                continue
            before = time.monotonic()
            examined = evaluate_images(run.model, data.test, config.precision, processes=processes)
            scores = dict(examined.scores)
            loss, correct, seen = processes.total(state.sums).tolist()
            seconds = time.monotonic() - before, state.seconds + time.monotonic() - tick
            test_seconds, state.seconds = processes.largest(*seconds)
            schedule.tested(test_seconds)
            if isinstance(schedule, Clock):
                scores["schedule"] = 1.0 if processes.largest(schedule.ended(state.step))[0] else done
            epoch = len(run.history)
            results = {"train_loss": loss / seen, "train_accuracy": correct / seen}
            results |= {"test_loss": scores.pop("loss"), "test_accuracy": scores.pop("accuracy")}
            results |= {"learning_rate": rate, "seconds": state.seconds, **scores}
            run.history.append({"epoch": epoch + 1, **results})
            state.sums, state.seconds = zeros(machine.device), 0.0
            run.model.eval()
            error = failed(save_epoch, run)
            if error is None and watched is not None:
                failed(save_snapshot, run, watched, epoch + 1)
            unsaved = failed(state.save, state.sums) if error is None else error
            saved = time.monotonic()
            bar.update(_position(schedule, state), partial(_words, state, run, epoch))
            for problem in problems(data.test.labels, examined.predictions, examined.strongest):
                if problem not in told:
                    told.add(problem)
                    note(f"after epoch {epoch + 1}: {problem}")
            if error is not None and run.complete:
                rescue_weights(run, error)
            if on_epoch and processes.first:
                on_epoch(run)
            if processes.largest(bool(interrupted))[0]:
                say(_interrupted_words(f"epoch {epoch + 1}", unsaved))
                interrupted.raise_again()
    if isinstance(schedule, Clock):
        say(
            f"{config.minutes:g} minutes on {_describe(machine)}: {state.step / per_epoch:.1f} passes over the "
            f"training images, test accuracy {run.history[-1]['test_accuracy']:.1%}"
        )


def _shared(model: ImageClassifier, machine: _Machine) -> nn.Module:
    """The model; for several processes so wrapped that `backward` averages the gradients over them."""
    if machine.processes.count == 1:
        return model
    wrapper = nn.parallel.DistributedDataParallel
    # Each process keeps the statistics of its own batch norms until they are averaged. The option has two names.
    names = inspect.signature(wrapper).parameters
    own_buffers = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
    devices = [machine.device] if machine.device.type == "cuda" else None
    return wrapper(model, device_ids=devices, **own_buffers)


def _test_seconds(run: Run, split: Split, processes: Processes) -> float:
    """How long a test will take, from a small one; the first is slower and does not count."""
    few = split[: max(1, min(64, len(split) // 10))]
    for _ in range(2):
        started = time.monotonic()
        evaluate_images(run.model, few, run.config.precision)
    return (time.monotonic() - started) * len(split) / len(few) / processes.count


def _progress(schedule: Steps | Clock, state: State, show: bool) -> Progress:
    """A bar over steps, or over seconds."""
    whole = schedule.steps if isinstance(schedule, Steps) else max(1, round(schedule.budget))
    return Progress(whole, _position(schedule, state), show)


def _position(schedule: Steps | Clock, state: State) -> int:
    if isinstance(schedule, Steps):
        return state.step
    return min(round(schedule.elapsed()), max(1, round(schedule.budget)))


def _interrupted_words(after: str, error: OSError | None) -> str:
    return f"interrupted after {after}; " + ("saved: call fit again to go on" if error is None else "it is not saved")


def _step(
    network: nn.Module,
    state: State,
    batch: Tensor,
    labels: Tensor,
    rate: float,
    dtype: torch.dtype,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    settings = {"rate": rate, "smoothing": state.run.config.label_smoothing, "dtype": dtype, "weight": weight}
    return train_step(network, state.optimizer, state.scaler, batch, labels, **settings)


def _is_out_of_memory(error: RuntimeError) -> bool:
    words = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # of a CPU; of CUDA; of cuBLAS and cuDNN
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(word in str(error) for word in words)


def _out_of_memory_words(run: Run, machine: _Machine) -> str:
    config, count = run.config, machine.processes.count
    half = max(2, config.batch_size // (2 * count)) * count
    kept = any((run.path / "checkpoints").glob("step-*"))
    return (
        f"batch_size={config.batch_size} at width {config.width:g} and {config.image_size} pixels needs more memory "
        f"than {machine.device} has left; try batch_size={half} (which makes it another run), or a smaller width. "
        + (f"What was saved of this run stays in {run.path}" if kept else "Nothing of this run was saved yet")
    )


def _check_loss(state: State, run: Run, processes: Processes) -> None:
    """Within an epoch: the cheaper of the two checks."""
    if processes.largest(not math.isfinite(state.sums[0].item()))[0]:
        _check_finite(state, run, processes)


def _check_finite(state: State, run: Run, processes: Processes = ALONE) -> None:
    """Before anything is saved: the loss of the epoch so far is a number, and so are the weights."""
    finite = all(bool(value.isfinite().all()) for value in run.model.state_dict().values())
    if processes.largest(not finite or not math.isfinite(state.sums[0].item()))[0]:
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


def _check(data: Dataset, config: TrainConfig, processes: Processes) -> None:
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
        if split.dtype not in (torch.uint8, torch.float32):
            raise TypeError(f"{name} images must be uint8 (or float32 in [0, 1]), not {split.dtype}")
        check_images(to_float(split[:1].images))
    count, size = processes.count, config.batch_size
    if size % count or size < 2 * count:
        nearest = max(2, round(size / count)) * count
        raise ValueError(
            f"batch_size={size} is divided among {count} processes, which needs a multiple of {count}, from "
            f"{2 * count} up (batch norm compares images): take batch_size={nearest}, or another number of processes"
        )
    if count > 1 and len(data.train) // _steps_per_epoch(len(data.train), size) < 2 * count:
        raise ValueError(f"{len(data.train)} training images are too few for {count} processes; start fewer")


def _check_alike(processes: Processes, config: TrainConfig, data: Dataset, dtype: torch.dtype) -> None:
    """All processes have the same settings and images, and compute in the same precision."""
    if processes.count == 1:
        return
    own = processes.together(lambda: {**config.identity(), **fingerprint(data), "precision": str(dtype)})
    everyone = processes.gather(own)

    def compare() -> None:
        for rank, other in enumerate(everyone):
            differing = [f"{name} ({own[name]!r}, {value!r})" for name, value in other.items() if own[name] != value]
            if differing:
                raise ValueError(
                    f"processes {processes.rank} and {rank} differ in {'; '.join(differing)}; give all the same "
                    "options, the same data and, where their hardware differs, the same precision"
                )

    processes.together(compare)


def _words(state: State, run: Run, epoch: int) -> tuple[str, str]:
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


def _describe(machine: _Machine) -> str:
    device, count = machine.device, machine.processes.count
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({os.cpu_count()} cores)"
    many = f", {count} processes" if count > 1 else ""
    return f"{name} in {str(machine.dtype).removeprefix('torch.')}{many}"
