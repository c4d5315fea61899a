"""The results of a sweep as a table."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..training.checkpoint import write
from .record import Record, read_records

TABLE = "sweep.csv"


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


def save_table(folder: Path) -> Path:
    """Write `sweep.csv` and return its path."""
    table = load_sweep(folder).to_csv(index=False, lineterminator="\n")
    write(folder / TABLE, table.encode())
    return folder / TABLE


def _row(folder: Path, record: Record, names: list[str]) -> dict[str, Any]:
    # A later, larger grid varies what had the notebook's own value before.
    row = {name: record.parameters.get(name, record.identity.get(name)) for name in names}
    row["state"] = record.state
    _add(row, record.metrics)
    _add(row, record.recorded)
    _add(row, {"seconds": math.nan if record.seconds is None else record.seconds})
    places = {"path": record.run, "notebook": record.notebook}
    _add(row, {n: p if p is None or "://" in p else str(folder / p) for n, p in places.items()})
    _add(row, {"error": record.failure().removeprefix(f"{record.name}: ")})
    return row


def _add(row: dict[str, Any], values: Mapping[str, Any]) -> None:
    row.update({name: value for name, value in values.items() if name not in row})
