"""Print what is needed to repeat a run, at its start in a notebook or on the command line."""

import json
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..config import TrainConfig
from ..cores import available_cores
from ..inference import choose_device, choose_precision
from ..models.networks import is_backbone

_NOT_OF_BACKBONES = ("width", "progressive_resizing")  # settings that change nothing there


def report(config: Any, own: Any = None) -> None:
    """Print versions, commit, device, precision and settings.

    Args:
        config: the settings of the run; for a notebook of many runs, the notebook's parameters.
        own: the notebook's parameters, beside the settings of its run; they name the device.
    """
    device = choose_device((own or config).device)
    dtype = choose_precision(getattr(config, "precision", "auto"), device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{available_cores()} cores"
    versions = [f"Python {platform.python_version()}", f"ltpa {__version__} ({_origin()})"]
    versions += [
        f"{package} {metadata.version(package)}" for package in ("torch", "torchvision", "numpy", "matplotlib")
    ]
    print(", ".join(versions))
    print(f"device {device} ({name}), precision {str(dtype).removeprefix('torch.')}")
    if own is not None:
        print("parameters of this notebook")
        _print_fields(own)
    if isinstance(config, TrainConfig):
        print(f"run folder {config.path}")
    _print_fields(config)


def _print_fields(settings: Any) -> None:
    has_backbone = isinstance(settings, TrainConfig) and is_backbone(settings.model)
    for name, default in settings.defaults().items():
        if has_backbone and name in _NOT_OF_BACKBONES:
            continue
        value = getattr(settings, name)
        same = (tuple(value) if isinstance(value, list) else value) == default
        print(f"  {name} = {value!r}" + ("" if same else "  (changed)"))


def _origin() -> str:
    """Return where this code comes from: the commit of a checkout, or what pip installed it from."""
    folder = Path(__file__).parents[1]  # ltpa/
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=, with changes", "--exclude=*"]
    if (folder.parent / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(command, capture_output=True, text=True, timeout=5)
            if found.returncode == 0:
                return f"commit {found.stdout.strip()}"
    with suppress(metadata.PackageNotFoundError, ValueError):
        # What pip notes down (PEP 610) of a package that comes from an address: a tag's archive, or a commit.
        noted = json.loads(metadata.distribution("ltpa").read_text("direct_url.json") or "{}")
        if commit := noted.get("vcs_info", {}).get("commit_id"):
            return f"commit {commit}"
        if "archive_info" in noted:
            return f"from {noted['url']}"
    return f"commit unknown: no git checkout; the code of a release is at its tag v{__version__}"
