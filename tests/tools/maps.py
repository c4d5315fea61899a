"""Measure the maps of trained networks, and write what docs/results/04_map_quality.md shows.

`python -m tests.tools maps --sweep runs/maps --workers 14`, then `python -m tests.tools results`. What is measured of a
run is kept in its folder, so runs can be measured on one machine and the tables made on another, with `--runs FOLDER`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltpa.config import yaml_values
from ltpa.course import map_quality
from ltpa.course import map_quality_effects as claims
from ltpa.course.map_quality_maps import ATTENTION, NORM
from ltpa.metrics.statistics import CONTRADICTED, SUPPORTED, Effect
from ltpa.viz import to_png
from tests.tools import covers
from tests.tools.marks import write_between

PAGE = "04_does_the_map_tell_the_truth"
PARAMETERS = Path(f"notebooks/params/maps/{PAGE}.yaml")
DOCS = Path("docs")
BEGIN, END = "<!-- summary: made by `python -m tests.tools maps` -->", "<!-- end of summary -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools maps`."""
    parser.add_argument(
        "--file", type=Path, default=PARAMETERS, help=f"parameters of notebook 04 (default: {PARAMETERS})"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--sweep", help="folder of a sweep, whose runs are measured")
    source.add_argument("--runs", type=Path, default=Path("runs"), help="or the folder of the runs (default: runs)")
    parser.add_argument("--workers", type=int, default=1, help="runs measured at the same time (default: 1)")
    parser.add_argument("--only-measured", action="store_true", help="measure nothing, and use what is measured so far")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to (default: docs)")


def main(arguments: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write tables, effects and the figure."""
    values = yaml_values(arguments.file.read_text("utf-8"))
    config = map_quality.MapQualityConfig.from_text(values | ({"sweep": arguments.sweep} if arguments.sweep else {}))
    runs = map_quality.run_folders(config.grid())
    if not arguments.sweep:
        runs = {key: arguments.runs / path.name for key, path in runs.items()}
    trained = {key: path for key, path in runs.items() if (path / "config.json").is_file()}
    print(f"not trained: {', '.join(f'{name} {seed}' for name, seed in runs.keys() - trained.keys()) or 'none'}")
    if arguments.only_measured:
        trained = {key: path for key, path in trained.items() if map_quality.is_measured(path, config.how())}
    start = time.perf_counter()
    measured = map_quality.measure_runs(trained, config.how(), arguments.workers)
    print(f"{len(trained)} runs measured in {time.perf_counter() - start:.0f} s")
    table = map_quality.Values(measured)
    effects = map_quality.all_effects(table, config.described())
    data = arguments.docs / "results" / "data"
    measured.small().write(data, "maps_04")
    print(*map_quality.write_results(measured, effects, data), sep="\n")
    print(covers.renew(PAGE, to_png(map_quality.scores_figure(table)), arguments.docs / "images"))
    page = arguments.docs / "results" / "04_map_quality.md"
    write_between(page, BEGIN, summary(table, effects), END)
    print(map_quality.describe(effects))


def summary(values: map_quality.Values, effects: Sequence[Effect]) -> str:
    """Return what came out, as the first lines of the page."""
    networks = [model for model in values.models if values.has_attention(model)]

    def span(family: str, measure: str) -> str:
        tables = [values.table(model, family, measure) for model in networks]
        means = [np.nanmean(table) for table in tables if table is not None]
        return f"{min(means):.2f} to {max(means):.2f}" if means else "nothing"

    def counted(claim: str, baseline: str) -> str:
        found = [e.verdict for e in effects if (e.claim, e.baseline) == (claim, baseline)]
        return f"better in {found.count(SUPPORTED)} and worse in {found.count(CONTRADICTED)} of {len(found)} networks"

    permuted = [e.verdict for e in effects if e.claim == claims.DEPENDS]
    leaks = [e.verdict for e in effects if e.claim == claims.LEAKS]
    counts = {effect.seeds for effect in effects}
    trained = " to ".join(map(str, sorted({min(counts), max(counts)})))
    precision, prediction = "average_precision", "prediction"
    lines = [
        f"**Where it lies**: attention finds the object with an average precision of {span(ATTENTION, precision)} "
        f"(best level; {trained} seeds each), the norm of the same features, without attention, with "
        f"{span(NORM, precision)}: {counted(claims.BEATS_NORM, NORM)}. Against saliency at the same resolution it is "
        f"{counted(claims.BEATS_METHODS, 'saliency')}, against Grad-CAM {counted(claims.BEATS_METHODS, 'Grad-CAM')}.",
        f"**What the answer depends on**: attention predicts with a rank correlation of {span(ATTENTION, prediction)} "
        f"which changes of a picture move the answer, the norm with {span(NORM, prediction)}: "
        f"{counted(claims.PREDICTS, NORM)}; with the size of a change left out, {counted(claims.PER_PIXEL, NORM)}. "
        f"Networks whose answers are at chance without the object, so that this test is valid: "
        f"{leaks.count(CONTRADICTED)} of {len(leaks)}.",
        f"**What it cannot say**: of two objects, which one speaks for which class (one map for all classes); "
        f"{span(ATTENTION, 'answer')} of its weight on both is on the one that the network names. "
        f"{permuted.count(CONTRADICTED)} of {len(permuted)} levels can be permuted without moving a tenth of the "
        "probability.",
    ]
    return "\n".join(f"- {line}" for line in lines)
