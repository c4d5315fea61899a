"""The folder of a training run: settings, history, weights, snapshots of maps; read, written, claimed, locked."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .._version import __version__
from ..config import TrainConfig
from ..data.dataset import Dataset
from ..data.split import stratified
from ..errors import counted
from ..inference import attend, choose_device
from ..models.classifier import ImageClassifier
from ..models.networks import is_backbone
from ..progress import logger
from .checkpoint import State, fill, load_tensors, remove_checkpoints, remove_parts, save_tensors, write

_COLUMNS = {"train_loss", "test_accuracy", "seconds"}  # of every history.csv
_NO_SETTINGS = {"classes", "data", "ltpa"}  # in config.json beside the settings


@dataclass(repr=False)
class Run:
    """A training run, finished or not; `print(run)` describes it in a few lines.

    Attributes:
        model: the network, in evaluation mode, with the weights of the last finished epoch.
        history: one dict an epoch: epoch (from 1), train_loss, train_accuracy, test_loss, test_accuracy (in [0, 1];
            of the held-out images where `validation` is set), learning_rate, seconds, and entropy_<level>, the mean
            entropy of the test images' maps (1 = uniform). With `minutes` also schedule, the finished part of the
            schedule; the last row is then not a whole epoch.
        path: the folder, with config.json, history.csv and weights.safetensors.
        notes: warnings of `fit`: copies in the data, a file that could not be written, uniform maps.
    """

    config: TrainConfig
    classes: tuple[str, ...]
    model: ImageClassifier
    path: Path
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        config = self.config
        width = "" if is_backbone(config.model) else f"width {config.width:g}, "
        lines = [f"{config.model} ({width}{config.normalizer}) on {config.dataset}: {self.progress}"]
        if self.history:
            last, seconds = self.history[-1], sum(row.get("seconds", 0.0) for row in self.history)
            accuracy, loss = last["test_accuracy"], last["train_loss"]
            lines.append(f"test accuracy {accuracy:.1%}, training loss {loss:.3f}, {seconds:.0f} s of training")
        lines.append(
            f"{len(self.classes)} classes: {', '.join(self.classes[:10])}" + ", ..." * (len(self.classes) > 10)
        )
        return "\n".join([*lines, f"folder {self.path}", *(f"note: {note}" for note in self.notes[:5])])

    __repr__ = __str__

    @property
    def complete(self) -> bool:
        """Whether every epoch was trained, or the time is used up."""
        if self.config.planned_epochs is None:
            return bool(self.history) and self.history[-1]["schedule"] >= 1
        return len(self.history) >= self.config.planned_epochs

    @property
    def progress(self) -> str:
        """How many epochs are trained, in words: "3 of 10 epochs"."""
        planned = self.config.planned_epochs
        return f"{len(self.history)} of {counted(planned, 'epoch')}" if planned else counted(len(self.history), "epoch")

    def snapshots(self) -> dict[int, dict[str, Tensor]]:
        """Return the maps of the same few test images by epoch: {epoch: {level: (K, h, w)}}, 0 = before training."""
        maps_by_epoch = {int(file.stem.split("-")[1]): load_tensors(file)[0] for file in snapshot_files(self.path)}
        return {epoch: by_level(maps) for epoch, maps in maps_by_epoch.items()}


def load_run(path: str | Path, device: str = "auto") -> Run:
    """Return a run from its folder, with the weights of the last finished epoch.

    A FileNotFoundError names what is missing, a ValueError the file that is damaged.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {str(path)!r}; runs are folders with a config.json")
    missing = [name for name in ("config.json", "history.csv", "weights.safetensors") if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"the run folder {path} is incomplete: {', '.join(missing)} missing (it is written after the first epoch); "
            "call fit again with its settings, or delete it"
        )
    settings = _read_settings(path)
    weights, facts = load_tensors(path / "weights.safetensors")
    config = _config_of(path, settings)
    history = read_history(path, timed=config.minutes is not None)
    classes = tuple(settings["classes"])
    model = model_of(config, classes, weights, path / "weights.safetensors", device)
    if facts.get("epochs", len(history)) != len(history):  # killed between the two writes, say
        raise ValueError(
            f"{path}: the weights are those of epoch {facts['epochs']}, but history.csv ends at {len(history)}; "
            "call fit again with its settings"
        )
    model.facts = facts_of(config, history, settings.get("data") or {})
    return Run(config, classes, model, path, history)


def facts_of(config: TrainConfig, history: list[dict[str, float]], data: dict[str, Any]) -> dict[str, Any]:
    """Return what a model card says about a training; `data` as from `fingerprint`."""
    facts: dict[str, Any] = {
        "dataset": config.dataset,
        "image_size": config.image_size,
        "epochs": len(history),
        "seed": config.seed,
    }
    facts |= {"validation": config.validation, "accuracy": history[-1]["test_accuracy"] if history else None}
    facts |= {"train_images": data.get("train"), "test_images": data.get("test")}
    return {name: value for name, value in facts.items() if value is not None}


def newest_run(folder: str | Path = "runs", device: str = "auto") -> tuple[Run | None, list[str]]:
    """Return the newest complete run with attention maps, or None; and why each newer run was passed over."""

    def written(path: Path) -> float:
        weights = path / "weights.safetensors"
        return weights.stat().st_mtime if weights.is_file() else (path / "config.json").stat().st_mtime

    passed_over = []
    for path in sorted((file.parent for file in Path(folder).glob("*/config.json")), key=written, reverse=True):
        try:
            run = load_run(path, device)
        except (ValueError, OSError) as error:
            passed_over.append(str(error))
            continue
        if run.complete and any(column.startswith("entropy_") for column in run.history[-1]):
            return run, passed_over
        lack = f"{run.config.model} has no attention maps" if run.complete else f"unfinished, {run.progress}"
        passed_over.append(f"{path}: {lack}")
    return None, passed_over


def read_config(path: Path) -> TrainConfig:
    """Return the settings of a run, without its weights."""
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"there is no run in {path}")
    return _config_of(path, _read_settings(path))


def model_of(
    config: TrainConfig, classes: tuple[str, ...], weights: dict[str, Tensor], source: Path, device: str
) -> ImageClassifier:
    """Return a model with these weights, in evaluation mode; a ValueError names the source if they do not fit."""
    with torch.random.fork_rng(devices=[]):
        model = config.create_model(len(classes), pretrained=False)  # the weights are those of the file
    fill(model, weights, source)
    return placed(model, classes, choose_device(device))


def new_run(config: TrainConfig, data: Dataset, device: torch.device, notes: list[str]) -> Run:
    """Return a run without epochs, its model with random weights."""
    own = {} if is_backbone(config.model) else {"mean": data.mean, "std": data.std}
    model = config.create_model(len(data.classes), **own)
    return Run(config, data.classes, placed(model, data.classes, device), config.path, notes=notes)


def placed(model: ImageClassifier, classes: tuple[str, ...] | None, device: torch.device) -> ImageClassifier:
    """Return a model on a device, in evaluation mode, with the names of its classes."""
    model.classes = classes
    return model.to(device).to(memory_format=torch.channels_last).eval()


def snapshot_indices(data: Dataset, count: int) -> Tensor:
    """Return the indices of the test images whose maps a run keeps: spread over the classes, fixed for a data set."""
    return stratified(data.test.labels, min(count, len(data.test)), seed=0)


def by_level(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return maps in the network's order, in which the levels' numbers ascend; files keep none."""
    return {level: maps[level] for level in sorted(maps, key=lambda level: (len(level), level))}


def snapshot_files(path: Path) -> list[Path]:
    """Return the files of `Run.snapshots`, by epoch."""
    return sorted((path / "snapshots").glob("epoch-*.safetensors"))


def save_snapshot(run: Run, images: Tensor, precision: str) -> None:
    """Write the current maps of images (K, 3, H, W), for `Run.snapshots`."""
    epoch, maps = len(run.history), attend(run.model, images, precision).maps
    save_tensors(run.path / "snapshots" / f"epoch-{epoch:04d}.safetensors", dict(maps), {"epoch": epoch})


def save_epoch(run: Run) -> None:
    """Write weights and history after an epoch."""
    save_tensors(run.path / "weights.safetensors", run.model.state_dict(), {"epochs": len(run.history)})
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(run.history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.history)
    write(run.path / "history.csv", table.getvalue().encode())


def rescue_weights(run: Run, error: OSError) -> None:
    """Write the weights of a run whose folder cannot be written to the temporary folder; raise the error."""
    try:
        place = Path(tempfile.mkdtemp(prefix="ltpa-")) / "weights.safetensors"
        save_tensors(place, run.model.state_dict(), {"epochs": len(run.history)})
        where = f"the trained weights are in {place}"
    except OSError as second:
        where = f"nor can the trained weights be kept elsewhere ({second.strerror})"
    raise OSError(error.errno, f"{error.strerror}; {where}") from error


def read_history(path: Path, timed: bool = False) -> list[dict[str, float]]:
    """Return the rows of `history.csv`; a ValueError names a damaged file, `timed` that of a run with `minutes`."""
    columns = _COLUMNS | ({"schedule"} if timed else set())
    try:
        text = (path / "history.csv").read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
        history = [{key: int(value) if key == "epoch" else float(value) for key, value in row.items()} for row in rows]
        if not text.endswith("\n") or not history:
            raise ValueError("it is not whole")
        if missing := columns - history[0].keys():
            raise ValueError(f"it is not whole: it has no column {', '.join(sorted(missing))}")
        if [row["epoch"] for row in history] != list(range(1, len(history) + 1)):
            raise ValueError("epochs are missing")
    except (TypeError, KeyError, ValueError, csv.Error) as error:
        raise ValueError(f"{path / 'history.csv'} is damaged: {error}") from error
    return history


def restore(run: Run, state: State) -> None:
    """Fill run and state from the newest checkpoint, or a complete run from its weights."""
    weights, checkpoints = run.path / "weights.safetensors", run.path / "checkpoints"
    if state.restore(checkpoints):
        logger.info(f"continuing {run.path} after {run.progress} (step {state.step})")
        if run.complete:
            save_epoch(run)  # it may have ended when this could not be written
    elif weights.is_file() and (run.path / "history.csv").is_file():
        run.history[:] = read_history(run.path, timed=run.config.minutes is not None)
        if run.complete:
            fill(run.model, load_tensors(weights)[0], weights)
            hint = "" if run.config.precision == "auto" else " (precision makes no other run; another run_dir does)"
            logger.info(f"{run.path} is complete: nothing to train{hint}")
            if run.config.snapshots and not snapshot_files(run.path):
                logger.warning(
                    f"snapshots={run.config.snapshots}: this run has kept no maps by epoch, and is used as it is"
                )
        else:
            run.history.clear()
            logger.warning(f"{run.path} has no checkpoint to go on from: it is trained from the start")
    elif (run.path / "history.csv").is_file():
        logger.warning(f"{weights} is missing, though the run has a history: it is trained from the start")
    if run.complete:
        remove_checkpoints(checkpoints)


def fingerprint(data: Dataset) -> dict[str, Any]:
    """Return the sizes and checksum of a data set, by which a run recognizes its data."""
    digest = data.test.checksum(data.train.checksum())
    return {"train": len(data.train), "test": len(data.test), "crc32": f"{digest:08x}"}


def claim_folder(config: TrainConfig, data: Dataset, resume: bool) -> None:
    """Write config.json into a new folder; refuse one that belongs to other settings, other data or another version."""
    path = config.path
    settings = {**config.identity(), "classes": list(data.classes), "data": fingerprint(data)}
    if (path / "config.json").is_file():
        if not resume:
            raise FileExistsError(f"{path} holds a run already; choose another run_dir, or resume=True")
        before = _read_settings(path)
        _config_of(path, before)  # what `load_run` refuses is refused here, too
        _check_same(path, settings, {**TrainConfig.defaults(), **before})
    elif strangers := [p.name for p in path.iterdir() if not p.name.startswith(".")]:
        raise ValueError(
            f"the folder {path} is not a run (it has no config.json) and not empty ({strangers[0]}, ...); "
            "choose another run_dir"
        )
    else:
        # Recorded, but not compared.
        settings |= {"data_dir": config.data_dir, "snapshots": config.snapshots, "ltpa": __version__}
        write(path / "config.json", json.dumps(settings, indent=2).encode())
    for folder in (path, path / "checkpoints", path / "snapshots"):
        remove_parts(folder)


def _check_same(path: Path, settings: dict[str, Any], before: dict[str, Any]) -> None:
    differing = [name for name in settings if before.get(name) != settings[name]]
    if differing:
        lines = [f"  {name}: {before.get(name)!r} there, {settings[name]!r} now" for name in differing]
        own_settings = {*differing} - {"classes", "data"}
        raise ValueError(
            f"the run folder {path} belongs to other settings or images:\n"
            + "\n".join(lines)
            + f"\nchoose another run_dir, for example {path}-2"
            + (", or leave run_dir out: then every setting has its own" if own_settings else "")
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which ends with the process; wait while another process holds it.

    On a file system without locks (some mounted drives) nothing is locked.
    """
    try:
        if path.exists() and not path.is_dir():
            raise ValueError(f"run_dir {path} is a file; name a folder")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        linked = any(map(os.path.islink, (path, *path.parents)))
        advice = "; a drive that is no longer mounted? Run the cell of the parameters again" if linked else ""
        raise OSError(error.errno, f"cannot make the run folder {path}: {error.strerror}{advice}") from error
    # Not the soft lock that filelock falls back to: it would outlive a process that is killed.
    lock = FileLock(path / ".lock", fallback_to_soft=False)
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info(f"another process is working in {path}: waiting until it ends")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the content of config.json; refuse settings that only a newer version knows."""
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8-sig"))
        classes = settings["classes"]
        if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes must be two names or more")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged ({error!r}); delete the folder or restore it") from error
    settings = {"optimizer": "sgd", "progressive_resizing": False, **settings}  # as in version 0.1
    unknown = settings.keys() - {field.name for field in fields(TrainConfig)} - _NO_SETTINGS
    if unknown and settings.get("ltpa", __version__) != __version__:
        raise ValueError(
            f"{path / 'config.json'} was written by ltpa {settings['ltpa']} and holds settings that ltpa {__version__} "
            f"does not know ({', '.join(sorted(unknown))}); install that version, or choose another run_dir"
        )
    return settings


def _config_of(path: Path, settings: dict[str, Any]) -> TrainConfig:
    values = {name: value for name, value in settings.items() if name not in _NO_SETTINGS}
    try:
        return TrainConfig(**{**values, "run_dir": str(path)})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / 'config.json'} holds settings that this version cannot use: {error}") from error
