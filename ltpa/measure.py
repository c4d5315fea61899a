"""Numbers that say what a map is worth, gathered: of the map alone, against masks, and against the model.

Their definitions stand in the modules that they come from.
"""

from .faithfulness import Curves, deletion_insertion, layers_top_down, permuted_attention, randomisation
from .localisation import CONTROLS, MEASURES, controls, localise, summary
from .maps import correlation, effective_positions, entropy, rank_agreement, relative

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
    "localise",
    "permuted_attention",
    "randomisation",
    "rank_agreement",
    "relative",
    "summary",
]
