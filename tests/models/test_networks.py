"""The networks against a functional evaluation from their state dicts, the paper's tables, and their interface."""

import copy
import math
import pickle
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from ltpa.models import networks as models
from ltpa.models.networks import create_model, list_models
from tests.tools import reference

TINY = 1 / 32
ATTENTION = list_models("vgg-att*")
LEVELS = tuple(reference.LEVELS["att3"])
NORMALIZERS = ("softmax", "sigmoid")
# A ResNet has 54 blocks to build: each kind of attention once is enough for every run (test_families has more of them).
RESNETS = ["resnet164", "resnet164-att2-concat-pc", "resnet164-att2-indep-add", "resnet164-att-concat-dp"]
each_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("resnet") and name not in RESNETS else name
        for name in list_models()
    ],
)
each_attention = pytest.mark.parametrize("name", ATTENTION)
each_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The networks are too small to share out; beside other work on the machine, threads that wait cost much more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name, num_classes=5, *, seed=0, width=TINY, **options):
    torch.manual_seed(seed)
    return create_model(name, num_classes, width=width, **options)


def pictures(n=2, height=32, width=32, dtype=torch.float32, seed=0):
    """Coarse colored patches with noise, so that both positions and images differ."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(n, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.rand(n, 3, height, width, generator=generator, dtype=torch.float64)
    return (0.7 * nn.functional.interpolate(patches, (height, width)) + 0.3 * noise).to(dtype)


def scrambled(model, seed=3):
    """The model in float64 and eval mode, with biases and batch-norm statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(seed)

    def between(low, high, like):
        return torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low

    model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.copy_(between(-0.2, 0.2, module.running_mean))
                module.running_var.copy_(between(0.8, 2.5, module.running_var))
                module.weight.copy_(between(0.7, 1.5, module.weight))
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.copy_(between(-0.2, 0.4, module.bias))
    return model


def settled(model, images):
    """The model in eval mode with batch-norm statistics halfway to those of these images.

    With those of a fresh model nothing is normalized, and 54 residual sums of a ResNet double what they are given.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
            module.momentum = 0.5
    with torch.no_grad():
        model(images)
    return model.eval()


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def kind_of(name):
    return name.rsplit("-", 1)[1]


def levels_of(name):
    return reference.LEVELS[name.split("-")[1]]


def is_dead(name, normalizer):
    return kind_of(name) == "pc" and normalizer == "softmax"


# --- the whole network, step by step ---------------------------------------------------------------------------------


def compare_with_reference(name, images, options):
    options = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), **options}
    model = scrambled(build(name, **options))
    with torch.no_grad():
        attended = model.attend(images)
        state = {key: value.double() for key, value in model.state_dict().items()}
        logits, maps = reference.network(
            state, name, images, options.get("normalizer", "softmax"), options.get("head_norm", True)
        )
    assert attended.logits.dtype == torch.float64
    assert (logits[0] - logits[1]).abs().max() > 3e-4, "two images must not look alike"
    assert_close(attended.logits, logits, 1e-10)
    assert list(attended.maps) == list(maps)
    for level, weights in maps.items():
        assert_close(attended.maps[level], weights, 1e-10)


@pytest.mark.parametrize("name", ["vgg", "vgg-late"])
@pytest.mark.parametrize("size", [(32, 32), (96, 64), (33, 47)])
def test_network_without_attention_step_by_step(name, size):
    compare_with_reference(name, pictures(2, *size, dtype=torch.float64), {})


@each_attention
@each_normalizer
def test_network_with_attention_step_by_step(name, normalizer):
    compare_with_reference(name, pictures(dtype=torch.float64), {"normalizer": normalizer})


@pytest.mark.parametrize("name", ["vgg-att-concat-pc", "vgg-att2-concat-dp", "vgg-att3-concat-add"])
@pytest.mark.parametrize("options", [{"head_norm": False}, {"faithful": True}, {"head_norm": False, "faithful": True}])
def test_network_with_options_step_by_step(name, options):
    compare_with_reference(name, pictures(dtype=torch.float64), options)


@pytest.mark.parametrize("size", [(96, 64), (33, 47)])
@pytest.mark.parametrize("name", ["vgg-att-concat-dp", "vgg-att-concat-add"])
def test_larger_images_average_before_the_fully_connected_layer(name, size):
    compare_with_reference(name, pictures(2, *size, dtype=torch.float64), {"normalizer": "sigmoid"})


@pytest.mark.parametrize("name", ["vgg", "vgg-late", "vgg-att3-concat-dp"])
def test_dropout_is_without_effect_in_eval_mode(name):
    images = pictures()
    logits = [build(name, dropout=dropout).eval()(images) for dropout in (True, False)]
    assert torch.equal(*logits)


# --- the table -------------------------------------------------------------------------------------------------------


def record(model, images):
    """Layer by layer what a forward pass in training mode does, and multiply-accumulates of the convolutions."""
    events, macs, handles = [], {}, []

    def hook(module, inputs, output, name):
        if isinstance(module, nn.Conv2d):
            assert (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (1, 1))
            assert output.shape[2] == output.shape[3]
            events.append(("conv", module.in_channels, module.out_channels, output.shape[2]))
            macs[name] = module.weight.numel() * output.shape[2] * output.shape[3]
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            events.append(("batch norm", module.eps))
        elif isinstance(module, nn.ReLU):
            events.append("relu")
        elif isinstance(module, nn.Linear):
            events.append(("linear", module.in_features, module.out_features))
        elif isinstance(module, nn.Dropout):
            events.append(("dropout", module.p))
        elif not isinstance(module, nn.Identity):
            raise AssertionError(f"what is a {type(module).__name__} doing here?")

    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn") and not list(module.children()):
            handles.append(module.register_forward_hook(lambda m, i, o, name=name: hook(m, i, o, name)))
    model.train()(images)
    for handle in handles:
        handle.remove()
    return events, macs


def expected_events(table):
    events, channels = [], 3
    for _, out, size, rate in table:
        events += [("conv", channels, out, size), ("batch norm", 1e-3), "relu"]
        events += [] if rate is None else [("dropout", rate)]
        channels = out
    return events


NORM = [("batch norm", 1e-3), "relu", ("dropout", 0.5)]
FC = [("dropout", 0.5), ("linear", 512, 512)]


@pytest.fixture(scope="module")
def flagship():
    return build("vgg-att3-concat-pc", 10, width=1.0, faithful=True)


def test_flagship_is_the_table(flagship):
    events, macs = record(flagship, pictures())
    head = [("linear", 256, 512), *NORM, *NORM, *NORM, ("linear", 1536, 10)]
    assert events == [*expected_events(reference.LATE_TABLE), *FC, *head]
    macs = list(macs.values())
    assert len(macs) == 15
    assert round(sum(macs[:13]) / 1e9, 2) == 3.74
    assert round(sum(macs) / 1e9, 2) == 3.79


def test_vgg_is_the_table():
    events, macs = record(build("vgg", 10, width=1.0), pictures())
    assert events == [*expected_events(reference.VGG16_TABLE), *FC, *NORM, ("linear", 512, 10)]
    assert round(sum(macs.values()) / 1e9, 2) == 0.31


def test_vgg_late_is_the_attention_trunk_with_g_classified():
    events, _ = record(build("vgg-late", 10, width=1 / 8), pictures())
    table = [(name, channels // 8, size, rate) for name, channels, size, rate in reference.LATE_TABLE]
    assert events[: len(expected_events(table))] == expected_events(table)
    assert events[len(expected_events(table)) :] == [("dropout", 0.5), ("linear", 64, 64), ("linear", 64, 10)]


@each_model
def test_without_dropout_nothing_is_dropped(name):
    model = build(name, dropout=False).train()
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0] == []
    images = pictures(4)
    assert torch.equal(model(images), model(images))
    dropping = build(name).train()
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in dropping.modules())
    assert drops is (name != "resnet164"), "all models but the plain ResNet have dropout"
    assert torch.allclose(dropping(images), dropping(images)) is not drops


def test_head_norm_false_leaves_batch_norm_relu_and_dropout_out():
    events, _ = record(build("vgg-att2-concat-dp", 10, width=1 / 8, head_norm=False), pictures())
    assert events[-2:] == [("linear", 64, 64), ("linear", 128, 10)]


def test_parameter_counts(flagship):
    def count(*modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    layers = [flagship.global_branch.conv14, flagship.global_branch.conv15, flagship.global_branch.fc]
    assert round(count(flagship) / 1e6, 2) == 19.86
    assert round(count(*layers) / 1e6, 2) == 4.98
    assert count(flagship.global_branch) == count(*layers) == 2 * (512 * 512 * 9 + 3 * 512) + 512 * 513
    slim = create_model("vgg-att3-concat-pc", 10)
    assert count(flagship) - count(slim) == count(*layers)


@pytest.mark.parametrize("width", [1 / 8, 1 / 16, 0.3, 1.5 / 64])
@pytest.mark.parametrize("name", ["vgg", "vgg-att3-concat-dp"])
def test_width_scales_every_channel_count(name, width):
    model = build(name, width=width)
    channels = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    table = [row[1] for row in reference.LATE_TABLE][: len(channels)]
    assert len(channels) == (13 if name == "vgg" else 15)
    assert all(abs(actual - full * width) <= 0.5 for actual, full in zip(channels, table, strict=True)), channels
    top = channels[-1]
    linear = sorted((m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear))
    if name == "vgg":
        assert linear == sorted([(top, top), (top, 5)])
    else:
        assert linear == sorted([(channels[6], top), (top, top), (3 * top, 5)])


# --- initial weights -------------------------------------------------------------------------------------------------


def test_convolutions_start_he_normal_with_fan_out(flagship):
    convolutions = [module for module in flagship.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 15
    for conv in convolutions:
        weight = conv.weight.detach().double()
        std = math.sqrt(2 / (9 * conv.out_channels))
        error = 5 / math.sqrt(2 * weight.numel())  # five standard errors of an estimated standard deviation
        assert abs(weight.std() / std - 1) < error
        assert abs(weight.mean()) < 5 * std / math.sqrt(weight.numel())
        kurtosis = ((weight / std) ** 4).mean()
        assert abs(kurtosis - 3) < 5 * math.sqrt(96 / weight.numel()), "normal, neither uniform nor truncated"
        assert (conv.bias == 0).all()


@each_model
def test_initial_norms_biases_and_u(name):
    for normalizer in NORMALIZERS:
        model = build(name, normalizer=normalizer)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                assert (module.bias == 0).all()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert (module.bias == 0).all()
        us = [parameter for key, parameter in model.named_parameters() if key.split(".")[-1] == "u"]
        if name in ATTENTION:
            assert len(us) == (0 if kind_of(name) == "dp" else len(levels_of(name))), "one u a level"
        assert all((u != 0).all() for u in us)
        assert len({tuple(u.tolist()) for u in us}) == len(us)


@each_model
def test_same_seed_same_weights(name):
    one, same, other = (build(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


# --- the flaw: what the loss can tell the global branch --------------------------------------------------------------


def gradients(name, normalizer, **options):
    """Sums of |gradient| per parameter of a float64 training step without dropout."""
    model = build(name, normalizer=normalizer, width=1 / 16, dropout=False, faithful=True, **options).double().train()
    labels = torch.arange(8) % 5
    nn.functional.cross_entropy(model(pictures(8, dtype=torch.float64)), labels).backward()
    return {
        key: 0.0 if parameter.grad is None else parameter.grad.abs().sum().item()
        for key, parameter in model.named_parameters()
    }


@each_attention
@each_normalizer
def test_gradient_of_the_global_branch(name, normalizer):
    """Softmax + pc: exactly nothing reaches conv14, conv15 and fc. Everything else: they learn."""
    sums = gradients(name, normalizer)
    branch = {key: value for key, value in sums.items() if key.startswith("global_branch.")}
    assert {key.split(".")[1] for key in branch} == {"conv14", "conv15", "fc"}
    assert len(branch) == 2 * 4 + 2
    local = sum(value for key, value in sums.items() if re.match(r"trunk\.conv1[123]\.0\.weight", key))
    assert local > 1e-3
    if is_dead(name, normalizer):
        for key, value in branch.items():
            assert value < 1e-10 * local, key
    else:
        for layer in ("conv14.0.weight", "conv15.0.weight", "fc.weight"):
            assert branch[f"global_branch.{layer}"] > 1e-4 * local, layer


def test_gradient_of_the_global_branch_without_head_norm():
    for normalizer in NORMALIZERS:
        sums = gradients("vgg-att3-concat-pc", normalizer, head_norm=False)
        ratio = sums["global_branch.fc.weight"] / sums["trunk.conv13.0.weight"]
        assert ratio < 1e-10 if normalizer == "softmax" else ratio > 1e-4


@each_attention
@each_normalizer
def test_another_image_as_query(name, normalizer):
    """The `g` of one image scores the local features of another: the query-driven attention of the paper."""
    model = build(name, normalizer=normalizer, width=1 / 16, dropout=False, faithful=True).double().train()
    images = pictures(2, dtype=torch.float64)
    with torch.no_grad():
        local = model.trunk(model.normalize(images))
        g = model.global_branch(local["conv13"])
        assert (g[0] - g[1]).abs().max() > 1e-2
        for level, attention in model.attention.items():
            own = attention(local[level], g)[1].flatten(1)
            other = attention(local[level], g.flip(0))[1].flatten(1)
            change = ((other - own).abs().amax(dim=1) / own.mean(dim=1)).min()
            if is_dead(name, normalizer):
                assert_close(other, own, 1e-9)
                assert change < 1e-9
            else:
                assert change > 1e-3, level
            if kind_of(name) == "pc":
                order = own.argsort(dim=1)
                assert other.gather(1, order).diff(dim=1).min() > -1e-12, "pc keeps the order of positions"
            else:
                assert other.gather(1, own.argsort(dim=1)).diff(dim=1).min() < -1e-6, level


# --- query-driven attention ------------------------------------------------------------------------------------------


@pytest.fixture
def unwarned():
    """As in a process that has not warned yet."""
    models._warn_that_no_query_matters.cache_clear()


def asked(model, images, query):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.attend(images, query=query)


@pytest.mark.parametrize("name", ["vgg-att3-concat-dp", "vgg-att2-indep-add", "vgg-att3-concat-pc"])
@each_normalizer
def test_query_step_by_step(name, normalizer):
    """The scores are those of the images' local features with the other images' g, the logits those of these maps."""
    model = scrambled(build(name, normalizer=normalizer))
    images, query = pictures(dtype=torch.float64), pictures(2, 64, 40, dtype=torch.float64, seed=9)
    seen = asked(model, images, query)
    state = {key: value.double() for key, value in model.state_dict().items()}
    logits, maps = reference.network(state, name, images, normalizer, query=query)
    own, _ = reference.network(state, name, images, normalizer)
    assert_close(seen.logits, logits, 1e-10)
    assert list(seen.maps) == list(maps)
    for level in maps:
        assert_close(seen.maps[level], maps[level], 1e-10)
    assert ((logits - own).abs().max().item() < 1e-10) is is_dead(name, normalizer), (
        "the query must matter where it can"
    )


@pytest.mark.parametrize("name", ["vgg-att3-concat-dp", "vgg-att-indep-add", "resnet164-att2-concat-dp"])
@each_normalizer
def test_own_image_as_query_changes_nothing(name, normalizer):
    model, images = settled(build(name, normalizer=normalizer), pictures(3)), pictures(3)
    with torch.no_grad():
        one, other = model.attend(images), model.attend(images, query=images)
        third = model.attend(images, query=images.flip(0))
    assert torch.equal(one.logits, other.logits)
    assert all(torch.equal(one.maps[level], other.maps[level]) for level in one.maps)
    assert not torch.equal(one.maps[level := list(one.maps)[-1]][0], third.maps[level][0])


@pytest.mark.parametrize("name", ["vgg-att3-concat-dp", "vgg-att2-indep-add", "vgg-att3-concat-pc"])
@each_normalizer
@pytest.mark.parametrize("faithful", [False, True])
def test_one_query_for_many_images_and_one_image_for_many_queries(name, normalizer, faithful):
    model = scrambled(build(name, normalizer=normalizer, faithful=faithful))
    images = pictures(3, dtype=torch.float64)
    query = pictures(3, 40, 32, dtype=torch.float64, seed=9)
    for left, right in ((images, query[:1]), (images[:1], query), (images[:1], query[:1])):
        count = max(len(left), len(right))
        seen = asked(model, left, right)
        expected = asked(model, left.expand(count, -1, -1, -1), right.expand(count, -1, -1, -1))
        assert seen.logits.shape == (count, 5)
        assert_close(seen.logits, expected.logits, 1e-12)
        for level in expected.maps:
            assert_close(seen.maps[level], expected.maps[level], 1e-12)
            assert_close(seen.scores[level], expected.scores[level], 1e-12)
        assert (seen.global_feature is None) is (expected.global_feature is None)
        if expected.global_feature is not None:
            assert_close(seen.global_feature, expected.global_feature, 1e-12)


@pytest.mark.parametrize("name", [name for name in ATTENTION if kind_of(name) == "pc"])
@pytest.mark.parametrize("faithful", [False, True])
def test_softmax_pc_says_once_that_a_query_cannot_matter(name, faithful, unwarned):
    model = build(name, faithful=faithful).eval()
    images, query = pictures(3), pictures(1, 48, 48, seed=9)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        own = model.attend(images)
        assert said == []
        seen = [model.attend(images, query=query) for _ in range(3)]
        build(name).attend(images, query=query)
    assert len(said) == 1, "once in a process, whatever the filters"
    assert "the query changes nothing: with softmax and pc" in str(said[0].message)
    assert said[0].filename == __file__
    for one in seen:
        assert torch.equal(one.logits, own.logits)
        assert all(torch.equal(one.maps[level], own.maps[level]) for level in own.maps), "bit by bit"


@pytest.mark.parametrize("name", ["vgg-att3-concat-pc", "resnet164-att2-concat-pc"])
def test_a_query_makes_sigmoid_pc_stronger_or_weaker_and_never_reorders(name, unwarned):
    """sigmoid(s_i + c): the scores of a level move by one constant, so the gates all grow or all shrink."""
    model = build(name, normalizer="sigmoid", dropout=False, width=1 / 16).double()
    images, query = pictures(4, dtype=torch.float64), pictures(4, 48, 48, dtype=torch.float64, seed=9)
    settled(model, images)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        own, other = model.attend(images), model.attend(images, query=query)
    for level in own.maps:
        shift = (other.scores[level] - own.scores[level]).flatten(1)
        assert shift.abs().min() > 1e-6
        assert_close(shift, shift[:, :1].expand_as(shift), 1e-9)
        change = (other.maps[level] - own.maps[level]).flatten(1)
        assert (change * shift.sign()).min() >= 0, "all gates of an image change the same way"
        assert (change * shift.sign()).max() > 1e-9
        order = own.scores[level].flatten(1).argsort(dim=1)
        ranked = other.maps[level].flatten(1).gather(1, order)
        assert ranked.diff(dim=1).min() > -1e-12, "the ranking stays"


@pytest.mark.parametrize("name", ["vgg", "vgg-late", "vgg-gap", "vgg-pan", "resnet164"])
def test_models_that_cannot_be_asked_say_so(name):
    model = build(name).eval()
    with pytest.raises(ValueError, match=r"a query steers attention maps.*list_models\('\*-dp'\)") as caught:
        model.attend(pictures(), query=pictures())
    assert ("target=" in str(caught.value)) is (name == "vgg-gap")
    assert list_models("*-dp")
    assert set(list_models("*-dp") + list_models("*-add")) < set(list_models("*-att*"))


@pytest.mark.parametrize("name", ["vgg-att-concat-dp", "vgg-att-concat-pc"])
@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        (torch.zeros(3, 3, 32, 32), ValueError, "2 images and 3 queries: give one query for each image, one for all"),
        (torch.zeros(0, 3, 32, 32), ValueError, "2 images and 0 queries"),
        (torch.zeros(1, 1, 32, 32), ValueError, r"query must have the shape \(N, 3, H, W\), not \(1, 1, 32, 32\)"),
        (torch.zeros(3, 32, 32), ValueError, r"query must have the shape \(N, 3, H, W\)"),
        (torch.zeros(2, 3, 32, 31), ValueError, "query must be at least 32x32 pixels, not 32x31"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "query must be a float tensor.*query / 255"),
        ("deer", TypeError, "query must be a float tensor"),
        (3, TypeError, "query must be a float tensor"),
    ],
)
def test_queries_that_cannot_be_used(name, query, error, words):
    with pytest.raises(error, match=words):
        build(name).eval().attend(pictures(), query=query)


# --- faithful or not -------------------------------------------------------------------------------------------------


@each_attention
@each_normalizer
def test_global_branch_is_left_out_exactly_where_it_is_dead(name, normalizer):
    model = build(name, normalizer=normalizer)
    assert model.uses_global_feature is not is_dead(name, normalizer)
    keys = [key for key in model.state_dict() if key.startswith("global_branch")]
    attended = model.eval().attend(pictures())
    if is_dead(name, normalizer):
        assert keys == []
        assert attended.global_feature is None
    else:
        assert len(keys) == 2 * 7 + 2
        assert attended.global_feature.shape == (2, 16)
    faithful = build(name, normalizer=normalizer, faithful=True).eval()
    assert faithful.uses_global_feature is not is_dead(name, normalizer)
    assert faithful.attend(pictures()).global_feature.shape == (2, 16)


@pytest.mark.parametrize("name", [name for name in ATTENTION if kind_of(name) == "pc"])
@pytest.mark.parametrize("head_norm", [True, False])
def test_leaving_the_dead_branch_out_changes_nothing(name, head_norm):
    slim, faithful = (build(name, faithful=value, head_norm=head_norm) for value in (False, True))
    extra = set(faithful.state_dict()) - set(slim.state_dict())
    assert extra == {key for key in faithful.state_dict() if key.startswith("global_branch.")} != set()
    for key, value in slim.state_dict().items():
        assert torch.equal(value, faithful.state_dict()[key]), f"{key}: one seed, other weights"
    images = pictures()
    assert_close(slim.eval()(images), faithful.eval()(images), 1e-5)

    faithful = scrambled(faithful)
    missing, unexpected = slim.double().load_state_dict(faithful.state_dict(), strict=False)
    assert missing == []
    assert set(unexpected) == extra
    images = images.double()
    one, other = slim.attend(images), faithful.attend(images)
    assert_close(one.logits, other.logits, 1e-12)
    for level in one.maps:
        assert_close(one.maps[level], other.maps[level], 1e-12)


@pytest.mark.parametrize("name", ["vgg-att3-concat-pc"])
def test_leaving_the_dead_branch_out_trains_alike(name):
    models = [build(name, faithful=value, dropout=False).double().train() for value in (False, True)]
    images, labels = pictures(4, dtype=torch.float64), torch.arange(4)
    for model in models:
        nn.functional.cross_entropy(model(images), labels).backward()
    slim, faithful = (dict(model.named_parameters()) for model in models)
    for key, parameter in slim.items():
        assert_close(parameter.grad, faithful[key].grad, 1e-9)


@pytest.mark.parametrize("name", ["vgg", "vgg-late", "vgg-att3-concat-dp", "vgg-att2-concat-add"])
def test_faithful_is_without_effect_elsewhere(name):
    one, other = (build(name, faithful=value).state_dict() for value in (False, True))
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


# --- every model -----------------------------------------------------------------------------------------------------


@each_model
@each_normalizer
@pytest.mark.parametrize("size", [(32, 32), (96, 64)])
def test_forward_and_backward(name, normalizer, size):
    model = build(name, 7, normalizer=normalizer, width=1 / 16).train()
    logits = model(pictures(3, *size))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{key} is never used"
        assert parameter.grad.isfinite().all(), key


@each_model
def test_one_image_in_eval_mode(name):
    images = pictures(3, dtype=torch.float64)
    model = settled(build(name, width=1 / 16).double(), images)
    with torch.no_grad():
        together = model(images)
        for index in range(3):
            alone = model(images[index : index + 1])
            assert alone.shape == (1, 5)
            assert_close(alone[0], together[index], 1e-9)


@each_model
@pytest.mark.parametrize("width", [1 / 8, 0.1, 1 / 64, 0.001])
def test_several_widths(name, width):
    with torch.no_grad():
        logits = build(name, width=width).eval()(pictures())
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


@each_model
def test_full_width_is_the_default(name):
    with torch.device("meta"):  # the shapes alone, without memory or arithmetic
        default, full = create_model(name, 5), create_model(name, 5, width=1)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (default, full)]
    assert shapes[0] == shapes[1]
    if name.startswith("vgg"):
        assert sum(parameter.numel() for parameter in full.parameters()) > 14.7e6  # conv1 to conv13 alone


@each_model
@each_normalizer
def test_attend_says_what_forward_says(name, normalizer):
    model = build(name, normalizer=normalizer).eval()
    images = pictures()
    with torch.no_grad():
        attended = model.attend(images)
        assert torch.equal(attended.logits, model(images))
    assert isinstance(attended.maps, OrderedDict)
    assert list(attended.scores) == list(attended.maps)
    if name in ("vgg", "vgg-late", "resnet164"):
        assert len(attended.maps) == 0
        assert attended.global_feature.shape == (2, 8 if name == "resnet164" else 16)
    for level, weights in attended.maps.items():
        scores = attended.scores[level]
        assert weights.shape == scores.shape
        assert weights.dtype == scores.dtype == torch.float32
        if level == "cam":
            assert torch.equal(weights, scores.relu())
        elif normalizer == "softmax" and (name, level) != ("vgg-pan", "conv10"):
            assert_close(weights.sum(dim=(1, 2)), torch.ones(2), 1e-5)
            assert_close(weights, scores.flatten(1).softmax(dim=1).view_as(scores), 1e-6)
        else:
            assert_close(weights, scores.sigmoid(), 1e-6)


@each_attention
def test_sizes_of_the_maps(name):
    model = build(name).eval()
    for (height, width), sizes in {
        (32, 32): [(32, 32), (16, 16), (8, 8)],
        (33, 47): [(33, 47), (16, 23), (8, 11)],
        (96, 64): [(96, 64), (48, 32), (24, 16)],
    }.items():
        with torch.no_grad():
            maps = model.attend(pictures(2, height, width)).maps
        expected = dict(zip(LEVELS, sizes, strict=True))
        assert [(level, *weights.shape) for level, weights in maps.items()] == [
            (level, 2, *expected[level]) for level in levels_of(name)
        ]


@each_model
def test_copies_give_the_same_logits(name):
    model = build(name).train()
    with torch.no_grad():
        for seed in range(2):  # so that the batch-norm statistics are not the initial ones
            model(pictures(4, seed=seed))
        model.set_normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        model.eval()
        images = pictures()
        logits = model(images)
        loaded = build(name, seed=1).eval()
        assert not torch.allclose(loaded(images), logits)
        loaded.load_state_dict(model.state_dict())
        for twin in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(images), logits)
            assert twin.uses_global_feature == model.uses_global_feature
        shared = {p.data_ptr() for p in copy.deepcopy(model).parameters()} & {p.data_ptr() for p in model.parameters()}
        assert not shared


@each_model
def test_channels_last(name):
    model, images = build(name).eval(), pictures()
    with torch.no_grad():
        logits = model(images)
        model.to(memory_format=torch.channels_last)
        assert_close(model(images.contiguous(memory_format=torch.channels_last)), logits, 1e-5)


@each_model
@each_normalizer
def test_bf16_autocast(name, normalizer):
    images = pictures()
    model = settled(build(name, normalizer=normalizer, width=1 / 16), images)
    with torch.no_grad():
        exact = model.attend(images)
        with torch.autocast("cpu", torch.bfloat16):
            attended = model.attend(images)
    # On the scale of the logits: rounding to 8 bits in 15 layers leaves a few per cent. In an untrained ResNet the
    # scores of two positions can be so large and so close that rounding decides which one the softmax picks.
    assert attended.logits.dtype == torch.float32
    assert attended.logits.isfinite().all()
    if not name.startswith("resnet164-"):
        assert (attended.logits - exact.logits).abs().max() < 0.1 * exact.logits.abs().max()
    for level, weights in attended.maps.items():
        scores = attended.scores[level]
        assert weights.dtype == scores.dtype == torch.float32
        assert (scores - exact.scores[level]).abs().mean() < 0.1 * exact.scores[level].abs().max()
        if "-att" in name and normalizer == "softmax":
            assert_close(weights.sum(dim=(1, 2)), torch.ones(2), 1e-5)


# --- normalization ---------------------------------------------------------------------------------------------------


@each_model
def test_normalization_is_minus_mean_by_std(name):
    mean, std = (0.49, 0.48, 0.45), (0.2, 0.24, 0.26)
    images = pictures(dtype=torch.float64)
    model = settled(build(name, mean=mean, std=std).double(), images)
    plain = build(name, mean=(0, 0, 0), std=(1, 1, 1)).double().eval()
    plain.load_state_dict({**model.state_dict(), "mean": plain.mean, "std": plain.std})
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        assert_close(plain.normalize(images), images, 0)
        assert_close(model.normalize(images), by_hand, 1e-6)  # the buffers were made in float32
        exact = (images - model.state_dict()["mean"]) / model.state_dict()["std"]
        assert_close(model(images), plain(exact), 1e-12)
        assert (model(images) - plain(images)).abs().max() > 1e-6
        plain.set_normalization(mean, std)
        assert_close(plain(images), model(images), 1e-6)


@each_model
def test_mean_and_std_are_buffers(name):
    model = build(name, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    buffers, parameters = dict(model.named_buffers()), dict(model.named_parameters())
    assert_close(buffers["mean"].flatten(), torch.tensor([0.1, 0.2, 0.3]), 1e-7)
    assert_close(buffers["std"].flatten(), torch.tensor([0.4, 0.5, 0.6]), 1e-7)
    assert not {"mean", "std"} & set(parameters)
    assert {"mean", "std"} <= set(model.state_dict())


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "normalizer"),
    [
        ("vgg", "softmax"),
        ("vgg-late", "softmax"),
        ("vgg-att3-concat-pc", "softmax"),
        ("vgg-att3-concat-add", "sigmoid"),
    ],
)
def test_export(name, normalizer):
    model, images = build(name, normalizer=normalizer).eval(), pictures()
    program = torch.export.export(model, (images,))
    other = pictures(seed=1)
    with torch.no_grad():
        assert_close(program.module()(other), model(other), 1e-5)


# --- names and errors ------------------------------------------------------------------------------------------------


def test_list_models():
    names = list_models()
    assert len(names) == len(set(names))
    wanted = {f"vgg-{att}-concat-{kind}" for att in ("att", "att2", "att3") for kind in ("pc", "dp", "add")}
    assert {"vgg", "vgg-late"} | wanted <= set(names)
    assert list_models("vgg") == ["vgg"]
    assert set(list_models("vgg-att3-concat-*")) == {f"vgg-att3-concat-{kind}" for kind in ("pc", "dp", "add")}
    assert all(name.endswith("-pc") for name in list_models("*-pc"))
    assert len(list_models("*-pc")) >= 3
    assert list_models("nothing*") == []
    names.clear()
    assert list_models(), "the caller's list is not the package's"


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("vgg-att3-concat-pd", "vgg-att3-concat-(pc|dp)"),
        ("vgg-lat", "vgg-late"),
        ("VGG-late", "vgg-late"),
        ("vgg_att2_concat_add", "vgg-att2-concat-add"),
        ("vggatt-concat-dp", "vgg-att-concat-dp"),
    ],
)
def test_unknown_model_names_the_closest(name, closest):
    with pytest.raises(ValueError, match=re.escape(name)) as error:
        create_model(name, 10)
    named = re.findall(r"vgg[a-z0-9-]*", str(error.value).replace(name, "", 1))
    assert re.fullmatch(closest, named[0]), str(error.value)


@pytest.mark.parametrize("name", ["", "resnet", None, 3, ["vgg"]])
def test_names_that_are_like_none(name):
    with pytest.raises((ValueError, TypeError), match="vgg"):
        create_model(name, 10)


@each_model
@pytest.mark.parametrize("normalizer", ["softmx", "Softmax", "", None])
def test_unknown_normalizer(name, normalizer):
    with pytest.raises(ValueError, match="softmax"):
        create_model(name, 10, width=TINY, normalizer=normalizer)


@pytest.mark.parametrize("name", ["vgg", "vgg-att3-concat-pc"])
@pytest.mark.parametrize(
    ("num_classes", "error"),
    [(1, ValueError), (0, ValueError), (-3, ValueError), (True, TypeError), (2.5, TypeError), ("10", TypeError)],
)
def test_bad_num_classes(name, num_classes, error):
    with pytest.raises(error, match="num_classes"):
        create_model(name, num_classes, width=TINY)


@pytest.mark.parametrize("name", ["vgg", "vgg-att3-concat-pc"])
@pytest.mark.parametrize(
    ("width", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("a", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_bad_width(name, width, error):
    with pytest.raises(error, match="width"):
        create_model(name, 10, width=width)


@each_model
def test_images_must_be_float(name):
    model = build(name).eval()
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")):
            model(torch.zeros(1, 3, 32, 32, dtype=dtype))
    with pytest.raises(TypeError, match="float"):
        model.attend(torch.zeros(1, 3, 32, 32).numpy())


WRONG_SHAPES = {
    (1, 1, 32, 32): r"\(1, 1, 32, 32\)",
    (1, 4, 32, 32): r"\(1, 4, 32, 32\)",
    (1, 32, 32, 3): r"\(1, 32, 32, 3\)",
    (3, 32, 32): r"\(3, 32, 32\)",
    (1, 1, 3, 32, 32): r"\(1, 1, 3, 32, 32\)",
    (1, 3, 31, 40): r"31\D+40",
    (1, 3, 40, 31): r"40\D+31",
}


@each_model
def test_images_of_a_wrong_shape_are_refused(name):
    model = build(name).eval()
    for shape, message in WRONG_SHAPES.items():
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape))
        with pytest.raises(ValueError, match=message):
            model.attend(torch.zeros(shape))
