"""Signals that must not cut a step or a save in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted:
    """Whether a signal to stop has come; it is raised again when everything is saved."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def raise_again(self) -> None:
        """KeyboardInterrupt for Ctrl-C and the notebook's stop button; SystemExit for SIGTERM."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.number or signal.SIGTERM))  # none: another process was told to stop


@contextmanager
def interrupts() -> Iterator[Interrupted]:
    """Within it, SIGINT and SIGTERM only set a flag, so that no step and no save is cut in two."""
    found = Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def note(number: int, _: object) -> None:
        found.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that was not set in Python
