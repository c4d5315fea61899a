"""Errors that end a training: numbers that are not finite, and too little memory."""

import math

import torch

from .base import Trainer

# What the messages of a CPU, of CUDA, and of cuBLAS or cuDNN contain.
_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


class TrainingDiverged(FloatingPointError):
    """Loss or weights are not finite; the weights of the last finished epoch are kept."""


class OutOfMemory(MemoryError):
    """A batch does not fit into the device's memory; what was saved of the run is kept."""


def check_finite(trainer: Trainer) -> None:
    """Raise TrainingDiverged unless loss and weights are finite; call this before anything is saved."""
    state, run = trainer.state, trainer.run
    finite = all(bool(value.isfinite().all()) for value in run.model.state_dict().values())
    if trainer.processes.largest(not finite or not math.isfinite(state.sums[0].item()))[0]:
        kept = f"the weights of epoch {len(run.history)} are kept in {run.path}" if run.history else "nothing was saved"
        raise TrainingDiverged(
            f"the {'loss' if finite else 'loss or a weight'} is not finite after step {state.step}; {kept}. "
            f"Try a lower learning rate (it was {trainer.peak}) or precision='fp32'"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch found too little memory, on any device."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in _MEMORY)
