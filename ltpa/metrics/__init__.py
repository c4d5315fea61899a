"""Measure maps alone, against masks, and against the model; compute confidence intervals and verdicts."""

from ..maps import correlation, effective_positions, entropy, rank_agreement, relative
from .faithfulness import Curves, deletion_insertion, permuted_attention
from .overlap import CONTROLS, MEASURES, controls, localization
from .sanity import layers_top_down, randomization
from .statistics import Effect, Interval, bootstrap_interval, effects_frame, t_interval, write_effects

__all__ = [
    "CONTROLS", "MEASURES", "Curves", "Effect", "Interval", "bootstrap_interval", "controls", "correlation",
    "deletion_insertion", "effective_positions", "effects_frame", "entropy", "layers_top_down", "localization",
    "permuted_attention", "randomization", "rank_agreement", "relative", "t_interval", "write_effects",
]  # fmt: skip
