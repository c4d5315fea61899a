"""Which folder holds which split and which class."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .suspicion import held_out, inside, parts_of, pictures_in_words, problem_of
from .tree import Folder, in_words

Listing = tuple[list[Path], Tensor]  # files and their labels


@dataclass(frozen=True)
class Layout:
    """Classes and files of a data set; no picture has been decoded yet."""

    classes: tuple[str, ...]
    train: Listing
    test: Listing | None  # None: part of the training images will be set aside
    validation: Listing | None  # only if there is a test folder as well
    notes: list[str]


def read_layout(root: Path) -> Layout:
    """Return the classes and files of a folder; a ValueError explains what is wrong and which folder to choose."""
    if_file = ", but a file: unpack an archive first " if os.path.isfile(root) else " "
    if not os.path.isdir(root):  # unlike Path.is_dir, it accepts any text
        raise FileNotFoundError(
            f"data_dir {str(root)!r} is not a folder{if_file}(looked in {Path.cwd()}); "
            "it should hold train/<class>/* and test/<class>/*, or <class>/*"
        )
    if root.resolve() in (Path.home(), Path(root.resolve().anchor)):
        raise ValueError(f"data_dir {str(root)!r} holds far more than pictures of a data set; choose a folder in it")
    folder = Folder(root)
    if problem := problem_of(folder):
        raise ValueError(problem)
    parts = parts_of(folder)
    if not parts:
        classes = [part.name for part in folder.pictured]
        notes = [*_notes_on_classes(folder), *_note_on_others([folder])]
        return Layout(tuple(classes), _listing(folder, classes), None, None, notes)
    train, others = inside(parts["train"]), held_out(parts)
    classes = [part.name for part in train.pictured]
    notes, test, validation = list[str](), others.get("test"), others.get("validation")
    if test is None and validation is not None:
        test, validation = validation, None
        notes.append(f"{test.name}/ holds the test images, because there is no other test folder")
    elif test is not None and validation is not None:
        notes.append(
            f"{validation.name}/ takes the place of {test.name}/ when validation is set, and is not read otherwise"
        )
    notes += [
        f"{part.path} is not read: it holds {pictures_in_words(part)}, none of them in the folder of a class"
        for role, part in parts.items()
        if role != "train" and role not in others
    ]
    beside = [f"{part.name} ({pictures_in_words(part)})" for part in folder.folders if part not in parts.values()]
    if beside:
        names = " and ".join(f"{part.name}/" for part in parts.values())
        notes.append(f"beside {names}, these folders of {root} are not read: {', '.join(beside)}")
    read = [train, *others.values()]
    notes += [*_notes_on_classes(train), *_note_on_others(read)]
    return Layout(
        tuple(classes),
        _listing(train, classes),
        None if test is None else _listing(test, classes),
        None if validation is None else _listing(validation, classes),
        notes,
    )


def _listing(folder: Folder, classes: Sequence[str]) -> Listing:
    labeled = [(file, classes.index(part.name)) for part in folder.pictured for file in part.all_images()]
    return [file for file, _ in labeled], torch.tensor([label for _, label in labeled])


def _notes_on_classes(folder: Folder) -> list[str]:
    """Return notes on class folders without pictures, and on class folders with several subfolders."""
    notes = []
    if empty := [f"{part.name} ({part.kinds() or 'empty'})" for part in folder.folders if not part.has_images]:
        notes.append(f"not classes, because they hold no pictures: {', '.join(empty)}")
    if nested := [part for part in folder.pictured if len(part.pictured) > 1]:
        below = ", ".join(part.name for part in nested[0].pictured[:5])
        notes.append(
            f"classes are the folders directly in {folder.path}; {nested[0].name} also counts the pictures in its "
            f"subfolders ({below}), and so do {len(nested) - 1} other classes"
        )
    return notes


def _note_on_others(folders: Sequence[Folder]) -> list[str]:
    """Return a note that counts what is not read, by kind; the classes are folders in these folders."""
    below = [part for folder in folders for kind in folder.pictured for part in kind.everything()]
    within = list(dict.fromkeys([*folders, *below]))
    kinds = sum((folder.others for folder in within), Counter[str]())
    outside = [image for folder in folders for image in folder.images]
    if outside:
        kinds["pictures outside the folders of classes"] += len(outside)
    examples = [*(path for folder in within for path in folder.examples.values()), *outside]
    return [f"not read: {in_words(kinds)} (such as {examples[0]})"] if examples else []
