"""Attention CNNs you can look into: "Learn To Pay Attention" (Jetley et al., ICLR 2018) as a course and toolkit."""

from . import data, metrics, viz
from ._version import __version__
from .attribution import explain
from .config import QUICK, TrainConfig
from .data.dataset import Dataset, Split, hold_out, load_data
from .inference import attend, evaluate
from .maps import entropy
from .metrics.overlap import localization
from .models.classifier import AttentionOutput
from .models.networks import create_model, list_models
from .models.reference import load_reference
from .pretrained import list_pretrained, load_pretrained
from .training.run import Run, load_run, snapshot_indices
from .training.trainer import OutOfMemory, TrainingDiverged, data_for, fit
from .viz.explorer import explore
from .viz.show import show

__all__ = [
    "QUICK",
    "AttentionOutput",
    "Dataset",
    "OutOfMemory",
    "Run",
    "Split",
    "TrainConfig",
    "TrainingDiverged",
    "__version__",
    "attend",
    "create_model",
    "data",
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
    "localization",
    "metrics",
    "show",
    "snapshot_indices",
    "viz",
]
