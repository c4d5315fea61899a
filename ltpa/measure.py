"""Numbers that say what a map is worth, gathered: of the map alone, against masks, and against the model."""

from .localisation import controls, localise, summary
from .maps import correlation, effective_positions, entropy, rank_agreement, relative

__all__ = [
    "controls",
    "correlation",
    "effective_positions",
    "entropy",
    "localise",
    "rank_agreement",
    "relative",
    "summary",
]
