"""Sweeps on a real cluster of two workers: failures among good variants, a killed worker, stops, and what is kept."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_notebook

import ltpa
from ltpa.sweep.plan import fit_alone, make_plan, read_notebook
from ltpa.sweep.record import read_records
from ltpa.sweep.run import machine_share, run_sweep
from tests.tools.crash import TINY, differences

distributed = pytest.importorskip("distributed")

CELLS = (
    ("x = 1\nseconds = 0", ["parameters"]),
    ("from pathlib import Path\nimport time\nfrom IPython.display import JSON", []),
    ("assert x != 13, 'no luck'\nPath(f'began-{x}').touch()", []),
    ("try:\n    time.sleep(seconds)\nfinally:\n    Path(f'ended-{x}').touch()", []),
    ("display(JSON({'square': x * x, 'x': 'a recorded value does not hide a parameter'}))", []),
)
SETTINGS = {**TINY, "train_limit": 60, "test_limit": 30, "epochs": 4, "snapshots": 2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster that exists, as one of another machine would; the workers' folder is a temporary one."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    try:
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=None, dashboard_address=None, silence_logs=50
        ) as cluster:
            yield cluster
    finally:
        os.chdir(before)


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The path of a notebook that needs no ltpa."""
    path = tmp_path_factory.mktemp("notebook") / "small.ipynb"
    cells = [new_code_cell(source, metadata={"tags": tags}) for source, tags in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return str(path)


def test_a_failing_variant_among_good_ones(cluster, notebook, tmp_path, capsys):
    made = make_plan(tmp_path, read_notebook(notebook), {}, {"x": [2, 13]})
    run_sweep(made, scheduler=cluster.scheduler_address)
    lines = capsys.readouterr().out.splitlines()
    assert "failed: x=13: cell 4: AssertionError: no luck" in lines[-2]
    assert sum("failed, trying once more: x=13" in line for line in lines) == 1
    table = ltpa.load_sweep(tmp_path)
    assert list(table["x"]) == [2, 13]
    assert list(table["state"]) == ["done", "failed"]
    assert table["square"][0] == 4
    assert table["error"][1] == "cell 4: AssertionError: no luck"
    executed = nbformat.read(table["notebook"][0], as_version=4)
    assert executed.metadata.papermill.parameters == {"x": 2}
    assert executed.metadata.papermill.input_path == notebook
    assert (tmp_path / "sweep.csv").read_text().startswith("x,state,square,seconds,path,notebook,error\n2,done,4.0,")


def test_a_killed_worker_changes_nothing(client, tmp_path, monkeypatch):
    """Training in the workers; one is killed in mid-run. Tables and weights are those of `fit`, bit by bit."""
    grid = {"seed": [0, 1], "model": ["vgg-att3-concat-pc"]}
    common = {n: v for n, v in SETTINGS.items() if n != "model"}
    made = make_plan(tmp_path / "sweep", fit_alone(), common, grid)
    runs = {record.name: tmp_path / "sweep" / record.name / "run" for record in made.records}
    killed = []

    def kill():
        pids = client.run(os.getpid)
        while not killed:
            if any((run / "history.csv").exists() for run in runs.values()):
                killed.append(next(iter(pids.values())))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    table = run_sweep(made, scheduler=client.scheduler.address)
    thread.join(10)
    assert killed
    assert list(table["state"]) == ["done"] * 2
    for record in made.records:
        alone = tmp_path / "alone" / record.name
        run = ltpa.fit(ltpa.TrainConfig(**{**SETTINGS, **record.parameters, "run_dir": str(alone)}), progress=False)
        assert not differences(alone, runs[record.name])
        (row,) = table[table["path"] == str(runs[record.name])].to_dict("records")
        assert {name: row[name] for name in ("seed", "model")} == {name: record.parameters[name] for name in grid}
        assert row["test_accuracy"] == run.history[-1]["test_accuracy"]
        assert row["learning_rate"] == SETTINGS["learning_rate"], "the parameter, not the last step's"
    # A larger grid executes what is new.
    file = made.folder / made.records[0].name / "variant.json"
    before = file.read_bytes()
    larger = make_plan(made.folder, fit_alone(), common, {**grid, "seed": [0, 2]})
    assert list(run_sweep(larger, scheduler=client.scheduler.address)["seed"]) == [0, 1, 2]
    assert file.read_bytes() == before


def test_an_interrupt_stops_kernels_and_waits_for_them(client, notebook, tmp_path):
    work = Path(client.submit(os.getcwd).result())
    made = make_plan(tmp_path, read_notebook(notebook), {"seconds": 300}, {"x": [21, 22, 23]})
    started = time.monotonic()

    def interrupt():
        while len(list(work.glob("began-2?"))) < 2 and time.monotonic() - started < 60:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(made, scheduler=client.scheduler.address)
    assert time.monotonic() - started < 60
    assert not [p for p in psutil.process_iter() if _is_kernel(p, work)]
    assert len(list(work.glob("ended-2?"))) == 2
    assert {record.state for record in read_records(tmp_path)} == {"waiting"}


def _is_kernel(process, folder):
    try:
        return "ipykernel_launcher" in process.cmdline() and Path(process.cwd()) == folder
    except psutil.Error:
        return False


def test_a_second_sweep_in_the_folder_waits_and_finds_what_the_first_has_done(tmp_path, capsys):
    made = make_plan(tmp_path, fit_alone(), {}, {"seed": [0]})
    second = threading.Thread(target=run_sweep, args=[made])
    with FileLock(tmp_path / ".lock"):
        second.start()
        second.join(0.5)
        assert capsys.readouterr().out.endswith("waiting until it ends\n")
        replace(made.records[0], state="done", error="of the first").save(tmp_path)
    second.join(10)
    assert capsys.readouterr().out == f"the table is {tmp_path / 'sweep.csv'}\n"
    assert list(ltpa.load_sweep(tmp_path)["error"]) == ["of the first"]


def test_machine_share(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 9e9, "available": 5e9}))
    assert machine_share(100, 100, None, "cpu") == (3, 2)
    assert machine_share(100, 1, None, "cpu") == (1, 2), "the threads do not depend on what is left"
    assert machine_share(3, 3, None, "cpu") == (3, 5)
    assert machine_share(100, 100, None, "cuda") == (1, 16)
    assert machine_share(100, 100, 4, "cuda") == (4, 4)


def test_no_scheduler_and_no_dask(tmp_path, monkeypatch):
    made = make_plan(tmp_path, fit_alone(), {}, {"seed": [0]})
    with pytest.raises(OSError, match="no Dask scheduler answers at"):
        run_sweep(made, scheduler="tcp")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'ltpa\[sweep\]'"):
        run_sweep(made)
