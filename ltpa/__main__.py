"""The command line: `python -m ltpa COMMAND ...`.

    python -m ltpa train -f notebooks/params/quick/01_train.yaml --model vgg-att3-concat-dp --epochs 10

    python -m ltpa sweep notebooks/01_train.ipynb --grid model=vgg-late,vgg-gap --grid seed=0..4 --out runs/sweep

A killed or interrupted run or sweep continues when you run the same command again. Several processes train one model
together under torchrun: `torchrun --nproc-per-node 2 -m ltpa train ...`.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .config import Settings, SettingsBase, TrainConfig, yaml_file
from .distributed import launched
from .export import export_onnx
from .models.classifier import SMALLEST
from .pretrained import DEFAULT, load_pretrained
from .training.report import report
from .training.trainer import fit

_MISSING = "\0"  # the value of an option without one; no text of a command line can hold it


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    add_options(parser, TrainConfig)


def train(options: Mapping[str, Any], unknown: Sequence[str]) -> None:
    """Train a model, or continue a run; the options are the fields of TrainConfig."""
    first = launched().first
    config = settings_from(TrainConfig, options, unknown)
    if first:
        report(config)
    try:
        run = fit(config)
    except (KeyboardInterrupt, SystemExit):
        if first:
            print(f"to continue, run the same command again; what is saved is in {config.path}", file=sys.stderr)
        raise
    if first:
        print(run)


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    add = parser.add_argument
    add("notebook", nargs="?", help="the notebook; leave it out with --no-notebook")
    add("--no-notebook", action="store_true", help="call fit alone; the parameters are the fields of TrainConfig")
    add("-f", "--file", action="append", default=[], metavar="FILE.yaml", help="parameters that all variants share")
    add("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one more of these")
    add("--grid", action="append", default=[], metavar="NAME=A,B", help="values of a parameter; 0..4 are 0 to 4")
    add("--variants", metavar="FILE", help="a CSV or YAML file of variants; the grid is repeated for each")
    add("--out", required=True, metavar="DIR", help="folder of the sweep")
    add("--notebooks", metavar="PLACE", help="folder or address (s3://...) for the executed notebooks (default: DIR)")
    add("--workers", type=int, metavar="N", help="variants at once (default: what cores and memory allow; on a GPU 1)")
    add("--scheduler", metavar="tcp://HOST:PORT", help="a Dask cluster that exists, instead of this machine")
    add("--kernel", metavar="NAME", help="the Jupyter kernel (default: the notebook's own)")
    add("--dry-run", action="store_true", help="print the variants and their expected cost, and exit")


def sweep(options: Mapping[str, Any], unknown: Sequence[str]) -> None:
    """Execute a notebook, or train, in many variants; done ones are skipped."""
    from .course import settings_of
    from .sweep import cost, plan, run

    if unknown:
        raise ValueError(f"unexpected {' '.join(unknown)}; parameters are given with --grid, -p or -f")
    if options["no_notebook"] == bool(options["notebook"]):
        raise ValueError("name one notebook, or give --no-notebook")
    if options["workers"] is not None and options["workers"] < 1:
        raise ValueError(f"--workers must be at least 1, not {options['workers']}")
    if options["no_notebook"]:
        target = plan.fit_alone()
    else:
        target = plan.read_notebook(options["notebook"])
        target = replace(target, settings=settings_of(target.code))
    common = {name: value for file in options["file"] for name, value in _read(file).items()}
    common |= {name: plan.parse_value(text) for name, text in options["parameter"]}
    variants = plan.read_variants(options["variants"]) if options["variants"] else []
    made = plan.make_plan(Path(options["out"]).expanduser(), target, common, plan.parse_grid(options["grid"]), variants)
    if options["dry_run"]:
        print(cost.described(made, options["workers"]))
        return
    kept = ("workers", "scheduler", "kernel", "notebooks")
    table = run.run_sweep(made, **{name: options[name] for name in kept})
    if failed := int((table["state"] == "failed").sum()):
        raise ValueError(f"{failed} of {len(table)} variants failed; the same command tries them again")


MODEL_HELP = "weights of ltpa.list_pretrained(), the folder of a run or of save_pretrained, or owner/name on the hub"


def add_show_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `show`."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files, folders of photos, or http(s) addresses")
    parser.add_argument("--model", default=DEFAULT, help=f"{MODEL_HELP} (default: %(default)s)")
    parser.add_argument("--save", default="maps.png", metavar="FILE", help="the picture (default: %(default)s)")
    parser.add_argument("--side", type=int, help="pixels of the shorter side that the model reads")


def show(options: Mapping[str, Any], unknown: Sequence[str]) -> None:
    """Save a picture of photos with their attention maps."""
    refuse(unknown)
    check_parent(options["save"])
    from .viz.show import show as show_figure

    figure = show_figure(options["photos"], load_pretrained(options["model"]), side=options["side"])
    figure.savefig(options["save"])
    print(f"saved {options['save']}")


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("file", metavar="FILE.onnx", help="where to write")
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side (default: that of the training); 0 for images of any size",
    )
    parser.add_argument("--half", action="store_true", help="store kernels in float16: half the size")
    parser.add_argument(
        "--query", action="store_true", help="add a second input, whose global feature scores the images"
    )


def export(options: Mapping[str, Any], unknown: Sequence[str]) -> None:
    """Write a network as an ONNX file: logits and attention maps."""
    refuse(unknown)
    check_parent(options["file"])
    model = load_pretrained(options["model"], device="cpu")
    size = options["image_size"]
    if size is None:
        size = model.facts.get("image_size", SMALLEST)
    outputs = export_onnx(model, options["file"], image_size=size or None, query=options["query"], half=options["half"])
    which = f"{size}x{size} pixels" if size else "any size"
    print(f"saved {options['file']}: images of {which} -> {', '.join(outputs)}")


def refuse(unknown: Sequence[str]) -> None:
    """Refuse words that are not options."""
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; --help lists the known ones")


def check_parent(file: str) -> None:
    """Refuse a file in a folder that does not exist, before anything is computed."""
    if not Path(file).expanduser().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(Path(file).parent)!r} for {Path(file).name!r}")


# What adds the options of a command; and what runs it, with known options and unknown words. Its docstring is the help.
COMMANDS = {
    "train": (add_train_options, train),
    "sweep": (add_sweep_options, sweep),
    "show": (add_show_options, show),
    "export": (add_export_options, export),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and show an error without a traceback; return the exit status.

    It is 0, 1 after an error, or 130 after Ctrl-C; wrong use exits with 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ltpa", description="Attention CNNs you can look into.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (add_options, run) in COMMANDS.items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        command._negative_number_matcher = re.compile(r"-\.?\d")  # argparse takes -1e-3 for an option
        add_options(command)
    options, unknown = parser.parse_known_args(arguments)
    try:
        COMMANDS[options.command][1](vars(options), unknown)
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
        is_switch = isinstance(default, bool)
        choices = f"; {', '.join(get_args(hints[name]))}" if get_origin(hints[name]) is Literal else ""
        text = f"{descriptions[name]}{choices} (default: {default})".strip().replace("%", "%%")
        value: dict[str, Any] = {"nargs": "?", "const": "true" if is_switch else _MISSING, "metavar": "VALUE"}
        parser.add_argument(*_spellings(name), default=argparse.SUPPRESS, help=text, **value)
        if is_switch:
            no: dict[str, Any] = {"action": "store_const", "const": "false", "default": argparse.SUPPRESS}
            parser.add_argument(*_spellings(f"no-{name}"), dest=name, help=argparse.SUPPRESS, **no)


def settings_from(kind: type[Settings], options: Mapping[str, Any], unknown: Sequence[str]) -> Settings:
    """Return the settings of files and options; one ValueError names all problems."""
    values: dict[str, Any] = {}
    for file in options["file"]:
        values |= _read(file)
    values |= {name: options[name] for name in kind.defaults() if name in options}
    missing = [name for name, value in values.items() if value == _MISSING]
    lines = [f"{_spellings(name)[0]} needs a value: {_spellings(name)[0]} VALUE" for name in missing]
    values = {name: value for name, value in values.items() if name not in missing}
    before = ""
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
    values = yaml_file(file)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold lines such as 'epochs: 10', not {str(values)[:40]!r}")
    return values


if __name__ == "__main__":
    sys.exit(main())
