"""What public functions refuse at the door, and what they leave as it was: tables of every door and every fault."""

import random
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import ltpa
from ltpa import Split, TrainConfig, attend, evaluate, explain, fit, metrics, show, viz
from ltpa.checks import check_values
from ltpa.inference import attend_batches
from ltpa.metrics.adversarial import perturb
from ltpa.models.cost import gmac
from ltpa.models.foreign import ForeignNetwork
from tests.models.helpers import MODELS, pictures, warmed
from tests.tools.crash import tiny_data

LABELS = torch.tensor([0, 1, 2, 3])
FAULTS = {  # what is wrong with four images: (the images, what the message says)
    "0 to 255": (pictures(4) * 255, "look like 0 to 255: divide by 255"),
    "16 bits": (pictures(4) * 65535, "divide by 65535"),
    "normalized": ((pictures(4) - 0.45) / 0.22, "look normalized: give pictures in"),
    "-1 to 1": (pictures(4) * 2 - 1, "look normalized"),
    "one of them": (pictures(4) * torch.tensor([1, 1, 255, 1]).view(4, 1, 1, 1), "the first of them image 2"),
    "NaN": (pictures(4).index_put((torch.tensor(2),), torch.tensor(torch.nan)), "image 2 is not finite"),
    "infinity": (pictures(4).index_put((torch.tensor(1),), torch.tensor(torch.inf)), "image 1 is not finite"),
}


def model():
    return warmed("vgg-att2-concat-dp")


def data(images=None, split="train"):
    whole = tiny_data()
    part = whole.train if split == "train" else whole.test
    values = part.images.float() / 255
    values[4:8] = pictures(4) if images is None else images
    return replace(whole, **{split: Split(values, part.labels)})


MAPS = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
DOORS = {  # functions of a model and four images
    "attend": lambda net, x: attend(net, x, "fp32"),
    "attend with a query": lambda net, x: attend(net, pictures(4), "fp32", query=x),
    "attend in small batches": lambda net, x: attend(net, x, "fp32", 1),
    "attend of a split": lambda net, x: attend(net, Split(x, LABELS), "fp32"),
    "evaluate": lambda net, x: evaluate(net, Split(x, LABELS), "fp32"),
    "model.attend": lambda net, x: net.attend(x.float()),
    "model.attend with a query": lambda net, x: net.attend(pictures(4), query=x.float()),
    "saliency": lambda net, x: explain(net, x, "saliency"),
    "gradcam": lambda net, x: explain(net, x, "gradcam", 1),
    "integrated gradients": lambda net, x: explain(net, x[:1], "integrated_gradients") if len(x) == 1 else None,
    "occlusion": lambda net, x: explain(net, x, "occlusion"),
    "attention": lambda net, x: explain(net, x, "attention"),
    "deletion and insertion": lambda net, x: metrics.deletion_insertion(
        net, x, MAPS, fractions=(0, 0.5, 1), precision="fp32"
    ),
    "permuted attention": lambda net, x: metrics.permuted_attention(net, x),
    "randomization": lambda net, x: metrics.randomization(net, x, stops=["head"]),
    "layers": lambda net, x: metrics.layers_top_down(net, x),
    "attack": lambda net, x: perturb(net, x, LABELS, 4, "PGD", 2),
    "show": lambda net, x: show(x, net),
}


@pytest.mark.parametrize(
    ("door", "fault"),
    [("attend", fault) for fault in FAULTS]
    + [(door, fault) for door in DOORS if door != "integrated gradients" for fault in ("0 to 255", "NaN")],
)
def test_images_that_are_no_pictures_are_refused(door, fault):
    images, words = FAULTS[fault]
    if door == "show" and "image" in words:  # it looks at each picture alone
        words = "a picture's numbers must be in"
    with pytest.raises(ValueError, match=words):
        DOORS[door](model(), images)


@pytest.mark.parametrize(("split", "fault"), [("train", "one of them"), ("test", "NaN")])
def test_training_looks_at_all_images_first(split, fault, tmp_path):
    images, _ = FAULTS[fault]
    config = TrainConfig(model="vgg-gap", width=1 / 32, epochs=1, device="cpu", run_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=f"{split.replace('train', 'training')} images must be in"):
        fit(config, data(images, split), progress=False)


def test_forward_does_not_look_at_values():
    net = model().train()
    assert net(pictures(4) * 255).isfinite().all()
    assert net.eval()(pictures(4) * 255).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_little_outside_is_allowed_and_more_is_not(dtype):
    images = pictures(4, dtype=dtype)
    for low, high in ((-0.04, 1), (0, 1.04), (0, 1)):
        images[2, 0, 0, :2] = torch.tensor([low, high])
        check_values(images)
    for low, high in ((-0.07, 1), (0, 1.07)):
        images[2, 0, 0, :2] = torch.tensor([low, high])
        with pytest.raises(ValueError, match="image 2"):
            check_values(images)
    check_values(images[:0])


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (pictures(1)[0], ValueError, r"for a single image: images\[None\]"),
        (pictures(2, 31, 31), ValueError, "at least 32x32"),
        (pictures(2)[:, :1], ValueError, r"\(N, 3, H, W\)"),
        ((pictures(2) * 255).long(), TypeError, "float tensor"),
        (pictures(2).numpy(), TypeError, "not ndarray"),
        ([pictures(2)], TypeError, "not list"),
    ],
)
@pytest.mark.parametrize(
    "door", ["attend", "saliency", "attention", "deletion and insertion", "randomization", "attack"]
)
def test_images_of_other_shapes_and_types_are_refused(door, images, error, words):
    with pytest.raises(error, match=words):
        DOORS[door](model(), images)


# State that a call leaves behind


def fingerprint(net):
    """Everything that a call could change: the model, its hooks, random states, and torch's switches."""
    state = {f"mode of {name}": module.training for name, module in net.named_modules()}
    for name, module in net.named_modules():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        state[f"hooks of {name}"] = [list(getattr(module, kind)) for kind in kinds]
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        state[name] = (
            zlib.crc32(value.detach().numpy().tobytes()),
            value.requires_grad,
            value.dtype,
            value.stride(),
            value._version,
        )
        state[f"gradient of {name}"] = None if value.grad is None else zlib.crc32(value.grad.numpy().tobytes())
    return state | {
        "random": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),  # noqa: NPY002
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "default": (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        "global hooks": len(nn.modules.module._global_forward_hooks),
    }


def half_trained():
    """A model in training mode with frozen norms, a frozen layer and gradients from a step."""
    net = model().train()
    net.trunk.conv3.eval()
    net.trunk.conv1.requires_grad_(False)
    net(pictures(2)).sum().backward()
    return net


CALLS = {name: call for name, call in DOORS.items() if not name.startswith("model.")} | {
    "integrated gradients": lambda net, x: explain(net, x[:1], "integrated_gradients"),
    "cost": lambda net, x: gmac(net),
    "stopped early": lambda net, x: next(attend_batches(net, x, "fp32", 1)),
    "bfloat16": lambda net, x: attend(net, x, "bf16"),
    "localization": lambda net, x: metrics.localization(attend(net, x, "fp32").maps["conv13"], torch.ones(4, 32, 32)),
    "explorer": lambda net, x: ltpa.viz.explorer.Explorer(net, x),
    "a layer that is not there": lambda net, x: explain(net, x, "gradcam", layer="conv99"),
    "images that are refused": lambda net, x: attend(net, x * 255),
    "a class that is not there": lambda net, x: metrics.deletion_insertion(net, x, MAPS, target=99),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_leaves_everything_as_it_was(call):
    net, images = half_trained(), pictures(4)
    before, values = fingerprint(net), images.clone()
    try:
        kept = CALLS[call](net, images)
    except ValueError:
        kept = None
        assert call in ("a layer that is not there", "images that are refused", "a class that is not there")
    after = fingerprint(net)
    assert [name for name in before if before[name] != after[name]] == []
    assert before.keys() == after.keys()
    assert torch.equal(images, values)
    assert images.grad is None
    assert not images.requires_grad
    del kept


def test_two_runs_of_one_model_side_by_side_do_not_mix_modes():
    net = half_trained()
    modes = [module.training for module in net.modules()]
    pairs = zip(attend_batches(net, pictures(4), "fp32", 2), attend_batches(net, pictures(3), "fp32", 2), strict=True)
    for (_, one), (_, other) in pairs:
        assert [module.training for module in net.modules()] == modes
        assert torch.equal(one.logits[:1], other.logits[:1]) == torch.equal(pictures(4)[:1], pictures(3)[:1])


def test_a_callers_contexts_change_no_explanation():
    net, images = model(), pictures(2)
    expected = [explain(net, images, "saliency", target) for target in (None, 1)]
    network = Foreign()
    foreign = explain(network, images, "saliency", 1, normalize=NORMALIZE)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            found = [explain(net, images, "saliency", target) for target in (None, torch.tensor(1))]
            assert torch.equal(torch.stack(found), torch.stack(expected))
            assert torch.equal(explain(network, images, "saliency", 1, normalize=NORMALIZE), foreign)


# Precision


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.bfloat16) for name in MODELS] + [(name, torch.float16) for name in ("vgg-gap", "vgg-att3-concat-pc")],
)
def test_a_model_in_half_precision_answers_as_before(name, dtype):
    net, images = warmed(name), pictures(2)
    exact = attend(net, images, "fp32")
    net.to(dtype)
    output = attend(net, images)
    torch.testing.assert_close(output.logits, exact.logits, atol=0.15, rtol=0.05)
    for level, maps in output.maps.items():
        torch.testing.assert_close(maps, exact.maps[level], atol=0.05, rtol=0.2)
    assert evaluate(net, Split(images, torch.tensor([0, 1])))["loss"] > 0
    for method in ("saliency", "gradcam") + (("cam",) if name == "vgg-gap" else ()):
        assert explain(net, images, method, 1).dtype == torch.float32
    if output.maps:
        show(images.to(dtype), net)
    if output.maps and hasattr(net, "attention"):
        assert metrics.permuted_attention(net, images).keys() == output.maps.keys()


# Networks that are not ours


class Foreign(nn.Module):
    """A network that reads normalized images, flattens with `view`, and answers in any form."""

    def __init__(self, form=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.fc = nn.Linear(6 * 32 * 32, 4)
        self.form = form

    def forward(self, images):
        x = self.features(images)
        return self.form(self.fc(x.view(len(x), -1)))


class Named:
    """What libraries of large networks return."""

    def __init__(self, logits):
        self.logits = logits


class Bare(nn.Module):
    """A network without parameters: three mean colors are its logits."""

    def forward(self, images):
        return images.mean((2, 3))


NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
WRAPPED = {
    "as it is": lambda: Foreign(),
    "a dictionary": lambda: Foreign(lambda logits: {"logits": logits, "loss": None}),
    "an object": lambda: Foreign(Named),
    "DataParallel": lambda: nn.DataParallel(Foreign()),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(Foreign()),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_any_network_is_measured(kind):
    network, images = WRAPPED[kind]().eval(), pictures(4)
    plain = Foreign().eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZE)
    with torch.no_grad():
        logits = plain((images - mean) / std)
    options = {"normalize": NORMALIZE}
    torch.testing.assert_close(attend(network, images, "fp32", **options).logits, logits)
    assert attend(network, images, **options).maps == {}
    accuracy = evaluate(network, Split(images, logits.argmax(1)), "fp32", **options)["accuracy"]
    assert accuracy == 1

    x = images.clone().requires_grad_()
    plain((x - mean) / std)[:, 2].sum().backward()
    torch.testing.assert_close(explain(network, images, "saliency", 2, **options), x.grad.abs().amax(1))
    for method in ("integrated_gradients", "occlusion"):
        assert explain(network, images[:1], method, **options).shape == (1, 32, 32)
    assert explain(network, images, "gradcam", layer="features.0", **options).shape == (4, 32, 32)
    curves = metrics.deletion_insertion(network, images, MAPS, 1, fractions=(0, 0.5, 1), precision="fp32", **options)
    torch.testing.assert_close(curves.deletion[:, 0], logits.softmax(1)[:, 1])
    similar = metrics.randomization(
        network, images, lambda net, x: {"saliency": explain(net, x, "saliency", 0, normalize=NORMALIZE)}
    )
    assert list(similar) == ["fc", "features"]
    for call in (lambda: explain(network, images, "attention"), lambda: metrics.permuted_attention(network, images)):
        with pytest.raises(ValueError, match="this model has no attention"):
            call()
    with pytest.raises(ValueError, match="give maps_of"):
        metrics.randomization(network, images)


def test_without_normalize_a_network_reads_what_is_given():
    images = pictures(2)
    with torch.no_grad():
        assert torch.equal(attend(Foreign().eval(), images, "fp32").logits, Foreign().eval()(images))


def test_compiled_networks_are_measured_as_they_were_written():
    images = pictures(2)
    ours, foreign = model(), Foreign().eval()
    for network, layer in ((ours, "conv13"), (foreign, "features.0")):
        expected = attend(network, images, "fp32").logits, explain(network, images, "gradcam", 1, layer)
        compiled = torch.compile(network, backend="eager")
        assert torch.equal(attend(compiled, images, "fp32").logits, expected[0])
        assert torch.equal(explain(compiled, images, "gradcam", 1, layer), expected[1])
        network.compile(backend="eager")
        attend(network, images, "fp32")
        assert torch.equal(explain(network, images, "gradcam", 1, layer), expected[1])
        assert metrics.layers_top_down(network, images)


def test_a_network_without_parameters():
    images = pictures(4)
    assert torch.equal(attend(Bare(), images, "fp32").logits, images.mean((2, 3)))
    torch.testing.assert_close(explain(Bare(), images, "saliency", 0), torch.full((4, 32, 32), 1 / 1024))
    assert metrics.deletion_insertion(Bare(), images, MAPS, 0, fractions=(0, 0.5, 1)).deletion.shape == (4, 3)
    with pytest.raises(ValueError, match="no layers with weights"):
        metrics.randomization(Bare(), images, lambda net, x: {"a": x[:, 0]})


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda logits: (logits, None), "a tuple of 2"),
        (lambda logits: {"out": logits}, "a dictionary of out"),
        (lambda logits: logits[:, :, None], r"a tensor \(2, 4, 1\)"),
        (lambda logits: logits.sum(), r"a tensor \(\)"),
        (lambda logits: None, "NoneType"),
    ],
)
@pytest.mark.parametrize("door", ["attend", "saliency"])
def test_what_is_no_logits_is_refused_in_one_line(door, form, words):
    with pytest.raises(TypeError, match=f"must return logits .*{words}"):
        DOORS[door](Foreign(form), pictures(2))


@pytest.mark.parametrize("door", ["attend", "evaluate", "saliency", "attention", "deletion and insertion", "layers"])
def test_what_is_no_network_is_refused(door):
    for value, words in (
        (None, "NoneType"),
        ("vgg", "str"),
        (nn.Linear, "the class Linear"),
        (lambda x: x, "function"),
    ):
        with pytest.raises(TypeError, match=f"model must be a run, a model of ltpa or another .*{words}"):
            DOORS[door](value, pictures(4))


def test_normalize_is_for_networks_that_need_it():
    with pytest.raises(ValueError, match="normalizes inside"):
        attend(model(), pictures(2), normalize=NORMALIZE)
    for wrong in (((1, 2), (1, 2)), 3, ((0.5,) * 3, (0, 1, 1))):
        with pytest.raises(ValueError, match=r"mean|std"):
            attend(Foreign(), pictures(2), normalize=wrong)


def test_gradcam_of_a_large_network_asks_for_a_layer():
    from torchvision.models import resnet18

    network, images = resnet18(num_classes=4).eval(), pictures(2)
    with pytest.raises(ValueError, match=r"needs layer=.*layer1, layer2, layer3, layer4") as caught:
        explain(network, images, "gradcam")
    assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match=r"did you mean 'layer4'.*named_modules") as caught:
        explain(network, images, "gradcam", layer="layer_4")
    assert len(str(caught.value)) < 300
    assert explain(network, images, "gradcam", 0, "layer4").shape == (2, 32, 32)


def test_a_run_stands_for_its_model(tmp_path):
    net, images = model(), pictures(4)
    run = ltpa.Run(TrainConfig(model="vgg-att2-concat-dp"), tuple("abcd"), net, tmp_path)
    assert torch.equal(attend(run, images, "fp32").logits, attend(net, images, "fp32").logits)
    for door in ("evaluate", "saliency", "attention", "deletion and insertion", "permuted attention", "randomization"):
        DOORS[door](run, images)
    assert not isinstance(ltpa.inference.as_classifier(run), ForeignNetwork)


# Other arguments


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: evaluate(model(), pictures(4)), TypeError, r"ltpa.Split\(images, labels\)"),
        (lambda: evaluate(model(), tiny_data()), TypeError, "data.test"),
        (lambda: show(pictures(2), maps=MAPS[:2]), TypeError, "maps={'map': weights}"),
        (lambda: show(pictures(2), maps=[MAPS[:2]]), TypeError, "a dictionary"),
        (lambda: show(pictures(2), maps={}), ValueError, "maps is empty"),
        (lambda: show(pictures(2), maps={"a": [[["x"]]]}), TypeError, "maps of a"),
        (lambda: show(pictures(2), model(), classes=[]), ValueError, "4 classes, but 0 names"),
        (lambda: viz.attention_figure(pictures(2) * 255, {"a": MAPS[:2]}), ValueError, "divide by 255"),
        (lambda: viz.attention_figure(pictures(2), {"a": MAPS[:2] * torch.nan}), ValueError, "NaN or infinite"),
        (lambda: fit({"epochs": 1}), TypeError, r"TrainConfig\(\*\*settings\)"),
        (lambda: fit(None), TypeError, "config must be a TrainConfig"),
        (lambda: fit(TrainConfig(), pictures(2)), TypeError, "data must be a Dataset"),
        (lambda: fit(TrainConfig(), callbacks=[5]), TypeError, "functions of a run, not 5"),
        (lambda: fit(TrainConfig(), callbacks=print), TypeError, "a list"),
        (lambda: fit(TrainConfig(), callbacks=[ltpa.training.base.Callback]), TypeError, r"Callback\(\) in place of"),
        (lambda: TrainConfig(5), TypeError, r"by name, TrainConfig\(model=...\), not 5"),
        (lambda: TrainConfig({"epochs": 5}), TypeError, r"TrainConfig\(\*\*settings\)"),
        (lambda: TrainConfig(model="vgg-att"), ValueError, "did you mean 'vgg-att-concat-dp'"),
    ],
)
def test_arguments_that_cannot_work_are_refused_in_one_line(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_maps_may_be_arrays_and_nested_lists():
    assert show(pictures(1), maps={"a": MAPS[:1].tolist(), "b": MAPS[:1].numpy(), "c": MAPS[:1].bfloat16()})
