"""Executes all notebooks and makes a page of them: HTML with an index of thumbnails, for GitHub Pages or a local look.

    python .github/make_gallery.py runs/gallery

A picture without a text for those who cannot see it, or a link that leads nowhere, ends it with an error.
"""

import argparse
import base64
import html
import io
import os
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import papermill
import yaml
from nbconvert import HTMLExporter
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
THUMBNAIL = (420, 300)  # pixels at most

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ltpa: attention CNNs you can look into</title><style>
body {{ font: 18px/1.5 sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222; }}
ul {{ list-style: none; padding: 0; display: grid; gap: 1.5em; }}
ul {{ grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }}
li {{ border: 1px solid #ccc; border-radius: 6px; padding: 1em; }}
img {{ width: 100%; height: 210px; object-fit: contain; }}
</style></head><body>
<h1>Attention CNNs you can look into</h1>
<p>The notebooks of <a href="{repository}">ltpa</a>, executed with their quick parameters.</p>
<ul>
{items}
</ul></body></html>
"""
ITEM = (
    '<li><a href="{page}"><img src="{picture}" alt="{alt}"></a><h2><a href="{page}">{title}</a></h2><p>{text}</p></li>'
)


def execute(notebook: Path, folder: Path, parameters: str) -> Path:
    """Runs a notebook with a set of parameters; runs lie in `folder`, so that later notebooks find those of earlier."""
    values = yaml.safe_load((NOTEBOOKS / "params" / parameters / f"{notebook.stem}.yaml").read_text("utf-8")) or {}
    os.environ["LTPA_FOLDER"] = str(folder)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    executed = folder / notebook.name
    papermill.execute_notebook(notebook, executed, values, kernel_name="python3", progress_bar=False, cwd=str(folder))
    return executed


def make(executed: list[Path], out: Path, repository: str) -> None:
    """Makes the pages of executed notebooks and their index.

    Args:
        executed: notebooks with outputs, in the order of the index.
        out: folder for the pages, made if missing.
        repository: address for links to files that are not pages.

    Raises:
        ValueError: a picture without text, or a link that leads nowhere; all of them in one message.
    """
    out.mkdir(parents=True, exist_ok=True)
    items = []
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = _relinked(cell.source, {p.name for p in executed}, repository)
        notebook.metadata.pop("widgets", None)
        item = _item(notebook, path.stem, out)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                _with_text(output)
        page, _ = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(notebook)
        (out / f"{path.stem}.html").write_text(page.replace("<html>", '<html lang="en">', 1), encoding="utf-8")
        items.append(item)
    index = PAGE.format(repository=html.escape(repository), items="\n".join(items))
    (out / "index.html").write_text(index, encoding="utf-8")
    if problems := check(out):
        raise ValueError("the gallery has defects:\n  " + "\n  ".join(problems))


def _relinked(text: str, pages: set[str], repository: str) -> str:
    """Links between notebooks lead to their pages; those to other files of the repository lead there."""

    def target(match: re.Match) -> str:
        name, anchor = match[1], match[2] or ""
        if name in pages:
            return f"]({Path(name).stem}.html{anchor})"
        path = os.path.normpath(Path("notebooks", name)).replace(os.sep, "/")
        return f"]({repository}/blob/HEAD/{path}{anchor})" if (ROOT / path).exists() else match[0]

    return re.sub(r"\]\((?!https?:|#|data:)([^)#\s]+)(#[^)\s]*)?\)", target, text)


def _item(notebook: nbformat.NotebookNode, stem: str, out: Path) -> str:
    """The entry of the index: title, what one learns, and the last picture of maps, or the last one at all."""
    head = notebook.cells[0].source
    title = re.search(r"^# (.+)$", head, re.MULTILINE)[1]
    text = re.search(r"\*\*You will learn\*\*(.+?)(?:\\\n|\n\n|\Z)", head, re.DOTALL)
    text = re.sub(r"[`*]|\s+", lambda m: " " if m[0].isspace() else "", text[1]).strip() if text else ""
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    if not pictures:
        raise ValueError(f"{stem} has no picture for the index")
    maps = [o for o in pictures if "map" in _alt(o).lower()]
    chosen = (maps or pictures)[-1]
    picture = Image.open(io.BytesIO(base64.b64decode(chosen["data"]["image/png"]))).convert("RGB")
    picture.thumbnail(THUMBNAIL)
    picture.save(out / f"{stem}.png", optimize=True)
    fields = {"page": f"{stem}.html", "picture": f"{stem}.png", "alt": _alt(chosen), "title": title, "text": text}
    return ITEM.format(**{name: html.escape(value) for name, value in fields.items()})


def _with_text(output: nbformat.NotebookNode) -> None:
    """Makes a picture HTML of its own: nbconvert leaves the text out that notebooks keep with a picture.

    So a widget, which needs a kernel, becomes the picture that stands in its place.
    """
    if "image/png" in output.get("data", {}):
        picture = re.sub(r"\s", "", output.data["image/png"])
        text = html.escape(_alt(output))
        output.data = {"text/html": f'<img src="data:image/png;base64,{picture}" alt="{text}" style="max-width: 100%">'}


def _alt(output: nbformat.NotebookNode) -> str:
    return output.metadata.get("image/png", output.metadata).get("alt", "")


class _Page(HTMLParser):
    """Links, anchors and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[dict[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img":
            self.pictures.append(found)


def check(folder: Path) -> list[str]:
    """What is wrong with the pages in a folder: links and pictures that are not there, pictures without a text."""
    pages = {path.name: _Page(path.read_text("utf-8")) for path in sorted(folder.glob("*.html"))}
    problems = []
    for name, page in pages.items():
        for link in page.links:
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            if path and not (folder / path).is_file():
                problems.append(f"{name}: the link to {path} leads nowhere")
            elif anchor and anchor not in pages.get(path or name, _Page("")).anchors:
                problems.append(f"{name}: there is no place #{anchor} in {path or name}")
        for picture in page.pictures:
            source = picture.get("src", "")
            shown = source[:60] if source.startswith("data:") else source
            if not re.match(r"https?:|data:image/\w+[;,].", source) and not (source and (folder / source).is_file()):
                problems.append(f"{name}: the picture {shown!r} is missing")
            if not picture.get("alt", "").strip() or picture["alt"].startswith("No description"):
                problems.append(f"{name}: the picture {shown!r} has no text for those who cannot see it")
    return problems


def main() -> None:
    """Executes the notebooks and makes the gallery."""
    parser = argparse.ArgumentParser(description="Executes all notebooks and makes HTML pages of them.")
    parser.add_argument("out", type=Path, help="folder for the pages")
    parser.add_argument("--parameters", default="quick", help="which folder of notebooks/params (default quick)")
    arguments = parser.parse_args()
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
    work = (arguments.out / ".work").resolve()
    executed = []
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"executing {notebook.name}", flush=True)
        executed.append(execute(notebook, work, arguments.parameters))
    make(executed, arguments.out, repository)
    print(f"{arguments.out / 'index.html'} shows {len(executed)} notebooks")


if __name__ == "__main__":
    main()
