"""The attention of "Learn To Pay Attention" (Jetley et al., ICLR 2018, section 3) in the paper's symbols and order.

A level has n local features `l_i` (one vector per spatial position) and the network one global feature `g`:

1. compatibility scores   c_i = <l_i, g>                        `dp`,  dot product
                          c_i = <u, l_i + g>                    `pc`,  parametrized compatibility, `u` learned
                          c_i = <u, tanh(W_l l_i + W_g g)>      `add`, additive compatibility (not in the paper)
2. attention weights      a_i = softmax_i(c_i)                  or a gate per position, a_i = sigmoid(c_i)
3. descriptor             g_s = sum_i a_i l_i                   with gates the mean, g_s = (1/n) sum_i a_i l_i

Kinds that are not in the paper: a scaled dot product, and three controls, whose maps cannot follow the picture:

`sdp`       c_i = <l_i, g> / sqrt(C), the dot product as in Vaswani et al. (2017)
`uniform`   c_i = 0: every position has the same weight
`static`    c_i = 8 b_i, learned for the position i: one map for all pictures (8x8 scores, interpolated to other sizes;
            without the factor they hardly learn, because each position has a small part of the gradient)
`permuted`  `pc`, whose weights a_i change places: at random in training, always in the same way in evaluation

A level whose width differs from that of `g` is first mapped to it by a linear map W without bias (a 1x1 convolution).
W is never applied to every position: <g, W l> = <W^T g, l> and sum_i a_i W l_i = W sum_i a_i l_i are exact and cheaper.
(The scores of `add` do without W, because W_l takes its place.)

In `pc` the score is <u, l_i> + <u, g>. The second term is the same at every position, and softmax does not change when
a constant is added to all its inputs: with softmax, the map of `pc` does not depend on `g` at all.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

COMPATIBILITIES = ("dp", "pc", "add")
EXTRA_COMPATIBILITIES = ("sdp", "uniform", "static", "permuted")
NORMALIZERS = ("softmax", "sigmoid")
CACHED = 2**20  # features at a time in `Attention._by_parts`: 4 MiB as float32, which stay in a cache
LARGE = 2**22  # features from which on it is faster: 16 MiB as float32
STATIC_SIDE = 8  # of the learned scores of `static`, as of the map at conv13


class Attention(nn.Module):
    """Read one level of local features through an attention map.

    Scores and weights are computed in at least float32, except that W_l of `add` is applied in the features' precision
    (and linear maps in that of their weights, if a model was cast to half precision).

    Args:
        local_channels: C_l, the width of the local features.
        global_channels: C, the width of the global feature and of the descriptor.
        compatibility: "dp", "pc" or "add", or one of `EXTRA_COMPATIBILITIES`.
        normalizer: "softmax" (weights sum to 1) or "sigmoid" (a gate in (0, 1) per position).
    """

    def __init__(
        self, local_channels: int, global_channels: int, compatibility: str = "pc", normalizer: str = "softmax"
    ) -> None:
        super().__init__()
        if compatibility not in (known := (*COMPATIBILITIES, *EXTRA_COMPATIBILITIES)):
            raise ValueError(f"compatibility {compatibility!r}: choose one of {', '.join(known)}")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer {normalizer!r}: choose one of {', '.join(NORMALIZERS)}")
        self.compatibility, self.normalizer = compatibility, normalizer
        self.W = nn.Linear(local_channels, global_channels, bias=False) if local_channels != global_channels else None
        if compatibility == "add":
            self.W_l = nn.Linear(local_channels, global_channels, bias=False)
            self.W_g = nn.Linear(global_channels, global_channels, bias=False)
        if compatibility == "static":
            self.b = nn.Parameter(torch.zeros(STATIC_SIDE**2))
        if compatibility in ("pc", "add", "permuted"):
            # With u = 0 every score and the gradient of all layers before it would be zero.
            self.u = nn.Parameter(torch.randn(global_channels) / global_channels**0.5)

    @property
    def uses_global_feature(self) -> bool:
        """False where the map cannot depend on `g`: softmax cancels the term <u, g> that `pc` adds everywhere."""
        if self.compatibility in ("pc", "permuted"):
            return self.normalizer != "softmax"
        return self.compatibility not in ("uniform", "static")

    def forward(self, local: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the three equations: return descriptor (N, C), weights (N, h, w) and scores (N, h, w).

        Args:
            local: local features `l`, (N, C_l, h, w).
            g: global features, (N, C), or (1, C) for all images. May be None where `uses_global_feature` is False; the
                scores then lack the constant <u, g>.
        """
        if g is None and self.uses_global_feature:
            raise ValueError(f"{self.compatibility} with {self.normalizer} needs the global feature, but g is None")
        size = local.shape[-2:]
        features = local.flatten(2).transpose(1, 2)  # (N, n, C_l)
        exact = torch.promote_types(local.dtype, torch.float32)
        with torch.autocast(local.device.type, enabled=False):
            g = None if g is None else g.to(exact)
            if _is_large_copy(features):
                descriptor, weights, scores = self._by_parts(features, g, size)
            else:
                descriptor, weights, scores = self._equations(features, g, size)
        return descriptor, weights.unflatten(1, size), scores.unflatten(1, size)

    def _equations(self, features: Tensor, g: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the three equations to features (N, n, C_l) of maps of this size."""
        positions = features.to(torch.promote_types(features.dtype, torch.float32))
        # 1. compatibility scores c, (N, n)
        scores = self._scores(features, positions, g, size)
        # 2. attention weights a, (N, n)
        weights = scores.softmax(dim=1) if self.normalizer == "softmax" else scores.sigmoid()
        if self.compatibility == "permuted":
            weights = weights.gather(1, self._places(weights))
        # 3. descriptor g_s, (N, C_l), mapped to (N, C) by W
        descriptor = (weights.unsqueeze(1) @ positions).squeeze(1)
        if self.normalizer == "sigmoid":
            descriptor = descriptor / weights.shape[1]
        if self.W is not None:
            descriptor = self.W(descriptor.to(self.W.weight.dtype))
        return descriptor, weights, scores

    def _by_parts(self, features: Tensor, g: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the equations to a few images at a time, whose float32 features stay in the cache of a CPU.

        The backward pass computes them again (`checkpoint`), which is cheaper than keeping them in memory.
        """
        images = max(1, CACHED // features[0].numel())
        parts = features.split(images)
        queries = [g] * len(parts) if g is None or len(g) == 1 else g.split(images)
        options: dict[str, Any] = {"use_reentrant": False, "determinism_check": "none"}
        options["preserve_rng_state"] = self.compatibility == "permuted"
        outputs = [checkpoint(self._equations, *part, size, **options) for part in zip(parts, queries, strict=True)]
        descriptor, weights, scores = (torch.cat(values) for values in zip(*outputs, strict=True))
        return descriptor, weights, scores

    def _scores(self, features: Tensor, positions: Tensor, g: Tensor | None, size: torch.Size) -> Tensor:
        """Return the compatibility scores (N, n)."""
        if self.compatibility == "uniform":
            return positions.new_zeros(positions.shape[:2])
        if self.compatibility == "static":
            grid = STATIC_SIDE * self.b.to(positions.dtype).view(1, 1, STATIC_SIDE, STATIC_SIDE)
            scores = nn.functional.interpolate(grid, size=size, mode="bilinear")
            return scores.flatten(1).expand(positions.shape[0], -1)
        if self.compatibility in ("pc", "permuted"):
            return self._parametrized(positions, g)
        assert g is not None
        if self.compatibility == "add":
            return self._additive(features, g)
        scores = self._dot_product(positions, g)
        return scores / g.shape[1] ** 0.5 if self.compatibility == "sdp" else scores

    def _places(self, weights: Tensor) -> Tensor:
        """Return where each weight of a permuted map (N, n) comes from; steps of a prime reach all of n positions."""
        if self.training:
            return torch.rand_like(weights).argsort(1)
        n = weights.shape[1]
        step = 509 if n % 509 else 521
        return (torch.arange(n, device=weights.device) * step % n).expand_as(weights)

    def _dot_product(self, positions: Tensor, g: Tensor) -> Tensor:
        """<W l_i, g> as <l_i, W^T g>."""
        v = g if self.W is None else g @ self.W.weight.to(g.dtype)  # (N, C_l)
        return (v.unsqueeze(1) @ positions.transpose(1, 2)).squeeze(1)

    def _parametrized(self, positions: Tensor, g: Tensor | None) -> Tensor:
        """<u, W l_i + g> as <W^T u, l_i> + <u, g>."""
        v = self.u if self.W is None else self.u @ self.W.weight  # (C_l,)
        scores = positions @ v.to(positions.dtype)
        return scores if g is None else scores + (g @ self.u.to(g.dtype)).unsqueeze(1)

    def _additive(self, features: Tensor, g: Tensor) -> Tensor:
        """<u, tanh(W_l l_i + W_g g)>, with W_l in the features' precision."""
        mapped = nn.functional.linear(features, self.W_l.weight.to(features.dtype)).to(g.dtype)
        return (mapped + self.W_g(g.to(self.W_g.weight.dtype)).unsqueeze(1)).tanh() @ self.u.to(g.dtype)


def _is_large_copy(features: Tensor) -> bool:
    """Return whether features in half precision need so large a float32 copy that a CPU should not make it at once."""
    half = features.dtype in (torch.bfloat16, torch.float16)
    return half and features.numel() >= LARGE and features.device.type == "cpu" and not torch.compiler.is_compiling()
