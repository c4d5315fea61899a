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

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = sorted((ROOT / "notebooks" / "params").glob("*/*.yaml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
PAGES = [ROOT / name for name in ("README.md", "notebooks/README.md", "CITATION.cff", "CHANGELOG.md")]
ADDRESSED = [*NOTEBOOKS, *(page for page in PAGES if page.exists())]

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
URL = PYPROJECT["project"]["urls"]["Repository"]
ADDRESS = URL.removeprefix("https://github.com/")
VERSION = runpy.run_path(str(ROOT / "ltpa" / "_version.py"))["__version__"]
SCRIPT = Path(".github", "set_repository.py")
NEW = "octo-cat/learn.to_pay-attention"  # A name with all that a name may contain.
STRAY = "_elsewhere/thing"

# Links that can only mean this repository: notebooks opened in Colab, this package's archive, placeholders.
COLAB = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/([^/\s]+)/notebooks/([\w.-]+\.ipynb)")
ARCHIVE = re.compile(
    r"\bltpa(?:\[[\w,]*\])? ?@ ?https://github\.com/([\w.-]+/[\w.-]+)/archive/refs/tags/([\w.-]+)\.zip"
)
PLACEHOLDER = re.compile(r"(?:github\.com|/github)/(_[\w-]*/[\w-]+)")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|Users|root)/\w|\b[A-Z]:\\+Users\\")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def name_of(path):
    """A test's id for a path; `None`, which stands for no name, for all else."""
    return relative(path) if isinstance(path, Path) else None


def git_files(*arguments):
    """Files that `git ls-files` lists; None where this is no git checkout."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return None
    result = subprocess.run([git, "ls-files", "-z", *arguments], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        return None
    return [ROOT / name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


def tracked(*arguments):
    files = git_files(*arguments)
    if files is None:
        pytest.skip("not a git checkout")
    return files


def text_of(path):
    """A file's text; empty for one that is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_parameters(cell):
    return "parameters" in cell.metadata.get("tags", [])


def links_to(address, text):
    """Whether the text links to that repository on GitHub, Colab or GitHub Pages."""
    owner, name = map(re.escape, address.split("/"))
    return re.search(rf"github\S*?[/:]{owner}/{name}(?![\w-])|\b{owner}\.github\.io/{name}(?![\w-])", text) is not None


# The address and the version


def test_address_is_a_placeholder_or_a_real_one():
    owner, name = ADDRESS.split("/")
    assert re.fullmatch(r"_[a-z]+|[A-Za-z0-9][A-Za-z0-9_-]{0,38}", owner)
    assert re.fullmatch(r"[A-Za-z0-9._-]{0,99}[A-Za-z0-9_-]", name)


def test_there_are_notebooks():
    assert NOTEBOOKS, "no notebook in notebooks/"


@pytest.mark.parametrize("path", ADDRESSED, ids=name_of)
def test_addresses_agree_with_pyproject(path):
    text = path.read_text(encoding="utf-8")
    found = {match[1] for pattern in (COLAB, ARCHIVE, PLACEHOLDER) for match in pattern.finditer(text)}
    assert found <= {ADDRESS}
    if path.name in ("README.md", "CITATION.cff", "CHANGELOG.md") and path.parent == ROOT:
        assert links_to(ADDRESS, text), "the repository's address is not there at all"


@pytest.mark.parametrize("path", ADDRESSED, ids=name_of)
def test_tags_are_the_version_and_links_lead_to_notebooks(path):
    text = path.read_text(encoding="utf-8")
    assert {match[2] for pattern in (COLAB, ARCHIVE) for match in pattern.finditer(text)} <= {f"v{VERSION}"}
    assert {match[3] for match in COLAB.finditer(text)} <= {notebook.name for notebook in NOTEBOOKS}


def test_citation_and_changelog_have_the_version():
    assert re.search(rf'^version: "?{re.escape(VERSION)}"?$', (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert re.search(rf"^## \[{re.escape(VERSION)}\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


# set_repository.py


def set_repository(tree, *arguments, environment=None):
    env = {key: value for key, value in os.environ.items() if key != "GITHUB_REPOSITORY"} | (environment or {})
    return subprocess.run(
        [sys.executable, str(tree / SCRIPT), *arguments], cwd=tree, env=env, capture_output=True, text=True, timeout=300
    )


def contents(tree):
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


@pytest.fixture
def tree(tmp_path):
    """A copy of this repository's text files: of all that git has or would take, where this is a git checkout."""
    paths = git_files("--cached", "--others", "--exclude-standard")
    if paths is None:
        paths = [
            ROOT / SCRIPT,
            ROOT / "pyproject.toml",
            *ROOT.glob("docs/**/*.md"),
            *ROOT.glob("ltpa/*.py"),
            *ADDRESSED,
        ]
    for path in paths:
        if path.stat().st_size < 4 * 2**20 and text_of(path):
            copy = tmp_path / relative(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return tmp_path


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


def test_set_repository_writes_the_address_everywhere(tree):
    before = contents(tree)
    result = set_repository(tree, NEW)
    assert result.returncode == 0, result.stderr
    after = contents(tree)
    assert [name for name, content in after.items() if links_to(ADDRESS, content.decode("utf-8"))] == []
    changed = {name for name in before if before[name] != after[name]}
    assert set(result.stdout.split()) == changed
    assert changed >= {"pyproject.toml", "CITATION.cff", "CHANGELOG.md", *map(relative, NOTEBOOKS)}
    new_pages, old_pages = (address.replace("/", ".github.io/") for address in (NEW, ADDRESS))
    for name in changed:  # Put back, it is byte for byte what it was: nothing but the address had changed.
        restored = after[name].replace(NEW.encode(), ADDRESS.encode()).replace(new_pages.encode(), old_pages.encode())
        assert restored == before[name], name
    assert set_repository(tree, "--check").returncode == 0

    again = set_repository(tree, NEW)
    assert again.returncode == 0
    assert "Nothing to change" in again.stdout
    assert contents(tree) == after


def test_set_repository_changes_only_links_to_this_repository(small_tree):
    before = contents(small_tree)
    assert set_repository(small_tree, NEW).returncode == 0
    after = contents(small_tree)
    assert after["docs/others.md"] == before["docs/others.md"]
    new_pages = NEW.replace("/", ".github.io/").encode()
    for file in ("pyproject.toml", "CITATION.cff", "README.md", "notebooks/a.ipynb"):
        expected = before[file].replace(b"ann/maps", NEW.encode()).replace(b"ann.github.io/maps", new_pages)
        assert after[file] == expected, file
    assert set_repository(small_tree, "ann/maps").returncode == 0
    assert contents(small_tree) == before


def test_set_repository_takes_the_environments_repository(small_tree):
    result = set_repository(small_tree, environment={"GITHUB_REPOSITORY": NEW})
    assert result.returncode == 0, result.stderr
    assert NEW in (small_tree / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ADDRESSED, ids=name_of)
def test_check_finds_the_file_that_disagrees(tree, path):
    assert set_repository(tree, NEW).returncode == 0
    copy = tree / relative(path)
    content = copy.read_text(encoding="utf-8")
    if NEW not in content:
        pytest.skip("no address in it")
    copy.write_text(content.replace(NEW, STRAY), encoding="utf-8")
    before = contents(tree)
    result = set_repository(tree, "--check")
    assert result.returncode == 1
    assert result.stdout.splitlines()[1:] == [relative(path)]
    assert contents(tree) == before, "--check changes nothing"
    assert set_repository(tree, NEW).stdout.split() == [relative(path)], "and the script puts it right"


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


@pytest.mark.parametrize("argument", NO_REPOSITORIES)
def test_set_repository_refuses_what_is_no_repository(small_tree, argument):
    before = contents(small_tree)
    result = set_repository(small_tree, "--", argument)
    assert result.returncode == 1
    assert "owner" in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(small_tree) == before


def test_set_repository_needs_to_be_told_the_repository(small_tree):
    result = set_repository(small_tree)
    assert result.returncode == 1
    assert "GITHUB_REPOSITORY" in result.stderr


# Notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
class TestNotebook:
    def test_is_valid_and_without_outputs(self, path):
        notebook = read(path)
        nbformat.validate(notebook)
        assert notebook.nbformat == 4
        for cell in code_cells(notebook):
            assert not cell.outputs, f"outputs of: {cell.source[:60]}"
            assert cell.execution_count is None, f"execution count of: {cell.source[:60]}"

    def test_metadata_ask_colab_for_a_gpu(self, path):
        metadata = read(path).metadata
        assert metadata.get("accelerator") == "GPU"
        assert metadata.get("colab", {}).get("gpuType") == "T4"
        assert metadata.get("kernelspec", {}).get("name") == "python3"
        assert "widgets" not in metadata

    def test_begins_with_title_and_badge(self, path):
        first = read(path).cells[0]
        assert first.cell_type == "markdown"
        assert re.search(r"^# \S", first.source, re.MULTILINE)
        link = f"https://colab.research.google.com/github/{ADDRESS}/blob/v{VERSION}/notebooks/{path.name}"
        assert link in first.source

    def test_installs_this_version_if_it_uses_the_package(self, path):
        code = "\n".join(cell.source for cell in code_cells(read(path)))
        if re.search(r"^\s*(?:import|from) ltpa\b", code, re.MULTILINE):
            assert {match.groups() for match in ARCHIVE.finditer(code)} == {(ADDRESS, f"v{VERSION}")}

    def test_has_one_parameters_cell_and_short_cells(self, path):
        cells = code_cells(read(path))
        assert sum(map(is_parameters, cells)) == 1
        if "scratch" not in path.name:
            long = [cell.source for cell in cells if len(cell.source.splitlines()) > 20 and not is_parameters(cell)]
            assert not long, f"more than 20 lines: {long[0][:200]}"

    @pytest.mark.parametrize("run", ["quick", "test"])
    def test_has_parameter_files(self, path, run):
        assert (ROOT / "notebooks" / "params" / run / f"{path.stem}.yaml").is_file()


@pytest.mark.parametrize("path", PARAMETERS, ids=name_of)
def test_parameter_files_set_what_the_notebook_has(path):
    yaml = pytest.importorskip("yaml")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict), "papermill needs a mapping, if only {}"
    (cell,) = filter(is_parameters, code_cells(read(ROOT / "notebooks" / f"{path.stem}.ipynb")))
    names = set()
    for node in ast.parse(cell.source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert set(values) <= names


# Workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflow_may_only_read_and_ends(path):
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    publishes = path.name in ("publish-address.yml", "gallery.yml")
    permissions = {
        "publish-address.yml": {"contents": "write"},
        "gallery.yml": {"contents": "read", "pages": "write", "id-token": "write"},
    }
    assert workflow["permissions"] == permissions.get(path.name, {"contents": "read"})
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true.
    assert "pull_request_target" not in triggers
    assert not (publishes and "pull_request" in triggers)
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert 0 < job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert "run" in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_all_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} >= {"ci", "weekly", "publish-address", "gallery"}


# What git has


def test_runs_are_not_in_git():
    assert [relative(path) for path in tracked("runs") if path.name != ".gitkeep"] == []


def test_no_large_file_is_in_git():
    assert [relative(path) for path in tracked() if path.stat().st_size > 6 * 2**20] == []


def test_no_path_of_a_machine_is_in_git():
    found = []
    for path in tracked("--", ":!tests"):
        lines = enumerate(text_of(path).splitlines(), 1)
        found += [f"{relative(path)}:{number}" for number, line in lines if MACHINE_PATH.search(line)]
    assert found == []
