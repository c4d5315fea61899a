"""The built site: `nox -s docs` names its folder in LTPA_SITE. Sphinx itself has refused broken references before."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

import ltpa
from docs.api_text import api_text
from tests.test_repository import ADDRESS, NOTEBOOKS, ROOT, VERSION

SITE = Path(os.environ.get("LTPA_SITE", "nowhere"))
needs_site = pytest.mark.skipif(not SITE.is_dir(), reason="the site is not built: nox -s docs")


class Page(HTMLParser):
    """Links, anchors and pictures of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.pictures = [], {"top"}, []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img":
            self.pictures.append(values)


@pytest.fixture(scope="module")
def pages():
    return {path: Page(path) for path in SITE.resolve().rglob("*.html") if "_static" not in path.parts}


def test_every_public_name_is_documented():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    missing = [n for n in ltpa.__all__ if not n.startswith("_") and not re.search(rf"\bltpa\.{n}\b", text)]
    assert not missing


def test_teachers_have_an_answer_to_every_question():
    page = (ROOT / "docs" / "teaching" / "notebooks.md").read_text("utf-8")
    quoted = {" ".join(part.replace("> ", " ").split()) for part in re.findall(r"(?:^> .+\n)+", page, re.MULTILINE)}
    asked = set()
    for path in NOTEBOOKS:
        text = (
            nbformat.read(path, as_version=4).cells[-1].source.partition("## Questions")[2].partition("\n\n**Next**")[0]
        )
        asked |= {" ".join(question.split()) for question in re.split(r"^\d\. ", text, flags=re.MULTILINE)[1:]}
    assert len(asked) >= 3 * len(NOTEBOOKS)
    assert quoted == asked


def test_the_text_for_assistants_has_every_public_name():
    text = api_text((ROOT / "docs" / "api.md").read_text("utf-8"), "https://github.com/ann/maps", VERSION)
    names = {line.split()[1] for line in text.splitlines() if line.startswith("### ltpa.")}
    public = {f"ltpa.{name}" for name in ltpa.__all__ if not name.startswith("_")}
    assert public - names <= {"ltpa.QUICK", "ltpa.data", "ltpa.metrics", "ltpa.viz"}
    assert {f"ltpa.metrics.{name}" for name in ltpa.metrics.__all__} <= names
    assert "attend(model: Model, images: Tensor | Split" in text
    assert "eval-rst" not in text


def test_assistants_are_told_of_every_page():
    links = re.findall(r"https://[\w-]+\.github\.io/ltpa/([\w./-]+)", (ROOT / "docs" / "llms.txt").read_text("utf-8"))
    pages = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} - {"index.html", "api.html"}
    notebooks = {f"notebooks/{path.stem}.html" for path in NOTEBOOKS}
    assert set(links) == pages | notebooks | {
        "llms-full.txt",
        "demo/index.html",
        "results/index.html",
        "teaching/index.html",
    }


@needs_site
def test_the_whole_api_is_on_the_site():
    assert "### ltpa.attend\n" in (SITE / "llms-full.txt").read_text("utf-8")
    assert (SITE / "llms.txt").is_file()


@needs_site
def test_every_notebook_is_a_page_that_opens_it_in_colab(pages):
    for notebook in NOTEBOOKS:
        page = pages[SITE.resolve() / "notebooks" / f"{notebook.stem}.html"]
        address = f"https://colab.research.google.com/github/{ADDRESS}/blob/v{VERSION}/notebooks/{notebook.name}"
        assert page.links.count(address) >= 2, "the badge and the launch button"


@needs_site
def test_internal_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            file, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = (path.parent / file).resolve() if file else path
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{path.name}: {link}")
    assert not broken


@needs_site
def test_pictures_are_there_and_have_a_text(pages):
    problems = []
    for path, page in pages.items():
        for picture in page.pictures:
            source = picture.get("src", "")
            if not re.match(r"https?:|data:", source) and not (path.parent / source).is_file():
                problems.append(f"{path.name}: no picture {source}")
            if not picture.get("alt", "").strip():
                problems.append(f"{path.name}: {source[:60]} has no text")
    assert not problems
