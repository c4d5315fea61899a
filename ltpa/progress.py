"""A progress bar that stays one line wherever it is shown: in a terminal, in Jupyter and Colab, under papermill."""

import io
import sys
from typing import Any

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
        file = _DisplayedLine() if show and in_notebook() else sys.stdout
        self._bar = tqdm(
            total=steps, initial=done, file=file, disable=not show, mininterval=0.5, ncols=110, bar_format=FORMAT
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def hidden(self) -> bool:
        """Whether nothing is shown, so that nobody needs to find words."""
        return bool(self._bar.disable)

    def update(self, done: int, title: str | None = None, words: str | None = None) -> None:
        """Moves the bar to `done` steps; title and words change only where they are given."""
        if title is not None:
            self._bar.set_description_str(title, refresh=False)
        if words is not None:
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(done - self._bar.n)
        if done == self._bar.total:
            self._bar.refresh()


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
