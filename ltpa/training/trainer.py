"""The training loop: `fit` -> `train` -> `train_epoch` -> `train_step`.

Step k depends on the settings and on k alone: the order of the samples is a function of (seed, epoch), augmentation of
(seed, epoch, sample), dropout of (seed, step). So a checkpoint needs no random state, and a run that is interrupted and
resumed on a CPU gives the same weights, bit by bit.

Under torchrun several processes share every batch (DistributedDataParallel). Their number changes neither the samples
of a step nor their augmentation, but batch norm (each process normalizes its own part; running statistics are averaged)
and dropout (each process draws its own).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.augment import choose_augmentation
from ..data.dataset import Dataset
from ..distributed import Processes, joined
from ..inference import autocast, choose_device, choose_precision, evaluate_images, to_float
from ..models.networks import backbone_of
from ..progress import logger, messages
from .base import Callback, OutOfMemory, Trainer, TrainingDiverged, check_finite, is_out_of_memory
from .callbacks import all_callbacks, as_callbacks, interrupts
from .checkpoint import State
from .choices import chosen, log_choices, numbers_of
from .features import frozen_parts
from .inputs import check_alike, check_arguments, check_data, data_for, seed_generators
from .loader import Loader, epoch_batches, steps_per_epoch
from .optim import WARM_UP, Clock, Steps, grown_side, growth, make_optimizer, schedule
from .run import Run, claim_folder, facts_of, fingerprint, locked, new_run, restore

__all__ = ["OutOfMemory", "Trainer", "TrainingDiverged", "data_for", "fit", "train_epoch", "train_step"]


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: Tensor,
    labels: Tensor,
    *,
    factor: float,
    smoothing: float,
    dtype: torch.dtype,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Take one optimizer step on a batch; return its mean loss and the number of correct predictions.

    Args:
        network: maps images in [0, 1] to logits (N, num_classes); in training mode.
        scaler: enabled for fp16 only, whose gradients would underflow.
        images, labels: uint8 or float (N, 3, H, W), and int64 (N,), on the network's device.
        factor: on the learning rate that each group of parameters began with.
        smoothing: label smoothing.
        dtype: type of the convolutions.
        weight: factor on the loss before `backward`; 1 unless the batch is part of a larger one.
    """
    for group in optimizer.param_groups:
        group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
    with autocast(images.device, dtype):
        logits = network(to_float(images))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    optimizer.zero_grad()
    scaler.scale(loss * weight).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), (logits.argmax(1) == labels).sum()


def shrunk(images: Tensor, part: float) -> Tensor:
    """Return uint8 or float images (N, 3, H, W) at a part of their sides."""
    height, width = images.shape[-2:]
    size = [grown_side(height, part), grown_side(width, part)]
    if size == [height, width]:
        return images
    small = F.interpolate(to_float(images), size=size, mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)


def train_epoch(trainer: Trainer) -> None:
    """Train to the end of the epoch, or until the time is up."""
    state, processes = trainer.state, trainer.processes
    epoch, position = divmod(state.step, trainer.steps_per_epoch)
    whole = epoch_batches(len(trainer.loader), trainer.batch_size, trainer.seed, epoch)[position:]
    parts = [processes.share(index) for index in whole]
    state.since = time.monotonic()
    trainer.run.model.train()
    with closing(trainer.loader.batches(epoch, parts)) as batches:
        for index, (images, labels) in zip(whole, batches, strict=True):
            (trainer.done,) = processes.largest(trainer.schedule.done(state.step))
            factor = schedule(trainer.done, trainer.warm_up)
            part = growth(trainer.done) if trainer.progressive else 1.0
            images, trainer.pixels = shrunk(images, part), part**2
            trainer.rate = factor * trainer.peak
            seed_generators(trainer.seed * 1_000_003 + state.step + processes.rank * 500_009, images.device)
            loss, correct = train_step(
                trainer.network,
                state.optimizer,
                state.scaler,
                images,
                labels,
                factor=factor,
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
    """Test the network and append the results to the history."""
    run, state, processes = trainer.run, trainer.state, trainer.processes
    began = time.monotonic()
    trainer.evaluation = evaluate_images(
        run.model, trainer.test, trainer.precision, processes=processes, outputs=trainer.outputs
    )
    loss, correct, count = processes.total(state.sums).tolist()
    trainer.test_seconds, seconds = processes.largest(time.monotonic() - began, state.elapsed())
    row = {"epoch": len(run.history) + 1, "train_loss": loss / count, "train_accuracy": correct / count}
    scores = dict(trainer.evaluation.scores)
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
            (test,) = trainer.processes.largest(trainer.ended or trainer.schedule.has_time_for_a_test())
            if test:
                finish_epoch(trainer)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    finally:
        trainer.call("on_stop")
    if not run.complete:  # not in the except block, whose traceback keeps the tensors of the step
        count = trainer.processes.count
        half = max(2, trainer.batch_size // (2 * count)) * count
        kept = any((run.path / "checkpoints").glob("step-*"))
        raise OutOfMemory(
            f"batch_size={trainer.batch_size} at width {run.config.width:g} and {run.config.image_size} pixels needs "
            f"more memory than {trainer.state.sums.device} has left; try batch_size={half} (which makes it another "
            "run), or a smaller width. "
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
    """Train a model, or resume an interrupted run; a complete run is returned at once.

    The optimizer is Muon unless the settings name another. The learning rate rises for a part of the steps (or of the
    minutes) and then falls linearly to zero. The network is tested after every epoch, but the result chooses nothing:
    the run keeps the last weights.

    SIGTERM and Ctrl-C (a notebook's stop button) take effect after the current step, which is saved. A file that cannot
    be written is reported, and training continues. A second process on the same machine waits for the folder.

    Args:
        config: the settings. Under torchrun `batch_size` is divided among the processes.
        data: the data set, used as it is (`hold_out` splits it for validation); None loads what the settings name.
        resume: False refuses a folder that holds a run.
        callbacks: callbacks, or functions that are called with the run after every epoch; for a run that is resumed,
            also once at the start, so that a curve shows the earlier epochs.
        progress: show a progress bar and messages; False prints nothing.
    """
    check_arguments(config, data)
    own = as_callbacks(callbacks)
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    notes: list[str] = []
    with ExitStack() as stack:
        processes = stack.enter_context(joined(device))
        stack.enter_context(messages(progress and processes.first, notes))
        data = processes.in_turn(data_for, config) if data is None else data
        for note in data.notes:
            logger.warning(note)
        given, config = config, chosen(config, data)
        log_choices(given, config)
        numbers = numbers_of(config)
        processes.together(check_data, data, numbers.batch_size, processes)
        check_alike(processes, config.identity(), data, dtype)
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        processes.in_first(stack.enter_context, locked(config.path))
        processes.in_first(claim_folder, config, data, resume)
        seed_generators(config.seed, device)
        run = new_run(config, data, device, notes)
        optimizer = make_optimizer(
            run.model,
            optimizer=numbers.optimizer,
            learning_rate=numbers.learning_rate,
            weight_decay=config.weight_decay,
            slow=backbone_of(run.model).parameters() if config.pretrained else (),
        )
        state = State.start(run.model, optimizer, dtype, run.history)
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
        run.model.facts = facts_of(config, run.history, fingerprint(data))
    return run


def _trainer(
    config: TrainConfig, data: Dataset, run: Run, state: State, dtype: torch.dtype, processes: Processes
) -> Trainer:
    device = state.sums.device
    numbers = numbers_of(config)
    steps = numbers.epochs * steps_per_epoch(len(data.train), numbers.batch_size)
    spent = sum(row["seconds"] for row in run.history) + state.seconds
    mode = choose_augmentation(config.augment, config.dataset, config.pretrained)
    loader, test_loader = Loader(data.train, device, mode, config.seed), None
    network: nn.Module = run.model
    if config.freeze:
        network, loader, test_loader = frozen_parts(run, data, device, mode, dtype)
    return Trainer(
        run=run,
        state=state,
        schedule=Steps(steps) if config.minutes is None else Clock(60 * config.minutes, spent),
        loader=loader,
        network=processes.shared(network, device),
        outputs=None if test_loader is None else test_loader.outputs,
        test=data.test,
        processes=processes,
        precision=config.precision,
        dtype=dtype,
        batch_size=numbers.batch_size,
        peak=numbers.learning_rate,
        warm_up=WARM_UP[numbers.optimizer],
        smoothing=config.label_smoothing,
        seed=config.seed,
        progressive=config.progressive_resizing,
    )
