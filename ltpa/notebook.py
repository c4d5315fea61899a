"""What every notebook starts with: its folder, its parameters, the machine it runs on, and a run to look at."""

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ._version import __version__
from .config import QUICK, TrainConfig, raise_problems, unknown_names
from .inference import choose_device, choose_precision
from .train import Run, fit, load_run

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
_OF_IPYTHON = ("In", "Out")
# Changing none of these means: the defaults, made for a GPU.
_SIZE = ("width", "dataset", "data_dir", "image_size", "train_limit", "test_limit", "epochs")

_checked = False


def train_config(namespace: Mapping[str, Any]) -> TrainConfig:
    """The settings of a training notebook, from its parameters; the same small run for everybody without a GPU.

    On a machine without a GPU the default size of a run would take hours. If no parameter of the size was changed, the
    quick parameters take the place of the unchanged ones, and it is said.

    Args:
        namespace: the notebook's `globals()`.

    Raises:
        ValueError, TypeError: one message with everything that is wrong with the parameters.
    """
    values = parameters(namespace, TrainConfig.__dataclass_fields__)
    config = TrainConfig.from_dict(values)
    default = TrainConfig()
    changed = {name for name, value in values.items() if value != getattr(default, name)}
    if choose_device(config.device).type == "cpu" and not changed & set(_SIZE):
        print(
            "There is no GPU here, and the default run would take hours on a CPU. On Colab: Runtime > Change runtime "
            "type > T4 GPU, then run all again.\nGoing on with the quick parameters: "
            + ", ".join(f"{name}={value}" for name, value in QUICK.items() if name not in changed)
        )
        config = TrainConfig.from_dict({**values, **{k: v for k, v in QUICK.items() if k not in changed}})
    return config


def parameters(namespace: Mapping[str, Any], known: Mapping[str, Any] | list[str]) -> dict[str, Any]:
    """The notebook's parameters; refuses any that it does not know, and moves to the project's folder.

    papermill passes a misspelt parameter without a word. What stands in the notebook's namespace the first time this
    is called can only be parameters, so a plain value with an unknown name is one that was misspelt.

    Args:
        namespace: the notebook's `globals()`.
        known: the names of the parameters.

    Raises:
        TypeError: unknown parameters, each with the closest known name.
    """
    global _checked
    os.chdir(project_folder())
    if not _checked:
        plain = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and name not in _OF_IPYTHON and isinstance(value, _PLAIN)
        }
        raise_problems(unknown_names(plain, list(known)))
        _checked = True
    return {name: namespace[name] for name in known if name in namespace}


def project_folder() -> Path:
    """The folder that relative paths start from: the repository around the working folder, else the working folder.

    So `runs/` is the same whether a notebook runs from the repository (papermill), from `notebooks/` (Jupyter) or in
    Colab. The environment variable LTPA_FOLDER names another one.
    """
    if os.environ.get("LTPA_FOLDER"):
        return Path(os.environ["LTPA_FOLDER"])
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "ltpa" / "_version.py").is_file():
            return folder
    return here


def report(config: TrainConfig) -> None:
    """Prints what is needed to repeat a run: versions, device, precision, commit, parameters."""
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    versions = [f"Python {platform.python_version()}", f"ltpa {__version__}{_commit()}"]
    versions += [
        f"{package} {metadata.version(package)}" for package in ("torch", "torchvision", "numpy", "matplotlib")
    ]
    print(", ".join(versions))
    print(f"device {device} ({name}), precision {str(dtype).removeprefix('torch.')}")
    print(f"run folder {config.path}")
    for field in fields(config):
        value = getattr(config, field.name)
        print(f"  {field.name} = {value!r}" + ("" if value == field.default else "  (changed)"))


def _commit() -> str:
    """The commit of a checkout, for the report."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" (commit {found.stdout.strip()})" if found.returncode == 0 and (folder.parent / ".git").exists() else ""


def find_run(name: str, fallback: Mapping[str, Any] | None = None, device: str = "auto") -> Run:
    """The run to look at.

    Args:
        name: a run's folder, or "auto": the newest run under `runs/`, else a quick one that is trained on the spot.
        fallback: settings of that quick run that differ from `ltpa.QUICK`.
        device: where to put the model.

    Raises:
        FileNotFoundError, ValueError: see `ltpa.load_run`; other settings of the quick run that do not work.
    """
    if name != "auto":
        return load_run(name, device)
    written = {folder: _written(folder) for folder in Path("runs").glob("*") if (folder / "config.json").is_file()}
    for folder in sorted(written, key=lambda folder: written[folder], reverse=True):
        try:
            run = load_run(folder, device)
        except (ValueError, FileNotFoundError) as error:
            print(f"left out: {error}")
            continue
        print(f"looking at the newest run, {folder}: {len(run.history)} epochs of {run.config.model} "
              f"on {run.config.dataset}")  # fmt: skip
        return run
    print("there is no run under runs/ yet: training the quick model first, on pictures drawn by code")
    return fit(TrainConfig.from_dict({**QUICK, "snapshots": 8, "device": device, **(fallback or {})}))


def _written(folder: Path) -> float:
    weights = folder / "weights.safetensors"
    return weights.stat().st_mtime if weights.is_file() else 0.0
