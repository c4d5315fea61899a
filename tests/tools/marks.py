"""Parts of a page that a command writes, between two marks."""

from pathlib import Path

from ltpa.training.checkpoint import write


def write_between(path: Path, begin: str, text: str, end: str) -> None:
    """Puts a text in the place of what stands between two marks in a file.

    Raises:
        ValueError: the file lacks the marks.
        OSError: it cannot be read or written.
    """
    write(path, _replaced(path, begin, text, end).encode())


def check_marks(path: Path, begin: str, end: str) -> None:
    """Raises what `write_between` would, before anything slow is computed."""
    _replaced(path, begin, "", end)


def _replaced(path: Path, begin: str, text: str, end: str) -> str:
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} lacks the marks {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
