"""The VGG networks against a functional evaluation and the paper's tables; the interface of every model."""

import copy
import math
import pickle
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from ltpa.models import networks
from ltpa.models.backbones import Trunk
from ltpa.models.classifier import evaluation_mode
from ltpa.models.networks import PAPER_NAMES, create_model, list_models
from tests.models.helpers import (
    ATTENTION,
    MEAN_STD,
    MODELS,
    NORMALIZERS,
    assert_close,
    assert_same_maps,
    build,
    expected_events,
    gradients,
    is_dead,
    levels_of,
    pictures,
    record,
    scrambled,
    settled,
    state_of,
)
from tests.tools import reference

each_model = pytest.mark.parametrize("name", MODELS)
each_attention = pytest.mark.parametrize("name", ATTENTION)
each_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS)


# --- the whole network, step by step


@torch.no_grad()
def compare_with_reference(name, images, **options):
    model = scrambled(build(name, **MEAN_STD, **options))
    output = model.attend(images)
    normalizer, head_norm = options.get("normalizer", "softmax"), options.get("head_norm", True)
    logits, maps = reference.network(state_of(model), name, images, normalizer, head_norm)
    assert output.logits.dtype == torch.float64
    assert (logits[0] - logits[1]).abs().max() > 3e-4, "two images must not look alike"
    assert_close(output.logits, logits, 1e-10)
    assert_same_maps(output.maps, maps, 1e-10)


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (33, 47)])
def test_network_without_attention_step_by_step(size):
    for name in ("vgg", "vgg-late", "vgg-late-norm"):
        compare_with_reference(name, pictures(2, *size, dtype=torch.float64))


@each_attention
def test_network_with_attention_step_by_step(name):
    for normalizer in NORMALIZERS:
        compare_with_reference(name, pictures(dtype=torch.float64), normalizer=normalizer)


@pytest.mark.parametrize("options", [{"head_norm": False}, {"faithful": True}, {"head_norm": False, "faithful": True}])
def test_network_with_options_step_by_step(options):
    for name in ("vgg-att-concat-pc", "vgg-att2-concat-dp", "vgg-att3-concat-add"):
        compare_with_reference(name, pictures(dtype=torch.float64), **options)


@pytest.mark.parametrize("name", ["vgg-att-concat-dp", "vgg-att-concat-add"])
def test_larger_images_average_before_the_fully_connected_layer(name):
    compare_with_reference(name, pictures(2, 33, 47, dtype=torch.float64), normalizer="sigmoid")


# --- the tables of the paper and of the authors' code


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
    assert round(sum(macs[:13]) / 1e9, 2) == 3.74
    assert round(sum(macs) / 1e9, 2) == 3.79


def test_vgg_is_the_table():
    events, macs = record(build("vgg", 10, width=1.0), pictures())
    assert events == [*expected_events(reference.VGG16_TABLE), *FC, *NORM, ("linear", 512, 10)]
    assert round(sum(macs.values()) / 1e9, 2) == 0.31


def test_vgg_late_is_the_attention_trunk_with_g_classified():
    events, _ = record(build("vgg-late", 10, width=1 / 8), pictures())
    table = [(name, channels // 8, size, rate) for name, channels, size, rate in reference.LATE_TABLE]
    assert events == [*expected_events(table), ("dropout", 0.5), ("linear", 64, 64), ("linear", 64, 10)]


def test_controls_differ_from_their_models_in_one_part():
    """The head of the attention models on `g`; average pooling with that head; uniform weights without u."""
    late = record(build("vgg-late", 10, width=1 / 8), pictures())[0]
    assert record(build("vgg-late-norm", 10, width=1 / 8), pictures())[0] == [*late[:-1], *NORM, late[-1]]
    gap = record(build("vgg-gap", 10, width=1 / 8), pictures())[0]
    assert record(build("vgg-att-concat-uniform", 10, width=1 / 8), pictures())[0] == [*gap[:-1], *NORM, gap[-1]]
    flagship, uniform, static = (
        {name: value.shape for name, value in build(f"vgg-att3-concat-{kind}").named_parameters()}
        for kind in ("pc", "uniform", "static")
    )
    assert uniform == {name: shape for name, shape in flagship.items() if not name.endswith(".u")}
    assert {name: shape for name, shape in static.items() if not name.endswith(".b")} == uniform
    own, control = (build(f"vgg-att-concat-{kind}", width=1 / 16).eval() for kind in ("pc", "uniform"))
    control.load_state_dict({name: value for name, value in own.state_dict().items() if not name.endswith(".u")})
    local = own.trunk(own.normalize(pictures()))["conv13"]
    assert_close(control.attend(pictures()).descriptors["conv13"], local.mean((2, 3)), 1e-6)


def test_head_norm_false_leaves_batch_norm_relu_and_dropout_out():
    events, _ = record(build("vgg-att2-concat-dp", 10, width=1 / 8, head_norm=False), pictures())
    assert events[-2:] == [("linear", 64, 64), ("linear", 128, 10)]


def test_parameter_counts(flagship):
    def count(*modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    branch = 2 * (512 * 512 * 9 + 3 * 512) + 512 * 513  # conv14, conv15, fc
    assert round(count(flagship) / 1e6, 2) == 19.86
    assert count(flagship.global_branch) == branch
    assert count(flagship) - count(create_model("vgg-att3-concat-pc", 10)) == branch


@pytest.mark.parametrize("width", [1 / 8, 0.3, 1.5 / 64])
def test_width_scales_every_channel_count(width):
    for name, count in (("vgg", 13), ("vgg-att3-concat-dp", 15)):
        model = build(name, width=width)
        channels = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
        table = [row[1] for row in reference.LATE_TABLE][:count]
        assert all(abs(actual - full * width) <= 0.5 for actual, full in zip(channels, table, strict=True)), channels
        top = channels[-1]
        linear = sorted((m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear))
        rest = [(top, 5)] if name == "vgg" else [(channels[6], top), (3 * top, 5)]
        assert linear == sorted([(top, top), *rest])


# --- initial weights


def test_convolutions_start_he_normal_with_fan_out(flagship):
    for conv in [module for module in flagship.modules() if isinstance(module, nn.Conv2d)]:
        weight = conv.weight.detach().double()
        std = math.sqrt(2 / (9 * conv.out_channels))
        error = 5 / math.sqrt(2 * weight.numel())  # five standard errors of an estimated standard deviation
        assert abs(weight.std() / std - 1) < error
        assert abs(weight.mean()) < 5 * std / math.sqrt(weight.numel())
        kurtosis = ((weight / std) ** 4).mean()
        assert abs(kurtosis - 3) < 5 * math.sqrt(96 / weight.numel()), "normal, neither uniform nor truncated"


@each_model
def test_initial_norms_biases_and_u_and_the_seed(name):
    model, same, other = (build(name, seed=seed) for seed in (0, 0, 1))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d) and module.bias is not None:
            assert (module.bias == 0).all()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.weight == 1).all()
    us = [parameter for key, parameter in model.named_parameters() if key.endswith(".u")]
    if "-att" in name:
        assert len(us) == (0 if name.endswith("-dp") else len(levels_of(name))), "one u a level"
    assert all((u != 0).all() for u in us)
    assert len({tuple(u.tolist()) for u in us}) == len(us)
    one, same, other = (m.state_dict() for m in (model, same, other))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


# --- dropout


@each_model
def test_dropout(name):
    images = pictures(4)
    model, dropping = (build(name, dropout=value).train() for value in (False, True))
    assert torch.equal(model(images), model(images))
    assert torch.allclose(dropping(images), dropping(images)) is (name == "resnet164"), "it alone has no dropout"
    logits = [build(name, dropout=value).eval()(images) for value in (False, True)]
    assert torch.equal(*logits), "without effect in evaluation mode"


# --- what the loss can tell the global branch, and a query the maps


@each_attention
@each_normalizer
def test_gradient_of_the_global_branch(name, normalizer):
    """Softmax + pc: exactly nothing reaches conv14, conv15 and fc. Everything else: they learn."""
    sums = gradients(name, normalizer)
    branch = {key: value for key, value in sums.items() if key.startswith("global_branch.")}
    assert len(branch) == 2 * 4 + 2
    local = sum(value for key, value in sums.items() if re.match(r"trunk\.conv1[123]\.0\.weight", key))
    assert local > 1e-3
    if is_dead(name, normalizer):
        assert max(branch.values()) < 1e-10 * local
    else:
        for layer in ("conv14.0.weight", "conv15.0.weight", "fc.weight"):
            assert branch[f"global_branch.{layer}"] > 1e-4 * local, layer


def test_gradient_of_the_global_branch_without_head_norm():
    for normalizer in NORMALIZERS:
        sums = gradients("vgg-att3-concat-pc", normalizer, head_norm=False)
        ratio = sums["global_branch.fc.weight"] / sums["trunk.conv13.0.weight"]
        assert ratio < 1e-10 if normalizer == "softmax" else ratio > 1e-4


@pytest.fixture
def unwarned():
    """As in a process that has not warned yet."""
    networks._warn_that_no_query_matters.cache_clear()


@torch.no_grad()
def attend_quietly(model, images, query):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.attend(images, query=query)


QUERIED = ["vgg-att3-concat-dp", "vgg-att2-indep-add", "vgg-att3-concat-pc"]


@pytest.mark.parametrize("name", QUERIED)
@each_normalizer
def test_query_step_by_step(name, normalizer):
    """The scores are those of the images' local features with the query's g, the logits those of these maps."""
    model = scrambled(build(name, normalizer=normalizer))
    images, query = pictures(dtype=torch.float64), pictures(2, 64, 40, dtype=torch.float64, seed=9)
    output = attend_quietly(model, images, query)
    logits, maps = reference.network(state_of(model), name, images, normalizer, query=query)
    own, _ = reference.network(state_of(model), name, images, normalizer)
    assert_close(output.logits, logits, 1e-10)
    assert_same_maps(output.maps, maps, 1e-10)
    assert ((logits - own).abs().max().item() < 1e-10) is is_dead(name, normalizer), "a query must matter if it can"


@pytest.mark.parametrize("name", [QUERIED[0], "resnet164-att2-concat-dp"])
@torch.no_grad()
def test_own_image_as_query_changes_nothing(name):
    model, images = settled(build(name), pictures(3)), pictures(3)
    one, other, third = (model.attend(images, query=query) for query in (None, images, images.flip(0)))
    assert torch.equal(one.logits, other.logits)
    assert all(torch.equal(one.maps[level], other.maps[level]) for level in one.maps)
    last = list(one.maps)[-1]
    assert not torch.equal(one.maps[last][0], third.maps[last][0])


@pytest.mark.parametrize("name", QUERIED)
@pytest.mark.parametrize("faithful", [False, True])
def test_one_query_for_many_images_and_one_image_for_many_queries(name, faithful):
    model = scrambled(build(name, faithful=faithful))
    images = pictures(3, dtype=torch.float64)
    query = pictures(3, 40, 32, dtype=torch.float64, seed=9)
    for left, right in ((images, query[:1]), (images[:1], query), (images[:1], query[:1])):
        count = max(len(left), len(right))
        output = attend_quietly(model, left, right)
        expected = attend_quietly(model, left.expand(count, -1, -1, -1), right.expand(count, -1, -1, -1))
        assert output.logits.shape == (count, 5)
        assert_close(output.logits, expected.logits, 1e-12)
        assert_same_maps(output.maps, expected.maps, 1e-12)
        assert_same_maps(output.scores, expected.scores, 1e-12)
        assert (output.global_feature is None) is (expected.global_feature is None)
        if expected.global_feature is not None:
            assert_close(output.global_feature, expected.global_feature, 1e-12)


@pytest.mark.parametrize("faithful", [False, True])
@torch.no_grad()
def test_softmax_pc_warns_once_that_a_query_cannot_matter(faithful, unwarned):
    model = build("vgg-att3-concat-pc", faithful=faithful).eval()
    images, query = pictures(3), pictures(1, 48, 48, seed=9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        own = model.attend(images)
        outputs = [model.attend(images, query=query) for _ in range(3)]
        build("vgg-att-indep-pc").attend(images, query=query)
    assert ["the query changes nothing" in str(one.message) for one in caught] == [True]
    assert caught[0].filename == __file__
    for output in outputs:
        assert torch.equal(output.logits, own.logits)
        assert all(torch.equal(output.maps[level], own.maps[level]) for level in own.maps), "bit by bit"


@pytest.mark.parametrize("name", ["vgg-att3-concat-pc", "resnet164-att2-concat-pc"])
@torch.no_grad()
def test_a_query_makes_sigmoid_pc_stronger_or_weaker_and_never_reorders(name, unwarned):
    """sigmoid(s_i + c): the scores of a level move by one constant, so the gates all grow or all shrink."""
    images, query = pictures(4, dtype=torch.float64), pictures(4, 48, 48, dtype=torch.float64, seed=9)
    model = settled(build(name, normalizer="sigmoid", dropout=False, width=1 / 16).double(), images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own, other = model.attend(images), model.attend(images, query=query)
    for level in own.maps:
        shift = (other.scores[level] - own.scores[level]).flatten(1)
        assert shift.abs().min() > 1e-6
        assert_close(shift, shift[:, :1].expand_as(shift), 1e-9)
        change = (other.maps[level] - own.maps[level]).flatten(1)
        assert (change * shift.sign()).min() >= 0, "all gates of an image change the same way"
        order = own.scores[level].flatten(1).argsort(dim=1)
        assert other.maps[level].flatten(1).gather(1, order).diff(dim=1).min() > -1e-12, "the ranking stays"


@pytest.mark.parametrize("name", ["vgg", "vgg-late", "vgg-gap", "vgg-pan", "resnet164"])
def test_models_that_refuse_a_query(name):
    with pytest.raises(ValueError, match=r"list_models\('\*-dp'\)") as caught:
        build(name).eval().attend(pictures(), query=pictures())
    assert ("target=" in str(caught.value)) is (name == "vgg-gap")


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        (torch.zeros(3, 3, 32, 32), ValueError, "2 images and 3 queries: give one query for each image"),
        (torch.zeros(0, 3, 32, 32), ValueError, "2 images and 0 queries"),
        (torch.zeros(1, 1, 32, 32), ValueError, r"query .*\(1, 1, 32, 32\)"),
        (torch.zeros(2, 3, 32, 31), ValueError, "query must be at least 32x32 pixels, not 32x31"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "query must be a float tensor.*query / 255"),
        ("deer", TypeError, "query must be a tensor"),
    ],
)
def test_queries_that_cannot_be_used(query, error, words):
    for name in ("vgg-att-concat-dp", "vgg-att-concat-pc"):
        with pytest.raises(error, match=words):
            build(name).eval().attend(pictures(), query=query)


# --- faithful or not


@each_attention
@each_normalizer
@torch.no_grad()
def test_global_branch_is_left_out_exactly_where_it_is_dead(name, normalizer):
    slim, faithful = (build(name, normalizer=normalizer, faithful=value) for value in (False, True))
    dead = is_dead(name, normalizer)
    assert slim.uses_global_feature is faithful.uses_global_feature is not dead
    weights, all_weights = slim.state_dict(), faithful.state_dict()
    branch = {key for key in all_weights if key.startswith("global_branch.")}
    assert len(branch) == 2 * 7 + 2
    assert set(all_weights) - set(weights) == (branch if dead else set())
    assert all(torch.equal(value, all_weights[key]) for key, value in weights.items()), "one seed, other weights"
    images = pictures(dtype=torch.float64)
    faithful = scrambled(faithful)
    slim.double().eval().load_state_dict(faithful.state_dict(), strict=False)
    one, other = slim.attend(images), faithful.attend(images)
    assert (one.global_feature is None) is dead
    assert other.global_feature.shape == (2, 16)
    assert_close(one.logits, other.logits, 1e-12)
    assert_same_maps(one.maps, other.maps, 1e-12)


def test_leaving_the_dead_branch_out_trains_alike():
    models = [build("vgg-att3-concat-pc", faithful=value, dropout=False).double().train() for value in (False, True)]
    images, labels = pictures(4, dtype=torch.float64), torch.arange(4)
    for model in models:
        nn.functional.cross_entropy(model(images), labels).backward()
    slim, faithful = (dict(model.named_parameters()) for model in models)
    for key, parameter in slim.items():
        assert_close(parameter.grad, faithful[key].grad, 1e-9)


# --- every model


@pytest.mark.parametrize("name", PAPER_NAMES)
@torch.no_grad()
def test_every_name_makes_a_model_that_answers(name):
    model = build(name, 7).eval()
    assert model(pictures()).shape == (2, 7)
    assert model.name == name


@each_model
@pytest.mark.parametrize(("normalizer", "size"), [("softmax", (32, 32)), ("sigmoid", (48, 64))])
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
@torch.no_grad()
def test_images_of_a_batch_do_not_mix_in_eval_mode_and_memory_formats_do_not_matter(name):
    images = pictures(3, dtype=torch.float64)
    model = settled(build(name, width=1 / 16).double(), images)
    together = model(images)
    for index in range(3):
        assert_close(model(images[index : index + 1])[0], together[index], 1e-9)
    model.to(memory_format=torch.channels_last)
    assert_close(model(images.contiguous(memory_format=torch.channels_last)), together, 1e-9)


@each_model
@torch.no_grad()
def test_widths(name):
    for width in (0.1, 0.001):
        assert build(name, width=width).eval()(pictures()).isfinite().all()


@each_model
@each_normalizer
@torch.no_grad()
def test_attend_agrees_with_forward_and_maps_with_scores(name, normalizer):
    model, images = build(name, normalizer=normalizer).eval(), pictures()
    output = model.attend(images)
    assert torch.equal(output.logits, model(images))
    assert isinstance(output.maps, OrderedDict)
    assert list(output.scores) == list(output.maps)
    assert (len(output.maps) == 0) is (name in ("vgg", "vgg-late", "resnet164"))
    for level, weights in output.maps.items():
        scores = output.scores[level]
        assert weights.shape == scores.shape
        assert weights.dtype == scores.dtype == torch.float32
        if level == "cam":
            assert torch.equal(weights, scores.relu())
        elif normalizer == "softmax" and (name, level) != ("vgg-pan", "conv10"):
            assert_close(weights.sum(dim=(1, 2)), torch.ones(2), 1e-5)
            assert_close(weights, scores.flatten(1).softmax(dim=1).view_as(scores), 1e-6)
        else:
            assert_close(weights, scores.sigmoid(), 1e-6)


@torch.no_grad()
def test_sizes_of_the_maps():
    model = build("vgg-att3-concat-pc").eval()
    for (height, width), sizes in {
        (32, 32): [(32, 32), (16, 16), (8, 8)],
        (33, 47): [(33, 47), (16, 23), (8, 11)],
        (96, 64): [(96, 64), (48, 32), (24, 16)],
    }.items():
        maps = model.attend(pictures(2, height, width)).maps
        assert [(level, tuple(weights.shape[1:])) for level, weights in maps.items()] == list(
            zip(reference.LEVELS["att3"], sizes, strict=True)
        )


@each_model
@torch.no_grad()
def test_copies_give_the_same_logits(name):
    model = build(name).train()
    for seed in range(2):  # so that the batch-norm statistics are not the initial ones
        model(pictures(4, seed=seed))
    model.set_normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model.classes = tuple("abcde")
    model.eval()
    images = pictures()
    logits = model(images)
    loaded = build(name, seed=1).eval()
    assert not torch.allclose(loaded(images), logits)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(images), logits)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), logits)
        assert twin.uses_global_feature == model.uses_global_feature
        assert (twin.name, twin.classes) == (name, model.classes)
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}


@each_model
@each_normalizer
@torch.no_grad()
def test_bf16_autocast(name, normalizer):
    images = pictures()
    model = settled(build(name, normalizer=normalizer, width=1 / 16), images)
    exact = model.attend(images)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.attend(images)
    # On the scale of the logits: rounding to 8 bits in 15 layers leaves a few per cent. In an untrained ResNet the
    # scores of two positions can be so large and so close that rounding decides which one the softmax picks.
    assert output.logits.dtype == torch.float32
    assert output.logits.isfinite().all()
    if not name.startswith("resnet164-"):
        assert (output.logits - exact.logits).abs().max() < 0.1 * exact.logits.abs().max()
    for level, weights in output.maps.items():
        scores = output.scores[level]
        assert weights.dtype == scores.dtype == torch.float32
        assert (scores - exact.scores[level]).abs().mean() < 0.1 * exact.scores[level].abs().max()
        if "-att" in name and normalizer == "softmax":
            assert_close(weights.sum(dim=(1, 2)), torch.ones(2), 1e-5)


@each_model
@torch.no_grad()
def test_normalization_is_minus_mean_by_std(name):
    mean, std = (0.49, 0.48, 0.45), (0.2, 0.24, 0.26)
    images = pictures(dtype=torch.float64)
    model = settled(build(name, mean=mean, std=std).double(), images)
    plain = build(name, mean=(0, 0, 0), std=(1, 1, 1)).double().eval()
    plain.load_state_dict({**model.state_dict(), "mean": plain.mean, "std": plain.std})
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    assert_close(plain.normalize(images), images, 0)
    assert_close(model.normalize(images), by_hand, 1e-6)  # the buffers were made in float32
    assert_close(model(images), plain((images - model.state_dict()["mean"]) / model.state_dict()["std"]), 1e-12)
    assert (model(images) - plain(images)).abs().max() > 1e-6
    plain.set_normalization(mean, std)
    assert_close(plain(images), model(images), 1e-6)
    assert not {"mean", "std"} & set(dict(model.named_parameters()))


@pytest.mark.parametrize(
    ("name", "normalizer"),
    [
        ("vgg-gap", "softmax"),
        ("vgg-pan", "sigmoid"),
        ("vgg-att-concat-pc", "softmax"),
        ("vgg-att2-indep-add", "sigmoid"),
        ("resnet164-att-concat-dp", "softmax"),
    ],
)
def test_export(name, normalizer):
    model, images = build(name, normalizer=normalizer).eval(), pictures()
    program = torch.export.export(model, (images,))
    other = pictures(seed=1)
    with torch.no_grad():
        assert_close(program.module()(other), model(other), 1e-5)


@each_model
def test_a_printed_model_is_a_summary(name):
    model = build(name, 10, normalizer="sigmoid")
    model.classes = tuple(f"class{number}" for number in range(10))
    text = str(model)
    assert len(text.splitlines()) < 12
    assert all(len(line) <= 120 for line in text.splitlines())
    assert {name, "10 classes", "class9", f"{sum(p.numel() for p in model.parameters()):,} parameters"} <= set(
        re.findall(rf"{name}|10 classes|class9|[\d,]+ parameters", text)
    )
    for level in getattr(model, "attention", ()):
        assert re.search(rf"{level}: \d+ channels, .*sigmoid", text)
    assert "Conv2d" in repr(model.trunk)


class StridedTrunk(Trunk):
    """A trunk that this package does not know, with levels of two widths."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=4), nn.Conv2d(6, 8, 3, stride=2)
        self.channels = {"first": 6, "second": 8}

    def forward(self, x):
        first = self.first(x)
        return OrderedDict(first=first, second=self.second(first))


def test_attention_reads_from_any_trunk():
    branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = networks.AttentionNetwork(5, StridedTrunk(), lambda: branch, ("first", "second"), compatibility="dp")
    output = model.attend(pictures(3, 40, 48))
    assert output.logits.shape == (3, 5)
    assert [tuple(maps.shape) for maps in output.maps.values()] == [(3, 10, 12), (3, 4, 5)]
    assert "first: 6 channels, dp scores" in str(model)


def test_evaluation_mode_restores_every_module():
    model = build("vgg-late").train()
    model.trunk.conv3.eval()
    modes = [module.training for module in model.modules()]

    def fail():
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [module.training for module in model.modules()] == modes


# --- names and errors


def test_list_models():
    names = list_models()
    assert len(names) == len(set(names))
    assert len(PAPER_NAMES) == 6 + (3 + 2) * 2 * 3 + 5
    assert tuple(names[: len(PAPER_NAMES)]) == PAPER_NAMES
    for family in ("vgg-att", "vgg-att2", "vgg-att3", "resnet164-att", "resnet164-att2"):
        for combine in ("concat", "indep"):
            assert {f"{family}-{combine}-{kind}" for kind in ("dp", "pc", "add")} <= set(names)
    assert {"vgg", "vgg-late", "vgg-late-norm", "vgg-gap", "vgg-pan", "resnet164"} <= set(names)
    assert list_models("vgg") == ["vgg"]
    kinds = ("pc", "dp", "add", "sdp", "uniform", "static", "permuted")
    assert set(list_models("vgg-att3-concat-*")) == {f"vgg-att3-concat-{kind}" for kind in kinds}
    assert list_models("nothing*") == []
    names.clear()
    assert list_models(), "the caller's list is not the package's"


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("vgg-att3-concat-pd", "vgg-att3-concat-(pc|dp)"),
        ("VGG-late", "vgg-late(-norm)?"),
        ("vgg_att2_concat_add", "vgg-att2-concat-add"),
        ("resnet-164", "resnet164"),
        ("resnet164-att3-concat-pc", "resnet164-.*"),
    ],
)
def test_unknown_model_names_the_closest(name, closest):
    with pytest.raises(ValueError, match=f"{name}'.*did you mean '{closest}'"):
        create_model(name, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        *(({"name": name}, ValueError, "vgg") for name in ("", None, 3, ["vgg"])),
        *(({"normalizer": name}, ValueError, "softmax") for name in ("softmx", "Softmax", "", None)),
        *(({"num_classes": number}, ValueError, "num_classes") for number in (1, 0, -3)),
        *(({"num_classes": number}, TypeError, "num_classes") for number in (True, 2.5, "10")),
        *(({"width": number}, ValueError, "width") for number in (0, -1, math.nan, math.inf)),
        *(({"width": number}, TypeError, "width") for number in ("a", None, True)),
        ({"faithful": 1}, TypeError, "faithful"),
        ({"std": (1, 1, 0)}, ValueError, "std"),
        ({"mean": (1, 1)}, ValueError, "mean"),
    ],
)
def test_arguments_that_make_no_model(arguments, error, word):
    for name in ("vgg", "vgg-att3-concat-pc"):
        with pytest.raises(error, match=word):
            create_model(**{"name": name, "num_classes": 10, "width": 1 / 32, **arguments})


@each_model
def test_images_that_no_model_can_read(name):
    model = build(name).eval()
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")):
            model(torch.zeros(1, 3, 32, 32, dtype=dtype))
    with pytest.raises(TypeError, match="must be a tensor"):
        model.attend(torch.zeros(1, 3, 32, 32).numpy())
    for shape in ((1, 1, 32, 32), (1, 4, 32, 32), (1, 32, 32, 3), (3, 32, 32), (1, 1, 3, 32, 32)):
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            model(torch.zeros(shape))
    for shape, words in {(1, 3, 31, 40): r"31\D+40", (1, 3, 40, 31): r"40\D+31"}.items():
        with pytest.raises(ValueError, match=words):
            model.attend(torch.zeros(shape))
