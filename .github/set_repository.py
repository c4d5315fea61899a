"""Writes the repository's address, `owner/name`, over the old one everywhere it stands.

The old address is the one in `[project.urls]` of pyproject.toml. What is replaced is that address in links to GitHub,
Colab and GitHub Pages; further, whatever stands as a placeholder (an owner that begins with an underscore), in a
Colab link to a notebook of this repository, in an instruction that installs this package, or in CITATION.cff. So a
run that was broken off, or files merged from a fork, come right again. Links to other repositories stay. The sentence
that badges and pictures do not work yet goes.
"""

import argparse
import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# pyproject.toml comes last, because it names the old address: until it is written, a broken-off run can be repeated.
PLACES = (
    "*.md",
    "docs/**/*.md",
    "docs/llms.txt",
    "notebooks/*.md",
    "notebooks/*.ipynb",
    "ltpa/**/*.py",
    "CITATION.cff",
    "pyproject.toml",
)

OWNER = r"(?P<owner>[A-Za-z0-9_][A-Za-z0-9_-]*)"
# The name ends before ".git", before a full stop that ends a sentence, and before all that no name can contain.
NAME = r"(?P<name>[A-Za-z0-9._-]*?[A-Za-z0-9_-])(?:(?=\.git(?![\w-]|\.[\w-]))|(?![\w-]|\.+[\w-]))"
SITE = r"(?:api\.github\.com/repos/|(?<![\w-])github\.com[/:]|raw\.githubusercontent\.com/|/github/)"
LINK = re.compile(rf"(?P<before>{SITE}){OWNER}(?P<between>/){NAME}", re.ASCII)
PAGES = re.compile(rf"(?P<before>(?<![\w.-])){OWNER}(?P<between>\.github\.io/){NAME}", re.ASCII)

# Text before and after a link that makes it one to this repository, whatever owner and name it has.
INSTALLS = re.compile(r"\bltpa(?:\[[\w, -]*\])?\s*@\s*(?:git\+)?https://\Z")
DECLARES = re.compile(r"(?:\brepository-code:\s*[\"']?|\bRepository\s*=\s*\")https://\Z")
NOT_YET = re.compile(
    r'^[ \t]*"?\*The (?:link|badges?(?: and the picture)?) works? once this repository is published\.\*(?:\\n",)?\r?\n',
    re.MULTILINE,
)
NOTEBOOK = re.compile(r"/blob/[^/\s]+/(notebooks/[\w.-]+\.ipynb)")


def current_address() -> str:
    """The address in pyproject.toml, as "owner/name"."""
    try:
        url = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
        match = LINK.search(url)
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        sys.exit(f"pyproject.toml has no readable [project.urls] Repository: {error!r}")
    if match is None:
        sys.exit(f'pyproject.toml: Repository = "{url}" is not like "https://github.com/owner/name".')
    return f"{match['owner']}/{match['name']}"


def checked(address: str) -> str:
    """The address, if GitHub allows such a one; else ends the program."""
    owner, _, name = address.partition("/")
    if owner.startswith("_"):
        sys.exit(f"{address!r} is a placeholder: no owner on GitHub begins with an underscore.")
    owner_fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,38}", owner)
    name_fits = re.fullmatch(r"[A-Za-z0-9._-]{0,99}[A-Za-z0-9_-]", name)
    if not (owner_fits and name_fits) or name.lower().endswith(".git"):
        sys.exit(f'{address!r} is no repository: give owner/name, without "https://github.com/" and without ".git".')
    return address


def rewrite(text: str, old: str, new: str) -> str:
    """The text with `new` for every address of this repository, and nothing else changed."""
    new_owner, new_name = new.split("/")

    def replace(match: re.Match[str]) -> str:
        before, after = text[max(0, match.start() - 200) : match.start()], NOTEBOOK.match(text, match.end())
        ours = (
            f"{match['owner']}/{match['name']}".casefold() == old.casefold()
            or match["owner"].startswith("_")
            or INSTALLS.search(before)
            or DECLARES.search(before)
            or (before.endswith("colab.research.google.com") and after and (ROOT / after[1]).is_file())
        )
        return f"{match['before']}{new_owner}{match['between']}{new_name}" if ours else match[0]

    for pattern in (LINK, PAGES):
        text = pattern.sub(replace, text)
    return text if new_owner.startswith("_") else NOT_YET.sub("", text)


def rewrite_files(old: str, new: str, *, dry_run: bool) -> list[str]:
    """Rewrites all files, or with `dry_run` none; returns those whose content changes."""
    changed = []
    for place in PLACES:
        for path in sorted(ROOT.glob(place)):
            content = path.read_bytes()  # Not read_text: line endings must stay as they are.
            rewritten = rewrite(content.decode("utf-8"), old, new).encode("utf-8")
            if rewritten != content:
                changed.append(path.relative_to(ROOT).as_posix())
                if not dry_run:
                    path.write_bytes(rewritten)
    return changed


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(description="Writes the repository's address everywhere it stands.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("repository", nargs="?", help="owner/name; without it, the environment's GITHUB_REPOSITORY")
    what.add_argument("--check", action="store_true", help="only list the files that disagree with pyproject.toml")
    arguments = parser.parse_args()
    old = current_address()
    if arguments.check:
        if disagreeing := rewrite_files(old, old, dry_run=True):
            print(f"Another address than {old}, the one in pyproject.toml, stands in:", *disagreeing, sep="\n")
            sys.exit(1)
        print(f"All addresses are {old}.")
        return
    address = arguments.repository if arguments.repository is not None else os.environ.get("GITHUB_REPOSITORY", "")
    if not address:
        sys.exit("Which repository? Give owner/name, or set the environment variable GITHUB_REPOSITORY.")
    new = checked(address)
    changed = rewrite_files(old, new, dry_run=False)
    print(*(changed or [f"Nothing to change: all addresses are {new} already."]), sep="\n")


if __name__ == "__main__":
    main()
