"""The built wheel works outside the checkout, holds what it should and no more, and leaves other packages alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What the package is built from, alone in a folder."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "ltpa", tree / "ltpa", ignore=shutil.ignore_patterns("__pycache__"))
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(tree)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return next(out.glob("ltpa-*.whl"))


def test_wheel_holds_the_package_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"ltpa/{path.name}" for path in (ROOT / "ltpa").glob("*.py")}
    assert modules <= set(names)
    weights = {f"ltpa/weights/{path.name}" for path in (ROOT / "ltpa" / "weights").iterdir()}
    assert weights <= set(names)
    assert {
        "ltpa/weights/index.json",
        "ltpa/weights/cifar10-small.safetensors",
        "ltpa/weights/cifar10-small.md",
    } <= weights
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ltpa"}


def test_sdist_holds_the_weights(tree, tmp_path):
    """By setuptools itself, in a copy that is no git checkout."""
    copy = shutil.copytree(tree, tmp_path / "tree")
    program = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    result = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    with tarfile.open(next(tmp_path.glob("ltpa-*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"ltpa/weights/{path.name}" for path in (ROOT / "ltpa" / "weights").iterdir()} <= names


def test_wheel_works_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    program = """
import ltpa, pathlib
assert pathlib.Path(ltpa.__file__).is_relative_to(SITE), ltpa.__file__
config = ltpa.TrainConfig(dataset="shapes", width=0.03, train_limit=64, test_limit=20, epochs=1, batch_size=32)
run = ltpa.fit(config, progress=False)
maps = ltpa.attend(ltpa.load_run(run.path).model, ltpa.data_for(config).test.images).maps
assert len(ltpa.load_pretrained().classes) == 10
assert ltpa.pretrained.FOLDER.is_relative_to(SITE), ltpa.pretrained.FOLDER
print(run.path, list(maps), [tuple(m.shape) for m in maps.values()])
""".replace("SITE", repr(str(site)))
    env = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr == ""
    assert "['conv7', 'conv10', 'conv13'] [(20, 32, 32), (20, 16, 16), (20, 8, 8)]" in result.stdout
    assert (tmp_path / "runs").is_dir()


def test_import_is_free_of_what_colab_lacks():
    """`ltpa` itself imports neither captum nor scikit-learn nor scipy nor papermill."""
    names = ("captum", "sklearn", "scipy", "papermill", "skimage")
    program = f"import sys, ltpa, ltpa.course.setup; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def planned(wheel):
    """What pip would install for this wheel, by its own report; None where it finds no way without a download."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-index", "--report", "-"]
    result = subprocess.run([*command, f"{wheel}[notebooks]"], capture_output=True, text=True)
    if result.returncode:
        assert "No matching distribution" in result.stderr, result.stderr
        return None
    return [item["metadata"]["name"] for item in json.loads(result.stdout)["install"]]


def test_installing_changes_none_of_the_packages_that_are_there(wheel):
    assert planned(wheel) == ["ltpa"]


def test_a_requirement_that_would_change_one_is_noticed(wheel, tmp_path):
    """The test above can fail."""
    changed = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(changed, "w") as after:
        for name in before.namelist():
            text = before.read(name)
            if name.endswith("METADATA"):
                text = re.sub(rb"Requires-Dist: tqdm>=[\d.]+", b"Requires-Dist: tqdm>=999", text)
                assert b"tqdm>=999" in text
            after.writestr(name, text)
    assert planned(changed) is None


@pytest.mark.slow
def test_the_set_up_cell_takes_less_than_15_seconds(tree, tmp_path):
    """In an environment that has what ltpa needs, as Colab's; the tag's archive is one of this checkout.

    Builds the package as pip does on Colab, in isolation, which takes setuptools from the index.
    """
    archive = Path(shutil.make_archive(str(tmp_path / "v0"), "zip", tree.parent, tree.name))
    cells = json.loads((ROOT / "notebooks" / "01_train.ipynb").read_text(encoding="utf-8"))["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code, count = re.subn(r"https://github.com/\S+?\.zip", archive.as_uri(), code)
    assert count == 1
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    variables = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", variables))
    # The packages of this environment, pip among them; but not an editable ltpa, as .pth files named here are not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    before = {path.name for path in site.iterdir()}
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    began = time.monotonic()
    result = subprocess.run([python, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    seconds = time.monotonic() - began
    assert result.returncode == 0, result.stderr
    assert {re.split(r"[-.]", name)[0] for name in {path.name for path in site.iterdir()} - before} == {"ltpa"}
    where = subprocess.run(
        [python, "-c", "import ltpa; print(ltpa.__file__)"], cwd=tmp_path, env=env, capture_output=True
    )
    assert str(site) in where.stdout.decode(), where.stderr
    print(f"{seconds:.1f} s")
    assert seconds < 15


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["ltpa", "ltpa.training.trainer"])
def test_deprecation_warnings_of_our_own_code_are_errors(kind, module):
    """The filters in pyproject.toml, which are in force here, take our modules, and no others."""
    code = compile(f"import warnings; warnings.warn('old', {kind.__name__})", f"{module}.py", "exec")
    with pytest.raises(kind, match="old"):
        exec(code, {"__name__": module})
    with pytest.warns(kind, match="old"):
        exec(code, {"__name__": "elsewhere"})
