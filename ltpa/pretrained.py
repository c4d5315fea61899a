"""Weights that come with the package: `ltpa.load_pretrained("cifar10-small")`, for maps without training.

`ltpa/weights` holds safetensors files, each with a model card, and `index.json` with their checksums, all made by
`python -m tests.tools pack` from runs.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import TrainConfig
from .errors import closest
from .inference import choose_device
from .models.classifier import ImageClassifier
from .models.networks import create_model
from .models.sharing import CONFIG, FILES, WEIGHTS
from .training.checkpoint import fill, load_tensors
from .training.run import by_level, facts_of, load_run, model_of, placed

DEFAULT = "cifar10-small"
DRAWN = "shapes-small"  # trained on pictures drawn by code, which need no download
FOLDER = Path(__file__).parent / "weights"
SNAPSHOTS = "snapshots"  # in a file of weights: "snapshots/<epoch>/<level>", beside the model's own tensors
_REMEDY = "install ltpa again; in a checkout: git checkout -- ltpa/weights"


def list_pretrained() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(read_index())


def load_pretrained(name: str | os.PathLike = DEFAULT, device: str = "auto") -> ImageClassifier:
    """Return a trained network, in evaluation mode and with its `.classes`.

    Its `.facts` say what it was trained on and how accurate it is. Weights that come with the package are stored in
    float16; `ltpa.pretrained.pretrained_facts` has more about them.

    Args:
        name: one of `ltpa.list_pretrained()`; or the folder of a run or of `model.save_pretrained`; or "owner/name" on
            the Hugging Face hub.
        device: "auto", "cpu", "cuda" or "cuda:1".
    """
    name = os.fspath(name)
    if name not in read_index():
        return _from_elsewhere(name, device)
    facts, weights, path = _read(name)
    tensors = {
        key: value.float() if value.is_floating_point() else value
        for key, value in weights.items()
        if not key.startswith(f"{SNAPSHOTS}/")
    }
    config = TrainConfig(**facts["settings"])
    model = model_of(config, tuple(facts["classes"]), tensors, path, device)
    model.facts = facts_of(config, facts["history"], facts["data"])
    return model


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


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return facts, tensors and their file, whose checksum is verified first."""
    index = read_index()
    if name not in index:
        raise ValueError(f"unknown weights {name!r}: {closest(name, index)}")
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though these weights come with ltpa; {_REMEDY}")
    content, expected = path.read_bytes(), index[name]
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected["sha256"]:
        raise ValueError(
            f"{path} was altered or cut off: it has {len(content)} bytes with SHA-256 {digest[:12]}..., and "
            f"should have {expected['bytes']} bytes with {expected['sha256'][:12]}...; {_REMEDY}"
        )
    tensors, facts = load_tensors(path)
    return facts, tensors, path


def _from_elsewhere(name: str, device: str) -> ImageClassifier:
    """Return the network of a folder, or of the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_folder(folder, device) if (folder / WEIGHTS).is_file() else load_run(folder, device).model
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and name[0] != ".":
        return _from_hub(name, device)
    raise ValueError(
        f"unknown weights {name!r}: {closest(name, read_index())}; or a folder that exists, or owner/name on the hub"
    )


def _from_folder(folder: Path, device: str) -> ImageClassifier:
    """Return the network that `model.save_pretrained` wrote; a ValueError names a damaged file."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        options, classes = dict(config["create_model"]), config["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe a saved network ({error!r})") from error
    with torch.random.fork_rng(devices=[]):
        model = create_model(**{**options, "pretrained": False})
    fill(model, load_tensors(folder / WEIGHTS)[0], folder / WEIGHTS)
    model.options, model.facts = options, dict(config.get("facts") or {})
    return placed(model, None if classes is None else tuple(classes), choose_device(device))


def _from_hub(repository: str, device: str) -> ImageClassifier:
    """Return a network from the hub, or from its cache; an OSError says what to do if neither has it."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, allow_patterns=list(FILES))
    except Exception as error:  # the hub's client has many errors, and they change
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise OSError(
            f"{repository!r} is not a folder here and cannot be downloaded from the hub ({type(error).__name__}: "
            f"{reason}); check the name, connect to the internet once (it then stays in the cache; HF_HOME sets "
            "its folder), and log in for a private one: hf auth login"
        ) from error
    return _from_folder(Path(folder), device)
