"""Numbers that say what a map is worth, gathered: of the map alone, against masks, and against the model.

Their definitions stand in the modules that they come from.
"""

from ..maps import correlation, effective_positions, entropy, rank_agreement, relative
from .faithfulness import Curves, deletion_insertion, layers_top_down, permuted_attention, randomization
from .overlap import CONTROLS, MEASURES, controls, localization, summary

__all__ = [
    "CONTROLS",
    "MEASURES",
    "Curves",
    "controls",
    "correlation",
    "deletion_insertion",
    "effective_positions",
    "entropy",
    "layers_top_down",
    "localization",
    "permuted_attention",
    "randomization",
    "rank_agreement",
    "relative",
    "summary",
]
