"""Training: every step against plain formulas, and what a run gives back."""

import csv
import json
import math
import random
import re
import signal
import threading
import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from ltpa import Split, attend, create_model, data_for, evaluate, fit, load_data, load_run, snapshot_indices
from ltpa.course.query_training import learn_to_ask
from ltpa.errors import duration
from ltpa.training import inputs, trainer
from ltpa.training.base import Callback
from ltpa.training.checkpoint import State
from ltpa.training.choices import chosen
from ltpa.training.loader import epoch_batches
from ltpa.training.optim import make_optimizer
from tests.tools.crash import PER_EPOCH, differences, tiny_config, tiny_data
from tests.training.harness import (
    FILES,
    STEPS,
    assert_same_weights,
    disturb,
    kill_self,
    names,
    part,
    quiet,
    with_test_labels,
    with_train,
)

KEYS = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds"]

# --- the training itself


def gradients_by_hand(weights, config, data, step):
    """Of the loss written out: gradients with weight decay by name, the loss, and how many were right.

    In float32 and in the memory format of the training, lest the kinks of ReLU and pooling fall on other sides.
    """
    model = create_model(config.model, 10, width=config.width, dropout=False).to(memory_format=torch.channels_last)
    model.load_state_dict(weights)
    model.train()
    epoch, position = divmod(step, PER_EPOCH)
    index = epoch_batches(60, 20, config.seed, epoch)[position]
    pixels = (data.train.images[index] / 255).contiguous(memory_format=torch.channels_last)
    logits = model(pixels)
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)
    truth = data.train.labels[index]
    target = torch.full_like(log_p, 0.1 / 10)
    target[torch.arange(20), truth] += 0.9
    loss = -(target * log_p).sum() / 20
    parameters = dict(model.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gradients[f"{name}.weight"] = gradients[f"{name}.weight"] + config.weight_decay * module.weight.detach()
    gradients = {name: gradient.double() for name, gradient in gradients.items()}
    return gradients, loss.item(), (logits.argmax(1) == truth).sum().item()


def test_every_step_is_what_plain_formulas_give(tmp_path, monkeypatch):
    """Each from the weights that the one before left: small errors grow a thousandfold within few steps."""
    config = tiny_config(tmp_path / "run", augment="none", weight_decay=0.02, optimizer="sgd")
    data, means, plain = tiny_data(), [], trainer.train_step

    def buffers(model, optimizer):
        found = {name: optimizer.state[p].get("momentum_buffer") for name, p in model.named_parameters()}
        return {name: torch.zeros(()) if one is None else one.double() for name, one in found.items()}

    def step(model, optimizer, *args, **settings):
        number = len(means)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        velocity = buffers(model, optimizer)
        assert all(bool(one.any()) == (number > 0) for one in velocity.values())
        result = plain(model, optimizer, *args, **settings)
        gradients, loss, correct = gradients_by_hand(before, config, data, number)
        done = (number + 1) / (STEPS + 1)
        rate = 0.03 * (done / 0.25 if done < 0.25 else (1 - done) / 0.75)
        after = buffers(model, optimizer)
        for name, parameter in model.named_parameters():
            expected = 0.9 * velocity[name] + gradients[name]
            scale = max(expected.abs().max().item(), 1e-2)  # some are zero but for rounding: batch norm follows
            close = {"atol": 1e-3, "rtol": 0, "msg": lambda words, name=name: f"{name} in step {number}: {words}"}
            torch.testing.assert_close(after[name] / scale, expected / scale, **close)
            gradient = after[name] - 0.9 * velocity[name]
            expected = before[name].double() - rate * (gradient + 0.9 * after[name])
            torch.testing.assert_close(parameter.double(), expected, atol=1e-7, rtol=1e-6)
        assert result[0].item() == pytest.approx(loss, rel=1e-6)
        assert result[1].item() == correct
        means.append((loss, correct / 20, rate))
        return result

    monkeypatch.setattr(trainer, "train_step", step)
    run = quiet(config, data)
    assert len(means) == STEPS
    for epoch, row in enumerate(run.history):
        losses, right, rates = zip(*means[3 * epoch : 3 * epoch + 3], strict=True)
        assert row["train_loss"] == pytest.approx(math.fsum(losses) / 3, rel=1e-5)
        assert row["train_accuracy"] == pytest.approx(math.fsum(right) / 3, rel=1e-12)
        assert row["learning_rate"] == pytest.approx(rates[-1], rel=1e-12)


class RecordingScaler:
    """A scaler that scales by 8 and records the calls."""

    made: ClassVar[list] = []

    def __init__(self, device, enabled):
        self.enabled, self.log = enabled, []
        RecordingScaler.made.append(self)

    def scale(self, loss):
        self.log.append("scale")
        loss.register_hook(lambda gradient: self.log.append("backward"))
        return 8 * loss

    def step(self, optimizer):
        self.log.append("step")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= 8
        optimizer.step()

    def update(self):
        self.log.append("update")

    def is_enabled(self):
        return self.enabled

    def state_dict(self):
        return {}


@pytest.fixture
def scalers(monkeypatch):
    monkeypatch.setattr(RecordingScaler, "made", [])
    monkeypatch.setattr(torch.amp, "GradScaler", RecordingScaler)
    return RecordingScaler.made


def test_gradients_go_through_the_scaler(undisturbed, tmp_path, scalers):
    folder = undisturbed(epochs=1)
    scalers.clear()
    run = quiet(tiny_config(tmp_path / "run", epochs=1), tiny_data())
    (scaler,) = scalers
    assert scaler.log == ["scale", "backward", "step", "update"] * PER_EPOCH
    assert_same_weights(run.model, folder)  # 8 is a power of 2: scaled and unscaled are the same, bit by bit


def test_what_learns_to_ask_goes_through_the_scaler_too(undisturbed, scalers, monkeypatch):
    run = load_run(undisturbed(model="vgg-att3-concat-dp", epochs=1), "cpu")
    scenes = load_data("shapes", train_limit=10, test_limit=70, objects=2).test
    scalers.clear()
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    model = learn_to_ask(run, scenes, tiny_data().train, steps=2, progress=False)
    (scaler,) = scalers
    assert not scaler.enabled
    assert scaler.log == ["scale", "backward", "step", "update"] * 2
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    module = learn_to_ask.__module__
    monkeypatch.setattr(f"{module}.choose_precision", lambda *_: torch.float16)
    learn_to_ask(run, scenes, tiny_data().train, steps=1, progress=False)
    assert scalers[1].enabled, "fp16 needs it"


def state_in(dtype):
    model = create_model("vgg", 2, width=1 / 32)
    return State.start(model, make_optimizer(model, optimizer="sgd", learning_rate=0.1, weight_decay=0.0), dtype, [])


def test_losses_are_scaled_for_fp16_alone_and_the_scale_is_saved(tmp_path):
    assert not state_in(torch.float32).scaler.is_enabled()
    assert not state_in(torch.bfloat16).scaler.is_enabled()
    state = state_in(torch.float16)
    assert state.scaler.is_enabled()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    state.scaler.scale(torch.zeros(1))
    state.step = 4
    state.save(tmp_path, state.sums)
    again, exact = state_in(torch.float16), state_in(torch.float32)  # the precision may change between two calls
    assert again.restore(tmp_path)
    assert exact.restore(tmp_path)
    assert (again.step, again.scaler.get_scale(), exact.scaler.get_scale()) == (4, 128.0, 1.0)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_checkpoint_holds_what_any_optimizer_keeps(tmp_path, optimizer):
    """Exact resume with AdamW, whose two moments and step count no line of a checkpoint names, and with Muon."""
    states, rates = [], {"learning_rate": 0.01, "weight_decay": 0.1}
    for _ in range(2):
        torch.manual_seed(0)
        model = create_model("vgg", 2, width=1 / 32, dropout=False)
        states.append(State.start(model, make_optimizer(model, optimizer=optimizer, **rates), torch.float32, []))
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    settings = {"factor": 0.1, "smoothing": 0.0, "dtype": torch.float32}
    one, other = states
    for number in range(4):
        if number == 2:
            one.save(tmp_path, one.sums)
            assert other.restore(tmp_path)
        for state in states[: 1 if number < 2 else 2]:
            trainer.train_step(state.model, state.optimizer, state.scaler, images, labels, **settings)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_model_starts_from_its_seed_and_the_statistics_of_the_data(tmp_path, monkeypatch):
    def stop(model, *_, **__):
        first.update({name: value.clone() for name, value in model.state_dict().items()})
        raise MemoryError

    first, data = {}, tiny_data()
    monkeypatch.setattr(trainer, "train_step", stop)
    with pytest.raises(MemoryError):
        quiet(tiny_config(tmp_path / "run", seed=4), data)
    torch.manual_seed(4)
    expected = create_model("vgg-att3-concat-pc", 10, width=1 / 32, mean=data.mean, std=data.std).state_dict()
    assert all(torch.equal(first[name], expected[name]) for name in expected)


def test_the_augmentation_of_the_settings_reaches_the_training(undisturbed):
    assert differences(undisturbed(), undisturbed(augment="none"))
    assert not differences(undisturbed(), undisturbed(augment="flip+shift"))


def test_the_same_seed_gives_the_same_weights_bit_by_bit(undisturbed, tmp_path):
    torch.manual_seed(77)  # does not matter
    run = quiet(tiny_config(tmp_path / "again", dropout=True), tiny_data())
    assert differences(undisturbed(dropout=True), run.path) == []
    assert differences(run.path, undisturbed(dropout=True, seed=1)) != []
    assert differences(run.path, undisturbed()) != []


def test_it_learns(tmp_path):
    run = quiet(tiny_config(tmp_path / "run", epochs=15, learning_rate=0.1, augment="none"), tiny_data())
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"] - 0.4
    assert run.history[-1]["train_accuracy"] > 0.3  # 0.1 by chance


# --- what comes of it


def test_history_and_the_files_of_a_run(undisturbed):
    path, data = undisturbed(), tiny_data()
    assert names(path) == FILES
    run = load_run(path, "cpu")
    assert run.complete
    assert run.classes == data.classes
    assert json.loads((path / "config.json").read_text())["classes"] == list(data.classes)
    assert run.config.identity() == chosen(tiny_config(path)).identity()
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert list(run.history[0]) == [*KEYS, "entropy_conv7", "entropy_conv10", "entropy_conv13"]
    with (path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items()} for row in rows] == run.history
    for row in run.history:
        assert 0 <= row["train_accuracy"] <= 1
        assert row["seconds"] > 0
        assert all(math.isfinite(value) for value in row.values())


def test_a_run_prints_on_a_screen(undisturbed):
    run = load_run(undisturbed(), "cpu")
    run.notes.append("something to know")
    lines = str(run).splitlines()
    assert len(lines) < 10
    assert max(map(len, lines)) < 200
    for words in (run.config.model, "3 of 3 epochs", f"{run.history[-1]['test_accuracy']:.1%}", str(run.path), "note:"):
        assert words in str(run)


def test_the_last_test_results_are_those_of_the_weights_that_are_saved(undisturbed):
    run, data = load_run(undisturbed(dropout=True), "cpu"), tiny_data()
    assert not run.model.training
    found, last = evaluate(run.model, data.test, "fp32"), run.history[-1]
    assert found == {
        name.removeprefix("test_"): value for name, value in last.items() if name.startswith(("test_", "entropy_"))
    }


def test_every_epochs_results_are_those_of_the_weights_that_are_saved_then(tmp_path):
    data, found = tiny_data(), []

    def look(run):
        saved = load_run(run.path, "cpu")
        assert_same_weights(run.model, run.path)
        found.append((saved.history, evaluate(saved.model, data.test, "fp32")["loss"]))

    run = quiet(tiny_config(tmp_path / "run"), data, callbacks=[look])
    assert [loss for _, loss in found] == [row["test_loss"] for row in run.history]
    assert [history for history, _ in found] == [run.history[:1], run.history[:2], run.history]
    assert run.complete
    assert (run.path, run.notes) == (tmp_path / "run", [])
    assert not any(module.training for module in run.model.modules())


def test_validation_takes_the_place_of_the_test(tmp_path):
    config = tiny_config(tmp_path / "run", validation=0.2, train_limit=60, test_limit=30, epochs=1)
    run, held = quiet(config), data_for(config)
    everything = load_data("shapes", train_limit=60, test_limit=30)

    def pictures(split):
        return {image.numpy().tobytes() for image in split.images}

    assert (len(held.train), len(held.test)) == (48, 12)
    assert pictures(held.test) | pictures(held.train) == pictures(everything.train)
    assert not pictures(held.test) & (pictures(held.train) | pictures(everything.test))
    assert evaluate(run.model, held.test, "fp32")["loss"] == run.history[-1]["test_loss"]


def test_without_data_the_settings_say_which(tmp_path):
    config = tiny_config(tmp_path / "run", train_limit=60, test_limit=30, epochs=1)
    run = quiet(config)
    quiet(replace(config, run_dir=str(tmp_path / "given")), load_data("shapes", train_limit=60, test_limit=30))
    assert_same_weights(run.model, tmp_path / "given")


# --- what happens around it


def test_the_callers_random_state_stays_as_it_was(tmp_path):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    quiet(tiny_config(tmp_path / "run", dropout=True, epochs=1), tiny_data())
    load_run(tmp_path / "run", "cpu")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


def test_only_the_generators_in_use_are_seeded(monkeypatch):
    """Those of other GPUs are the caller's."""
    import contextlib

    calls = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: calls.append(device) or contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", calls.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs are seeded"))
    with torch.random.fork_rng(devices=[]):
        for device, expected in (("cpu", []), ("cuda:1", [torch.device("cuda:1"), 5])):
            inputs.seed_generators(5, torch.device(device))
            assert calls == expected
            assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_callbacks_see_every_moment_and_cannot_disturb(undisturbed, tmp_path):
    class Watcher(Callback):
        def __init__(self):
            self.moments = []

        def on_start(self, trainer):
            self.moments.append("start")

        def on_step(self, trainer):
            self.moments.append(trainer.state.step)

        def on_epoch(self, trainer):
            self.moments.append((len(trainer.run.history), trainer.run.model.training, trainer.run.complete))
            torch.manual_seed(3)
            trainer.run.model(tiny_data().train.images[:5].float())  # in training mode, batch norms would take this in

        def on_stop(self, trainer):
            self.moments.append("stop")

    epochs, config = [], tiny_config(tmp_path / "run", dropout=True)
    watcher = Watcher()
    run = quiet(config, tiny_data(), callbacks=[watcher, lambda run: epochs.append(len(run.history))])
    ends = {3: [(1, False, False)], 6: [(2, False, False)], 9: [(3, False, True)]}
    steps = [moment for step in range(1, 10) for moment in (step, *ends.get(step, []))]
    assert watcher.moments == ["start", *steps, "stop"]
    assert epochs == [1, 2, 3]
    assert differences(undisturbed(dropout=True), run.path) == []
    quiet(config, tiny_data(), callbacks=[lambda run: epochs.append(len(run.history))])
    assert epochs == [1, 2, 3, 3], "a complete run is shown once"


def test_it_trains_in_another_thread(undisturbed, tmp_path):
    thread = threading.Thread(target=quiet, args=(tiny_config(tmp_path / "run", dropout=True), tiny_data()))
    thread.start()
    thread.join()
    assert differences(undisturbed(dropout=True), tmp_path / "run") == []


def test_progress_goes_to_standard_output_alone(tmp_path, capfd):
    data = replace(tiny_data(), notes=("two of a kind",))
    run = fit(tiny_config(tmp_path / "run"), data)
    out, err = capfd.readouterr()
    assert err == ""
    assert "note: two of a kind" in out
    assert run.notes == ["two of a kind"]
    assert re.search(r"3 epochs on cpu \(\d+ cores\) in float32\n", out)
    assert re.search(r"epoch 3/3 .*100 % 00:00 left, loss \d\.\d{3}, accuracy \d+\.\d%, test \d+\.\d%", out)
    assert re.search(r"epoch 3/3 .*100 % 00:00 left, test \d+\.\d%", out)
    fit(tiny_config(tmp_path / "run"), data)
    out, err = capfd.readouterr()
    assert "is complete: nothing to train" in out
    assert err == ""


def test_without_progress_nothing_is_printed(tmp_path, capfd, monkeypatch, disk):
    disk.full_for = "step-"
    disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [5]))
    data = replace(tiny_data(), notes=("two of a kind",))
    with pytest.raises(KeyboardInterrupt):
        quiet(tiny_config(tmp_path / "run"), data)
    disk.full_for = None
    run = quiet(tiny_config(tmp_path / "run"), data)
    assert run.complete
    assert run.notes[0] == "two of a kind"
    assert capfd.readouterr() == ("", "")


class Time:
    """Time that passes while a step is computed, and at no other moment."""

    def __init__(self, monkeypatch, seconds):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

        def tick(step):
            self.now += 10 * seconds if step == 1 else seconds  # the first one is slow

        disturb(monkeypatch, "train_step", tick)


def test_the_seconds_of_an_epoch_are_counted_over_interruptions(tmp_path, monkeypatch):
    Time(monkeypatch, 60)
    disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [4, 5]))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quiet(tiny_config(tmp_path / "run"), tiny_data())
    run = quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert [row["seconds"] for row in run.history] == [720, 180, 180]


@pytest.mark.parametrize(("seconds", "words"), [(89, "89 seconds"), (600, "10 minutes"), (7200, "2.0 hours")])
def test_durations(seconds, words):
    assert duration(seconds) == words


# --- maps kept after every epoch


def test_snapshots_are_the_maps_of_the_same_images_after_every_epoch(undisturbed):
    path, data = undisturbed(snapshots=2), tiny_data()
    assert names(path) == sorted([*FILES, "snapshots"])
    run = load_run(path, "cpu")
    found = run.snapshots()
    assert list(found) == [0, 1, 2, 3]
    watched = data.test.images[snapshot_indices(data, 2)]
    now = attend(run.model, watched, "fp32").maps
    torch.manual_seed(0)
    fresh = create_model("vgg-att3-concat-pc", 10, width=1 / 32, dropout=False, mean=data.mean, std=data.std)
    before = attend(fresh.to(memory_format=torch.channels_last), watched, "fp32").maps
    for level, side in {"conv7": 32, "conv10": 16, "conv13": 8}.items():
        assert found[1][level].shape == (2, side, side)
        assert torch.equal(found[3][level], now[level])
        assert torch.equal(found[0][level], before[level])
        assert not torch.equal(found[2][level], found[3][level])
    (difference,) = differences(undisturbed(), path)
    assert difference.startswith("files: "), "the training is the same"


def test_snapshots_of_few_images_and_of_a_model_without_attention(tmp_path):
    run = quiet(tiny_config(tmp_path / "many", snapshots=200, epochs=1), tiny_data())
    assert run.snapshots()[1]["conv13"].shape == (30, 8, 8)
    run = quiet(tiny_config(tmp_path / "none", snapshots=2, epochs=1, model="vgg"), tiny_data())
    assert run.snapshots() == {0: {}, 1: {}}


def test_snapshots_make_no_other_run(finished, tmp_path, monkeypatch):
    run = quiet(replace(finished, snapshots=2), tiny_data())
    assert run.complete
    assert run.snapshots() == {}
    assert "has kept no maps by epoch" in run.notes[0]
    for number, (before, after) in enumerate([(0, 2), (3, 2)]):
        config = tiny_config(tmp_path / f"half-{number}", snapshots=before)
        with monkeypatch.context() as patch:
            disturb(patch, "train_step", kill_self(signal.SIGINT, [4]))
            with pytest.raises(KeyboardInterrupt):
                quiet(config, tiny_data())
        run = quiet(replace(config, snapshots=after), tiny_data())
        counts = {epoch: len(maps["conv13"]) for epoch, maps in run.snapshots().items()}
        assert counts == ({2: 2, 3: 2} if not before else {0: 3, 1: 3, 2: 3, 3: 3})
        assert ["from epoch 2 on" in note for note in run.notes] == [True] * (not before)


# --- data and settings at their limits


@pytest.mark.parametrize(
    ("counts", "changes"),
    [
        ((2, 30), {"batch_size": 2}),
        ((3, 30), {"batch_size": 2}),
        ((60, 1), {"batch_size": 512}),
        ((10, 30), {"width": 1e-6, "model": "vgg-att2-concat-add", "normalizer": "sigmoid"}),
        ((10, 30), {"model": "vgg-late", "dropout": True}),
        ((10, 30), {"weight_decay": 0.0, "label_smoothing": 0.0, "learning_rate": 1.0}),
        (None, {"image_size": 40, "snapshots": 1, "train_limit": 8, "test_limit": 3}),
    ],
)
def test_the_smallest_trainings(tmp_path, counts, changes):
    config = tiny_config(tmp_path / "run", **{"epochs": 2, **changes})
    run = quiet(config, part(*counts) if counts else None)
    assert len(run.history) == 2
    assert all(math.isfinite(row["train_loss"]) for row in run.history)
    assert load_run(run.path, "cpu").history == run.history


BAD_DATA = {
    "no test": (lambda: part(60, 0), "60 training and 0 test images"),
    "one image": (lambda: part(1), "1 training"),
    "one class": (lambda: replace(tiny_data(), classes=("a",)), "names of at least two classes"),
    "numbers": (lambda: replace(tiny_data(), classes=tuple(range(10))), "names of at least two classes"),
    "label 10": (lambda: with_train(labels=lambda x: x + 1), r"6 training labels lie outside 0 \.\.\. 9"),
    "label -1": (lambda: with_test_labels(lambda x: x - 1), "2 test labels lie outside"),
    "two objects": (lambda: with_train(labels=lambda x: x[:, None].repeat(1, 2)), "one label an image"),
    "fewer labels": (lambda: with_train(labels=lambda x: x[:-1]), "labels must be 60 of int64"),
    "float labels": (lambda: with_train(labels=lambda x: x.float()), "labels must be 60 of int64"),
    "float64": (lambda: with_train(lambda x: x.double() / 255), "must be uint8"),
    "gray": (lambda: with_train(lambda x: x[:, :1]), r"\(N, 3, H, W\)"),
    "small": (lambda: with_train(lambda x: x[..., :16, :16]), "at least 32x32"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_data_that_cannot_be_trained_on_are_refused_before_a_folder_is_made(tmp_path, what):
    data, words = BAD_DATA[what]
    with pytest.raises((ValueError, TypeError), match=words):
        quiet(tiny_config(tmp_path / "run"), data())
    assert not (tmp_path / "run").exists()


def test_images_may_be_float32(undisturbed, tmp_path):
    data = tiny_data()
    train_part, test_part = (Split(part.images.float() / 255, part.labels) for part in (data.train, data.test))
    run = quiet(tiny_config(tmp_path / "run"), replace(data, train=train_part, test=test_part))
    assert_same_weights(run.model, undisturbed())


def test_machines_without_what_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device='auto'"):
        quiet(tiny_config(tmp_path / "run", device="cuda"), tiny_data())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU"):
        quiet(tiny_config(tmp_path / "run", precision="fp16", device="auto"), tiny_data())
    assert not (tmp_path / "run").exists()
