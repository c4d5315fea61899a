"""Training: against a loop written by hand, and against itself after interruptions, full disks and edited folders."""

import contextlib
import csv
import errno
import functools
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ltpa import (
    OutOfMemory,
    Split,
    TrainingDiverged,
    attend,
    create_model,
    data_for,
    evaluate,
    fit,
    list_models,
    load_data,
    load_run,
    snapshot_indices,
)
from ltpa.training import loader as feed
from ltpa.training import run as runs
from ltpa.training import state
from ltpa.training import trainer as train
from ltpa.training.checkpoint import load_tensors
from ltpa.training.schedule import Steps, one_cycle
from ltpa.training.step import optimizer
from ltpa.training.trainer import epoch_batches
from tests.tools.crash import PER_EPOCH, differences, tiny_config, tiny_data

STEPS = 3 * PER_EPOCH  # of tiny_config on tiny_data
KEYS = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds"]
FILES = ["config.json", "history.csv", "weights.safetensors"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


quiet = functools.partial(fit, progress=False)


@pytest.fixture(scope="module")
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


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same_weights(model, folder):
    expected, _ = load_tensors(folder / "weights.safetensors")
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def disturb(monkeypatch, name, before=None, after=None, module=train):
    """Calls `before` or `after` with the number of the call (from 1) whenever `train.<name>` is called."""
    plain, calls = getattr(module, name), []

    def disturbed(*args, **kwargs):
        calls.append(len(calls) + 1)
        if before:
            before(calls[-1])
        result = plain(*args, **kwargs)
        if after:
            after(calls[-1])
        return result

    monkeypatch.setattr(module, name, disturbed)
    return calls


def kill_self(number, moments):
    return lambda call: os.kill(os.getpid(), number) if call in moments else None


class Disk:
    """A disk that can be full, for all files or for those whose names match."""

    def __init__(self, monkeypatch):
        self.full_for = None
        plain = os.replace

        def replace(source, target):
            if self.full_for is not None and re.match(self.full_for, Path(target).name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            plain(source, target)

        monkeypatch.setattr(os, "replace", replace)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


# --- schedule, order, optimizer


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 39, 400])
@pytest.mark.parametrize("peak", [0.2, 1e-4])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(steps, peak):
    rates = [one_cycle(Steps(steps).done(step), peak) for step in range(steps)]
    expected = np.interp(np.arange(1, steps + 1), [0, (steps + 1) / 4, steps + 1], [0, peak, 0])
    assert rates == pytest.approx(expected.tolist(), rel=1e-12)
    top = rates.index(max(rates))
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))
    assert 0 < min(rates) <= max(rates) <= peak
    if (steps + 1) % 4 == 0:
        assert rates[(steps + 1) // 4 - 1] == pytest.approx(peak, rel=1e-15)
    if steps > 100:
        assert rates[0] < 0.02 * peak
        assert rates[-1] < 0.005 * peak


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (60, 20, {20}),
        (61, 20, {15, 16}),
        (50_000, 512, {510, 511}),
        (10, 100, {10}),
        (2, 2, {2}),
        (2, 512, {2}),
        (3, 2, {3}),
        (5, 2, {2, 3}),
        (7, 3, {2, 3}),
        (1001, 2, {2, 3}),
    ],
)
def test_batches_are_a_permutation_in_nearly_equal_parts(count, batch_size, sizes):
    batches = epoch_batches(count, batch_size, 0, 0)
    assert {len(batch) for batch in batches} == sizes
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(count))
    assert len(batches) == train._steps_per_epoch(count, batch_size)


@pytest.mark.parametrize("batch_size", [2, 3, 5, 20])
def test_no_batch_is_a_single_image_and_sizes_differ_by_one(batch_size):
    for count in range(2, 70):
        sizes = [len(batch) for batch in epoch_batches(count, batch_size, 0, 0)]
        assert min(sizes) >= 2
        assert max(sizes) <= max(batch_size, 3)
        assert max(sizes) - min(sizes) <= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return torch.cat(epoch_batches(60, 20, seed, epoch)).tolist()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    torch.manual_seed(1)
    order(0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    orders = [order(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(one) for one in orders}) == 16
    assert first != sorted(first)


def decays(model):
    """Names of the parameters that shrink: weights of convolutions and linear layers, by the kind of the module."""
    return {f"{prefix}.weight" for prefix, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize("name", list_models())
def test_weight_decay_is_for_weights_alone(name, tmp_path):
    model = create_model(name, 10, width=1 / 32, normalizer="sigmoid")
    found = optimizer(model, tiny_config(tmp_path, weight_decay=0.125, learning_rate=0.5))
    by_id = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = [{by_id[id(p)] for p in group["params"]} for group in found.param_groups]
    assert [group["weight_decay"] for group in found.param_groups] == [0.125, 0.0]
    assert groups[0] == decays(model)
    assert groups[1] == set(by_id.values()) - decays(model)
    assert sum(len(group["params"]) for group in found.param_groups) == len(by_id)
    assert all(
        group["momentum"] == 0.9 and group["nesterov"] and not group["dampening"] for group in found.param_groups
    )


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
    for name in decays(model):
        gradients[name] = gradients[name] + config.weight_decay * parameters[name].detach()
    gradients = {name: gradient.double() for name, gradient in gradients.items()}
    return gradients, loss.item(), (logits.argmax(1) == truth).sum().item()


def test_every_step_is_what_plain_formulas_give(tmp_path, monkeypatch):
    """Each from the weights that the one before left: small errors grow a thousandfold within few steps."""
    config = tiny_config(tmp_path / "run", augment="none", weight_decay=0.02)
    data, means, plain = tiny_data(), [], train._step

    def buffers(model, optimizer):
        found = {name: optimizer.state[p].get("momentum_buffer") for name, p in model.named_parameters()}
        return {name: torch.zeros(()) if one is None else one.double() for name, one in found.items()}

    def step(model, state, *args):
        number = state.step
        before = {name: value.clone() for name, value in model.state_dict().items()}
        velocity = buffers(model, state.optimizer)
        assert all(bool(one.any()) == (number > 0) for one in velocity.values())
        result = plain(model, state, *args)
        gradients, loss, correct = gradients_by_hand(before, config, data, number)
        done = (number + 1) / (STEPS + 1)
        rate = 0.05 * (done / 0.25 if done < 0.25 else (1 - done) / 0.75)
        after = buffers(model, state.optimizer)
        for name, parameter in model.named_parameters():
            expected = 0.9 * velocity[name] + gradients[name]
            scale = max(expected.abs().max().item(), 1e-2)  # some are zero but for rounding: batch norm follows
            close = {"atol": 1e-4, "rtol": 0, "msg": lambda words, name=name: f"{name} in step {number}: {words}"}
            torch.testing.assert_close(after[name] / scale, expected / scale, **close)
            gradient = after[name] - 0.9 * velocity[name]
            expected = before[name].double() - rate * (gradient + 0.9 * after[name])
            torch.testing.assert_close(parameter.double(), expected, atol=1e-7, rtol=1e-6)
        assert result[0].item() == pytest.approx(loss, rel=1e-6)
        assert result[1].item() == correct
        means.append((loss, correct / 20, rate))
        return result

    monkeypatch.setattr(train, "_step", step)
    run = quiet(config, data)
    assert len(means) == STEPS
    for epoch, row in enumerate(run.history):
        losses, right, rates = zip(*means[3 * epoch : 3 * epoch + 3], strict=True)
        assert row["train_loss"] == pytest.approx(math.fsum(losses) / 3, rel=1e-5)
        assert row["train_accuracy"] == pytest.approx(math.fsum(right) / 3, rel=1e-12)
        assert row["learning_rate"] == pytest.approx(rates[-1], rel=1e-12)


def test_a_model_starts_from_its_seed_and_the_statistics_of_the_data(tmp_path, monkeypatch):
    def stop(model, *_):
        first.update({name: value.clone() for name, value in model.state_dict().items()})
        raise MemoryError

    first, data = {}, tiny_data()
    monkeypatch.setattr(train, "_step", stop)
    with pytest.raises(MemoryError):
        quiet(tiny_config(tmp_path / "run", seed=4), data)
    torch.manual_seed(4)
    expected = create_model("vgg-att3-concat-pc", 10, width=1 / 32, mean=data.mean, std=data.std).state_dict()
    assert all(torch.equal(first[name], expected[name]) for name in expected)


def test_the_augmentation_of_the_settings_reaches_the_training(undisturbed):
    assert differences(undisturbed(), undisturbed(augment="none"))
    assert differences(undisturbed(augment="shift"), undisturbed(augment="none"))
    assert not differences(undisturbed(), undisturbed(augment="flip+shift"))


@pytest.mark.parametrize("dropout", [False, True])
def test_the_same_seed_gives_the_same_weights_bit_by_bit(undisturbed, tmp_path, dropout):
    torch.manual_seed(77)  # does not matter
    run = quiet(tiny_config(tmp_path / "again", dropout=dropout), tiny_data())
    assert differences(undisturbed(dropout=dropout), run.path) == []
    other = quiet(tiny_config(tmp_path / "other", dropout=dropout, seed=1), tiny_data())
    assert differences(run.path, other.path) != []
    assert dropout == bool(differences(undisturbed(), run.path))


def test_it_learns(tmp_path):
    data = load_data("shapes", train_limit=200, test_limit=50)
    run = quiet(tiny_config(tmp_path / "run", width=1 / 16, epochs=10, learning_rate=0.05, augment="none"), data)
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"] - 0.4
    assert run.history[-1]["train_accuracy"] > 0.3  # 0.1 by chance


def test_history_and_the_files_of_a_run(undisturbed):
    path, data = undisturbed(), tiny_data()
    assert names(path) == FILES
    run = load_run(path, "cpu")
    assert run.complete
    assert run.classes == data.classes
    assert json.loads((path / "config.json").read_text())["classes"] == list(data.classes)
    assert run.config.identity() == tiny_config(path).identity()
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert list(run.history[0]) == [*KEYS, "entropy_conv7", "entropy_conv10", "entropy_conv13"]
    with (path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items()} for row in rows] == run.history
    for row in run.history:
        assert 0 <= row["train_accuracy"] <= 1
        assert 0 <= row["test_accuracy"] <= 1
        assert row["seconds"] > 0
        assert all(math.isfinite(value) for value in row.values())


def test_the_last_test_results_are_those_of_the_weights_that_are_saved(undisturbed):
    run, data = load_run(undisturbed(dropout=True), "cpu"), tiny_data()
    assert not run.model.training
    found = evaluate(run.model, data.test, "fp32")
    last = run.history[-1]
    assert found["accuracy"] == last["test_accuracy"]
    assert found["loss"] == last["test_loss"]
    assert found["entropy_conv7"] == last["entropy_conv7"]


def test_every_epochs_results_are_those_of_the_weights_that_are_saved_then(tmp_path):
    data, found = tiny_data(), []

    def look(run):
        saved = load_run(run.path, "cpu")
        assert_same_weights(run.model, run.path)
        found.append((saved.history, evaluate(saved.model, data.test, "fp32")["loss"]))

    run = quiet(tiny_config(tmp_path / "run"), data, on_epoch=look)
    assert [loss for _, loss in found] == [row["test_loss"] for row in run.history]
    assert [history for history, _ in found] == [run.history[:1], run.history[:2], run.history]


def test_the_returned_run_is_the_one_on_the_disk(tmp_path):
    run = quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert run.complete
    assert run.path == tmp_path / "run"
    assert run.notes == []
    assert not any(module.training for module in run.model.modules())
    assert_same_weights(run.model, run.path)
    assert load_run(run.path, "cpu").history == run.history
    assert load_run(str(run.path)).config.run_dir == str(run.path)


def test_validation_takes_the_place_of_the_test(tmp_path):
    config = tiny_config(tmp_path / "run", validation=0.2, train_limit=60, test_limit=30)
    run = quiet(config)
    held = data_for(config)
    everything = tiny_data()

    def pictures(split):
        return {image.numpy().tobytes() for image in split.images}

    assert (len(held.train), len(held.test)) == (48, 12)
    assert pictures(held.test) | pictures(held.train) == pictures(everything.train)
    assert not pictures(held.test) & pictures(held.train)
    assert not pictures(held.test) & pictures(everything.test)
    assert evaluate(run.model, held.test, "fp32")["loss"] == run.history[-1]["test_loss"]


def test_without_data_the_settings_say_which(undisturbed, tmp_path):
    changes = {"train_limit": 60, "test_limit": 30}
    run = quiet(tiny_config(tmp_path / "run", **changes))
    assert differences(undisturbed(**changes), run.path) == []


# --- what happens around it


def test_the_callers_random_state_stays_as_it_was(tmp_path):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    quiet(tiny_config(tmp_path / "run", dropout=True), tiny_data())
    load_run(tmp_path / "run", "cpu")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


def test_only_the_generators_in_use_are_seeded(monkeypatch):
    """Those of other GPUs are the caller's."""
    calls = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: calls.append(device) or contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", calls.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs are seeded"))
    with torch.random.fork_rng(devices=[]):
        for device, expected in (("cpu", []), ("cuda:1", [torch.device("cuda:1"), 5])):
            train._seed(5, torch.device(device))
            assert calls == expected
            assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_the_callback_sees_every_epoch_and_cannot_disturb(undisturbed, tmp_path):
    seen = []

    def callback(run):
        seen.append((len(run.history), run.model.training, run.complete))
        torch.manual_seed(3)
        torch.rand(7)
        run.model(tiny_data().train.images[:5].float())  # in training mode, batch norms would take this in

    run = quiet(tiny_config(tmp_path / "run", dropout=True), tiny_data(), on_epoch=callback)
    assert seen == [(1, False, False), (2, False, False), (3, False, True)]
    assert differences(undisturbed(dropout=True), run.path) == []
    seen.clear()
    quiet(tiny_config(tmp_path / "run", dropout=True), tiny_data(), on_epoch=callback)
    assert seen == [(3, False, True)]


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_signal_handlers_are_the_callers_again(tmp_path, monkeypatch):
    before = handlers()
    inside = []
    quiet(tiny_config(tmp_path / "a"), tiny_data(), on_epoch=lambda run: inside.append(handlers()))
    assert handlers() == before
    assert inside[0] != before
    disturb(monkeypatch, "_step", kill_self(signal.SIGINT, [2]))
    with pytest.raises(KeyboardInterrupt):
        quiet(tiny_config(tmp_path / "b"), tiny_data())
    assert handlers() == before


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
    assert re.search(r"3 epochs on cpu \(\d+ cores\) in float32: about \d+ seconds to go\n", out)
    assert re.search(r"epoch 3/3 .*100 % 00:00 left, loss \d\.\d{3}, accuracy \d+\.\d%, test \d+\.\d%", out)
    assert re.search(r"epoch 3/3 .*100 % 00:00 left, test \d+\.\d%", out)
    fit(tiny_config(tmp_path / "run"), data)
    out, err = capfd.readouterr()
    assert "is complete: nothing to train" in out
    assert err == ""


def test_without_progress_nothing_is_printed(tmp_path, capfd, monkeypatch, disk):
    disk.full_for = "step-"
    disturb(monkeypatch, "_step", kill_self(signal.SIGINT, [5]))
    data = replace(tiny_data(), notes=("two of a kind",))
    with pytest.raises(KeyboardInterrupt):
        quiet(tiny_config(tmp_path / "run"), data)
    disk.full_for = None
    run = quiet(tiny_config(tmp_path / "run"), data)
    quiet(tiny_config(tmp_path / "run"), data)
    load_run(tmp_path / "run", "cpu")
    assert run.complete
    assert capfd.readouterr() == ("", "")


class Clock(SimpleNamespace):
    """Time that passes while a step is computed, and at no other moment."""

    def __init__(self, monkeypatch, seconds):
        super().__init__(now=1000.0)
        self.monotonic = lambda: self.now
        monkeypatch.setattr(train, "time", self)

        def tick(step):
            self.now += 10 * seconds if step == 1 else seconds  # the first one is slow

        disturb(monkeypatch, "_step", tick)


def test_after_some_steps_it_is_said_how_long_the_run_will_take(tmp_path, monkeypatch, capfd):
    Clock(monkeypatch, 600)
    fit(tiny_config(tmp_path / "run"), tiny_data())
    # 3 steps of ten minutes, and tests on half as many images as are trained on, at a third of the cost
    assert "about 35 minutes to go" in capfd.readouterr().out


def test_the_seconds_of_an_epoch_are_counted_over_interruptions(tmp_path, monkeypatch):
    Clock(monkeypatch, 60)
    disturb(monkeypatch, "_step", kill_self(signal.SIGINT, [4, 5]))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quiet(tiny_config(tmp_path / "run"), tiny_data())
    run = quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert [row["seconds"] for row in run.history] == [720, 180, 180]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 seconds"), (89, "89 seconds"), (600, "10 minutes"), (7200, "2.0 hours")]
)
def test_durations(seconds, words):
    assert train._duration(seconds) == words


# --- interruptions


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("steps", [[1], [3], [4, 5], [8], [9], list(range(1, 10))])
def test_an_interrupted_run_is_the_same_bit_by_bit(undisturbed, tmp_path, monkeypatch, steps, dropout):
    """In the middle of an epoch, in its last step, in the first and the last of all, twice in one epoch, in all."""
    changes = {"dropout": dropout, "snapshots": 2}
    config = tiny_config(tmp_path / "run", **changes)
    calls = disturb(monkeypatch, "_step", kill_self(signal.SIGINT, steps))
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
    disturb(monkeypatch, "_step", kill_self(signal.SIGTERM, [5]))
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should `fit` not catch it, the tests go on
    try:
        with pytest.raises(SystemExit) as caught:
            fit(config, tiny_data())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    out, err = capfd.readouterr()
    assert "interrupted after step 5; saved: call fit again to go on" in out
    fit(config, tiny_data())
    out, more = capfd.readouterr()
    assert f"going on with {config.path} after 1 of 3 epochs (step 5)" in out
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
        quiet(config, tiny_data(), on_epoch=stop)
    assert len(load_run(config.path, "cpu").history) == 2
    quiet(config, tiny_data())
    assert differences(undisturbed(dropout=True), config.path) == []


@pytest.mark.parametrize(("minutes", "again"), [(5.0, [4, 5, 6]), (0.0, [5, 6])])
def test_after_a_crash_it_goes_on_from_the_last_checkpoint(undisturbed, tmp_path, monkeypatch, minutes, again):
    def crash_at(call):
        if call == 5:
            raise MemoryError

    monkeypatch.setattr(train, "SAVE_MINUTES", minutes)
    config = tiny_config(tmp_path / "run", dropout=True, epochs=2)
    calls = disturb(monkeypatch, "_step", crash_at)
    with pytest.raises(MemoryError):
        quiet(config, tiny_data())
    assert len(calls) == 5
    quiet(config, tiny_data())
    assert len(calls) - 5 == len(again)
    assert differences(undisturbed(dropout=True, epochs=2), config.path) == []


@pytest.mark.parametrize("kind", [torch.cuda.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize(("call", "kept"), [(1, "Nothing of this run was saved yet"), (5, "stays in ")])
def test_out_of_memory_names_the_batch_and_half_of_it_and_keeps_the_run(
    undisturbed, tmp_path, monkeypatch, kind, call, kept
):
    def no_room(number):
        if number == call:
            raise kind("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes")

    config = tiny_config(tmp_path / "run", dropout=True, epochs=2)
    disturb(monkeypatch, "train_step", no_room)
    size = config.batch_size
    with pytest.raises(OutOfMemory, match=f"batch_size={size} .* try batch_size={size // 2} .*{kept}") as raised:
        quiet(config, tiny_data())
    assert raised.value.__context__ is None
    quiet(config, tiny_data())
    assert differences(undisturbed(dropout=True, epochs=2), config.path) == []


def test_other_errors_of_a_step_pass(tmp_path, monkeypatch):
    def fail(number):
        raise RuntimeError("shapes do not match")

    disturb(monkeypatch, "train_step", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        quiet(tiny_config(tmp_path / "run"), tiny_data())


def test_a_long_epoch_is_saved_in_between(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_MINUTES", 0.0)
    calls = disturb(monkeypatch, "save_checkpoint", module=state)
    run = quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert len(calls) == STEPS  # after every step; after the last one of an epoch once, with its results
    assert differences(undisturbed(), run.path) == []


def test_bf16_is_interrupted_and_resumed_alike(undisturbed, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", precision="bf16", dropout=True)
    disturb(monkeypatch, "_step", kill_self(signal.SIGINT, [5]))
    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data())
    quiet(config, tiny_data())
    assert differences(undisturbed(precision="bf16", dropout=True), config.path) == []
    assert differences(undisturbed(dropout=True), config.path) != []


@pytest.mark.parametrize("damaged", ["newest", "both"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(undisturbed, tmp_path, monkeypatch, damaged, capfd):
    config = tiny_config(tmp_path / "run", dropout=True)
    calls = disturb(monkeypatch, "_step", kill_self(signal.SIGINT, [5]))
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
    disturb(monkeypatch, "_step", kill_self(signal.SIGINT, [5]))
    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data())
    for folder in (config.path, config.path / "checkpoints", config.path / "snapshots"):
        (folder / ".part-0123456789abcdef").write_bytes(b"half")
    quiet(config, tiny_data())
    assert differences(undisturbed(snapshots=2), config.path) == []


def run_crash(kills, seed):
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "tests.tools.crash", "--kills", str(kills), "--seed", str(seed)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


@needs_fork
def test_killed_five_times():
    result = run_crash(5, seed=1)
    assert result.returncode == 0, result.stderr
    assert "5 kills" in result.stdout
    assert "bit by bit" in result.stdout


@needs_fork
@pytest.mark.slow
def test_killed_twenty_five_times():
    result = run_crash(25, seed=2)
    assert result.returncode == 0, result.stderr
    assert "25 kills" in result.stdout
    for where in ("a step", "writing", "renaming", "after renaming", "at an epoch's end", "once more in an epoch"):
        assert int(re.search(rf"[(,] ?{where} (\d+)", result.stdout)[1]) >= 2, result.stdout


@needs_fork
def test_a_second_process_waits_until_the_first_one_ends(undisturbed, tmp_path, capfd):
    import fcntl

    config = tiny_config(tmp_path / "run")
    config.path.mkdir()
    first = os.open(config.path, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    thread = threading.Thread(target=fit, args=(config, tiny_data()))
    thread.start()
    try:
        thread.join(0.3)
        assert thread.is_alive()
        assert names(config.path) == []
    finally:
        os.close(first)
        thread.join()
    assert "another process is training in" in capfd.readouterr().out
    assert differences(undisturbed(), config.path) == []


def test_it_trains_where_folders_cannot_be_locked(undisturbed, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    fcntl = SimpleNamespace(flock=unsupported, LOCK_EX=2, LOCK_NB=4)
    for number, module in enumerate((fcntl, None)):
        monkeypatch.setattr(runs, "fcntl", module)
        run = quiet(tiny_config(tmp_path / f"run-{number}"), tiny_data())
        assert differences(undisturbed(), run.path) == []


# --- folders that cannot be written


def test_a_full_disk_for_a_while_is_noted_and_training_goes_on(undisturbed, tmp_path, disk, capfd):
    config = tiny_config(tmp_path / "run")

    def callback(run):
        disk.full_for = "" if len(run.history) == 1 else None
        if len(run.history) == 2:
            assert len(load_run(run.path, "cpu").history) == 1  # the older one stays

    run = fit(config, tiny_data(), on_epoch=callback)
    out, err = capfd.readouterr()
    assert err == ""
    assert len(run.notes) == 1
    assert f"note: {run.notes[0]}" in out
    assert re.search(rf"step 6 is not saved.* into {re.escape(str(config.path))}: No space left", run.notes[0])
    assert differences(undisturbed(), config.path) == []


def test_checkpoints_that_cannot_be_written_do_not_stop_a_run(undisturbed, tmp_path, disk, monkeypatch):
    disk.full_for = "step-"
    monkeypatch.setattr(train, "SAVE_MINUTES", 0.0)
    run = quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert len(run.notes) == STEPS
    assert all(str(run.path / "checkpoints") in words for words in run.notes)
    assert differences(undisturbed(), run.path) == []


def test_final_weights_that_cannot_be_written_go_elsewhere(undisturbed, tmp_path, disk, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    config = tiny_config(tmp_path / "run")

    def callback(run):
        disk.full_for = ""
        if len(run.history) == 2:
            monkeypatch.setattr(runs, "save_tensors", elsewhere_only)

    plain = runs.save_tensors

    def elsewhere_only(path, *args):
        if elsewhere in path.parents:
            disk.full_for = None
        plain(path, *args)

    with pytest.raises(OSError, match="the trained weights are in") as caught:
        quiet(config, tiny_data(), on_epoch=callback)
    assert caught.value.errno == errno.ENOSPC
    assert str(config.path) in str(caught.value)
    place = Path(re.search(r"are in (\S+)", str(caught.value))[1])
    assert place.name == "weights.safetensors"
    assert elsewhere in place.parents
    found, expected = load_tensors(place)[0], load_tensors(undisturbed() / "weights.safetensors")[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(load_run(config.path, "cpu").history) == 1
    disk.full_for = None
    quiet(config, tiny_data())
    assert differences(undisturbed(), config.path) == []


def test_when_nothing_can_be_written_anywhere_that_is_said(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def callback(run):
        disk.full_for = ""

    with pytest.raises(OSError, match="nor can the trained weights be kept elsewhere") as caught:
        quiet(tiny_config(tmp_path / "run", epochs=2), tiny_data(), on_epoch=callback)
    assert caught.value.errno == errno.ENOSPC
    assert len(load_run(tmp_path / "run", "cpu").history) == 1


def test_weights_that_only_the_checkpoint_holds_are_written_by_the_next_call(undisturbed, tmp_path, disk):
    config = tiny_config(tmp_path / "run")

    def stop(run):
        if run.complete:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data(), on_epoch=stop)
    (config.path / "weights.safetensors").unlink()
    disk.full_for = "weights"
    with pytest.raises(OSError, match="No space left"):
        quiet(config, tiny_data())
    disk.full_for = None
    quiet(config, tiny_data())
    assert differences(undisturbed(), config.path) == []


def test_an_interrupt_on_a_full_disk_does_not_say_saved(tmp_path, disk, monkeypatch, capfd):
    disk.full_for = "step-"
    disturb(monkeypatch, "_step", kill_self(signal.SIGINT, [2]))
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

    def callback(run):
        held[:] = [run]
        shutil.rmtree(config.path, ignore_errors=True)

    with pytest.raises(FileNotFoundError, match="the trained weights are in"):
        quiet(config, tiny_data(), on_epoch=callback)
    assert not config.path.exists()
    assert len(held[0].notes) == 2
    (place,) = (tmp_path / "elsewhere").glob("*/weights.safetensors")
    found, expected = load_tensors(place)[0], load_tensors(undisturbed() / "weights.safetensors")[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_that_cannot_be_written_at_the_start_is_an_error_at_once(tmp_path, disk, monkeypatch):
    config = tiny_config(tmp_path / "run")
    calls = disturb(monkeypatch, "_step")
    disk.full_for = "config"
    with pytest.raises(OSError, match=re.escape(f"into {config.path}: No space left")):
        quiet(config, tiny_data())
    assert names(config.path) == []
    disk.full_for = None
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        quiet(tiny_config(tmp_path / "file" / "run"), tiny_data())
    assert not calls


# --- losses that are not finite


def spoil(monkeypatch, step):
    """From this step on, the pictures are not numbers."""
    plain, calls = feed.augmented_batch, []

    def spoilt(*args):
        calls.append(args)
        return plain(*args) if len(calls) < step else plain(*args).float() * math.nan

    monkeypatch.setattr(feed, "augmented_batch", spoilt)


@pytest.mark.parametrize("step", [4, 5, 6])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(
    undisturbed, tmp_path, monkeypatch, step
):
    config = tiny_config(tmp_path / "run")
    good = {}

    def keep(run):
        good.update({name: value.clone() for name, value in run.model.state_dict().items()})

    before = handlers()
    with monkeypatch.context() as patch:
        spoil(patch, step)
        patch.setattr(train, "SAVE_MINUTES", 0.0 if step == 5 else 5.0)
        with pytest.raises(TrainingDiverged, match=rf"not finite after step [56]; .*epoch 1 .*{config.path}.*rate"):
            quiet(config, tiny_data(), on_epoch=keep)
    assert handlers() == before
    run = load_run(config.path, "cpu")
    assert len(run.history) == 1
    assert_same_weights(run.model, config.path)
    assert all(torch.equal(good[name], value) for name, value in run.model.state_dict().items())
    quiet(config, tiny_data())  # without the spoilt pictures
    assert differences(undisturbed(), config.path) == []


def test_a_long_epoch_does_not_end_before_that_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKED_STEPS", 2)
    spoil(monkeypatch, 1)
    with pytest.raises(TrainingDiverged, match="not finite after step 2; nothing was saved"):
        quiet(tiny_config(tmp_path / "run"), tiny_data())


def test_weights_that_are_not_finite_are_not_saved_even_if_the_loss_was(tmp_path, monkeypatch):
    def explode(step):
        if step == 2 * PER_EPOCH:  # the last step of an epoch: no loss of the epoch will show it
            with torch.no_grad():
                model[0].head.classifiers[0].bias[3] = math.inf

    model = []
    disturb(monkeypatch, "_step", after=explode)
    with pytest.raises(TrainingDiverged, match="the loss or a weight is not finite after step 6"):
        quiet(tiny_config(tmp_path / "run"), tiny_data(), on_epoch=lambda run: model.append(run.model))
    assert len(load_run(tmp_path / "run", "cpu").history) == 1


def test_a_loss_that_is_not_finite_is_seen_even_if_its_step_was_skipped(tmp_path, monkeypatch):
    """As the scaling of fp16 does: the weights stay good, but nothing is learnt any more."""
    plain = train._step

    def step(model, state, *args):
        loss, correct = plain(model, state, *args)
        return loss * (math.inf if state.step == 4 else 1), correct

    monkeypatch.setattr(train, "_step", step)
    with pytest.raises(TrainingDiverged, match="the loss is not finite after step 6"):
        quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert len(load_run(tmp_path / "run", "cpu").history) == 1


def test_an_absurd_learning_rate_in_the_first_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "one_cycle", lambda done, peak: 1e30)
    with pytest.raises(TrainingDiverged, match="nothing was saved"):
        quiet(tiny_config(tmp_path / "run"), tiny_data())
    assert names(tmp_path / "run" / "checkpoints") == []
    with pytest.raises(FileNotFoundError):
        load_run(tmp_path / "run")


# --- the folder of a run


def test_a_complete_run_is_returned_at_once(finished, monkeypatch):
    before = {name: (finished.path / name).read_bytes() for name in FILES}
    monkeypatch.setattr(train, "_step", lambda *_: pytest.fail("trained"))
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
        {"epochs": 4},
        {"learning_rate": 0.1, "seed": 3},
        {"model": "vgg", "dropout": True, "augment": "none"},
        {"batch_size": 10, "label_smoothing": 0.0, "weight_decay": 0.0},
        {"validation": 0.1, "train_limit": 50, "snapshots": 1, "normalizer": "sigmoid"},
    ],
)
def test_other_settings_in_the_same_folder_are_refused(finished, changes):
    with pytest.raises(ValueError, match="belongs to other settings") as caught:
        quiet(replace(finished, **changes), tiny_data())
    words = str(caught.value)
    listed = re.findall(r"^  (\w+): (.*) there, (.*) now$", words, re.MULTILINE)
    assert {name for name, _, _ in listed} == changes.keys()
    for name, there, now in listed:
        assert (there, now) == (repr(getattr(finished, name)), repr(changes[name]))
    assert str(finished.path) in words
    assert f"choose another run_dir, for example {finished.path}-2" in words


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
    config = tiny_config(tmp_path / name, epochs=2, model="vgg", snapshots=1)
    disturb(monkeypatch, "_step", kill_self(signal.SIGINT, [2]))
    with pytest.raises(KeyboardInterrupt):
        fit(config, tiny_data())
    assert fit(config, tiny_data()).complete
    assert len(load_run(config.path, "cpu").snapshots()) == 3


def test_a_relative_folder_and_the_one_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(tiny_config(tmp_path), run_dir=None, epochs=1, model="vgg")
    run = quiet(config, tiny_data())
    assert run.path.parent == Path("runs")
    assert load_run(run.path, "cpu").history == run.history


def test_settings_can_be_read_back_with_where_the_data_were(tmp_path):
    config = tiny_config(tmp_path / "run", model="vgg", epochs=1, data_dir="/my/photos", snapshots=2, seed=9)
    quiet(config, tiny_data())
    found = load_run(config.path, "cpu").config
    assert found.identity() == config.identity()
    assert found.data_dir == "/my/photos"
    assert found.path == config.path


def test_a_setting_that_is_newer_than_the_run_has_its_default_there(finished):
    path = finished.path / "config.json"
    settings = json.loads(path.read_text())
    del settings["snapshots"]
    path.write_text(json.dumps(settings))
    assert quiet(finished, tiny_data()).complete
    with pytest.raises(ValueError, match="snapshots: 0 there, 2 now"):
        quiet(replace(finished, snapshots=2), tiny_data())


def edit(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes})


CONFIG_DAMAGES = {
    "empty": lambda text: "",
    "cut": lambda text: text[:-20],
    "a list": lambda text: "[1, 2]",
    "null": lambda text: "null",
    "no classes": lambda text: json.dumps({"model": "vgg"}),
    "classes of numbers": edit(classes=[1, 2]),
    "one class": edit(classes=["a"]),
    "classes are a word": edit(classes="abc"),
}


@pytest.mark.parametrize("damage", CONFIG_DAMAGES)
def test_a_damaged_config_is_named(finished, damage):
    path = finished.path / "config.json"
    path.write_text(CONFIG_DAMAGES[damage](path.read_text()))
    for call in (lambda: load_run(finished.path), lambda: quiet(finished, tiny_data())):
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
            call()


def test_a_config_that_is_not_text_is_damaged(finished):
    (finished.path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_run(finished.path)


CONFIG_EDITS = [
    {"model": "vgg-att4"},
    {"model": "vgg"},
    {"width": "big"},
    {"width": -1},
    {"width": 1 / 16},
    {"width": None},
    {"epochs": []},
    {"classes": ["a", "b"]},
    {"color": "red"},
]


@pytest.mark.parametrize("changes", CONFIG_EDITS)
def test_a_config_edited_by_hand_is_named(finished, changes):
    path = finished.path / "config.json"
    path.write_text(edit(**changes)(path.read_text()))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_run(finished.path)
    if changes.keys() != {"color"}:
        with pytest.raises(ValueError, match="other settings"):
            quiet(finished, tiny_data())


HISTORY_DAMAGES = {
    "empty": lambda text: "",
    "only a header": lambda text: text.splitlines()[0] + "\n",
    "cut in a number": lambda text: text[:-3],
    "cut in a row": lambda text: text[:-60] + "\n",
    "words": lambda text: text.replace("0.", "x.", 1),
    "more columns": lambda text: text.replace("\n", ",5\n").replace(",5", "", 1),
    "a missing row": lambda text: "\n".join(text.splitlines()[:2] + text.splitlines()[3:]) + "\n",
    "other columns": lambda text: "a,b\n1,2\n",
    "binary": lambda text: "\0\0\0",
}


@pytest.mark.parametrize("damage", HISTORY_DAMAGES)
def test_a_damaged_history_is_named(finished, damage):
    path = finished.path / "history.csv"
    path.write_text(HISTORY_DAMAGES[damage](path.read_text()))
    for call in (lambda: load_run(finished.path), lambda: quiet(finished, tiny_data())):
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
            call()


def test_a_history_that_lost_an_epoch_is_trained_anew_and_that_is_said(undisturbed, finished):
    path = finished.path / "history.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    run = quiet(finished, tiny_data())
    assert len(run.notes) == 1
    assert "trained from the start" in run.notes[0]
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
    shutil.copy(undisturbed(model="vgg") / "weights.safetensors", path)
    for call in (lambda: load_run(finished.path), lambda: quiet(finished, tiny_data())):
        with pytest.raises(ValueError, match=re.escape(f"{path} does not fit the model")):
            call()


@pytest.mark.parametrize("missing", [["config.json"], ["history.csv"], ["weights.safetensors"], FILES[1:], FILES])
def test_what_is_missing_of_a_run_is_named(finished, missing):
    for name in missing:
        (finished.path / name).unlink()
    with pytest.raises(FileNotFoundError, match="incomplete") as caught:
        load_run(finished.path)
    assert [name for name in FILES if name in str(caught.value)] == missing
    assert str(finished.path) in str(caught.value)


def test_there_is_no_such_run(tmp_path):
    for path in (tmp_path / "none", "~nobody-of-this-name/run"):
        with pytest.raises(FileNotFoundError, match="there is no run folder"):
            load_run(path)
    with pytest.raises(ValueError, match="device="):
        fit_and_load_on(tmp_path / "run", "gpu")


def fit_and_load_on(path, device):
    quiet(tiny_config(path, model="vgg", epochs=1), tiny_data())
    return load_run(path, device)


# --- maps kept after every epoch


def test_snapshots_are_the_maps_of_the_same_images_after_every_epoch(undisturbed):
    path, data = undisturbed(snapshots=2), tiny_data()
    assert names(path) == sorted([*FILES, "snapshots"])
    run = load_run(path, "cpu")
    found = run.snapshots()
    assert list(found) == [0, 1, 2, 3]
    watched = data.test.images[snapshot_indices(data, 2)]
    for maps in found.values():
        assert {level: tuple(one.shape) for level, one in maps.items()} == {
            "conv7": (2, 32, 32),
            "conv10": (2, 16, 16),
            "conv13": (2, 8, 8),
        }
    now = attend(run.model, watched, "fp32").maps
    torch.manual_seed(0)
    fresh = create_model("vgg-att3-concat-pc", 10, width=1 / 32, dropout=False, mean=data.mean, std=data.std)
    before = attend(fresh.to(memory_format=torch.channels_last), watched, "fp32").maps
    for level in now:
        assert torch.equal(found[3][level], now[level])
        assert torch.equal(found[0][level], before[level])
        assert not torch.equal(found[2][level], found[3][level])


def test_snapshots_do_not_change_the_training(undisturbed):
    found = differences(undisturbed(), undisturbed(snapshots=2))
    assert len(found) == 1
    assert found[0].startswith("files: ")


def test_snapshots_of_few_images_and_of_a_model_without_attention(tmp_path):
    run = quiet(tiny_config(tmp_path / "many", snapshots=200, epochs=1), tiny_data())
    assert run.snapshots()[1]["conv13"].shape == (30, 8, 8)
    run = quiet(tiny_config(tmp_path / "none", snapshots=2, epochs=1, model="vgg"), tiny_data())
    assert run.snapshots() == {0: {}, 1: {}}
    assert quiet(tiny_config(tmp_path / "without", epochs=1), tiny_data()).snapshots() == {}


# --- data and settings at their limits


def part(train_count, test_count=30):
    data = tiny_data()
    return replace(data, train=data.train[:train_count], test=data.test[:test_count])


@pytest.mark.parametrize(
    ("counts", "changes"),
    [
        ((2, 30), {}),
        ((2, 30), {"batch_size": 2}),
        ((3, 30), {"batch_size": 2}),
        ((5, 1), {"batch_size": 2}),
        ((60, 1), {"batch_size": 512}),
        ((10, 30), {"width": 1e-6}),
        ((10, 30), {"width": 1e-6, "model": "vgg"}),
        ((10, 30), {"width": 1e-6, "model": "vgg-att2-concat-add", "normalizer": "sigmoid"}),
        ((10, 30), {"model": "vgg-late", "dropout": True}),
        ((10, 30), {"weight_decay": 0, "label_smoothing": 0, "learning_rate": 1}),
        (None, {"image_size": 40, "snapshots": 1, "train_limit": 8, "test_limit": 3}),
    ],
)
def test_the_smallest_trainings(tmp_path, counts, changes):
    config = tiny_config(tmp_path / "run", **{"epochs": 2, **changes})
    run = quiet(config, part(*counts) if counts else None)
    assert len(run.history) == 2
    assert all(math.isfinite(row["train_loss"]) for row in run.history)
    assert 0 <= run.history[-1]["test_accuracy"] <= 1
    assert load_run(run.path, "cpu").history == run.history


def with_train(images=lambda images: images, labels=lambda labels: labels):
    data = tiny_data()
    return replace(data, train=Split(images(data.train.images), labels(data.train.labels)))


def with_test_labels(labels):
    data = tiny_data()
    return replace(data, test=Split(data.test.images, labels(data.test.labels)))


BAD_DATA = {
    "no test": (lambda: part(60, 0), ValueError, "60 training and 0 test images"),
    "one image": (lambda: part(1), ValueError, "1 training"),
    "one class": (lambda: replace(tiny_data(), classes=("a",)), ValueError, "names of at least two classes"),
    "numbers": (lambda: replace(tiny_data(), classes=tuple(range(10))), ValueError, "names of at least two classes"),
    "label 10": (lambda: with_train(labels=lambda x: x + 1), ValueError, r"6 training labels lie outside 0 \.\.\. 9"),
    "label -1": (lambda: with_test_labels(lambda x: x - 1), ValueError, "2 test labels lie outside"),
    "two objects": (lambda: with_train(labels=lambda x: x[:, None].repeat(1, 2)), ValueError, "one label an image"),
    "two test objects": (lambda: with_test_labels(lambda x: x[:, None].repeat(1, 2)), ValueError, "30 of int64"),
    "fewer labels": (lambda: with_train(labels=lambda x: x[:-1]), ValueError, "labels must be 60 of int64"),
    "int32": (lambda: with_train(labels=lambda x: x.int()), ValueError, "labels must be 60 of int64"),
    "float labels": (lambda: with_train(labels=lambda x: x.float()), ValueError, "labels must be 60 of int64"),
    "float64": (lambda: with_train(lambda x: x.double() / 255), TypeError, "must be uint8"),
    "gray": (lambda: with_train(lambda x: x[:, :1]), ValueError, r"\(N, 3, H, W\)"),
    "channels last": (lambda: with_train(lambda x: x.permute(0, 2, 3, 1)), ValueError, r"\(N, 3, H, W\)"),
    "small": (lambda: with_train(lambda x: x[..., :16, :16]), ValueError, "at least 32x32"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_data_that_cannot_be_trained_on_are_refused_before_a_folder_is_made(tmp_path, what):
    data, error, words = BAD_DATA[what]
    with pytest.raises(error, match=words):
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
    with pytest.raises(ValueError, match="needs a GPU"):
        quiet(tiny_config(tmp_path / "run", precision="fp16"), tiny_data())
    assert not (tmp_path / "run").exists()


def start_of(folder, dtype):
    folder.mkdir(exist_ok=True)
    config = tiny_config(folder)
    run = train.Run(config, ("a", "b"), create_model("vgg", 2, width=1 / 32), folder)
    return train.State.start(run, dtype, torch.device("cpu"))


def test_losses_are_scaled_for_fp16_alone_and_the_scale_is_saved(tmp_path):
    assert not start_of(tmp_path, torch.float32).scaler.is_enabled()
    assert not start_of(tmp_path, torch.bfloat16).scaler.is_enabled()
    state = start_of(tmp_path / "run", torch.float16)
    assert state.scaler.is_enabled()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    state.scaler.scale(torch.zeros(1))
    state.step = 4
    (tmp_path / "run" / "checkpoints").mkdir()
    state.save(state.sums)
    again = start_of(tmp_path / "run", torch.float16)
    assert again.restore(lambda words: None, pytest.fail)
    assert again.step == 4
    assert again.scaler.get_scale() == 128.0
    exact = start_of(tmp_path / "run", torch.float32)  # the precision may change between two calls
    assert exact.restore(lambda words: None, pytest.fail)
    assert exact.scaler.get_scale() == 1.0


def test_the_harness_sees_differences(undisturbed, finished):
    assert differences(undisturbed(), finished.path) == []
    path = finished.path / "history.csv"
    text = path.read_text()
    path.write_text(text.replace("\n2,", "\n2,1", 1))
    assert differences(undisturbed(), finished.path)[0].startswith("history")
    weights, facts = load_tensors(finished.path / "weights.safetensors")
    bias = weights["head.classifiers.0.bias"]
    bias[0] = np.nextafter(np.float32(bias[0].item()), np.float32(9)).item()
    runs.save_tensors(finished.path / "weights.safetensors", weights, facts)
    assert differences(undisturbed(), finished.path)[0] == "head.classifiers.0.bias in weights.safetensors"
