"""What maps say alone: their spread, their scale, their size, the order of their positions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def entropy(maps: Tensor) -> Tensor:
    """Return the entropy of maps as a fraction of that of the uniform map: 0 = one position, 1 = uniform.

    Args:
        maps: non-negative weights, (N, h, w); each map is first divided by its sum.

    Returns:
        (N,), `-sum_i p_i log p_i / log n`; NaN for a map without any weight.
    """
    p = _shares(maps)
    return torch.special.entr(p).sum(dim=1) / math.log(p.shape[1])


def effective_positions(maps: Tensor) -> Tensor:
    """Return over how many positions the weight of maps (N, h, w) is spread, (N,): 1 = one position, n = uniform.

    It is the exponential of the entropy, `exp(-sum_i p_i log p_i)`; NaN for a map without any weight.
    """
    return torch.special.entr(_shares(maps)).sum(dim=1).exp()


def _shares(maps: Tensor) -> Tensor:
    """(N, h, w) -> (N, n), each map divided by its sum."""
    p = maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32))
    return p / p.sum(dim=1, keepdim=True)


def relative(maps: Tensor) -> Tensor:
    """Return weights (N, h, w) in multiples of the uniform map: 1 is no preference, 5 is five times as much."""
    return maps / maps.mean(dim=(1, 2), keepdim=True)


def check_maps(maps: Tensor, name: str = "maps") -> Tensor:
    """Return maps (N, h, w) in at least float32; raise a TypeError or ValueError where they are no maps."""
    if not isinstance(maps, Tensor):
        raise TypeError(f"{name} must be a tensor (N, h, w), not {type(maps).__name__}")
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"{name} must have the shape (N, h, w), not {tuple(maps.shape)}; one map alone: maps[None]")
    maps = maps.detach().to(torch.promote_types(maps.dtype, torch.float32))
    if not maps.isfinite().all():
        broken = (~maps.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{name} hold NaN or infinite values, in {len(broken)} of {len(maps)}, first in {broken[0]}")
    if (maps < 0).any():
        raise ValueError(f"{name} must be weights from 0 up, but the lowest is {maps.min():.3g}; are they scores?")
    return maps


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (N, h, w) at another size (H, W), bilinearly, or averaged where that is smaller.

    Computed in float64 and rounded, so that equal neighbors stay exactly equal.
    """
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    smaller = maps.shape[1] > size[0] or maps.shape[2] > size[1]
    scaled = torch.nn.functional.interpolate(
        maps.unsqueeze(1).double(), size=tuple(size), mode="bilinear", align_corners=False, antialias=smaller
    )
    return scaled.squeeze(1).to(maps.dtype)


def rank_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Return whether two maps of an image put its positions in the same order: Spearman's rank correlation.

    The smaller map is scaled up to the size of the larger; positions of equal weight get the mean of their ranks.

    Args:
        first, second: non-negative weights, (N, h, w) and (N, h', w').

    Returns:
        (N,) in [-1, 1], 1 = the same order; NaN where a map is constant and so has no order.
    """
    first, second = _together(first, second)
    return _correlation(_ranks(first.flatten(1)), _ranks(second.flatten(1)))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of two maps of an image; sizes and NaN as in `rank_agreement`."""
    first, second = _together(first, second)
    return _correlation(first.flatten(1).double(), second.flatten(1).double())


def _together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first, second = check_maps(first, "the first maps"), check_maps(second, "the second maps")
    if len(first) != len(second):
        raise ValueError(f"there must be as many first as second maps, not {len(first)} and {len(second)}")
    size = max(first.shape[1], second.shape[1]), max(first.shape[2], second.shape[2])
    return resize(first, size), resize(second, size)


def _ranks(values: Tensor) -> Tensor:
    """(N, n) -> ranks from 0, float64; equal values share the mean of their ranks."""
    ordered, order = values.sort(dim=1)
    position = torch.arange(values.shape[1], device=values.device).expand_as(order)
    differs = ordered[:, 1:] != ordered[:, :-1]
    edge = torch.ones_like(differs[:, :1])
    first = position.where(torch.cat([edge, differs], 1), 0).cummax(1).values  # of the equal ones
    last = position.where(torch.cat([differs, edge], 1), values.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(values, dtype=torch.float64).scatter_(1, order, (first + last).double() / 2)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of rows (N, n), float64, as float32; NaN where one is constant."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    r = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
    return r.clamp(-1, 1).float()
