"""`python -m ltpa train`: a training run from the command line; the options are the fields of `TrainConfig`.

python -m ltpa train -f notebooks/params/quick/01_train.yaml --model vgg-att3-concat-dp --epochs 10

A killed or interrupted run goes on when the same command is given again. Several processes train one model together
under torchrun: `torchrun --nproc-per-node 2 -m ltpa train ...`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from .config import TrainConfig
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
    hints, defaults, helps = get_type_hints(TrainConfig), TrainConfig.defaults(), TrainConfig.descriptions()
    for field in fields(TrainConfig):
        flag = {"nargs": "?", "const": "true"} if hints[field.name] is bool else {}
        text = f"{helps[field.name]} (default: {defaults[field.name]})".replace("%", "%%")
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
    for text in unknown:
        if text.startswith("-"):
            values[text.lstrip("-").partition("=")[0].replace("-", "_")] = ""
    return TrainConfig.from_text(values | {name: options[name] for name in _KNOWN if name in options})


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
