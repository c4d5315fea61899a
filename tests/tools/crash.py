"""Kills trainings with SIGKILL and compares what comes of them with an undisturbed one, bit by bit.

    python -m tests.tools.crash --kills 200

Every training is a process of its own, forked from one that has loaded torch, so that it starts at once. It saves after
every step and tells at which point it is: a step computed, a file written but not flushed, not renamed, renamed; and
whether that is after the last step of an epoch. It is killed right there or a moment later, started again on the same
folder, and so on until it is complete; then on the next folder, until there were enough kills.
"""

import argparse
import functools
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from ltpa import Dataset, TrainConfig, fit, load_data, load_run
from ltpa.training import callbacks
from ltpa.training.checkpoint import State, load_tensors

TINY = {
    "model": "vgg-att3-concat-pc",
    "width": 1 / 32,
    "dataset": "shapes",
    "epochs": 3,
    "batch_size": 20,
    "optimizer": "sgd",
    "progressive_resizing": False,
    "learning_rate": 0.03,
    "precision": "fp32",
    "device": "cpu",
}
POINTS = {b"s": "a step", b"f": "writing", b"r": "renaming", b"d": "after renaming"}  # in capitals: at an epoch's end
PER_EPOCH = 3  # steps
PAUSE = 0.002  # seconds at every point, for the kill to fall into


def tiny_config(folder: Path, **changes: object) -> TrainConfig:
    """Settings of a training that takes a fraction of a second."""
    return TrainConfig(**{**TINY, "run_dir": folder, **changes})


@functools.cache
def tiny_data() -> Dataset:
    """Three batches of noise with a color for every class, and some to test on."""
    data = load_data("shapes", train_limit=60, test_limit=30)
    for split in (data.train, data.test):
        noise = torch.Generator().manual_seed(len(split))
        split.images.random_(100, generator=noise)
        split.images.add_((split.labels[:, None] * torch.tensor([1, 3, 7]) % 10 * 17)[:, :, None, None].byte())
    return data


def differences(one: Path, other: Path) -> list[str]:
    """In what two complete runs differ, times aside."""
    found = []
    files = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) for folder in (one, other)]
    if files[0] != files[1]:
        found.append(f"files: {files[0]} and {files[1]}")
    for name in [name for name in files[0] if name.endswith(".safetensors") and name in files[1]]:
        (left, left_facts), (right, right_facts) = load_tensors(one / name), load_tensors(other / name)
        if left_facts != right_facts:
            found.append(f"facts of {name}")
        if left.keys() != right.keys():
            found.append(f"names of the tensors in {name}")
        else:
            found += [f"{key} in {name}" for key in left if not torch.equal(left[key], right[key])]
    left, right = ([{**row, "seconds": 0} for row in load_run(folder, "cpu").history] for folder in (one, other))
    if left != right:
        found.append(f"history: {left} and {right}")
    return found


def forked(config: TrainConfig, data: Dataset, moment: int = 0, delay: float = 0.0) -> bytes:
    """Trains in a new process; kills it `delay` seconds after its `moment`-th point, unless 0. Where, or b"" if never.

    Raises:
        RuntimeError: it failed by itself.
    """
    points, told = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            os.close(points)
            if moment:
                _tell(told)
            fit(config, data, progress=False)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(told)
    point = b""
    for _ in range(moment):
        if not (point := os.read(points, 1)):
            break
    if point:
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(points)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"a training failed: status {status}")
    return point if status else b""


def _tell(pipe: int) -> None:
    """In the process to be killed: saves after every step, and tells and lingers where a kill might do harm."""
    callbacks.SAVE_MINUTES = 0.0
    at_end = False

    def tell(point: bytes) -> None:
        os.write(pipe, point.upper() if at_end else point)
        time.sleep(PAUSE)

    def count(state: State, *step: object) -> None:
        nonlocal at_end
        plain_count(state, *step)
        at_end = state.step % PER_EPOCH == 0
        tell(b"s")

    def fsync(file: int) -> None:
        tell(b"f")
        plain_fsync(file)

    def replace(source: Path, target: Path) -> None:
        tell(b"r")
        plain_replace(source, target)
        tell(b"d")

    plain_count, plain_fsync, plain_replace = State.count, os.fsync, os.replace
    State.count, os.fsync, os.replace = count, fsync, replace


def crash(kills: int, folder: Path, seed: int = 0) -> Counter:
    """Kills trainings so often and compares each with the undisturbed one.

    Returns:
        how often a kill fell where, how many fell "at an epoch's end", how many were "once more in an epoch", and the
        number of "runs".

    Raises:
        AssertionError: in what a run differs.
    """
    torch.set_num_threads(1)
    data = tiny_data()
    changes = {"dropout": True, "snapshots": 3, "epochs": 5}
    whole = tiny_config(folder / "undisturbed", **changes)
    forked(whole, data)
    draw = random.Random(seed)
    counted = Counter()
    while sum(counted[point] for point in POINTS.values()) < kills:
        counted["runs"] += 1
        config = tiny_config(folder / f"run-{counted['runs']}", **changes)
        left = kills - sum(counted[point] for point in POINTS.values())
        before = None
        while point := forked(config, data, draw.randint(1, 25) if left else 0, draw.choice([0, draw.random() / 50])):
            counted[POINTS[point.lower()]] += 1
            counted["at an epoch's end"] += point.isupper()
            left -= 1
            epochs = _finished_epochs(config.path)
            counted["once more in an epoch"] += epochs == before
            before = epochs
        found = differences(whole.path, config.path)
        assert not found, f"after being killed, {config.path} differs from {whole.path} in {found}"
    return counted


def _finished_epochs(folder: Path) -> int:
    """At every moment the run can be read, once its first epoch is written."""
    if not (folder / "history.csv").exists():
        return 0
    run = load_run(folder, "cpu")
    assert 1 <= len(run.history) <= run.config.epochs, folder
    return len(run.history)


def run(kills: int, seed: int) -> None:
    """Kill so often, and print what came of it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counted = crash(kills, Path(folder), seed)
    names = (*POINTS.values(), "at an epoch's end", "once more in an epoch")
    where = ", ".join(f"{name} {counted[name]}" for name in names)
    print(f"{kills} kills ({where}) in {counted['runs']} runs, {time.monotonic() - started:.0f} s")
    print("weights, history and maps are those of an undisturbed run, bit by bit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kills trainings and compares them with an undisturbed one.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    run(**vars(parser.parse_args()))
