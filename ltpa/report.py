"""What is needed to repeat a run, printed where it starts: in a notebook or on the command line."""

import os
import platform
import subprocess
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import torch

from ._version import __version__
from .config import TrainConfig
from .inference import choose_device, choose_precision


def report(config: TrainConfig, device_name: str | None = None) -> None:
    """Prints what is needed to repeat a run: versions, device, precision, commit, parameters.

    Args:
        config: the settings.
        device_name: the device in use, where it is not that of the settings.
    """
    device = choose_device(device_name or config.device)
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
