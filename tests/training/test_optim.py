"""Optimizer, schedules and the order of the samples, against plain formulas."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from ltpa import create_model
from ltpa.training.loader import epoch_batches, steps_per_epoch
from ltpa.training.optim import Clock, Steps, make_optimizer, one_cycle


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 400])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(steps):
    rates = [one_cycle(Steps(steps).done(step), 0.2) for step in range(steps)]
    expected = np.interp(np.arange(1, steps + 1), [0, (steps + 1) / 4, steps + 1], [0, 0.2, 0])
    assert rates == pytest.approx(expected.tolist(), rel=1e-12)
    assert 0 < min(rates) <= max(rates) <= 0.2


def test_a_clock_knows_when_there_is_time_for_a_test(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(100.0, 20.0)
    clock.test_seconds = 10.0
    assert (clock.elapsed(), clock.has_time_for_a_test(), clock.ended(0)) == (20.0, True, False)
    assert clock.done(0) == pytest.approx(20 / 90)
    now[0] = 56.0
    assert (clock.has_time_for_a_test(), clock.ended(5)) == (False, False), "no test any more, and time to train"
    now[0] = 71.0
    assert clock.ended(5)
    clock.test_seconds = 4.0
    assert not clock.ended(5)
    now[0] = 77.0
    assert clock.ended(5)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(60, 20, {20}), (50_000, 512, {510, 511}), (2, 512, {2}), (3, 2, {3})]
)
def test_batches_are_a_permutation_in_nearly_equal_parts(count, batch_size, sizes):
    batches = epoch_batches(count, batch_size, 0, 0)
    assert {len(batch) for batch in batches} == sizes
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(count))
    assert len(batches) == steps_per_epoch(count, batch_size)


@pytest.mark.parametrize("batch_size", [2, 3, 20])
def test_no_batch_is_a_single_image_and_sizes_differ_by_one(batch_size):
    for count in range(2, 70):
        sizes = [len(batch) for batch in epoch_batches(count, batch_size, 0, 0)]
        assert 2 <= min(sizes) <= max(sizes) <= max(batch_size, 3)
        assert max(sizes) - min(sizes) <= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    orders = {
        (seed, epoch): tuple(torch.cat(epoch_batches(60, 20, seed, epoch)).tolist())
        for seed in range(4)
        for epoch in range(4)
    }
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert tuple(torch.cat(epoch_batches(60, 20, 0, 0)).tolist()) == orders[0, 0] != tuple(range(60))
    assert len(set(orders.values())) == 16


@pytest.mark.parametrize("name", ["vgg", "vgg-att3-concat-add", "vgg-pan", "resnet164-att2-concat-dp"])
def test_only_weights_of_convolutions_and_linear_layers_decay(name):
    model = create_model(name, 10, width=1 / 32, normalizer="sigmoid")
    decaying, free = make_optimizer(model, learning_rate=0.5, weight_decay=0.125).param_groups
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    weights = {f"{key}.weight" for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {names[id(p)] for p in decaying["params"]} == weights
    assert {names[id(p)] for p in free["params"]} == set(names.values()) - weights
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.125, 0.0)
    assert all(group["momentum"] == 0.9 and group["nesterov"] for group in (decaying, free))
