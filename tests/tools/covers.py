"""The picture at the top of each notebook: `python -m tests.tools covers FOLDER` takes it from executed copies.

It also takes the files that `python -m tests.tools notebook --figures FOLDER` writes, one for each cell with a figure.

The first cell of a notebook names the picture's file and has its alternative text, which is also that of one figure of
the notebook. The file in docs/images remembers the cell that drew this figure: `--check` lists pictures of other cells.
"""

import argparse
import base64
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parents[2]
COVER = re.compile(
    r"!\[(?P<text>[^\]]+)\]\(https://raw\.githubusercontent\.com/\S+/docs/images/(?P<name>[\w.-]+\.png)\)"
)
LARGEST = (1200, 800)  # pixels


class Cover(NamedTuple):
    """What the first cell of a notebook says about its picture, and the id and source of the cell that draws it."""

    text: str
    name: str
    cell: str
    source: str

    @property
    def digest(self) -> str:
        """Return what tells this source from others."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]


def cover_of(notebook: Any) -> Cover:
    """Return the picture that the first cell names; raise a ValueError if no cell or several draw it."""
    if not (match := COVER.search(notebook.cells[0].source)):
        raise ValueError(
            "the first cell has no picture ![text](https://raw.githubusercontent.com/.../docs/images/NAME.png)"
        )
    text, name = match["text"], match["name"]
    drawing = [cell for cell in notebook.cells if cell.cell_type == "code" and f'"{text}"' in cell.source]
    if len(drawing) != 1:
        raise ValueError(
            f"{len(drawing)} cells draw a figure with the text {text!r} of the picture at the top; one should"
        )
    return Cover(text, name, drawing[0].id, drawing[0].source)


def picture_of(notebook: Any, text: str) -> bytes:
    """Return the PNG file with this alternative text among the outputs."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture and output.metadata.get("image/png", output.metadata).get("alt") == text:
                return base64.b64decode(picture)
    raise ValueError(f"no output has the text {text!r}: was the notebook executed to its end?")


def write(path: Path, picture: bytes, digest: str) -> None:
    """Write the picture, scaled down to `LARGEST`, with the digest of its cell."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail(LARGEST, Image.Resampling.LANCZOS)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Cell", digest)
    image.save(path, optimize=True, pnginfo=notes)


def renew(notebook: str, picture: bytes, images: Path = ROOT / "docs" / "images") -> Path:
    """Write a figure that another command drew as the picture of a notebook, such as "03_ablation"; return the file."""
    cover = cover_of(nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4))
    write(images / cover.name, picture, cover.digest)
    return images / cover.name


def covers_of(notebooks: Path) -> dict[str, Cover]:
    """Return the covers of the notebooks of a folder, by the file's name."""
    return {path.name: cover_of(nbformat.read(path, as_version=4)) for path in sorted(notebooks.glob("*.ipynb"))}


def outdated(notebooks: Path, images: Path) -> list[str]:
    """Return a line for each notebook whose picture is missing or was drawn by another cell."""
    lines = []
    for notebook, cover in covers_of(notebooks).items():
        file = images / cover.name
        if not file.is_file():
            lines.append(f"{notebook}: there is no {file.name}")
            continue
        with Image.open(file) as image:
            if image.info.get("Cell") != cover.digest:
                lines.append(f"{notebook}: the cell that draws {file.name} has changed")
    return lines


def found(place: Path) -> Iterator[tuple[Cover, bytes]]:
    """Yield the covers in an executed notebook, or in a folder of executed notebooks and of figures named by cells."""
    for file in sorted(place.rglob("*.ipynb")) if place.is_dir() else [place]:
        notebook = nbformat.read(file, as_version=4)
        try:
            cover = cover_of(notebook)
            yield cover, picture_of(notebook, cover.text)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    for cover in covers_of(ROOT / "notebooks").values():
        for file in place.rglob(f"{cover.cell}.png"):
            yield cover, file.read_bytes()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools covers`."""
    parser.add_argument(
        "executed", type=Path, nargs="*", help="executed notebooks, or folders with them or with figures"
    )
    parser.add_argument(
        "--images", type=Path, default=ROOT / "docs" / "images", help="to write to (default: docs/images)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a picture is out of date")


def main(arguments: argparse.Namespace) -> None:
    """Write the pictures of the executed notebooks, or check those in docs/images."""
    if arguments.check:
        if lines := outdated(ROOT / "notebooks", arguments.images):
            raise ValueError(
                "\n".join([*lines, "run `nox -s pages`, then `python -m tests.tools covers build/executed`"])
            )
        return
    if not arguments.executed:
        raise ValueError("which notebooks? Name executed notebooks, or a folder of them")
    for place in arguments.executed:
        for cover, picture in found(place):
            write(arguments.images / cover.name, picture, cover.digest)
            print(arguments.images / cover.name)
