"""What the machine can do: the convolutions of a network and nothing else, and products of large matrices."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ltpa.models.classifier import ImageClassifier, evaluation_mode


@dataclass(frozen=True)
class Convolution:
    """A convolution as a network calls it.

    Attributes:
        inputs: shape (C, h, w) of what it reads.
        weight: shape (C_out, C / groups, kernel, kernel).
        stride, padding, dilation: (rows, columns).
        groups: number of groups.
        first: it reads the images, so that its input needs no gradient.
    """

    inputs: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    first: bool


def convolutions(model: ImageClassifier, image_size: int) -> list[Convolution]:
    """The convolutions that a forward pass computes, in their order; the model stays as it was."""
    found: list[Convolution] = []

    def note(layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
        shape, weight = tuple(inputs[0].shape[1:]), tuple(layer.weight.shape)
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        found.append(Convolution(shape, weight, *settings, first=not found))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(torch.zeros(1, 3, image_size, image_size, dtype=model.mean.dtype, device=model.mean.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def bare_convolutions(
    layers: list[Convolution], batch_size: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], Iterator[None]]:
    """Forward and backward of convolutions on random numbers, in channels_last; every `next` is one step of all.

    There are no biases, norms, activations or updates, and inputs and weights have the precision from the start.
    """

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype=dtype, memory_format=torch.channels_last)

    parts = []
    for layer in layers:
        x = random(batch_size, *layer.inputs).requires_grad_(not layer.first)
        w = random(*layer.weight).requires_grad_()
        with torch.no_grad():
            out = nn.functional.conv2d(x, w, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        parts.append((layer, x, w, random(*out.shape)))

    def steps() -> Iterator[None]:
        while True:
            for layer, x, w, gradient in parts:
                y = nn.functional.conv2d(x, w, None, layer.stride, layer.padding, layer.dilation, layer.groups)
                torch.autograd.grad(y, [w] if layer.first else [x, w], gradient)
            yield

    return steps


def matrix_product(side: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Iterator[None]]:
    """Products of two square matrices: 2 * side ** 3 operations every `next`."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def steps() -> Iterator[None]:
        while True:
            torch.matmul(a, b)
            yield

    return steps
