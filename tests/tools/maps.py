"""Measure the maps of a sweep's runs, and write what docs/results/04_map_quality.md shows.

On the machine that trained: `python -m tests.tools maps --sweep runs/maps --workers 14 --out DIR`. Elsewhere, from the
files in DIR: `python -m tests.tools maps --measured DIR --out docs/results/data`; then `python -m tests.tools results`.
"""

import argparse
import importlib.util
import time
from pathlib import Path

from ltpa.config import yaml_values
from ltpa.course import map_quality
from ltpa.viz import to_png
from tests.tools import covers

NAME = "maps_04"
PARAMETERS = Path("notebooks/params/maps/04_does_the_map_tell_the_truth.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools maps`."""
    parser.add_argument(
        "--file", type=Path, default=PARAMETERS, help=f"parameters of notebook 04 (default: {PARAMETERS})"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--sweep", help="folder of a sweep, whose runs are measured")
    source.add_argument("--measured", type=Path, help="folder with the files of an earlier call, which are read")
    parser.add_argument("--workers", type=int, default=1, help="runs measured at the same time (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument(
        "--picture",
        type=Path,
        help="file for the figure (default: maps_measured.png in --out; with --measured the picture of notebook 04)",
    )


def main(arguments: argparse.Namespace) -> None:
    """Measure or read, and write tables, effects and the figure."""
    values = yaml_values(arguments.file.read_text("utf-8"))
    config = map_quality.MapQualityConfig.from_text(values | ({"sweep": arguments.sweep} if arguments.sweep else {}))
    start = time.perf_counter()
    if arguments.measured is None:
        runs = map_quality.run_folders(config.grid())
        measured = map_quality.measure_runs(runs, config.how(), arguments.workers)
        measured.write(arguments.out, NAME)
        print(f"{len(runs)} runs measured in {time.perf_counter() - start:.0f} s")
        if importlib.util.find_spec("scipy") is None:
            print(f"no intervals without scipy; go on elsewhere with --measured and the files in {arguments.out}")
            return
    else:
        measured = map_quality.Measured.read(arguments.measured, NAME)
        measured.small().write(arguments.out, NAME)
    table = map_quality.Values(measured)
    effects = map_quality.all_effects(table, config.described())
    print(*map_quality.write_results(measured, effects, arguments.out), sep="\n")
    figure = to_png(map_quality.scores_figure(table))
    if arguments.measured and not arguments.picture:
        picture = covers.renew("04_does_the_map_tell_the_truth", figure)
    else:
        picture = arguments.picture or arguments.out / "maps_measured.png"
        picture.write_bytes(figure)
    print(picture, map_quality.describe(effects), sep="\n")
