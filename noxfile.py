"""All chores in one place: `nox -l` lists them, `nox` runs the quick ones, `nox -s NAME` runs one.

They run in the environment that nox is installed in (`pip install -r requirements.txt`); only `ci` makes its own.
"""

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]
EXECUTED = Path("build/executed")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and the direction of imports."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package."""
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """README's tests; arguments after -- go to pytest."""
    session.run("pytest", *session.posargs)


@nox.session
def results(session: nox.Session) -> None:
    """Write the tables of docs/results from the files of effects."""
    session.run("python", "-m", "tests.tools", "results")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/docs, without executing notebooks; needs `pip install -e ".[docs]"`.

    Only the runtime of the explorer without a kernel comes from the network, once; without npm that page is left out.
    """
    session.run("sphinx-build", "-W", "-n", "-E", "-q", "docs", "build/docs")
    demo(session)
    session.run("pytest", "-q", "tests/test_docs.py", env={"LTPA_SITE": "build/docs"})


@nox.session
def demo(session: nox.Session) -> None:
    """Build the explorer without a kernel into build/docs/demo; `python -m http.server -d build/docs` shows it."""
    session.run("python", "docs/demo/build.py", "build/docs/demo")


@nox.session
def pages(session: nox.Session) -> None:
    """Execute all notebooks with their quick parameters, then build the site with their outputs."""
    EXECUTED.joinpath("runs").mkdir(parents=True, exist_ok=True)
    environment = {"LTPA_FOLDER": str(EXECUTED.resolve())}
    for notebook in sorted(Path("notebooks").glob("*.ipynb")):
        parameters = f"notebooks/params/quick/{notebook.stem}.yaml"
        command = ("papermill", str(notebook), str(EXECUTED / notebook.name), "-f", parameters)
        session.run(*command, "--cwd", str(EXECUTED), "-k", "python3", env=environment)
    os.environ["LTPA_EXECUTED"] = str(EXECUTED.resolve())
    docs(session)


@nox.session
def ci(session: nox.Session) -> None:
    """Everything, in fresh environments."""
    session.run("bash", ".ci/run")
