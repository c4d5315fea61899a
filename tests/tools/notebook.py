"""A notebook without Jupyter, for machines that lack it: its cells in this process, its figures as files."""

import argparse
import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltpa import viz


def execute(path: Path, values: Mapping[str, Any], figures: Path | None = None) -> dict[str, Any]:
    """Execute the code cells of a notebook with these parameters, print what they show, and return their names.

    Figures go to `figures`, a PNG file each, named by the cell.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    show = viz.display
    try:
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if cell["cell_type"] != "code":
                continue

            def save(figure: Any, alt: str, name: str = cell["id"]) -> None:
                if figures is not None:
                    figures.mkdir(parents=True, exist_ok=True)
                    (figures / f"{name}.png").write_bytes(viz.to_png(figure))

            viz.display = save
            body = ast.parse("".join(cell["source"])).body
            shown = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), f"{path.name}, cell {cell['id']}", "exec"), namespace)
            if (
                shown
                and (result := eval(compile(shown, f"{path.name}, cell {cell['id']}", "eval"), namespace)) is not None
            ):
                print(result)
            if "parameters" in cell["metadata"].get("tags", []):
                namespace.update(values)
    finally:
        viz.display = show
    return namespace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools notebook`."""
    parser.add_argument("notebook", type=Path)
    parser.add_argument("-f", dest="files", type=Path, action="append", default=[], metavar="FILE.yaml")
    parser.add_argument("-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--figures", type=Path, help="folder for the figures, named by their cells")


def main(arguments: argparse.Namespace) -> None:
    """Execute a notebook."""
    import yaml

    values: dict[str, Any] = {}
    for file in arguments.files:
        values |= yaml.safe_load(file.read_text("utf-8"))
    values |= {name: yaml.safe_load(value) for name, value in arguments.given}
    execute(arguments.notebook, values, arguments.figures)
