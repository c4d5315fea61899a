"""Attention CNNs you can look into: "Learn To Pay Attention" (Jetley et al., ICLR 2018) as a course and toolkit."""

from . import measure
from ._version import __version__
from .config import QUICK, TrainConfig
from .data import Data, Split, hold_out, load_data
from .explain import explain
from .explore import explore
from .inference import attend, evaluate
from .localisation import localise
from .maps import entropy
from .models import Attended, create_model, list_models
from .pretrained import list_pretrained, load_pretrained
from .reference_weights import load_reference
from .runs import Run, load_run, snapshot_indices
from .showing import show
from .train import OutOfMemory, TrainingDiverged, data_for, fit

__all__ = [
    "QUICK",
    "Attended",
    "Data",
    "OutOfMemory",
    "Run",
    "Split",
    "TrainConfig",
    "TrainingDiverged",
    "__version__",
    "attend",
    "create_model",
    "data_for",
    "entropy",
    "evaluate",
    "explain",
    "explore",
    "fit",
    "hold_out",
    "list_models",
    "list_pretrained",
    "load_data",
    "load_pretrained",
    "load_reference",
    "load_run",
    "localise",
    "measure",
    "show",
    "snapshot_indices",
]
