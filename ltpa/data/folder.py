"""Folders of one's own images: which files they hold, and of which classes."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .files import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Listing:
    """The image files of some classes.

    Attributes:
        files: N paths.
        labels: int64 (N,), indices into the classes.
    """

    files: list[Path]
    labels: Tensor

    def __getitem__(self, index: Tensor) -> "Listing":
        """The files that a tensor of numbers selects."""
        return Listing([self.files[i] for i in index.tolist()], self.labels[index])


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds.

    Attributes:
        classes: names of the sub-folders, sorted.
        train, test: the files; `test` is None where the folder has no train/ and test/.
        notes: what a user should know about it.
    """

    classes: tuple[str, ...]
    train: Listing
    test: Listing | None
    notes: tuple[str, ...] = ()


def list_folder(root: Path) -> ImageFolder:
    """Lists `root/train/<class>/*` and `root/test/<class>/*`, or only `root/<class>/*`; no image is read.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: it holds something else, or classes without images.
    """
    if not os.path.isdir(root):  # which, unlike Path.is_dir, takes everything
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
        return ImageFolder(tuple(classes), _list_classes(root, classes, classes), None)
    classes, test_classes = _class_names(parts["train"]), _class_names(parts["test"], least=1)
    if strangers := sorted(set(test_classes) - set(classes)):
        raise ValueError(
            f"{parts['test']} has classes that train/ lacks: {', '.join(strangers)}; known: {', '.join(classes)}"
        )
    train, test = (
        _list_classes(parts[name], names, classes) for name, names in (("train", classes), ("test", test_classes))
    )
    others = [part.name for part in folders if part not in parts.values()]
    notes = [f"beside train/ and test/, these folders of {root} are not read: {', '.join(others)}"] if others else []
    return ImageFolder(tuple(classes), train, test, tuple(notes))


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


def _image_files(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not files:
        raise ValueError(f"{folder} holds no images that may be read ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _list_classes(folder: Path, names: list[str], classes: list[str]) -> Listing:
    files, labels = [], []
    for name in names:
        of_class = _image_files(folder / name)
        files += of_class
        labels += [classes.index(name)] * len(of_class)
    return Listing(files, torch.tensor(labels))
