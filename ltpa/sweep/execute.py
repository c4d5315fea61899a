"""What a Dask worker does with one variant: execute its notebook in a kernel, or call `fit`; stop when nobody waits."""

import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..training.base import Callback, Trainer
from ..training.callbacks import Saving
from ..training.run import read_history
from ..training.trainer import fit
from .record import Record

POLL = 1.0  # seconds between questions to the scheduler
SILENCE = 5.0  # seconds without an answer after which the scheduler counts as gone
GRACE = 5.0  # seconds from the interrupt of a kernel to its end
_one_fit = threading.Lock()  # trainings in one process would share torch's random state
_running: set[str] = set()


class Stopped(Exception):
    """Nobody waits for the result: the command has ended, or another worker has taken over."""


@dataclass(frozen=True)
class Task:
    """A variant for a worker: its record and parameters, and its notebook or None for `fit` alone."""

    record: Record
    parameters: Mapping[str, Any]
    notebook: Any = None
    source: str = ""  # where the notebook was read
    output: str = ""  # where the executed one goes
    kernel: str | None = None


def execute(task: Task) -> Record:
    """Execute a variant and return its record, done or failed; other errors are raised."""
    from distributed import get_worker

    key = str(get_worker().get_current_task())
    started = time.monotonic()
    _running.add(key)
    try:
        with _watched(key) as watch:
            record = _call_fit(task, watch) if task.notebook is None else _execute_notebook(task, watch)
    finally:
        _running.discard(key)
    return replace(record, seconds=round(time.monotonic() - started, 2))


def running() -> int:
    """Return how many variants this process executes."""
    return len(_running)


class Watch:
    """Whether the variant is still wanted; once it is not, `stop` is called every second."""

    def __init__(self) -> None:
        self.stop: Callable[[float], object] = lambda seconds: None
        self.stopped = False
        self.ended = threading.Event()

    def run(self, wanted: Callable[[], bool]) -> None:
        """Ask again and again until the variant has ended."""
        answered = time.monotonic()
        while not self.stopped and not self.ended.wait(POLL):
            try:
                self.stopped, answered = not wanted(), time.monotonic()
            except Exception:  # whatever a lost connection raises
                self.stopped = time.monotonic() - answered > SILENCE
        since = time.monotonic()
        while not self.ended.is_set():
            self.stop(time.monotonic() - since)
            self.ended.wait(POLL)


@contextmanager
def _watched(key: str) -> Iterator[Watch]:
    """Watch over a task; raise `Stopped` at its end if it was not wanted any more."""
    from distributed import get_client, get_worker

    client, address, watch = get_client(), get_worker().address, Watch()

    def wanted() -> bool:
        return client.run_on_scheduler(_is_wanted, key, address)

    thread = threading.Thread(target=watch.run, args=[wanted], daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        thread.join(SILENCE)
        if watch.stopped:
            raise Stopped(key) from None


def _is_wanted(key: str, address: str, dask_scheduler: Any) -> bool:
    """Return whether the scheduler expects this task of this worker; it forgets the tasks of a client that is gone."""
    task = dask_scheduler.tasks.get(key)
    return task is not None and task.processing_on is not None and task.processing_on.address == address


class _StopTraining(Callback):
    """Save after the current step and end, as after Ctrl-C, when the watch says so."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_step(self, trainer: Trainer) -> None:
        """Look at the watch."""
        if self._watch.stopped:
            for callback in trainer.callbacks:
                if isinstance(callback, Saving):
                    callback.interrupted.number = signal.SIGINT


def _call_fit(task: Task, watch: Watch) -> Record:
    with _one_fit:
        if watch.stopped:
            return task.record
        try:
            run = fit(TrainConfig.from_text(task.parameters), progress=False, callbacks=[_StopTraining(watch)])
        except KeyboardInterrupt:
            return task.record
        except (Exception, SystemExit) as error:
            return replace(task.record, state="failed", error=_last_line(error))
    return replace(_with_run(task.record, run.path), state="done")


def _execute_notebook(task: Task, watch: Watch) -> Record:
    from papermill import PapermillExecutionError, execute_notebook
    from papermill.engines import papermill_engines

    from .engine import KernelEngine

    papermill_engines.register("ltpa-sweep", KernelEngine)
    record = replace(task.record, notebook=task.output)
    with tempfile.TemporaryFile() as log:
        try:
            notebook = execute_notebook(
                task.notebook,
                task.output.replace("{", "{{").replace("}", "}}"),  # papermill formats it
                dict(task.parameters),
                engine_name="ltpa-sweep",
                kernel_name=task.kernel,
                progress_bar=False,
                start_timeout=180,
                source=task.source,
                log=log,
                on_start=lambda kernel_id: setattr(watch, "stop", lambda seconds: _end_kernel(kernel_id(), seconds)),
            )
        except PapermillExecutionError as error:
            words = " ".join(f"{error.ename}: {error.evalue}".split())
            return replace(record, state="failed", cell=error.cell_index + 1, error=words[:500])
        except Exception as error:  # no kernel, a folder that cannot be written
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()[-1:]
            return replace(record, state="failed", error="; the kernel said: ".join([_last_line(error), *lines]))
    return replace(_with_run(record, task.parameters.get("run_dir")), state="done", recorded=recorded(notebook))


def recorded(notebook: Any) -> dict[str, Any]:
    """Return the values that a notebook displayed as JSON mappings, `IPython.display.JSON({"name": value})`."""
    values: dict[str, Any] = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            content = output.get("data", {}).get("application/json")
            values.update(content if isinstance(content, dict) else {})
    return values


def _with_run(record: Record, path: str | Path | None) -> Record:
    """Return the record with the run's folder and the last row of its history, if the notebook has made one."""
    if path is None or not Path(path, "history.csv").is_file():
        return record
    history = read_history(Path(path))
    metrics = {name: value for name, value in history[-1].items() if name != "seconds"}
    metrics["training_seconds"] = sum(row["seconds"] for row in history)
    return replace(record, run=str(path), metrics=metrics)


def _end_kernel(pid: int | None, seconds: float) -> None:
    """Interrupt a kernel, so that a training in it saves; after some seconds kill it."""
    if pid is not None:
        with suppress(OSError):
            os.kill(pid, signal.SIGINT if seconds < GRACE else signal.SIGKILL)


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:500]
