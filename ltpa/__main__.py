"""The command line: `python -m ltpa COMMAND ...`; each command is a module with `add_arguments` and `main`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {  # name: (module, what it does)
    "table": ("cost", "parameters, operations and time of the models: the table of the README"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; what a user can mend is told in a line or two, without a traceback.

    Returns:
        the exit status: 0, or 1 after an error.
    """
    parser = argparse.ArgumentParser(prog="python -m ltpa", description="Attention CNNs you can look into.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        implementation = importlib.import_module(f".{module}", __package__)
        implementation.add_arguments(command)
        command.set_defaults(main=implementation.main)
    chosen = parser.parse_args(arguments)
    try:
        chosen.main(chosen)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
