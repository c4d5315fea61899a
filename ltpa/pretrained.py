"""Weights that come with the package: `ltpa.load_pretrained("cifar10-small")`, for maps without any training.

They lie in `ltpa/weights`: safetensors files, each with a model card, and `index.json` with their checksums;
`python -m tests.tools pack` makes them from runs.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .errors import closest
from .training.checkpoint import load_tensors
from .training.run import Run, model_of

DEFAULT = "cifar10-small"
FOLDER = Path(__file__).parent / "weights"
_REMEDY = "install ltpa again; in a checkout: git checkout -- ltpa/weights"


def list_pretrained() -> list[str]:
    """Names of the weights that come with the package.

    Raises:
        FileNotFoundError, ValueError: their index is missing or damaged.
    """
    return sorted(read_index())


def load_pretrained(name: str = DEFAULT, device: str = "auto") -> Run:
    """A trained network that comes with the package, as `ltpa.load_run` gives those that you have trained.

    Args:
        name: one of `ltpa.list_pretrained()`.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        a complete run: the model in evaluation mode and float32 (kernels and matrices are stored in float16), classes,
        history, `config` with the data set whose images belong to it (`ltpa.data_for(run.config)` reads or downloads
        them), and in `notes` what it was trained on. `path` is the file; there are no snapshots.

    Raises:
        ValueError: an unknown name; a file that was altered or cut off; a device that is not there.
        FileNotFoundError: the file is missing.
    """
    facts, weights, path = _read(name)
    config = TrainConfig(**{**facts["settings"], "dataset": facts["dataset"]})
    classes = tuple(facts["classes"])
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    model = model_of(config, classes, tensors, path, device)
    return Run(config, classes, model, path, facts["history"], [f"trained on {facts['data']['description']}"])


def pretrained_facts(name: str = DEFAULT) -> dict[str, Any]:
    """What is known of weights that come with the package: settings, classes, history, data and measured figures.

    Raises:
        ValueError, FileNotFoundError: see `load_pretrained`.
    """
    return _read(name)[0]


def read_index() -> dict[str, dict[str, Any]]:
    """name -> {"sha256": of the file, "bytes": its length}.

    Raises:
        FileNotFoundError, ValueError: the index is missing or damaged.
    """
    path = FOLDER / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}, the index of the weights that come with ltpa, is missing; {_REMEDY}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])} for name, entry in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}, the index of the weights that come with ltpa, is damaged; {_REMEDY}") from error


def digest(content: bytes) -> str:
    """SHA-256, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Facts, tensors, and the file that they are from, which was checked before anything in it was read."""
    index = read_index()
    if name not in index:
        raise ValueError(f"unknown weights {name!r}: {closest(name, index)}")
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though these weights come with ltpa; {_REMEDY}")
    content, expected = path.read_bytes(), index[name]
    if digest(content) != expected["sha256"]:
        raise ValueError(
            f"{path} was altered or cut off: it has {len(content)} bytes with SHA-256 {digest(content)[:12]}..., and "
            f"should have {expected['bytes']} bytes with {expected['sha256'][:12]}...; {_REMEDY}"
        )
    tensors, facts = load_tensors(path)
    return facts, tensors, path
