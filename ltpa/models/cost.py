"""What a model costs: parameters and multiply-accumulate operations."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .networks import ImageClassifier


def parameters(model: nn.Module) -> int:
    """Number of learnable parameters."""
    return sum(p.numel() for p in model.parameters())


def gmac(model: ImageClassifier, image_size: int = 32) -> float:
    """Multiply-accumulate operations of one image's forward pass in 1e9, counted by `torch.utils.flop_counter`.

    Counted are convolutions and matrix products, as one operation for a product and a sum; what the counter leaves out
    (norms, and a matrix times a vector, as in the scores of `pc`) is a thousandth of it.
    """
    was_training = model.training
    image = torch.zeros(1, 3, image_size, image_size, dtype=model.mean.dtype, device=model.mean.device)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(image)
    finally:
        model.train(was_training)
    return counter.get_total_flops() / 2e9
