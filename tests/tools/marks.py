"""Parts of a page that a command writes, between two marks."""

from pathlib import Path


def write_between(path: Path, begin: str, text: str, end: str) -> None:
    """Put a text in the place of what is between two marks in a file; a ValueError names a file without the marks."""
    path.write_text(replace_between(path, begin, text, end), encoding="utf-8")


def check_marks(path: Path, begin: str, end: str) -> None:
    """Raise what `write_between` would, before anything slow is computed."""
    replace_between(path, begin, "", end)


def replace_between(path: Path, begin: str, text: str, end: str) -> str:
    """Return the file's content with a text in the place of what is between the marks."""
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} lacks the marks {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
