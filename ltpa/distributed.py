"""The processes that train one model together: those that `torchrun` started, or this one alone.

For one process everything here is trivial, so `ltpa.fit` is the same code in a notebook and on many machines.
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

PATIENCE = timedelta(hours=1)  # one process may download and read the data while the others wait
ARRIVAL = timedelta(minutes=15)  # so long processes wait at the start for those of other machines
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")  # what torchrun sets

Result = TypeVar("Result")
_groups = itertools.count()


class ProcessLost(ConnectionError):
    """Another process that works together with this one has ended."""


@dataclass(frozen=True)
class Processes:
    """The processes that work together, as seen by one of them.

    Attributes:
        rank: this process, from 0.
        count: how many there are.
        local_rank: this process among those of its machine, from 0.
        local_count: how many there are on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and says something."""
        return self.rank == 0

    def share(self, index: Tensor) -> Tensor:
        """Return this process's part (n,) of the samples (N,) of a step; the parts differ in size by one at most."""
        return index.tensor_split(self.count)[self.rank]

    def bounds(self, count: int) -> slice:
        """Return this process's part of `count` images that stay in order."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def gather(self, value: Any) -> list[Any]:
        """Return what every process has, in their order."""
        if self.count == 1:
            return [value]
        found = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def largest(self, *values: float) -> tuple[float, ...]:
        """Return of each number the largest that a process has: so that all come to the same decision."""
        if self.count == 1:
            return values
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(found.tolist())

    def total(self, values: Tensor) -> Tensor:
        """Return the sums of float64 values over the processes, on the CPU."""
        values = values.cpu().clone()
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def average_norms(self, model: nn.Module) -> None:
        """Replace running means and variances of the batch norms by their averages over the processes.

        As they are updated linearly, this gives what averaging in every step would give.
        """
        if self.count == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                for values in (module.running_mean, module.running_var):
                    if values is not None:
                        dist.all_reduce(values)
                        values.div_(self.count)

    def copy_from_first(self, *tensors: Tensor) -> None:
        """Overwrite tensors with those of the first process."""
        if self.count > 1:
            for values in tensors:
                dist.broadcast(values, 0)

    def copied_from_first(self, value: Result) -> Result:
        """Return what the first process has, a picklable object."""
        if self.count == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, 0)
        return found[0]

    def together(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in every process; where it fails in one, all end, and the first raises that error.

        The others raise SystemExit, so that the error is shown once.
        """
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
        """Call a function in the first process, as `together` does; the others get None."""
        return self.together(function, *arguments) if self.first else self.together(_nothing)

    def in_turn(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function first in one process of each machine, then in the others, which find what it downloaded."""
        if self.count == 1:
            return function(*arguments)
        result: Any = self.together(_nothing if self.local_rank else function, *([] if self.local_rank else arguments))
        again: Any = self.together(function if self.local_rank else _nothing, *(arguments if self.local_rank else []))
        return again if self.local_rank else result

    def shared(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model; for several processes wrapped so that `backward` averages the gradients over them."""
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
    """Return the processes that torchrun started, by its environment variables; without them this one alone."""
    values = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if len(values) < len(_VARIABLES):
        return ALONE
    try:
        found = Processes(*(int(values[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
        if 0 <= found.rank < found.count and 0 <= found.local_rank < found.local_count:
            return found
    except ValueError:
        pass
    raise ValueError(
        f"the environment variables of torchrun do not fit together: {values}; start the processes with torchrun, or "
        "unset RANK"
    )


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Connect the processes that torchrun started, for the time of a `with` block; alone it does nothing.

    Control and metrics go over gloo, gradients on GPUs over NCCL.
    """
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
                f"another process of this training has ended ({words[:200]}); what was saved stays: the same command "
                "goes on"
            ) from error
        if isinstance(error, dist.DistError):
            raise ProcessLost(f"the processes cannot work together: {words}") from error
        raise
    # Only here: after an error others may be gone, and it could wait for them.
    dist.destroy_process_group()


def _portable(error: Exception | None) -> Exception | None:
    """An error as it can be sent to other processes: of a kind that Python itself has."""
    if error is None or type(error).__module__ == "builtins":
        return error
    kind = next((kind for kind in (OSError, ValueError, TypeError) if isinstance(error, kind)), RuntimeError)
    return kind(str(error))
