"""A training under way, the moments at which it calls its callbacks, and the errors that end it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..data.dataset import Split
from ..distributed import Processes
from ..inference import Evaluation
from ..models.classifier import AttentionOutput
from .checkpoint import State
from .loader import Loader, steps_per_epoch
from .optim import Clock, Steps
from .run import Run

# What the messages of a CPU, of CUDA, and of cuBLAS or cuDNN contain.
_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


@dataclass
class Trainer:
    """A training under way: what `fit` makes of the settings.

    Attributes:
        network: `run.model`, wrapped in DistributedDataParallel where several processes train it.
        precision, dtype: the setting, and the type of the convolutions that follows from it.
        peak, warm_up: the highest learning rate, and the part of the schedule in which it rises.
        smoothing: of the labels.
        progressive: whether the first part of the training sees smaller pictures.
        done, rate, pixels: part of the schedule, learning rate and part of the pictures' pixels at the last step.
        outputs: where the backbone is frozen, yields the network's answers for a part of the test images.
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
    warm_up: float
    smoothing: float
    seed: int
    progressive: bool
    outputs: Callable[[slice], Iterable[tuple[slice, AttentionOutput]]] | None = None
    callbacks: "list[Callback]" = field(default_factory=list)
    done: float = 0.0
    pixels: float = 1.0
    rate: float = 0.0
    ended: bool = False
    evaluation: Evaluation | None = None
    test_seconds: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in an epoch."""
        return steps_per_epoch(len(self.loader), self.batch_size)

    def call(self, moment: str) -> None:
        """Call a method of every callback."""
        for callback in self.callbacks:
            getattr(callback, moment)(self)


class Callback:
    """Methods that the training calls; override those you need.

    Callbacks given to `fit` are called in the first process only, after the training's own.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Run before the first step."""

    def on_step(self, trainer: Trainer) -> None:
        """Run after every step."""

    def on_epoch(self, trainer: Trainer) -> None:
        """Run after the test of every epoch, when `trainer.run.history` has its new row and is saved."""

    def on_stop(self, trainer: Trainer) -> None:
        """Run at the end: complete, interrupted or failed."""


class TrainingDiverged(FloatingPointError):
    """Loss or weights are not finite; the weights of the last finished epoch are kept."""


class OutOfMemory(MemoryError):
    """A batch does not fit into the device's memory; what was saved of the run is kept."""


def check_finite(trainer: Trainer) -> None:
    """Raise TrainingDiverged unless loss and weights are finite; call this before anything is saved."""
    state, run = trainer.state, trainer.run
    finite = all(bool(value.isfinite().all()) for value in run.model.state_dict().values())
    if trainer.processes.largest(not finite or not math.isfinite(state.sums[0].item()))[0]:
        kept = f"the weights of epoch {len(run.history)} are kept in {run.path}" if run.history else "nothing was saved"
        raise TrainingDiverged(
            f"the {'loss' if finite else 'loss or a weight'} is not finite after step {state.step}; {kept}. "
            f"Try a lower learning rate (it was {trainer.peak}) or precision='fp32'"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch found too little memory, on any device."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in _MEMORY)
