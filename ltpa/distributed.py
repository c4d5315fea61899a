"""The processes that train one model together: those that `torchrun` started, or this one alone.

For one process everything here is trivial, so `ltpa.fit` is the same code in a notebook and on many machines.
"""

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
    """The processes that work together, as one of them sees it.

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
        """This process's part (n,) of the samples (N,) of a step; the parts differ in size by one at most."""
        return index.tensor_split(self.count)[self.rank]

    def bounds(self, count: int) -> slice:
        """This process's part of `count` images that stay in order."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in their order."""
        if self.count == 1:
            return [value]
        found = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def largest(self, *values: float) -> tuple[float, ...]:
        """Of each number the largest that a process has: so that all come to the same decision."""
        if self.count == 1:
            return values
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(found.tolist())

    def total(self, values: Tensor) -> Tensor:
        """The sums of float64 values over the processes, on the CPU."""
        values = values.cpu().clone()
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def average_norms(self, model: nn.Module) -> None:
        """Running means and variances of the batch norms: their averages over the processes.

        As they are updated linearly, this gives what averaging in every step would give.
        """
        if self.count == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                for values in (module.running_mean, module.running_var):
                    dist.all_reduce(values)
                    values /= self.count

    def copy_from_first(self, *tensors: Tensor) -> None:
        """Overwrites tensors with those of the first process."""
        if self.count > 1:
            for values in tensors:
                dist.broadcast(values, 0)

    def told_by_first(self, value: Result) -> Result:
        """What the first process has, a picklable object."""
        if self.count == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, 0)
        return found[0]

    def together(self, function: Callable[[], Result]) -> Result:
        """Calls a function in every process; where it fails in one, all end, and the first tells why.

        Raises:
            Exception: the one of the first process that failed; in the others SystemExit, so that it is told once.
        """
        result, error = None, None
        try:
            result = function()
        except Exception as found:
            if self.count == 1:
                raise
            error = found
        failed = next(((rank, found) for rank, found in enumerate(self.gather(_portable(error))) if found), None)
        if failed is None:
            return result
        if not self.first:
            raise SystemExit(1)
        rank, found = failed
        if rank:
            found.add_note(f"(in process {rank} of {self.count})")
        raise found

    def in_turn(self, function: Callable[[], Result]) -> Result:
        """Calls a function first in one process of each machine, then in the others: what it downloads is there then.

        Raises:
            Exception: see `together`.
        """
        if self.count == 1:
            return function()
        result = self.together(lambda: None if self.local_rank else function())
        return self.together(function if self.local_rank else lambda: result)


ALONE = Processes()


def launched() -> Processes:
    """The processes that torchrun started, by its environment variables; without them this one alone.

    Raises:
        ValueError: the variables hold no numbers that fit together.
    """
    values = {name: os.environ.get(name) for name in _VARIABLES}
    if None in values.values():
        return ALONE
    try:
        found = Processes(*(int(values[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    except ValueError:
        found = None
    if found is None or not 0 <= found.rank < found.count or not 0 <= found.local_rank < found.local_count:
        raise ValueError(
            f"the environment variables of torchrun do not fit together: {values}; start the processes with torchrun, "
            "or unset RANK"
        )
    return found


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Connects the processes that torchrun started, for the time of a `with` block; alone it does nothing.

    Control and metrics go over gloo, gradients on GPUs over NCCL.

    Raises:
        ProcessLost: another process has ended in between.
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
