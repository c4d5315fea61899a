"""Networks from elsewhere: any module from images to logits, and the wrappers that torch puts around networks."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .classifier import AttentionOutput, ImageClassifier

Normalization = tuple[Iterable[float], Iterable[float]]


class ForeignNetwork(ImageClassifier):
    """A module from images to logits in the place of one of our models; it has no maps.

    Args:
        network: any module from images (N, 3, H, W) to logits (N, classes), alone or as `logits` of its output.
        normalize: (mean, std) per channel, for a network that reads normalized images; None for one that reads [0, 1].
    """

    def __init__(self, network: nn.Module, normalize: Normalization | None = None) -> None:
        super().__init__()
        self.network = network
        self.normalizes = normalize is not None
        tensors = [t for t in chain(network.parameters(), network.buffers()) if t.is_floating_point()]
        if tensors:
            self.to(tensors[0].device)
            for name in ("mean", "std"):
                setattr(self, name, getattr(self, name).to(tensors[0].dtype))
        if normalize is not None:
            self.set_normalization(*mean_and_std(normalize))
        self.training = network.training
        self.name = type(network).__name__

    def compute(self, images: Tensor, *, query: Tensor | None = None) -> AttentionOutput:
        """Classify images; there are no maps."""
        self._refuse_query(query)
        images = self.normalize(images) if self.normalizes else images
        # Contiguous, because many networks flatten their features with `view`.
        return AttentionOutput(_logits(self.network(images.contiguous()), len(images)))


def unwrapped(model: Any) -> nn.Module:
    """Return the network inside a run, `torch.compile`, DataParallel, DDP or AveragedModel."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # what torch.compile returns
            model = model._orig_mod
        elif not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):  # a run
            model = model.model
        else:
            break
    if not isinstance(model, nn.Module) or isinstance(model, type):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model must be a run, a model of ltpa or another torch.nn.Module, not {kind}")
    return model


def as_classifier(model: Any, normalize: Normalization | None = None) -> ImageClassifier:
    """Return one of our models without its wrappers, or any other module as a `ForeignNetwork`."""
    network = unwrapped(model)
    if not isinstance(network, ImageClassifier):
        with torch.inference_mode(False):  # its buffers may be needed for gradients
            return ForeignNetwork(network, normalize)
    if normalize is not None:
        raise ValueError(
            "normalize is for networks that read normalized images; a model of ltpa normalizes inside, and "
            "model.set_normalization(mean, std) changes how"
        )
    return network


def uncompiled(network: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which modules compiled in place by `module.compile()` run uncompiled.

    Compiled code may not call hooks that are added later.
    """
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in network.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # the first imports for seconds


def mean_and_std(normalize: Any) -> Normalization:
    """Return the two parts of `normalize`, or raise a ValueError."""
    try:
        mean, std = normalize
    except (TypeError, ValueError) as error:
        raise ValueError(f"normalize must be (mean, std), three numbers each, not {normalize!r}") from error
    return mean, std


def _logits(output: Any, count: int) -> Tensor:
    """Return the logits of what a network returns: a tensor, or the `logits` of a dictionary or of an object."""
    kind = type(output).__name__
    if isinstance(output, Mapping):
        kind = f"a dictionary of {', '.join(map(str, output))}"
        output = output.get("logits")
    elif not isinstance(output, Tensor):
        kind = f"a {kind} of {len(output)}" if isinstance(output, tuple | list) else kind
        output = getattr(output, "logits", None)
    else:
        kind = f"a tensor {tuple(output.shape)}"
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count or not output.is_floating_point():
        raise TypeError(
            f"the network must return logits (N, classes), alone or named 'logits', but for N = {count} it returns "
            f"{kind}; wrap it in a module whose forward returns its logits"
        )
    return output
