"""The attention of "Learn To Pay Attention" (Jetley et al., ICLR 2018, section 3) in the paper's symbols and order.

A level has n local features `l_i` (one vector per spatial position) and the network one global feature `g`:

1. compatibility scores   c_i = <l_i, g>                        `dp`,  dot product
                          c_i = <u, l_i + g>                    `pc`,  parametrised compatibility, `u` learned
                          c_i = <u, tanh(W_l l_i + W_g g)>      `add`, additive compatibility (not in the paper)
2. attention weights      a_i = softmax_i(c_i)                  or a gate per position, a_i = sigmoid(c_i)
3. descriptor             g_s = sum_i a_i l_i                   with gates the mean, g_s = (1/n) sum_i a_i l_i

A level whose width differs from that of `g` is first mapped to it by a linear map W without bias (a 1x1 convolution).
W is never applied to the map itself: <g, W l> = <W^T g, l> and sum_i a_i W l_i = W sum_i a_i l_i are exact and cheap.

In `pc` the score is <u, l_i> + <u, g>. The second term is the same at every position, and softmax does not change when
a constant is added to all its inputs: with softmax, the map of `pc` does not depend on `g` at all.
"""

import torch
from torch import Tensor, nn

COMPATIBILITIES = ("dp", "pc", "add")
NORMALIZERS = ("softmax", "sigmoid")


class Attention(nn.Module):
    """Reads one level of local features through an attention map.

    Scores and weights are computed in at least float32, whatever the precision of the features.

    Args:
        local_channels: C_l, the width of the local features.
        global_channels: C, the width of the global feature and of the descriptor.
        compatibility: "dp", "pc" or "add" (see the module's text).
        normalizer: "softmax" (weights sum to 1) or "sigmoid" (a gate in (0, 1) per position).

    Raises:
        ValueError: for an unknown compatibility or normalizer.
    """

    def __init__(
        self, local_channels: int, global_channels: int, compatibility: str = "pc", normalizer: str = "softmax"
    ) -> None:
        super().__init__()
        if compatibility not in COMPATIBILITIES:
            raise ValueError(f"compatibility {compatibility!r}: choose one of {', '.join(COMPATIBILITIES)}")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer {normalizer!r}: choose one of {', '.join(NORMALIZERS)}")
        self.compatibility, self.normalizer = compatibility, normalizer
        self.W = nn.Linear(local_channels, global_channels, bias=False) if local_channels != global_channels else None
        if compatibility == "add":
            self.W_l = nn.Linear(local_channels, global_channels, bias=False)
            self.W_g = nn.Linear(global_channels, global_channels)
        if compatibility != "dp":
            # Not zero: the gradient of a layer before a zero u would be zero, and so would every score.
            self.u = nn.Parameter(torch.randn(global_channels) / global_channels**0.5)

    @property
    def uses_global_feature(self) -> bool:
        """False where the map cannot depend on `g`: softmax cancels the term <u, g> that `pc` adds everywhere."""
        return not (self.compatibility == "pc" and self.normalizer == "softmax")

    def forward(self, local: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Applies the three equations.

        Args:
            local: local features `l`, (N, C_l, h, w).
            g: global features, (N, C); may be None where `uses_global_feature` is False, and the scores then lack
                the constant <u, g>.

        Returns:
            descriptor (N, C), weights (N, h, w) and scores (N, h, w).
        """
        with torch.autocast(local.device.type, enabled=False):
            exact = torch.promote_types(local.dtype, torch.float32)
            positions = local.flatten(2).transpose(1, 2)  # (N, n, C_l), a view when `local` is channels_last
            if self.compatibility == "add":
                assert g is not None
                hidden = (self._features(self.W_l, positions) + self.W_g(g.to(exact)).unsqueeze(1)).tanh()
                scores = hidden @ self.u
                positions = positions.to(exact)
            else:
                positions = positions.to(exact)
                scores = self._linear_scores(positions, g)  # (N, n)
            if self.normalizer == "softmax":
                weights = scores.softmax(dim=1)
                descriptor = (weights.unsqueeze(1) @ positions).squeeze(1)  # (N, C_l)
            else:
                weights = scores.sigmoid()
                descriptor = (weights.unsqueeze(1) @ positions).squeeze(1) / weights.shape[1]
            if self.W is not None:
                descriptor = self.W(descriptor)  # (N, C)
        size = local.shape[-2:]
        return descriptor, weights.unflatten(1, size), scores.unflatten(1, size)

    def _linear_scores(self, positions: Tensor, g: Tensor | None) -> Tensor:
        """`dp` and `pc` as <v, l_i> + constant, with v = W^T g or W^T u: (N, n)."""
        g = None if g is None else g.to(positions.dtype)
        v = g if self.compatibility == "dp" else self.u  # (N, C) or (C,)
        assert v is not None, "dp needs the global feature"
        if self.W is not None:
            v = v @ self.W.weight
        if self.compatibility == "dp":
            return (positions @ v.unsqueeze(2)).squeeze(2)
        scores = positions @ v
        return scores if g is None else scores + (g @ self.u).unsqueeze(1)

    @staticmethod
    def _features(linear: nn.Linear, positions: Tensor) -> Tensor:
        """W_l l_i in the precision of the features (it is a 1x1 convolution like those before it), then float32."""
        mapped = nn.functional.linear(positions, linear.weight.to(positions.dtype))
        return mapped.to(torch.promote_types(mapped.dtype, torch.float32))
