"""What variants will cost, estimated from earlier runs and variants."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from ..config import TrainConfig
from ..models.cost import gmac
from ..models.networks import create_model
from ..training.choices import chosen
from ..training.run import read_history
from .plan import Plan
from .record import Record


def expected_seconds(plan: Plan, runs: str | Path = "runs") -> dict[str, float | None]:
    """Return the seconds that each open variant is expected to take, by name; None if unknown.

    The estimate is from runs of the sweep and in `runs` with the same model, width and image size; if there are none,
    from all runs, scaled by their operations. A variant that trains nothing costs what the done variants cost.
    """
    done = [record.seconds for record in plan.records if record.state == "done" and record.seconds]
    trained = _trained([*plan.folder.glob("*/run"), *Path(runs).glob("*")])
    alike = statistics.median(done) if done else None
    return {record.name: _training(plan, record, trained) or alike for record in plan.open}


def cost_table(plan: Plan) -> pd.DataFrame:
    """Return the variants of a plan: parameters that differ, state, and expected seconds of those to be executed."""
    seconds = expected_seconds(plan)
    names = dict.fromkeys(name for record in plan.records for name in record.parameters)
    differing = [n for n in names if len({json.dumps(r.identity.get(n)) for r in plan.records}) > 1]
    rows = [
        {name: record.identity.get(name) for name in differing}
        | {"state": record.state, "expected seconds": _rounded(seconds.get(record.name))}
        for record in plan.records
    ]
    return pd.DataFrame(rows, index=pd.Index([record.name for record in plan.records], name="variant"))


def described(plan: Plan, workers: int | None = None) -> str:
    """Return the table and the sum of the costs, in words."""
    seconds = list(expected_seconds(plan).values())
    known = [value for value in seconds if value is not None]
    lines = [cost_table(plan).to_string(na_rep="?"), f"{len(plan.records)} variants, {len(plan.open)} to be executed"]
    if known:
        unknown = f", and {len(seconds) - len(known)} of unknown cost" if len(known) < len(seconds) else ""
        lines[-1] += f": {sum(known):.0f} s one after another{unknown}"
        lines[-1] += f", {sum(known) / workers:.0f} s with {workers} workers" if workers else ""
    return "\n".join(lines)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1 if seconds < 10 else None)


def _training(plan: Plan, record: Record, trained: Sequence["_Trained"]) -> float | None:
    """Return the seconds of training of a variant that is a run."""
    if "run_dir" not in plan.target.defaults or not trained:
        return None
    own = {n: v for n, v in record.identity.items() if n in TrainConfig.defaults()}
    config = chosen(TrainConfig.from_text({**own, "device": "cpu", "precision": "auto"}))
    if config.minutes is not None:
        return 60 * config.minutes
    whole = [run.images for run in trained if run.dataset == config.dataset and run.limit is None]
    images = config.train_limit or max(whole, default=None)
    if images is None:
        return None
    size = (config.model, config.width, config.side)
    rates = [run.rate for run in trained if run.size == size]
    rates = rates or [run.rate * _gmac(*size) / _gmac(*run.size) for run in trained]
    return statistics.median(rates) * images * (config.epochs or 0)


@dataclass(frozen=True)
class _Trained:
    """An earlier run; `rate` is its seconds for each training image, tests included."""

    size: tuple[str, float, int]
    dataset: str
    limit: int | None
    images: int
    rate: float


def _trained(folders: Iterable[Path]) -> list[_Trained]:
    """Return the costs of the runs in these folders; folders without a finished epoch are left out."""
    runs = []
    for folder in folders:
        try:
            settings = json.loads((folder / "config.json").read_text("utf-8"))
            size = (settings["model"], settings["width"], settings["image_size"])
            images = settings["data"]["train"]
            rate = statistics.median(row["seconds"] for row in read_history(folder)) / images
            runs.append(_Trained(size, settings["dataset"], settings["train_limit"], images, rate))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return runs


@cache
def _gmac(model: str, width: float, image_size: int) -> float:
    return gmac(create_model(model, 10, width=width), image_size)
