"""`runs_on_drive`: with a stand-in for Colab's module, and drives that refuse, vanish, or are full of surprises."""

import contextlib
import errno
import os
import shutil
import signal
import sys
import types

import pytest
import torch

from ltpa import TrainConfig, fit, load_run
from ltpa.course import drive
from ltpa.course import setup as notebook
from ltpa.course.drive import runs_on_drive
from ltpa.training import trainer as train
from tests.tools.crash import differences, tiny_config, tiny_data


class Colab:
    """What `google.colab.drive` does, with a folder for a drive: (`cloud`), and a log of the calls."""

    def __init__(self, mount, cloud):
        self.point, self.cloud, self.calls, self.refuses = mount, cloud, 0, None

    def mount(self, point, force_remount=False):
        self.calls += 1
        assert point == str(self.point)
        if self.refuses:
            raise self.refuses
        self.point.mkdir(exist_ok=True)
        (self.point / "MyDrive").symlink_to(self.cloud)

    def vanish(self):
        (self.point / "MyDrive").unlink()


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A Colab machine whose working folder is `tmp_path / "content"`."""
    (tmp_path / "cloud").mkdir()
    (tmp_path / "content").mkdir()
    colab = Colab(tmp_path / "mount", tmp_path / "cloud")
    module = types.ModuleType("google.colab")
    module.drive = colab
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(drive, "MOUNT", colab.point)
    monkeypatch.delenv("LTPA_FOLDER", raising=False)
    monkeypatch.chdir(tmp_path / "content")
    return colab


def parameters_cell(**values):
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    return {**values, "In": ["", source]}


ALL = TrainConfig.defaults()


def test_the_parameter_puts_runs_on_the_drive_and_nothing_else(colab, capsys):
    config = notebook.parameters(parameters_cell(**ALL, runs_on_drive=True), TrainConfig)
    assert config == TrainConfig()
    assert "runs/ is on Google Drive" in capsys.readouterr().out
    run = fit(tiny_config(None, run_dir=None, epochs=1), tiny_data(), progress=False)
    assert run.path.parts[0] == "runs"
    assert (colab.cloud / "ltpa" / run.path / "weights.safetensors").is_file()
    assert os.listdir(".") == ["runs"]
    assert colab.calls == 1


def test_without_the_parameter_colab_is_not_asked(colab):
    notebook.parameters(parameters_cell(**ALL, runs_on_drive=False), TrainConfig)
    notebook.parameters(parameters_cell(**ALL), TrainConfig)
    assert colab.calls == 0
    assert os.listdir(".") == []


def test_a_second_time_and_the_next_machine(colab, tmp_path, monkeypatch):
    target = runs_on_drive(tmp_path / "content")
    (target / "mine").mkdir()
    assert runs_on_drive(tmp_path / "content") == target
    assert colab.calls == 1  # mounted is mounted: no second question
    colab.vanish()
    assert runs_on_drive(tmp_path / "content") == target
    assert colab.calls == 2
    (tmp_path / "other").mkdir()
    runs_on_drive(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other" / "runs").iterdir()] == ["mine"]


def test_outside_colab_it_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("LTPA_FOLDER", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"works in Google Colab only; set it to False: the runs are then in .*runs"):
        notebook.parameters(parameters_cell(**ALL, runs_on_drive=True), TrainConfig)
    assert os.listdir(tmp_path) == []


def test_wrong_values_are_told_with_the_others_before_colab_is_asked(colab):
    with pytest.raises(ValueError, match=r"(?s)unknown parameter 'run_on_drive': did you mean 'runs_on_drive'"):
        notebook.parameters(parameters_cell(**ALL, run_on_drive=True), TrainConfig)
    with pytest.raises(ValueError, match=r"(?s)runs_on_drive must be True or False, not 'maybe'.*epochs must be"):
        notebook.parameters(parameters_cell(**{**ALL, "epochs": 0}, runs_on_drive="maybe"), TrainConfig)
    assert colab.calls == 0
    for text, calls in (("false", 0), ("True", 1)):  # as papermill passes it
        notebook.parameters(parameters_cell(**ALL, runs_on_drive=text), TrainConfig)
        assert colab.calls == calls


@pytest.mark.parametrize("error", [ValueError("mount failed"), RuntimeError("Error: credential propagation")])
def test_access_that_is_refused(colab, tmp_path, error):
    colab.refuses = error
    with pytest.raises(OSError, match=rf"was not mounted \({error}\). Run the cell again and allow"):
        runs_on_drive(tmp_path / "content")
    assert not os.path.lexists("runs")


def test_a_mount_that_only_says_it_is_one_is_not_written_to(colab, tmp_path):
    colab.mount = lambda *_, **__: None
    colab.point.mkdir()
    with pytest.raises(OSError, match="Google Drive is not at"):
        runs_on_drive(tmp_path / "content")
    assert list(colab.point.iterdir()) == []


def test_a_full_drive(colab, tmp_path, monkeypatch):
    colab.mount(str(colab.point))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(drive.Path, "mkdir", full)
    with pytest.raises(OSError, match=r"cannot be written .No space left") as caught:
        runs_on_drive(tmp_path / "content")
    assert caught.value.errno == errno.ENOSPC


def test_runs_of_this_machine_are_not_hidden(colab, tmp_path):
    local = tmp_path / "content" / "runs"
    (local / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds runs of this machine"):
        runs_on_drive(tmp_path / "content")
    assert (local / "mine").is_dir()
    assert colab.calls == 0
    (local / "mine").rmdir()
    (local / ".gitkeep").touch()
    runs_on_drive(tmp_path / "content")
    assert local.is_symlink()


def test_a_drive_that_vanishes_while_training(colab, tmp_path, monkeypatch):
    """It is noted, training goes on, nothing is written beneath the mount point, the weights are kept elsewhere."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "content"))
    runs_on_drive(tmp_path / "content")
    config = tiny_config(None, run_dir="runs/mine")
    held = []

    def vanish(run):
        held[:] = [run]
        if len(run.history) == 1:
            colab.vanish()

    with pytest.raises(OSError, match="the trained weights are in"):
        fit(config, tiny_data(), callbacks=[vanish], progress=False)
    assert [" ".join(words.split()[:5]) for words in held[0].notes] == [f"step {step} is not saved;" for step in (6, 9)]
    assert list(colab.point.iterdir()) == []
    with pytest.raises(
        OSError, match=r"cannot make the run folder runs/mine: .*a drive that is no longer mounted\? Run"
    ):
        fit(config, tiny_data(), progress=False)
    assert list(colab.point.iterdir()) == []
    runs_on_drive(tmp_path / "content")
    run = fit(config, tiny_data(), progress=False)  # from the first epoch on
    undisturbed = fit(tiny_config(tmp_path / "whole"), tiny_data(), progress=False)
    assert differences(undisturbed.path, run.path) == []


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO])
def test_a_dead_mount_point(colab, tmp_path, monkeypatch, code):
    """What a mounted drive answers whose program has died."""
    runs_on_drive(tmp_path / "content")
    plain = os.stat

    def stat(path, *args, **kwargs):
        beneath = not isinstance(path, int) and os.fspath(path).startswith("runs")
        if beneath and (os.fspath(path) != "runs" or kwargs.get("follow_symlinks", True)):
            raise OSError(code, os.strerror(code))
        return plain(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(OSError, match=r"folder runs/mine: .*no longer mounted") as caught:
            fit(tiny_config(None, run_dir="runs/mine"), tiny_data(), progress=False)
    assert caught.value.errno == code


def test_a_run_goes_on_on_another_machine_in_another_precision(tmp_path, monkeypatch):
    """As from a GPU with fp16 and its loss scale to a CPU: the history goes on, the scale is left behind."""
    config = tiny_config(tmp_path / "here" / "run", precision="auto")
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(train, "choose_precision", lambda *_: torch.float16)
        plain = train.train_step

        def step(*args, **settings):
            calls.append(args[2].is_enabled())
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return plain(*args, **settings)

        patch.setattr(train, "train_step", step)
        with contextlib.suppress(KeyboardInterrupt):
            fit(config, tiny_data(), progress=False)
    assert calls == [True] * 5
    before = load_run(config.path, "cpu").history
    assert len(before) == 1
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    steps = []
    monkeypatch.setattr(
        train, "train_step", lambda *args, **how: (steps.append(args[2].is_enabled()), plain(*args, **how))[1]
    )
    run = fit(tiny_config(tmp_path / "there" / "run", precision="fp32"), tiny_data(), progress=False)
    assert steps == [False] * 4  # none is computed twice
    assert run.history[:1] == before
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())
