"""A folder and what is below it, read from disk once, when first needed."""

import mimetypes
import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from .images import IMAGE_SUFFIXES, is_image


class Folder:
    """A folder: its pictures, its subfolders, and how many other things of each kind it holds.

    Pictures are recognized by their content; only files with the usual extensions are not opened. Hidden files, hidden
    folders, and links that are broken or lead back up are counted as other things.
    """

    def __init__(self, path: Path, parent: "Folder | None" = None) -> None:
        self.path, self.parent, self.name = path, parent, path.name
        self.others = Counter[str]()  # by kind, of this folder alone
        self.examples = dict[str, Path]()  # one of each kind

    @cached_property
    def entries(self) -> list["Path | Folder"]:
        """Pictures and subfolders, in the order of their names."""
        try:
            with os.scandir(self.path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be read ({error}); choose a folder that you are allowed to read"
            ) from error
        kept: list[Path | Folder] = []
        for entry in entries:
            path, kind = self.path / entry.name, self._kind(entry)
            if kind == "picture":
                kept.append(path)
            elif kind == "folder":
                kept.append(Folder(path, self))
            else:
                self.others[kind] += 1
                self.examples.setdefault(kind, path)
        return kept

    @cached_property
    def images(self) -> list[Path]:
        """The pictures directly in the folder."""
        return [entry for entry in self.entries if isinstance(entry, Path)]

    @cached_property
    def folders(self) -> list["Folder"]:
        """The subfolders."""
        return [entry for entry in self.entries if isinstance(entry, Folder)]

    @cached_property
    def has_images(self) -> bool:
        """Whether there are pictures in the folder or below."""
        return bool(self.images) or any(folder.has_images for folder in self.folders)

    @cached_property
    def pictured(self) -> list["Folder"]:
        """The subfolders with pictures in them or below."""
        return [folder for folder in self.folders if folder.has_images]

    def all_images(self) -> Iterator[Path]:
        """Yield the pictures in the folder and below, in the order of their paths."""
        for entry in self.entries:
            if isinstance(entry, Folder):
                yield from entry.all_images()
            else:
                yield entry

    def everything(self) -> Iterator["Folder"]:
        """Yield the folder and all folders below."""
        folders = self.folders  # looked at first, so that the other things are counted
        yield self
        for folder in folders:
            yield from folder.everything()

    def kinds(self) -> str:
        """Return what the folder and those below hold besides pictures, in words: "12 .txt"."""
        return in_words(sum((folder.others for folder in self.everything()), Counter()))

    def _kind(self, entry: os.DirEntry[str]) -> str:
        """Return "picture", "folder", or the kind of another thing in the plural."""
        try:
            hidden, is_folder = entry.name.startswith("."), entry.is_dir()
            if is_folder and entry.is_symlink() and self._is_inside(entry.path):
                return "links to a folder above them"
            if is_folder:
                return "hidden folders" if hidden or entry.name.startswith("__") else "folder"
            if not entry.is_file():
                return "broken links" if entry.is_symlink() else "things that are not files"
        except OSError:  # a link to itself
            return "broken links"
        suffix = os.path.splitext(entry.name)[1].lower()
        if hidden:
            return "hidden files"
        if suffix in IMAGE_SUFFIXES:
            return "picture"
        known = mimetypes.guess_type(entry.name)[0]
        if known is None or known.startswith("image"):
            try:
                with open(entry.path, "rb") as file:
                    if is_image(file.read(32)):
                        return "picture"
            except OSError:
                return "files without permission to read"
        return suffix or "files without an extension"

    def _is_inside(self, path: str) -> bool:
        """Return whether the folder is below a folder or that folder itself."""
        return os.path.samefile(path, self.path) or (self.parent is not None and self.parent._is_inside(path))


def in_words(kinds: Counter[str]) -> str:
    """Return numbers of things by kind: "12 .txt, 3 hidden files"."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
