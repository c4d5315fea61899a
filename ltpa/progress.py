"""A progress bar that stays one line wherever it is shown: in a terminal, in Jupyter and Colab, under papermill."""

import io
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

FORMAT = "{desc} |{bar:20}| {percentage:3.0f} % {remaining} left{postfix}"


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
        self._bar.close()

    def update(self, done: int, describe: Callable[[], tuple[str, str]]) -> None:
        """Moves the bar to `done` steps.

        Args:
            done: steps done so far.
            describe: gives title and words; as that may have to wait for a GPU, it is asked twice a second at most.
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
    """Where a bar of tqdm is to be written: standard output, in a notebook one line that changes in place."""
    return _DisplayedLine() if in_notebook() else sys.stdout


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code."""
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
