"""Measure maps alone, against masks, and against the model; compute confidence intervals and verdicts."""

from ..maps import correlation, effective_positions, entropy, rank_agreement, relative
from .agreement import measure_agreement, ranks
from .contrast import class_contrast
from .crossed import Difference, crossed_difference, holm, two_level_interval
from .deletion import Deletion, delete_cells, each_cell_hidden, train_with_hidden_cells
from .faithfulness import Curves, deletion_insertion, permuted_attention
from .interventions import (
    CHANCE_MARGIN,
    Interventions,
    accuracy_without_object,
    changed_scenes,
    effect_prediction,
    intervene,
)
from .overlap import CONTROLS, MEASURES, PICTURE_CONTROLS, controls, localization, picture_controls
from .sanity import entropy_rise, histogram_entropy, layers_top_down, randomization
from .statistics import Effect, Interval, bootstrap_interval, effects_frame, t_interval, write_effects

__all__ = [
    "CHANCE_MARGIN", "CONTROLS", "MEASURES", "PICTURE_CONTROLS", "Curves", "Deletion", "Difference", "Effect",
    "Interval", "Interventions", "accuracy_without_object", "bootstrap_interval", "changed_scenes", "class_contrast",
    "controls", "correlation", "crossed_difference", "delete_cells", "deletion_insertion", "each_cell_hidden",
    "effect_prediction", "effective_positions", "effects_frame", "entropy", "entropy_rise", "histogram_entropy", "holm",
    "intervene", "layers_top_down", "localization", "measure_agreement", "permuted_attention",
    "picture_controls", "randomization", "rank_agreement", "ranks", "relative", "t_interval",
    "train_with_hidden_cells", "two_level_interval", "write_effects",
]  # fmt: skip
