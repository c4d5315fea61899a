"""Images: data sets, folders of your own pictures, single photos, augmentation."""

from .dataset import Dataset, hold_out, load_data
from .masks import MaskedImages, load_masked_images
from .split import Split

__all__ = ["Dataset", "MaskedImages", "Split", "hold_out", "load_data", "load_masked_images"]
