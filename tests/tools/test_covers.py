"""The pictures at the top of the notebooks."""

import base64
import io

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from tests.tools.__main__ import main
from tests.tools.covers import ROOT, cover_of, outdated

TEXT = "Two maps, side by side"
LINK = f"![{TEXT}](https://raw.githubusercontent.com/ann/maps/v1/docs/images/a.png)"


def executed(source=f'display(figure, alt="{TEXT}")', color="red", text=TEXT):
    data = io.BytesIO()
    Image.new("RGB", (2400, 600), color).save(data, "png")
    picture = {"image/png": base64.b64encode(data.getvalue()).decode()}
    outputs = [
        new_output("display_data", picture, metadata={"image/png": {"alt": alt}}) for alt in ("Something else", text)
    ]
    return new_notebook(cells=[new_markdown_cell(f"# A\n\n{LINK}"), new_code_cell(source, outputs=outputs)])


@pytest.fixture
def folders(tmp_path):
    """A folder of executed notebooks and one for the pictures."""
    (tmp_path / "executed").mkdir()
    (tmp_path / "images").mkdir()
    return tmp_path / "executed", tmp_path / "images"


def test_a_picture_comes_from_the_output_with_its_text(folders):
    copies, images = folders
    nbformat.write(executed(), copies / "a.ipynb")
    assert main(["covers", str(copies), "--images", str(images)]) == 0
    image = Image.open(images / "a.png")
    assert image.size == (1200, 300)
    assert image.getpixel((5, 5)) == (255, 0, 0)


def test_a_picture_comes_from_a_file_named_by_its_cell(folders):
    figures, images = folders
    cover = cover_of(nbformat.read(ROOT / "notebooks" / "01_train.ipynb", as_version=4))
    (figures / "01").mkdir()
    Image.new("RGB", (500, 400), "green").save(figures / "01" / f"{cover.cell}.png")
    Image.new("RGB", (500, 400), "red").save(figures / "01" / "another.png")
    assert main(["covers", str(figures), "--images", str(images)]) == 0
    assert [file.name for file in images.iterdir()] == ["01_train.png"]
    assert Image.open(images / "01_train.png").info["Cell"] == cover.digest


def test_the_check_names_pictures_that_another_cell_drew(folders):
    copies, images = folders
    nbformat.write(executed(), copies / "a.ipynb")
    assert outdated(copies, images) == ["a.ipynb: there is no a.png"]
    assert main(["covers", str(copies / "a.ipynb"), "--images", str(images)]) == 0
    assert outdated(copies, images) == []
    nbformat.write(executed(f'display(other, alt="{TEXT}")'), copies / "a.ipynb")
    assert outdated(copies, images) == ["a.ipynb: the cell that draws a.png has changed"]


@pytest.mark.parametrize(
    ("notebook", "message"),
    [
        (executed(text="Not this one"), "was the notebook executed to its end"),
        (executed(source="display(figure)"), "0 cells draw a figure with the text"),
        (new_notebook(cells=[new_markdown_cell("# A")]), "the first cell has no picture"),
    ],
)
def test_a_notebook_without_its_picture_is_named(notebook, message, folders, capsys):
    copies, images = folders
    nbformat.write(notebook, copies / "a.ipynb")
    assert main(["covers", str(copies), "--images", str(images)]) == 1
    assert message in (error := capsys.readouterr().err)
    assert "a.ipynb" in error


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_has_a_picture_of_its_own(path):
    cover = cover_of(nbformat.read(path, as_version=4))
    file = ROOT / "docs" / "images" / cover.name
    with Image.open(file) as image:
        assert 400 <= image.width <= 1400
    assert file.stat().st_size < 400_000
