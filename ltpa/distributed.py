"""The processes that train one model together: those that `torchrun` started, or this one alone.

Everything here is trivial for one process, so `ltpa.fit` is the same code in a notebook and on many machines.
"""

import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=1)  # while one process downloads the data, the others wait
ARRIVAL = timedelta(minutes=15)  # for processes of other machines to start
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")  # what torchrun sets

Result = TypeVar("Result")
_groups = itertools.count()


class ProcessLost(ConnectionError):
    """Another process of this training has ended."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as seen by one of them.

    Attributes:
        rank, count: number of this process, from 0, and of all processes.
        local_rank, local_count: the same for the processes of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, index: Tensor) -> Tensor:
        """Return this process's part (n,) of the samples (N,) of a step; sizes differ by one at most."""
        return index.tensor_split(self.count)[self.rank]

    def bounds(self, count: int) -> slice:
        """Return this process's part of `count` images, in order."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def largest(self, *values: float) -> tuple[float, ...]:
        """Return the maximum of each number over the processes, so that all decide alike."""
        if self.count == 1:
            return values
        maxima = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return tuple(maxima.tolist())

    def total(self, values: Tensor) -> Tensor:
        """Return the sums of float64 values over the processes, on the CPU."""
        values = values.cpu().clone()
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def average_norms(self, model: nn.Module) -> None:
        """Average the running statistics of the batch norms over the processes.

        Their updates are linear, so this equals averaging after every step. Those of a frozen backbone stay.
        """
        if self.count == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                if module.weight is not None and not module.weight.requires_grad:
                    continue
                for values in (module.running_mean, module.running_var):
                    if values is not None:
                        dist.all_reduce(values)
                        values.div_(self.count)

    def copy_from_first(self, *tensors: Tensor) -> None:
        """Overwrite tensors with those of the first process."""
        if self.count > 1:
            for values in tensors:
                dist.broadcast(values, 0)

    def together(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in every process; if one fails, the first raises the error and the others SystemExit."""
        result: Any = None
        own: Exception | None = None
        try:
            result = function(*arguments)
        except Exception as error:
            if self.count == 1:
                raise
            own = error
        failed = {rank: error for rank, error in enumerate(self.gather(_portable(own))) if error}
        if not failed:
            return result
        if not self.first:
            raise SystemExit(1)
        if min(failed):
            failed[min(failed)].add_note(f"(in process {min(failed)} of {self.count})")
        raise failed[min(failed)]

    def in_first(self, function: Callable[..., Result], *arguments: Any) -> Result | None:
        """Call a function in the first process only, with errors as in `together`; the others return None."""
        return self.together(function, *arguments) if self.first else self.together(_nothing)

    def in_turn(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in one process of each machine, then in the others, which find its downloads."""
        if self.count == 1:
            return function(*arguments)
        result: Any = self.together(_nothing if self.local_rank else function, *([] if self.local_rank else arguments))
        again: Any = self.together(function if self.local_rank else _nothing, *(arguments if self.local_rank else []))
        return again if self.local_rank else result

    def shared(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model, wrapped for several processes so that `backward` averages their gradients."""
        if self.count == 1:
            return model
        wrapper = nn.parallel.DistributedDataParallel
        # Each process keeps the statistics of its own batch norms until they are averaged. The option has two names.
        names = inspect.signature(wrapper).parameters
        options: dict[str, Any] = {"device_ids": [device] if device.type == "cuda" else None}
        options["forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"] = False
        return wrapper(model, **options)


def _nothing() -> None:
    """Wait for the others."""


ALONE = Processes()


def launched() -> Processes:
    """Return the processes of torchrun's environment variables; without them this one alone."""
    values = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if len(values) < len(_VARIABLES):
        return ALONE
    try:
        processes = Processes(*(int(values[name]) for name in _VARIABLES[:4]))
        if 0 <= processes.rank < processes.count and 0 <= processes.local_rank < processes.local_count:
            return processes
    except ValueError:
        pass
    raise ValueError(
        f"torchrun's environment variables contradict each other: {values}; start with torchrun, or unset RANK"
    )


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Connect the processes that torchrun started for a `with` block: over gloo, gradients on GPUs over NCCL."""
    processes = launched()
    if processes.count == 1 or dist.is_initialized():
        yield processes
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    gradients = "nccl" if dist.is_nccl_available() else "gloo"
    backend = f"cpu:gloo,cuda:{gradients}" if device.type == "cuda" else "gloo"
    try:
        # Under a name of its own each time: the addresses of an earlier group are still in torchrun's store.
        store, rank, count = next(rendezvous("env://", timeout=ARRIVAL))
        store = dist.PrefixStore(f"ltpa-{next(_groups)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
        yield processes
    except RuntimeError as error:
        words = " ".join(str(error).split())
        if "gloo" in words or isinstance(error, dist.DistNetworkError):
            raise ProcessLost(
                f"another process of this training has ended ({words[:200]}); what was saved is kept: the same "
                "command continues"
            ) from error
        if isinstance(error, dist.DistError):
            raise ProcessLost(f"the processes cannot work together: {words}") from error
        raise
    # Only here: after an error others may be gone, and it could wait for them.
    dist.destroy_process_group()


def _portable(error: Exception | None) -> Exception | None:
    """Return the error as one of Python's own classes, which every process can unpickle."""
    if error is None or type(error).__module__ == "builtins":
        return error
    kind = next((kind for kind in (OSError, ValueError, TypeError) if isinstance(error, kind)), RuntimeError)
    return kind(str(error))
