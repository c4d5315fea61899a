"""The tables of `docs/results/`: `python -m tests.tools results` makes them from the effects that the notebooks wrote.

Each page is written by hand except for the part between two marks. The page whose name begins with 03 gets the tables
of `data/table_03*.csv` as they are, the rows of `data/effects_03*.csv`, and those of `data/single_03*.csv`, which rest
on a single network. The overview counts the verdicts of all.
"""

import argparse
from pathlib import Path

import pandas as pd

from ltpa.metrics.statistics import COLUMNS, CONTRADICTED, SUPPORTED, UNDECIDED
from tests.tools.marks import replace_between

FOLDER = Path(__file__).parents[2] / "docs" / "results"
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED)
KINDS = ("table", "effects", "single")  # of files
BEGIN, END = "<!-- made by `python -m tests.tools results` -->", "<!-- end -->"


def read_effects(path: Path) -> pd.DataFrame:
    """Return the rows of one file; raise a ValueError that names the file when it is not one of effects."""
    effects = pd.read_csv(path)
    if missing := [column for column in COLUMNS if column not in effects]:
        raise ValueError(f"{path} is not a file of effects: it lacks {', '.join(missing)}")
    if unknown := sorted(set(effects["verdict"]) - set(VERDICTS)):
        raise ValueError(f"{path} has the verdict {unknown[0]!r}; allowed: {', '.join(VERDICTS)}")
    try:
        return effects.astype({"effect": float, "low": float, "high": float, "seeds": int, "n": int})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def effects_tables(effects: pd.DataFrame) -> str:
    """Return one table for each claim, data set and budget; what is the same in all its rows stands above it."""
    parts = []
    for (claim, data, budget, seeds), rows in effects.groupby(["claim", "data", "budget", "seeds"], sort=False):
        heading = f"**{claim}** ({data}; {budget}; {_seeds(seeds)})"
        if seeds == 1:
            heading += "\n\nThese rest on one seed: the intervals tell nothing about networks trained with another."
        table = pd.DataFrame(
            {
                "model": "`" + rows["model"] + "`",
                "against": rows["baseline"],
                "measure": rows["measure"],
                "n": rows["n"],
                "effect, points [95 %]": [_points(*row) for row in rows[["effect", "low", "high"]].to_numpy()],
                "verdict": rows["verdict"],
            }
        )
        if table["against"].nunique() == 1 and table["against"].iloc[0] == "in the measure":
            del table["against"]
        parts += [heading, _markdown(table)]
    return "\n\n".join(parts)


def overview(effects_by_page: dict[str, pd.DataFrame]) -> str:
    """Return a table with one row for each claim and number of seeds, and how many of its verdicts are of each kind."""
    rows = [
        {"claim": f"[{claim}]({page})", "seeds": seeds}
        | {word: int((rows["verdict"] == word).sum()) for word in VERDICTS}
        for page, effects in effects_by_page.items()
        for (claim, seeds), rows in effects.groupby(["claim", "seeds"], sort=False)
    ]
    return _markdown(pd.DataFrame(rows))


def pages(folder: Path = FOLDER) -> dict[Path, str]:
    """Return what the pages with generated parts should hold."""
    effects_by_page: dict[str, pd.DataFrame] = {}
    texts: dict[Path, str] = {}
    for page in sorted(folder.glob("0*.md")):
        tables, *files = (sorted((folder / "data").glob(f"{kind}_{page.name[:2]}*.csv")) for kind in KINDS)
        if any(files):
            effects = pd.concat([read_effects(file) for kind in files for file in kind])
            effects_by_page[page.name] = effects
            shown = [_markdown(pd.read_csv(table, dtype=str, keep_default_na=False)) for table in tables]
            texts[page] = "\n\n".join([*shown, effects_tables(effects)])
    if not effects_by_page:
        raise ValueError(f"there is no page with a file of effects in {folder}")
    texts[folder / "index.md"] = overview(effects_by_page)
    return {path: replace_between(path, BEGIN, text, END) for path, text in texts.items()}


def _seeds(count: int) -> str:
    return {0: "nothing trained", 1: "one seed"}.get(count, f"{count} seeds")


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, tablefmt="github", disable_numparse=True, colalign=["left"] * table.shape[1])


def _points(effect: float, low: float, high: float) -> str:
    """All measures lie between 0 and 1: their differences are given in hundredths."""
    if low != low or high != high:  # NaN: too few seeds for an interval
        return f"{100 * effect:+.1f}"
    return f"{100 * effect:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools results`."""
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page is out of date")


def main(arguments: argparse.Namespace) -> None:
    """Write the pages, or check that they are current."""
    outdated = {path: text for path, text in pages().items() if path.read_text("utf-8") != text}
    if arguments.check and outdated:
        raise ValueError(f"out of date, run `python -m tests.tools results`: {', '.join(p.name for p in outdated)}")
    for path, text in outdated.items():
        path.write_text(text, encoding="utf-8")
        print(path)
