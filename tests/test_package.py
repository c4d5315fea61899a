"""The built wheel works outside the checkout, and holds what it should and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "ltpa", tree / "ltpa", ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(tree)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return next(out.glob("ltpa-*.whl"))


def test_wheel_holds_the_package_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"ltpa/{path.name}" for path in (ROOT / "ltpa").glob("*.py")}
    assert modules <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ltpa"}


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
    program = f"import sys, ltpa, ltpa.notebook; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
