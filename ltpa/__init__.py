"""Attention CNNs you can look into: "Learn To Pay Attention" (Jetley et al., ICLR 2018) as a course and toolkit."""

from .cores import set_up_threads

set_up_threads()  # before torch is loaded

from . import data, metrics, viz
from ._version import __version__
from .attribution import explain
from .config import QUICK, TrainConfig
from .data.dataset import Dataset, Split, hold_out, load_data
from .inference import attend, evaluate
from .models.networks import create_model, list_models
from .models.reference import load_reference
from .pretrained import list_pretrained, load_pretrained
from .sweep import load_sweep
from .training.run import Run, load_run, snapshot_indices
from .training.trainer import data_for, fit
from .viz.explorer import explore
from .viz.show import show

__all__ = [
    "QUICK",
    "Dataset",
    "Run",
    "Split",
    "TrainConfig",
    "__version__",
    "attend",
    "create_model",
    "data",
    "data_for",
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
    "load_sweep",
    "metrics",
    "show",
    "snapshot_indices",
    "viz",
]
