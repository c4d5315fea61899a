"""What the processes of tests/training/test_distributed.py run together: `fit` in float64, on a small data set."""

import itertools
import os
import signal
from pathlib import Path

import torch

import ltpa
from ltpa.training import trainer

IMAGES, TEST, CLASSES = 80, 30, 4


def tiny_data() -> ltpa.Dataset:
    """Noise with labels; 80 images in batches of 16 are five steps an epoch."""
    generator = torch.Generator().manual_seed(3)

    def split(count: int) -> ltpa.Split:
        images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return ltpa.Split(images, torch.arange(count) % CLASSES)

    classes = tuple("abcd")
    return ltpa.Dataset("noise", classes, split(IMAGES), split(TEST), (0.5, 0.4, 0.6), (0.25, 0.3, 0.2))


def tiny_config(folder: Path | str, **changes: object) -> ltpa.TrainConfig:
    """20 steps of a model of a 32nd of the paper's width."""
    settings = {
        "model": "vgg-att3-concat-add",
        "width": 1 / 32,
        "epochs": 4,
        "batch_size": 16,
        "optimizer": "sgd",
        "progressive_resizing": False,
        "learning_rate": 0.05,
        "precision": "fp32",
        "device": "cpu",
        "seed": 5,
        "run_dir": folder,
    }
    return ltpa.TrainConfig(**{**settings, **changes})


def refused(folder: Path, data: ltpa.Dataset, **changes: object) -> None:
    """Try to train; all processes end it together, the first with the error, the others without a word."""
    try:
        ltpa.fit(tiny_config(folder, **changes), data)
    except (ValueError, SystemExit) as error:
        print(f"refused: {error}" if isinstance(error, ValueError) else "silent")


def train_after_refusals(folder: Path) -> None:
    """Try to train what cannot be trained; then train one run, and the usual one."""
    other = tiny_data()
    other.train.images[3, 0, 0, 0] += int(os.environ["RANK"])  # as if one machine had other files
    refused(folder, other)
    refused(folder, tiny_data(), batch_size=15)
    ltpa.fit(tiny_config(folder.with_name("first"), epochs=1), tiny_data())
    train(folder)


def train(folder: Path, number: int = signal.SIGTERM, before_step: int = -1, **changes: object) -> None:
    """Train in float64 and print a sum of the weights; a signal `number` comes to the last process before a step."""
    torch.set_default_dtype(torch.float64)
    plain, rank, steps = trainer.train_step, int(os.environ["RANK"]), itertools.count()

    def step(*args: object, **settings: object) -> object:
        if next(steps) == before_step and rank == int(os.environ["WORLD_SIZE"]) - 1:
            os.kill(os.getpid(), number)
        return plain(*args, **settings)

    trainer.train_step = step
    run = ltpa.fit(tiny_config(folder, **changes), tiny_data())
    print(f"sum {sum(p.double().abs().sum().item() for p in run.model.state_dict().values())!r}")


def train_as_users_do(folder: Path, number: int = signal.SIGTERM, before_step: int = -1) -> None:
    """Train with Muon, on small pictures first."""
    train(folder, number, before_step, optimizer="muon", progressive_resizing=True)
