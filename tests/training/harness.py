"""Ways to disturb a training and to look at what comes of it."""

import errno
import functools
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

import torch

from ltpa import Split, TrainConfig, fit
from ltpa.training import trainer
from ltpa.training.checkpoint import load_tensors
from ltpa.training.run import claim_folder, new_run, save_epoch
from tests.tools.crash import PER_EPOCH, tiny_data

STEPS = 3 * PER_EPOCH  # of tiny_config on tiny_data
FILES = ["config.json", "history.csv", "weights.safetensors"]
quiet = functools.partial(fit, progress=False)


def names(folder):
    """The files of a run, but its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def assert_same_weights(model, folder):
    expected, _ = load_tensors(folder / "weights.safetensors")
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def write_run(path, **options):
    """The folder of a run of one epoch that was never trained; each is newer than those before it."""
    config = TrainConfig(**{"dataset": "shapes", "width": 1 / 32, "epochs": 1, "run_dir": path} | options)
    config.path.mkdir(parents=True)
    claim_folder(config, tiny_data(), resume=True)
    made = new_run(config, tiny_data(), torch.device("cpu"), [])
    entropies = {"entropy_conv7": 0.5} if "att" in config.model else {}
    made.history.append({"epoch": 1, "train_loss": 2.3, "test_accuracy": 0.125, "seconds": 1.0, **entropies})
    save_epoch(made)
    moment = next(_moments)
    os.utime(config.path / "weights.safetensors", (moment, moment))
    return config.path


_moments = itertools.count(1_700_000_000)


def disturb(monkeypatch, name, before=None, after=None, module=trainer):
    """Call `before` or `after` with the number of the call (from 1) whenever `module.<name>` is called."""
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
    """A disk that can be full, for files whose names match `full_for`."""

    def __init__(self, monkeypatch):
        self.full_for = None
        plain = os.replace

        def replace_unless_full(source, target):
            if self.full_for is not None and re.match(self.full_for, Path(target).name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            plain(source, target)

        monkeypatch.setattr(os, "replace", replace_unless_full)


def part(train_count, test_count=30):
    data = tiny_data()
    return replace(data, train=data.train[:train_count], test=data.test[:test_count])


def with_train(images=lambda images: images, labels=lambda labels: labels):
    data = tiny_data()
    return replace(data, train=Split(images(data.train.images), labels(data.train.labels)))


def with_test_labels(labels):
    data = tiny_data()
    return replace(data, test=Split(data.test.images, labels(data.test.labels)))
