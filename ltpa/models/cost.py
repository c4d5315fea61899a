"""What a model costs: parameters and multiply-accumulate operations."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .classifier import ImageClassifier, evaluation_mode


def parameters(model: nn.Module) -> int:
    """Return the number of learnable parameters."""
    return sum(p.numel() for p in model.parameters())


def gmac(model: ImageClassifier, image_size: int = 32) -> float:
    """Return the multiply-accumulate operations of one image's forward pass in 1e9, as torch counts them.

    Norms and the scores of `pc`, a thousandth of the total, are not counted.
    """
    image = torch.zeros(1, 3, image_size, image_size, dtype=model.mean.dtype, device=model.mean.device)
    with torch.no_grad(), evaluation_mode(model), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2e9
