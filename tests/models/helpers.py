"""What the tests of the networks share: models that are not fresh, pictures that differ, a recorder of layers."""

import copy
import functools

import torch
from torch import nn

from ltpa import create_model, list_models
from ltpa.inference import to_float
from tests.tools import reference

NORMALIZERS = ("softmax", "sigmoid")
# One of each kind; every name is built once in test_networks.
MODELS = [
    "vgg", "vgg-late", "vgg-gap", "vgg-pan", "vgg-att-indep-add", "vgg-att2-concat-dp", "vgg-att3-concat-pc",
    "resnet164", "resnet164-att2-concat-pc", "resnet164-att-indep-dp",
]  # fmt: skip
ATTENTION = list_models("vgg-att*")
STAGES = {"att": ["stage3"], "att2": ["stage2", "stage3"]}
MEAN_STD = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


def build(name, num_classes=5, *, seed=0, width=1 / 32, **options):
    torch.manual_seed(seed)
    return create_model(name, num_classes, width=width, **options)


def pictures(n=2, height=32, width=32, dtype=torch.float32, seed=0):
    """Coarse colored patches with noise, so that both positions and images differ."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(n, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.rand(n, 3, height, width, generator=generator, dtype=torch.float64)
    return (0.7 * nn.functional.interpolate(patches, (height, width)) + 0.3 * noise).to(dtype)


def byte_pictures(n, height=32, width=32):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


@functools.cache
def _warmed(name, options):
    model = build(name, 4, **dict(options)).train()
    with torch.no_grad():
        for _ in range(3):
            model(to_float(byte_pictures(16)))
    return model.eval()


def warmed(name="vgg-att3-concat-dp", **options):
    """A model of four classes whose batch norms have statistics: its logits differ from image to image."""
    return copy.deepcopy(_warmed(name, tuple(options.items())))


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

    With those of a fresh model nothing is normalized, and the 54 sums of a ResNet double their input each time.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
            module.momentum = 0.5
    with torch.no_grad():
        model(images)
    return model.eval()


def state_of(model):
    return {key: value.double() for key, value in copy.deepcopy(model.state_dict()).items()}


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def assert_same_maps(maps, expected, tolerance=1e-9):
    assert list(maps) == list(expected)
    for level, weights in expected.items():
        assert_close(maps[level], weights, tolerance)


def levels_of(name):
    family, attention, *_ = name.split("-")
    return (reference.LEVELS if family == "vgg" else STAGES)[attention]


def is_dead(name, normalizer):
    return name.endswith(("-uniform", "-static")) or (name.endswith(("-pc", "-permuted")) and normalizer == "softmax")


def gradients(name, normalizer, **options):
    """Sums of |gradient| per parameter of a float64 training step without dropout."""
    model = build(name, normalizer=normalizer, width=1 / 16, dropout=False, faithful=True, **options).double().train()
    labels = torch.arange(8) % 5
    nn.functional.cross_entropy(model(pictures(8, dtype=torch.float64)), labels).backward()
    return {
        key: 0.0 if parameter.grad is None else parameter.grad.abs().sum().item()
        for key, parameter in model.named_parameters()
    }


def record(model, images):
    """Layer by layer what a forward pass in training mode does, and multiply-accumulates of the convolutions."""
    events, macs, handles = [], {}, []

    def hook(module, inputs, output, name):
        if isinstance(module, nn.Conv2d):
            assert (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (1, 1))
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
            raise AssertionError(f"unexpected layer: {type(module).__name__}")

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
