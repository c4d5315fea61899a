"""One module for each notebook, and what they share: `setup`, `drive`, `grid` (runs) and `effects` (comparisons).

00 `scratch` (with `exercises`), 01 `training`, 02 `attention_maps`, 03 `ablation` (with `global_feature`),
04 `map_quality`, 05 `query`, 06 `robustness`, 07 `transfer`, 08 `own_photos`. Nothing outside this folder imports it.
`python -m ltpa.course.mark FOLDER` marks submitted notebooks 00.
"""

import re
from functools import partial
from importlib import import_module
from typing import Any, get_type_hints


def settings_of(source: str) -> Any:
    """Return the class of a notebook's parameters, from its code; None if it has no module of the course."""
    name = re.search(r"^from ltpa\.course import (\w+)$", source, re.MULTILINE)
    if name is None:
        return None
    check = import_module(f"ltpa.course.{name[1]}").parameters
    return check.keywords["kind"] if isinstance(check, partial) else get_type_hints(check)["return"]
