"""The attention module against loops over positions, its gradients, its precision, and what `g` can do to a map."""

import itertools

import pytest
import torch
from torch.func import functional_call

from ltpa.models.attention import Attention
from tests.tools import reference

KINDS = ("dp", "pc", "add", "sdp")
NORMALIZERS = ("softmax", "sigmoid")
CASES = list(itertools.product(KINDS, NORMALIZERS))
CHANNELS = 7
each_case = pytest.mark.parametrize(("kind", "normalizer"), CASES)
each_width = pytest.mark.parametrize("local_channels", [CHANNELS, 4, 9], ids=["equal", "up", "down"])


def build(kind, normalizer, local_channels=CHANNELS, channels=CHANNELS, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return Attention(local_channels, channels, kind, normalizer).to(dtype)


def features(local_channels=CHANNELS, channels=CHANNELS, size=(3, 5), n=3, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    local = torch.randn(n, local_channels, *size, generator=generator, dtype=torch.float64)
    g = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    return local.to(dtype), g.to(dtype)


def parameters_of(attention):
    state = attention.state_dict()
    keys = {"u": "u", "width_map": "W.weight", "w_l": "W_l.weight", "w_g": "W_g.weight", "b_g": "W_g.bias", "b": "b"}
    return {argument: state.get(key) for argument, key in keys.items()}


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# --- the three equations


@each_width
@each_case
def test_equals_the_loops_over_positions(kind, normalizer, local_channels):
    attention = build(kind, normalizer, local_channels)
    local, g = features(local_channels)
    with torch.no_grad():
        descriptor, weights, scores = attention(local, g)
    expected = reference.attend_loops(local, g, kind, normalizer, **parameters_of(attention))
    assert descriptor.shape == (3, CHANNELS)
    assert weights.shape == scores.shape == (3, 3, 5)
    assert_close(scores, expected[2], 1e-12)
    assert_close(weights, expected[1], 1e-12)
    assert_close(descriptor, expected[0], 1e-12)
    sums = weights.sum(dim=(1, 2))
    if normalizer == "softmax":
        assert_close(sums, torch.ones_like(sums), 1e-14)
    else:
        assert (sums - 1).abs().min() > 1e-2, "gates need not sum to 1"


def test_by_hand():
    """Two positions, two channels, numbers small enough for a pocket calculator."""
    local = torch.tensor([[[[1.0, 3.0]], [[2.0, -1.0]]]], dtype=torch.float64)  # l_1 = (1, 2), l_2 = (3, -1)
    g = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    e = torch.e
    _, weights, scores = build("dp", "softmax", 2, 2)(local, g)
    assert_close(scores.flatten(), torch.tensor([1.0, 1.25], dtype=torch.float64), 1e-14)
    assert_close(weights.flatten()[0].item(), 1 / (1 + e**0.25), 1e-14)
    pc = build("pc", "sigmoid", 2, 2)
    with torch.no_grad():
        pc.u.copy_(torch.tensor([1.0, -2.0]))
    descriptor, weights, scores = pc(local, g)
    assert_close(scores.flatten(), torch.tensor([-3.0, 5.0], dtype=torch.float64), 1e-14)
    first, second = 1 / (1 + e**3), 1 / (1 + e**-5)
    assert_close(weights.flatten(), torch.tensor([first, second], dtype=torch.float64), 1e-14)
    mean = torch.tensor([[(first + 3 * second) / 2, (2 * first - second) / 2]], dtype=torch.float64)
    assert_close(descriptor, mean, 1e-14)


@each_case
def test_permuted_positions_permute_the_map_alone(kind, normalizer):
    attention = build(kind, normalizer, 4)
    local, g = features(4)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(2))
    shuffled = local.flatten(2)[:, :, order].unflatten(2, (3, 5))
    descriptor, weights, scores = attention(local, g)
    other = attention(shuffled, g)
    assert_close(other[0], descriptor, 1e-13)
    assert_close(other[1].flatten(1), weights.flatten(1)[:, order], 1e-13)
    assert_close(other[2].flatten(1), scores.flatten(1)[:, order], 1e-13)


@each_case
def test_one_position(kind, normalizer):
    attention = build(kind, normalizer)
    local, g = features(size=(1, 1))
    descriptor, weights, scores = attention(local, g)
    gate = torch.ones_like(scores) if normalizer == "softmax" else scores.sigmoid()
    assert_close(weights, gate, 1e-14)
    assert_close(descriptor, gate[:, 0] * local[:, :, 0, 0], 1e-14)


@each_case
def test_equal_features_get_equal_weights_and_memory_format_and_input_stay(kind, normalizer):
    attention = build(kind, normalizer, 4)
    local, g = features(4)
    kept = local.clone(), g.clone()
    outputs = attention(local, g), attention(local.contiguous(memory_format=torch.channels_last), g)
    for one, other in zip(*outputs, strict=True):
        assert_close(other, one, 1e-13)
    assert torch.equal(local, kept[0])
    assert torch.equal(g, kept[1])
    _, weights, _ = attention(local[:, :, :1, :1].expand(-1, -1, 3, 5), g)
    assert_close(weights, weights[:, :1, :1].expand(-1, 3, 5), 1e-14)


# --- gradients


@pytest.mark.parametrize("local_channels", [4, 3], ids=["equal", "mapped"])
@each_case
def test_gradcheck_over_inputs_and_parameters(kind, normalizer, local_channels):
    attention = build(kind, normalizer, local_channels, 4)
    local, g = features(local_channels, 4, size=(2, 3), n=2)
    names = [name for name, _ in attention.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in attention.parameters()]

    def function(local, g, *values):
        return functional_call(attention, dict(zip(names, values, strict=True)), (local, g))

    assert torch.autograd.gradcheck(function, (local.requires_grad_(), g.requires_grad_(), *values), atol=1e-8)


@each_case
@pytest.mark.parametrize("local_channels", [CHANNELS, 4])
def test_every_parameter_learns(kind, normalizer, local_channels):
    attention = build(kind, normalizer, local_channels)
    local, g = features(local_channels)
    attention(local.requires_grad_(), g)[0].square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


# --- parameters


@each_width
@each_case
def test_parameters(kind, normalizer, local_channels):
    """u one per level, W without bias and only where the widths differ, W_l and W_g for `add` alone."""
    attention = build(kind, normalizer, local_channels)
    shapes = {name: tuple(parameter.shape) for name, parameter in attention.named_parameters()}
    expected = {}
    if local_channels != CHANNELS:
        expected["W.weight"] = (CHANNELS, local_channels)
    if kind in ("pc", "add"):
        expected["u"] = (CHANNELS,)
    if kind == "add":
        expected |= {"W_l.weight": (CHANNELS, local_channels), "W_g.weight": (CHANNELS, CHANNELS)}
        shapes.pop("W_g.bias", None)  # a bias here is a matter of taste: it changes no equation of the paper
    assert shapes == expected


@pytest.mark.parametrize("kind", ["pc", "add"])
def test_u_starts_random_and_non_zero(kind):
    drawn = [build(kind, "softmax", 512, 512, torch.float32, seed).u.detach() for seed in (0, 1)]
    for u in drawn:
        assert (u != 0).all()
        assert 0.05 < u.norm() < 20, "scores of features of unit size should neither vanish nor saturate"
        assert abs(u.mean()) < 5 * u.std() / 512**0.5
    assert not torch.allclose(*drawn)
    assert torch.equal(build(kind, "softmax", 512, 512, torch.float32).u, drawn[0])


@pytest.mark.parametrize(("kind", "normalizer", "word"), [("dot", "softmax", "dot"), ("pc", "softmx", "softmx")])
def test_unknown_names_are_refused(kind, normalizer, word):
    with pytest.raises(ValueError, match=word):
        Attention(4, 4, kind, normalizer)


# --- precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "plain"])
@each_case
def test_scores_and_weights_in_at_least_float32(kind, normalizer, autocast, dtype):
    attention = build(kind, normalizer, 4, dtype=torch.float32)
    local, g = features(4, size=(32, 32), dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        descriptor, weights, scores = attention(local, g)
    assert descriptor.dtype == weights.dtype == scores.dtype == torch.float32
    if normalizer == "softmax":  # 1,024 weights: bfloat16 would be wrong in the third digit
        assert_close(weights.sum(dim=(1, 2)), torch.ones(3), 1e-5)
    exact = [value.float() for value in build(kind, normalizer, 4)(local.double(), g.double())]
    # `add` may apply W_l in the precision of the features, as a convolution does; everything else is float32.
    rounding = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype] if kind == "add" else 1e-5
    for actual, expected in zip((descriptor, weights, scores), exact, strict=True):
        assert_close(actual, expected.detach(), rounding)


@each_case
def test_float64_stays_float64(kind, normalizer):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = build(kind, normalizer, 4)(*features(4))
    assert all(output.dtype == torch.float64 for output in outputs)


@each_case
def test_bf16_features_still_train(kind, normalizer):
    attention = build(kind, normalizer, 4, dtype=torch.float32)
    local, g = features(4, dtype=torch.bfloat16)
    local.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = attention(local, g)[0].square().sum()
    loss.backward()
    assert local.grad.dtype == torch.bfloat16
    assert local.grad.abs().max() > 1e-4
    assert all(parameter.grad.dtype == torch.float32 for parameter in attention.parameters())


@each_case
def test_large_scores_do_not_overflow(kind, normalizer):
    attention = build(kind, normalizer, 4, dtype=torch.float32)
    local, g = features(4, dtype=torch.float32)
    outputs = attention(1e6 * local, g)
    assert all(output.isfinite().all() for output in outputs)
    if normalizer == "softmax":
        assert_close(outputs[1].sum(dim=(1, 2)), torch.ones(3), 1e-5)


@pytest.mark.parametrize("queries", [3, 1], ids=["a query each", "one query"])
@each_case
def test_large_half_precision_maps_are_read_by_parts(kind, normalizer, queries, monkeypatch):
    """A few images at a time, the last part smaller: the same outputs and gradients as at once."""
    attention = build(kind, normalizer, 4, dtype=torch.float32)
    local, g = features(4, dtype=torch.bfloat16)
    g = g[:queries]

    def outputs_and_gradients():
        inputs = local.clone().requires_grad_(), g.clone().requires_grad_()
        outputs = attention(*inputs)
        loss = sum((output.sin() * (1 + rank)).sum() for rank, output in enumerate(outputs))
        return [*outputs, *torch.autograd.grad(loss, [*inputs, *attention.parameters()])]

    expected = outputs_and_gradients()
    parts = []
    monkeypatch.setattr("ltpa.models.attention.LARGE", 1)
    monkeypatch.setattr("ltpa.models.attention.CACHED", 2 * local[0].numel())
    equations = attention._equations
    monkeypatch.setattr(attention, "_equations", lambda part, *rest: parts.append(len(part)) or equations(part, *rest))
    actual = outputs_and_gradients()
    assert parts[:2] == [2, 1]
    assert actual[0].dtype == torch.float32
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        tolerance = 3e-2 if kind == "add" or one.dtype == torch.bfloat16 else 1e-5  # W_l of `add` is in bfloat16
        assert_close(one, other, tolerance)


# --- what g does to a map


def exchanged(kind, normalizer, local_channels):
    attention = build(kind, normalizer, local_channels)
    local, g = features(local_channels)
    with torch.no_grad():
        return attention, attention(local, g), attention(local, g.roll(1, 0))


@each_width
def test_softmax_pc_ignores_g(local_channels):
    attention, own, other = exchanged("pc", "softmax", local_channels)
    assert not attention.uses_global_feature
    assert_close(other[0], own[0], 1e-13)
    assert_close(other[1], own[1], 1e-13)
    assert (other[2] - own[2]).abs().min() > 1e-3, "the scores do move, all alike"
    local, _ = features(local_channels)
    without = attention(local, None)
    assert_close(without[0], own[0], 1e-13)
    assert_close(without[1], own[1], 1e-13)


@each_width
@pytest.mark.parametrize(("kind", "normalizer"), [case for case in CASES if case != ("pc", "softmax")])
def test_all_others_depend_on_g(kind, normalizer, local_channels):
    attention, own, other = exchanged(kind, normalizer, local_channels)
    assert attention.uses_global_feature
    change = (other[1] - own[1]).abs().amax(dim=(1, 2)) / own[1].mean(dim=(1, 2))
    assert change.min() > 1e-3
    assert (other[0] - own[0]).abs().amax(dim=1).min() > 1e-4


@each_width
@each_case
def test_only_pc_keeps_the_order_of_positions(kind, normalizer, local_channels):
    """With pc `g` makes a map stronger or weaker, and never changes which position ranks before which."""
    _, own, other = exchanged(kind, normalizer, local_channels)
    order = own[2].flatten(1).argsort(dim=1)
    assert torch.equal(other[2].flatten(1).argsort(dim=1), order) is (kind == "pc")
    if kind == "pc":
        shift = (other[2] - own[2]).flatten(1)
        assert_close(shift, shift[:, :1].expand_as(shift), 1e-12)


@pytest.mark.parametrize("mapped", [False, True])
def test_gradient_of_g(mapped):
    """Through softmax + pc nothing reaches `g`; through every other combination something does."""
    local_channels = 4 if mapped else CHANNELS
    for kind, normalizer in CASES:
        attention = build(kind, normalizer, local_channels)
        local, g = features(local_channels)
        local.requires_grad_()
        g.requires_grad_()
        attention(local, g)[0].square().sum().backward()
        ratio = g.grad.abs().sum() / local.grad.abs().sum()
        if (kind, normalizer) == ("pc", "softmax"):
            assert ratio < 1e-12
        else:
            assert ratio > 1e-3, (kind, normalizer)


# --- controls, whose maps cannot follow the picture


@pytest.mark.parametrize("size", [(3, 5), (8, 8), (16, 11)])
@pytest.mark.parametrize("kind", ["uniform", "static", "permuted"])
def test_controls_equal_the_loops_over_positions(kind, size):
    for normalizer in NORMALIZERS:
        attention = build(kind, normalizer, 4).eval()
        for parameter in attention.parameters():
            torch.nn.init.normal_(parameter)
        local, g = features(4, size=size, n=2)
        expected = reference.attend_loops(local, g, kind, normalizer, **parameters_of(attention))
        for actual, value in zip(attention(local, g), expected, strict=True):
            assert_close(actual.detach(), value, 1e-12)


def test_maps_of_controls_are_the_same_for_all_pictures_or_in_the_wrong_places():
    local, g = features(size=(8, 8))
    assert (build("uniform", "softmax")(local, g)[1] == 1 / 64).all()
    static = build("static", "softmax")
    torch.nn.init.normal_(static.b)
    weights = static(local, None)[1]
    assert_close(weights, weights[:1].expand_as(weights), 0.0)
    assert_close(weights[0].flatten(), (8 * static.b).softmax(0), 1e-15)
    permuted, own = build("permuted", "softmax"), build("pc", "softmax")(local, g)[1].flatten(1)
    torch.manual_seed(0)
    first, second = (permuted.train()(local, g)[1].flatten(1) for _ in range(2))
    fixed = permuted.eval()(local, g)[1].flatten(1)
    for weights in (first, second, fixed):
        assert_close(weights.sort(1).values, own.sort(1).values, 1e-15)
        assert (weights - own).abs().max() > 1e-3
    assert (first - second).abs().max() > 1e-3, "drawn anew"
    assert torch.equal(permuted(local, g)[1].flatten(1), fixed), "always the same in evaluation"
    assert [build(kind, "softmax").uses_global_feature for kind in ("uniform", "static", "permuted")] == [False] * 3


def test_a_permuted_map_by_parts_has_the_gradient_of_what_it_computed(monkeypatch):
    """The backward pass computes the parts again, with the same permutation."""
    attention = build("permuted", "softmax", 4, dtype=torch.float32).train()
    local, g = features(4, dtype=torch.bfloat16)
    monkeypatch.setattr("ltpa.models.attention.LARGE", 1)
    x = local.clone().requires_grad_()
    torch.manual_seed(1)
    descriptor, weights, _ = attention(x, g)
    (actual,) = torch.autograd.grad(descriptor.sum(), x)
    W, u = attention.W.weight.detach(), attention.u.detach()
    slow = local.float().flatten(2).transpose(1, 2).clone().requires_grad_()
    torch.manual_seed(1)
    own = (slow @ (u @ W)).softmax(1)
    moved = own.gather(1, torch.rand_like(own).argsort(1))
    assert_close(moved.detach(), weights.flatten(1).detach(), 1e-6)
    ((moved.unsqueeze(1) @ slow).squeeze(1) @ W.T).sum().backward()
    assert_close(actual.float().flatten(2).transpose(1, 2), slow.grad, 2e-2)
