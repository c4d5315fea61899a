"""Notebook 01: train a network."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..config import QUICK, TrainConfig
from ..data.dataset import Dataset
from ..data.split import Split, stratified
from ..errors import counted
from ..inference import choose_device, evaluate_images
from ..metrics.statistics import bootstrap_interval
from ..metrics.statistics import verdict as verdict_of
from ..training.health import COLLAPSED_MAPS, UNIFORM_MAPS, map_defects
from ..training.run import Run
from . import setup
from .setup import report as report

# If none of these is changed, a run has the size of the defaults, which are made for a GPU.
_SIZE = ("width", "dataset", "data_dir", "image_size", "train_limit", "test_limit", "epochs")
_TRAINING_IMAGES = 2000  # that the final network is tested on
_ONE_RUN = "All of this is one run with one seed; 03 trains several and asks whether attention is what helps."
_DEFECTS = {
    COLLAPSED_MAPS: "are collapsed: almost all weight lies at one position of every image",
    UNIFORM_MAPS: "are uniform in every image, so they say nothing",
}


def parameters(namespace: Mapping[str, Any]) -> TrainConfig:
    """Return the notebook's parameters, checked, from its `globals()`.

    Without a GPU, and where no parameter that makes a run long was changed or given to papermill, the quick parameters
    take the place of the defaults, and a line says so: the default run would take hours.
    """
    config = setup.parameters(namespace, TrainConfig)
    changed = {name for name, value in TrainConfig.defaults().items() if getattr(config, name) != value}
    changed |= setup.injected_parameters(namespace)
    if choose_device(config.device).type != "cpu" or changed & set(_SIZE):
        return config
    quick = {name: value for name, value in QUICK.items() if name not in changed}
    print(
        "There is no GPU in use, and the default run would take hours on a CPU. On Colab: Runtime > "
        "Change runtime type > T4 GPU, then run all again.\nGoing on with the quick parameters: "
        + ", ".join(f"{name}={value}" for name, value in quick.items())
    )
    return replace(config, **quick)


def result(run: Run, data: Dataset) -> None:
    """Print the test accuracy, and that on training images: during the last epoch, and of the final network."""
    last = run.history[-1]
    some = data.train[stratified(data.train.labels, min(_TRAINING_IMAGES, len(data.train)), seed=0)]
    correct = evaluate_images(run.model, some, run.config.precision).correct
    print(f"test accuracy after {counted(len(run.history), 'epoch')}: {last['test_accuracy']:.1%}")
    print(f"training accuracy, counted during the last epoch: {last['train_accuracy']:.1%}")
    print(f"of {len(some)} training images as they are, the final network gets {correct.double().mean():.1%} right")


def verdict(run: Run, test: Split) -> str:
    """Return whether the network has learned anything and whether its maps are healthy, from all test images."""
    evaluation = evaluate_images(run.model, test, run.config.precision)
    return describe_training(test.labels, evaluation.predictions, evaluation.strongest, evaluation.scores)


def describe_training(
    labels: Tensor, predictions: Tensor, strongest: Mapping[str, tuple[Tensor, int]], scores: Mapping[str, float]
) -> str:
    """Return whether the network has learned anything, and whether its maps are healthy.

    `strongest` is as for `ltpa.training.health.problems`, `scores` of `ltpa.evaluate`, with each level's mean entropy.
    """
    accuracy = bootstrap_interval((predictions == labels).double().numpy())
    guess = labels.bincount().max().item() / len(labels)
    lines = [
        f"{accuracy.text(1, 100)} % of {len(labels)} test images are right; always the most frequent class: "
        f"{guess:.1%}. (In brackets: 95 % interval over the images.)",
        f"That the network has learned to tell the classes apart is {verdict_of(accuracy.minus(guess))}.",
    ]
    defects = map_defects(strongest)
    entropies = {level: f"{scores[f'entropy_{level}']:.2f}" for level in strongest}
    lines += [f"The maps at {level} {_DEFECTS[defect]}." for level, defect in defects.items()]
    flat = [level for level in strongest if level not in defects and entropies[level] == "1.00"]
    if flat:
        lines.append(f"The maps at {' and '.join(flat)} are almost uniform: their mean entropy is 1.00.")
    healthy = [f"{level} {entropies[level]}" for level in strongest if level not in defects and level not in flat]
    if healthy:
        lines.append(f"Maps that are neither uniform nor collapsed (mean entropy): {', '.join(healthy)}. Look at them.")
    if not strongest:
        lines.append("It has no attention maps.")
    return "\n".join([*lines, _ONE_RUN])
