"""What a run needs to go on, beside its folder: optimizer, scaler, position, sums of the epoch under way."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..distributed import Processes
from .checkpoint import load_checkpoint, load_tensors, save_checkpoint
from .run import Run, fill, read_history
from .step import optimizer


@dataclass
class State:
    """What a checkpoint holds beside the run itself: optimizer, scaler, position, sums of the epoch under way."""

    run: Run
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    step: int = 0
    sums: Tensor | None = None  # of this process's part of the epoch under way, on the device: loss, correct, samples
    seconds: float = 0.0  # of the epoch under way

    @classmethod
    def start(cls, run: Run, dtype: torch.dtype, device: torch.device) -> "State":
        """The state before the first step."""
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        return cls(run, optimizer(run.model, run.config), scaler, sums=zeros(device))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def save(self, sums: Tensor) -> None:
        """Writes a checkpoint; `sums` are those of all processes."""
        tensors = {f"model.{name}": value for name, value in self.run.model.state_dict().items()}
        for number, parameter in enumerate(self._parameters()):
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{number}"] = momentum
        meta = {
            "history": self.run.history,
            "sums": sums.tolist(),
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.run.path / "checkpoints", self.step, tensors, meta)

    def restore(self, say: Callable[[str], None], note: Callable[[str], None]) -> bool:
        """Takes up the newest whole checkpoint (then True); without one, a complete run's weights; or starts anew."""
        run = self.run
        found = load_checkpoint(run.path / "checkpoints", note)
        if found is not None:
            tensors, meta = found
            weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            fill(run.model, weights, run.path / "checkpoints")
            for number, parameter in enumerate(self._parameters()):
                if f"momentum.{number}" in tensors:
                    momentum = tensors[f"momentum.{number}"].to(parameter.device)
                    self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
            self.step, self.seconds = meta["step"], meta["seconds"]
            self.sums = torch.tensor(meta["sums"], dtype=self.sums.dtype, device=self.sums.device)
            if meta["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(meta["scaler"])
            run.history[:] = meta["history"]
            planned = run.config.planned_epochs
            epochs = f"{len(run.history)} epochs" if planned is None else f"{len(run.history)} of {planned} epochs"
            say(f"going on with {run.path} after {epochs} (step {self.step})")
        elif (run.path / "weights.safetensors").is_file() and (run.path / "history.csv").is_file():
            run.history[:] = read_history(run.path)
            if run.complete:
                weights = run.path / "weights.safetensors"
                fill(run.model, load_tensors(weights)[0], weights)
                say(f"{run.path} is complete: nothing to train")
            else:
                run.history.clear()
                note(f"{run.path} has no checkpoint to go on from: it is trained from the start")
        return found is not None

    def copy_from_first(self, processes: Processes) -> None:
        """Gives all processes what the first one has restored."""
        if processes.count == 1:
            return
        momentum = {p: self.optimizer.state[p].get("momentum_buffer") for p in self._parameters()}
        there = [buffer is not None for buffer in momentum.values()]
        told = processes.told_by_first((self.step, self.seconds, self.run.history, self.scaler.state_dict(), there))
        self.step, self.seconds, self.run.history[:], scaler, there = told
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)
        for parameter, has in zip(momentum, there, strict=True):
            if has:
                self.optimizer.state[parameter].setdefault("momentum_buffer", torch.empty_like(parameter))
        buffers = (self.optimizer.state[p]["momentum_buffer"] for p, has in zip(momentum, there, strict=True) if has)
        processes.copy_from_first(*self.run.model.state_dict().values(), *buffers)


def zeros(device: torch.device) -> Tensor:
    """Sums of loss, right predictions and samples, before the first step."""
    return torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
