"""Words for error messages."""

import difflib
from collections.abc import Iterable


def closest(name: object, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed name, if one is close, then all of them."""
    allowed = list(allowed)
    match = difflib.get_close_matches(str(name).lower(), allowed, n=1, cutoff=0.5)
    return (f"did you mean {match[0]!r}? " if match else "") + f"known: {', '.join(allowed)}"
