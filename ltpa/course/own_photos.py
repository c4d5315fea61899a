"""Notebook 08: a network for your own photos. Parameters, the folder or zip file, pictures and figures."""

import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from .. import viz
from ..attribution import explain
from ..config import (
    QUICK,
    Count,
    Device,
    FilePath,
    ImageSize,
    Limit,
    ModelName,
    Seed,
    SettingsBase,
    TrainConfig,
    Width,
    settings,
)
from ..data.dataset import Dataset, Split
from ..data.split import stratified
from ..inference import attend
from ..models.classifier import ImageClassifier
from ..models.networks import create_model, is_backbone
from ..training.run import Run
from ..viz.style import FONT, new_figure, style_axes
from . import drive, setup
from .attention_maps import show_maps as show_maps
from .own_photos_measure import describe as describe
from .own_photos_measure import effects_table as effects_table
from .own_photos_measure import measure as measure
from .own_photos_measure import rival_effects as rival_effects
from .own_photos_measure import scores_figure as scores_figure
from .setup import report as report
from .training import result, verdict

BACKBONE = "tf_efficientnet_lite0-att3-concat-add"  # for photos
SMALL = {"model": "vgg-att3-concat-pc", "width": 0.1875, "image_size": 64}  # for photos, where there is no backbone
_SHEET = 12  # pictures on the sheet of examples
_MOST_CLASSES = 15  # of a confusion matrix that one can read


@settings
class OwnPhotosConfig(SettingsBase):
    """Parameters of notebook 08; of training, None is what suits the network and the number of photos."""

    data_dir: FilePath | None = Field(
        None, description="a folder of <class>/* or train/<class>/*, or a zip file of one; None draws pictures by code"
    )
    model: ModelName | None = Field(None, description="None is a pretrained backbone for photos")
    freeze: bool = Field(True, description="train only what reads the backbone: fast, and good for few photos")
    width: Width | None = Field(None, description="factor on the channels of the paper's networks")
    image_size: ImageSize | None = Field(None, description="side in pixels")
    epochs: Count | None = Field(None, description="passes over the training photos")
    train_limit: Annotated[int, Field(ge=2, le=10**9)] | None = Field(None, description="most training photos")
    test_limit: Limit | None = Field(None, description="most test photos")
    skip_broken: bool = Field(False, description="leave out photos that cannot be read")
    examples: Annotated[int, Field(ge=1, le=64)] = Field(4, description="photos in a figure")
    measured: Annotated[int, Field(ge=2, le=10**6)] = Field(
        40, description="most test photos that the maps are measured on"
    )
    seed: Seed = Field(0, description="of the split, the training and all random choices")
    device: Device = Field("auto", description="auto, cpu or cuda")

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Refuse a model without attention maps: they are what this notebook is about."""
        name = values.get("model")
        if name is None or "-att" in name:
            return []
        return [f"model={name!r} has no attention maps; choose for example {BACKBONE} or {SMALL['model']}"]


parameters = partial(setup.parameters, kind=OwnPhotosConfig)


def training_settings(given: OwnPhotosConfig) -> TrainConfig:
    """Return the settings of the run; unpack a zip file, and print what was chosen where a parameter is None."""
    names = ("model", "width", "image_size", "epochs", "train_limit", "test_limit", "skip_broken", "seed", "device")
    own = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.data_dir is None:
        print(
            f"data_dir is None: going on with pictures that are drawn by code, and {own.get('model', SMALL['model'])}"
        )
        suiting: dict[str, Any] = dict(QUICK)
    else:
        suiting = {"dataset": "folder", "data_dir": str(unpacked(given.data_dir)), **_network(given.model)}
    merged = {**suiting, **own}
    if is_backbone(str(merged.get("model", ""))):
        merged |= {"pretrained": True, "freeze": given.freeze}
    return TrainConfig(**merged)


def _network(model: str | None) -> dict[str, Any]:
    """Return what suits photos: the backbone if it can be had, else a small network, and say which."""
    if model is not None:
        return {} if is_backbone(model) else {**SMALL, "model": model}
    try:
        create_model(BACKBONE, 2, pretrained=True)
    except (ImportError, OSError) as error:
        print(
            f"{error}\nGoing on without a pretrained backbone, with a small network that has seen no photo yet: "
            "expect a much lower accuracy."
        )
        return dict(SMALL)
    return {"model": BACKBONE}


def unpacked(data_dir: str) -> Path:
    """Return the folder that `data_dir` names; a zip file is unpacked beside itself, or into `data/`, once."""
    path = Path(data_dir).expanduser()
    if path.is_relative_to(drive.MOUNT) and not path.exists():
        raise FileNotFoundError(
            f"data_dir={data_dir!r} is not there. runs_on_drive=True connects Google Drive; a folder at the top of the "
            f"drive is {drive.MOUNT}/MyDrive/<name>"
        )
    if not path.is_file():
        return path
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"data_dir={data_dir!r} is a file, but no complete zip file; pack the folder as zip, or unpack it first"
        )
    beside = path.parent if os.access(path.parent, os.W_OK) else Path("data")
    target = beside / (path.stem if path.suffix else f"{path.name}_unpacked")
    if target.is_dir():
        print(f"{path} is unpacked in {target} (delete that folder to unpack it again)")
    else:
        _unpack(path, target)
        print(f"{path} was unpacked into {target}")
    return _without_wrapping(target)


def _unpack(path: Path, target: Path) -> None:
    """Unpack all of a zip file or nothing."""
    partial_target = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial_target, ignore_errors=True)
    partial_target.mkdir(parents=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.filename.startswith("__MACOSX/")]
            needed, free = sum(one.file_size for one in members), shutil.disk_usage(partial_target).free
            if needed > free:
                raise ValueError(f"{path} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on this disk")
            archive.extractall(partial_target, members)
        partial_target.rename(target)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:  # damaged, or with a password
        raise ValueError(f"{path} cannot be unpacked ({error}); upload it again, without a password") from error
    finally:
        shutil.rmtree(partial_target, ignore_errors=True)


def _without_wrapping(folder: Path) -> Path:
    """Return the folder inside folders that hold nothing but one folder of folders, as in most zip files."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir() or not any(path.is_dir() for path in inside[0].iterdir()):
            return folder
        folder = inside[0]


# Before and after training


def class_table(data: Dataset) -> pd.DataFrame:
    """Return how many training and test photos each class has, the last row being all."""
    count = len(data.classes)
    columns = {
        "training": data.train.labels.bincount(minlength=count).tolist(),
        "test": data.test.labels.bincount(minlength=count).tolist(),
    }
    table = pd.DataFrame(columns, index=list(data.classes))
    return pd.concat([table, table.sum().rename("all").to_frame().T])


def sheet(data: Dataset, seed: int) -> Figure:
    """Draw training photos of all classes, or of as many as there is room for, as the network reads them."""
    picked = stratified(data.train.labels, min(_SHEET, len(data.train)), seed)
    sample = data.train[picked[data.train.labels[picked].argsort(stable=True)]]
    return viz.attention_figure(sample.images, {}, titles=[data.classes[label] for label in sample.labels])


def accuracies(run: Run, data: Dataset) -> None:
    """Print the accuracies on test and training photos, whether the network has learned, and what its maps are like."""
    result(run, data)
    print(verdict(run, data.test))


def confusion_figure(labels: Tensor, logits: Tensor, classes: Sequence[str]) -> Figure:
    """Draw how many test photos of each class (rows) got which answer (columns); of many classes the worst 15."""
    count = len(classes)
    table = (labels * count + logits.argmax(1)).bincount(minlength=count**2).view(count, count)
    wrong = table - table.diag().diag()
    mistakes = wrong.sum(0) + wrong.sum(1)
    shown = mistakes.argsort(descending=True, stable=True)[:_MOST_CLASSES].sort().values
    names = [classes[i] for i in shown]
    cells = table[shown][:, shown]
    shares = cells / table[shown].sum(1, keepdim=True).clamp(min=1)
    figure = new_figure(max(3.2, 1.6 + 0.5 * len(names)))
    panel = figure.subplots()
    panel.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, line in enumerate(cells.tolist()):
        for column, number in enumerate(line):
            color = "white" if shares[row, column] > 0.5 else "black"
            panel.text(column, row, str(number), ha="center", va="center", fontsize=FONT, color=color)
    title = "" if len(names) == count else f"the {len(names)} of {count} classes with most mistakes"
    style_axes(panel, x="answer", y="true class", title=title, grid=None)
    upright = max(map(len, names)) * len(names) > 40
    panel.set_xticks(range(len(names)), names, fontsize=FONT, rotation=90 if upright else 0)
    panel.set_yticks(range(len(names)), names, fontsize=FONT)
    return figure


def least_certain(logits: Tensor, count: int) -> Tensor:
    """Return the numbers of the photos whose answer is least probable, from the lowest up."""
    return logits.softmax(1).amax(1).argsort(stable=True)[:count]


def misclassified(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the numbers of wrong answers, the most confident first: at most `count`; print how many there are."""
    probabilities, answers = logits.softmax(1).max(1)
    wrong = (answers != labels).nonzero().flatten()
    print(f"{len(wrong)} of {len(labels)} test photos are misclassified")
    return wrong[probabilities[wrong].argsort(descending=True, stable=True)][:count]


def gradcam_figure(model: ImageClassifier, photos: Split, titles: Sequence[str]) -> Figure:
    """Draw the attention of the last two levels, and Grad-CAM of the same layers beside each."""
    target = attend(model, photos, "fp32").logits.argmax(1)
    maps = {}
    for level in list(attend(model, photos[:1], "fp32").maps)[-2:]:
        maps[level] = explain(model, photos.images, "attention", layer=level)
        maps[f"Grad-CAM {level}"] = explain(model, photos.images, "gradcam", target, level)
    return viz.attention_figure(photos.images, maps, titles=titles, masks=photos.masks)


def measured_photos(given: OwnPhotosConfig, test: Split) -> Split:
    """Return the test photos that the maps are measured on: drawn by the seed, the same number of each class."""
    return test[stratified(test.labels, min(given.measured, len(test)), given.seed)]


def keep(run: Run) -> Path:
    """Save the network for `ltpa.load_pretrained` in the run's folder; print how to use it."""
    folder = run.model.save_pretrained(run.path / "model")
    print(
        f"The network, its settings and its model card are in {folder}. From Python:\n"
        f'  ltpa.load_pretrained("{folder}")\n'
        "From a terminal, for new photos:\n"
        f"  python -m ltpa show PHOTO --model {folder} --save maps.png"
    )
    return folder
