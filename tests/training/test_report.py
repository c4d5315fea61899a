"""The report of a notebook: every version, setting and parameter, and which ltpa it is, wherever that came from."""

import json
import re
import subprocess
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest

import ltpa
from ltpa import TrainConfig
from ltpa._version import __version__
from ltpa.course.attention_maps import LookConfig
from ltpa.training import report

ADDRESS = "https://github.com/ann/maps/archive/refs/tags/v1.zip"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function: what pip noted down -> the report's words about an ltpa that is not in a git checkout."""

    def origin(note):
        folder = tmp_path / "site-packages"
        info = folder / "ltpa-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ltpa\nVersion: 1\n")
        if note is not None:
            (info / "direct_url.json").write_text(json.dumps(note))
        monkeypatch.setattr(report, "__file__", str(folder / "ltpa" / "training" / "report.py"))
        monkeypatch.setattr(metadata, "distribution", lambda name: metadata.PathDistribution(info))
        return report._origin()

    return origin


def test_installed_from_a_tag(installed):
    assert installed({"url": ADDRESS, "archive_info": {}}) == f"from {ADDRESS}"


def test_installed_from_a_commit(installed):
    note = {"url": "https://github.com/ann/maps", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}}
    assert installed(note) == "commit 0123abc"


@pytest.mark.parametrize("note", [None, {"url": "file:///x", "dir_info": {"editable": True}}])
def test_installed_from_an_index_or_a_copied_folder(installed, note):
    assert installed(note) == f"commit unknown: no git checkout; the code of a release is at its tag v{__version__}"


def test_not_installed_at_all(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(report, "__file__", str(tmp_path / "ltpa" / "training" / "report.py"))
    monkeypatch.setattr(metadata, "distribution", missing)
    assert report._origin().startswith("commit unknown")


def test_a_checkout_tells_its_commit_and_changes(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "ltpa" / "training").mkdir(parents=True)
    (tmp_path / "ltpa" / "training" / "report.py").write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "-a", "v1", "-m", "a tag does not take the commit's place")
    monkeypatch.setattr(report, "__file__", str(tmp_path / "ltpa" / "training" / "report.py"))
    assert report._origin() == f"commit {git('rev-parse', '--short', 'HEAD')}"
    (tmp_path / "ltpa" / "training" / "report.py").write_text("2\n")
    assert report._origin() == f"commit {git('rev-parse', '--short', 'HEAD')}, with changes"


def test_the_folder_of_the_package_is_found():
    """A module that moves must not lose the checkout around it."""
    root = Path(ltpa.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    assert re.match(r"commit [0-9a-f]{7,}", report._origin())


def test_everything_is_in_it(capsys):
    config = TrainConfig(dataset="shapes", seed=7, device="cpu", precision="bf16")
    look = LookConfig(examples=3, device="cpu")
    report.report(config, look)
    out = capsys.readouterr().out
    for package in ("torch", "torchvision", "numpy", "matplotlib"):
        assert f"{package} {metadata.version(package)}" in out
    assert f"ltpa {__version__} (" in out
    assert "device cpu (" in out
    assert "precision bfloat16" in out
    lines = out.splitlines()
    own, of_run = lines.index("parameters of this notebook"), lines.index(f"run folder {config.path}")
    assert lines[own + 1 : of_run] == [
        f"  {f.name} = {getattr(look, f.name)!r}" + ("  (changed)" if f.name in ("examples", "device") else "")
        for f in fields(look)
    ]
    changed = ("dataset", "seed", "device", "precision")
    assert lines[of_run + 1 :] == [
        f"  {f.name} = {getattr(config, f.name)!r}" + ("  (changed)" if f.name in changed else "")
        for f in fields(config)
    ]


def test_settings_that_change_nothing_for_a_backbone_are_left_out(capsys):
    report.report(TrainConfig(model="tf_efficientnet_lite0-att3-concat-add", device="cpu"))
    printed = capsys.readouterr().out
    assert "  freeze = False" in printed
    assert "  width" not in printed
