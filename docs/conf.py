"""Settings of Sphinx: `sphinx-build -W -n docs build/docs` makes the site, without a network.

The notebooks are copied beside the pages first: those of `notebooks/`, which have no outputs, or executed ones from the
folder that the environment variable LTPA_EXECUTED names. Links that lead out of `docs/` become links to GitHub.
"""

import html
import os
import re
import sys
import tomllib
from pathlib import Path

import nbformat
from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTEBOOKS = ROOT / "notebooks"
sys.path[:0] = [str(ROOT), str(DOCS)]

from api_text import api_text  # noqa: E402

from ltpa import __version__  # noqa: E402

REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]

project = "ltpa"
author = "The ltpa authors"
copyright = "The ltpa authors, MIT license"
version = release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx-mathjax-offline", "myst_nb"]
exclude_patterns = ["results/data", "demo"]
default_role = "code"  # `name` in docstrings

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
nitpick_ignore_regex = [("py:.*", ".*")]  # docstrings have no links; annotations name types of other packages

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
# A widget needs a kernel; the picture that it brings along does not.
nb_mime_priority_overrides = [
    ("*", "text/html", 0),
    ("*", "image/png", 5),
    ("*", "application/vnd.jupyter.widget-view+json", 100),
]

html_theme = "sphinx_book_theme"
html_title = "ltpa"
html_extra_path = ["llms.txt"]
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": f"v{version}",
    "path_to_docs": "",
    "use_repository_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com", "notebook_interface": "classic"},
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search button, that of the sidebar
}


def copy_notebooks(source: Path, target: Path) -> None:
    """Copy the notebooks, with the pictures at their top from here and the text of each picture for a browser."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("widgets", None)
        first = notebook.cells[0]
        first.source = re.sub(r"https://raw\.githubusercontent\.com/[^)\s]+?/docs/", "../docs/", first.source)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if picture := output.get("data", {}).get("image/png"):
                    text = output.metadata.get("image/png", output.metadata).get("alt", "")
                    address = f"data:image/png;base64,{''.join(picture.split())}"
                    output.data = {"text/html": f'<img src="{address}" alt="{html.escape(text)}">'}
        nbformat.write(notebook, target / path.name)


def relink(app: Sphinx, page: str, source: list[str]) -> None:
    """Make links that lead out of a page's folder fit the site: to a page of it, or to the file on GitHub."""
    folder = NOTEBOOKS if page.startswith("notebooks/") else (DOCS / page).parent

    def target(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match[1]))
        if not path.exists():
            logging.getLogger(__name__).warning("the link to %s leads nowhere", match[1], location=page)
        if path.parent == NOTEBOOKS and path.suffix == ".ipynb":
            path = DOCS / "notebooks" / path.name
        if path.is_relative_to(DOCS):
            return f"]({os.path.relpath(path, (DOCS / page).parent)}{match[2] or ''})"
        return f"]({REPOSITORY}/blob/v{version}/{path.relative_to(ROOT).as_posix()}{match[2] or ''})"

    source[0] = re.sub(r"\]\((\.\./[^)\s#]+)(#[^)\s]*)?\)", target, source[0])


def escape(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keep asterisks and bars of docstrings, which are plain text, from being read as markup."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"[*|]", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "`".join(parts)


def write_api(app: Sphinx, error: Exception | None) -> None:
    """Write llms-full.txt, the whole API, beside llms.txt."""
    if error is None:
        text = api_text((DOCS / "api.md").read_text("utf-8"), REPOSITORY, version)
        Path(app.outdir, "llms-full.txt").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("build-finished", write_api)
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
    copy_notebooks(Path(os.environ.get("LTPA_EXECUTED", NOTEBOOKS)), DOCS / "notebooks")
    app.connect("source-read", relink)
