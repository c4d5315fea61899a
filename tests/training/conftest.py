"""Runs of a fraction of a second."""

import functools
import shutil

import pytest

from tests.tools.crash import tiny_config, tiny_data
from tests.training.harness import Disk, quiet


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A function: the settings' changes -> the folder of a run that nothing disturbed."""

    @functools.cache
    def folder(**changes):
        return quiet(tiny_config(tmp_path_factory.mktemp("undisturbed") / "run", **changes), tiny_data()).path

    return folder


@pytest.fixture
def finished(undisturbed, tmp_path):
    """The settings of a complete run in a folder that may be spoilt."""
    shutil.copytree(undisturbed(), tmp_path / "run")
    return tiny_config(tmp_path / "run")


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)
