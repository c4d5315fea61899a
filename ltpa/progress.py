"""Messages of the logger `ltpa`, and a progress bar that stays one line in a terminal and in a notebook."""

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
    """Print the messages of the logger `ltpa` during a `with` block, and collect warnings in `notes`.

    `show=False` prints nothing; the root logger's handlers are not called either way.
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
    """Print on standard output, above a bar; messages of other threads belong to other computations."""

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
    """A bar over `steps`, of which `done` are done, on standard output or in a notebook's cell."""

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

        `describe` returns title and words; it may wait for a GPU, and so is called at most twice a second.
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
    """Return the file for tqdm: standard output, or in a notebook a line that changes in place."""
    return _DisplayedLine() if in_notebook() else sys.stdout


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this code."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class _DisplayedLine(io.StringIO):
    """One displayed line that changes in place; of a plain stream papermill would keep every state."""

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
