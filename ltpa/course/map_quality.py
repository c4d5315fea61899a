"""Notebook 04: does the map tell the truth? Its settings, and what it uses of the measurement."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field

from ..config import Count, EachOnce, Seed, Variant, settings
from ..data.dataset import SHAPES_TRAIN
from ..errors import counted
from ..metrics.statistics import LEAST_SEEDS, Effect, write_effects
from ..models.networks import parse_variant
from . import setup
from .grid import AblationConfig, Cell, Grid, collect, train_missing
from .map_quality_effects import (
    Values,
    agreement,
    contrast_effects,
    describe,
    effects_table,
    leak_effects,
    means,
    object_effects,
    permutation_effects,
    summary,
)
from .map_quality_maps import without_network
from .map_quality_measure import VALUES, How, Measured, is_measured, measure_runs
from .map_quality_plot import cases_figure, curves_figure, sanity_figure, scores_figure
from .setup import report

__all__ = [
    "How", "MapQualityConfig", "Measured", "Values", "accuracy_table", "agreement", "all_effects", "cases_figure",
    "collect", "contrast_effects", "curves_figure", "describe", "effects_table", "is_measured", "leak_effects",
    "measure_runs", "object_effects", "parameters", "permutation_effects", "report", "run_folders", "sanity_figure",
    "scores_figure", "summary", "train_missing", "without_network", "write_results",
]  # fmt: skip

_FLAGSHIP = "vgg-att3-concat-pc"


@settings
class MapQualityConfig(AblationConfig):
    """Parameters of the notebook that measures maps; the runs that it compares are those of `ltpa.QUICK`."""

    models: Annotated[Sequence[Variant], EachOnce] = Field(
        (_FLAGSHIP, f"{_FLAGSHIP} sigmoid", "vgg-att3-concat-add", "vgg-att3-concat-dp", "vgg-late", "vgg-gap"),
        description="names of `ltpa.list_models()`, with the normalizer behind the name where it is not softmax",
    )
    seeds: Annotated[Sequence[Seed], EachOnce] = Field(
        (0,),
        description=f"each model is trained once for each seed; fewer than {LEAST_SEEDS} say nothing about new ones",
    )
    dataset: Literal["shapes"] = "shapes"
    methods: Annotated[
        Sequence[Literal["gradcam", "saliency", "integrated_gradients", "occlusion", "cam"]], EachOnce
    ] = Field(("gradcam", "saliency", "occlusion", "cam"), description="of `ltpa.explain`, to compare attention with")
    images: Annotated[int, Field(ge=2, le=10**6)] = Field(200, description="test images that are measured")
    held_out: Count = Field(100, description="other test images, which choose thresholds and levels")
    costly_images: Annotated[int, Field(ge=2, le=10**6)] = Field(
        50, description="how many of `images` the slow measures take"
    )
    draws: Count = Field(1, description="how often the weights are made random for the sanity check")
    hidden_epochs: Annotated[int, Field(ge=0, le=100)] = Field(
        1, description="passes of a copy of each network over pictures with hidden parts, for in-domain deletion"
    )
    fill: Literal["mean", "noise", "blur"] = Field("mean", description="what replaces deleted pixels")
    workers: Count = Field(1, description="processes that measure runs at the same time")

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Return nothing: here no model is the baseline."""
        return []

    def how(self) -> How:
        """Return what is measured on which images."""
        costly, hidden = self.costly_images, self.hidden_epochs
        return How(tuple(self.methods), self.images, self.held_out, costly, self.draws, hidden, self.fill)

    def described(self) -> str:
        """Return how the models are trained, in words."""
        images = SHAPES_TRAIN if self.train_limit is None else min(self.train_limit, SHAPES_TRAIN)
        return f"width {self.width:g}, {counted(self.epochs, 'epoch')} of {images:,} drawn pictures"


parameters = partial(setup.parameters, kind=MapQualityConfig)


def run_folders(cells: Iterable[Cell]) -> dict[tuple[str, int], Path]:
    """Return the folders of runs by short name and seed: "pc softmax" is vgg-att3-concat-pc with softmax."""
    return {(_short(cell.variant), cell.seed): cell.config.path for cell in cells}


def _short(variant: str) -> str:
    model, normalizer = parse_variant(variant)
    short = model.removeprefix("vgg-att3-concat-")
    return f"{short} {normalizer}" if "-att" in model or model == "vgg-pan" else short


def accuracy_table(grid: Grid) -> pd.DataFrame:
    """Return the test accuracy of each model in percent: the mean over the seeds, with its interval if there is one."""
    rows = {
        _short(variant): {
            "seeds": len(grid.results_of(variant)), "test accuracy, %": grid.accuracy(variant).text(1, 100)
        }
        for variant in grid.variants
    }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def all_effects(values: Values, budget: str) -> list[Effect]:
    """Return the effects of all claims."""
    claims = (object_effects, leak_effects, contrast_effects, permutation_effects)
    return [effect for effects in claims for effect in effects(values, budget)]


def write_results(measured: Measured, effects: Sequence[Effect], folder: str | Path = "runs") -> list[Path]:
    """Write the means of what was measured, tables of them, and the effects; return the paths.

    Effects with an interval over seeds go to `effects_04.csv`, those of too few seeds to `single_04.csv`.
    """
    folder, values = Path(folder), Values(measured)
    tables = {"maps_measured": means(values, VALUES)}
    for measure in ("average_precision", "jaccard", "prediction", "prediction_per_pixel", "gain", "own", "deletion"):
        tables[f"table_04_{measure}"] = summary(values, measure).reset_index()
    tables["agreement_04"] = agreement(values)
    paths = [folder / f"{name}.csv" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        table.to_csv(path, index=False, lineterminator="\n")
    few = any(effect.seeds < LEAST_SEEDS for effect in effects)
    return [*paths, write_effects(effects, folder / ("single_04.csv" if few else "effects_04.csv"))]
