"""Numbers that say what a map is worth."""

import math

import torch
from torch import Tensor


def entropy(maps: Tensor) -> Tensor:
    """Entropy of attention maps, as a fraction of that of the uniform map: 0 = one position, 1 = uniform.

    Args:
        maps: non-negative weights, (N, h, w); each map is first divided by its sum.

    Returns:
        (N,), `-sum_i p_i log p_i / log n`; NaN for a map without any weight.
    """
    p = maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32))
    p = p / p.sum(dim=1, keepdim=True)
    return torch.special.entr(p).sum(dim=1) / math.log(p.shape[1])


def relative(maps: Tensor) -> Tensor:
    """Weights relative to the uniform map: 1 everywhere is "no preference", 5 is five times the even share.

    Args:
        maps: non-negative weights, (N, h, w).

    Returns:
        (N, h, w) with mean 1 over the positions.
    """
    return maps / maps.mean(dim=(1, 2), keepdim=True)
