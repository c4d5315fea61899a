"""Properties of maps alone: their spread, scale and size, and the order of their positions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def entropy(maps: Tensor) -> Tensor:
    """Return the normalized entropy of maps (N, h, w), as (N,): 0 = one position, 1 = uniform.

    It is `-sum_i p_i log p_i / log n`, where p is the map divided by its sum; NaN for a map without any weight.
    """
    p = _shares(maps)
    return torch.special.entr(p).sum(dim=1) / math.log(p.shape[1])


def effective_positions(maps: Tensor) -> Tensor:
    """Return the effective number of positions of maps (N, h, w), as (N,): 1 = one position, n = uniform.

    It is the exponential of the entropy, `exp(-sum_i p_i log p_i)`; NaN for a map without any weight.
    """
    return torch.special.entr(_shares(maps)).sum(dim=1).exp()


def _shares(maps: Tensor) -> Tensor:
    """(N, h, w) -> (N, n), each map divided by its sum."""
    p = maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32))
    return p / p.sum(dim=1, keepdim=True)


def relative(maps: Tensor) -> Tensor:
    """Return weights (N, h, w) in multiples of the uniform weight: 1 = no preference."""
    return maps / maps.mean(dim=(1, 2), keepdim=True)


def border(maps: Tensor) -> Tensor:
    """Return the mean weight in the outermost ring of maps (N, h, w), as (N,), in multiples of the even share."""
    shares = relative(maps.to(torch.promote_types(maps.dtype, torch.float32)))
    ring = torch.ones(maps.shape[1:], dtype=torch.bool, device=maps.device)
    ring[1:-1, 1:-1] = False
    return shares[:, ring].mean(dim=1)


def check_maps(maps: Tensor, name: str = "maps") -> Tensor:
    """Return maps (N, h, w) in at least float32, or raise an error if they are not valid maps."""
    if not isinstance(maps, Tensor):
        raise TypeError(f"{name} must be a tensor (N, h, w), not {type(maps).__name__}")
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"{name} must have the shape (N, h, w), not {tuple(maps.shape)}; one map alone: maps[None]")
    maps = maps.detach().to(torch.promote_types(maps.dtype, torch.float32))
    if not maps.isfinite().all():
        broken = (~maps.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"{name} have NaN or infinite values in {len(broken)} of {len(maps)} maps, first in {broken[0]}"
        )
    if (maps < 0).any():
        raise ValueError(f"{name} must be weights from 0 up, but the lowest is {maps.min():.3g}; are they scores?")
    return maps


def named_maps(maps: object) -> dict[str, Any]:
    """Return maps by name, each a tensor (N, h, w) or a list of tensors (h, w); refuse anything else."""
    if not isinstance(maps, Mapping):
        hint = "; of one tensor: maps={'map': weights}" if isinstance(maps, Tensor | list | tuple) else ""
        raise TypeError(f"maps must be a dictionary, name -> weights (N, h, w), not {type(maps).__name__}{hint}")
    if not maps:
        raise ValueError("maps is empty: give at least one name -> weights (N, h, w), or leave maps out")
    by_name: dict[str, Any] = {}
    for name, values in maps.items():
        try:
            listed = isinstance(values, list | tuple)
            by_name[str(name)] = [torch.as_tensor(one) for one in values] if listed else torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"maps of {name} must be a tensor or an array of weights (N, h, w): {error}") from error
    return by_name


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (N, h, w) resized bilinearly to (H, W), with antialiasing if that is smaller.

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
    """Return Spearman's rank correlation of maps (N, h, w) and (N, h', w'), as (N,): 1 = positions in the same order.

    The smaller map is scaled up, and ties get the mean of their ranks. NaN if a map is constant.
    """
    first, second = _together(first, second)
    return rank_correlation(first.flatten(1), second.flatten(1))


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of rows (N, K) with rows (N, K), as (N,); NaN if a row is constant."""
    return _correlation(_ranks(first), _ranks(second))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of maps (N, h, w) and (N, h', w'), as (N,); NaN if a map is constant."""
    first, second = _together(first, second)
    return _correlation(first.flatten(1).double(), second.flatten(1).double())


def _together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first, second = check_maps(first, "the first maps"), check_maps(second, "the second maps")
    if len(first) != len(second):
        raise ValueError(f"both must have the same number of maps, not {len(first)} and {len(second)}")
    size = max(first.shape[1], second.shape[1]), max(first.shape[2], second.shape[2])
    return resize(first, size), resize(second, size)


def _ranks(values: Tensor) -> Tensor:
    """Return the ranks of values (N, n) from 0, as float64; ties share the mean of their ranks."""
    ordered, order = values.sort(dim=1)
    position = torch.arange(values.shape[1], device=values.device).expand_as(order)
    differs = ordered[:, 1:] != ordered[:, :-1]
    edge = torch.ones_like(differs[:, :1])
    first = position.where(torch.cat([edge, differs], 1), 0).cummax(1).values  # of the equal ones
    last = position.where(torch.cat([differs, edge], 1), values.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(values, dtype=torch.float64).scatter_(1, order, (first + last).double() / 2)


def order_ranks(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return the rank of each of the weights (N, n), 0 for the largest of its row, with ties in random order."""
    shuffled = torch.rand(weights.shape, generator=generator).argsort(dim=1)
    order = weights.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, order).argsort(dim=1)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Return Pearson's correlation of float64 rows (N, n), as float32; NaN if a row is constant."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    r = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
    return r.clamp(-1, 1).float()
