"""What a long computation shows: messages of the logger `ltpa`, and a bar that stays one line wherever it is shown."""

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

FORMAT = "{desc} |{bar:20}| {percentage:3.0f} % {remaining} left{postfix}"
logger = logging.getLogger("ltpa")
logger.addHandler(logging.NullHandler())


@contextmanager
def messages(show: bool, notes: list[str]) -> Iterator[None]:
    """Print what the logger `ltpa` says, for the time of a `with` block; warnings are collected in `notes`, too.

    With `show=False` nothing is printed, whatever handlers the root logger has; one's own go to the logger `ltpa`.
    """
    handler, before = _Messages(show, notes), (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Messages(logging.Handler):
    """Prints on standard output, above a bar; what other threads say is not of this computation."""

    def __init__(self, show: bool, notes: list[str]) -> None:
        super().__init__()
        self._show, self._notes, self._thread = show, notes, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self._thread:
            return
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self._notes.append(text)
            text = f"note: {text}"
        if self._show:
            tqdm.write(text)


class Progress:
    """Steps done of steps in all, the time left, and a few words; on standard output, or in a notebook's cell.

    Args:
        steps: how many there are.
        done: how many are done already.
        show: False shows nothing at all.
    """

    def __init__(self, steps: int, done: int = 0, show: bool = True) -> None:
        self._bar = tqdm(
            total=steps,
            initial=done,
            file=bar_file() if show else sys.stdout,
            disable=not show,
            mininterval=0.5,
            ncols=110,
            bar_format=FORMAT,
        )
        self._described = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def update(self, done: int, describe: Callable[[], tuple[str, str]]) -> None:
        """Move the bar to `done` steps.

        `describe` returns title and words; as it may have to wait for a GPU, it is called twice a second at most.
        """
        if self._bar.disable:
            return
        now, last = time.monotonic(), done == self._bar.total
        if last or now - self._described > 0.5:
            self._described = now
            title, words = describe()
            self._bar.set_description_str(title, refresh=False)
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(done - self._bar.n)
        if last:
            self._bar.refresh()


def bar_file() -> TextIO:
    """Return where tqdm is to write a bar: standard output, or in a notebook one line that changes in place."""
    return _DisplayedLine() if in_notebook() else sys.stdout


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this code."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class _DisplayedLine(io.StringIO):
    """What tqdm writes, as one displayed line that changes in place.

    A stream would do for Jupyter, but papermill keeps every state of the line as an output of its own.
    """

    _handle: Any = None

    def write(self, text: str) -> int:
        from IPython.display import display

        line = text.strip("\r\n")
        if line.strip():
            bundle = {"text/plain": line.rstrip()}
            if self._handle is None:
                self._handle = display(bundle, raw=True, display_id=True)
            else:
                self._handle.update(bundle, raw=True)
        return len(text)
