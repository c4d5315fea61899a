"""What is known about the variants of a sweep: a file `variant.json` in the folder of each, and a table of all."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ..training.checkpoint import write

FILE = "variant.json"
State = Literal["waiting", "done", "failed"]


@dataclass(frozen=True)
class Record:
    """A variant and its result.

    Attributes:
        name: its folder in that of the sweep.
        parameters: those of files, options and grid.
        identity: all parameters, the notebook's own values too, written in one way; they identify the variant.
        source: checksum of the notebook's code; None where `fit` was called alone.
        seconds: time of the last execution.
        run, notebook: the run folder and the executed notebook, where there are any; paths from the variant's folder.
        metrics: the last row of the run's history, and `training_seconds`, their sum over the epochs.
        recorded: what the notebook displayed as JSON.
        error, cell: the last line of the error, and the number of the cell, counted from 1.
    """

    name: str
    parameters: Mapping[str, Any]
    identity: Mapping[str, Any]
    source: str | None = None
    state: State = "waiting"
    seconds: float | None = None
    run: str | None = None
    notebook: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    cell: int | None = None

    def save(self, folder: Path) -> None:
        """Write the record into the variant's folder, whole or not at all."""
        (folder / self.name).mkdir(parents=True, exist_ok=True)
        write(folder / self.name / FILE, json.dumps(asdict(self), indent=1, ensure_ascii=False).encode())

    def failure(self) -> str:
        """Return the name, the cell and the error in a line."""
        return f"{self.name}: " + (f"cell {self.cell}: " if self.cell else "") + self.error


def read_records(folder: Path) -> list[Record]:
    """Return the records of a sweep's folder, by name, numbers in their order; a ValueError names a damaged file."""
    records = []
    for file in folder.glob(f"*/{FILE}"):
        try:
            # The folder may have been renamed.
            records.append(replace(Record(**json.loads(file.read_text("utf-8"))), name=file.parent.name))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it: its variant is then executed again") from error
    return sorted(records, key=lambda record: _natural(record.name))


def _natural(name: str) -> list[tuple[float, str]]:
    """Return a key by which "seed=2" comes before "seed=10"."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if number % 2 else (0.0, part) for number, part in enumerate(parts)]


def load_sweep(folder: str | Path) -> pd.DataFrame:
    """Return the results of `python -m ltpa sweep`, a row for each variant.

    The columns are the parameters that were given, under their names; `state` (done, failed or waiting); the last row
    of the run's `history.csv` (`test_accuracy` among them) and `training_seconds`; what the notebook displayed with
    `IPython.display.JSON`; `seconds`, the time of the last execution; `path` and `notebook`, the run folder and the
    executed notebook; `error`. Where two have the same name, the parameter is kept, then the metric.
    """
    folder = Path(folder).expanduser()
    records = read_records(folder)
    if not records:
        raise FileNotFoundError(f"{folder} holds no sweep; python -m ltpa sweep NOTEBOOK --out {folder} makes one")
    names = list(dict.fromkeys(name for record in records for name in record.parameters))
    return pd.DataFrame([_row(folder / record.name, record, names) for record in records])


def _row(folder: Path, record: Record, names: list[str]) -> dict[str, Any]:
    # A later, larger grid varies what had the notebook's own value before.
    row = {name: record.parameters.get(name, record.identity.get(name)) for name in names}
    row["state"] = record.state
    places = {"path": record.run, "notebook": record.notebook}
    for values in (
        record.metrics,
        record.recorded,
        {"seconds": math.nan if record.seconds is None else record.seconds},
        {name: p if p is None or "://" in p else str(folder / p) for name, p in places.items()},
        {"error": record.failure().removeprefix(f"{record.name}: ")},
    ):
        row |= {**values, **row}
    return row
