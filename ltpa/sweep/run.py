"""Run a sweep: hand its variants to Dask workers, keep the results, try a failure once more, stop cleanly."""

import logging
import os
import signal
import statistics
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from ..cores import available_cores
from ..errors import duration, optional_module
from ..inference import choose_device
from ..progress import logger, messages
from ..training.callbacks import handled
from ..training.checkpoint import write
from ..training.run import locked
from .plan import EXTRA, Plan
from .record import Record, load_sweep

EACH_BYTES = 1.5e9  # memory of a worker with its kernel, beside its data
ATTEMPTS = 2
TABLE = "sweep.csv"
STOP_SECONDS = 9.0  # for running variants to save and end


def run_sweep(
    plan: Plan,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    kernel: str | None = None,
    notebooks: str | None = None,
) -> pd.DataFrame:
    """Execute the variants of a plan that are not done, write `sweep.csv`, and return its table.

    A variant that fails is tried once more, then kept as failed while the others go on. Ctrl-C, SIGTERM and SIGHUP stop
    the sweep: running trainings save, and the same call continues. It waits for another sweep in the folder.

    Args:
        plan: from `make_plan`.
        workers: how many variants at once; None is as many as cores and memory allow, and one on a GPU.
        scheduler: address of a Dask cluster that exists; None starts workers on this machine.
        kernel: name of the Jupyter kernel; None is the notebook's own.
        notebooks: folder or address for the executed notebooks; None is the variant's folder.
    """
    optional_module("distributed", "a sweep needs dask.distributed", EXTRA)
    with messages(True, []), locked(plan.folder), handled(signal.default_int_handler, "SIGTERM", "SIGHUP"):
        plan = plan.current()  # after the wait for another sweep
        for record in plan.open:
            replace(record, state="waiting").save(plan.folder)
        _warn_of_other_notebooks(plan)
        if plan.open:
            with _client(plan, workers, scheduler) as client:
                _Sweep(plan, client, kernel, notebooks or str(plan.folder.absolute())).run()
        table = load_sweep(plan.folder)
        write(plan.folder / TABLE, table.to_csv(index=False, lineterminator="\n").encode())
        logger.info(f"the table is {plan.folder / TABLE}")
        return table


def _warn_of_other_notebooks(plan: Plan) -> None:
    old = [r for r in plan.records if r.state == "done" and r.source != plan.target.source]
    if old:
        logger.warning(
            f"{len(old)} done variants, {old[0].name} among them, were executed with another version of the notebook "
            "(or without one); to execute one again, delete its variant.json"
        )


@contextmanager
def _client(plan: Plan, workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """Connect to a cluster that exists, or start one on this machine."""
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if scheduler is not None:
            try:
                client = stack.enter_context(Client(scheduler, timeout=20, set_as_default=False))
            except (OSError, ValueError) as error:
                raise OSError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        else:
            count, threads = machine_share(len(plan.records), len(plan.open), workers, _device(plan))
            names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            environment = dict.fromkeys(names, threads)
            stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": environment}))
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                memory_limit=None,
                dashboard_address="localhost:0",
                silence_logs=logging.CRITICAL,
            )
            client = stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False))
            client.register_plugin(_own_group())
            logger.info(f"{count} workers with {threads} threads each")
        logger.info(f"dashboard: {client.dashboard_link}")
        yield client


def machine_share(variants: int, left: int, workers: int | None, device: str) -> tuple[int, int]:
    """Return how many workers this machine gets for the variants that are left, and the threads of each.

    The number of threads does not depend on what is left: it changes the rounding of sums, so a run that is continued
    would not have the same weights, bit by bit, as an undisturbed one.
    """
    cores = available_cores()
    memory, most = psutil.virtual_memory(), workers
    if most is None:
        most = 1 if device != "cpu" else min(cores, int(memory.total / EACH_BYTES))
    most = max(1, min(most, variants))
    free = most if workers is not None else max(1, int(memory.available / EACH_BYTES))
    return min(most, left, free), max(1, cores // most)


def _device(plan: Plan) -> str:
    wanted = {record.parameters.get("device", plan.target.defaults.get("device", "auto")) for record in plan.open}
    return "cpu" if wanted == {"cpu"} else choose_device("auto").type


def _own_group() -> Any:
    """Return a plugin that takes the workers out of the terminal's group: its Ctrl-C is for the command alone."""
    from distributed import WorkerPlugin

    class OwnGroup(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            with suppress(AttributeError, OSError):
                os.setpgid(0, 0)

    return OwnGroup()


@dataclass
class _Sweep:
    """The variants on their way: futures with their records and attempts."""

    plan: Plan
    client: Any
    kernel: str | None
    notebooks: str  # folder or address
    pending: dict[Any, tuple[Record, int]] = field(default_factory=dict)
    failed: list[Record] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    state: str = ""

    def run(self) -> None:
        """Submit all variants and wait for them."""
        try:
            for record in self.plan.open:
                self._submit(record, 1)
            while self.pending:
                for future in [future for future in self.pending if future.done()]:
                    self._take(future)
                self._report()
                time.sleep(0.25)
        except KeyboardInterrupt:
            logger.info("stopping: running trainings save first; the same command continues from there")
            self._stop()
            raise
        for record in self.failed:
            logger.info(f"failed: {record.failure()}")

    def _submit(self, record: Record, attempt: int) -> None:
        from .execute import execute

        key = f"{record.name}-{attempt}-{uuid.uuid4().hex[:8]}"
        future = self.client.submit(execute, self._task(record), key=key, pure=False)
        self.pending[future] = (record, attempt)

    def _task(self, record: Record) -> Any:
        from .execute import Task

        folder, target = self.plan.folder.absolute() / record.name, self.plan.target
        parameters: Mapping[str, Any] = record.parameters
        if "run_dir" in target.defaults:
            parameters = {**parameters, "run_dir": str(folder / "run")}
        if target.notebook is None:
            return Task(record, parameters)
        output = f"{self.notebooks.rstrip('/')}/{record.name}/{Path(target.path).name}"
        if "://" not in output:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
        return Task(record, parameters, target.notebook, target.path, output, self.kernel)

    def _take(self, future: Any) -> None:
        """Keep the result of a variant; submit it again after the first failure."""
        from distributed import CancelledError

        record, attempt = self.pending.pop(future)
        try:
            result = future.result()
        except CancelledError as error:
            raise ConnectionError(
                "the scheduler is gone; finished variants are kept, and the same command continues from there"
            ) from error
        except Exception as error:
            result = replace(record, state="failed", error=_worker_error(error))
        if result.state == "failed" and attempt < ATTEMPTS:
            logger.info(f"failed, trying once more: {result.failure()}")
            self._submit(record, attempt + 1)
            return
        own = self.plan.folder.absolute() / record.name
        places = {name: _relative(getattr(result, name), own) for name in ("run", "notebook")}
        replace(result, source=self.plan.target.source, **places).save(self.plan.folder)
        if result.state == "failed":
            self.failed.append(result)
        if result.seconds:
            self.seconds.append(result.seconds)

    def _report(self) -> None:
        """Say how far the sweep is, when that has changed."""
        running = min(sum(self.client.nthreads().values()) or 1, len(self.pending))
        done = len(self.plan.records) - len(self.pending) - len(self.failed)
        state = f"{done} of {len(self.plan.records)} done, {running} running, {len(self.failed)} failed"
        if state != self.state:
            left = (len(self.pending) - running / 2) * statistics.mean(self.seconds or [0]) / max(1, running)
            logger.info(state + (f", about {duration(left)} left" if left else ""))
        self.state = state

    def _stop(self) -> None:
        """Cancel all variants, and wait until those that run have ended."""
        from .execute import running

        self.client.cancel(list(self.pending))
        until = time.monotonic() + STOP_SECONDS
        with suppress(Exception):  # workers that are gone run nothing
            while time.monotonic() < until and any(self.client.run(running).values()):
                time.sleep(0.3)


def _relative(path: str | None, folder: Path) -> str | None:
    """Return a path below the folder relative to it, so that the folder can be moved."""
    return str(Path(path).relative_to(folder)) if path and Path(path).is_relative_to(folder) else path


def _worker_error(error: BaseException) -> str:
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return "its workers died repeatedly; is there too little memory? Fewer --workers leave more for each"
    return f"{type(error).__name__}: {error}"[:500]
