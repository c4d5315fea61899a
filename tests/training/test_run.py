"""The folder of a run: whose it is, what is damaged in it, how it is locked."""

import errno
import json
import os
import re
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from ltpa import fit, load_run
from ltpa._version import __version__
from ltpa.training import run as runs
from ltpa.training import trainer
from tests.tools.crash import differences, tiny_config, tiny_data
from tests.training.harness import (
    FILES,
    assert_same_weights,
    disturb,
    kill_self,
    names,
    part,
    quiet,
    with_test_labels,
    with_train,
)


def test_a_run_whose_weights_are_missing_is_trained_again_with_a_warning(finished):
    (finished.path / "weights.safetensors").unlink()
    run = quiet(finished, tiny_data())
    assert run.complete
    assert [note for note in run.notes if "weights.safetensors is missing" in note]


def test_a_history_by_the_clock_needs_its_schedule(finished):
    with pytest.raises(ValueError, match="no column schedule"):
        runs.read_history(finished.path, timed=True)


def test_a_complete_run_is_returned_at_once(finished, monkeypatch):
    before = {name: (finished.path / name).read_bytes() for name in FILES}
    monkeypatch.setattr(trainer, "train_step", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(runs, "write", lambda *_: pytest.fail("written"))
    run = quiet(finished, tiny_data())
    assert run.complete
    assert_same_weights(run.model, finished.path)
    assert len(run.history) == 3
    quiet(replace(finished, precision="auto", device="auto", data_dir="elsewhere"), tiny_data())
    assert {name: (finished.path / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 1 / 16},
        {"learning_rate": 0.1, "seed": 3, "epochs": 4},
        {"model": "vgg", "dropout": True, "augment": "none", "normalizer": "sigmoid"},
        {"batch_size": 10, "label_smoothing": 0.0, "weight_decay": 0.0, "validation": 0.1, "train_limit": 50},
    ],
)
def test_other_settings_in_the_same_folder_are_refused(finished, changes):
    with pytest.raises(ValueError, match="belongs to other settings") as caught:
        quiet(replace(finished, **changes), tiny_data())
    listed = re.findall(r"^  (\w+): (.*) there, (.*) now$", str(caught.value), re.MULTILINE)
    assert {name: (there, now) for name, there, now in listed} == {
        name: (repr(getattr(finished, name)), repr(value)) for name, value in changes.items()
    }
    assert f"choose another run_dir, for example {finished.path}-2" in str(caught.value)


def flip_a_bit(images):
    images = images.clone()
    images[7, 1, 5, 5] ^= 1
    return images


OTHER_DATA = {
    "a pixel": lambda: with_train(flip_a_bit),
    "test labels": lambda: with_test_labels(lambda labels: labels.flip(0)),
    "fewer": lambda: part(59),
    "classes": lambda: replace(tiny_data(), classes=tiny_data().classes[::-1]),
}


@pytest.mark.parametrize("change", OTHER_DATA)
def test_other_data_in_the_same_folder_are_refused(finished, change):
    words = r"(?s)belongs to other settings or images:\n  (data|classes): .*choose another"
    with pytest.raises(ValueError, match=words):
        quiet(finished, OTHER_DATA[change]())
    assert len(load_run(finished.path, "cpu").history) == 3


def test_resume_false_refuses_a_run_and_takes_a_new_folder(finished, tmp_path):
    with pytest.raises(FileExistsError, match="holds a run already"):
        quiet(finished, tiny_data(), resume=False)
    assert quiet(tiny_config(tmp_path / "new", epochs=1), tiny_data(), resume=False).complete


def test_folders_that_are_no_runs_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"is not a run .*thesis\.tex"):
        quiet(tiny_config(tmp_path), tiny_data())
    with pytest.raises(ValueError, match="is a file"):
        quiet(tiny_config(tmp_path / "thesis.tex"), tiny_data())
    assert names(tmp_path) == ["thesis.tex"]
    for name in ("a\0b", "x" * 300):
        with pytest.raises((ValueError, OSError)):
            quiet(tiny_config(tmp_path / name), tiny_data())


@pytest.mark.parametrize("name", ["a b", "ünï-cödé ☃", "[a]*?", "-x", "a'\"b", "new\nline", "deep/er/down", "%s{0}\\n"])
def test_folders_may_have_any_name(tmp_path, name, monkeypatch):
    config = tiny_config(tmp_path / name, epochs=1, model="vgg", snapshots=1)
    disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [2]))
    with pytest.raises(KeyboardInterrupt):
        fit(config, tiny_data())
    assert fit(config, tiny_data()).complete
    assert len(load_run(config.path, "cpu").snapshots()) == 2


def test_a_relative_folder_and_the_one_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(tiny_config(tmp_path), run_dir=None, epochs=1, model="vgg", data_dir="/my/photos")
    run = quiet(config, tiny_data())
    assert run.path.parent == Path("runs")
    found = load_run(run.path, "cpu")
    assert (found.history, found.config.data_dir) == (run.history, "/my/photos")
    assert found.config.identity() == {**config.identity(), "image_size": 32}


def edit_config(path, **changes):
    file = path / "config.json"
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))


def test_a_setting_that_is_newer_than_the_run_has_its_default_there(finished):
    edit_config(finished.path, weight_decay=...)
    assert quiet(finished, tiny_data()).complete
    with pytest.raises(ValueError, match=r"weight_decay: 0\.0005 there, 0\.1 now"):
        quiet(replace(finished, weight_decay=0.1), tiny_data())


def test_a_run_of_a_newer_version_says_so_with_both_versions(finished):
    edit_config(finished.path, teacher="muon", ltpa="99.1")
    for call in (lambda: load_run(finished.path), lambda: quiet(finished, tiny_data())):
        with pytest.raises(ValueError, match=rf"written by ltpa 99\.1 .* ltpa {re.escape(__version__)} .*\(teacher\)"):
            call()
    edit_config(finished.path, teacher=...)
    assert load_run(finished.path, "cpu").complete, "what it knows can be read"


DAMAGED_CONFIGS = {
    "empty": lambda text: "",
    "cut": lambda text: text[:-20],
    "a list": lambda text: "[1, 2]",
    "nested without end": lambda text: "[" * 100_000,
    "no classes": lambda text: json.dumps({"model": "vgg"}),
    "classes of numbers": lambda text: json.dumps({**json.loads(text), "classes": [1, 2]}),
}
DAMAGED_HISTORIES = {
    "empty": lambda text: "",
    "only a header": lambda text: text.splitlines()[0] + "\n",
    "cut in a number": lambda text: text[:-3],
    "cut in a row": lambda text: text[:-60] + "\n",
    "words": lambda text: text.replace("0.", "x.", 1),
    "a missing row": lambda text: "\n".join(text.splitlines()[:2] + text.splitlines()[3:]) + "\n",
    "other columns": lambda text: "a,b\n1,2\n",
    "a missing column": lambda text: text.replace("seconds", "sekunden"),
    "binary": lambda text: "\0\0\0",
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("config.json", damage) for damage in DAMAGED_CONFIGS.values()),
        *(("history.csv", damage) for damage in DAMAGED_HISTORIES.values()),
    ],
    ids=[*DAMAGED_CONFIGS, *(f"history {name}" for name in DAMAGED_HISTORIES)],
)
def test_damaged_text_files_are_named(finished, name, damage):
    path = finished.path / name
    path.write_text(damage(path.read_text()))
    for call in (lambda: load_run(finished.path), lambda: quiet(finished, tiny_data())):
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
            call()


def test_a_config_that_is_not_text_is_damaged(finished):
    (finished.path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_run(finished.path)


@pytest.mark.parametrize(
    "changes", [{"model": "vgg-att4"}, {"model": "vgg"}, {"width": "big"}, {"classes": ["a", "b"]}, {"color": "red"}]
)
def test_a_config_edited_by_hand_is_named(finished, changes):
    edit_config(finished.path, **changes)
    for call in (lambda: load_run(finished.path), lambda: quiet(finished, tiny_data())):
        with pytest.raises(ValueError, match=r"config\.json|other settings"):
            call()


def test_a_history_that_lost_an_epoch_is_trained_anew_and_that_is_said(undisturbed, finished):
    path = finished.path / "history.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(ValueError, match=r"weights are those of epoch \d, but history\.csv ends at 2"):
        load_run(finished.path)
    (note,) = quiet(finished, tiny_data()).notes
    assert "trained from the start" in note
    assert differences(undisturbed(), finished.path) == []


@pytest.mark.parametrize("content", [b"", b"x" * 1000, None])
def test_damaged_weights_are_named(finished, content):
    path = finished.path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    for call in (lambda: load_run(finished.path), lambda: quiet(finished, tiny_data())):
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
            call()


def test_weights_of_another_model_are_named(finished, undisturbed):
    path = finished.path / "weights.safetensors"
    shutil.copy(undisturbed(model="vgg", epochs=1) / "weights.safetensors", path)
    for call in (lambda: load_run(finished.path), lambda: quiet(finished, tiny_data())):
        with pytest.raises(ValueError, match=re.escape(f"{path} does not fit the model")):
            call()


@pytest.mark.parametrize("missing", [["config.json"], FILES[1:]])
def test_what_is_missing_of_a_run_is_named(finished, missing):
    for name in missing:
        (finished.path / name).unlink()
    with pytest.raises(FileNotFoundError, match="incomplete") as caught:
        load_run(finished.path)
    assert [name for name in FILES if name in str(caught.value)] == missing
    assert str(finished.path) in str(caught.value)


def test_there_is_no_such_run_or_device(finished, tmp_path):
    for path in (tmp_path / "none", "~nobody-of-this-name/run"):
        with pytest.raises(FileNotFoundError, match="there is no run folder"):
            load_run(path)
    with pytest.raises(ValueError, match="device="):
        load_run(finished.path, "gpu")


# --- the lock


def test_a_second_process_waits_until_the_first_one_ends(undisturbed, tmp_path, capfd):
    config = tiny_config(tmp_path / "run")
    config.path.mkdir()
    first = filelock.FileLock(config.path / ".lock")
    first.acquire()
    thread = threading.Thread(target=fit, args=(config, tiny_data()))
    thread.start()
    try:
        thread.join(0.3)
        assert thread.is_alive()
        assert names(config.path) == []
    finally:
        first.release()
        thread.join()
    assert "another process is working in" in capfd.readouterr().out
    assert differences(undisturbed(), config.path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_process_and_its_children_leave_no_lock(tmp_path):
    """A loader worker that outlives its trainer for a moment does not keep the run locked."""
    ready, told = os.pipe()
    trainer_process = os.fork()
    if trainer_process == 0:
        with runs.locked(tmp_path / "run"):
            worker = os.fork()
            if worker == 0:
                signal.alarm(20)
                signal.pause()
            os.write(told, str(worker).encode())
            signal.pause()
    worker = int(os.read(ready, 20))
    lock = filelock.FileLock(tmp_path / "run" / ".lock")
    with pytest.raises(filelock.Timeout):
        lock.acquire(timeout=0)
    os.kill(trainer_process, signal.SIGKILL)
    os.waitpid(trainer_process, 0)
    try:
        with lock.acquire(timeout=0.5):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("error", [OSError(errno.ENOTSUP, "not supported"), NotImplementedError()])
def test_it_trains_where_folders_cannot_be_locked(undisturbed, tmp_path, monkeypatch, error):
    def unsupported(*_, **__):
        raise error

    monkeypatch.setattr(runs.FileLock, "acquire", unsupported)
    run = quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert_same_weights(run.model, undisturbed())
