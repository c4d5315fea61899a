"""What notebooks share: parameters, the settings of quick runs, the project's folder, the report of what was used."""

import ast
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import Field

from ..config import (
    QUICK,
    BatchSize,
    Count,
    Device,
    FilePath,
    LearningRate,
    Limit,
    Settings,
    SettingsBase,
    TrainConfig,
    Width,
    settings,
)
from ..data.dataset import Dataset
from ..errors import closest, counted
from ..training.report import report as report
from ..training.trainer import data_for
from .drive import runs_on_drive

_INJECTED = "# Parameters"  # how papermill's cell begins


@settings
class QuickRuns(SettingsBase):
    """Parameters of the runs that a notebook trains; all others have `TrainConfig`'s defaults."""

    width: Width = Field(QUICK["width"], description="of all models that are trained, like the settings below")
    train_limit: Limit | None = None
    test_limit: Limit | None = None
    epochs: Count = QUICK["epochs"]
    batch_size: BatchSize = QUICK["batch_size"]
    learning_rate: LearningRate | None = None
    device: Device = "auto"

    def common(self) -> dict[str, Any]:
        """Return the settings that all runs share."""
        return {name: getattr(self, name) for name in sorted(self.defaults().keys() & TrainConfig.defaults().keys())}

    def described(self) -> str:
        """Return how the models are trained, in words."""
        images = "all" if self.train_limit is None else f"{self.train_limit:,}"
        return f"width {self.width:g}, {counted(self.epochs, 'epoch')} of {images} training images"


_started: dict[Path, Path] = {}  # the project's folder -> the folder that the notebook started in


def parameters(namespace: Mapping[str, Any], kind: type[Settings]) -> Settings:
    """Return the parameters in a notebook's `globals()` as settings, and move to the project's folder.

    papermill accepts misspelled parameters silently. So the names that the cell of the parameters and papermill's
    injected cell assign are compared with the known ones; other cells are ignored.
    A relative path is looked for beside the notebook first, then in the project's folder.
    Every notebook may also have `runs_on_drive`: True puts `runs/` on Google Drive.
    """
    beside = _enter_project()
    known = [*kind.defaults(), "runs_on_drive"]
    assigned = dict.fromkeys(_assigned_parameters(namespace.get("In", []), known))
    problems = [f"unknown parameter {name!r}: {closest(name, known)}" for name in assigned if name not in known]
    values = {name: namespace[name] for name in kind.defaults() if name in namespace}
    wanted, config = namespace.get("runs_on_drive", False), None
    on_drive = {"true": True, "false": False}.get(str(wanted).lower())  # papermill may give a text
    if on_drive is None:
        problems.append(f"runs_on_drive must be True or False, not {wanted!r}")
    try:
        config = kind.from_text({name: _beside(beside, name, value, kind) for name, value in values.items()})
    except ValueError as error:
        problems.append(str(error))
    problems += _unused_folder(config)
    if problems or config is None:
        raise ValueError("\n".join(problems))
    if on_drive:
        print(f"runs/ is on Google Drive: {runs_on_drive(Path.cwd())}")
    return config


def _unused_folder(config: Any) -> list[str]:
    """Return a problem if a folder of images is named, and the pictures are drawn by code."""
    folder, dataset = getattr(config, "data_dir", None), getattr(config, "dataset", None)
    if dataset != "shapes" or folder == config.defaults()["data_dir"]:
        return []
    return [f"data_dir={folder!r} is not used by dataset='shapes', which is drawn by code; set dataset='folder'"]


def injected_parameters(namespace: Mapping[str, Any]) -> set[str]:
    """Return the parameters that papermill was given: the user named these, even where they equal the defaults."""
    cells = [source for source in namespace.get("In", []) if source.startswith(_INJECTED)]
    return set(_assigned_names(cells[-1])) if cells else set()


def _enter_project() -> Path:
    """Move to the project's folder; return the folder that the notebook started in."""
    here, project = Path.cwd(), project_folder().resolve()
    if here.resolve() != project:
        _started[project] = here
        os.chdir(project)
        print(f"working folder: {project}")
    return _started.get(project, project)


def _beside(folder: Path, name: str, value: Any, kind: type[Settings]) -> Any:
    """Return a path that the user named as one in the notebook's folder, if there is something of that name."""
    hint = get_type_hints(kind, include_extras=True)[name]
    is_path = FilePath in (hint, *get_args(hint))
    if not is_path or not isinstance(value, str) or value == kind.defaults()[name] or folder == Path.cwd():
        return value
    return str(folder / value) if value.strip() and (folder / value).exists() else value


def _assigned_parameters(executed: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the names assigned in the last executed cell of parameters and in injected cells after it."""
    assigned: list[str] = []
    for source in reversed(executed):
        names = _assigned_names(source)
        is_parameters = 2 * len(set(names) & set(known)) > len(known)  # it assigns most of the known names
        if is_parameters or source.startswith(_INJECTED):
            assigned += names
        if is_parameters:
            break
    return assigned


def _assigned_names(source: str) -> list[str]:
    try:
        nodes = ast.parse(source).body
    except SyntaxError:
        return []
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


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


def images_of_run(
    config: TrainConfig, classes: Sequence[str], data_dir: str = "auto", download: bool = True
) -> Dataset:
    """Return the test images of a run with these settings and classes.

    "auto" is where they were in training; they are downloaded if they are not there. A folder that is named has to hold
    them, or a folder of images with the same classes.
    """
    data = data_for(config, download, test_only=True) if data_dir == "auto" else _images_in(data_dir, config)
    if data.classes != tuple(classes):
        raise ValueError(
            f"the classes of the data, {', '.join(data.classes)}, are not those of the run, {', '.join(classes)}; "
            "set data_dir to the folder that the run was trained on"
        )
    return data


def _images_in(data_dir: str, config: TrainConfig) -> Dataset:
    """Return the data set of these settings in a folder, else that folder's own images."""
    if not Path(data_dir).expanduser().is_dir():
        raise FileNotFoundError(f"data_dir={data_dir!r} is not a folder")
    there = replace(config, data_dir=data_dir)
    if config.dataset not in ("folder", "shapes"):
        with suppress(FileNotFoundError):
            return data_for(there, download=False, test_only=True)
    try:
        return data_for(replace(there, dataset="folder"), test_only=True)
    except ValueError as error:
        if config.dataset == "folder":
            raise
        raise ValueError(
            f"data_dir={data_dir!r} holds no images for this network, which was trained on {config.dataset}; leave it "
            f"at 'auto' for the test images of that. As a folder of images: {error}"
        ) from error
