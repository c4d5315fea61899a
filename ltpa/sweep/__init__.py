"""A hundred variants of a notebook or of a training: planned, executed on one machine or many, read as a table."""

from .record import load_sweep

__all__ = ["load_sweep"]
