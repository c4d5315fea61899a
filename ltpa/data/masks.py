"""Pictures with masks of your own: a folder `images/` and a folder `masks/` with files of the same names."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import counted
from .images import MAX_SIDE, MIN_SIDE, crop_square, decode, to_rgb
from .tree import Folder

_NAMED = 5  # files that an error names
_OTHER_SHAPE = 0.02  # relative difference of two aspect ratios from which on a mask belongs to another picture


class MaskedImages(NamedTuple):
    """Pictures with the masks of their objects, in the order of their names."""

    images: Tensor  # uint8 (N, 3, size, size)
    masks: Tensor  # bool (N, size, size), True on the object
    names: list[str]  # of the files, without their endings


def load_masked_images(folder: str | Path, size: int = 64) -> MaskedImages:
    """Load the pictures in `folder`/images with the masks in `folder`/masks, for `ltpa.metrics`.

    Both have the same names, endings aside: `images/cat1.jpg` and `masks/cat1.png`, also in subfolders. Pictures are
    scaled and cropped to their middle square as in `load_data`, and masks with them. A mask is the object where it is
    brighter than half of its brightest value; a mask with a palette, where the index is not 0.

    A ValueError names pictures without masks, masks without pictures, and files that cannot be read.
    """
    if not MIN_SIDE <= size <= MAX_SIDE:
        raise ValueError(f"size must be from {MIN_SIDE} to {MAX_SIDE} pixels, not {size}")
    folder = Path(folder).expanduser()
    pictures, masks = (_files(folder / part) for part in ("images", "masks"))
    lonely = [f"images/{name}" for name in pictures if name not in masks]
    lonely += [f"masks/{name}" for name in masks if name not in pictures]
    if lonely:
        rest = f" and {len(lonely) - _NAMED} more" if len(lonely) > _NAMED else ""
        raise ValueError(
            f"each picture needs a mask of the same name; without a counterpart: {', '.join(lonely[:_NAMED])}{rest}"
        )
    if not pictures:
        raise ValueError(f"{folder / 'images'} holds no pictures")
    pairs = [_read(pictures[name], masks[name], size) for name in pictures]
    images, objects = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    if empty := int((~objects.flatten(1).any(1)).sum()):
        warnings.warn(
            f"{counted(empty, 'mask')} of {len(objects)} without an object in the middle square: measures give NaN",
            stacklevel=2,
        )
    return MaskedImages(images.permute(0, 3, 1, 2).contiguous(), objects, list(pictures))


def _files(folder: Path) -> dict[str, Path]:
    """Return the pictures in a folder and its subfolders, sorted by their names without endings."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; put pictures into images/ and their masks into masks/")
    files: dict[str, Path] = {}
    for path in Folder(folder).all_images():
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{files[name]} and {path} have the same name; rename one of them")
        files[name] = path
    return files


def _read(picture: Path, mask: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture, uint8 (size, size, 3), and its mask, bool (size, size)."""
    opened = []
    for path in (picture, mask):
        try:
            opened.append(decode(path.read_bytes(), size))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    image, drawn = opened
    if abs(image.width * drawn.height / (image.height * drawn.width) - 1) > _OTHER_SHAPE:
        raise ValueError(
            f"{mask} has {drawn.width} x {drawn.height} pixels, and its picture {image.width} x {image.height}"
        )
    values = np.asarray(drawn if drawn.mode == "P" else drawn.convert("F"))
    on_object = values > (0 if drawn.mode == "P" else values.max() / 2)
    square = crop_square(Image.fromarray((255 * on_object).astype(np.uint8)), size)
    return np.asarray(crop_square(to_rgb(image), size)), np.asarray(square) > 127
