"""The number of cores, and the environment that torch finds when `ltpa` loads it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltpa import cores

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("contents", "count"),
    [
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 64),
        ({"quota": "-1", "period": "100000"}, 64),
        ({"quota": "350000", "period": "100000"}, 4),
        ({}, 64),
    ],
)
def test_cores_by_affinity_and_quota(contents, count, tmp_path, monkeypatch):
    for name, text in contents.items():
        (tmp_path / name).write_text(text + "\n")
    files = (str(tmp_path / "cpu.max"),), (str(tmp_path / "quota"), str(tmp_path / "period"))
    monkeypatch.setattr(cores, "_QUOTA_FILES", files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert cores.available_cores() == count


@pytest.mark.parametrize(
    ("own", "quota", "expected"),
    [
        ({}, None, {"GOMP_SPINCOUNT": cores.SPINS}),
        ({}, 1, {"GOMP_SPINCOUNT": cores.SPINS, "OMP_NUM_THREADS": "1"}),
        ({"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "3"}, 1, {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "3"}),
        ({"OMP_WAIT_POLICY": "active"}, None, {}),
    ],
)
def test_set_up_keeps_what_the_user_set(own, quota, expected, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cores, "_quota", lambda: quota)
    cores.set_up_threads()
    assert "GOMP_SPINCOUNT" not in {*os.environ} - {*own}, "torch is loaded here: it is too late"
    monkeypatch.delitem(sys.modules, "torch")
    cores.set_up_threads()
    assert {name: os.environ.get(name) for name in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")} == {
        "GOMP_SPINCOUNT": None,
        "OMP_NUM_THREADS": None,
        **expected,
    }


def test_it_is_set_before_torch_is_loaded():
    """A finder that is asked for torch notes the environment and ends the import."""
    code = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)
sys.meta_path.insert(0, Finder())
import ltpa.models.cost
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.split() == [cores.SPINS]
