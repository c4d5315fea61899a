"""New processes that start at once: forked from a server that has loaded torch, whose import takes seconds."""

import multiprocessing
import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_CONTEXT = multiprocessing.get_context(_METHOD)
_CONTEXT.set_forkserver_preload(["ltpa.__main__"])


class Ended(NamedTuple):
    """How a process ended, and what it printed."""

    status: int
    out: str
    err: str


class Started:
    """A process that calls a function; `folder` takes what it prints."""

    def __init__(self, folder: Path, function: Callable, *arguments: object, **environment: object) -> None:
        self._files = [folder / f"{function.__name__}{environment.get('RANK', '')}.{name}" for name in ("out", "err")]
        variables = {name: str(value) for name, value in environment.items()}
        call = (function, arguments, os.getcwd(), self._files, variables)
        self._process = _CONTEXT.Process(target=_call, args=call, daemon=True)
        with chdir(ROOT):  # where the server, which the first start begins, finds `ltpa`
            self._process.start()
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> Ended:
        """Wait for the end, a minute at most; the status is 128 + the number of a signal that killed it."""
        self._process.join(60)
        if self.alive:
            self._process.kill()
            raise TimeoutError(self._files[1].read_text())
        status = self._process.exitcode
        return Ended(128 - status if status < 0 else status, *(file.read_text() for file in self._files))


def run_together(count: int, folder: Path, function: Callable, *arguments: object) -> list[Ended]:
    """Call a function in several processes, with the variables and the store that torchrun gives its workers."""
    folder.mkdir(exist_ok=True)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    counts = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    started = [
        Started(folder, function, *arguments, RANK=rank, LOCAL_RANK=rank, **address, **counts) for rank in range(count)
    ]
    return [process.end() for process in started]


def _call(function: Callable, arguments: tuple, folder: str, files: list[Path], environment: dict[str, str]) -> None:
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    function(*arguments)
