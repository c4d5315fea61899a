"""Explanations to compare attention with: maps of the image regions that a prediction depends on.

The gradient and occlusion methods are captum's (`pip install 'ltpa[notebooks]'`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_images
from .errors import alike, closest, optional_module
from .inference import Model, attend, to_float
from .maps import resize
from .models.classifier import ImageClassifier, chosen_classes, evaluation_mode
from .models.foreign import ForeignNetwork, Normalization, as_classifier, uncompiled
from .models.networks import VGGGAP

METHODS = ("saliency", "gradcam", "integrated_gradients", "occlusion", "cam", "attention")
_PIXELS = 64 * 32 * 32  # in a batch, to bound the memory; a GPU takes eight times as many
_STEPS = 50  # of the integral


def explain(
    model: Model,
    images: Tensor,
    method: str,
    target: Tensor | int | None = None,
    layer: str | None = None,
    *,
    normalize: Normalization | None = None,
) -> Tensor:
    """Return non-negative maps (N, H, W), float32 on the CPU, of what supports a class.

    They explain the logit of the target, in evaluation mode, in the precision of the weights and on the model's device;
    coarser maps are scaled up bilinearly. All methods but "cam" and "attention" take any module from images to logits.

    Args:
        model: a run, any model of `ltpa.create_model`, or your own module.
        images: uint8, or float in [0, 1], (N, 3, H, W).
        method:
            "saliency": |gradient| at every pixel, maximum over the channels (Simonyan et al. 2014);
            "gradcam": positive part of a layer's activations weighted with their mean gradients (Selvaraju et al.
            2017);
            "integrated_gradients": from the mean color to the image in 50 steps, absolute value of the sum over the
            channels (Sundararajan et al. 2017);
            "occlusion": drop of the logit when a window (a quarter of the side, moved by an eighth) has the mean color,
            positive part of the mean over the windows that cover a pixel (Zeiler and Fergus 2014);
            "cam": the class activation map of `vgg-gap` (Zhou et al. 2016);
            "attention": the model's own map of a level, which does not depend on the target.
        target: one class or (N,); None means the predicted ones.
        layer: for "gradcam" a layer such as "conv13" or "stage3", or the full name of a module; for "attention" the
            level. None means the last one; your own module has no last one. Other methods have none.
        normalize: (mean, std) per channel, for your own module if it reads normalized images.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: {closest(method, METHODS)}")
    if layer is not None and method not in ("gradcam", "attention"):
        raise ValueError(f"{method} explains the whole model, not layer {layer!r}; leave layer out, or take gradcam")
    check_images(images)
    network = as_classifier(model, normalize)
    size = (images.shape[2], images.shape[3])
    if not len(images):
        return torch.zeros(0, *size)
    if method == "attention":
        return _attention(network, images, layer)
    results = []
    with _exact_gradients(network):
        logits = attend(network, images, "fp32").logits
        classes = logits.argmax(1) if target is None else chosen_classes(target, logits)
        # Copied, because a tensor of inference mode could not be used for gradients.
        classes, step = classes.expand(len(images)).clone(), _images_at_once(size, network)
        for some, of in zip(images.split(step), classes.split(step), strict=True):
            batch = to_float(some.detach().to(network.mean.device)).to(network.mean.dtype, copy=True)
            maps = _METHODS[method](network, batch.requires_grad_(), of.to(batch.device), layer)
            results.append(resize(maps.detach().float().cpu(), size))
    return torch.cat(results)


def _images_at_once(size: tuple[int, int], network: ImageClassifier) -> int:
    return max(1, (8 if network.mean.is_cuda else 1) * _PIXELS // (size[0] * size[1]))


@contextmanager
def _exact_gradients(network: ImageClassifier) -> Iterator[None]:
    """Compute gradients in evaluation mode and in the weights' precision, whatever the caller's contexts are."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(network.mean.device.type, enabled=False),
        uncompiled(network),
        evaluation_mode(network),
    ):
        yield


def _attention(model: ImageClassifier, images: Tensor, level: str | None) -> Tensor:
    maps = attend(model, images, "fp32").maps
    if not maps:
        raise ValueError("this model has no attention maps; methods for every model: saliency, gradcam, occlusion")
    name = list(maps)[-1] if level is None else level
    if name not in maps:
        raise ValueError(f"unknown level {name!r}: {closest(name, maps)}")
    size = (images.shape[2], images.shape[3])
    return torch.cat([resize(some, size) for some in maps[name].split(_images_at_once(size, model))])


def _captum() -> Any:
    return optional_module("captum.attr", "this method needs captum")


def _saliency(model: ImageClassifier, images: Tensor, target: Tensor, _: str | None) -> Tensor:
    return _captum().Saliency(model).attribute(images, target=target).amax(1)


def _gradcam(model: ImageClassifier, images: Tensor, target: Tensor, layer: str | None) -> Tensor:
    method = _captum().LayerGradCam(model, _module(model, layer))
    maps = method.attribute(images, target=target, relu_attributions=True)
    if maps.ndim != 4:
        raise ValueError(f"gradcam needs feature maps (N, C, h, w), and the output of {layer!r} has no positions")
    return maps.squeeze(1)


def _integrated_gradients(model: ImageClassifier, images: Tensor, target: Tensor, _: str | None) -> Tensor:
    method, start = _captum().IntegratedGradients(model), _mean_color(model, images)
    at_once = max(len(images), _images_at_once((images.shape[2], images.shape[3]), model) if images.is_cuda else 1)
    return method.attribute(images, start, target, n_steps=_STEPS, internal_batch_size=at_once).sum(1).abs()


def _occlusion(model: ImageClassifier, images: Tensor, target: Tensor, _: str | None) -> Tensor:
    side = min(images.shape[-2:])
    window, stride = math.ceil(side / 4), math.ceil(side / 8)
    method, color = _captum().Occlusion(model), _mean_color(model, images)
    at_once = _images_at_once((images.shape[2], images.shape[3]), model) // len(images) if images.is_cuda else 1
    with torch.no_grad():
        falls = method.attribute(
            images, (3, window, window), (3, stride, stride), color, target, perturbations_per_eval=max(1, at_once)
        )
    return falls[:, 0].relu()  # a window hides all channels together


def _cam(model: ImageClassifier, images: Tensor, target: Tensor, _: str | None) -> Tensor:
    if not isinstance(model, VGGGAP):
        raise ValueError("only vgg-gap has a class activation map of its own; gradcam makes one for every model")
    with torch.no_grad():
        return model.attend(images, target=target).maps["cam"]


_METHODS: dict[str, Callable[[ImageClassifier, Tensor, Tensor, str | None], Tensor]] = {
    "saliency": _saliency,
    "gradcam": _gradcam,
    "integrated_gradients": _integrated_gradients,
    "occlusion": _occlusion,
    "cam": _cam,
}


def _module(model: ImageClassifier, name: str | None) -> nn.Module:
    """Return a layer of the trunk by its short name, or any module by its full name."""
    network = model.network if isinstance(model, ForeignNetwork) else model
    trunk = dict(getattr(model, "trunk", nn.Module()).named_children())
    if name is None and trunk:
        return list(trunk.values())[-1]
    known = {full: module for full, module in network.named_modules() if full} | trunk
    if name in known:
        return known[name]
    parts = list(trunk) or [child for child, _ in network.named_children()]
    if name is None:
        raise ValueError(
            f"gradcam of this network needs layer=, the name of a module that returns feature maps, usually one of the "
            f"last; its parts: {', '.join(parts) or 'none'}, and their parts as in model.named_modules()"
        )
    known_parts = f"known: {', '.join(parts)}, and every name of model.named_modules()"
    raise ValueError(f"unknown layer {name!r}: {alike(name, known)}{known_parts}")


def _mean_color(model: ImageClassifier, images: Tensor) -> Tensor:
    """Return images of the training data's mean color, which is zero after the normalization; gray if none is known."""
    return model.mean.expand_as(images).to(images.dtype)
