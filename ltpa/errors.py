"""Words for messages, and checks that several rooms share."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any


def closest(name: object, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed name, if one is close, then all of them."""
    allowed = list(allowed)
    return f"{alike(name, allowed)}known: {', '.join(allowed)}"


def alike(name: object, allowed: Iterable[str]) -> str:
    """The beginning of `closest`: a question with the closest allowed name, or nothing."""
    allowed, text = list(allowed), str(name).lower()
    longer = [one for one in allowed if one.lower().startswith((f"{text}-", f"{text}_"))] if text else []
    match = longer[:1] or difflib.get_close_matches(text, allowed, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}? " if match else ""


def counted(number: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 epoch", "2 epochs"; `plural` where it is not the noun with an s."""
    digits = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{digits} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a time in words: "40 seconds", "5 minutes", "1.5 hours"."""
    if seconds < 90:
        return counted(round(seconds), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def with_article(noun: str) -> str:
    """Return a noun with its article: "an arrow", "a star"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def optional_module(name: str, purpose: str, package: str = "'ltpa[notebooks]'") -> Any:
    """Return a module that need not be installed; an ImportError says what needs it, and what to install."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{purpose}: pip install {package}") from error


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Refuse all but whole numbers from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be at least {least} and at most {most}, not {value}")


def check_path(value: object) -> str:
    """Return a path as text; the message of a ValueError continues a sentence that begins with the setting's name."""
    if not isinstance(value, str | Path):
        raise ValueError(f"must be a path, not {value!r}")
    if not str(value).strip():
        raise ValueError("must not be empty; '.' is the current folder")
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"={str(value)!r}: there is no such user; a folder of that name is './{value}'") from error
    return str(value)
