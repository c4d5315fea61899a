"""Kills sweeps and measures them.

    python -m tests.tools.sweep crash [--notebook]
    python -m tests.tools.sweep overhead --variants 40
    python -m tests.tools.sweep speed

`crash`: a worker is killed with SIGKILL in mid-run, then the command; everything that they started has to end within
ten seconds, and the same command, given again, has to end with the table and the weights of an undisturbed sweep, bit
by bit. `overhead`: a grid of notebooks that do nothing, beside plain papermill, and the memory of command and workers.
`speed`: one worker and two.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_notebook

from ltpa import TrainConfig, fit, load_sweep
from tests.tools.crash import TINY, differences

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "notebooks" / "01_train.ipynb"
SETTINGS = {**TINY, "train_limit": 60, "test_limit": 30, "epochs": 6, "snapshots": 2}
MOST_SECONDS = 10.0  # from the command's death to that of all it has started


def command(out: Path, *options: str, settings: dict | None = None, grid: str = "seed=0..1") -> list[str]:
    """The command of a sweep of tiny trainings, or of what `options` say."""
    given = [word for name, value in (settings or {}).items() for word in ("-p", name, str(value))]
    return [sys.executable, "-m", "ltpa", "sweep", *options, *given, "--grid", grid, "--out", str(out)]


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The Dask workers of a sweep that runs."""
    return [p for p in process.children(recursive=True) if "spawn_main" in _words(p)]


def _words(process: psutil.Process) -> str:
    """The command line, empty if the process has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _bytes(process: psutil.Process) -> int:
    """The memory, zero if the process has ended."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def crash(folder: Path, notebook: bool) -> None:
    """Kill a worker, then the command; give the command again, and compare with undisturbed trainings."""
    killed = folder / "killed"
    again = command(killed, *([str(TRAIN)] if notebook else ["--no-notebook"]), settings=SETTINGS)
    process = psutil.Popen(again, cwd=folder, stdout=subprocess.DEVNULL)
    _wait_for_epochs(killed, 1)
    workers_of(process)[0].send_signal(signal.SIGKILL)
    _wait_for_epochs(killed, SETTINGS["epochs"] + 2)
    started = [p for p in psutil.process_iter() if _is_of(p, process, folder)]
    process.kill()
    process.wait()
    since = time.monotonic()
    _, left = psutil.wait_procs(started, timeout=60)
    seconds = time.monotonic() - since
    assert not left, left
    assert seconds < MOST_SECONDS, seconds
    states = list(load_sweep(killed)["state"])
    print(f"a worker and the command are killed: {len(started)} processes end after {seconds:.1f} s; {states}")
    subprocess.run(again, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    table = load_sweep(killed)
    assert set(table["state"]) == {"done"}
    for row in table.to_dict("records"):
        whole = fit(
            TrainConfig(**{**SETTINGS, "seed": row["seed"], "run_dir": folder / f"{row['seed']}"}), progress=False
        )
        assert not (found := differences(whole.path, Path(row["path"]))), f"{row['path']}: {found}"
        last = {name: value for name, value in whole.history[-1].items() if name not in ("seconds", "learning_rate")}
        assert last.items() <= row.items()
    print(f"{len(table)} variants: the same table, weights, histories and maps as undisturbed, bit by bit")


def _wait_for_epochs(out: Path, count: int) -> None:
    while sum(len(path.read_text().splitlines()) - 1 for path in out.glob("*/run/history.csv")) < count:
        time.sleep(0.05)


def _is_of(process: psutil.Process, ancestor: psutil.Process, folder: Path) -> bool:
    try:
        orphan = "ipykernel" in _words(process) and process.cwd() == str(folder.resolve())  # of a killed worker
        return orphan or ancestor in process.parents()
    except psutil.Error:
        return False


def overhead(folder: Path, variants: int, workers: int) -> None:
    """Seconds for a variant, of plain papermill and of a sweep with one worker; memory at the start and the end."""
    cells = [new_code_cell("x = 1", metadata={"tags": ["parameters"]}), new_code_cell("x")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    path = folder / "nothing.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    plain, cpu = [], [_cpu_seconds()]
    for x in range(5):
        began = time.monotonic()
        words = ["papermill", str(path), str(folder / "plain.ipynb"), "-p", "x", str(x), "--no-progress-bar"]
        subprocess.run([sys.executable, "-m", *words], cwd=folder, check=True, capture_output=True)
        plain.append(time.monotonic() - began)
    cpu.append(_cpu_seconds())
    began = time.monotonic()
    sweep = command(folder / "out", str(path), "--workers", str(workers), grid=f"x=1..{variants}")
    process = psutil.Popen(sweep, cwd=folder, stdout=subprocess.DEVNULL)
    memory: list[int] = []
    first = 0.0
    while process.poll() is None:
        done = len(list((folder / "out").glob("*/nothing.ipynb")))
        first = first or (time.monotonic() if done else 0.0)
        if workers <= done <= variants - workers:  # all workers have loaded everything, and none has ended
            memory.append(sum(_bytes(p) for p in [process, *workers_of(process)]))
        time.sleep(0.5)
    cpu.append(_cpu_seconds())
    ended = time.monotonic()
    quarter = max(1, len(memory) // 4)
    start, end = (sum(part) / len(part) / 1e6 for part in (memory[:quarter], memory[-quarter:]))
    print(f"papermill: {sorted(plain)[2]:.2f} s a notebook (median of 5), {(cpu[1] - cpu[0]) / 5:.2f} s of a core")
    print(
        f"sweep of {variants}, {workers} workers: {ended - began:.1f} s; the first is done after {first - began:.1f} s"
    )
    print(f"{(ended - first) / (variants - 1):.2f} s a variant, {(cpu[2] - cpu[1]) / variants:.2f} s of a core")
    print(f"memory of the command and its workers: {start:.0f} MB, at the end {end:.0f} MB")


def _cpu_seconds() -> float:
    """Seconds of a core that ended processes have used."""
    times = os.times()
    return times.children_user + times.children_system


def speed(folder: Path) -> None:
    """Seconds of one sweep of two trainings with one worker, which has all cores, and with two."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    settings = {**SETTINGS, "width": 0.125, "train_limit": 1000, "epochs": 1, "batch_size": 64}
    for workers in (1, 2):
        out = folder / str(workers)
        words = command(out, "--no-notebook", "--workers", str(workers), settings=settings)
        began = time.monotonic()
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=environment)
        seconds = time.monotonic() - began
        training = load_sweep(out)["training_seconds"].sum()
        print(f"{workers} workers: {seconds:.1f} s, of which training {training:.1f} s (summed)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kills and measures sweeps.")
    commands = parser.add_subparsers(required=True, dest="what")
    commands.add_parser("crash").add_argument("--notebook", action="store_true")
    options = commands.add_parser("overhead")
    options.add_argument("--variants", type=int, default=200)
    options.add_argument("--workers", type=int, default=2)
    commands.add_parser("speed")
    chosen = vars(parser.parse_args())
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        globals()[chosen.pop("what")](Path(folder), **chosen)
