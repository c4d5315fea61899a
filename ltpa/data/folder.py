"""A folder of your own images as a data set."""

import os
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from .files import FileSplit, read_images
from .images import IMAGE_SUFFIXES
from .split import Split, at_most, part_off

Listing = tuple[list[Path], Tensor]  # files and their labels


def read_folder(
    root: Path, size: int, limits: tuple[int | None, int | None], seed: int, memory: int
) -> tuple[tuple[str, ...], Split, Split, list[str]]:
    """Read a folder as described at `load_data`: return classes, training images, test images and notes for the user.

    Args:
        root: the folder.
        size: side of the images in pixels.
        limits: maximum numbers of training and test images.
        seed: seed of the test split and of the limits.
        memory: bytes that the images may take; splits that do not fit stay in their files.
    """
    classes, train, test, notes = list_folder(root)
    if test is None:
        count = len(train[0])
        kept, chosen = part_off(train[1], max(1, round(count * 0.2)), seed)
        train, test = _chosen(train, kept), _chosen(train, chosen)
        notes.append(
            f"{root} has no train/ and test/: {len(chosen)} of {count} images were set aside for the test, "
            f"stratified, seed {seed}"
        )
        if len(train[1].unique()) < len(classes):
            raise ValueError(f"{root} has too few images to set some aside for the test; give each class at least two")
    if absent := [name for label, name in enumerate(classes) if not (test[1] == label).any()]:
        notes.append(f"no test images of: {', '.join(absent)}")
    train, test = (
        _chosen(part, at_most(part[1], limit, seed)) for part, limit in zip((train, test), limits, strict=True)
    )
    train_bytes, test_bytes = (len(files) * 3 * size**2 for files, _ in (train, test))
    too_much = train_bytes + test_bytes > memory
    stream_train, stream_test = too_much and train_bytes > 0, too_much and test_bytes > memory / 2
    for name, needed, streamed in (("training", train_bytes, stream_train), ("test", test_bytes, stream_test)):
        if streamed:
            notes.append(
                f"the {name} images take {needed / 1e9:.2g} GB as tensors, and images may take {memory / 1e9:.2g} GB "
                "here (memory_gb changes it): they stay in their files and are read when they are used"
            )
    train_split, train_digests = _read(train, size, stream_train, 0)
    # A run's checksum of the test images continues that of the training images.
    start = train_split.checksum() if stream_test else 0
    test_split, test_digests = _read(test, size, stream_test, start)
    counts = Counter(test_digests)
    if copies := sum(counts[digest] for digest in set(train_digests)):
        notes.append(f"{copies} test images are exact copies of training images: the test accuracy flatters")
    return classes, train_split, test_split, notes


def _chosen(listing: Listing, index: slice | Tensor) -> Listing:
    files, labels = listing
    return [files[i] for i in torch.arange(len(files))[index].tolist()], labels[index]


def _read(listing: Listing, size: int, streamed: bool, start: int) -> tuple[Split, list[bytes]]:
    """Return the images and the files' digests; every file is decoded once, so broken ones are found now."""
    files, labels = listing
    if streamed:
        split = FileSplit(files, labels, size)
        return split, split.scan(start)
    images, digests = read_images(files, size)
    return Split(images, labels), digests


def list_folder(root: Path) -> tuple[tuple[str, ...], Listing, Listing | None, list[str]]:
    """Return classes, training files, test files (None without train/ and test/) and notes; no image is read."""
    if not os.path.isdir(root):  # unlike Path.is_dir, it accepts any text
        raise FileNotFoundError(
            f"data_dir {str(root)!r} is not a folder (looked in {Path.cwd()}); "
            "it should hold train/<class>/* and test/<class>/*, or <class>/*"
        )
    folders = _subfolders(root)
    parts = {part.name.lower(): part for part in folders if part.name.lower() in ("train", "test")}
    if len(parts) == 1:
        (present,) = parts
        missing = "test" if present == "train" else "train"
        raise ValueError(f"{root} holds {present}/ but no {missing}/; give both, or only one folder per class")
    if not parts:
        classes = _class_names(root)
        return tuple(classes), _list_classes(root, classes, classes), None, []
    classes, test_classes = _class_names(parts["train"]), _class_names(parts["test"], least=1)
    if strangers := sorted(set(test_classes) - set(classes)):
        raise ValueError(
            f"{parts['test']} has classes that train/ lacks: {', '.join(strangers)}; known: {', '.join(classes)}"
        )
    train, test = _list_classes(parts["train"], classes, classes), _list_classes(parts["test"], test_classes, classes)
    others = [part.name for part in folders if part not in parts.values()]
    notes = [f"beside train/ and test/, these folders of {root} are not read: {', '.join(others)}"] if others else []
    return tuple(classes), train, test, notes


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith((".", "__")))
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error}); choose a folder that you may read") from error


def _class_names(folder: Path, least: int = 2) -> list[str]:
    names = [part.name for part in _subfolders(folder)]
    if not names:
        raise ValueError(f"{folder} has no sub-folders; put the images of each class into a folder with its name")
    if len(names) < least:
        raise ValueError(f"{folder} has one class only, {names[0]!r}; a classifier needs at least two")
    return names


def _list_classes(folder: Path, names: list[str], classes: list[str]) -> Listing:
    labeled = [(file, classes.index(name)) for name in names for file in _image_files(folder / name)]
    return [file for file, _ in labeled], torch.tensor([label for _, label in labeled])


def _image_files(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not files:
        raise ValueError(f"{folder} holds no images that may be read ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files
