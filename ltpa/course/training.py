"""Notebook 01: train a network."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import QUICK, TrainConfig
from ..data.dataset import Split
from ..inference import choose_device, evaluate_images
from ..training.run import Run
from . import setup, summary
from .setup import report as report

# Whoever changes none of these wants the defaults, which are made for a GPU.
_SIZE = ("width", "dataset", "image_size", "train_limit", "test_limit", "epochs")


def parameters(namespace: Mapping[str, Any]) -> TrainConfig:
    """Return the notebook's parameters, checked, from its `globals()`.

    Without a GPU, and where no parameter that makes a run long was changed, the quick parameters take the place of the
    unchanged ones, and a line says so: the default run would take hours.
    """
    config = setup.parameters(namespace, TrainConfig)
    changed = {name for name, value in TrainConfig.defaults().items() if getattr(config, name) != value}
    if choose_device(config.device).type != "cpu" or changed & set(_SIZE):
        return config
    quick = {name: value for name, value in QUICK.items() if name not in changed}
    print(
        "There is no GPU in use, and the default run would take hours on a CPU. On Colab: Runtime > "
        "Change runtime type > T4 GPU, then run all again.\nGoing on with the quick parameters: "
        + ", ".join(f"{name}={value}" for name, value in quick.items())
    )
    return replace(config, **quick)


def verdict(run: Run, test: Split) -> str:
    """Return whether the network has learned anything and whether its maps are healthy, from all test images."""
    evaluation = evaluate_images(run.model, test, run.config.precision)
    return summary.describe_training(test.labels, evaluation.predictions, evaluation.strongest, evaluation.scores)
