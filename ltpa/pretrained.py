"""Weights that come with the package: `ltpa.load_pretrained("cifar10-small")`, for maps without training.

`ltpa/weights` holds safetensors files, each with a model card, and `index.json` with their checksums, all made by
`python -m tests.tools pack` from runs.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from .config import TrainConfig
from .errors import closest
from .models.classifier import ImageClassifier
from .training.checkpoint import load_tensors
from .training.run import by_level, model_of

DEFAULT = "cifar10-small"
DRAWN = "shapes-small"  # trained on pictures drawn by code: these need no network
FOLDER = Path(__file__).parent / "weights"
SNAPSHOTS = "snapshots"  # in a file of weights: "snapshots/<epoch>/<level>", beside the model's own tensors
_REMEDY = "install ltpa again; in a checkout: git checkout -- ltpa/weights"


def list_pretrained() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(read_index())


def load_pretrained(name: str = DEFAULT, device: str = "auto") -> ImageClassifier:
    """Return a trained network that comes with the package, in evaluation mode and with its `.classes`.

    Kernels and matrices are stored in float16; the model is in float32. For its training data and accuracy see
    `pretrained_facts`.

    Args:
        name: one of `ltpa.list_pretrained()`.
        device: "auto", "cpu", "cuda" or "cuda:1".
    """
    facts, weights, path = _read(name)
    tensors = {
        key: value.float() if value.is_floating_point() else value
        for key, value in weights.items()
        if not key.startswith(f"{SNAPSHOTS}/")
    }
    return model_of(TrainConfig(**facts["settings"]), tuple(facts["classes"]), tensors, path, device)


def pretrained_facts(name: str = DEFAULT) -> dict[str, Any]:
    """Return the facts stored with the weights.

    These are the `settings` of `TrainConfig`, the `dataset` to try them on, `classes`, the training's `history` and
    `data`, and measured `figures`.
    """
    return _read(name)[0]


def pretrained_snapshots(name: str = DEFAULT) -> tuple[list[int], dict[int, dict[str, Tensor]]]:
    """Return the numbers of some test images and their maps after every epoch, {epoch: {level: (K, h, w)}}.

    Both are empty for weights that are stored without them.
    """
    facts, tensors, _ = _read(name)
    maps: dict[int, dict[str, Tensor]] = {}
    for key in sorted(tensors):
        if key.startswith(f"{SNAPSHOTS}/"):
            _, epoch, level = key.split("/")
            maps.setdefault(int(epoch), {})[level] = tensors[key].float()
    return facts.get(SNAPSHOTS, []), {epoch: by_level(by_name) for epoch, by_name in maps.items()}


def read_index() -> dict[str, dict[str, Any]]:
    """Return name -> {"sha256": of the file, "bytes": its length}."""
    path = FOLDER / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}, the index of the weights that come with ltpa, is missing; {_REMEDY}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])} for name, entry in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}, the index of the weights that come with ltpa, is damaged; {_REMEDY}") from error


def digest(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return facts, tensors and their file, whose checksum is verified first."""
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
