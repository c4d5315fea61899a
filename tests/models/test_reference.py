"""Weights in the best-known PyTorch version's format against a functional evaluation of the same state dict."""

import copy
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ltpa.models.networks import create_model
from ltpa.models.reference import load_reference
from tests.models.helpers import pictures

CHANNELS = (8, 16, 32, 64)  # an eighth of 64, 128, 256, 512
CONVOLUTIONS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3, 6: 2}
NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
VARIANTS = ("softmax", "sigmoid", "none")


def positions(block):
    """Where the convolutions stand in a block's list: a pool after each ReLU makes the steps of block 6 longer."""
    return [number * (4 if block == 6 else 3) for number in range(CONVOLUTIONS[block])]


def make_state(attention=True, kernel=1, *, channels=CHANNELS, num_classes=5, block="conv_block", prefix="", seed=0):
    """A state dict with that version's keys and shapes; `kernel` is im_size / 32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, fan_in):
        return torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5

    def between(low, high, *shape):
        return torch.rand(shape, generator=generator) * (high - low) + low

    state, width = {}, 3
    for number, out in zip(CONVOLUTIONS, [*channels, channels[3], channels[3]], strict=True):
        for at in positions(number):
            op = f"{block}{number}.op"
            state[f"{op}.{at}.weight"] = normal(out, width, 3, 3, fan_in=9 * width)
            state[f"{op}.{at}.bias"] = between(-0.2, 0.2, out)
            state[f"{op}.{at + 1}.weight"] = between(0.5, 1.5, out)
            state[f"{op}.{at + 1}.bias"] = between(-0.2, 0.4, out)
            state[f"{op}.{at + 1}.running_mean"] = between(-0.3, 0.3, out)
            # Some are so small that an epsilon of 1e-3 instead of 1e-5 shows.
            state[f"{op}.{at + 1}.running_var"] = between(0.02, 2.5, out)
            state[f"{op}.{at + 1}.num_batches_tracked"] = torch.tensor(100 + number)
            width = out
    top = channels[3]
    # A twentieth of the usual: a larger g would open or shut the gates of all positions.
    state["dense.weight"] = 0.05 * normal(top, top, kernel, kernel, fan_in=top * kernel**2)
    state["dense.bias"] = between(-0.2, 0.2, top)
    if attention:
        state["projector.op.weight"] = normal(top, channels[2], 1, 1, fan_in=channels[2])
        for number in (1, 2, 3):
            state[f"attn{number}.op.weight"] = normal(1, top, 1, 1, fan_in=20 * top)
    inputs = 3 * top if attention else top
    state["classify.weight"] = normal(num_classes, inputs, fan_in=inputs)
    state["classify.bias"] = between(-1, 1, num_classes)
    return {prefix + key: value for key, value in state.items()}


def evaluate(state, images, variant):
    """Logits, maps and scores of a state dict without prefix, with `conv_block` names, for images of its size."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZE)

    def block(number, x):
        for at in positions(number):
            op = f"conv_block{number}.op"
            x = F.conv2d(x, state[f"{op}.{at}.weight"], state[f"{op}.{at}.bias"], padding=1)
            norm = [state[f"{op}.{at + 1}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
            x = F.relu(F.batch_norm(x, *norm, training=False, eps=1e-5))
            x = F.max_pool2d(x, 2) if number == 6 else x
        return x

    first = block(3, block(2, block(1, (images - mean) / std)))
    second = block(4, F.max_pool2d(first, 2))
    third = block(5, F.max_pool2d(second, 2))
    g = F.conv2d(block(6, F.max_pool2d(third, 2)), state["dense.weight"], state["dense.bias"])
    assert g.shape[2:] == (1, 1)
    if variant == "none":
        return F.linear(g.flatten(1), state["classify.weight"], state["classify.bias"]), [], []
    descriptors, maps, scores = [], [], []
    for number, local in enumerate((F.conv2d(first, state["projector.op.weight"]), second, third), start=1):
        score = F.conv2d(local + g, state[f"attn{number}.op.weight"])
        if variant == "softmax":
            gates = score.flatten(1).softmax(dim=1).view_as(score)
            descriptors.append((gates * local).flatten(2).sum(dim=2))
        else:
            gates = torch.sigmoid(score)
            descriptors.append((gates * local).flatten(2).mean(dim=2))
        scores.append(score[:, 0])
        maps.append(gates[:, 0])
    return F.linear(torch.cat(descriptors, dim=1), state["classify.weight"], state["classify.bias"]), maps, scores


def load(source, variant="softmax", normalize=NORMALIZE):
    return load_reference(source, normalize=normalize, normalizer="softmax" if variant == "none" else variant)


def assert_near(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def assert_same_model(model, other):
    one, two = model.state_dict(), other.state_dict()
    assert type(model) is type(other)
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def attention_state():
    return make_state()


# --- the numbers


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernel", [1, 2])
@torch.no_grad()
def test_logits_and_maps(variant, kernel):
    state = make_state(variant != "none", kernel)
    images = pictures(3, 32 * kernel, 32 * kernel)
    logits, maps, scores = evaluate(state, images, variant)
    assert (logits[0] - logits[1]).abs().max() > 0.02 * logits.abs().max(), "two images must not look alike"

    model = load(state, variant)
    assert not model.training
    output = model.attend(images)
    assert_near(output.logits, logits)
    assert_near(model(images), logits)
    levels = [] if variant == "none" else ["conv7", "conv10", "conv13"]
    assert list(output.maps) == list(output.scores) == levels
    for level, expected, score in zip(levels, maps, scores, strict=True):
        assert expected.flatten(1).std(dim=1).min() > 0.02 * expected.mean(), "a map that says nothing tests nothing"
        assert expected.shape[1] == {"conv7": 32, "conv10": 16, "conv13": 8}[level] * kernel
        assert_near(output.maps[level], expected)
        assert_near(output.scores[level], score)
    if variant == "sigmoid":
        softmax = load(state, "softmax").attend(images)
        assert (softmax.logits - logits).abs().max() > 0.1 * logits.abs().max(), "the normalizers must differ"


@pytest.mark.parametrize("name", ["mean", "std", "eps"])
@torch.no_grad()
def test_the_comparison_would_notice(name, attention_state):
    """What is checked to 1e-4 is far above it when something is wrong."""
    images = pictures(3)
    logits = evaluate(attention_state, images, "softmax")[0]
    model = load(attention_state)
    if name == "eps":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3
    else:
        getattr(model, name).mul_(1.05)
    assert (model(images) - logits).abs().max() > 1e-3 * logits.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_kind_of_model_and_number_of_classes(variant):
    state = make_state(variant != "none", num_classes=7)
    model = load(state, variant)
    with torch.no_grad():
        assert model(pictures(1)).shape == (1, 7)
    assert model.name == ("vgg-late" if variant == "none" else "vgg-att3-concat-pc")
    assert model.uses_global_feature is (variant != "softmax")
    learned = {key: value for key, value in state.items() if not key.endswith(("_mean", "_var", "_tracked"))}
    assert sum(p.numel() for p in model.parameters()) == sum(value.numel() for value in learned.values())


def test_every_number_arrives(attention_state):
    model = load(attention_state)
    theirs = sorted(value.double().sum().item() for value in attention_state.values())
    ours = {key: value for key, value in model.state_dict().items() if key not in ("mean", "std")}
    assert sorted(value.double().sum().item() for value in ours.values()) == theirs
    for name, values in zip(("mean", "std"), NORMALIZE, strict=True):
        torch.testing.assert_close(getattr(model, name).flatten(), torch.tensor(values))


@torch.no_grad()
def test_larger_images_than_the_weights_were_trained_for():
    model = load(make_state(False, 2), "none")
    images = pictures(2, 128, 64)
    # Three positions of the dense layer, each of which sees a map of the trained size; their mean goes on.
    outputs = []
    model.global_branch.fc.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    g = model.attend(images).global_feature
    assert outputs[0].shape == (2, 64, 3, 1)
    assert g.shape == (2, 64)
    torch.testing.assert_close(g, outputs[0].mean((2, 3)))


def test_images_smaller_than_the_dense_layer_needs_are_refused():
    model = load(make_state(kernel=2))
    for size in ((32, 32), (64, 63), (32, 128)):
        with pytest.raises(ValueError, match="64x64"):
            model(torch.zeros(1, 3, *size))


# --- keys


@pytest.mark.parametrize("names", [{"block": "cv"}, {"prefix": "module."}, {"block": "cv", "prefix": "module."}])
def test_other_spellings_of_the_keys(names, attention_state):
    assert_same_model(load(make_state(**names)), load(attention_state))


def test_old_files_without_counters(attention_state):
    state = {key: value for key, value in attention_state.items() if not key.endswith("num_batches_tracked")}
    model, complete = load(state), load(attention_state)
    for key, value in complete.state_dict().items():
        counted = key.endswith("num_batches_tracked")
        assert torch.equal(model.state_dict()[key], torch.tensor(0) if counted else value), key


def test_missing_and_extra_keys_are_named(attention_state):
    state = dict(attention_state)
    del state["conv_block4.op.6.bias"], state["attn2.op.weight"]
    state["fc.weight"] = state["conv_block7.op.0.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="missing") as error:
        load(state)
    missing, extra = str(error.value).split("missing")[1].split("extra")
    assert "conv_block4.op.6.bias" in missing
    assert "attn2.op.weight" in missing
    assert "fc.weight" in extra
    assert "conv_block7.op.0.weight" in extra
    assert "conv_block1" not in str(error.value), "what is right is not named"


def test_each_key_is_needed(attention_state):
    for key in attention_state:
        if not key.endswith("num_batches_tracked"):
            with pytest.raises(ValueError, match=key.replace(".", r"\.")):
                load({other: value for other, value in attention_state.items() if other != key})


@pytest.mark.parametrize("key", ["projector.op.weight", "attn3.op.weight"])
def test_half_an_attention(key, attention_state):
    """One key of the attention means that all of it is wanted."""
    with pytest.raises(ValueError, match="missing") as error:
        load({**make_state(False), key: attention_state[key]})
    missing = str(error.value).split("missing")[1].split("extra")[0]
    others = {"projector.op.weight", "attn1.op.weight", "attn2.op.weight", "attn3.op.weight"} - {key}
    assert all(other in missing for other in others)
    assert key not in missing


def test_one_weight_under_two_names(attention_state):
    for twice in (make_state(block="cv"), make_state(prefix="module.")):
        with pytest.raises(ValueError, match="conv_block1"):
            load({**attention_state, **twice})


@pytest.mark.parametrize(
    "state", [{}, {"weight": torch.zeros(3)}, create_model("vgg-late", 5, width=1 / 8).state_dict()]
)
def test_other_weights_are_refused(state):
    with pytest.raises(ValueError, match=r"conv_block1\.op\.0\.weight"):
        load(state)


# --- shapes and values


WRONG = {
    "conv_block1.op.0.weight": [(8, 1, 3, 3), (3, 8, 3, 3), (8, 3, 5, 5), (8, 27), (0, 3, 3, 3), (), (5000, 3, 3, 3)],
    "conv_block2.op.0.weight": [(16, 9, 3, 3), (8, 16, 3, 3), (16, 8, 1, 1)],
    "conv_block3.op.7.running_var": [(33,), (), (2, 16)],
    "conv_block5.op.4.num_batches_tracked": [(64,), (0,)],
    "conv_block6.op.4.weight": [(64, 64, 1, 9), (64, 576)],
    "dense.weight": [(64, 64), (64, 64, 1), (64, 64, 1, 2), (64, 64, 2, 1), (32, 128, 1, 1), (64, 64, 0, 0), ()],
    "dense.bias": [(63,), (64, 1, 2)],
    "projector.op.weight": [(32, 64, 1, 1), (64, 64, 1, 1), (64, 32, 3, 3), (2048,)],
    "attn1.op.weight": [(2, 64, 1, 1), (1, 32, 1, 1), (8, 8, 1, 1), ()],
    "classify.weight": [(5, 64), (192, 5), (6, 192), (5, 191), (960,)],
    "classify.bias": [(6,), (), (1,), (0,), (5, 5)],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_shape_is_named(key, attention_state):
    for shape in WRONG[key]:
        with pytest.raises(ValueError, match="shape") as error:
            load({**attention_state, key: torch.zeros(shape)})
        other_width = key == "conv_block1.op.0.weight" and shape[1:] == (3, 3, 3)  # all other shapes are wrong then
        if not other_width and key != "classify.bias":
            assert key in str(error.value)
            assert str(shape) in str(error.value)


def test_a_wrong_shape_does_not_take_the_memory(attention_state):
    """A file names its sizes; nothing as large as what it claims may be made before the claims are compared."""
    wide = torch.zeros(1, 1, 1, 1).expand(64, 64, 30_000, 30_000)
    with pytest.raises(ValueError, match=r"conv_block2|dense"):
        load({**attention_state, "dense.weight": wide, "conv_block2.op.0.weight": torch.zeros(1)})


def test_things_that_are_no_tensors(attention_state):
    for value in (None, 3.0, [1, 2], "weights"):
        with pytest.raises((ValueError, TypeError), match=r"dense\.bias"):
            load({**attention_state, "dense.bias": value})
    for key in (3, None, ("a", "b")):
        with pytest.raises((ValueError, TypeError), match=r"3|None|'a'"):
            load({**attention_state, key: torch.zeros(1)})
    for source in (None, 3, [attention_state], torch.zeros(3)):
        with pytest.raises((ValueError, TypeError)):
            load(source)


def test_other_precisions_become_float32(attention_state):
    images = pictures(2)
    logits = load(attention_state)(images)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float16, 0.02)):
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in attention_state.items()}
        model = load(state)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert_near(model(images), logits, tolerance)


def test_the_state_dict_and_the_random_numbers_stay_the_callers(attention_state):
    state = copy.deepcopy(attention_state)
    random_state = torch.get_rng_state()
    model, images = load(state), pictures(2)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(state) == list(attention_state)
    assert all(torch.equal(state[key], attention_state[key]) for key in state)
    logits = model(images)
    with torch.no_grad():
        for value in state.values():
            value.zero_()
    assert torch.equal(model(images), logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_can_be_trained(variant):
    model = load(make_state(variant != "none"), variant).train()
    nn.functional.cross_entropy(model(pictures(3)), torch.arange(3)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.trunk.parameters())


# --- arguments


@pytest.mark.parametrize(
    "normalize",
    [
        (0.5, 0.5, 0.5),
        ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (1, 1, 1)),
        ((0.5, 0.5), (0.2, 0.2, 0.2)),
        ((0.5, 0.5, 0.5), (0.2, 0.2, 0)),
        (0.5, 0.2),
        None,
        "imagenet",
    ],
    ids=str,
)
def test_bad_arguments(normalize, attention_state):
    with pytest.raises(ValueError, match=r"mean|std|normalize"):
        load(attention_state, normalize=normalize)
    for normalizer in ("softmx", None):
        with pytest.raises(ValueError, match="softmax"):
            load_reference(attention_state, normalize=NORMALIZE, normalizer=normalizer)
    with pytest.raises(TypeError, match="normalize"):
        load_reference(attention_state)


# --- files


def test_files(tmp_path, attention_state):
    torch.save(attention_state, tmp_path / "new.pth")
    torch.save(attention_state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": make_state(prefix="module."), "epoch": 3}, tmp_path / "checkpoint.pth.tar")
    torch.save({"net": attention_state, "acc": 92.1, "epoch": 3}, tmp_path / "net.pth")
    save_file(attention_state, tmp_path / "weights.safetensors")
    save_file(attention_state, tmp_path / "misnamed.pth")
    expected = load(attention_state)
    for path in tmp_path.iterdir():
        assert_same_model(load(path), expected)
        assert_same_model(load(str(path)), expected)
    for name in ("model", "net", "state_dict", "model_state_dict"):
        assert_same_model(load({name: attention_state, "epoch": 3}), expected)


def test_missing_file(tmp_path):
    for path in (tmp_path / "no.pth", str(tmp_path / "no.safetensors"), tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            load(path)


class Hostile:
    """Pickled, it is an order to create a file on unpickling."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("force", ["0", "1"])  # "1" turns torch.load's own default off, but not an explicit argument
@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "inside"])
def test_a_hostile_file_runs_no_code(how, force, tmp_path, attention_state, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    marker, path = tmp_path / "marker", tmp_path / ("weights.pth" if force == "1" else "weights.safetensors")
    hostile = {**attention_state, "dense.bias": Hostile(marker)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(hostile, protocol=2))  # what torch.load expects
    elif how == "inside":
        torch.save({"state_dict": attention_state, "optimizer": Hostile(marker)}, path)
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match="weights"):
        load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(marker)))
    assert marker.is_dir(), "the object is hostile"


@pytest.mark.parametrize("content", ["module", "list", "tensor", "nested", "text", "empty", "cut", "cut safetensors"])
def test_files_of_other_things(content, tmp_path, attention_state):
    path = tmp_path / ("w.safetensors" if "safetensors" in content else "w.pth")
    if content == "text":
        path.write_text("<html>404 not found</html>")
    elif content == "empty":
        path.write_bytes(b"")
    else:
        things = {"module": nn.Linear(2, 2), "list": [1, 2], "tensor": torch.zeros(3)}
        things |= {"nested": {"state_dict": {"state_dict": attention_state}}}
        if content == "cut safetensors":
            save_file(attention_state, path)
        else:
            torch.save(things.get(content, attention_state), path)
        if content.startswith("cut"):
            path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=path.name):
        load(path)
