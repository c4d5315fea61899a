"""Mark notebooks 00 that students handed in: `python -m ltpa.course.mark FOLDER [--csv FILE]`.

This executes the students' code. Each notebook runs in a process of its own, in an empty folder and without the
environment's secrets, but with the rights of whoever runs it. A cell that cannot be read, fails, never ends or ends
the process costs only its own exercise.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import counted
from .exercises import EXERCISES, UNFILLED, Checks

RIGHT = "right"
SECONDS = 60.0  # for a notebook; a cell that takes longer is left out, and the others get as much again
_READY = "ready"
_CHECK = re.compile(r"""\bcheck\(\s*["'](\w+)["']""")
_KEPT = ("HOME", "LANG", "OMP_NUM_THREADS", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "USERPROFILE")


def mark(files: Iterable[Path], folder: Path, seconds: float = SECONDS) -> pd.DataFrame:
    """Run notebooks and return a table: name (the path in `folder`), exercise, result ("right", or what is wrong)."""
    rows = []
    for file in files:
        name, results = str(file.relative_to(folder)), mark_notebook(file, seconds)
        right = sum(result == RIGHT for result in results.values())
        print(f"{name}: {right} of {counted(len(results), 'exercise')} right", flush=True)
        rows += [(name, f"{i} {exercise}", result) for i, (exercise, result) in enumerate(results.items(), 1)]
    return pd.DataFrame(rows, columns=["name", "exercise", "result"])


def mark_notebook(file: Path, seconds: float = SECONDS) -> dict[str, str]:
    """Return the result of each exercise of one notebook, which runs in other processes, one after the other."""
    try:
        cells = code_cells(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return dict.fromkeys(EXERCISES, f"the notebook cannot be read ({type(error).__name__})")
    results = dict.fromkeys(EXERCISES, "no cell checks this exercise")
    left_out: list[int] = []
    with tempfile.TemporaryDirectory(prefix="ltpa-mark-", ignore_cleanup_errors=True) as work:
        log = Path(work, "log")
        while True:
            ended = _run_process(cells, left_out, log, Path(work), seconds)
            events = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []
            log.unlink(missing_ok=True)
            results |= {event["exercise"]: event["result"] for event in events if event.get("exercise") in results}
            if any("done" in event for event in events):
                return results
            started = [event["cell"] for event in events if "cell" in event]
            if not started:
                raise RuntimeError(f"{file}: no cell could be run; does `import ltpa` work in {sys.executable}?")
            failure = "error: it ended the process" if ended else f"error: it did not finish within {seconds:g} s"
            results |= dict.fromkeys(_exercises_in(cells[started[-1]]), failure)
            left_out.append(started[-1])


def code_cells(file: Path) -> list[str]:
    """Return the code of a notebook's cells up to the last that checks an exercise."""
    cells = json.loads(file.read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    last = max((i for i, source in enumerate(sources) if _exercises_in(source)), default=-1)
    return sources[: last + 1]


def run_cells(log: Path, left_out: Sequence[int]) -> None:
    """Run the cells that come as JSON on standard input, and write a line about each event into `log`.

    A line on standard output says that everything is imported, so that only the cells' own time is limited.
    """
    from .. import viz
    from . import scratch

    print(_READY, flush=True)
    cells, checks = json.load(sys.stdin), Checks()
    setattr(scratch, "Checks", lambda *_, **__: checks)  # noqa: B010 (for mypy); never filled in by the solutions
    setattr(viz, "display", lambda *_, **__: None)  # noqa: B010
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with log.open("a", encoding="utf-8") as file, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):

        def note(**event: Any) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        for number, source in enumerate(cells):
            if number in left_out:
                continue
            note(cell=number)
            names = _exercises_in(source)
            for name in names:
                checks.results.pop(name, None)
            error = _execute(source, namespace)
            for name in names:
                note(exercise=name, result=_in_words(checks.results.get(name), error))
        note(done=True)


def _in_words(result: str | None, error: str) -> str:
    if result is None:
        return f"error: {error}" if error else "the cell does not check it"
    return "not filled in" if result.startswith(UNFILLED) else result or RIGHT


def _execute(source: str, namespace: dict[str, Any]) -> str:
    """Run a cell; return the error that it raised in one line, or ""."""
    try:
        exec(_compiled(source), namespace)
    except BaseException as error:  # also SystemExit
        text = " ".join(str(error).split())[:200]
        in_cell = (n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == "cell")
        line = getattr(error, "lineno", None) or next(in_cell, None)
        text = error.msg if isinstance(error, SyntaxError) else text
        return f"{type(error).__name__}: {text}" + (f" (line {line} of the cell)" if line else "")
    return ""


def _compiled(source: str) -> Any:
    """Compile a cell, without the lines that only IPython understands."""
    try:
        return compile(source, "cell", "exec")
    except SyntaxError:
        plain = re.sub(r"(?m)^(\s*)[%!?].*$", r"\1pass", source)
        if plain == source:
            raise
        return compile(plain, "cell", "exec")


def _exercises_in(source: str) -> list[str]:
    return [name for name in _CHECK.findall(source) if name in EXERCISES]


def _run_process(cells: list[str], left_out: list[int], log: Path, work: Path, seconds: float) -> bool:
    """Run cells in a process of its own; return whether it ended in time, else kill it and what it started."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "LTPA_FOLDER": str(work), "MPLBACKEND": "agg"}
    code = "import sys, pathlib; from ltpa.course.mark import run_cells as run; run(pathlib.Path(sys.argv[1]), "
    command = [sys.executable, "-c", f"{code}{left_out!r})", str(log)]
    process = subprocess.Popen(
        command,
        cwd=work,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        if process.stdout and process.stdout.readline().strip() == _READY.encode():
            process.communicate(json.dumps(cells).encode(), timeout=seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Mark the notebooks of a folder; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ltpa.course.mark", description="Mark handed-in notebooks 00.")
    parser.add_argument("folder", type=Path, help="folder with the notebooks, which may be in subfolders")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="time limit for a notebook (default: %(default)g)"
    )
    parser.add_argument("--yes", action="store_true", help="run the code in the notebooks without asking")
    chosen = parser.parse_args(arguments)
    files = sorted(f for f in chosen.folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
    if not files:
        print(f"error: there is no notebook (*.ipynb) in {chosen.folder}", file=sys.stderr)
        return 1
    print(
        f"This runs the code of {counted(len(files), 'notebook')} with your rights: it can read and delete your files. "
        "Use a machine, a container or an account that holds nothing of value.",
        file=sys.stderr,
    )
    if not chosen.yes and not _agreed():
        print("nothing was run; --yes runs it without asking", file=sys.stderr)
        return 1
    table = mark(files, chosen.folder, chosen.seconds)
    widths = {column: f"<{table[column].str.len().max()}" for column in ("name", "exercise")}
    print(
        "\n"
        + "\n".join(f"{n:{widths['name']}}  {e:{widths['exercise']}}  {r}" for n, e, r in table.itertuples(index=False))
    )
    if chosen.csv:
        table.to_csv(chosen.csv, index=False, lineterminator="\n")
    return 0


def _agreed() -> bool:
    return sys.stdin.isatty() and input("Run it? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
