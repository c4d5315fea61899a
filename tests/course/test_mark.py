"""Marking handed-in notebooks: every exercise by itself, whatever the others do."""

import json

import pandas as pd
import pytest

from ltpa.course import mark
from ltpa.course.exercises import EXERCISES

START = "from ltpa.course import scratch\ncheck = scratch.Checks(solutions=True)"
CELLS = [
    "solutions = True",
    START,
    'import os\ncheck("shift", ("SECRET" in os.environ or os.listdir(), "a"))',
    '%matplotlib inline\n_ = check("relative", lambda weights: weights * weights.numel())',
    'def g_mine()\n    return 1\n\ncheck("steer", g_mine)',
    'import os\nos._exit(0)\ncheck("positions", None)',
    'def border_free(scores):\n    return scores\n\nx = 1 / 0\ncheck("border", border_free)',
    'while True:\n    pass\ncheck("moved", None)',
    'check("add", None)',
    'check("gates", lambda local, scores: scores)\nraise SystemExit',
    "this is never run: nothing is checked any more",
]


def notebook(path, cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [{"cell_type": "markdown", "source": "text"}] + [{"cell_type": "code", "source": [c]} for c in cells]
    path.write_text(json.dumps({"cells": sources}))


def test_each_exercise_is_marked_by_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    notebook(tmp_path / "anna" / "00.ipynb", CELLS)
    (tmp_path / "ben.ipynb").write_text("{")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "ben.ipynb").write_text("{")
    table = tmp_path / "table.csv"
    assert mark.main([str(tmp_path), "--yes", "--seconds", "2", "--csv", str(table)]) == 0
    frame = pd.read_csv(table)
    assert list(frame) == ["name", "exercise", "result"]
    assert list(frame.name.unique()) == ["anna/00.ipynb", "ben.ipynb"]
    anna = dict(zip(EXERCISES, frame.result[:8], strict=True))
    assert list(frame.exercise[:2]) == ["1 shift", "2 relative"]
    assert "not the text 'log'" in anna["shift"], "it sees its own empty folder and no secrets"
    assert anna["relative"] == "right"
    assert anna["steer"].startswith("error: SyntaxError: ")
    assert anna["steer"].endswith("(line 1 of the cell)")
    assert anna["positions"] == "error: it ended the process"
    assert anna["border"] == "error: ZeroDivisionError: division by zero (line 4 of the cell)"
    assert anna["moved"] == "error: it did not finish within 2 s"
    assert anna["add"] == "not filled in", "solutions=True fills in nothing"
    assert anna["gates"].startswith("not yet. Return two things")
    assert set(frame.result[8:]) == {"the notebook cannot be read (JSONDecodeError)"}
    printed = capsys.readouterr()
    assert "anna/00.ipynb: 1 of 8 exercises right" in printed.out
    assert "ben.ipynb      8 gates      the notebook cannot" in printed.out
    assert "it can read and delete your files" in printed.err


def test_nothing_runs_unless_it_is_agreed(tmp_path, capsys, monkeypatch):
    notebook(tmp_path / "a.ipynb", CELLS)
    monkeypatch.setattr(mark, "mark", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    assert mark.main([str(tmp_path)]) == 1
    assert "nothing was run; --yes" in capsys.readouterr().err
    assert mark.main([str(tmp_path / "empty"), "--yes"]) == 1
    assert "there is no notebook" in capsys.readouterr().err
