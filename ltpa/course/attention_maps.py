"""Notebook 02: look at the attention maps of a trained network, on test images and on photos."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from .. import pretrained, viz
from ..config import (
    QUICK,
    Count,
    Device,
    EachOnce,
    FilePath,
    ImageSize,
    Limit,
    Seed,
    SettingsBase,
    TrainConfig,
    settings,
)
from ..data.dataset import Dataset
from ..errors import closest, counted, optional_module
from ..maps import entropy
from ..metrics.overlap import localization_tensors
from ..metrics.statistics import SUPPORTED, bootstrap_interval
from ..metrics.statistics import verdict as verdict_of
from ..models.networks import AttentionOutput, ImageClassifier
from ..training.run import Run, load_run, newest_run, snapshot_indices
from ..training.trainer import data_for, fit
from . import setup
from .border import border_table as border_table
from .border import plain_pictures as plain_pictures
from .setup import report as report

_MOST_LINES = 5  # about runs that are passed over
BUILT_IN = "built-in"  # the default of `run`


@settings
class LookConfig(SettingsBase):
    """Parameters of notebook 02."""

    run: FilePath = Field(
        BUILT_IN,
        description="'built-in' for weights that come with ltpa, the name of some, a run's folder, or 'auto' for the "
        "newest complete run",
    )
    examples: Annotated[int, Field(ge=1, le=64)] = Field(5, description="pictures in a figure")
    chosen: Annotated[Sequence[Annotated[int, Field(ge=0)]], EachOnce] = Field(
        (0, 1, 2), description="numbers of test images to show"
    )
    photo: FilePath | None = Field(None, description="your own picture; None takes three that scikit-image ships")
    photo_side: ImageSize = Field(96, description="pixels of a photo's shorter side for the network")
    seed: Seed = Field(0, description="of the random choice of images")
    data_dir: FilePath = Field(
        "auto",
        description="where the test images are; 'auto' is where they were in training; also a folder with "
        "test/<class>/* and train/<class>/*",
    )
    download: bool = Field(True, description="whether missing test images may be downloaded (CIFAR: 24 MB)")
    device: Device = Field("auto", description="auto, cpu or cuda")
    epochs: Count = Field(QUICK["epochs"], description="of the quick model that is trained if there is no run")
    train_limit: Limit | None = Field(None, description="training images of that model")
    test_limit: Limit | None = Field(None, description="test images of that model")

    def draw(self, count: int) -> Tensor:
        """Return the numbers of at most `examples` of `count` images, drawn by the seed."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[: self.examples]


@dataclass(frozen=True)
class Network:
    """A trained network and the settings it was trained with; snapshots are maps of test images after every epoch."""

    model: ImageClassifier
    config: TrainConfig
    name: str  # of the weights, or the run's folder
    snapshots: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)  # epoch -> level -> (K, h, w)
    numbers: Sequence[int] | None = None  # of the K test images; None for the choice of `snapshot_indices`

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.model.classes or ()


parameters = partial(setup.parameters, kind=LookConfig)


def find(look: LookConfig) -> tuple[Network, Dataset]:
    """Return the network that `run` names and its data; print what they are.

    By default these are the weights for CIFAR-10. If its test images can be neither found nor downloaded, weights for
    drawn pictures take their place, and a message says so.
    """
    if look.run != BUILT_IN:
        network = find_network(look)
        return network, find_images(network, look)
    network = built_in(pretrained.DEFAULT, look.device)
    try:
        return network, find_images(network, look)
    except OSError as error:
        if look.data_dir != "auto":
            raise
        reason = re.split("[.;] ", str(error))[0]
        print(f"{reason}: instead of {network.config.dataset}, drawn pictures and weights for them are shown")
    network = built_in(pretrained.DRAWN, look.device)
    return network, find_images(network, look)


def find_network(look: LookConfig) -> Network:
    """Return the network that `run` names; for "auto" that of the newest run, or of a quick one trained now."""
    if look.run in pretrained.list_pretrained():
        return built_in(look.run, look.device)
    if look.run != "auto" and not Path(look.run).expanduser().is_dir():
        known = closest(look.run, [BUILT_IN, "auto", *pretrained.list_pretrained()])
        raise FileNotFoundError(f"run={look.run!r} is neither the folder of a run nor a known name: {known}")
    run = _newest_run(look) if look.run == "auto" else load_run(look.run, look.device)
    return Network(run.model, run.config, str(run.path), run.snapshots())


def built_in(name: str, device: str = "auto") -> Network:
    """Return weights that come with ltpa as a `Network`, and print what they are."""
    facts = pretrained.pretrained_facts(name)
    config = TrainConfig(**{**facts["settings"], "dataset": facts["dataset"]})
    accuracy = facts["figures"]["accuracy"]["mean"]
    print(
        f"weights that come with ltpa: {name}, {config.model}, trained on {facts['data']['description']}, test "
        f"accuracy {accuracy:.1%}"
    )
    numbers, snapshots = pretrained.pretrained_snapshots(name)
    return Network(pretrained.load_pretrained(name, device), config, name, snapshots, numbers)


def _newest_run(look: LookConfig) -> Run:
    run, passed_over = newest_run(device=look.device)
    if passed_over:
        print("\n  ".join(["passed over:", *passed_over[:_MOST_LINES]]))
    if len(passed_over) > _MOST_LINES:
        print(f"  and {len(passed_over) - _MOST_LINES} more")
    if run is None:
        print("no complete run with maps is under runs/ yet: training the quick model, on pictures drawn by code")
        limits = {"epochs": look.epochs, "train_limit": look.train_limit, "test_limit": look.test_limit}
        return fit(TrainConfig(**{**QUICK, **limits, "snapshots": 8, "device": look.device}))
    print(
        f"the newest complete run with maps, {run.path}: {run.config.model} on {run.config.dataset}, "
        f"{counted(len(run.history), 'epoch')}, test accuracy {run.history[-1]['test_accuracy']:.1%}"
    )
    return run


def find_images(network: Network, look: LookConfig) -> Dataset:
    """Return the network's test images; see `images_of_run` in `setup`."""
    return setup.images_of_run(network.config, network.classes, look.data_dir, look.download)


def describe(network: Network, data: Dataset, logits: Tensor) -> tuple[list[str], Tensor]:
    """Print how many test images are right; return a title for each, and the numbers (K,) of the wrong ones."""
    labels = data.test.labels.to(logits.device)
    wrong = (logits.argmax(1) != labels).nonzero().flatten().cpu()
    count = len(labels)
    print(f"{network.config.model} on {data.name}: {1 - len(wrong) / count:.1%} of {count} test images are right")
    return viz.captions(logits, network.classes, labels), wrong


def show_maps(
    data: Dataset, output: AttentionOutput, titles: list[str], picked: Sequence[int] | Tensor, alt: str
) -> None:
    """Show the test images whose numbers are picked, with their maps; `output` and `titles` are of all of them."""
    picked = torch.as_tensor(picked)
    if int(picked.max()) >= len(data.test):
        raise ValueError(f"there is no test image {int(picked.max())}: there are {len(data.test)}, counted from 0")
    sample = data.test[picked]
    maps = {level: maps[picked] for level, maps in output.maps.items()}
    figure = viz.attention_figure(sample.images, maps, titles=[titles[i] for i in picked], masks=sample.masks)
    viz.display(figure, alt)


def photos(look: LookConfig) -> list[Any]:
    """Return the photo that the parameters name; without one a cat, an astronaut and a cup, from scikit-image."""
    if look.photo is not None:
        return [look.photo]
    data = optional_module("skimage", "name a photo, or install scikit-image").data
    return [data.chelsea(), data.astronaut(), data.coffee()]


def entropy_table(maps: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return the median of the maps' entropies and the range of 90 % of them, a row for each level."""
    quantiles = torch.tensor([0.05, 0.5, 0.95])
    rows = {level: entropy(level_maps).cpu().quantile(quantiles).tolist() for level, level_maps in maps.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["5 %", "median", "95 %"]).round(2)


def snapshot_figures(network: Network, data: Dataset, look: LookConfig) -> dict[str, Figure]:
    """Return a figure for each level: maps of the same images after every epoch.

    For a network without snapshots, those of weights that come with ltpa are shown, and a message says so.
    """
    if not network.snapshots or data.name != network.config.dataset:
        lack = (
            "no maps of these images"
            if network.snapshots
            else "no maps of earlier epochs; snapshots=8 in 01 keeps them"
        )
        print(f"{network.name} has {lack}. As an example:")
        network = built_in(pretrained.DRAWN, look.device)
        data = data_for(network.config, False, test_only=True)
    levels = next(iter(network.snapshots.values()))
    numbers = network.numbers
    if numbers is None:
        numbers = snapshot_indices(data, len(next(iter(levels.values())))).tolist()
    images = data.test[torch.tensor(numbers[: look.examples])].images
    figures = {}
    for level in levels:
        maps = {epoch: {level: all_maps[level][: look.examples]} for epoch, all_maps in network.snapshots.items()}
        figures[level] = viz.snapshot_figure(images, maps, level)
    return figures


def verdict(data: Dataset, maps: Mapping[str, Tensor], wrong: Tensor) -> str:
    """Return what the maps of all test images showed; `wrong` are the numbers of those that are misclassified."""
    right = torch.ones(len(data.test), dtype=torch.bool)
    right[wrong] = False
    return describe_maps(maps, right, data.test.masks)


def describe_maps(maps: Mapping[str, Tensor], right: Tensor, masks: Tensor | None = None) -> str:
    """Return whether the maps of all test images lie on the objects, a line for each level and a conclusion.

    Right and wrong answers are compared; all intervals hold together with 95 %.

    `maps` are level -> weights (N, h, w), `masks` (N, H, W); without masks the lines are about entropies.
    """
    if not maps:
        return "This model has no attention maps: nothing was shown."
    maps, right = {level: level_maps.cpu() for level, level_maps in maps.items()}, right.cpu()
    if masks is None:
        values = {level: entropy(level_maps) for level, level_maps in maps.items()}
        lines = ["The mean entropy of the maps (1 = uniform, 0 = a single position), in right and in wrong answers:"]
        lines += [f"  {level}: {_compare_answers(value, right, 2 * len(maps), 2)}" for level, value in values.items()]
        last = "Whether they lie on objects is unknown: these data have no masks (the dataset 'shapes' has)."
        return "\n".join([*lines, last])

    area = masks.float().mean((1, 2))
    lines = [f"The object fills {area.mean().item():.1%} of a picture. The share of the attention on it, in percent:"]
    verdicts = {}
    for level, level_maps in maps.items():
        share = localization_tensors(level_maps, masks)["share"]
        verdicts[level] = verdict_of(bootstrap_interval(share - area, 3 * len(maps)))
        answers = _compare_answers(share, right, 3 * len(maps), 1, 100)
        lines.append(f"  {level}: {answers}; more than the even share: {verdicts[level]}")
    return "\n".join([*lines, _conclude(verdicts)])


def _conclude(verdicts: Mapping[str, str]) -> str:
    """Return which levels find the object, from the verdict on each."""
    finds = [level for level, word in verdicts.items() if word == SUPPORTED]
    others = ", ".join(level for level in verdicts if level not in finds)
    if not finds:
        return f"No level was shown to have more of its attention on the object than the even share ({others})."
    if not others:
        return f"Every level has more of its attention on the object than the even share: {', '.join(finds)}."
    return f"{', '.join(finds)}: more attention on the object than the even share. Not shown for {others}."


def _compare_answers(values: Tensor, right: Tensor, comparisons: int, digits: int, scale: float = 1) -> str:
    """Return the means of right and of wrong answers with intervals, and whether they differ in the digits printed."""
    groups = {"right": values[right], "wrong": values[~right]}
    intervals = {name: bootstrap_interval(group, comparisons) for name, group in groups.items()}
    intervals = {name: interval for name, interval in intervals.items() if interval.n}
    words = ", ".join(f"{name} {interval.text(digits, scale)}" for name, interval in intervals.items())
    if len(intervals) < 2:
        return words
    a, b = intervals.values()
    apart = a.low > b.high or b.low > a.high
    printed_apart = round(scale * a.mean, digits) != round(scale * b.mean, digits)
    return words + (", they differ" if apart and printed_apart else ", no difference is shown")
