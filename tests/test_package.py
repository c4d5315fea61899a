"""The built package works outside the checkout, holds what it should and no more, and its import needs no extras."""

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
WEIGHTS = {f"ltpa/weights/{path.name}" for path in (ROOT / "ltpa" / "weights").iterdir()}
MODULES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ltpa").rglob("*.py")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What the package is built from, alone in a folder."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "ltpa", tree / "ltpa", ignore=shutil.ignore_patterns("__pycache__"))
    return tree


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    """Names in the wheel and in the sdist, and the wheel; by setuptools itself, in a copy that is no git checkout."""
    out = tmp_path_factory.mktemp("built")
    copy = shutil.copytree(tree, out / "tree")
    program = "from setuptools import build_meta as b; print(b.build_wheel('..'), b.build_sdist('..'))"
    result = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    (wheel,) = out.glob("ltpa-*.whl")
    with tarfile.open(next(out.glob("ltpa-*.tar.gz"))) as archive:
        sdist = {name.partition("/")[2] for name in archive.getnames()}
    return set(zipfile.ZipFile(wheel).namelist()), sdist, wheel


def test_wheel_and_sdist_hold_the_package_only(built):
    wheel, sdist, _ = built
    assert wheel >= MODULES | WEIGHTS
    assert sdist >= MODULES | WEIGHTS
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"ltpa"}


def test_wheel_works_outside_the_checkout(built, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(built[2]).extractall(site)
    program = f"""
import ltpa, pathlib
assert pathlib.Path(ltpa.__file__).is_relative_to({str(site)!r}), ltpa.__file__
config = ltpa.TrainConfig(dataset="shapes", width=0.03, train_limit=64, test_limit=20, epochs=1, batch_size=32)
run = ltpa.fit(config, progress=False)
maps = ltpa.attend(ltpa.load_run(run.path).model, ltpa.data_for(config).test.images).maps
assert len(ltpa.load_pretrained().classes) == 10
print(*(tuple(m.shape) for m in maps.values()))
"""
    env = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr == ""
    assert result.stdout.split("\n")[-2] == "(20, 32, 32) (20, 16, 16) (20, 8, 8)"
    assert (tmp_path / "runs").is_dir()


def test_import_is_free_of_extras():
    """Neither what Colab lacks nor what an extra brings is needed to import `ltpa`."""
    names = {"captum", "sklearn", "scipy", "papermill", "skimage", "timm", "tyro"}
    program = "import sys, ltpa; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert names & set(result.stdout.split()) == set()


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
    command = [python, "-c", "import ltpa; print(ltpa.__file__)"]
    where = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert str(site) in where.stdout, where.stderr
    assert seconds < 15


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning])
def test_deprecation_warnings_of_our_own_code_are_errors(kind):
    """The filters in pyproject.toml, which are in force here, take our modules, and no others."""
    code = compile(f"import warnings; warnings.warn('old', {kind.__name__})", "some_module.py", "exec")
    for module in ("ltpa", "ltpa.training.trainer"):
        with pytest.raises(kind, match="old"):
            exec(code, {"__name__": module})
    with pytest.warns(kind, match="old"):
        exec(code, {"__name__": "elsewhere"})
