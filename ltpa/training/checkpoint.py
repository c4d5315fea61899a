"""Atomic writes and checkpoints: a kill at any moment cannot damage a run."""

import contextlib
import hashlib
import json
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..distributed import Processes
from ..progress import logger

KEEP = 2
_PART = ".part-"  # prefix of files that are being written


@dataclass
class State:
    """What training changes; a checkpoint holds all of it.

    Attributes:
        scaler: enabled for fp16 only.
        sums: loss, correct predictions and samples of this process in the current epoch, on the device.
        history: one row an epoch, see `ltpa.Run`.
        step: number of steps done.
        seconds: time that earlier processes spent on the current epoch.
        since: start of the epoch in this process, by `time.monotonic`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    sums: Tensor
    history: list[dict[str, float]]
    step: int = 0
    seconds: float = 0.0
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls, model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype, history: list[dict[str, float]]
    ) -> "State":
        """Return the state before the first step."""
        device = next(model.parameters()).device
        sums = torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        return cls(model, optimizer, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16), sums, history)

    def count(self, loss: Tensor, correct: Tensor, samples: int) -> None:
        """Add a step: its mean loss and its number of correct predictions."""
        loss, correct = loss.to(self.sums.dtype), correct.to(self.sums.dtype)
        self.sums += torch.stack([loss * samples, correct, torch.full_like(loss, samples)])
        self.step += 1

    def elapsed(self) -> float:
        """Return the seconds spent on the current epoch."""
        return self.seconds + time.monotonic() - self.since

    def next_epoch(self) -> None:
        """Reset sums and seconds."""
        self.sums.zero_()
        self.seconds, self.since = 0.0, time.monotonic()

    def save(self, folder: Path, sums: Tensor) -> None:
        """Write a checkpoint; `sums` are those of all processes."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer.{number}.{key}": value for number, key, value in self._optimizer_tensors()}
        meta = {
            "history": self.history,
            "sums": sums.tolist(),
            "seconds": self.elapsed(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(folder, self.step, tensors, meta)

    def restore(self, folder: Path) -> bool:
        """Load the newest undamaged checkpoint of a folder; return False where there is none."""
        found = load_checkpoint(folder)
        if found is None:
            return False
        tensors, meta = found
        fill(self.model, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}, folder)
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                self._room(int(number), key, value.shape, value.dtype).copy_(value)
        self.step, self.seconds, self.history[:] = meta["step"], meta["seconds"], meta["history"]
        self.sums.copy_(torch.tensor(meta["sums"], dtype=self.sums.dtype))
        if meta["scaler"] and self.scaler.is_enabled():  # the precision may be another one now
            self.scaler.load_state_dict(meta["scaler"])
        return True

    def copy_from_first(self, processes: Processes) -> None:
        """Copy what the first process has restored to all others."""
        if processes.count == 1:
            return
        kept = [(number, key, value.shape, value.dtype) for number, key, value in self._optimizer_tensors()]
        own = self.step, self.seconds, self.history, self.scaler.state_dict(), kept
        self.step, self.seconds, self.history[:], scaler, kept = processes.gather(own)[0]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)
        processes.copy_from_first(*self.model.state_dict().values(), *(self._room(*place) for place in kept))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _optimizer_tensors(self) -> list[tuple[int, str, Tensor]]:
        return [
            (number, key, value)
            for number, parameter in enumerate(self._parameters())
            for key, value in self.optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        ]

    def _room(self, number: int, key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return the tensor that the optimizer keeps for a parameter; create it where it is missing."""
        parameter = self._parameters()[number]
        like = torch.empty_like(parameter, dtype=dtype, requires_grad=False)  # with its memory format
        room = like if parameter.shape == shape else parameter.new_empty(shape, dtype=dtype, requires_grad=False)
        return self.optimizer.state[parameter].setdefault(key, room)


def fill(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load weights into a model; a ValueError names their source where they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit the model in config.json: {error}") from error


def write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it; a failure keeps the old file.

    No folder is made: the files of a mounted drive that vanished must not appear beneath its mount point.
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
    """Write tensors and JSON-able metadata as one safetensors file, which runs no code when it is read."""
    write(path, _serialized(tensors, meta))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and metadata of a file; a ValueError names a damaged one."""
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
    """Write `step-<step>-<SHA-256 of the content>.safetensors` and remove all but the last two."""
    content = _serialized(tensors, {**meta, "step": step})
    path = folder / f"step-{step:09d}-{_digest(content)}.safetensors"
    write(path, content)
    for old in _checkpoints(folder)[:-KEEP]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the newest undamaged checkpoint, or None; damaged ones are renamed to `*.damaged`."""
    for path in reversed(_checkpoints(folder)):
        if _digest(path.read_bytes()) == path.stem.rpartition("-")[2]:
            return load_tensors(path)
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        logger.warning(f"checkpoint {path} is damaged: it was renamed to {aside.name}, and the one before it is used")
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a complete run, damaged ones too."""
    for path in folder.glob("step-*"):
        with contextlib.suppress(OSError):
            path.unlink()
    remove_parts(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_parts(folder: Path) -> None:
    """Remove files that a killed process left half written."""
    for path in folder.glob(_PART + "*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _serialized(tensors: dict[str, Tensor], meta: dict[str, Any] | None) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata={"ltpa": json.dumps(meta or {})})
