"""Explanations to compare attention with: why a model answers what it answers, as maps over the image.

The gradient and occlusion methods are captum's (`pip install 'ltpa[notebooks]'`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import closest
from .inference import attend_batches, to_float
from .maps import resize
from .models.backbones import check_images
from .models.networks import VGGGAP, ImageClassifier, chosen_classes

METHODS = ("saliency", "gradcam", "integrated_gradients", "occlusion", "cam", "attention")
_PIXELS = 64 * 32 * 32  # of the images in one pass, which bounds the memory
_STEPS = 50  # of the integral


def explain(
    model: ImageClassifier,
    images: Tensor,
    method: str,
    target: Tensor | int | None = None,
    layer: str | None = None,
) -> Tensor:
    """Maps of what speaks for a class, by one of several methods.

    Computed in evaluation mode, in the precision of the weights (float32, without autocast) and on the model's device;
    the model's modes and gradient flags are left as they were. What is explained is the logit of the target.

    Args:
        model: any model of `ltpa.create_model`; for all but "cam" and "attention" any module from images to logits.
        images: uint8, or float in [0, 1], (N, 3, H, W); worked on in batches.
        method: "saliency": |gradient| at every pixel, the largest of the channels (Simonyan et al. 2014);
            "gradcam": activations of a layer, weighted with their mean gradients, the positive part (Selvaraju et al.
            2017); "integrated_gradients": from the mean color to the image in 50 steps, absolute value of the sum over
            the channels (Sundararajan et al. 2017); "occlusion": by how much the logit falls when a window (a quarter
            of the side, moved by an eighth) has the mean color, the mean over the windows on a pixel, the positive
            part (Zeiler and Fergus 2014); "cam": the class activation map of `vgg-gap` (Zhou et al. 2016);
            "attention": the model's own map of a level, which no target can change.
        target: class, one or (N,); None means the predicted ones.
        layer: of "gradcam": "conv1" ... "conv13", "stage1" ..., or a module by its full name; without it, the last of
            the trunk. Of "attention": the level; without it, the last. The other methods have none.

    Returns:
        (N, H, W), float32 on the CPU, from 0 up; coarser maps are scaled up bilinearly.

    Raises:
        ValueError: unknown method or layer; a method that the model has not, or that has no layer; a target that is
            no class; images that are not (N, 3, H, W).
        TypeError: images that are no float or uint8 tensor.
        ImportError: captum is missing.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: {closest(method, METHODS)}")
    if layer is not None and method not in ("gradcam", "attention"):
        raise ValueError(f"{method} explains the whole model, not layer {layer!r}; leave layer out, or take gradcam")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (N, 3, H, W), not {type(images).__name__}")
    check_images(to_float(images[:1]))
    if method == "attention":
        with _evaluating(model):
            return _attention(model, images, layer)
    compute = _METHODS[method](model, layer)
    size = images.shape[-2:]
    step = max(1, _PIXELS // (size[0] * size[1]))
    found = [images.new_zeros((0, *size), dtype=torch.float32, device="cpu")]
    parameter = next(model.parameters())  # of whose device and precision the images have to be
    # Not even a caller's inference_mode keeps gradients from being computed.
    with torch.inference_mode(False), torch.enable_grad(), _evaluating(model):
        for start in range(0, len(images), step):
            batch = to_float(images[start : start + step].to(parameter.device)).to(parameter.dtype, copy=True)
            with torch.no_grad():
                logits = model(batch)
            classes = _part(target, slice(start, start + step), len(images))
            classes = logits.argmax(1) if classes is None else chosen_classes(classes, logits).expand(len(batch))
            maps = compute(batch.requires_grad_(), classes)
            found.append(resize(maps.detach().float().cpu(), size))
    return torch.cat(found)


def _part(target: Tensor | int | None, part: slice, count: int) -> Tensor | int | None:
    """The targets of a batch; one class for all stays one."""
    if target is None:
        return None
    try:
        classes = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"target must be a class, or one for each of {count} images, not {target!r}") from error
    if classes.shape not in ((), (count,)):
        raise ValueError(f"target must be a class, or one for each of {count} images, not of shape {classes.shape}")
    return classes if classes.ndim == 0 else classes[part]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _attention(model: ImageClassifier, images: Tensor, level: str | None) -> Tensor:
    found = []
    for _, seen in attend_batches(model, images, "fp32"):
        if not seen.maps:
            raise ValueError("this model has no attention maps; methods for every model: saliency, gradcam, occlusion")
        chosen = list(seen.maps)[-1] if level is None else level
        if chosen not in seen.maps:
            raise ValueError(f"unknown level {chosen!r}: {closest(chosen, seen.maps)}")
        found.append(resize(seen.maps[chosen].float().cpu(), images.shape[-2:]))
    return torch.cat(found) if found else torch.zeros(0, *images.shape[-2:])


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("this method needs captum: pip install 'ltpa[notebooks]'") from error
    return captum.attr


def _saliency(model: nn.Module, _: None) -> Any:
    method = _captum().Saliency(model)
    return lambda images, target: method.attribute(images, target=target).amax(1)


def _gradcam(model: nn.Module, layer: str | None) -> Any:
    method = _captum().LayerGradCam(model, _module(model, layer))

    def compute(images: Tensor, target: Tensor) -> Tensor:
        found = method.attribute(images, target=target, relu_attributions=True)
        if found.ndim != 4:
            raise ValueError(f"gradcam needs feature maps (N, C, h, w), and the output of {layer!r} has no positions")
        return found.squeeze(1)

    return compute


def _integrated_gradients(model: nn.Module, _: None) -> Any:
    method = _captum().IntegratedGradients(model)

    def compute(images: Tensor, target: Tensor) -> Tensor:
        gray = _mean_color(model, images)
        found = method.attribute(images, gray, target, n_steps=_STEPS, internal_batch_size=len(images))
        return found.sum(1).abs()

    return compute


def _occlusion(model: nn.Module, _: None) -> Any:
    method = _captum().Occlusion(model)

    def compute(images: Tensor, target: Tensor) -> Tensor:
        side = min(images.shape[-2:])
        window, stride = math.ceil(side / 4), math.ceil(side / 8)
        gray = _mean_color(model, images)
        with torch.no_grad():
            found = method.attribute(images, (3, window, window), (3, stride, stride), gray, target)
        return found[:, 0].relu()  # the window takes all channels away together

    return compute


def _cam(model: nn.Module, _: None) -> Any:
    if not isinstance(model, VGGGAP):
        raise ValueError("only vgg-gap has a class activation map of its own; gradcam makes one for every model")

    def compute(images: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            return model.attend(images, target=target).maps["cam"]

    return compute


_METHODS = {
    "saliency": _saliency,
    "gradcam": _gradcam,
    "integrated_gradients": _integrated_gradients,
    "occlusion": _occlusion,
    "cam": _cam,
}


def _module(model: nn.Module, name: str | None) -> nn.Module:
    """A layer of the trunk by its short name, or any module by its full name."""
    trunk = dict(getattr(model, "trunk", nn.Module()).named_children())
    if name is None and trunk:
        return list(trunk.values())[-1]
    if name in trunk:
        return trunk[name]
    known = {full: module for full, module in model.named_modules() if full}
    if name not in known:
        raise ValueError(f"unknown layer {name!r}: {closest(name, trunk or known)}")
    return known[name]


def _mean_color(model: nn.Module, images: Tensor) -> Tensor:
    """What stands for "nothing": the mean of the training images, which is zero after the normalization."""
    return torch.as_tensor(getattr(model, "mean", 0.5), device=images.device).expand_as(images).to(images.dtype)
