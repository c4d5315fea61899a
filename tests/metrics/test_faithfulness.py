"""Deletion, insertion and permuted attention: against loops, and on models whose answer is known."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from ltpa import attend
from ltpa.inference import to_float
from ltpa.maps import resize
from ltpa.metrics import deletion_insertion, permuted_attention
from ltpa.metrics.faithfulness import _filled
from ltpa.metrics.overlap import blur
from ltpa.models.networks import AttentionOutput, ImageClassifier
from tests.metrics.helpers import build, pictures, some_maps


class Summer(ImageClassifier):
    """Class 1 is the more probable, the brighter the first row is; nothing else counts."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.0))

    def compute(self, images, *, query=None):
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


def evenly(count):
    return [k / count for k in range(count + 1)]


@pytest.mark.parametrize("fill", ["blur", "mean"])
def test_curves_are_the_loop(fill):
    model, images, maps = build(), pictures(), some_maps()
    found = deletion_insertion(model, images, maps, fill=fill, fractions=evenly(3), precision="fp32")
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
    found = deletion_insertion(build(), pictures(), some_maps(), fractions=evenly(7))
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
    found = deletion_insertion(model, images, some_maps(), target=2, fill="blur", fractions=evenly(2), precision="fp32")
    whole = attend(model, images, "fp32").logits.softmax(1)[:, 2]
    empty = attend(model, blur(to_float(images), 4.0), "fp32").logits.softmax(1)[:, 2]
    for start, end in (
        (found.deletion[:, 0], found.deletion[:, -1]),
        (found.insertion[:, -1], found.insertion[:, 0]),
    ):
        torch.testing.assert_close(start, whole, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(end, empty, rtol=1e-4, atol=1e-6)


def test_noise_has_the_colors_of_the_picture_in_a_random_order():
    images = pictures(2)
    filled = _filled(to_float(images), "noise", torch.Generator().manual_seed(0))
    for before, after in zip(to_float(images).flatten(2), filled.flatten(2), strict=True):
        assert sorted(map(tuple, before.T.tolist())) == sorted(map(tuple, after.T.tolist()))
        assert not torch.equal(before, after)
    empty = deletion_insertion(build(), images, some_maps(2), fill="noise", precision="fp32").deletion[:, -1]
    target = attend(build(), images, "fp32").logits.argmax(1)
    expected = attend(build(), filled, "fp32").logits.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(empty, expected, rtol=1e-4, atol=1e-6)


def test_the_right_map_has_the_steepest_curves():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.2
    images[:, :, 0] = 1.0
    first_row = torch.zeros(3, 32, 32)
    first_row[:, 0] = 1.0
    areas = {}
    for name, maps in {"right": first_row, "random": some_maps(3), "wrong": 1 - first_row}.items():
        found = deletion_insertion(Summer(), images, maps, target=1, fill="mean", fractions=evenly(32))
        areas[name] = found.deletion_area, found.insertion_area
    for better, worse in (("right", "random"), ("random", "wrong")):
        assert (areas[better][0] < areas[worse][0]).all()
        assert (areas[better][1] > areas[worse][1]).all()


def test_low_maps_are_scaled_up_and_only_their_order_counts():
    model, images, maps = build(), pictures(), some_maps(4, 8)
    expected = deletion_insertion(model, images, resize(maps, (32, 32)), fractions=evenly(3))
    for same in (maps, maps * 7, maps):
        found = deletion_insertion(model, images, same, fractions=evenly(3))
        torch.testing.assert_close(found.deletion, expected.deletion, rtol=0, atol=0)
    found = deletion_insertion(model, images, resize(maps, (32, 32)).exp(), fractions=evenly(3))
    torch.testing.assert_close(found.insertion, expected.insertion, rtol=0, atol=0)


def test_equal_weights_come_in_a_random_order_that_the_seed_gives():
    images = torch.zeros(2, 3, 32, 32)
    images[:, :, 0] = 1.0
    uniform = torch.ones(2, 32, 32)
    first, same, other = (
        deletion_insertion(Summer(), images, uniform, target=1, fractions=evenly(16), seed=seed, precision="fp32")
        for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first.deletion, same.deletion, rtol=0, atol=0)
    assert not torch.equal(first.deletion, other.deletion)
    assert not torch.equal(first.deletion[0], first.deletion[1])
    # Row by row, the one row that counts would be gone at the first step, or at the last.
    half = first.deletion[:, 8]
    low, high = first.deletion[:, -1], first.deletion[:, 0]
    assert ((half > low + 0.2 * (high - low)) & (half < low + 0.8 * (high - low))).all()


def test_batches_have_no_effect():
    model, images, maps = build(), pictures(5), some_maps(5)
    expected = deletion_insertion(model, images, maps, fractions=evenly(2), precision="fp32")
    found = deletion_insertion(model, images, maps, fractions=evenly(2), precision="fp32", batch_size=2)
    torch.testing.assert_close(found.deletion, expected.deletion, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.insertion, expected.insertion, rtol=1e-4, atol=1e-6)


def test_fractions_of_less_than_a_pixel_are_left_out():
    found = deletion_insertion(Summer(), pictures(1), some_maps(1), fractions=evenly(2000))
    assert found.deletion.shape == (1, 1025)
    torch.testing.assert_close(found.fractions, torch.arange(1025) / 1024)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": some_maps(3)}, "one map for each image, not 3 maps for 4 images"),
        ({"maps": some_maps(4) - 1}, "weights from 0 up"),
        ({"maps": some_maps(4) * torch.nan}, "have NaN"),
        ({"fill": "black"}, "unknown fill 'black'.*mean, noise, blur"),
        ({"fractions": [0, 0.5]}, "fractions must rise from 0 to 1"),
        ({"fractions": [0, 0.5, 0.2, 1]}, "fractions must rise from 0 to 1"),
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
