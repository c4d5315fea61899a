"""Deletion, insertion, permuted attention and random layers: against loops, and on models whose answer is known."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from ltpa import attend, create_model, explain, metrics
from ltpa.inference import to_float
from ltpa.maps import resize
from ltpa.metrics import deletion_insertion, layers_top_down, permuted_attention, randomization
from ltpa.metrics.overlap import blur
from ltpa.models.networks import AttentionOutput, ImageClassifier

CLASSES = 4


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name="vgg-att3-concat-dp", normalizer="softmax", faithful=False):
    """A model whose batch norms have seen something: its logits differ from image to image."""
    torch.manual_seed(0)
    model = create_model(name, CLASSES, width=1 / 32, normalizer=normalizer, faithful=faithful)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(to_float(pictures(16)))
    return model.eval()


def pictures(n=4, side=32):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def some_maps(n=4, side=32, seed=0):
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(seed))


class Summer(ImageClassifier):
    """Class 1 is the more probable, the brighter the first row is; nothing else counts."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.0))

    def attend(self, images):
        bright = images[:, :, 0].mean((1, 2)) * self.gain
        return AttentionOutput(torch.stack([torch.zeros_like(bright), bright], 1), {}, {}, None)


# --- deletion and insertion


def slow_curves(model, image, order, target, filled, counts):
    """One image, pixel by pixel: probabilities while pixels are deleted, and while they are inserted."""
    found = []
    for start, end in ((image, filled), (filled, image)):
        curve = []
        for count in counts:
            changed = start.clone()
            for pixel in order[:count]:
                y, x = divmod(pixel, image.shape[2])
                changed[:, y, x] = end[:, y, x]
            curve.append(attend(model, changed[None], "fp32").logits.softmax(1)[0, target].item())
        found.append(curve)
    return found


@pytest.mark.parametrize("fill", ["blur", "mean"])
def test_curves_are_the_loop(fill):
    model, images, maps = build(), pictures(), some_maps()
    found = deletion_insertion(model, images, maps, fill=fill, steps=3, precision="fp32")
    target = attend(model, images, "fp32").logits.argmax(1)
    assert found.fractions.tolist() == [0, pytest.approx(341 / 1024), pytest.approx(683 / 1024), 1]
    x = to_float(images)
    filled = blur(x, 4.0) if fill == "blur" else x.mean((2, 3), keepdim=True).expand_as(x)
    for i in range(4):
        order = sorted(range(1024), key=lambda pixel: -maps[i].flatten()[pixel].item())
        deletion, insertion = slow_curves(model, x[i], order, target[i], filled[i], [0, 341, 683, 1024])
        torch.testing.assert_close(found.deletion[i], torch.tensor(deletion), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.insertion[i], torch.tensor(insertion), rtol=1e-4, atol=1e-6)


def test_areas_are_trapezoids_of_the_true_fractions():
    found = deletion_insertion(build(), pictures(), some_maps(), steps=7)
    x = found.fractions.tolist()
    assert x[0] == 0
    assert x[-1] == 1
    assert len({round(b - a, 6) for a, b in pairwise(x)}) > 1  # 1024 / 7 is no whole number
    for curve, area in ((found.deletion, found.deletion_area), (found.insertion, found.insertion_area)):
        for i in range(4):
            y = curve[i].tolist()
            slow = sum((x[k + 1] - x[k]) * (y[k] + y[k + 1]) / 2 for k in range(len(x) - 1))
            assert area[i].item() == pytest.approx(slow, rel=1e-5)


def test_both_ends_are_the_image_and_the_filled_image():
    model, images = build(), pictures()
    found = deletion_insertion(model, images, some_maps(), target=2, steps=2, precision="fp32")
    whole = attend(model, images, "fp32").logits.softmax(1)[:, 2]
    empty = attend(model, blur(to_float(images), 4.0), "fp32").logits.softmax(1)[:, 2]
    for start, end in (
        (found.deletion[:, 0], found.deletion[:, -1]),
        (found.insertion[:, -1], found.insertion[:, 0]),
    ):
        torch.testing.assert_close(start, whole, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(end, empty, rtol=1e-4, atol=1e-6)


def test_the_right_map_has_the_steepest_curves():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.2
    images[:, :, 0] = 1.0
    first_row = torch.zeros(3, 32, 32)
    first_row[:, 0] = 1.0
    areas = {}
    for name, maps in {"right": first_row, "random": some_maps(3), "wrong": 1 - first_row}.items():
        found = deletion_insertion(Summer(), images, maps, target=1, fill="mean", steps=32)
        areas[name] = found.deletion_area, found.insertion_area
    for better, worse in (("right", "random"), ("random", "wrong")):
        assert (areas[better][0] < areas[worse][0]).all()
        assert (areas[better][1] > areas[worse][1]).all()


def test_low_maps_are_scaled_up_and_only_their_order_counts():
    model, images, maps = build(), pictures(), some_maps(4, 8)
    expected = deletion_insertion(model, images, resize(maps, (32, 32)), steps=3)
    for same in (maps, maps * 7, maps):
        found = deletion_insertion(model, images, same, steps=3)
        torch.testing.assert_close(found.deletion, expected.deletion, rtol=0, atol=0)
    found = deletion_insertion(model, images, resize(maps, (32, 32)).exp(), steps=3)
    torch.testing.assert_close(found.insertion, expected.insertion, rtol=0, atol=0)


def test_equal_weights_come_in_a_random_order_that_the_seed_gives():
    images = torch.zeros(2, 3, 32, 32)
    images[:, :, 0] = 1.0
    uniform = torch.ones(2, 32, 32)
    first, same, other = (
        deletion_insertion(Summer(), images, uniform, target=1, fill="mean", steps=16, seed=seed, precision="fp32")
        for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first.deletion, same.deletion, rtol=0, atol=0)
    assert not torch.equal(first.deletion, other.deletion)
    assert not torch.equal(first.deletion[0], first.deletion[1])
    # Row by row, the one row that counts would be gone at the first step, or at the last.
    half = first.deletion[:, 8]
    low, high = first.deletion[:, -1], first.deletion[:, 0]
    assert ((half > low + 0.2 * (high - low)) & (half < low + 0.8 * (high - low))).all()


def test_batches_are_without_effect():
    model, images, maps = build(), pictures(5), some_maps(5)
    expected = deletion_insertion(model, images, maps, steps=2, precision="fp32")
    found = deletion_insertion(model, images, maps, steps=2, precision="fp32", batch_size=2)
    torch.testing.assert_close(found.deletion, expected.deletion, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.insertion, expected.insertion, rtol=1e-4, atol=1e-6)


def test_more_steps_than_pixels_are_one_step_a_pixel():
    found = deletion_insertion(Summer(), pictures(1), some_maps(1), steps=5000)
    assert found.deletion.shape == (1, 1025)
    torch.testing.assert_close(found.fractions, torch.arange(1025) / 1024)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": some_maps(3)}, "one map an image, not 3 maps for 4 images"),
        ({"maps": some_maps(4) - 1}, "weights from 0 up"),
        ({"maps": some_maps(4) * torch.nan}, "hold NaN"),
        ({"fill": "black"}, "unknown fill 'black'.*blur, mean"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"target": 4}, "target must be a class from 0 to 3"),
        ({"images": pictures()[:0], "maps": some_maps(0)}, "there are no images"),
    ],
)
def test_what_has_no_curve_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        deletion_insertion(build(), **{"images": pictures(), "maps": some_maps(), **arguments})


# --- permuted attention


@pytest.mark.parametrize(("name", "normalizer"), [("vgg-att3-concat-dp", "softmax"), ("vgg-att2-indep-add", "sigmoid")])
def test_the_same_order_gives_the_same_answer(name, normalizer, monkeypatch):
    """What the hook recomputes is equation 3: with the identity for a permutation nothing moves."""
    model = build(name, normalizer)
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    for distance in permuted_attention(model, pictures()).values():
        torch.testing.assert_close(distance, torch.zeros(4), rtol=0, atol=1e-6)


def test_permuted_weights_move_the_answer():
    model, images = build(), pictures()
    for level in model.attention.values():
        if level.W is not None:
            level.W.weight.data *= 30
    found = permuted_attention(model, images, seed=1)
    assert list(found) == ["conv7", "conv10", "conv13"]
    before = attend(model, images, "fp32").logits.softmax(1)
    local = {}
    hook = model.attention["conv7"].register_forward_hook(
        lambda level, inputs, output: local.update(x=inputs[0], y=output)
    )
    attend(model, images, "fp32")
    hook.remove()
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(1))
    descriptor = torch.zeros(4, model.trunk.channels["conv13"])
    for i in range(4):
        weights = local["y"][1][i].flatten()[order]
        descriptor[i] = model.attention["conv7"].W.weight @ sum(
            w * local["x"][i].flatten(1)[:, k] for k, w in enumerate(weights)
        )
    hook = model.attention["conv7"].register_forward_hook(lambda level, inputs, output: (descriptor, *output[1:]))
    after = attend(model, images, "fp32").logits.softmax(1)
    hook.remove()
    expected = 0.5 * (after - before).abs().sum(1)
    assert expected.min() > 1e-4
    torch.testing.assert_close(found["conv7"], expected, rtol=1e-3, atol=1e-5)


def test_permuted_attention_leaves_no_hook():
    model = build()
    permuted_attention(model, pictures())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no attention levels"):
        permuted_attention(build("vgg"), pictures())


# --- layers made random


def test_layers_come_from_the_top_down():
    trunk = [f"trunk.conv{k}" for k in range(13, 0, -1)]
    levels = ["attention.conv13", "attention.conv10", "attention.conv7"]
    with_branch = layers_top_down(build("vgg-att3-concat-pc", "sigmoid"), pictures(1))
    assert with_branch == ["head", *levels, "global_branch", *trunk]
    assert layers_top_down(build("vgg-att3-concat-pc"), pictures(1)) == ["head", *levels, *trunk]
    assert layers_top_down(build("vgg-gap"), pictures(1)) == ["head", *trunk]
    pan = layers_top_down(build("vgg-pan"), pictures(1))
    assert pan[:2] == ["head", "attention.conv13"]
    assert (
        pan.index("trunk.conv11") < pan.index("attention.conv10") < pan.index("gate_branch") < pan.index("trunk.conv10")
    )
    resnet = ["trunk.stage3", "trunk.stage2", "trunk.stage1", "trunk.conv1"]
    assert layers_top_down(build("resnet164"), pictures(1)) == ["head", "norm", *resnet]


@pytest.mark.parametrize("name", ["vgg", "vgg-pan", "vgg-att2-indep-add", "resnet164-att2-concat-dp"])
def test_the_layers_hold_every_weight(name):
    model = build(name)
    layers = layers_top_down(model, pictures(1))
    held = [id(p) for layer in layers for p in model.get_submodule(layer).parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_only_layers_from_the_top_down_to_the_stop_are_changed():
    model, images = build(), pictures(2)
    seen = []

    def maps_of(net, batch):
        seen.append(copy.deepcopy(net.state_dict()))
        return attend(net, batch, "fp32").maps

    layers = layers_top_down(model, images)
    found = randomization(model, images, maps_of)
    assert list(found) == layers
    before = model.state_dict()
    learnt = [name for name, p in model.named_parameters() if name.endswith(("weight", ".u"))]
    for number, state in enumerate(seen):  # the first is the trained model
        for name in learnt:
            layer = next(k for k, layer in enumerate(layers) if name.startswith(f"{layer}."))
            if layer >= number:
                assert torch.equal(state[name], before[name]), (number, name)
            elif before[name].ndim > 1 or name.endswith(".u"):
                assert not torch.allclose(state[name], before[name]), (number, name)


def test_the_random_layers_are_those_of_a_new_model():
    """Statistics of every weight beside those of `create_model`; batch norms are exactly as new."""
    model = build("vgg-att3-concat-add")
    kept = []
    randomization(model, pictures(2), lambda net, x: kept.append(copy.deepcopy(net)) or attend(net, x, "fp32").maps)
    torch.manual_seed(5)
    new = create_model("vgg-att3-concat-add", CLASSES, width=1 / 32).state_dict()
    for name, value in kept[-1].state_dict().items():
        if name in ("mean", "std"):
            continue
        if value.numel() >= 256 and value.ndim > 1:
            assert value.std().item() == pytest.approx(new[name].std().item(), rel=0.25), name
        elif "norm" in name or ".1." in name:
            assert torch.equal(value, new[name]), name


def test_the_similarity_is_that_of_the_maps_before_and_after():
    model, images = build(), pictures(3)
    kept = []
    found = randomization(model, images, lambda net, x: kept.append(attend(net, x, "fp32").maps) or kept[-1])
    for (layer, values), maps in zip(found.items(), kept[1:], strict=True):
        for level, similarity in values.items():
            expected = metrics.rank_agreement(kept[0][level], maps[level])
            torch.testing.assert_close(similarity["rank_agreement"], expected, msg=layer)
            torch.testing.assert_close(
                similarity["correlation"], metrics.correlation(kept[0][level], maps[level]).abs(), msg=layer
            )


def test_attention_cannot_depend_on_what_lies_above_it():
    """The head never changes a map; with softmax and pc neither does the global branch."""
    found = randomization(build("vgg-att3-concat-pc", faithful=True), pictures(2))
    for level, similarity in found["head"].items():
        torch.testing.assert_close(similarity["rank_agreement"], torch.ones(2), msg=level)
    # The attention of a level changes its own map only.
    torch.testing.assert_close(found["attention.conv13"]["conv10"]["rank_agreement"], torch.ones(2))
    assert (found["attention.conv13"]["conv13"]["rank_agreement"] < 0.999).all()
    assert all((values["rank_agreement"] < 0.999).all() for values in found["trunk.conv1"].values())


def test_explanations_can_be_checked_too():
    model, images = build("vgg"), pictures(2)
    target = attend(model, images, "fp32").logits.argmax(1)
    stops = ["head", "trunk.conv1"]
    found = randomization(model, images, lambda net, x: {"saliency": explain(net, x, "saliency", target)}, stops=stops)
    assert list(found) == stops
    assert all((found[stop]["saliency"]["rank_agreement"] < 0.999).all() for stop in stops)


def test_a_map_that_ignores_the_model_never_changes():
    maps = some_maps(2)
    found = randomization(build("vgg"), pictures(2), lambda net, x: {"noise": maps})
    assert all((values["noise"]["rank_agreement"] > 0.9999).all() for values in found.values())


def test_the_model_and_the_callers_random_numbers_stay_as_they_were():
    model = build().train()
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = randomization(model, pictures(2), seed=1, stops=["trunk.conv1"])
    torch.testing.assert_close(torch.rand(2), expected)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again, other = (randomization(model, pictures(2), seed=s, stops=["trunk.conv1"]) for s in (1, 2))
    value = first["trunk.conv1"]["conv13"]["rank_agreement"]
    torch.testing.assert_close(again["trunk.conv1"]["conv13"]["rank_agreement"], value, rtol=0, atol=0)
    assert not torch.equal(other["trunk.conv1"]["conv13"]["rank_agreement"], value)


def test_what_cannot_be_made_random_is_refused():
    with pytest.raises(ValueError, match=r"unknown layer 'trunk.conv14': did you mean 'trunk.conv4'"):
        randomization(build(), pictures(1), stops=["trunk.conv14"])
    with pytest.raises(ValueError, match="no attention maps; give maps_of"):
        randomization(build("vgg"), pictures(1))
