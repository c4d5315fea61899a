"""The plan of a sweep: its variants, their names, and the check of all parameters before anything starts."""

import ast
import csv
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import SettingsBase, TrainConfig, yaml_file, yaml_values
from ..errors import closest, optional_module
from .record import Record, read_records

EXTRA = "'ltpa[sweep]'"
_NOT_IDENTITY = {"run_dir", "device"}  # where a variant is kept and computed does not make it another one
_WORDS: dict[str, Any] = {"none": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Target:
    """What is executed: a notebook, or `fit` alone.

    Attributes:
        path: of the notebook; empty for `fit` alone.
        notebook: as papermill reads it (an `nbformat.NotebookNode`), or None.
        defaults: names and values in its cell of parameters.
        settings: the class that checks the values, if there is one.
    """

    path: str
    notebook: Any
    defaults: Mapping[str, Any]
    settings: type[SettingsBase] | None

    @property
    def code(self) -> str:
        """The notebook's code."""
        cells = self.notebook["cells"] if self.notebook is not None else []
        return "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")

    @property
    def source(self) -> str | None:
        """The checksum of the notebook's code."""
        return None if self.notebook is None else hashlib.sha256(self.code.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """What a sweep executes in which folder: a record for each variant, with its result so far."""

    folder: Path
    target: Target
    records: Sequence[Record]

    @property
    def open(self) -> list[Record]:
        """The variants that are not done."""
        return [record for record in self.records if record.state != "done"]

    def current(self) -> "Plan":
        """Return the plan with what another sweep has done in the folder meanwhile; refuse one of other settings."""
        records, problems = _with_known(self.folder, self.records)
        if problems:
            raise ValueError("\n".join(problems))
        return replace(self, records=records)


def fit_alone() -> Target:
    """Return the target of a sweep without a notebook."""
    return Target("", None, TrainConfig.defaults(), TrainConfig)


def read_notebook(path: str) -> Target:
    """Read a notebook, from a file or from an address that papermill knows, and the names of its parameters."""
    modules = ("papermill.inspection", "papermill.iorw")
    inspection, iorw = (optional_module(name, "a sweep needs papermill", EXTRA) for name in modules)
    try:
        notebook = iorw.load_notebook_node(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no notebook {path}") from error
    except Exception as error:  # papermill's readers raise what their libraries raise
        raise ValueError(f"{path} cannot be read as a notebook: {error}") from error
    defaults = {name: _literal(entry["default"]) for name, entry in inspection.inspect_notebook(path).items()}
    return Target(path, notebook, defaults, None)


def parse_grid(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Return the values by name of "name=a,b,c", "seed=0..4" or "models=[a,b],[a]"; a ValueError names all problems."""
    grid, problems = dict[str, list[Any]](), []
    for text in texts:
        name, separator, values = text.partition("=")
        if not separator or not name.isidentifier() or not values.strip():
            problems.append(f"--grid {text}: write name=a,b,c or name=0..4")
        elif name in grid:
            problems.append(f"--grid {name} is given twice; write all its values in one list")
        else:
            try:
                grid[name] = _values(values)
            except ValueError as error:
                problems.append(f"--grid {text}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return grid


def read_variants(file: str) -> list[dict[str, Any]]:
    """Return the variants of a CSV file (a column for each parameter) or a YAML file (a list of mappings)."""
    if file.lower().endswith(".csv"):
        try:
            with Path(file).expanduser().open(encoding="utf-8-sig", newline="") as lines:
                table = list(csv.DictReader(lines, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        # An empty cell leaves the parameter out.
        rows: Any = [{name: parse_value(text) for name, text in row.items() if text} for row in table]
    else:
        rows = yaml_file(file)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise ValueError(f"{file} must hold a list of variants, each with names and values, such as '- {{seed: 1}}'")
    return [{str(name): value for name, value in row.items()} for row in rows]


def make_plan(
    folder: Path,
    target: Target,
    common: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    variants: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """Combine every variant with every point of the grid, check all of them, and find those that are done.

    One ValueError names all problems.
    """
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    varied = [{**variant, **point} for variant in (variants or [{}]) for point in points]
    records, problems = dict[str, Record](), dict[str, None]()
    for own in varied:
        parameters = {**common, **own}
        identity, lines = _checked(target, parameters)
        problems |= dict.fromkeys(lines)
        records.setdefault(_key(identity), Record(_name(own, target), parameters, identity, target.source))
    merged, differences = _with_known(folder, list(records.values()))
    problems |= dict.fromkeys(differences)
    if problems:
        raise ValueError("\n".join(problems))
    return Plan(folder, target, merged)


def _with_known(folder: Path, records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records as the folder has them, and what is wrong with those whose name another variant has there."""
    known = {_key(record.identity): record for record in read_records(folder)}
    by_name = {record.name: record for record in known.values()}
    merged = [known.get(_key(record.identity), record) for record in records]
    pairs = [(by_name[record.name], record) for record in merged if record.name in by_name]
    return merged, [_difference(folder, there, now) for there, now in pairs if there.identity != now.identity]


def parse_value(text: str) -> Any:
    """Return the value that a text stands for: a number, None, a truth value, a list, or the text itself."""
    return _plain_words(_literal(text.strip()))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _values(text: str) -> list[Any]:
    if steps := re.fullmatch(r"\s*(-?\d+)\.\.(-?\d+)\s*", text):
        first, last = map(int, steps.groups())
        if not 0 <= last - first < 10_000:
            raise ValueError("a range must go up and have at most 10,000 values")
        return list(range(first, last + 1))
    try:
        return [_plain_words(value) for value in yaml_values(f"[{text}]")]
    except Exception as error:  # the YAML library's own
        raise ValueError("a value is empty, or a bracket or quote is not closed") from error


def _plain_words(value: Any) -> Any:
    """Return what words such as "none" stand for, also in lists."""
    if isinstance(value, list):
        return [_plain_words(item) for item in value]
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


def _checked(target: Target, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return all values of a variant, written in one way, and what is wrong with its parameters, a line each."""
    known, values = list(target.defaults), {**target.defaults, **parameters}
    lines = [f"unknown parameter {n!r}: {closest(n, known)}" for n in parameters if known and n not in known]
    if target.settings is not None:
        own = {name: value for name, value in values.items() if name in target.settings.defaults()}
        try:
            values |= vars(target.settings.from_text(own))
        except ValueError as error:
            lines += str(error).splitlines()
    if parameters.get("run_dir") is not None:
        lines.append("run_dir is chosen by the sweep: each variant has its own below --out")
    return {name: _plain(value) for name, value in sorted(values.items()) if name not in _NOT_IDENTITY}, lines


def _plain(value: Any) -> Any:
    """Return what JSON keeps: 2.0 as 2, tuples as lists."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _key(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)


def _name(own: Mapping[str, Any], target: Target) -> str:
    """Return a folder's name such as "model=vgg-late,seed=0", the same for any order of the parameters."""
    text = ",".join(f"{name}={_plain(own[name])}" for name in sorted(own)) or Path(target.path).stem or "run"
    name = re.sub(r"[^\w.,=+-]+", "_", text)
    if name != text or len(name) > 120:  # two texts could be alike without this
        name = f"{name[:110]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def _difference(folder: Path, there: Record, now: Record) -> str:
    names = sorted(there.identity.keys() | now.identity.keys())
    words = [
        f"{name} {there.identity.get(name)!r} there, {now.identity.get(name)!r} now"
        for name in names
        if there.identity.get(name) != now.identity.get(name)
    ]
    return f"{folder / now.name} was made with other parameters ({'; '.join(words)}); choose another --out"
