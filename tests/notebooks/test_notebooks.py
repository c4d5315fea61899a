"""Every notebook runs with its test parameters, and prints the same when it is run again (strict nbval)."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What checks the parameters of a notebook, by its number: "module of ltpa:class".
KINDS = {
    "00": "course.scratch:ScratchConfig",
    "01": "config:TrainConfig",
    "02": "course.attention_maps:LookConfig",
    "03": "course.ablation:AblationConfig",
    "04": "course.map_quality:MapQualityConfig",
    "05": "course.query:AskConfig",
    "06": "course.robustness:AttackConfig",
    "07": "course.transfer:TransferConfig",
}
# "python3" is the environment that runs the tests; LTPA_KERNEL names another one, such as Colab's.
KERNEL = os.environ.get("LTPA_KERNEL", "python3")


def execute(notebook: Path, output: Path, parameters: dict, folder: Path, kernel: str = KERNEL) -> None:
    """Runs a notebook with papermill; `folder` takes the place of the repository, so that it has a runs/ of its own."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    before = dict(os.environ)
    os.environ.update(LTPA_FOLDER=str(folder))
    if kernel == "python3":
        os.environ.update(PYTHONPATH=str(ROOT))
    try:
        papermill.execute_notebook(
            notebook,
            output,
            parameters=parameters,
            kernel_name=kernel,
            progress_bar=False,
            execution_timeout=300,
            cwd=str(folder),
        )
    finally:
        os.environ.clear()
        os.environ.update(before)


def parameters_of(notebook: Path, kind: str = "test") -> dict:
    return yaml.safe_load((ROOT / "notebooks" / "params" / kind / f"{notebook.stem}.yaml").read_text()) or {}


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """Runs each notebook once: {name: path of the executed copy}."""
    copies = {}

    def run(notebook: Path) -> Path:
        if notebook not in copies:
            folder = tmp_path_factory.mktemp(notebook.stem)
            copies[notebook] = folder / notebook.name
            execute(notebook, copies[notebook], parameters_of(notebook), folder)
        return copies[notebook]

    return run


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(notebook, executed):
    cells = [cell for cell in nbformat.read(executed(notebook), as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "a cell without a count was not executed"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    assert all(o.metadata.get("image/png", o.metadata).get("alt") for o in pictures), "a picture lacks its text"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_reports_what_is_needed_to_repeat_it(notebook, executed):
    """Versions, device, precision, commit, and every parameter with the value that this execution had."""
    cells = [cell for cell in nbformat.read(executed(notebook), as_version=4).cells if cell.cell_type == "code"]
    printed = "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream")
    for pattern in (r"Python 3\.\d+", r"ltpa \S+ \((commit|from) ", r"torch \d", r"device \S+ \(", r"precision \w+"):
        assert re.search(pattern, printed), pattern
    namespace = {}
    exec(next(c.source for c in cells if "parameters" in c.metadata.get("tags", [])), namespace)
    namespace |= parameters_of(notebook)
    del namespace["__builtins__"]
    namespace.pop("runs_on_drive", None)
    reported = re.findall(r"^  (\w+) = (.*?)(?:  \(changed\))?$", printed, flags=re.MULTILINE)
    missing = {name: value for name, value in namespace.items() if (name, repr(value)) not in reported}
    assert missing == {}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.skipif(KERNEL != "python3", reason="nbval starts the kernel of the environment that it is installed in")
def test_prints_the_same_again(notebook, executed, tmp_path):
    copy = tmp_path / notebook.name
    content = nbformat.read(executed(notebook), as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "nbval passes cells without a count unseen"
    compared = [c for c in code if "nbval-ignore-output" not in c.metadata.get("tags", []) and c.outputs]
    printed = [o.text for c in compared for o in c.outputs if o.output_type == "stream"]
    assert sum(text.count("\n") for text in printed) >= 3, "too little is compared"
    nbformat.write(content, copy)
    (tmp_path / "runs").mkdir()
    env = {**os.environ, "LTPA_FOLDER": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    result = subprocess.run([*command, str(copy)], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert f"{len(code)} passed" in result.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_pictures_have_a_text_for_those_who_cannot_see_them(notebook, executed):
    outputs = [o for cell in nbformat.read(executed(notebook), as_version=4).cells for o in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
    assert all(output.metadata.get("image/png", output.metadata).get("alt", "").strip() for output in pictures)


def test_nbval_would_notice(executed, tmp_path):
    """The comparison above can fail: with one printed digit changed it does."""
    content = nbformat.read(executed(NOTEBOOKS[0]), as_version=4)
    lines = [
        output
        for cell in content.cells
        if cell.cell_type == "code" and "nbval-ignore-output" not in cell.metadata.get("tags", [])
        for output in cell.outputs
        if output.output_type == "stream" and "%" in output.text
    ]
    lines[0].text = lines[0].text.replace("%", "1 %")
    nbformat.write(content, tmp_path / "changed.ipynb")
    (tmp_path / "runs").mkdir()
    env = {**os.environ, "LTPA_FOLDER": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    result = subprocess.run([*command, "changed.ipynb"], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert result.returncode == 1
    assert "1 failed" in result.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epoch": 1}, "unknown parameter 'epoch': did you mean 'epochs'?"),
        ({"epochs": "ten", "width": -1}, "at most 4, not -1\nepochs must be a whole number"),
        ({"model": "vgg-att3-concat-cp"}, "did you mean 'vgg-att3-concat-pc'?"),
        ({"device": "cuda:7", "dataset": "shapes"}, "device='cuda:7': this machine has"),
        ({"dataset": "folder", "data_dir": "nowhere"}, "data_dir 'nowhere' is not a folder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_parameters_stop_it_at_once(wrong, message, tmp_path):
    notebook = ROOT / "notebooks" / "01_train.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        execute(notebook, tmp_path / "out.ipynb", {**parameters_of(notebook), **wrong}, tmp_path)
    assert message in caught.value.evalue
    cells = [c for c in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if c.cell_type == "code"]
    injected = next(i for i, c in enumerate(cells) if "injected-parameters" in c.metadata.get("tags", []))
    failed = next(i for i, c in enumerate(cells) if any(o.output_type == "error" for o in c.outputs))
    # What the parameters themselves show is refused in the first cell after the injected one, a missing folder in the
    # cell that reads it.
    assert failed == injected + (2 if "data_dir" in wrong else 1)
    assert not list((tmp_path / "runs").iterdir())


def test_parameters_arrive(tmp_path):
    """papermill without a tag `parameters` would have its values overwritten: the run's own record has them."""
    import json

    notebook = ROOT / "notebooks" / "01_train.ipynb"
    execute(notebook, tmp_path / "out.ipynb", {**parameters_of(notebook), "seed": 5, "run_dir": "runs/here"}, tmp_path)
    settings = json.loads((tmp_path / "runs" / "here" / "config.json").read_text())
    expected = {**parameters_of(notebook), "seed": 5}
    assert {name: settings[name] for name in expected} == expected


def test_without_a_gpu_the_defaults_become_the_quick_parameters(tmp_path):
    """The whole notebook at its defaults would train the quick model for a minute: only its first cells are run."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    content = nbformat.read(ROOT / "notebooks" / "01_train.ipynb", as_version=4)
    code = [i for i, cell in enumerate(content.cells) if cell.cell_type == "code"]
    content.cells = content.cells[: code[2] + 1]
    nbformat.write(content, tmp_path / "head.ipynb")
    execute(tmp_path / "head.ipynb", tmp_path / "out.ipynb", {"seed": 3}, tmp_path)
    text = "".join(
        o.text
        for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
        if cell.cell_type == "code"
        for o in cell.outputs
        if o.output_type == "stream"
    )
    assert "There is no GPU in use" in text
    assert "T4 GPU" in text
    assert "dataset = 'shapes'" in text
    assert "width = 0.125" in text
    assert "seed = 3" in text


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_set_up_on_a_machine_without_ltpa(notebook, monkeypatch):
    """The branch that only Colab takes: it installs from the tag, and leaves no name that looks like a parameter."""
    import ltpa.course.setup

    code = [c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(os, "chdir", lambda folder: None)
    namespace = {}
    exec(code[0], namespace)
    exec(code[1], namespace)
    assert [command[1:5] for command in commands] == [["-m", "pip", "install", "-q"]]
    assert commands[0][5].startswith("ltpa[notebooks] @ https://github.com/")
    module, _, name = KINDS[notebook.stem[:2]].partition(":")
    kind = getattr(importlib.import_module(f"ltpa.{module}"), name)
    assert ltpa.course.setup.parameters({**namespace, "In": ["", *code[:2]]}, kind) is not None


def test_misspelt_parameters_can_be_corrected_and_other_variables_are_free():
    from ltpa.config import TrainConfig
    from ltpa.course.setup import parameters

    cell = nbformat.read(ROOT / "notebooks" / "01_train.ipynb", as_version=4).cells
    source = next(c.source for c in cell if "parameters" in c.metadata.get("tags", []))
    namespace = {}
    exec(source, namespace)
    namespace |= {"epoch": 3, "drive": "/content/drive"}
    here = os.getcwd()
    try:
        with pytest.raises(ValueError, match="unknown parameter 'epoch': did you mean 'epochs'"):
            parameters({**namespace, "In": ["", 'drive = "x"', source + "\nepoch = 3"]}, TrainConfig)
        with pytest.raises(ValueError, match="unknown parameter 'epoch'"):
            parameters({**namespace, "In": ["", source, "# Parameters\nepoch = 3"]}, TrainConfig)
        corrected = ["", source + "\nepoch = 3", source]
        assert parameters({**namespace, "In": corrected}, TrainConfig).epochs == 10
    finally:
        os.chdir(here)


def test_defaults_stand_in_one_place_only():
    """The parameters' cell of 01 has TrainConfig's defaults (and keeps snapshots); the quick file is QUICK."""
    from ltpa import QUICK, TrainConfig

    cells = nbformat.read(ROOT / "notebooks" / "01_train.ipynb", as_version=4).cells
    namespace = {}
    exec(next(c.source for c in cells if "parameters" in c.metadata.get("tags", [])), namespace)
    defaults = TrainConfig.defaults()
    assert {name: namespace[name] for name in defaults} == {**defaults, "snapshots": 8}
    assert parameters_of(ROOT / "notebooks" / "01_train.ipynb", "quick") == QUICK


def test_02_at_its_defaults_needs_no_training_and_no_download(tmp_path):
    """The weights that come with ltpa, and pictures that libraries ship; what these cannot show is said."""
    execute(ROOT / "notebooks" / "02_attention_maps.ipynb", tmp_path / "out.ipynb", {}, tmp_path)
    cells = [c for c in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if c.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "weights that come with ltpa: cifar10-small" in text
    assert "cifar10 is not in data/, and may not be downloaded" in text
    assert "of the 3 that show one of its classes are right; the other 6 show none" in text
    assert text.count("No test images here: ") == 3
    assert not list((tmp_path / "runs").iterdir()), "nothing was trained"
    assert not (tmp_path / "data").exists(), "nothing was downloaded"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_stand_in_the_same_order_everywhere(notebook):
    """Title, badge, what you learn; set-up, parameters, story, a verdict that is computed, questions."""
    cells = nbformat.read(notebook, as_version=4).cells
    title, set_up, install, about_parameters, parameters = cells[:5]
    places = [
        title.source.find(words)
        for words in (
            f"# {notebook.stem[:2]} ",
            "[![Open In Colab](",
            "**You will learn**",
            "**You should know**",
            "**Time**",
        )
    ]
    assert places[0] == 0
    assert places == sorted(places), "title, badge, what you learn, what you should know, time"
    assert notebook.name in title.source, "the badge opens another notebook"
    assert set_up.source.startswith("## Set-up")
    assert about_parameters.source.startswith("## Parameters")
    assert [cell.cell_type for cell in (install, parameters)] == ["code", "code"]
    assert "parameters" in parameters.metadata.tags

    found = [
        (line.removeprefix("## "), number)
        for number, cell in enumerate(cells)
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    headings = [heading for heading, _ in found]
    assert headings[:2] == ["Set-up", "Parameters"]
    assert headings[-2:] == ["Verdict", "Questions"]
    assert len(headings) > 4, "there is no story"
    assert len(set(headings)) == len(headings)
    verdict, questions = found[-2][1], found[-1][1]
    assert any(cell.cell_type == "code" and "print(" in cell.source for cell in cells[verdict:questions])
    assert questions == len(cells) - 1
    assert re.findall(r"^\d\.", cells[-1].source, re.MULTILINE) == ["1.", "2.", "3."]
    assert "**Next**" in cells[-1].source


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_takes_the_name_of_a_parameter(notebook):
    """Else the cell that checks the parameters, run again, would find something else in their place."""
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    namespace = {}
    exec(next(c.source for c in cells if "parameters" in c.metadata.get("tags", [])), namespace)
    for cell in cells:
        if "parameters" not in cell.metadata.get("tags", []):
            trees = [node for node in ast.walk(ast.parse(cell.source)) if not isinstance(node, ast.comprehension)]
            inner = {
                id(n)
                for t in trees
                if isinstance(t, ast.ListComp | ast.DictComp | ast.SetComp | ast.GeneratorExp)
                for g in t.generators
                for n in ast.walk(g.target)
            }
            assigned = {
                n.id for n in trees if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in inner
            }
            assert not assigned & set(namespace), cell.source


@pytest.mark.parametrize("number", ["03", "05", "06", "07"])
def test_notebooks_that_need_runs_check_that_there_are_some(number):
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    code = [c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    collects = next(i for i, source in enumerate(code) if ".collect(" in source)
    assert "grid.require_runs()" in code[collects]
    assert not any("grid.results" in source for source in code[:collects])


def exercises_of(copy: Path) -> tuple[list[str], list]:
    """What the checks of an executed notebook 00 printed, and all its code cells."""
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    printed = "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream")
    return re.findall(r"^Exercise \d.*$", printed, re.MULTILINE), cells


def test_the_exercises_are_filled_in_for_a_teacher(executed):
    lines, cells = exercises_of(executed(ROOT / "notebooks" / "00_attention_from_scratch.ipynb"))
    assert [line.partition(". ")[0] for line in lines] == [f"Exercise {i} (the solution): right" for i in range(1, 9)]
    assert "8 of 8 exercises are right" in cells[-1].outputs[0].text


def test_exercises_that_are_not_filled_in_stop_nobody(tmp_path):
    """As a student runs it first: from top to bottom, at its defaults."""
    execute(ROOT / "notebooks" / "00_attention_from_scratch.ipynb", tmp_path / "out.ipynb", {}, tmp_path)
    lines, cells = exercises_of(tmp_path / "out.ipynb")
    assert all(cell.execution_count for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert len(lines) == 8
    assert all(re.match(r"Exercise \d: not filled in yet", line) for line in lines)
    assert "0 of 8 exercises are right; not filled in: 1, 2, 3, 4, 5, 6, 7, 8" in cells[-1].outputs[0].text
    modules = [o.text for cell in cells if "class Attention" not in cell.source for o in cell.outputs if "text" in o]
    assert sum("same to 1e-6" in text for text in modules) == 1, "what follows the exercises was run"
