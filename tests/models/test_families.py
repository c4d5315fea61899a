"""VGG-GAP, VGG-PAN, ResNet-164 and one classifier a level, against references written from the paper's description."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltpa.models.networks import create_model
from tests.models import helpers
from tests.models.helpers import (
    MEAN_STD,
    NORMALIZERS,
    assert_close,
    assert_same_maps,
    build,
    gradients,
    is_dead,
    levels_of,
    pictures,
    state_of,
)
from tests.tools import reference

# Each compatibility with one level and with two, both combinations; `test_networks.py` builds every name.
RESNET_ATTENTION = [f"resnet164-{kind}" for kind in (
    "att-concat-dp", "att-indep-pc", "att-concat-add", "att2-indep-dp", "att2-concat-pc", "att2-indep-add",
)]  # fmt: skip
SIZES = [(32, 32), (96, 64), (33, 47)]
each_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS)
each_size = pytest.mark.parametrize("size", SIZES)


def scrambled(model, images):
    return helpers.settled(helpers.scrambled(model), images)


# --- references


def norm(state, prefix, x, eps=1e-5):
    mean, var, weight, bias = (state[f"{prefix}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    scale = weight / torch.sqrt(var + eps)
    return x * scale.view(-1, 1, 1) + (bias - mean * scale).view(-1, 1, 1)


def trunk(state, x, layers):
    for number in layers:
        x = reference.conv(state, f"trunk.conv{number}", x)
    return x


def gap(state, images):
    """Logits, and what each class finds at each position: sum_k w_ck f_k(i), (N, classes, h, w)."""
    x = trunk(state, (images - state["mean"]) / state["std"], range(1, 8))
    x = trunk(state, reference.pool(x), (8, 9, 10))
    features = trunk(state, reference.pool(x), (11, 12, 13))
    weight, bias = state["head.classifiers.0.weight"], state["head.classifiers.0.bias"]
    logits = (features.sum((2, 3)) / (features.shape[2] * features.shape[3])) @ weight.T + bias
    evidence = torch.zeros(len(images), len(weight), *features.shape[2:], dtype=torch.float64)
    for label in range(len(weight)):
        for channel in range(features.shape[1]):
            evidence[:, label] += weight[label, channel] * features[:, channel]
    return logits, evidence


def vgg_branch(state, prefix, x, first_pool):
    x = reference.conv(state, f"{prefix}.conv14", F.max_pool2d(x, first_pool))
    x = reference.conv(state, f"{prefix}.conv15", reference.pool(x))
    return reference.linear(state, f"{prefix}.fc", reference.average(reference.pool(x)))


def pan(state, images, normalizer):
    """Logits, maps {level: (N, h, w)}."""
    x = trunk(state, (images - state["mean"]) / state["std"], range(1, 8))
    x = trunk(state, reference.pool(x), (8, 9, 10))
    g = vgg_branch(state, "gate_branch", x, 4)
    _, gates, _ = reference.attend_loops(x, g, "pc", "sigmoid", u=state["attention.conv10.u"])
    gated = x * gates[:, None]
    last = trunk(state, reference.pool(gated), (11, 12, 13))
    if "global_branch.fc.weight" in state:
        g = vgg_branch(state, "global_branch", last, 2)
    else:  # without effect: any will do
        g = torch.randn(len(images), last.shape[1], dtype=torch.float64)
    descriptor, weights, _ = reference.attend_loops(last, g, "pc", normalizer, u=state["attention.conv13.u"])
    hidden = F.relu(reference.batch_norm(state, "head.norms.0.0", descriptor))
    return reference.linear(state, "head.classifiers.0", hidden), {"conv10": gates, "conv13": weights}


def resnet_stages(state, images):
    """Ends of the three stages: 18 pre-activation bottlenecks each, a projection in the first of each."""
    x = F.conv2d((images - state["mean"]) / state["std"], state["trunk.conv1.weight"], padding=1)
    ends = []
    for stage in (1, 2, 3):
        for number in range(18):
            block = f"trunk.stage{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            before = F.relu(norm(state, f"{block}.bn1", x))
            y = F.conv2d(before, state[f"{block}.conv1.weight"])
            y = F.conv2d(F.relu(norm(state, f"{block}.bn2", y)), state[f"{block}.conv2.weight"], None, stride, 1)
            y = F.conv2d(F.relu(norm(state, f"{block}.bn3", y)), state[f"{block}.conv3.weight"])
            if number == 0:
                x = F.conv2d(before, state[f"{block}.shortcut.weight"], stride=stride)
            x = x + y
        ends.append(x)
    return ends


def resnet(state, name, images, normalizer, head_norm=True):
    """Logits, maps {level: (N, h, w)}, g."""
    _, *ends = resnet_stages(state, images)
    if name == "resnet164":
        g = reference.average(F.relu(norm(state, "norm", ends[1])))
        return reference.linear(state, "head.classifiers.0", g), {}, g
    local = dict(zip(("stage2", "stage3"), ends, strict=True))
    g = None
    if "global_branch.fc.weight" in state:
        x = reference.pool(F.relu(norm(state, "global_branch.norm", ends[1])))
        x = reference.conv(state, "global_branch.conv", x)
        g = reference.linear(state, "global_branch.fc", reference.average(F.max_pool2d(x, 4)))
    _, _, combine, kind = name.split("-")
    keys = {"u": "u", "width_map": "W.weight", "w_l": "W_l.weight", "w_g": "W_g.weight"}
    descriptors, maps = [], {}
    for index, level in enumerate(levels_of(name)):
        parameters = {key: state.get(f"attention.{level}.{theirs}") for key, theirs in keys.items()}
        query = torch.randn(len(images), ends[1].shape[1], dtype=torch.float64) if g is None else g
        descriptor, maps[level], _ = reference.attend_loops(local[level], query, kind, normalizer, **parameters)
        if head_norm:
            descriptor = F.relu(reference.batch_norm(state, f"head.norms.{index}.0", descriptor))
        descriptors.append(descriptor)
    if combine == "concat":
        return reference.linear(state, "head.classifiers.0", torch.cat(descriptors, dim=1)), maps, g
    logits = [reference.linear(state, f"head.classifiers.{index}", d) for index, d in enumerate(descriptors)]
    return sum(logits) / len(logits), maps, g


def images_differ(logits):
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max(), "two images must not look alike"


def compare_maps(maps, expected):
    assert_same_maps(maps, expected)
    for weights in expected.values():
        spread = weights.flatten(1).amax(dim=1) - weights.flatten(1).amin(dim=1)
        assert spread.min() > 1e-3 * weights.mean(), "a map that says nothing tests nothing"


# --- VGG-GAP


@each_size
@torch.no_grad()
def test_gap_step_by_step(size):
    images = pictures(3, *size, dtype=torch.float64)
    model = scrambled(build("vgg-gap", **MEAN_STD), images)
    logits, evidence = gap(state_of(model), images)
    images_differ(logits)
    output = model.attend(images)
    assert_close(output.logits, logits, 1e-10)
    assert_close(model(images), logits, 1e-10)
    assert list(output.maps) == list(output.scores) == ["cam"]
    assert output.global_feature is None
    assert output.scores["cam"].shape == (3, size[0] // 4, size[1] // 4)
    for target in (None, 0, 4, torch.tensor(2), torch.tensor([1, 0, 4])):
        output = model.attend(images) if target is None else model.attend(images, target=target)
        chosen = logits.argmax(dim=1) if target is None else torch.as_tensor(target).expand(3)
        expected = torch.stack([evidence[image, label] for image, label in enumerate(chosen.tolist())])
        assert_close(output.scores["cam"], expected, 1e-10)
        assert torch.equal(output.maps["cam"], output.scores["cam"].clamp_min(0))
        assert_close(output.logits, logits, 1e-10)
        bias = model.head.classifiers[0].bias[chosen]
        assert_close(output.scores["cam"].mean((1, 2)) + bias, logits[range(3), chosen], 1e-10)
    assert (evidence > 0).any()
    assert (evidence < 0).any()


def test_gap_refuses_classes_that_it_does_not_know():
    model, images = build("vgg-gap", 5).eval(), pictures(3)
    for target in (5, -1, torch.tensor([0, 1, 5]), torch.tensor([0, -1, 2]), torch.tensor([0, 1]), 1.5, "cat"):
        with pytest.raises((ValueError, TypeError), match="target"):
            model.attend(images, target=target)


def test_gap_is_the_late_trunk_and_a_linear_layer():
    events, macs = helpers.record(build("vgg-gap", 10, width=1.0), pictures())
    assert events == [*helpers.expected_events(reference.LATE_TABLE[:13]), ("linear", 512, 10)]
    assert round(sum(macs.values()) / 1e9, 2) == 3.74


def test_gap_map_has_a_gradient():
    """Nothing of the map is detached: methods that differentiate it, or train with it, see the network."""
    model = build("vgg-gap", dropout=False)
    model.attend(pictures(4), target=torch.arange(4)).scores["cam"].square().mean().backward()
    assert model.trunk.conv1[0].weight.grad.abs().sum() > 0


# --- VGG-PAN


@each_normalizer
@pytest.mark.parametrize(("faithful", "size"), [(False, (33, 47)), (True, (32, 32))])
@torch.no_grad()
def test_pan_step_by_step(normalizer, faithful, size):
    images = pictures(2, *size, dtype=torch.float64)
    model = scrambled(build("vgg-pan", normalizer=normalizer, faithful=faithful, **MEAN_STD), images)
    logits, maps = pan(state_of(model), images, normalizer)
    images_differ(logits)
    output = model.attend(images)
    assert_close(output.logits, logits, 1e-9)
    compare_maps(output.maps, maps)
    assert maps["conv10"].shape == (2, size[0] // 2, size[1] // 2)
    assert maps["conv13"].shape == (2, size[0] // 4, size[1] // 4)
    assert list(output.scores) == ["conv10", "conv13"]
    assert_close(output.maps["conv10"], output.scores["conv10"].sigmoid(), 1e-12)


def test_pan_is_the_table_with_two_branches():
    model = build("vgg-pan", 10, width=1 / 8, faithful=True)
    events, _ = helpers.record(model, pictures())
    rows = [(name, channels // 8, size, rate) for name, channels, size, rate in reference.LATE_TABLE]
    parts = [helpers.expected_events(part) for part in (rows[:10], rows)]
    branch = helpers.expected_events(rows)[len(helpers.expected_events(rows[:13])) :]
    tail = parts[1][len(parts[0]) :]
    fc = [("dropout", 0.5), ("linear", 64, 64)]
    assert events == [
        *parts[0],
        *branch,
        *fc,
        *tail,
        *fc,
        *[("batch norm", 1e-3), "relu", ("dropout", 0.5)],
        ("linear", 64, 10),
    ]


@each_normalizer
def test_pan_builds_the_second_branch_only_where_it_matters(normalizer):
    slim, faithful = (build("vgg-pan", normalizer=normalizer, faithful=value) for value in (False, True))
    extra = set(faithful.state_dict()) - set(slim.state_dict())
    second = {key for key in faithful.state_dict() if key.startswith("global_branch.")}
    assert len(second) == 2 * 7 + 2
    assert extra == (second if normalizer == "softmax" else set())
    assert slim.uses_global_feature is faithful.uses_global_feature is True, "the gates of conv10 depend on their g"
    for key, value in slim.state_dict().items():
        assert torch.equal(value, faithful.state_dict()[key]), f"{key}: one seed, other weights"
    images = pictures()
    with torch.no_grad():
        one, other = (model.eval().attend(images) for model in (slim, faithful))
    assert_close(one.logits, other.logits, 1e-5)
    assert one.global_feature.shape == other.global_feature.shape == (2, 16)
    for level in one.maps:
        assert_close(one.maps[level], other.maps[level], 1e-5)


@torch.no_grad()
def test_gates_of_pan_hold_back_what_they_gate():
    """With gates shut everywhere, conv11 sees nothing and all images look alike; open ones let the map through."""
    model, images = build("vgg-pan", width=1 / 16).eval(), pictures()
    at = {}
    model.trunk.conv11.register_forward_pre_hook(lambda module, inputs: at.update(conv11=inputs[0]))
    model.trunk.conv10.register_forward_hook(lambda module, inputs, output: at.update(conv10=output.clone()))
    u = model.attention["conv10"].u
    for constant, share in ((-50.0, 0.0), (50.0, 1.0), (0.0, 0.5)):
        u.zero_()
        if constant:  # <u, g> = constant: u looks at one channel, which only g fills
            u[0] = constant
            model.gate_branch.fc.weight.zero_()
            model.gate_branch.fc.bias.zero_()
            model.gate_branch.fc.bias[0] = 1e3
        logits = model(images)
        assert_close(at["conv11"], share * nn.functional.max_pool2d(at["conv10"], 2), 1e-6)
        assert ((logits[0] - logits[1]).abs().max() < 1e-6) == (share == 0.0)


# --- ResNet-164


@each_size
@torch.no_grad()
def test_resnet_step_by_step(size):
    images = pictures(2, *size, dtype=torch.float64)
    model = scrambled(build("resnet164", width=1 / 8, **MEAN_STD), images)
    logits, maps, g = resnet(state_of(model), "resnet164", images, None)
    images_differ(logits)
    output = model.attend(images)
    assert_close(output.logits, logits, 1e-9)
    assert_close(output.global_feature, g, 1e-9)
    assert maps == output.maps == output.scores == {}


@pytest.mark.parametrize("name", RESNET_ATTENTION)
@torch.no_grad()
def test_resnet_with_attention_step_by_step(name):
    images = pictures(2, 33, 47, dtype=torch.float64)
    for normalizer in NORMALIZERS:
        slim, faithful = (
            build(name, width=1 / 16, normalizer=normalizer, faithful=f, **MEAN_STD) for f in (False, True)
        )
        dead = is_dead(name, normalizer)
        weights, all_weights = slim.state_dict(), faithful.state_dict()
        assert all(torch.equal(value, all_weights[key]) for key, value in weights.items()), "one seed, other weights"
        assert all(key.startswith("global_branch.") for key in set(all_weights) - set(weights))
        assert slim.uses_global_feature is faithful.uses_global_feature is (slim.global_branch is not None) is not dead
        model = scrambled(faithful, images)
        logits, maps, g = resnet(state_of(model), name, images, normalizer)
        images_differ(logits)
        output = model.attend(images)
        assert_close(output.logits, logits, 1e-9)
        assert_close(output.global_feature, g, 1e-9)
        compare_maps(output.maps, maps)
        slim.double().eval().load_state_dict(model.state_dict(), strict=False)
        assert_close(slim(images), logits, 1e-9)


@torch.no_grad()
def test_resnet_without_head_norm_step_by_step():
    images = pictures(dtype=torch.float64)
    model = scrambled(build("resnet164-att2-indep-dp", width=1 / 16, head_norm=False), images)
    logits, maps, _ = resnet(state_of(model), "resnet164-att2-indep-dp", images, "softmax", head_norm=False)
    output = model.attend(images)
    assert_close(output.logits, logits, 1e-9)
    compare_maps(output.maps, maps)


@torch.no_grad()
def test_sizes_of_the_resnet_maps():
    model = build("resnet164-att2-concat-pc", width=1 / 16).eval()
    for (height, width), sizes in {
        (32, 32): [(16, 16), (8, 8)],
        (33, 47): [(17, 24), (9, 12)],
        (96, 64): [(48, 32), (24, 16)],
    }.items():
        output = model.attend(pictures(2, height, width))
        assert list(output.maps) == list(output.scores) == ["stage2", "stage3"]
        assert [tuple(weights.shape[1:]) for weights in output.maps.values()] == sizes
        for weights in output.maps.values():
            assert_close(weights.sum((1, 2)), torch.ones(2), 1e-5)


def resnet_parameters(num_classes):
    """By hand: 9n + 2 layers with n = 18, no bias in a convolution that a norm or a sum follows."""
    total, layers, width = 3 * 16 * 9, 1, 16
    for inner in (16, 32, 64):
        out = 4 * inner
        for number in range(18):
            total += width * inner + 9 * inner * inner + inner * out + 2 * (width + 2 * inner)
            total += width * out if number == 0 else 0
            layers += 3
            width = out
    assert layers + 1 == 164
    return total + 2 * 256 + 256 * num_classes + num_classes


def test_resnet_is_of_the_size_that_it_must_be():
    with torch.device("meta"):
        plain = create_model("resnet164", 10)
        attention = create_model("resnet164-att2-concat-dp", 10)
    count = sum(parameter.numel() for parameter in plain.parameters())
    assert count == resnet_parameters(10)
    assert round(count / 1e6, 1) == 1.7
    trunk = count - 2 * 256 - 2570
    branch = 2 * 256 + (256 * 256 * 9 + 256) + 2 * 256 + 256 * 257
    heads = 2 * 2 * 256 + 512 * 10 + 10
    total = sum(parameter.numel() for parameter in attention.parameters())
    assert total == trunk + branch + 128 * 256 + heads


@torch.no_grad()
def test_resnet_layers():
    """Channels, sizes, strides and the number of convolutions, counted on their way."""
    model, rows, handles = build("resnet164-att2-concat-dp", 10, width=1 / 16), [], []
    dropped = [(key, module.p) for key, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p]
    assert {key.split(".")[0] for key, _ in dropped} == {"global_branch", "head"}
    assert len(dropped) == 3
    assert all(rate == 0.5 for _, rate in dropped)

    def hook(module, inputs, output):
        rows.append(
            (module.kernel_size[0], module.in_channels, module.out_channels, inputs[0].shape[2], output.shape[2])
        )

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(hook))
    model(pictures())
    expected, width, size = [(3, 3, 1, 32, 32)], 1, 32
    for inner, end in ((1, 32), (2, 16), (4, 8)):
        for number in range(18):
            expected += [(1, width, inner, size, size), (3, inner, inner, size, end), (1, inner, 4 * inner, end, end)]
            expected += [(1, width, 4 * inner, size, end)] if number == 0 else []
            width, size = 4 * inner, end
    expected.append((3, 16, 16, 4, 4))  # that of g
    assert rows == expected
    assert len(rows) == 1 + 54 * 3 + 3 + 1


def test_resnet_convolutions_start_he_normal_with_fan_out():
    torch.manual_seed(0)
    model = create_model("resnet164-att2-concat-dp", 10, width=0.5)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert abs(module.weight.std() / std - 1) < 6 / math.sqrt(2 * module.weight.numel()), key


# --- one classifier a level


@pytest.mark.parametrize("name", ["vgg-att3-indep-dp", "vgg-att2-indep-pc"])
@torch.no_grad()
def test_indep_averages_the_predictions_of_the_levels(name):
    model, images = helpers.scrambled(build(name, width=1 / 16)), pictures(dtype=torch.float64)
    output = model.attend(images)
    answers = [
        classifier(norm(output.descriptors[level]))
        for level, norm, classifier in zip(levels_of(name), model.head.norms, model.head.classifiers, strict=True)
    ]
    assert_close(sum(answers) / len(answers), output.logits, 1e-12)
    assert (answers[0] - answers[1]).abs().max() > 1e-3, "each level must say something else"


@pytest.mark.parametrize("family", ["vgg-att", "resnet164-att"])
@torch.no_grad()
def test_one_level_is_the_same_either_way(family):
    concat, indep = (build(f"{family}-{combine}-dp", width=1 / 16).eval() for combine in ("concat", "indep"))
    assert list(concat.state_dict()) == list(indep.state_dict())
    images = pictures()
    assert torch.equal(concat(images), indep(images))


# --- the flaw


@pytest.mark.parametrize("name", ["resnet164-att2-concat-pc", "resnet164-att2-indep-dp", "resnet164-att-concat-add"])
@each_normalizer
def test_gradient_of_the_resnet_branch(name, normalizer):
    sums = gradients(name, normalizer)
    branch = {key: value for key, value in sums.items() if key.startswith("global_branch.")}
    assert len(branch) == 2 + 4 + 2
    local = sum(value for key, value in sums.items() if re.match(r"trunk\.stage3\.\d+\.conv\d\.weight", key))
    assert local > 1e-3
    if is_dead(name, normalizer):
        assert max(branch.values()) < 1e-10 * local
    else:
        for layer in ("norm.weight", "conv.0.weight", "fc.weight"):
            assert branch[f"global_branch.{layer}"] > 1e-4 * local, layer


@each_normalizer
def test_gradient_of_the_branches_of_pan(normalizer):
    sums = gradients("vgg-pan", normalizer)
    local = sum(value for key, value in sums.items() if re.match(r"trunk\.conv1[123]\.0\.weight", key))
    first, second = (
        {key: value for key, value in sums.items() if key.startswith(f"{branch}.")}
        for branch in ("gate_branch", "global_branch")
    )
    assert len(first) == len(second) == 2 * 4 + 2
    assert local > 1e-3
    for layer in ("conv14.0.weight", "conv15.0.weight", "fc.weight"):
        assert first[f"gate_branch.{layer}"] > 1e-4 * local, layer
    assert sums["attention.conv10.u"] > 1e-4 * local
    if normalizer == "softmax":
        for key, value in second.items():
            assert value < 1e-10 * local, key
    else:
        for layer in ("conv14.0.weight", "conv15.0.weight", "fc.weight"):
            assert second[f"global_branch.{layer}"] > 1e-4 * local, layer


@pytest.mark.parametrize("name", ["vgg", "vgg-late", "vgg-gap", "vgg-pan", "resnet164"])
def test_models_whose_maps_always_may_depend_on_g_say_so(name):
    for normalizer in NORMALIZERS:
        for faithful in (False, True):
            assert build(name, normalizer=normalizer, faithful=faithful).uses_global_feature is True
