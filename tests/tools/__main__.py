"""What maintainers run: `python -m tests.tools COMMAND ...`; a command is a module with `add_arguments`, `main`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import ltpa  # noqa: F401 - before a command loads torch, as in a program of a user

COMMANDS = {  # name: (module, what it does)
    "ablation": ("ablation", "the measurement of docs/results/03_ablation.md: its trainings, tables and figures"),
    "dead-branch": ("dead_branch", "the proof that a branch of the paper's main model never learns, and its picture"),
    "benchmark": ("benchmark", "training speed beside a plain loop and beside what the machine can do"),
    "covers": ("covers", "the picture at the top of each notebook, from executed copies"),
    "maps": ("maps", "the maps of a sweep, measured: the tables and the figure of docs/results/04_map_quality.md"),
    "models": ("model_table", "parameters, operations and time of the models, as a table"),
    "notebook": ("notebook", "a notebook without Jupyter, its figures as files"),
    "pack": ("pack", "make weights that come with the package from a run: measured, with a model card"),
    "pictures": ("pictures", "the pictures in docs that the shipped weights make"),
    "recipe": ("recipe", "what each part of the training recipe is worth, on one GPU"),
    "results": ("results", "the tables in docs/results, from the effects that the notebooks wrote"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; errors that the user can mend are one or two lines, without a traceback.

    Returns:
        the exit status: 0, 1 after an error, or 130 after Ctrl-C; wrong use of a command exits with 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools", description="What maintainers of ltpa run.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        implementation = importlib.import_module(f".{module}", __package__)
        implementation.add_arguments(command)
        command.set_defaults(main=implementation.main, takes_unknown=getattr(implementation, "TAKES_UNKNOWN", False))
    chosen, chosen.unknown = parser.parse_known_args(arguments)
    if chosen.unknown and not chosen.takes_unknown:
        parser.error(f"unrecognized arguments: {' '.join(chosen.unknown)}")
    try:
        chosen.main(chosen)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of the processes of a machine, one tells
            print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
