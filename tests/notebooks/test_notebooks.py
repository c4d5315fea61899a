"""Every notebook runs with its test parameters, and prints the same when it is run again (strict nbval)."""

import ast
import dis
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from tests.notebooks import forks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST, TRAIN, LOOK = NOTEBOOKS[:3]
# "python3" is the environment that runs the tests; LTPA_KERNEL names another one, such as Colab's.
KERNEL = os.environ.get("LTPA_KERNEL", "python3")
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
own_kernel = pytest.mark.skipif(KERNEL != "python3", reason="it needs the environment that runs the tests")


def code_of(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs_of(path: Path) -> list[Any]:
    return [output for cell in code_of(path) for output in cell.outputs]


def printed_by(path: Path) -> str:
    return "".join(output.text for output in outputs_of(path) if output.output_type == "stream")


def is_ignored(cell: Any) -> bool:
    return "nbval-ignore-output" in cell.metadata.get("tags", [])


def parameters_cell(notebook: Path) -> Any:
    return next(cell for cell in code_of(notebook) if "parameters" in cell.metadata.get("tags", []))


def defaults_of(notebook: Path) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(parameters_cell(notebook).source, namespace)
    del namespace["__builtins__"]
    return namespace


def parameters_of(notebook: Path, kind: str = "test") -> dict[str, Any]:
    return yaml.safe_load((ROOT / "notebooks" / "params" / kind / f"{notebook.stem}.yaml").read_text()) or {}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python module; `folder` takes the place of the repository, so that it has a runs/ of its own."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "LTPA_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m"]
    if KERNEL == "python3":
        env["PYTHONPATH"] = str(ROOT)
        if sys.platform == "linux":
            start = forks.command((("PYTHONPATH", str(ROOT)), ("OMP_NUM_THREADS", "1")))
            kernel = {"argv": [*start, "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "fork"}
            (folder / "kernels" / KERNEL).mkdir(parents=True, exist_ok=True)
            (folder / "kernels" / KERNEL / "kernel.json").write_text(json.dumps({**kernel, "language": "python"}))
            env["JUPYTER_PATH"] = str(folder)
    return subprocess.run([*start, *command], capture_output=True, text=True, env=env, cwd=folder)


def execute(notebook: Path, folder: Path, parameters: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a notebook with papermill, as a copy in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "values.yaml").write_text(yaml.safe_dump(parameters))
    command = ["papermill", str(notebook), str(folder / notebook.name), "-f", str(folder / "values.yaml")]
    return run([*command, "-k", KERNEL, "--no-progress-bar", "--execution-timeout", "300"], folder)


def run_again(copy: Path) -> subprocess.CompletedProcess[str]:
    """Run an executed copy again, beside the runs that it has trained, and compare the outputs."""
    return run(
        ["pytest", "--nbval", "-q", "-p", "no:cacheprovider", "--rootdir", str(copy.parent), str(copy)], copy.parent
    )


class Executions:
    """Executed copies of the notebooks and their replays, made once, two at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
        self.jobs: dict[tuple[str, Path], Future[Any]] = {}

    def start(self, kind: str, notebook: Path) -> Future[Any]:
        if (kind, notebook) not in self.jobs:
            if kind == "replay":
                self.start("copy", notebook)  # before it in the queue
            self.jobs[kind, notebook] = self.pool.submit(self._replay if kind == "replay" else self._copy, notebook)
        return self.jobs[kind, notebook]

    def _copy(self, notebook: Path) -> Path:
        folder = self.folder / notebook.stem
        result = execute(notebook, folder, parameters_of(notebook))
        assert result.returncode == 0, result.stderr[-5000:]
        return folder / notebook.name

    def _replay(self, notebook: Path) -> subprocess.CompletedProcess[str]:
        return run_again(self.jobs["copy", notebook].result())


@pytest.fixture(scope="session")
def executions(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Executions]:
    executions = Executions(tmp_path_factory.mktemp("notebooks"))
    if "PYTEST_XDIST_WORKER" not in os.environ:  # start what the selected tests need
        for kind in ("copy", "replay"):
            for item in request.session.items:
                if isinstance(item, pytest.Function) and {kind, "notebook"} <= set(item.fixturenames):
                    executions.start(kind, item.callspec.params["notebook"])
    yield executions
    executions.pool.shutdown(cancel_futures=True)


@pytest.fixture
def copy(executions: Executions, notebook: Path) -> Path:
    """The executed copy of a notebook."""
    return executions.start("copy", notebook).result()


@pytest.fixture
def replay(executions: Executions, notebook: Path) -> subprocess.CompletedProcess[str]:
    return executions.start("replay", notebook).result()


@each_notebook
def test_runs_from_top_to_bottom(notebook, copy):
    assert all(cell.execution_count for cell in code_of(copy)), "a cell without a count was not executed"
    outputs = outputs_of(copy)
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    assert all(o.metadata.get("image/png", o.metadata).get("alt", "").strip() for o in pictures), (
        "a picture lacks its text"
    )


@each_notebook
def test_reports_what_is_needed_to_repeat_it(notebook, copy):
    """Versions, device, precision, commit, and every parameter with the value that this execution had."""
    printed = printed_by(copy)
    for pattern in (r"Python 3\.\d+", r"ltpa \S+ \((commit|from) ", r"torch \d", r"device \S+ \(", r"precision \w+"):
        assert re.search(pattern, printed), pattern
    values = {**defaults_of(notebook), **parameters_of(notebook)}
    values.pop("runs_on_drive", None)
    reported = re.findall(r"^  (\w+) = (.*?)(?:  \(changed\))?$", printed, flags=re.MULTILINE)
    read = {(name, str(_plain(ast.literal_eval(text)))) for name, text in reported}
    assert {name: value for name, value in values.items() if (name, str(_plain(value))) not in read} == {}


def _plain(value: Any) -> Any:
    """1 and 1.0, lists and tuples alike."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@own_kernel
@each_notebook
def test_prints_the_same_again(notebook, copy, replay):
    compared = [cell for cell in code_of(copy) if not is_ignored(cell) and cell.outputs]
    outputs = [output for cell in compared for output in cell.outputs]
    text = "\n".join(o.text if o.output_type == "stream" else o.data.get("text/plain", "") for o in outputs)
    assert text.count("\n") >= 3, "too little is compared"
    assert replay.returncode == 0, replay.stdout[-5000:] + replay.stderr[-2000:]
    assert f"{len(code_of(copy))} passed" in replay.stdout, "nbval passes cells without a count unseen"


@own_kernel
@pytest.mark.parametrize("notebook", [TRAIN], ids=lambda path: path.stem)
def test_a_replay_notices_a_changed_digit(notebook, copy, tmp_path):
    content = nbformat.read(copy, as_version=4)
    last = next(i for i, c in enumerate(content.cells) if c.cell_type == "code" and not is_ignored(c) and c.outputs)
    content.cells = content.cells[: last + 1]
    (line,) = [output for output in content.cells[-1].outputs if output.output_type == "stream"]
    line.text = re.sub(r"(\d)(?= test images)", lambda digit: str((int(digit[1]) + 1) % 10), line.text)
    nbformat.write(content, tmp_path / "changed.ipynb")
    result = run_again(tmp_path / "changed.ipynb")
    assert result.returncode == 1
    assert "1 failed" in result.stdout


@own_kernel
@pytest.mark.parametrize("notebook", [TRAIN], ids=lambda path: path.stem)
def test_parameters_arrive(notebook, copy):
    """papermill without a tag `parameters` would have its values overwritten: the run's own record has them."""
    (config,) = (copy.parent / "runs").glob("*/config.json")
    assert json.loads(config.read_text()).items() >= parameters_of(notebook).items()


def test_bad_parameters_stop_it_at_once(tmp_path):
    """In a kernel of its own; the other mistakes are tried in this process."""
    result = execute(TRAIN, tmp_path / "run", {**parameters_of(TRAIN), "epoch": 1})
    assert result.returncode != 0
    assert "unknown parameter 'epoch': did you mean 'epochs'?" in result.stderr
    cells = code_of(tmp_path / "run" / TRAIN.name)
    injected = next(i for i, c in enumerate(cells) if "injected-parameters" in c.metadata.get("tags", []))
    assert [i for i, c in enumerate(cells) if any(o.output_type == "error" for o in c.outputs)] == [injected + 1]
    assert not list((tmp_path / "run" / "runs").iterdir())


@pytest.fixture
def run_cells(tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """A function that runs the first code cells of a notebook in this process, as papermill would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTPA_FOLDER", str(tmp_path))

    def run(notebook: Path, values: dict[str, Any], cells: int = 3) -> dict[str, Any]:
        sources = [cell.source for cell in code_of(notebook)]
        sources.insert(2, "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in values.items()))
        namespace: dict[str, Any] = {"In": [""]}
        for source in sources[: cells + 1]:
            namespace["In"].append(source)
            exec(source, namespace)
        return namespace

    return run


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": "ten", "width": -1}, r"(?s)width .*at most 4, not -1\n.*epochs must be a whole number"),
        ({"model": "vgg-att3-concat-cp"}, "did you mean 'vgg-att3-concat-pc'?"),
        ({"device": "cuda:7", "dataset": "shapes"}, "device='cuda:7': this machine has"),
        ({"dataset": "folder", "data_dir": "nowhere"}, "data_dir 'nowhere' is not a folder"),
        ({"run_on_drive": True}, "unknown parameter 'run_on_drive': did you mean 'runs_on_drive'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_parameters(wrong, message, run_cells, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_cells(TRAIN, {**parameters_of(TRAIN), **wrong}, cells=4 if "data_dir" in wrong else 3)
    assert not (tmp_path / "runs").exists()


def test_misspelt_parameters_can_be_corrected_and_other_variables_are_free(run_cells):
    from ltpa.course import training

    source = parameters_cell(TRAIN).source
    namespace = {**defaults_of(TRAIN), "epoch": 3, "drive": "/content/drive"}
    for executed in (['drive = "x"', source + "\nepoch = 3"], [source, "# Parameters\nepoch = 3"]):
        with pytest.raises(ValueError, match="unknown parameter 'epoch': did you mean 'epochs'"):
            training.parameters({**namespace, "In": ["", *executed]})
    corrected = {**namespace, "In": ["", source + "\nepoch = 3", source], "device": "cpu", "dataset": "shapes"}
    assert training.parameters(corrected).dataset == "shapes"


def test_text_becomes_a_number_at_the_door(run_cells):
    values = {**parameters_of(TRAIN), "learning_rate": "1e-2", "epochs": "3", "minutes": "none"}
    config = run_cells(TRAIN, values)["config"]
    assert (config.learning_rate, config.epochs, config.minutes) == (0.01, 3, None)


def test_without_a_gpu_the_defaults_become_the_quick_parameters(run_cells, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = run_cells(TRAIN, {"seed": 3})["config"]
    assert "There is no GPU in use" in capsys.readouterr().out
    assert (config.dataset, config.width, config.seed, config.snapshots) == ("shapes", 0.125, 3, 8)


@each_notebook
def test_set_up_on_a_machine_without_ltpa(notebook, run_cells, monkeypatch):
    """The branch that only Colab takes: it installs from the tag, and leaves no name that looks like a parameter."""
    commands = []
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda command, check: commands.append(command))
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        run_cells(notebook, {}, cells=2)
    assert [command[1:5] for command in commands] == [["-m", "pip", "install", "-q"]]
    assert commands[0][5].startswith("ltpa[notebooks] @ https://github.com/")
    run_cells(notebook, parameters_of(notebook))


def test_defaults_are_in_one_place_only():
    """The parameters' cell of 01 has TrainConfig's defaults (and keeps snapshots); the quick file is QUICK."""
    from ltpa import QUICK, TrainConfig

    defaults = TrainConfig.defaults()
    assert {name: defaults_of(TRAIN)[name] for name in defaults} == {**defaults, "snapshots": 8}
    assert parameters_of(TRAIN, "quick") == QUICK


@pytest.mark.parametrize("notebook", [LOOK], ids=lambda path: path.stem)
def test_every_section_of_02_shows_something_without_a_network(notebook, copy):
    """Only the default falls back: to weights for drawn pictures, which come with maps of every epoch."""
    printed = printed_by(copy)
    assert "instead of cifar10, drawn pictures and weights for them are shown" in printed
    assert re.search(r"^[1-9]\d* of 2000 test images are misclassified", printed, re.MULTILINE)
    assert "more than the even share" in printed
    assert len([o for o in outputs_of(copy) if "image/png" in o.get("data", {})]) >= 7
    assert not list((copy.parent / "runs").iterdir()), "nothing was trained"
    assert not (copy.parent / "data").exists(), "nothing was downloaded"


@each_notebook
def test_cells_are_in_the_same_order_everywhere(notebook):
    """Title, badge, what you learn; set-up, parameters, story, a verdict that is computed, questions."""
    cells = nbformat.read(notebook, as_version=4).cells
    title, _, install, _, parameters = cells[:5]
    parts = (f"# {notebook.stem[:2]} ", "[![Open In Colab](", "**You will learn**", "**You should know**", "**Time**")
    places = [title.source.find(part) for part in parts]
    assert places[0] == 0
    assert places == sorted(places), parts
    assert notebook.name in title.source, "the badge opens another notebook"
    assert [cell.cell_type for cell in (install, parameters)] == ["code", "code"]
    assert "parameters" in parameters.metadata.tags
    places = {
        line.removeprefix("## "): number
        for number, cell in enumerate(cells)
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    }
    assert list(places)[:2] == ["Set-up", "Parameters"]
    assert list(places)[-2:] == ["Verdict", "Questions"]
    assert any(c.cell_type == "code" for c in cells[places["Verdict"] : places["Questions"]]), "it is not computed"
    assert places["Questions"] == len(cells) - 1


@each_notebook
def test_no_cell_takes_the_name_of_a_parameter(notebook):
    """Else the cell that checks the parameters, run again, would find something else in their place."""
    names = set(defaults_of(notebook))
    for cell in code_of(notebook):
        if "parameters" not in cell.metadata.get("tags", []):
            code = compile(cell.source, notebook.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            stored = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_NAME", "STORE_GLOBAL")}
            assert not stored & names, cell.source


@pytest.mark.parametrize("number", ["03", "05", "06", "07"])
def test_notebooks_that_need_runs_check_that_there_are_some(number):
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    code = [cell.source for cell in code_of(notebook)]
    collects = next(i for i, source in enumerate(code) if ".collect(" in source)
    assert "require_runs()" in code[collects]


def exercises_of(copy: Path) -> list[str]:
    """What the checks of an executed notebook 00 printed."""
    return re.findall(r"^Exercise \d.*$", printed_by(copy), re.MULTILINE)


@pytest.mark.parametrize("notebook", [FIRST], ids=lambda path: path.stem)
def test_the_exercises_are_filled_in_for_a_teacher(notebook, copy):
    lines = exercises_of(copy)
    assert [line.partition(". ")[0] for line in lines] == [f"Exercise {i} (the solution): right" for i in range(1, 9)]
    assert "8 of 8 exercises are right" in printed_by(copy)


def test_exercises_that_are_not_filled_in_stop_nobody(tmp_path):
    """As a student runs it first: from top to bottom, at its defaults."""
    result = execute(FIRST, tmp_path, {})
    assert result.returncode == 0, result.stderr[-5000:]
    copy = tmp_path / FIRST.name
    assert all(cell.execution_count for cell in code_of(copy))
    assert not [o for o in outputs_of(copy) if o.output_type == "error" or o.get("name") == "stderr"]
    lines = exercises_of(copy)
    assert len(lines) == 8
    assert all(re.match(r"Exercise \d: not filled in yet", line) for line in lines)
    assert "0 of 8 exercises are right; not filled in: 1, 2, 3, 4, 5, 6, 7, 8" in printed_by(copy)
