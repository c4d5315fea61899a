"""A training under way, and the moments at which it calls its callbacks."""

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
