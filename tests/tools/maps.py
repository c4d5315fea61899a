"""Measure the maps of trained networks, and write what docs/results/04_map_quality.md shows.

`python -m tests.tools maps --sweep runs/maps --workers 14`, then `python -m tests.tools results`. What is measured of a
run is kept in its folder, so runs can be measured on one machine and the tables made on another, with `--runs FOLDER`.
"""

import argparse
import time
from pathlib import Path

from ltpa.config import yaml_values
from ltpa.course import map_quality
from ltpa.viz import to_png
from tests.tools import covers

PAGE = "04_does_the_map_tell_the_truth"
PARAMETERS = Path(f"notebooks/params/maps/{PAGE}.yaml")
DOCS = Path("docs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools maps`."""
    parser.add_argument(
        "--file", type=Path, default=PARAMETERS, help=f"parameters of notebook 04 (default: {PARAMETERS})"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--sweep", help="folder of a sweep, whose runs are measured")
    source.add_argument("--runs", type=Path, default=Path("runs"), help="or the folder of the runs (default: runs)")
    parser.add_argument("--workers", type=int, default=1, help="runs measured at the same time (default: 1)")
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
    start = time.perf_counter()
    measured = map_quality.measure_runs(trained, config.how(), arguments.workers)
    print(f"{len(trained)} runs measured in {time.perf_counter() - start:.0f} s")
    table = map_quality.Values(measured)
    effects = map_quality.all_effects(table, config.described())
    data = arguments.docs / "results" / "data"
    measured.small().write(data, "maps_04")
    print(*map_quality.write_results(measured, effects, data), sep="\n")
    print(covers.renew(PAGE, to_png(map_quality.scores_figure(table)), arguments.docs / "images"))
    print(map_quality.describe(effects))
