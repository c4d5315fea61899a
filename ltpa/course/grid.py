"""A grid of models and seeds, each a run like any other, trained here or elsewhere; shared by several notebooks."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import Field
from torch import Tensor

from ..config import QUICK, DatasetName, EachOnce, FilePath, Seed, TrainConfig, Variant, settings
from ..data.dataset import Dataset
from ..errors import closest, counted
from ..inference import evaluate_images
from ..metrics.statistics import Interval, t_interval
from ..models.cost import gmac, parameters
from ..models.networks import parse_variant
from ..sweep import load_sweep
from ..training.choices import chosen
from ..training.run import Run, fingerprint, load_run, read_config
from ..training.trainer import TrainingDiverged, data_for, fit
from .setup import QuickRuns

MODELS = ("vgg-late", "vgg-att3-concat-pc", "vgg-att3-concat-dp", "vgg-att3-concat-add")


@settings
class AblationConfig(QuickRuns):
    """Parameters of the ablation."""

    models: Annotated[Sequence[Variant], EachOnce] = Field(
        ("vgg-late", "vgg-late-norm", "vgg-att3-concat-uniform", "vgg-att3-concat-pc", "vgg-att3-concat-add"),
        description="names of `ltpa.list_models()`, with the normalizer behind the name where it is not softmax",
    )
    baseline: Variant = Field(
        "vgg-late", description="what the other `models` are compared with, where nothing else is planned"
    )
    seeds: Annotated[Sequence[Seed], EachOnce] = Field(
        (0, 1, 2), description="each variant is trained once for each seed"
    )
    budget: Annotated[float, Field(ge=0)] | None = Field(
        None, description="minutes for training; 0 trains nothing and collects what is there, None trains all"
    )
    sweep: FilePath | None = Field(
        None, description="folder of a sweep: its runs are compared, and it gives models, seeds and settings"
    )
    dataset: DatasetName = QUICK["dataset"]
    data_dir: FilePath = "data"
    data_name: FilePath = Field("auto", description="what tables call the data; 'auto' is the data set or the folder")

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Refuse a baseline that is not among the models."""
        baseline, models = values.get("baseline"), values.get("models")
        if baseline and models and baseline not in models:
            return [f"baseline={baseline!r}: {closest(baseline, models)}"]
        return []

    @classmethod
    def from_text(cls, values: Mapping[str, Any]) -> Self:
        """Make settings of values that may be text; those of the sweep's runs come first."""
        folder = super().from_text({"sweep": values.get("sweep")}).sweep
        if folder is not None:
            runs = sweep_configs(folder)
            shared = next(iter(runs.values()))
            common = {name: getattr(shared, name) for name in cls.defaults().keys() & shared.identity().keys()}
            models, seeds = (list(dict.fromkeys(place)) for place in zip(*runs, strict=True))
            values = {**values, **common, "data_dir": shared.data_dir, "models": models, "seeds": seeds}
        return super().from_text(values)

    def grid(self) -> "list[Cell]":
        """Return every run of the grid, seed by seed, so that a grid that is half full compares all variants."""
        places = [(variant, seed) for seed in self.seeds for variant in self.models]
        runs = {} if self.sweep is None else sweep_configs(self.sweep)
        configs = {place: replace(config, device=self.device) for place, config in runs.items()}
        return [Cell(*place, configs.get(place) or self.train_config(*place)) for place in places]

    def train_config(self, variant: str, seed: int) -> TrainConfig:
        """Return the settings of one run."""
        model, normalizer = parse_variant(variant)
        return TrainConfig(**{"model": model, "normalizer": normalizer, "seed": seed, **self.common()})

    def data_described(self) -> str:
        """Return what the models are trained and tested on, in words."""
        if self.data_name != "auto":
            return self.data_name
        return f"folder {Path(self.data_dir).name}" if self.dataset == "folder" else self.dataset


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    variant: str
    seed: int
    config: TrainConfig

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """A run of the grid, and whether it classifies each test image rightly, bool (N,)."""

    cell: Cell
    run: Run
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """Of the test images, in [0, 1]."""
        return self.correct.double().mean().item()

    @property
    def seconds(self) -> float:
        """Time of the training with its tests."""
        return sum(row["seconds"] for row in self.run.history)

    @property
    def entropies(self) -> dict[str, float]:
        """Mean entropy of the test images' maps by level, 1 = uniform."""
        last = self.run.history[-1]
        return {key.removeprefix("entropy_"): value for key, value in last.items() if key.startswith("entropy_")}


@dataclass
class Grid:
    """The results of the runs that are there, in the order of the grid, and why each of the others is left out."""

    config: AblationConfig
    results: list[Result] = field(default_factory=list)
    missing: dict[Cell, str] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """The variants that have results, in the order of `config.models`."""
        return [variant for variant in self.config.models if self.results_of(variant)]

    def results_of(self, variant: str) -> list[Result]:
        """Return the results of one variant, a seed each."""
        return [result for result in self.results if result.cell.variant == variant]

    def scores(self) -> dict[str, dict[int, Tensor]]:
        """Return whether each test image is classified rightly, by variant and seed."""
        return {v: {r.cell.seed: r.correct for r in self.results_of(v)} for v in self.variants}

    def accuracy(self, variant: str) -> Interval:
        """Return the mean accuracy of a variant on the test images, in [0, 1], with its interval over seeds."""
        return t_interval([result.accuracy for result in self.results_of(variant)], bounds=(0, 1))

    def costs(self, variant: str) -> dict[str, float]:
        """Return the parameters of a variant's model, and the GMAC (1e9 multiply-accumulates) that one image costs."""
        run = self.results_of(variant)[0].run
        return {"parameters": parameters(run.model), "GMAC": gmac(run.model, run.config.side)}

    def frame(self) -> pd.DataFrame:
        """Return a table with one row a run: accuracy, seconds, cost, entropies and all settings."""
        costs = {variant: self.costs(variant) for variant in self.variants}
        shared = {key: value for key, value in self.config.common().items() if key not in ("data_dir", "device")}
        rows = [
            {"variant": r.cell.variant, "seed": r.cell.seed, "accuracy": r.accuracy, "test_images": len(r.correct)}
            | {"seconds": round(r.seconds, 1), "parameters": costs[r.cell.variant]["parameters"]}
            | {"gmac": round(costs[r.cell.variant]["GMAC"], 6)}
            | {f"entropy_{level}": round(value, 4) for level, value in r.entropies.items()}
            | shared
            for variant in self.variants
            for r in self.results_of(variant)
        ]
        return pd.DataFrame(rows).round({"accuracy": 6})

    def complaints(self) -> str:
        """Return which runs are missing and why, a line each; or that none is."""
        if not self.missing:
            return f"all {len(self.results)} runs are there"
        first = f"{len(self.missing)} of {len(self.missing) + len(self.results)} runs are left out:"
        return "\n".join([first, *(f"  {cell}: {reason}" for cell, reason in self.missing.items())])

    def require_runs(self) -> None:
        """Raise a ValueError that says what to do if there is no run at all."""
        if not self.results:
            raise ValueError(
                f"there is no run to compare; {self.complaints()}\n"
                "Train runs with the cell above (if `budget` is 0 or too small, set budget=None), or copy folders of "
                "trained runs into runs/; then run this cell again"
            )


def sweep_configs(folder: str) -> dict[tuple[str, int], TrainConfig]:
    """Return the settings of a sweep's runs by variant and seed; refuse a sweep that varies anything else."""
    table = load_sweep(folder)
    done = table[(table["state"] == "done") & table["path"].notna()]
    if done.empty:
        raise ValueError(f"the sweep {folder} has no finished run; run its command again")
    configs = [read_config(Path(path)) for path in done["path"]]
    identities = [config.identity() for config in configs]
    other = identities[0].keys() - {"model", "normalizer", "seed"}
    differing = sorted(name for name in other if any(i[name] != identities[0][name] for i in identities))
    if differing:
        raise ValueError(
            f"the runs of the sweep {folder} differ in {', '.join(differing)}; models can be compared only if model, "
            "normalizer and seed are all that differs"
        )
    names = [f"{c.model} {c.normalizer}".removesuffix(" softmax") for c in configs]
    return {(name, config.seed): config for name, config in zip(names, configs, strict=True)}


def train_missing(config: AblationConfig, data: Dataset | None = None) -> None:
    """Train the runs of the grid that are not there yet, as far as the budget goes; print failures and go on."""
    started, longest = time.monotonic(), 0.0
    if config.budget == 0 or config.sweep is not None:
        reason = "budget=0" if config.sweep is None else f"the runs are those of {config.sweep}"
        print(f"{reason}: nothing is trained")
        return
    cells = config.grid()
    data = data_for(cells[0].config) if data is None else data
    images = fingerprint(data)
    missing = [cell for cell in cells if _find_run(cell, images)[0] is None]
    for number, cell in enumerate(missing, start=1):
        spent = time.monotonic() - started
        if config.budget is not None and spent + longest > 60 * config.budget:
            left = len(missing) - number + 1
            print(f"the budget of {config.budget:g} minutes is used up: {counted(left, 'run')} not trained")
            return
        print(f"run {number} of {len(missing)}: {cell}")
        try:
            fit(cell.config, data)
        except (TrainingDiverged, ValueError, OSError, RuntimeError) as error:  # RuntimeError: a GPU's memory
            print(f"left out: {error}")
        longest = max(longest, time.monotonic() - started - spent)


def collect(config: AblationConfig, data: Dataset | None = None) -> Grid:
    """Load and test every run of the grid; what is missing, unfinished or broken is named in `missing`."""
    grid = Grid(config)
    data = data_for(config.grid()[0].config) if data is None else data
    images = fingerprint(data)
    for cell in config.grid():
        run, reason = _find_run(cell, images)
        if run is None:
            grid.missing[cell] = reason
        elif run.classes != data.classes:
            grid.missing[cell] = f"{run.path} was trained on other classes"
        else:
            tested = evaluate_images(run.model, data.test, run.config.precision)
            grid.results.append(Result(cell, run, tested.correct))
    return grid


def _find_run(cell: Cell, images: Mapping[str, Any]) -> tuple[Run | None, str]:
    """Return the complete run of a cell, trained on these images (see `fingerprint`); or None, and why."""
    path = cell.config.path
    if not path.exists():
        return None, f"not trained ({path} does not exist)"
    try:
        run = load_run(path, cell.config.device)
    except (ValueError, OSError) as error:
        return None, str(error)
    if run.config.identity() != chosen(cell.config).identity():
        return None, f"{path} belongs to other settings"
    if json.loads((path / "config.json").read_text("utf-8")).get("data") != images:
        return None, f"{path} was trained on other images than these; choose another folder for runs, or data_dir"
    if not run.complete:
        return None, f"{path} has {run.progress}"
    return run, ""
