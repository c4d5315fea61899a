"""Files that are whole or not there: a run's folder, and checkpoints that a kill at any moment cannot damage."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

KEEP = 2
_PART = ".part-"  # how the names of files begin that are not written to the end


def write(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, flushes it to the disk, then renames it: never half a file.

    No folder is made: where a mounted drive has vanished, its files must not appear beneath the mount point.

    Raises:
        OSError: with the folder's name; the file that was there before is still there.
    """
    temporary = path.with_name(_PART + secrets.token_hex(8))
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write {path.name} into {path.parent}: {reason}") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> None:
    """Writes tensors and JSON-able facts as one safetensors file (reading it runs no code)."""
    write(path, _serialized(tensors, meta))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote: tensors on the CPU, and facts.

    Raises:
        FileNotFoundError, ValueError: a file that is missing or damaged, named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            meta = json.loads((file.metadata() or {}).get("ltpa", "{}"))
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}); delete it or take it from a copy") from error
    return tensors, meta


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Writes `step-<step>-<checksum>.safetensors` and removes all but the last two.

    The checksum (of the content, SHA-256) is in the name, so that a checkpoint and its checksum cannot be parted.
    """
    content = _serialized(tensors, {**meta, "step": step})
    path = folder / f"step-{step:09d}-{_digest(content)}.safetensors"
    write(path, content)
    for old in _checkpoints(folder)[:-KEEP]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def load_checkpoint(
    folder: Path, report: Callable[[str], None] = print
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that is whole, or None; damaged ones are reported and set aside as `*.damaged`."""
    for path in reversed(_checkpoints(folder)):
        if _digest(path.read_bytes()) == path.stem.rpartition("-")[2]:
            return load_tensors(path)
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        report(f"checkpoint {path} is damaged: it is set aside as {aside.name}, and the one before it is looked for")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _serialized(tensors: dict[str, Tensor], meta: dict[str, Any] | None) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata={"ltpa": json.dumps(meta or {})})


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run that is complete, damaged ones too; its weights stay."""
    for path in folder.glob("step-*"):
        with contextlib.suppress(OSError):
            path.unlink()
    remove_parts(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_parts(folder: Path) -> None:
    """Removes what a killed process had not written to the end."""
    for path in folder.glob(_PART + "*"):
        with contextlib.suppress(OSError):
            path.unlink()
