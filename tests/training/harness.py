"""Ways to disturb a training and to look at what comes of it."""

import errno
import functools
import os
import re
from dataclasses import replace
from pathlib import Path

import torch

from ltpa import Split, fit
from ltpa.training import trainer
from ltpa.training.checkpoint import load_tensors
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
