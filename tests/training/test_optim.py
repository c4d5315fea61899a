"""Optimizer, schedules and the order of the samples, against plain formulas."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from ltpa import create_model
from ltpa.training.loader import epoch_batches, steps_per_epoch
from ltpa.training.optim import Clock, Steps, computing, grown_side, growth, make_optimizer, orthogonalized, schedule


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 400])
@pytest.mark.parametrize("warm_up", [0.02, 0.25])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(steps, warm_up):
    parts = [schedule(Steps(steps).done(step), warm_up) for step in range(steps)]
    expected = np.interp(np.arange(1, steps + 1), [0, (steps + 1) * warm_up, steps + 1], [0, 1, 0])
    assert parts == pytest.approx(expected.tolist(), rel=1e-12)
    assert 0 < min(parts) <= max(parts) <= 1


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


def weights_and_rest(model):
    kinds = nn.Conv2d | nn.Linear
    weights = {f"{key}.weight": m for key, m in model.named_modules() if isinstance(m, kinds)}
    return weights, {name for name, _ in model.named_parameters()} - set(weights)


def names_by_group(model, optimizer):
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["vgg", "vgg-att3-concat-add", "vgg-pan", "resnet164-att2-concat-dp"])
def test_only_weights_of_convolutions_and_linear_layers_decay(name, kind):
    model = create_model(name, 10, width=1 / 32, normalizer="sigmoid")
    optimizer = make_optimizer(model, optimizer=kind, learning_rate=0.5, weight_decay=0.125)
    weights, rest = weights_and_rest(model)
    assert names_by_group(model, optimizer) == [set(weights), rest]
    assert [(group["weight_decay"], group["lr"]) for group in optimizer.param_groups] == [(0.125, 0.5), (0.0, 0.5)]


@pytest.mark.parametrize("name", ["vgg", "vgg-att3-concat-add", "vgg-pan", "resnet164-att2-concat-dp"])
def test_muon_takes_the_filters_of_all_convolutions_but_the_first_and_leaves_the_rest_to_sgd(name):
    model = create_model(name, 10, width=1 / 32, normalizer="sigmoid")
    optimizer = make_optimizer(model, optimizer="muon", learning_rate=0.5, weight_decay=0.125)
    weights, rest = weights_and_rest(model)
    filters = {key for key, m in weights.items() if isinstance(m, nn.Conv2d)} - {
        "trunk.conv1.weight",
        "trunk.conv1.0.weight",
    }
    assert len(filters) >= 12
    scores = {name for name in rest if name.endswith(".u")}
    groups = [set(weights) - filters, scores, filters, rest - scores]
    options = [(0.125, 0.5), (0.0, 0.5), (0.0, 0.5), (0.0, 2.0)]
    expected = [(names, *option) for names, option in zip(groups, options, strict=True) if names]
    found = zip(names_by_group(model, optimizer), optimizer.param_groups, strict=True)
    assert [(names, group["weight_decay"], group["lr"]) for names, group in found] == expected
    (muon,) = (group for group in optimizer.param_groups if group.get("filters"))
    assert {id(p) for p in muon["params"]} == {id(weights[name].weight) for name in filters}


def test_what_is_frozen_is_left_out():
    model = create_model("vgg-att3-concat-pc", 10, width=1 / 32)
    model.trunk.requires_grad_(False)
    optimizer = make_optimizer(model, learning_rate=0.5, weight_decay=0.0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set.union(*names_by_group(model, optimizer)) == trained


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (6, 6)])
def test_newton_schulz_changes_the_singular_values_alone(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(3):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert orthogonalized(matrix[None])[0].numpy() == pytest.approx(u @ np.diag(s) @ v, abs=2e-5)
    assert torch.equal(orthogonalized(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def test_muon_agrees_with_its_formula_and_sgd_takes_the_other_parameters():
    """Three steps of two convolutions, against loops over plain matrices in double precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, bias=False)).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, optimizer="muon", learning_rate=0.2, weight_decay=0.01)
    for group in optimizer.param_groups:
        group["lr"] = 0.2 if group.get("filters") else 0.3
    filters = model[1].weight.detach().double().flatten(1).numpy().copy()
    momentum, reference = np.zeros_like(filters), nn.Conv2d(3, 4, 3)
    reference.load_state_dict(model[0].state_dict())
    first = make_optimizer(reference, optimizer="sgd", learning_rate=0.3, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        gradient = model[1].weight.grad.double().flatten(1).numpy()
        for own, theirs in zip(reference.parameters(), model[0].parameters(), strict=True):
            own.grad = theirs.grad.clone()
        optimizer.step()
        first.step()
        momentum = 0.6 * momentum + gradient
        direction = orthogonalized(torch.tensor(gradient + 0.6 * momentum)[None])[0].numpy()
        filters = filters * np.sqrt(6) / np.linalg.norm(filters) - 0.2 * direction
        assert model[1].weight.detach().flatten(1).numpy() == pytest.approx(filters, abs=1e-5)
        assert torch.equal(model[0].weight, reference.weight)
        assert torch.equal(model[0].bias, reference.bias)
        assert model[1].weight.grad is not None


@pytest.mark.parametrize("side", [32, 33, 40, 64, 224])
def test_pictures_grow_to_their_full_side(side):
    sides = [grown_side(side, growth(done)) for done in np.linspace(0, 1, 101)]
    assert sides == sorted(sides)
    assert sides[29] == pytest.approx(side / 2, abs=2)
    assert sides[59] == pytest.approx(side * 3 / 4, abs=2)
    assert set(sides[60:]) == {side}


@pytest.mark.parametrize(
    "name", ["vgg", "vgg-gap", "vgg-pan", "vgg-late", "vgg-att-indep-dp", "resnet164-att2-concat-dp"]
)
def test_every_family_trains_on_half_the_side(name):
    model = create_model(name, 3, width=1 / 32).train()
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    with pytest.raises(ValueError, match="32x32"):
        model.eval()(torch.rand(2, 3, 16, 16))


def test_computing_is_the_mean_of_the_pixels_so_far():
    fine = np.cumsum([growth(done) ** 2 for done in np.arange(0, 1, 1e-4)])
    for done in (0, 0.1, 0.3, 0.45, 0.6, 0.9, 1):
        expected = fine[round(done * 1e4) - 1] / fine[-1] if done else 0.0
        assert computing(done) == pytest.approx(expected, abs=2e-4)
