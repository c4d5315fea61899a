"""The paper's claims and what came of them: a table made from the CSV files of effects that the notebooks write.

`python -m tests.tools verdicts` reads `docs/effects_*.csv`; `--write README.md` puts the
table between the two marks there.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.tools.marks import write_between

COLUMNS = ("claim", "model", "baseline", "measure", "data", "budget", "n", "effect", "low", "high", "verdict")
BEGIN, END = "<!-- verdicts: made by `python -m tests.tools verdicts --write README.md` -->", "<!-- end of verdicts -->"


def read_effects(paths: Sequence[Path]) -> list[dict[str, str]]:
    """The rows of several files.

    Raises:
        ValueError: no file, or one that lacks a column or holds no numbers; its name is in the message.
    """
    if not paths:
        raise ValueError("there are no files of effects; the notebooks 03 to 07 write them (runs/effects_*.csv)")
    rows = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        for row in found:
            lacking = [column for column in COLUMNS if row.get(column) is None]
            if lacking:
                raise ValueError(f"{path} is no file of effects: it lacks {', '.join(lacking)}")
            try:
                [float(row[column]) for column in ("effect", "low", "high") if row[column]]
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        rows += found
    return rows


def verdict_table(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as a table in Markdown; what is the same in all rows of a claim is said once."""
    lines = []
    for claim in dict.fromkeys(row["claim"] for row in rows):
        of = [row for row in rows if row["claim"] == claim]
        for data, budget in dict.fromkeys((row["data"], row["budget"]) for row in of):
            lines += ["", f"**{claim}** ({data}; {budget})", ""] if lines else [f"**{claim}** ({data}; {budget})", ""]
            lines += ["| model | against | measure | n | effect, points [95 %] | verdict |", "| --- |" + " --- |" * 5]
            for row in of:
                if (row["data"], row["budget"]) == (data, budget):
                    cells = (f"`{row['model']}`", row["baseline"], row["measure"], row["n"], _effect(row))
                    lines.append("| " + " | ".join((*cells, row["verdict"])) + " |")
    return "\n".join(lines)


def _effect(row: Mapping[str, str]) -> str:
    """All measures lie between 0 and 1: their differences are given in hundredths."""
    effect, low, high = (f"{100 * float(row[name]):+.1f}" if row[name] else "" for name in ("effect", "low", "high"))
    return f"{effect} [{low}, {high}]" if low and high else effect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m tests.tools verdicts`."""
    parser.add_argument("files", nargs="*", type=Path, help="files of effects (default: docs/effects_*.csv)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")


def main(arguments: argparse.Namespace) -> None:
    """Prints the table, or writes it into a file.

    Raises:
        ValueError: see `read_effects` and `write_between`.
    """
    table = verdict_table(read_effects(arguments.files or sorted(Path("docs").glob("effects_*.csv"))))
    if arguments.write:
        write_between(arguments.write, BEGIN, table, END)
    else:
        print(table)
