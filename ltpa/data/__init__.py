"""Images: data sets, folders of your own pictures, single photos, augmentation."""

from .dataset import Dataset, hold_out, load_data
from .split import Split

__all__ = ["Dataset", "Split", "hold_out", "load_data"]
