"""Interrupted, killed, out of memory, on a full disk, with numbers that are not finite: nothing is lost."""

import errno
import math
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ltpa import fit, load_run
from ltpa.training import callbacks, checkpoint, loader, trainer
from ltpa.training import run as runs
from ltpa.training.checkpoint import load_tensors
from ltpa.training.trainer import OutOfMemory, TrainingDiverged
from tests.tools import crash
from tests.tools.crash import PER_EPOCH, differences, tiny_config, tiny_data
from tests.tools.processes import Started
from tests.training.harness import FILES, STEPS, assert_same_weights, disturb, kill_self, names, quiet


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_signal_handlers_are_the_callers_again(tmp_path, monkeypatch):
    before, inside = handlers(), []
    disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [5]))
    with pytest.raises(KeyboardInterrupt):
        quiet(tiny_config(tmp_path / "run"), tiny_data(), callbacks=[lambda run: inside.append(handlers())])
    assert handlers() == before
    assert inside[0] != before


@pytest.mark.parametrize("steps", [[3], [4, 5], list(range(1, 10))])
def test_an_interrupted_run_is_the_same_bit_by_bit(undisturbed, tmp_path, monkeypatch, steps):
    """In the last step of an epoch, twice in one epoch, in all steps."""
    changes = {"dropout": True, "snapshots": 2}
    config = tiny_config(tmp_path / "run", **changes)
    calls = disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, steps))
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            quiet(config, tiny_data())
        assert calls[-1] == step
        if step >= PER_EPOCH:
            assert [row["epoch"] for row in load_run(config.path, "cpu").history] == list(range(1, step // 3 + 1))
        else:
            with pytest.raises(FileNotFoundError, match=r"history\.csv, weights\.safetensors missing"):
                load_run(config.path, "cpu")
    run = quiet(config, tiny_data())
    assert len(calls) == STEPS  # not one step was computed twice
    assert differences(undisturbed(**changes), config.path) == []
    assert_same_weights(run.model, undisturbed(**changes))
    assert names(config.path) == sorted([*FILES, "snapshots"])


def test_sigterm_saves_and_ends_the_process(undisturbed, tmp_path, monkeypatch, capfd):
    config = tiny_config(tmp_path / "run")
    disturb(monkeypatch, "train_step", kill_self(signal.SIGTERM, [5]))
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should `fit` not catch it, the tests go on
    try:
        with pytest.raises(SystemExit) as caught:
            fit(config, tiny_data())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    out, err = capfd.readouterr()
    assert "interrupted after step 5; saved: call fit again to continue" in out
    fit(config, tiny_data())
    out, more = capfd.readouterr()
    assert f"continuing {config.path} after 1 of 3 epochs (step 5)" in out
    assert err + more == ""
    assert differences(undisturbed(), config.path) == []


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupt_while_testing_takes_effect_after_the_epoch(undisturbed, tmp_path, monkeypatch, epoch):
    config = tiny_config(tmp_path / "run")
    disturb(monkeypatch, "evaluate_images", kill_self(signal.SIGINT, [epoch]))
    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data())
    assert len(load_run(config.path, "cpu").history) == epoch
    quiet(config, tiny_data())
    assert differences(undisturbed(), config.path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_callback_may_end_a_run_after_an_epoch(undisturbed, tmp_path, error):
    def stop(run):
        if len(run.history) == 2:
            raise error

    config = tiny_config(tmp_path / "run", dropout=True)
    with pytest.raises(error):
        quiet(config, tiny_data(), callbacks=[stop])
    assert len(load_run(config.path, "cpu").history) == 2
    quiet(config, tiny_data())
    assert differences(undisturbed(dropout=True), config.path) == []


@pytest.mark.parametrize(("minutes", "again"), [(5.0, 3), (0.0, 2)])
def test_after_a_crash_it_goes_on_from_the_last_checkpoint(undisturbed, tmp_path, monkeypatch, minutes, again):
    def crash_at(call):
        if call == 5:
            raise MemoryError

    monkeypatch.setattr(callbacks, "SAVE_MINUTES", minutes)
    config = tiny_config(tmp_path / "run", dropout=True, epochs=2)
    calls = disturb(monkeypatch, "train_step", crash_at)
    with pytest.raises(MemoryError):
        quiet(config, tiny_data())
    quiet(config, tiny_data())
    assert len(calls) == 5 + again
    assert differences(undisturbed(dropout=True, epochs=2), config.path) == []


@pytest.mark.parametrize(
    ("kind", "call", "kept"),
    [(torch.cuda.OutOfMemoryError, 1, "Nothing of it was saved yet"), (RuntimeError, 5, "stays in ")],
)
def test_out_of_memory_names_the_batch_and_half_of_it_and_keeps_the_run(
    undisturbed, tmp_path, monkeypatch, kind, call, kept
):
    def no_room(number):
        if number == call:
            raise kind("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes")

    config = tiny_config(tmp_path / "run", dropout=True, epochs=2)
    disturb(monkeypatch, "train_step", no_room)
    with pytest.raises(OutOfMemory, match=f"batch_size=20 .* try batch_size=10 .*{kept}") as raised:
        quiet(config, tiny_data())
    assert raised.value.__context__ is None, "a traceback would keep the tensors of the step"
    quiet(config, tiny_data())
    assert differences(undisturbed(dropout=True, epochs=2), config.path) == []


def test_other_errors_of_a_step_pass(tmp_path, monkeypatch):
    def fail(number):
        raise RuntimeError("shapes do not match")

    disturb(monkeypatch, "train_step", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(tiny_config(tmp_path / "run"), tiny_data())


def test_a_long_epoch_is_saved_in_between(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SAVE_MINUTES", 0.0)
    calls = disturb(monkeypatch, "save_checkpoint", module=checkpoint)
    run = quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert len(calls) == STEPS  # after every step; after the last one of an epoch once, with its results
    assert differences(undisturbed(), run.path) == []


def test_bf16_is_interrupted_and_resumed_alike(undisturbed, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", precision="bf16", dropout=True)
    disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [5]))
    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data())
    quiet(config, tiny_data())
    assert differences(undisturbed(precision="bf16", dropout=True), config.path) == []
    assert differences(undisturbed(dropout=True), config.path) != []


@pytest.mark.parametrize("damaged", ["newest", "both"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(undisturbed, tmp_path, monkeypatch, damaged, capfd):
    config = tiny_config(tmp_path / "run", dropout=True)
    calls = disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [5]))
    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data())
    older, newest = sorted((config.path / "checkpoints").iterdir())
    for path in (newest, older)[: 1 if damaged == "newest" else 2]:
        path.write_bytes(path.read_bytes()[:-9] if path == newest else b"")
    run = fit(config, tiny_data())
    assert any(newest.name in words for words in run.notes)
    assert newest.name in capfd.readouterr().out
    assert len(calls) == 5 + (6 if damaged == "newest" else 9)
    assert differences(undisturbed(dropout=True), config.path) == []


def test_what_a_killed_process_had_half_written_is_removed(undisturbed, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", snapshots=2)
    config.path.mkdir()
    (config.path / ".part-0123456789abcdef").write_bytes(b"half of config.json")
    disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [5]))
    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data())
    for folder in (config.path, config.path / "checkpoints", config.path / "snapshots"):
        (folder / ".part-0123456789abcdef").write_bytes(b"half")
    quiet(config, tiny_data())
    assert differences(undisturbed(snapshots=2), config.path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_killed(kills, tmp_path):
    ended = Started(tmp_path, crash.run, kills, 2).end()
    assert ended.status == 0, ended.err
    assert f"{kills} kills" in ended.out
    assert "bit by bit" in ended.out
    if kills == 25:
        for where in ("a step", "writing", "renaming", "after renaming", "at an epoch's end", "once more in an epoch"):
            assert int(re.search(rf"[(,] ?{where} (\d+)", ended.out)[1]) >= 2, ended.out


def test_the_harness_sees_differences(undisturbed, finished):
    assert differences(undisturbed(), finished.path) == []
    path = finished.path / "history.csv"
    path.write_text(path.read_text().replace("\n2,", "\n2,1", 1))
    assert differences(undisturbed(), finished.path)[0].startswith("history")
    weights, facts = load_tensors(finished.path / "weights.safetensors")
    bias = weights["head.classifiers.0.bias"]
    bias[0] = np.nextafter(np.float32(bias[0].item()), np.float32(9)).item()
    checkpoint.save_tensors(finished.path / "weights.safetensors", weights, facts)
    assert differences(undisturbed(), finished.path)[0] == "head.classifiers.0.bias in weights.safetensors"


# --- folders that cannot be written


def test_a_full_disk_for_a_while_is_noted_and_training_goes_on(undisturbed, tmp_path, disk, capfd):
    config = tiny_config(tmp_path / "run")

    def fill(run):
        disk.full_for = "" if len(run.history) == 1 else None
        if len(run.history) == 2:
            assert len(load_run(run.path, "cpu").history) == 1  # the older one stays

    (note,) = fit(config, tiny_data(), callbacks=[fill]).notes
    out, err = capfd.readouterr()
    assert err == ""
    assert f"note: {note}" in out
    assert re.search(rf"step 6 is not saved.* into {re.escape(str(config.path))}: No space left", note)
    assert differences(undisturbed(), config.path) == []


def test_checkpoints_that_cannot_be_written_do_not_stop_a_run(undisturbed, tmp_path, disk, monkeypatch):
    disk.full_for = "step-"
    monkeypatch.setattr(callbacks, "SAVE_MINUTES", 0.0)
    run = quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert len(run.notes) == STEPS
    assert all(str(run.path / "checkpoints") in words for words in run.notes)
    assert differences(undisturbed(), run.path) == []


def test_final_weights_that_cannot_be_written_go_elsewhere(undisturbed, tmp_path, disk, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    config, plain = tiny_config(tmp_path / "run"), runs.save_tensors

    def elsewhere_only(path, *args):
        if elsewhere in path.parents:
            disk.full_for = None
        plain(path, *args)

    def fill(run):
        disk.full_for = ""
        if len(run.history) == 2:
            monkeypatch.setattr(runs, "save_tensors", elsewhere_only)

    with pytest.raises(OSError, match="the trained weights are in") as caught:
        quiet(config, tiny_data(), callbacks=[fill])
    assert caught.value.errno == errno.ENOSPC
    assert str(config.path) in str(caught.value)
    place = Path(re.search(r"are in (\S+)", str(caught.value))[1])
    found, expected = load_tensors(place)[0], load_tensors(undisturbed() / "weights.safetensors")[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(load_run(config.path, "cpu").history) == 1
    disk.full_for = None
    quiet(config, tiny_data())
    assert differences(undisturbed(), config.path) == []


def test_when_nothing_can_be_written_anywhere_that_is_said(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fill(run):
        disk.full_for = ""

    with pytest.raises(OSError, match="nor can the trained weights be kept elsewhere") as caught:
        quiet(tiny_config(tmp_path / "run", epochs=2), tiny_data(), callbacks=[fill])
    assert caught.value.errno == errno.ENOSPC
    assert len(load_run(tmp_path / "run", "cpu").history) == 1


def test_weights_that_only_the_checkpoint_holds_are_written_by_the_next_call(undisturbed, tmp_path, disk):
    config = tiny_config(tmp_path / "run")

    def stop(run):
        if run.complete:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data(), callbacks=[stop])
    (config.path / "weights.safetensors").unlink()
    disk.full_for = "weights"
    with pytest.raises(OSError, match="No space left"):
        quiet(config, tiny_data())
    disk.full_for = None
    quiet(config, tiny_data())
    assert differences(undisturbed(), config.path) == []


def test_an_interrupt_on_a_full_disk_does_not_say_saved(tmp_path, disk, monkeypatch, capfd):
    disk.full_for = "step-"
    disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [2]))
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_config(tmp_path / "run"), tiny_data())
    out = capfd.readouterr().out
    assert "interrupted after step 2; it is not saved" in out
    assert "saved: call fit again" not in out


def test_a_folder_that_vanishes_is_noted_and_not_made_anew(undisturbed, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    config = tiny_config(tmp_path / "drive" / "run")
    held = []

    def vanish(run):
        held[:] = [run]
        shutil.rmtree(config.path, ignore_errors=True)

    with pytest.raises(FileNotFoundError, match="the trained weights are in"):
        quiet(config, tiny_data(), callbacks=[vanish])
    assert not config.path.exists()
    assert len(held[0].notes) == 2
    (place,) = (tmp_path / "elsewhere").glob("*/weights.safetensors")
    found, expected = load_tensors(place)[0], load_tensors(undisturbed() / "weights.safetensors")[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_that_cannot_be_written_at_the_start_is_an_error_at_once(tmp_path, disk, monkeypatch):
    config = tiny_config(tmp_path / "run")
    calls = disturb(monkeypatch, "train_step")
    disk.full_for = "config"
    with pytest.raises(OSError, match=re.escape(f"into {config.path}: No space left")):
        quiet(config, tiny_data())
    assert names(config.path) == []
    disk.full_for = None
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        quiet(tiny_config(tmp_path / "file" / "run"), tiny_data())
    assert not calls


# --- numbers that are not finite


def spoil(monkeypatch, step):
    """From this step on, the pictures are not numbers."""
    plain, calls = loader.augmented_batch, []

    def spoilt(*args):
        calls.append(args)
        return plain(*args) if len(calls) < step else plain(*args).float() * math.nan

    monkeypatch.setattr(loader, "augmented_batch", spoilt)


@pytest.mark.parametrize("step", [5, 6])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(
    undisturbed, tmp_path, monkeypatch, step
):
    config, good = tiny_config(tmp_path / "run"), {}

    def keep(run):
        good.update({name: value.clone() for name, value in run.model.state_dict().items()})

    with monkeypatch.context() as patch:
        spoil(patch, step)
        patch.setattr(callbacks, "SAVE_MINUTES", 0.0 if step == 5 else 5.0)
        with pytest.raises(TrainingDiverged, match=rf"not finite after step [56]; .*epoch 1 .*{config.path}.*rate"):
            fit(config, tiny_data(), callbacks=[keep])
    run = load_run(config.path, "cpu")
    assert len(run.history) == 1
    assert all(torch.equal(good[name], value) for name, value in run.model.state_dict().items())
    quiet(config, tiny_data())  # without the spoilt pictures
    assert differences(undisturbed(), config.path) == []


def test_a_long_epoch_does_not_end_before_that_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "CHECKED_STEPS", 2)
    spoil(monkeypatch, 1)
    with pytest.raises(TrainingDiverged, match="not finite after step 2; nothing was saved"):
        quiet(tiny_config(tmp_path / "run"), tiny_data())


def test_weights_that_are_not_finite_are_not_saved_even_if_the_loss_was(tmp_path, monkeypatch):
    def explode(step):
        if step == 2 * PER_EPOCH:  # the last step of an epoch: no loss of the epoch will show it
            with torch.no_grad():
                model[0].head.classifiers[0].bias[3] = math.inf

    model = []
    disturb(monkeypatch, "train_step", after=explode)
    with pytest.raises(TrainingDiverged, match="the loss or a weight is not finite after step 6"):
        quiet(tiny_config(tmp_path / "run"), tiny_data(), callbacks=[lambda run: model.append(run.model)])
    assert len(load_run(tmp_path / "run", "cpu").history) == 1


def test_a_loss_that_is_not_finite_is_seen_even_if_its_step_was_skipped(tmp_path, monkeypatch):
    """As the scaling of fp16 does: the weights stay good, but nothing is learnt any more."""
    plain, calls = trainer.train_step, []

    def step(*args, **settings):
        loss, correct = plain(*args, **settings)
        calls.append(loss)
        return loss * (math.inf if len(calls) == 5 else 1), correct

    monkeypatch.setattr(trainer, "train_step", step)
    with pytest.raises(TrainingDiverged, match="the loss is not finite after step 6"):
        quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert len(load_run(tmp_path / "run", "cpu").history) == 1


def test_an_absurd_learning_rate_in_the_first_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "schedule", lambda done, warm_up: 1e30)
    with pytest.raises(TrainingDiverged, match="nothing was saved"):
        quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert names(tmp_path / "run" / "checkpoints") == []
    with pytest.raises(FileNotFoundError):
        load_run(tmp_path / "run")
