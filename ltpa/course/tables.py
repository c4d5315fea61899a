"""Rows as CSV files."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..training.checkpoint import write


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as a CSV file, into a folder that is made where it is missing; returns the path.

    The columns are those of all rows, in the order in which they first come.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, text.getvalue().encode())
    return path
