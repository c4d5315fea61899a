"""Data sets: `load_data(name)` for the drawn shapes, CIFAR, SVHN and folders of your own images."""

from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import check_path, check_whole, closest
from .folder import FolderOptions, read_folder
from .images import IMAGE_SUFFIXES, MAX_SIDE, MIN_SIDE
from .layout import read_layout
from .memory import memory_for_images
from .shapes import CLASSES, draw_shapes
from .split import Channels, Split, at_most, part_off

DatasetName = Literal["shapes", "cifar10", "cifar100", "svhn", "folder"]
DATASETS = get_args(DatasetName)
SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000


@dataclass(frozen=True)
class Dataset:
    """A data set, as `load_data` returns it."""

    name: str
    classes: tuple[str, ...]  # in the order of the labels
    train: Split
    test: Split
    mean: Channels  # of the training images in [0, 1], or of the test images if there are no others
    std: Channels
    notes: tuple[str, ...] = ()  # what a user should know, such as a split that was made or copies that were found


def load_data(
    name: str,
    root: str | Path = "data",
    *,
    image_size: int = 32,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    download: bool = True,
    objects: int = 1,
    memory_gb: float | None = None,
    test_only: bool = False,
    validation: float = 0.0,
    skip_broken: bool = False,
) -> Dataset:
    """Load a data set into memory; a folder's images that do not fit stay in their files, and a note says so.

    Args:
        name: "shapes" (drawn by code), "cifar10", "cifar100", "svhn" (needs scipy), or "folder":
            `root/train/<class>/*` and `root/test/<class>/*` (or "val" and other usual names), or `root/<class>/*`,
            where a seeded fifth of every class becomes the test split.
        root: folder for downloads, or with your own images.
        image_size: side of the square images in pixels, from 32 to 1024; your own images are cropped to the middle
            square, then scaled.
        train_limit, test_limit: maximum number of images, balanced over the classes and chosen by the seed; for
            "shapes" the first ones, which are balanced in every 500.
        seed: seed of the split, of the limits and of "shapes".
        download: whether CIFAR and SVHN may be downloaded.
        objects: 2 makes "shapes" draw scenes of two objects, with labels (N, 2) and masks (N, 2, H, W).
        memory_gb: memory for the images in gigabytes (10^9 bytes); None means half of what is free.
        test_only: leave `train` empty, unless `validation` needs it; CIFAR is then a download of 24 MB, not 170 MB.
        validation: part of the training images that replaces the test images, as by `hold_out`; of a folder with test
            and validation images the latter replace the former, however many they are.
        skip_broken: leave out pictures of a folder that cannot be read; otherwise they are listed in a ValueError.
    """
    root = _checked_root(name, root, test_only)
    _check_numbers(image_size, (train_limit, test_limit), seed, objects, validation)
    if objects == 2 and name != "shapes":
        raise ValueError("objects=2: only 'shapes' draws scenes of two objects")
    memory = memory_for_images(memory_gb)
    layout = read_layout(root) if name == "folder" else None
    own_validation = layout is not None and layout.validation is not None
    without_train = test_only and (own_validation or not validation)
    limits = (0 if without_train else train_limit, test_limit)
    classes: tuple[str, ...] = CLASSES
    notes: list[str] = []
    if name == "shapes":
        train, test = _draw(limits, image_size, seed, objects, memory)
    elif layout is not None:
        classes = layout.classes
        options = FolderOptions(image_size, limits, seed, memory, bool(validation), skip_broken)
        train, test, notes = read_folder(root, layout, options)
    else:
        classes, train, test = _read(name, root, download, without_train)
        parts = [part[at_most(part.labels, most, seed)] for part, most in zip((train, test), limits, strict=True)]
        train, test = _scaled(parts, image_size, memory)
    mean, std = (train if len(train) else test).statistics()
    data = Dataset(name, classes, train, test, mean, std, tuple(notes))
    return hold_out(data, validation, seed) if validation and not own_validation else data


def hold_out(data: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """Replace the test split by a seeded fraction of every class of the training split, to choose settings on it."""
    _check_fraction(fraction)
    if not 0 < fraction < 1 or not 0 < round(len(data.train) * fraction) < len(data.train):
        raise ValueError(f"validation={fraction} of {len(data.train)} images leaves one part empty: choose e.g. 0.1")
    kept, held = part_off(data.train.labels, round(len(data.train) * fraction), seed)
    train = data.train.part(kept)
    mean, std = train.statistics()
    return replace(data, train=train, test=data.train.part(held), mean=mean, std=std)


def _checked_root(name: str, root: str | Path, test_only: bool) -> Path:
    """Return the folder as a path; refuse an unknown data set, and a download among somebody's own pictures."""
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: {closest(name, DATASETS)}")
    try:
        root = Path(check_path(root)).expanduser()
    except ValueError as error:
        raise ValueError(f"data_dir: {error}") from error
    if name in ("cifar10", "cifar100", "svhn") and root != Path("data") and not test_only:
        _refuse_folder_of_pictures(name, root)
    return root


def _check_numbers(
    image_size: int, limits: tuple[int | None, int | None], seed: int, objects: int, validation: float
) -> None:
    """Refuse numbers of `load_data` that are of the wrong kind or out of range."""
    check_whole("image_size", image_size, MIN_SIDE, MAX_SIDE)
    for label, limit in zip(("train_limit", "test_limit"), limits, strict=True):
        if limit is not None:
            check_whole(label, limit, 1, 10**9)
    check_whole("seed", seed, 0, 2**31 - 1)
    check_whole("objects", objects, 1, 2)
    _check_fraction(validation)
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be at least 0 and below 1, not {validation}")


def _refuse_folder_of_pictures(name: str, root: Path) -> None:
    """Refuse to download a data set among somebody's own pictures."""
    paths = islice(chain(root.glob("*/*"), root.glob("train*/*/*")), 1000)  # of classes, and of splits with classes
    picture = next((path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES), None)
    if picture is not None:
        raise ValueError(
            f"data_dir {str(root)!r} holds pictures ({picture.relative_to(root)}), but the data set is {name!r}: "
            "set dataset='folder' to use them, or another data_dir for the download"
        )


def _check_fraction(fraction: float) -> None:
    """Refuse a fraction that is not a number."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise TypeError(f"validation must be a number, not {fraction!r}")


def _draw(
    limits: tuple[int | None, int | None], size: int, seed: int, objects: int, memory: int
) -> tuple[Split, Split]:
    totals = (SHAPES_TRAIN, SHAPES_TEST)
    counts = [total if limit is None else min(limit, total) for limit, total in zip(limits, totals, strict=True)]
    _check_fits(sum(counts), size, memory)
    train, test = (
        Split(*draw_shapes(max(1, count), size, 2 * seed + part, objects))[:count] for part, count in enumerate(counts)
    )
    return train, test


def _read(name: str, root: Path, download: bool, test_only: bool) -> tuple[tuple[str, ...], Split, Split]:
    from .cifar import CIFAR, load_cifar, load_svhn  # here, because torchvision takes seconds to import

    splits = ("test",) if test_only else ("train", "test")
    if name == "svhn":
        classes, parts = tuple("0123456789"), load_svhn(root, splits, download)
    else:
        classes, parts = CIFAR[name].classes, load_cifar(name, root, splits, download)
    return classes, parts[0][:0] if test_only else parts[0], parts[-1]


def _scaled(parts: list[Split], size: int, memory: int) -> tuple[Split, Split]:
    """Return training and test images of a data set of one size, scaled to another."""
    train, test = parts
    if test.shape[-1] == size:
        return train, test
    _check_fits(len(train) + len(test), size, memory)
    return replace(train, images=_scale(train.images, size)), replace(test, images=_scale(test.images, size))


def _scale(images: Tensor, size: int) -> Tensor:
    """Resize square uint8 images (N, 3, S, S), 1,000 at a time to bound the memory."""
    scaled = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for part, target in zip(images.split(1000), scaled.split(1000), strict=True):
        if len(part):
            values = torch.nn.functional.interpolate(part.float(), size=(size, size), mode="bilinear")
            target.copy_(values.round().clamp(0, 255))
    return scaled


def _check_fits(count: int, size: int, memory: int) -> None:
    """Refuse images that take more than `memory` bytes and cannot stay in files."""
    if count * 3 * size**2 > memory:
        raise ValueError(
            f"{count} images of {size}x{size} pixels take {count * 3 * size**2 / 1e9:.2g} GB, and images may take "
            f"{memory / 1e9:.2g} GB here; choose a smaller image_size or train_limit, or set memory_gb. (Images of a "
            "folder would be read from their files.)"
        )
