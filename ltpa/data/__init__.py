"""Images: data sets, folders of your own pictures, single photos, augmentation."""

from .dataset import Dataset, Split, hold_out, load_data

__all__ = ["Dataset", "Split", "hold_out", "load_data"]
