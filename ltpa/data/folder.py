"""A folder of your own images as a data set."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from .files import FileSplit, Findings, read_images
from .images import MIN_SIDE, Levels
from .layout import Layout
from .split import Split, at_most, part_off

NAMED = 20  # broken pictures that an error names; a note names fewer


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is read: see `load_data`."""

    size: int  # side of the images in pixels
    limits: tuple[int | None, int | None]  # maximum numbers of training and test images
    seed: int  # of the test split and of the limits
    memory: int  # bytes that the images may take; splits that do not fit stay in their files
    validation: bool = False  # test on the images of the validation folder, if there is one
    skip_broken: bool = False


def read_folder(root: Path, layout: Layout, options: FolderOptions) -> tuple[Split, Split, list[str]]:
    """Return training images, test images, and notes for the user."""
    train, test, notes = _parts(root, layout, options)
    train, test = (
        part.part(at_most(part.labels, limit, options.seed))
        for part, limit in zip((train, test), options.limits, strict=True)
    )
    streamed, memory_notes = _streamed(len(train), len(test), options)
    splits, found = _read_both((train, test), streamed)
    broken = [line for part in found for line in part.broken]
    notes += memory_notes + _notes_on_broken(broken, len(train) + len(test), options.skip_broken)
    if lost := {*train.labels.tolist()} - {*splits[0].labels.tolist()}:
        names = ", ".join(layout.classes[label] for label in sorted(lost))
        raise ValueError(f"none of the training images of {names} can be read; repair them, or move the folder away")
    if values := [pair for part in found for pair in part.values]:
        levels, note = _common_levels(values, layout, {*train.files, *test.files})
        splits, found = _read_both((train, test), streamed, levels)
        notes.append(note)
    counts = Counter(found[1].digests)
    if copies := sum(counts[digest] for digest in set(found[0].digests)):
        notes.append(f"{copies} test images are exact copies of training images: the test accuracy is too high")
    return *splits, notes


def _parts(root: Path, layout: Layout, options: FolderOptions) -> tuple[FileSplit, FileSplit, list[str]]:
    """Return training and test files, before limits, and notes on them."""
    train, notes = FileSplit(*layout.train, options.size), list(layout.notes)
    test = None if layout.test is None else FileSplit(*layout.test, options.size)
    if options.validation and layout.validation is not None:
        test = FileSplit(*layout.validation, options.size)
        notes.append("validation is set: the test images are those of the folder's own validation split")
    if test is None:
        count = len(train)
        kept, chosen = part_off(train.labels, max(1, round(count * 0.2)), options.seed)
        train, test = train.part(kept), train.part(chosen)
        notes.append(
            f"{root} has no train/ and test/: {len(chosen)} of {count} images were set aside for the test, "
            f"stratified, seed {options.seed}"
        )
        if len(train.labels.unique()) < len(layout.classes):
            raise ValueError(f"{root} has too few images to set some aside for the test; give each class at least two")
    if absent := [name for label, name in enumerate(layout.classes) if not (test.labels == label).any()]:
        notes.append(f"no test images of: {', '.join(absent)}")
    return train, test, notes


def _streamed(train_count: int, test_count: int, options: FolderOptions) -> tuple[tuple[bool, bool], list[str]]:
    """Return whether the training and the test images stay in their files, and notes about that."""
    memory, (train_bytes, test_bytes) = options.memory, (n * 3 * options.size**2 for n in (train_count, test_count))
    too_much = train_bytes + test_bytes > memory
    streamed = too_much and train_bytes > 0, too_much and test_bytes > memory / 2
    notes = [
        f"the {name} images take {needed / 1e9:.2g} GB as tensors, and images may take {memory / 1e9:.2g} GB "
        "here (memory_gb changes it): they stay in their files and are read when they are used"
        for name, needed, stay in zip(("training", "test"), (train_bytes, test_bytes), streamed, strict=True)
        if stay
    ]
    return streamed, notes


def _read_both(
    parts: tuple[FileSplit, FileSplit], streamed: tuple[bool, bool], levels: Levels | None = None
) -> tuple[tuple[Split, Split], tuple[Findings, Findings]]:
    """Return training and test images; every file is decoded once, so broken ones are found now."""
    train, in_train = _read(parts[0], streamed[0], 0, levels)
    # A run's checksum of the test images continues that of the training images.
    start = train.checksum() if streamed[1] else 0
    test, in_test = _read(parts[1], streamed[1], start, levels)
    return (train, test), (in_train, in_test)


def _read(part: FileSplit, streamed: bool, start: int, levels: Levels | None) -> tuple[Split, Findings]:
    if streamed:
        split = FileSplit(part.files, part.labels, part.size, levels)
        found = split.scan(start)
        return split.without_broken(found), found
    images, found = read_images(part.files, part.size, levels)
    return Split(images, part.labels[torch.tensor(found.good, dtype=torch.int64)]), found


def _notes_on_broken(broken: list[str], count: int, skip: bool) -> list[str]:
    """Raise an error that names the broken pictures, or return a note on them if they are to be left out."""
    if not broken:
        return []
    named = NAMED if not skip else 3
    lines = broken[:named] + ([f"and {len(broken) - named} more"] if len(broken) > named else [])
    if skip:
        return [f"{len(broken)} of {count} pictures cannot be read and are left out: {'; '.join(lines)}"]
    raise ValueError(
        "\n  ".join([f"{len(broken)} of {count} pictures cannot be read:", *lines])
        + "\nreplace or delete them, or set skip_broken=True to leave them out"
    )


def _common_levels(values: list[tuple[float, float]], layout: Layout, read: set[Path]) -> tuple[Levels, str]:
    """Return the levels of gray pictures with more than 8 bits, and a note.

    They are those of the whole folder, so that limits and `validation` do not change the pixels.
    """
    listings = [part for part in (layout.train, layout.test, layout.validation) if part is not None]
    rest = [file for files, _ in listings for file in files if file not in read]
    values = values + read_images(rest, MIN_SIDE)[1].values
    least, most = min(low for low, _ in values), max(high for _, high in values)
    levels = Levels.of(least, most)
    note = (
        f"{len(values)} pictures are gray with more than 8 bits, with values from {least:g} to {most:g}: "
        f"{levels.black:g} becomes black and {levels.white:g} white in all of them"
    )
    return levels, note
