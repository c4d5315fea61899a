"""The command line: `python -m ltpa COMMAND ...`.

    python -m ltpa train -f notebooks/params/quick/01_train.yaml --model vgg-att3-concat-dp --epochs 10

A killed or interrupted run goes on when the same command is given again. Several processes train one model together
under torchrun: `torchrun --nproc-per-node 2 -m ltpa train ...`.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .config import Settings, SettingsBase, TrainConfig
from .distributed import launched
from .training.report import report
from .training.trainer import fit


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    add_options(parser, TrainConfig)


def train(options: Mapping[str, Any], unknown: Sequence[str]) -> None:
    """Check all settings at once, print them, and train."""
    first = launched().first
    config = settings_from(TrainConfig, options, unknown)
    if first:
        report(config)
    try:
        run = fit(config)
    except (KeyboardInterrupt, SystemExit):
        if first:
            print(f"to go on, give the same command again; what is saved is in {config.path}", file=sys.stderr)
        raise
    if first:
        print(run)


COMMANDS = {  # name: (help, function that adds the options, function that gets known options and unknown words)
    "train": ("train a model, or go on with a run; the options are the fields of TrainConfig", add_train_options, train)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and show an error without a traceback; return the exit status.

    It is 0, 1 after an error, or 130 after Ctrl-C; wrong use exits with 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ltpa", description="Attention CNNs you can look into.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (text, add_options, _) in COMMANDS.items():
        add_options(commands.add_parser(name, help=text, description=text, allow_abbrev=False))
    options, unknown = parser.parse_known_args(arguments)
    try:
        COMMANDS[options.command][2](vars(options), unknown)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one of the processes of a machine
            print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def add_options(parser: argparse.ArgumentParser, kind: type[SettingsBase]) -> None:
    """Add `-f` for parameter files, and an option for every field of the settings."""
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        default=[],
        metavar="FILE.yaml",
        help="settings from a file; options on the command line win",
    )
    descriptions, hints = kind.descriptions(), get_type_hints(kind)
    for name, default in kind.defaults().items():
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(default, bool) else {}
        choices = f"; {', '.join(get_args(hints[name]))}" if get_origin(hints[name]) is Literal else ""
        text = f"{descriptions[name]}{choices} (default: {default})".strip().replace("%", "%%")
        parser.add_argument(*_spellings(name), default=argparse.SUPPRESS, metavar="VALUE", help=text, **switch)
        if switch:
            no: dict[str, Any] = {"action": "store_const", "const": "false", "default": argparse.SUPPRESS}
            parser.add_argument(*_spellings(f"no-{name}"), dest=name, help=argparse.SUPPRESS, **no)


def settings_from(kind: type[Settings], options: Mapping[str, Any], unknown: Sequence[str]) -> Settings:
    """Return the settings of files and options; one ValueError names all problems."""
    values: dict[str, Any] = {}
    for file in options["file"]:
        values |= _read(file)
    values |= {name: options[name] for name in kind.defaults() if name in options}
    lines, before = [], ""
    for word in unknown:
        if word.startswith("--"):
            values[word[2:].partition("=")[0].replace("-", "_")] = ""
        elif not before.startswith("--") or "=" in before:
            lines.append(f"unexpected {word!r}: settings are given as --name value")
        before = word
    try:
        settings = kind.from_text(values)
    except ValueError as error:
        lines = [*str(error).splitlines(), *lines]
    if lines:
        raise ValueError("\n".join(lines))
    return settings


def _spellings(name: str) -> list[str]:
    """Return an option written with hyphens and with underscores."""
    return list(dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name.replace('-', '_')}")))


def _read(file: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("files of parameters need PyYAML: pip install pyyaml") from error
    try:
        values = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a YAML file: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold lines such as 'epochs: 10', not {str(values)[:40]!r}")
    return values


if __name__ == "__main__":
    sys.exit(main())
