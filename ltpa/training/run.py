"""The folder of a training run: settings, history, weights, snapshots of maps; read, written, claimed, locked."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._version import __version__
from ..config import TrainConfig
from ..data.dataset import Dataset
from ..data.split import stratified
from ..inference import attend, choose_device
from ..models.classifier import ImageClassifier
from .checkpoint import load_tensors, save_tensors, write

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None


@dataclass
class Run:
    """A training run, finished or not.

    Attributes:
        config: its settings.
        classes: class names.
        model: the network, in evaluation mode, with the weights of the last finished epoch.
        history: one dict an epoch: epoch (from 1), train_loss, train_accuracy, test_loss, test_accuracy (in [0, 1];
            of the held-out images where `validation` is set), learning_rate, seconds (of the whole epoch), and
            entropy_<level>, the mean entropy of the test images' maps (1 = uniform). Where `minutes` are set also
            schedule, the part of the learning rate's schedule that is done; the last row then is not a whole epoch.
        path: its folder, with config.json, history.csv and weights.safetensors.
        notes: what `fit` had to say about data and training: copies in the data, a file that could not be written, maps
            that are uniform or collapsed (see `ltpa.training.health`).
    """

    config: TrainConfig
    classes: tuple[str, ...]
    model: ImageClassifier
    path: Path
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every epoch was trained, or the time is used up."""
        if self.config.planned_epochs is None:
            return bool(self.history) and self.history[-1]["schedule"] >= 1
        return len(self.history) >= self.config.planned_epochs

    def snapshots(self) -> dict[int, dict[str, Tensor]]:
        """Maps of the same few test images after every epoch: {epoch: {level: (K, h, w)}}, 0 = before training."""
        files = sorted((self.path / "snapshots").glob("epoch-*.safetensors"))
        found = {int(file.stem.split("-")[1]): load_tensors(file)[0] for file in files}
        # In the network's order, in which the levels' numbers ascend; files keep none.
        return {epoch: {k: maps[k] for k in sorted(maps, key=lambda k: (len(k), k))} for epoch, maps in found.items()}


def load_run(path: str | Path, device: str = "auto") -> Run:
    """Reads a run: its settings, history, and model with the weights of the last finished epoch.

    Raises:
        FileNotFoundError: no such folder, or a file of the run is missing; the message names it.
        ValueError: a file of the run is damaged.
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
    weights, _ = load_tensors(path / "weights.safetensors")
    config = _config_of(path, settings)
    classes = tuple(settings["classes"])
    model = model_of(config, classes, weights, path / "weights.safetensors", device)
    return Run(config, classes, model, path, read_history(path))


def model_of(
    config: TrainConfig, classes: tuple[str, ...], weights: dict[str, Tensor], source: Path, device: str
) -> ImageClassifier:
    """A model with these weights, in evaluation mode; nothing random is drawn from the caller's generator.

    Raises:
        ValueError: weights that do not fit, with the name of their source; a device that is not there.
    """
    with torch.random.fork_rng(devices=[]):  # the random weights that a new model has are not to cost the caller any
        model = config.create_model(len(classes))
    fill(model, weights, source)
    model.classes = classes
    return model.to(choose_device(device), memory_format=torch.channels_last).eval()


def snapshot_indices(data: Dataset, count: int) -> Tensor:
    """The test images whose maps a run keeps: spread over the classes, the same for every run on this data."""
    return stratified(data.test.labels, min(count, len(data.test)), seed=0)


def save_snapshot(run: Run, images: Tensor, epoch: int) -> None:
    """Writes the maps of a few images (K, 3, H, W) after an epoch, for `Run.snapshots`."""
    maps = attend(run.model, images, run.config.precision).maps
    save_tensors(run.path / "snapshots" / f"epoch-{epoch:04d}.safetensors", dict(maps), {"epoch": epoch})


def save_epoch(run: Run) -> None:
    """Writes weights and history, as they are after the last finished epoch."""
    save_tensors(run.path / "weights.safetensors", run.model.state_dict(), {"epochs": len(run.history)})
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(run.history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.history)
    write(run.path / "history.csv", table.getvalue().encode())


def rescue_weights(run: Run, error: OSError) -> None:
    """The run is over and its folder cannot be written: the weights go to the system's folder for temporary files."""
    try:
        place = Path(tempfile.mkdtemp(prefix="ltpa-")) / "weights.safetensors"
        save_tensors(place, run.model.state_dict(), {"epochs": len(run.history)})
        where = f"the trained weights are in {place}"
    except OSError as second:
        where = f"nor can the trained weights be kept elsewhere ({second.strerror})"
    raise OSError(error.errno, f"{error.strerror}; {where}") from error


def read_history(path: Path) -> list[dict[str, float]]:
    """Reads `history.csv`; ValueError where it is not whole."""
    try:
        text = (path / "history.csv").read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text)))
        history = [{key: int(value) if key == "epoch" else float(value) for key, value in row.items()} for row in rows]
        if not text.endswith("\n") or not history or not {"train_loss", "test_accuracy"} <= history[0].keys():
            raise ValueError("it is not whole")
        if [row["epoch"] for row in history] != list(range(1, len(history) + 1)):
            raise ValueError("epochs are missing")
    except (TypeError, KeyError, ValueError, csv.Error) as error:
        raise ValueError(f"{path / 'history.csv'} is damaged: {error}") from error
    return history


def fill(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Loads weights into a model; ValueError that names their source where they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit the model in config.json: {error}") from error


def fingerprint(data: Dataset) -> dict[str, Any]:
    """What data a run was trained on, so that it never goes on with other data."""
    digest = data.test.checksum(data.train.checksum())
    return {"train": len(data.train), "test": len(data.test), "crc32": f"{digest:08x}"}


def claim_folder(path: Path, config: TrainConfig, data: Dataset, resume: bool) -> None:
    """Writes config.json into a new folder; refuses one that belongs to other settings or other data."""
    settings = {
        **config.identity(),
        "classes": list(data.classes),
        "data": fingerprint(data),
    }
    if (path / "config.json").is_file():
        if not resume:
            raise FileExistsError(f"{path} holds a run already; choose another run_dir, or resume=True")
        before = {**TrainConfig().identity(), **_read_settings(path)}  # a setting that is newer than the run
        differing = [
            f"  {name}: {before.get(name)!r} there, {settings[name]!r} now"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if differing:
            same_settings = all(before.get(name) == value for name, value in config.identity().items())
            raise ValueError(
                f"the run folder {path} belongs to other settings or images:\n"
                + "\n".join(differing)
                + f"\nchoose another run_dir, for example {path}-2"
                + ("" if same_settings else ", or leave run_dir out: then every setting has its own")
            )
        return
    strangers = [p.name for p in path.iterdir() if not p.name.startswith(".")]
    if strangers:
        raise ValueError(
            f"the folder {path} is not a run (it has no config.json) and not empty ({strangers[0]}, ...); "
            "choose another run_dir"
        )
    settings |= {
        "data_dir": config.data_dir,
        "snapshots": config.snapshots,
        "ltpa": __version__,
    }  # to be found again, not to be compared
    write(path / "config.json", json.dumps(settings, indent=2).encode())


@contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes the folder and holds its lock, which ends with the process; waits while another process holds it.

    Where a file system has no locks (some mounted drives), there is none.
    """
    try:
        if path.exists() and not path.is_dir():
            raise ValueError(f"run_dir {path} is a file; name a folder")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        linked = any(map(os.path.islink, (path, *path.parents)))
        advice = "; a drive that is no longer mounted? Run the cell of the parameters again" if linked else ""
        raise OSError(error.errno, f"cannot make the run folder {path}: {error.strerror}{advice}") from error
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is training in {path}: waiting until it ends")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
        classes = settings["classes"]
        if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes must be two names or more")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged ({error!r}); delete the folder or restore it") from error
    return settings


def _config_of(path: Path, settings: dict[str, Any]) -> TrainConfig:
    values = {name: value for name, value in settings.items() if name not in ("classes", "data", "ltpa")}
    try:
        return TrainConfig(**{**values, "run_dir": str(path)})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / 'config.json'} holds settings that this version cannot use: {error}") from error
