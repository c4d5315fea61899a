"""Explanations against autograd and loops written out, and what they leave as it was."""

import sys

import pytest
import torch
from torch import nn

from ltpa import attend, explain
from ltpa.attribution import METHODS
from ltpa.inference import to_float
from ltpa.maps import resize
from tests.models.helpers import byte_pictures, warmed

CLASSES = 4
CAPTUM = ("saliency", "gradcam", "integrated_gradients", "occlusion")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Of the integral: its value is tested where it does not depend on their number."""
    monkeypatch.setattr(sys.modules["ltpa.attribution"], "_STEPS", 6)  # `ltpa.explain` is the function


def build(name="vgg-att3-concat-dp"):
    return warmed(name, mean=(0.4, 0.5, 0.6))


def pictures(n=3, height=32, width=32):
    return byte_pictures(n, height, width)


def predicted(model, images):
    return attend(model, images, "fp32").logits.argmax(1)


def features(model, images, name):
    """Activations of a layer of the trunk, and logits that depend on them."""
    kept = []
    hook = getattr(model.trunk, name).register_forward_hook(lambda *call: kept.append(call[2]))
    logits = model(to_float(images).requires_grad_())
    hook.remove()
    return kept[0], logits


@pytest.mark.parametrize("name", ["vgg-att3-concat-dp", "vgg-gap", "vgg"])
def test_saliency_is_the_largest_gradient(name):
    model, images = build(name), pictures()
    x = to_float(images).requires_grad_()
    target = torch.tensor([3, 0, 1])
    (gradient,) = torch.autograd.grad(model(x)[range(3), target].sum(), x)
    found = explain(model, images, "saliency", target)
    torch.testing.assert_close(found, gradient.abs().amax(1))
    assert found.std() > 0


@pytest.mark.parametrize(
    ("name", "layer", "at"),
    [
        ("vgg-att3-concat-dp", None, "conv13"),
        ("vgg-att3-concat-pc", "conv10", "conv10"),
        ("vgg-att2-indep-add", "trunk.conv7", "conv7"),
        ("vgg-late", None, "conv13"),
        ("resnet164-att2-concat-pc", "stage2", "stage2"),
    ],
)
def test_gradcam_is_selvarajus_formula(name, layer, at):
    model, images = build(name), pictures(2)
    activations, logits = features(model, images, at)
    target = predicted(model, images)
    (gradient,) = torch.autograd.grad(logits[range(2), target].sum(), activations)
    cam = (gradient.mean((2, 3), keepdim=True) * activations).sum(1).relu()
    assert cam.std() > 0
    found = explain(model, images, "gradcam", layer=layer)
    torch.testing.assert_close(found, resize(cam.detach(), (32, 32)), rtol=1e-4, atol=1e-7)


def test_integrated_gradients_add_up_to_the_difference():
    """Axiom of completeness, before the absolute value: on a linear model the attribution is known exactly."""
    weights = torch.randn(CLASSES, 3 * 32 * 32, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES))
    model[1].weight.data = weights
    images = pictures(2)
    expected = (weights[1].view(3, 32, 32) * (to_float(images) - 0.5)).sum(1).abs()
    torch.testing.assert_close(explain(model, images, "integrated_gradients", 1), expected, rtol=1e-4, atol=1e-4)


def test_integrated_gradients_start_at_the_mean_color():
    model = build()
    plain = model.mean.expand(2, 3, 32, 32)
    assert (explain(model, plain, "integrated_gradients", 0) == 0).all()
    shifted = plain + torch.zeros(2, 3, 32, 32).index_fill(3, torch.tensor([4]), 0.1)
    found = explain(model, shifted, "integrated_gradients", 0)
    assert (found[:, :, 4] > 0).any()
    assert (found[:, :, 5:] == 0).all()


def test_occlusion_is_the_loop():
    size = (40, 33)
    model, images = build(), pictures(2, *size)
    x, target = to_float(images), torch.tensor([1, 2])
    side = min(size)
    window, stride = -(-side // 4), -(-side // 8)
    falls, times = torch.zeros(2, *size), torch.zeros(size)
    with torch.no_grad():
        whole = model(x)[range(2), target]
        starts = [list(range(0, -(-(length - window) // stride) * stride + 1, stride)) for length in size]
        for top in starts[0]:
            for left in starts[1]:
                hidden = x.clone()
                hidden[:, :, top : top + window, left : left + window] = model.mean
                fall = whole - model(hidden)[range(2), target]
                falls[:, top : top + window, left : left + window] += fall[:, None, None]
                times[top : top + window, left : left + window] += 1
    assert (times > 0).all()
    found = explain(model, images, "occlusion", target)
    torch.testing.assert_close(found, (falls / times).relu(), rtol=1e-4, atol=1e-6)


def test_cam_is_the_models_own_and_its_gradcam_up_to_scale():
    """Global average pooling makes the mean gradient the classifier's weight, divided by the number of positions."""
    model, images = build("vgg-gap"), pictures()
    for target in (None, 2, torch.tensor([0, 3, 1])):
        expected = model.attend(to_float(images), target=target).maps["cam"].detach()
        torch.testing.assert_close(explain(model, images, "cam", target), resize(expected, (32, 32)))
    torch.testing.assert_close(
        explain(model, images, "cam") / 64, explain(model, images, "gradcam"), rtol=1e-4, atol=1e-7
    )


def test_attention_is_the_models_map():
    model, images = build(), pictures()
    expected = attend(model, images, "fp32").maps
    for level in (None, *expected):
        maps = explain(model, images, "attention", layer=level)
        torch.testing.assert_close(maps, resize(expected[level or "conv13"], (32, 32)))


@pytest.mark.parametrize(("name", "method"), [*(("vgg-gap", m) for m in METHODS), *(("vgg", m) for m in CAPTUM)])
def test_shape_sign_type_and_default_target(name, method):
    model, images = build(name), pictures(2, 36, 44)
    found = explain(model, images, method)
    assert found.shape == (2, 36, 44)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert found.min() >= 0
    assert not found.requires_grad
    torch.testing.assert_close(explain(model, to_float(images), method, predicted(model, images)), found)


@pytest.mark.parametrize("method", METHODS)
def test_batches_are_without_effect(method, monkeypatch):
    model, images = build("vgg-gap"), pictures(3)
    target = torch.tensor([0, 1, 3])
    expected = explain(model, images, method, target)
    monkeypatch.setattr(sys.modules["ltpa.attribution"], "_PIXELS", 2 * 32 * 32)
    torch.testing.assert_close(explain(model, images, method, target), expected, rtol=1e-4, atol=1e-6)
    assert explain(model, images[:0], method).shape == (0, 32, 32)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_and_the_images_stay_as_they_were(method):
    model = build("vgg-gap").train()
    model.trunk.conv3.eval()
    model.trunk.conv5[0].weight.requires_grad_(False)
    images = to_float(pictures())
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    explain(model, images, method)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert torch.equal(images, to_float(pictures()))
    assert not images.requires_grad


def test_the_model_stays_as_it_was_after_an_error():
    model = build().train()
    with pytest.raises(ValueError, match="target must be a class from 0 to 3"):
        explain(model, pictures(), "saliency", 4)
    assert model.training


@pytest.mark.parametrize("method", ["saliency", "gradcam", "integrated_gradients"])
def test_neither_a_callers_context_nor_frozen_weights_are_an_obstacle(method, capfd, recwarn):
    model, images = build(), pictures(2)
    expected = explain(model, images, method)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(explain(model, to_float(images), method), expected)
    torch.testing.assert_close(explain(model.requires_grad_(False), images, method), expected)
    assert capfd.readouterr() == ("", ""), "nothing is printed"
    assert not [str(w.message) for w in recwarn]


def test_a_module_of_ones_own_is_explained():
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True))
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    model[3].weight.data.abs_()  # so that activations speak for every class
    images = pictures(2)
    for method in CAPTUM:
        found = explain(model, images, method, layer="0.1" if method == "gradcam" else None)
        assert found.shape == (2, 32, 32)
        assert found.std() > 0
    with pytest.raises(ValueError, match="needs layer="):
        explain(model, images, "gradcam")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg", {"method": "grad-cam"}, "unknown method 'grad-cam': did you mean 'gradcam'"),
        ("vgg", {"method": "gradcam", "layer": "conv14"}, "unknown layer 'conv14': did you mean 'conv4'"),
        ("vgg", {"method": "gradcam", "layer": "head"}, "the output of 'head' has no positions"),
        ("vgg", {"method": "saliency", "layer": "conv3"}, "leave layer out, or take gradcam"),
        ("vgg-late", {"method": "cam"}, "only vgg-gap has a class activation map of its own"),
        ("vgg-late", {"method": "attention"}, "this model has no attention maps"),
        ("vgg-att-concat-pc", {"method": "attention", "layer": "conv10"}, "unknown level 'conv10'"),
        ("vgg", {"method": "saliency", "target": [0, 1]}, r"or one for each of 3 images, not \[0, 1\]"),
        ("vgg", {"method": "saliency", "target": -1}, "target must be a class from 0 to 3"),
        (
            "vgg",
            {"method": "saliency", "target": "cat"},
            "target must be a class from 0 to 3, or one for each of 3 images, not 'cat'",
        ),
        ("vgg", {"method": "saliency", "images": pictures(3, 16, 16)}, "at least 32x32 pixels"),
        ("vgg", {"method": "saliency", "images": pictures(3)[0]}, r"must have the shape \(N, 3, H, W\)"),
        ("vgg", {"method": "saliency", "images": pictures().numpy()}, "images must be a tensor"),
    ],
)
def test_what_cannot_be_explained_is_refused(name, arguments, message):
    with pytest.raises(TypeError if "must be a tensor" in message else ValueError, match=message):
        explain(build(name), **{"images": pictures(), **arguments})


def test_without_captum_cam_and_attention_work_and_the_others_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model = build("vgg-gap")
    for method in METHODS:
        if method in CAPTUM:
            with pytest.raises(ImportError, match=r"pip install 'ltpa\[notebooks\]'"):
                explain(model, pictures(1), method)
        else:
            assert explain(model, pictures(1), method).shape == (1, 32, 32)
