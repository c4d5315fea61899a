"""`python -m ltpa train`: a training run from the command line; the options are the fields of `TrainConfig`.

python -m ltpa train -f notebooks/params/quick/01_train.yaml --model vgg-att3-concat-dp --epochs 10

A killed or interrupted run goes on when the same command is given again. Several processes train one model together
under torchrun: `torchrun --nproc-per-node 2 -m ltpa train ...`.
"""

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from .config import TrainConfig, check_field, raise_problems, unknown_names
from .distributed import launched
from .training.report import report
from .training.trainer import fit

TAKES_UNKNOWN = True  # `python -m ltpa` leaves options that it does not know to `main`, which knows what is close
_KNOWN = [field.name for field in fields(TrainConfig)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for every field of `TrainConfig`, and `-f` for files of parameters."""
    parser.add_argument(
        "-f", "--file", action="append", default=[], metavar="FILE.yaml", help="parameters; options override them"
    )
    helps, hints = _helps(), get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        flag = {"nargs": "?", "const": "true"} if hints[field.name] is bool else {}
        text = f"{helps[field.name]} (default: {field.default})".replace("%", "%%")
        names = dict.fromkeys(["--" + field.name.replace("_", "-"), "--" + field.name])
        parser.add_argument(*names, default=argparse.SUPPRESS, metavar="VALUE", help=text, **flag)


def main(arguments: argparse.Namespace) -> None:
    """Checks everything, prints the report, and trains.

    Raises:
        ValueError, TypeError: one message with all problems of options and files.
        See also `ltpa.fit`.
    """
    first = launched().first
    config = config_from(arguments.file, vars(arguments), arguments.unknown)
    if first:
        report(config)
    try:
        run = fit(config)
    except (KeyboardInterrupt, SystemExit):
        if not first:
            raise
        print(f"to go on, give the same command again; what is saved is in {config.path}", file=sys.stderr)
        raise
    if first:
        accuracy = run.history[-1]["test_accuracy"]
        print(f"test accuracy after {len(run.history)} epochs: {accuracy:.1%}; run in {run.path}")


def config_from(files: Sequence[str], options: dict[str, Any], unknown: Sequence[str] = ()) -> TrainConfig:
    """The settings from files of parameters, and options, which override them.

    Args:
        files: YAML files; of a name that is in several, the last counts.
        options: name -> what was typed; names that are no fields are left out.
        unknown: what was typed beside the known options.

    Raises:
        ValueError, TypeError: one message with all problems.
        ImportError: PyYAML is missing.
        OSError: a file that cannot be read.
    """
    values: dict[str, Any] = {}
    for file in files:
        values |= _read(file)
    problems = unknown_names(values, _KNOWN)
    hints = get_type_hints(TrainConfig)
    values |= {name: _value(options[name], hints[name]) for name in _KNOWN if name in options}
    previous = ""
    for text in unknown:
        name = re.fullmatch("--?([a-zA-Z][^=]*)(=.*)?", text)
        if name:
            problems += unknown_names({name[1].replace("-", "_"): None}, _KNOWN)
        elif not previous.startswith("-") or "=" in previous:
            problems.append((ValueError, f"unexpected {text!r}: settings are given as --name value"))
        previous = text
    problems += [problem for name in _KNOWN if name in values and (problem := check_field(name, values[name]))]
    raise_problems(problems)
    return TrainConfig(**values)


def _read(file: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("files of parameters need PyYAML: pip install pyyaml") from error
    try:
        values = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values or {}, dict):
        raise TypeError(f"{file} must hold lines such as 'epochs: 10', not {str(values)[:40]!r}")
    return values or {}


def _value(text: str, hint: Any) -> Any:
    """What was typed for a field, as the type that the field has; what is none is left for `check_field`."""
    kinds = get_args(hint) or (hint,)
    if NoneType in kinds and text.lower() in ("none", "null"):
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float) if {int, float} & set(kinds) else ():
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _helps() -> dict[str, str]:
    """What the docstring of `TrainConfig` says of each field."""
    block = inspect.getdoc(TrainConfig).partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^(\w[\w, ]*): (.*(?:\n +.*)*)", textwrap.dedent(block), re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for names, text in entries for name in names.split(", ")}
