"""What notebooks share: their parameters, the project's folder, and the report of what is needed to repeat them."""

import ast
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from ..config import (
    QUICK,
    BatchSize,
    Count,
    Device,
    EachOnce,
    LearningRate,
    Limit,
    Seed,
    SettingsBase,
    TrainConfig,
    Variant,
    Width,
    settings,
)
from ..data.dataset import Dataset, Split
from ..errors import closest
from ..models.networks import parse_variant
from ..training.report import report as report
from ..training.run import Run
from ..training.trainer import data_for
from .drive import runs_on_drive

Config = TypeVar("Config", bound=SettingsBase)


def parameters(namespace: Mapping[str, Any], kind: type[Config]) -> Config:
    """Return the notebook's parameters as settings of one kind, and move to the project's folder.

    papermill passes a misspelt parameter without a word. So the names that the cell of the parameters and papermill's
    injected cell assign are compared with the known ones; what other cells assign is not looked at.

    Every notebook may have the parameter `runs_on_drive` beside those of the class: True puts `runs/` on Google Drive.

    Args:
        namespace: the notebook's `globals()`.
        kind: the class of the settings, such as `TrainConfig`.
    """
    os.chdir(project_folder())
    known = [*kind.defaults(), "runs_on_drive"]
    assigned = dict.fromkeys(_assigned_parameters(namespace.get("In", []), known))
    problems = [f"unknown parameter {name!r}: {closest(name, known)}" for name in assigned if name not in known]
    values = {name: namespace[name] for name in known if name in namespace}
    on_drive = values.pop("runs_on_drive", False)
    if not isinstance(on_drive, bool):
        problems.append(f"runs_on_drive must be True or False, not {on_drive!r}")
    try:
        config = kind.from_text(values)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    if on_drive:
        print(f"runs/ is on Google Drive: {runs_on_drive(Path.cwd())}")
    return config


def _assigned_parameters(executed: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the names assigned in the last executed cell of parameters and in injected cells after it."""
    assigned: list[str] = []
    for source in reversed(executed):
        try:
            nodes = ast.parse(source).body
        except SyntaxError:
            continue
        targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        is_parameters = 2 * len(set(names) & set(known)) > len(known)  # it assigns most of the known names
        if is_parameters or source.startswith("# Parameters"):  # papermill's comment
            assigned += names
        if is_parameters:
            break
    return assigned


def project_folder() -> Path:
    """Return the folder that relative paths start from: the repository around the working folder, else that folder.

    So `runs/` is the same whether a notebook runs from the repository (papermill), from `notebooks/` (Jupyter) or in
    Colab. The environment variable LTPA_FOLDER names another one.
    """
    if os.environ.get("LTPA_FOLDER"):
        folder = Path(os.environ["LTPA_FOLDER"]).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "ltpa" / "_version.py").is_file():
            return folder
    return here


def test_data(run: Run, config: Any) -> Dataset:
    """Return the data of a run, read from `config.data_dir`; "auto" is where they were when it was trained."""
    training = run.config if config.data_dir == "auto" else replace(run.config, data_dir=config.data_dir)
    data = data_for(training)
    check_classes(data, run.classes)
    return data


def check_classes(data: Dataset, classes: Sequence[str]) -> None:
    """Refuse data whose classes are not those of the run."""
    if data.classes != tuple(classes):
        raise ValueError(
            f"the classes of the data, {', '.join(data.classes)}, are not those of the run, {', '.join(classes)}; "
            "set data_dir to the folder that the run was trained on"
        )


@settings
class TruthConfig(SettingsBase):
    """Parameters of the notebook that measures maps; the runs that it compares are those of `ltpa.QUICK`."""

    models: Annotated[Sequence[Variant], EachOnce] = Field(
        (
            *(f"vgg-att3-concat-{kind}{normalizer}" for kind in ("pc", "dp", "add") for normalizer in ("", " sigmoid")),
            "vgg-gap",
        ),
        description="names of `ltpa.list_models()`, with the normalizer behind the name where it is not softmax",
    )
    methods: Annotated[
        Sequence[Literal["gradcam", "saliency", "integrated_gradients", "occlusion", "cam"]], EachOnce
    ] = Field(("gradcam", "saliency", "occlusion", "cam"), description="of `ltpa.explain`, to compare attention with")
    images: Annotated[int, Field(ge=2, le=10**6)] = Field(200, description="test images that are measured")
    held_out: Count = Field(100, description="other test images, which choose thresholds and levels")
    costly_images: Annotated[int, Field(ge=2, le=10**6)] = Field(
        50, description="how many of `images` deletion, insertion and the sanity check take"
    )
    fill: Literal["blur", "mean"] = Field("blur", description="what replaces deleted pixels")
    seed: Seed = Field(0, description="of the runs, of the controls and of the bootstrap")
    device: Device = Field("auto", description="auto, cpu or cuda")
    width: Width = Field(QUICK["width"], description="of the runs, as below")
    epochs: Count = QUICK["epochs"]
    batch_size: BatchSize = QUICK["batch_size"]
    learning_rate: LearningRate = QUICK["learning_rate"]
    train_limit: Limit | None = None
    test_limit: Limit | None = None

    def runs(self) -> dict[str, TrainConfig]:
        """The settings of the runs by short names: "pc softmax" is vgg-att3-concat-pc with softmax."""
        names = ("width", "epochs", "batch_size", "learning_rate", "train_limit", "test_limit", "seed", "device")
        shared = {"dataset": QUICK["dataset"]} | {name: getattr(self, name) for name in names}
        found = {}
        for variant in self.models:
            model, normalizer = parse_variant(variant)
            short = model.removeprefix("vgg-att3-concat-")
            name = f"{short} {normalizer}" if "-att" in model or model == "vgg-pan" else short
            found[name] = TrainConfig(model=model, normalizer=normalizer, **shared)
        return found

    def budget(self) -> str:
        """How the models are trained, in words."""
        images = "all" if self.train_limit is None else self.train_limit
        return f"width {self.width:g}, {self.epochs} epochs of {images} training images, seed {self.seed}, n = images"

    def split(self, test: Split) -> tuple[Split, Split]:
        """Test images to measure, and others to choose on.

        Raises:
            ValueError: there are too few test images.
        """
        if self.images + self.held_out > len(test):
            raise ValueError(
                f"images={self.images} and held_out={self.held_out} need {self.images + self.held_out} test images, "
                f"and there are {len(test)}; lower them"
            )
        return test[: self.images], test[self.images : self.images + self.held_out]
