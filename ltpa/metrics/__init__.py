"""Measure maps alone, against masks, and against the model; compute confidence intervals and verdicts."""

from ..maps import correlation, effective_positions, entropy, rank_agreement, relative
from .faithfulness import Curves, deletion_insertion, permuted_attention
from .interventions import (
    CHANCE_MARGIN,
    Interventions,
    accuracy_without_object,
    changed_scenes,
    effect_prediction,
    interventions,
)
from .overlap import CONTROLS, MEASURES, controls, localization
from .sanity import layers_top_down, randomization
from .statistics import Effect, Interval, bootstrap_interval, effects_frame, t_interval, write_effects

__all__ = [
    "CHANCE_MARGIN", "CONTROLS", "MEASURES", "Curves", "Effect", "Interval", "Interventions", "accuracy_without_object",
    "bootstrap_interval", "changed_scenes", "controls", "correlation", "deletion_insertion", "effect_prediction",
    "effective_positions", "effects_frame", "entropy", "interventions", "layers_top_down", "localization",
    "permuted_attention", "randomization", "rank_agreement", "relative", "t_interval", "write_effects",
]  # fmt: skip
