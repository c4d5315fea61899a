"""Training: `fit(config)` makes a run, a folder that can be killed at any moment and goes on where it was.

What happens in step k is a function of the settings and of k alone: the order of the samples of (seed, epoch), the
augmentation of (seed, epoch, sample), dropout of (seed, step), the learning rate of the step. So a checkpoint needs
no random state, and a resumed run on a CPU gives the same weights, bit by bit.

Under torchrun several processes share every batch (DistributedDataParallel). Which samples a step sees, and how they
are augmented, does not depend on how many there are; batch norm does: each process normalizes by its own part, and the
running statistics are averaged. So does dropout, which every process draws for itself.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.augment import choose_augmentation
from ..data.dataset import Dataset, Split
from ..distributed import Processes, joined
from ..inference import Evaluation, autocast, choose_device, choose_precision, evaluate_images, to_float
from ..progress import logger, messages
from .callbacks import AfterEpoch, Callback, TrainingDiverged, all_callbacks, check_finite, interrupts
from .checkpoint import State
from .inputs import check_alike, check_data, data_for, seed_generators
from .loader import Loader, epoch_batches, steps_per_epoch
from .optim import Clock, Steps, make_optimizer, one_cycle
from .run import Run, claim_folder, locked, restore

__all__ = ["OutOfMemory", "Trainer", "TrainingDiverged", "data_for", "fit", "train_epoch", "train_step"]


class OutOfMemory(MemoryError):
    """A batch does not fit into the device's memory; what was saved of the run stays."""


@dataclass
class Trainer:
    """A training under way: what `fit` has made of the settings.

    Attributes:
        network: `run.model`; wrapped where several processes share it.
        test: the images of the test after every epoch.
        precision, dtype: as in the settings, and of the convolutions.
        peak, smoothing: the highest learning rate, and label smoothing.
        done, rate: of the last step, the part of the schedule and the learning rate.
        ended: whether the time is up.
        evaluation, test_seconds: of the last test.
    """

    run: Run
    state: State
    network: nn.Module
    loader: Loader
    schedule: Steps | Clock
    test: Split
    processes: Processes
    precision: str
    dtype: torch.dtype
    batch_size: int
    peak: float
    smoothing: float
    seed: int
    callbacks: list[Callback] = field(default_factory=list)
    done: float = 0.0
    rate: float = 0.0
    ended: bool = False
    evaluation: Evaluation | None = None
    test_seconds: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """How many steps an epoch has."""
        return steps_per_epoch(len(self.loader), self.batch_size)

    def call(self, moment: str) -> None:
        """Call one of the methods of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, moment)(self)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: Tensor,
    labels: Tensor,
    *,
    rate: float,
    smoothing: float,
    dtype: torch.dtype,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Take one optimizer step on a batch; return its mean loss and how many predictions were right.

    Args:
        network: from images in [0, 1] to logits (N, num_classes), in training mode.
        scaler: disabled where the gradients need no scaling, as only those of fp16 do.
        images, labels: uint8 or float (N, 3, H, W), and int64 (N,), on the network's device.
        rate: the learning rate of this step.
        smoothing: label smoothing.
        dtype: of the convolutions, see `ltpa.inference.choose_precision`.
        weight: factor on the loss for the gradient; 1 unless the batch is a part of a larger one.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    with autocast(images.device, dtype):
        logits = network(to_float(images))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    optimizer.zero_grad()
    scaler.scale(loss * weight).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), (logits.argmax(1) == labels).sum()


def train_epoch(trainer: Trainer) -> None:
    """Train from the next step to the end of its epoch, or until the time is up."""
    state, processes = trainer.state, trainer.processes
    epoch, position = divmod(state.step, trainer.steps_per_epoch)
    whole = epoch_batches(len(trainer.loader), trainer.batch_size, trainer.seed, epoch)[position:]
    parts = [processes.share(index) for index in whole]
    state.since = time.monotonic()
    trainer.run.model.train()
    with closing(trainer.loader.batches(epoch, parts)) as batches:
        for index, (images, labels) in zip(whole, batches, strict=True):
            (trainer.done,) = processes.largest(trainer.schedule.done(state.step))
            trainer.rate = one_cycle(trainer.done, trainer.peak)
            seed_generators(trainer.seed * 1_000_003 + state.step + processes.rank * 500_009, images.device)
            loss, correct = train_step(
                trainer.network,
                state.optimizer,
                state.scaler,
                images,
                labels,
                rate=trainer.rate,
                smoothing=trainer.smoothing,
                dtype=trainer.dtype,
                weight=len(labels) * processes.count / len(index),
            )
            state.count(loss, correct, len(labels))
            trainer.call("on_step")
            if trainer.ended:
                break
    state.seconds, state.since = state.elapsed(), time.monotonic()


def finish_epoch(trainer: Trainer) -> None:
    """Test the network as it is, and append the results to the history."""
    run, state, processes = trainer.run, trainer.state, trainer.processes
    began = time.monotonic()
    trainer.evaluation = evaluate_images(run.model, trainer.test, trainer.precision, processes=processes)
    scores = dict(trainer.evaluation.scores)
    loss, correct, count = processes.total(state.sums).tolist()
    trainer.test_seconds, seconds = processes.largest(time.monotonic() - began, state.elapsed())
    row = {"epoch": len(run.history) + 1, "train_loss": loss / count, "train_accuracy": correct / count}
    row |= {"test_loss": scores.pop("loss"), "test_accuracy": scores.pop("accuracy")}
    run.history.append({**row, "learning_rate": trainer.rate, "seconds": seconds, **scores})
    state.next_epoch()
    run.model.eval()
    trainer.call("on_epoch")


def train(trainer: Trainer) -> None:
    """Train and test, epoch after epoch, until the run is complete."""
    run = trainer.run
    try:
        trainer.call("on_start")
        while not run.complete:
            train_epoch(trainer)
            check_finite(trainer)
            trainer.processes.average_norms(run.model)
            (is_time,) = trainer.processes.largest(trainer.ended or trainer.schedule.has_time_for_a_test())
            if is_time:
                finish_epoch(trainer)
    except RuntimeError as error:
        words = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # of a CPU; of CUDA; of cuBLAS and cuDNN
        if not isinstance(error, torch.cuda.OutOfMemoryError) and not any(word in str(error) for word in words):
            raise
    finally:
        trainer.call("on_stop")
    if not run.complete:  # not in the except block, whose traceback keeps the tensors of the step
        config, count = run.config, trainer.processes.count
        half = max(2, trainer.batch_size // (2 * count)) * count
        kept = any((run.path / "checkpoints").glob("step-*"))
        raise OutOfMemory(
            f"batch_size={trainer.batch_size} at width {config.width:g} and {config.image_size} pixels needs more "
            f"memory than {trainer.state.sums.device} has left; try batch_size={half} (which makes it another run), or "
            "a smaller width. "
            + (f"What was saved of this run stays in {run.path}" if kept else "Nothing of it was saved yet")
        )


def fit(
    config: TrainConfig,
    data: Dataset | None = None,
    *,
    resume: bool = True,
    callbacks: Sequence[Callback | Callable[[Run], None]] = (),
    progress: bool = True,
) -> Run:
    """Train a model, or go on with a run that was interrupted; return at once if it is complete.

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
        callbacks: see `ltpa.training.callbacks.Callback`; a function is called with the run after every epoch. A run
            that has epochs already calls `on_epoch` first, so that a curve begins with them.
        progress: show a progress bar and messages on standard output; otherwise nothing is printed.
    """
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    own = [callback if isinstance(callback, Callback) else AfterEpoch(callback) for callback in callbacks]
    notes: list[str] = []
    with ExitStack() as stack:
        processes = stack.enter_context(joined(device))
        stack.enter_context(messages(progress and processes.first, notes))
        data = processes.in_turn(data_for, config) if data is None else data
        for note in data.notes:
            logger.warning(note)
        processes.together(check_data, data, config.batch_size, processes)
        check_alike(processes, config.identity(), data, dtype)
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        processes.in_first(stack.enter_context, locked(config.path))
        processes.in_first(claim_folder, config, data, resume)
        seed_generators(config.seed, device)
        model = config.create_model(len(data.classes), mean=data.mean, std=data.std)
        model.classes = data.classes
        model.to(device).to(memory_format=torch.channels_last).eval()
        run = Run(config, data.classes, model, config.path, notes=notes)
        optimizer = make_optimizer(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        state = State.start(model, optimizer, dtype, run.history)
        processes.in_first(restore, run, state)
        state.copy_from_first(processes)
        trainer = _trainer(config, data, run, state, dtype, processes)
        trainer.callbacks = own if processes.first else []
        if run.history:
            trainer.call("on_epoch")
        if not run.complete:
            with interrupts() as interrupted:
                trainer.callbacks = all_callbacks(trainer, data, config.snapshots, progress, interrupted)
                train(trainer)
    return run


def _trainer(
    config: TrainConfig, data: Dataset, run: Run, state: State, dtype: torch.dtype, processes: Processes
) -> Trainer:
    device = state.sums.device
    steps = config.epochs * steps_per_epoch(len(data.train), config.batch_size)
    spent = sum(row["seconds"] for row in run.history) + state.seconds
    return Trainer(
        run=run,
        state=state,
        schedule=Steps(steps) if config.minutes is None else Clock(60 * config.minutes, spent),
        loader=Loader(data.train, device, choose_augmentation(config.augment, config.dataset), config.seed),
        network=processes.shared(run.model, device),
        test=data.test,
        processes=processes,
        precision=config.precision,
        dtype=dtype,
        batch_size=config.batch_size,
        peak=config.learning_rate,
        smoothing=config.label_smoothing,
        seed=config.seed,
    )
