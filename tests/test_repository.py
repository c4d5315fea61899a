"""The repository as a whole: its address and version everywhere alike, clean notebooks, safe workflows, no clutter."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from tests.tools.covers import cover_of

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = sorted((ROOT / "notebooks" / "params").glob("*/*.yaml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
ADDRESSED = [*NOTEBOOKS, *(ROOT / name for name in ("README.md", "CITATION.cff", "CHANGELOG.md"))]

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ADDRESS = PYPROJECT["project"]["urls"]["Repository"].removeprefix("https://github.com/")
VERSION = runpy.run_path(str(ROOT / "ltpa" / "_version.py"))["__version__"]
SCRIPT = Path(".github", "set_repository.py")
NEW = "octo-cat/learn.to_pay-attention"  # A name with all that a name may contain.
NOT_YET = "once this repository is published"

# Links that can only mean this repository: notebooks opened in Colab, this package's archive, placeholders.
COLAB = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/([^/\s]+)/notebooks/([\w.-]+\.ipynb)")
ARCHIVE = re.compile(
    r"\bltpa(?:\[[\w,]*\])? ?@ ?https://github\.com/([\w.-]+/[\w.-]+)/archive/refs/tags/([\w.-]+)\.zip"
)
KAGGLE = re.compile(
    r"kaggle\.com/kernels/welcome\?src=https://github\.com/([\w.-]+/[\w.-]+)/blob/([^/\s]+)/notebooks/([\w.-]+\.ipynb)"
)
RAW = re.compile(r"raw\.githubusercontent\.com/([\w.-]+/[\w.-]+)/([^/\s]+)/docs/images/([\w.-]+)")
PLACEHOLDER = re.compile(r"(?:github\.com|/github)/(_[\w-]*/[\w-]+)")
TAGGED = (COLAB, KAGGLE, RAW, ARCHIVE)
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|Users|root)/\w|\b[A-Z]:\\+Users\\")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def name_of(path):
    return relative(path) if isinstance(path, Path) else None


def git_files(*arguments):
    """Files that `git ls-files` lists."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    result = subprocess.run([git, "ls-files", "-z", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_of(path):
    """A file's text; empty for one that is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells if cell.cell_type == "code"]


def is_parameters(cell):
    return "parameters" in cell.metadata.get("tags", [])


# The address and the version


@pytest.mark.parametrize("path", ADDRESSED, ids=name_of)
def test_addresses_and_tags_agree(path):
    text = path.read_text(encoding="utf-8")
    assert ADDRESS in text
    assert {match[1] for pattern in (*TAGGED, PLACEHOLDER) for match in pattern.finditer(text)} <= {ADDRESS}
    assert {match[2] for pattern in TAGGED for match in pattern.finditer(text)} <= {f"v{VERSION}"}
    opened = {match[3] for pattern in (COLAB, KAGGLE) for match in pattern.finditer(text)}
    assert opened <= {notebook.name for notebook in NOTEBOOKS}
    assert all((ROOT / "docs" / "images" / match[3]).is_file() for match in RAW.finditer(text))
    if path.suffix in (".ipynb", ".md") and path.name != "CHANGELOG.md":
        assert (NOT_YET in text) == ADDRESS.startswith("_")


def test_citation_and_changelog_have_the_version():
    assert re.search(rf'^version: "?{re.escape(VERSION)}"?$', (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert re.search(rf"^## \[{re.escape(VERSION)}\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


# set_repository.py


def set_repository(tree, *arguments, environment=None):
    env = {key: value for key, value in os.environ.items() if key != "GITHUB_REPOSITORY"} | (environment or {})
    command = [sys.executable, str(tree / SCRIPT), *arguments]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=300)


def contents(tree):
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


@pytest.fixture
def small_tree(tmp_path):
    """A made-up repository with every kind of link."""
    files = {
        "pyproject.toml": '[project.urls]\nRepository = "https://github.com/ann/maps"\n',
        "CITATION.cff": 'repository-code: "https://github.com/ann/maps"\n',
        "README.md": (
            "[![Colab](https://colab.research.google.com/github/ann/maps/blob/v1/notebooks/a.ipynb)]\r\n"
            "Ünïcode: https://github.com/ann/maps. Clone git@github.com:ann/maps.git, see https://ann.github.io/maps/\r\n"
            "https://api.github.com/repos/ann/maps https://raw.githubusercontent.com/ann/maps/v1/a.png\r\n"
        ),
        "notebooks/a.ipynb": '{"source": ["%pip install \\"ltpa[notebooks] @ https://github.com/ann/maps/archive/v1.zip\\"\\n"]}',
        # Nothing of this is the repository's address.
        "docs/others.md": (
            "https://github.com/ann/maps-2 https://github.com/ann/maps.js https://github.com/joann/maps\r\n"
            "https://github.com/bob/maps https://gitlab.com/ann/maps https://ann.github.io/other src/ann/maps\n"
            "https://colab.research.google.com/github/bob/course/blob/main/notebooks/theirs.ipynb"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("utf-8"))
    (tmp_path / SCRIPT).parent.mkdir()
    shutil.copyfile(ROOT / SCRIPT, tmp_path / SCRIPT)
    return tmp_path


def test_set_repository_puts_this_repository_right(tmp_path):
    """In a copy: all addresses and nothing else change, the sentence about the badges goes, and twice is once."""
    for path in git_files("--cached", "--others", "--exclude-standard"):
        if path.stat().st_size < 4 * 2**20 and text_of(path):
            copy = tmp_path / relative(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    before = contents(tmp_path)
    result = set_repository(tmp_path, NEW)
    assert result.returncode == 0, result.stderr
    after = contents(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert set(result.stdout.split()) == changed >= {"pyproject.toml", *map(relative, ADDRESSED)}
    new_pages, old_pages = (address.replace("/", ".github.io/") for address in (NEW, ADDRESS))
    for name in changed:  # Put back, it is line for line what it was, but for the sentence.
        restored = after[name].replace(NEW.encode(), ADDRESS.encode()).replace(new_pages.encode(), old_pages.encode())
        kept = [line for line in before[name].split(b"\n") if name.startswith("tests/") or NOT_YET.encode() not in line]
        assert restored.split(b"\n") == kept, name
    for notebook in NOTEBOOKS:
        nbformat.validate(nbformat.read(tmp_path / relative(notebook), as_version=4))
    assert set_repository(tmp_path, "--check").returncode == 0
    assert "Nothing to change" in set_repository(tmp_path, NEW).stdout
    for path in (NOTEBOOKS[0], ROOT / "CITATION.cff"):
        copy = tmp_path / relative(path)
        copy.write_text(copy.read_text("utf-8").replace(NEW, "_elsewhere/thing"), encoding="utf-8")
        check = set_repository(tmp_path, "--check")
        assert (check.returncode, check.stdout.splitlines()[1:]) == (1, [relative(path)])
        assert set_repository(tmp_path, NEW).stdout.split() == [relative(path)], "and the script puts it right"


def test_set_repository_changes_only_links_to_this_repository(small_tree):
    before = contents(small_tree)
    assert set_repository(small_tree, environment={"GITHUB_REPOSITORY": NEW}).returncode == 0
    after = contents(small_tree)
    assert after["docs/others.md"] == before["docs/others.md"]
    new_pages = NEW.replace("/", ".github.io/").encode()
    for file in ("pyproject.toml", "CITATION.cff", "README.md", "notebooks/a.ipynb"):
        expected = before[file].replace(b"ann/maps", NEW.encode()).replace(b"ann.github.io/maps", new_pages)
        assert after[file] == expected, file
    assert set_repository(small_tree, "ann/maps").returncode == 0
    assert contents(small_tree) == before


@pytest.mark.parametrize("file", ["CITATION.cff", "README.md", "notebooks/a.ipynb"])
def test_check_finds_another_real_address(small_tree, file):
    path = small_tree / file
    path.write_bytes(path.read_bytes().replace(b"ann/maps", b"bob/course"))
    result = set_repository(small_tree, "--check")
    assert (result.returncode, result.stdout.splitlines()[1:]) == (1, [file])


NO_REPOSITORIES = (
    *("", "ann", "ann/", "/maps", "ann/maps/x", "https://github.com/ann/maps", "ann/maps.git", "ann/..", "an n/maps"),
    *("-ann/maps", "ann/maps\n", "ann/ma\\1ps", "_owner/maps", f"{'a' * 40}/maps", f"ann/{'a' * 101}"),
)


def test_set_repository_refuses_what_is_no_repository(small_tree):
    checked = runpy.run_path(str(small_tree / SCRIPT))["checked"]
    for address in NO_REPOSITORIES:
        with pytest.raises(SystemExit, match="owner"):
            checked(address)
    before = contents(small_tree)
    for arguments in ([], ["--", "ann"]):
        result = set_repository(small_tree, *arguments)
        assert (result.returncode, "owner" in result.stderr, "Traceback" in result.stderr) == (1, True, False)
    assert contents(small_tree) == before


# Notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
class TestNotebook:
    def test_is_valid_and_clean(self, path):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
        assert notebook.nbformat == 4
        assert not [cell.source for cell in code_cells(path) if cell.outputs or cell.execution_count is not None]
        assert path.read_text("utf-8") == nbformat.writes(notebook).rstrip("\n") + "\n", "as nbformat writes it"

    def test_asks_colab_for_a_gpu(self, path):
        metadata = nbformat.read(path, as_version=nbformat.NO_CONVERT).metadata
        assert metadata.get("accelerator") == "GPU"
        assert metadata.get("colab", {}).get("gpuType") == "T4"
        assert metadata.get("kernelspec", {}).get("name") == "python3"
        assert "widgets" not in metadata

    def test_has_badges_picture_set_up_and_parameters(self, path):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        first = notebook.cells[0].source
        assert first.startswith("# ")
        for pattern in (COLAB, KAGGLE):
            assert [match.groups() for match in pattern.finditer(first)] == [(ADDRESS, f"v{VERSION}", path.name)]
        assert [match[3] for match in RAW.finditer(first)] == [cover_of(notebook).name] == [f"{path.stem}.png"]
        cells = code_cells(path)
        assert [match.groups() for match in ARCHIVE.finditer(cells[0].source)] == [(ADDRESS, f"v{VERSION}")]
        assert sum(map(is_parameters, cells)) == 1
        assert all((ROOT / "notebooks" / "params" / run / f"{path.stem}.yaml").is_file() for run in ("quick", "test"))

    def test_is_thin(self, path):
        cells = code_cells(path)
        long = [cell.source for cell in cells if len(cell.source.splitlines()) > 20 and not is_parameters(cell)]
        assert not long
        imported = re.findall(
            r"^(?:from|import) (ltpa\S*)(?: import (.+))?", "\n".join(c.source for c in cells), re.MULTILINE
        )
        assert ("ltpa", "") in imported
        modules = [name for package, name in imported if package == "ltpa.course"]
        assert len(imported) == 2
        assert len(modules) == 1
        assert "," not in modules[0]


@pytest.mark.parametrize("path", PARAMETERS, ids=name_of)
def test_parameter_files_set_what_the_notebook_has(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict), "papermill needs a mapping, if only {}"
    (cell,) = filter(is_parameters, code_cells(ROOT / "notebooks" / f"{path.stem}.ipynb"))
    targets = [node.targets[0] for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    assert set(values) <= {target.id for target in targets}


# Workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflow_may_only_read_and_ends(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    permissions = {
        "publish-address.yml": {"contents": "write"},
        "pages.yml": {"contents": "read", "pages": "write", "id-token": "write"},
    }
    assert workflow["permissions"] == permissions.get(path.name, {"contents": "read"})
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true.
    assert "pull_request_target" not in triggers
    assert not (path.name in permissions and "pull_request" in triggers)
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert 0 < job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert "run" in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
            scripts = re.findall(r"(?<![\w/.])(?:\.ci|\.github|tests)/[\w./-]+", step.get("run", ""))
            assert all((ROOT / script).exists() for script in scripts if not script.endswith("/")), scripts


# What git has


def test_nothing_is_in_git_that_should_not_be():
    files = git_files()
    assert [relative(path) for path in files if relative(path).startswith("runs/") and path.name != ".gitkeep"] == []
    assert [relative(path) for path in files if path.stat().st_size > 6 * 2**20] == []
    texts = {path: text_of(path) for path in files if not relative(path).startswith("tests/")}
    assert [relative(path) for path, text in texts.items() if MACHINE_PATH.search(text)] == []
