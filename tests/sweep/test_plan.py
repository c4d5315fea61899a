"""What a sweep is before it starts: grids, files of variants, names, the check of all parameters, expected costs."""

import json
from dataclasses import replace

import pytest

from ltpa.__main__ import main
from ltpa.course import settings_of
from ltpa.sweep import plan as plans
from ltpa.sweep.cost import cost_table, expected_seconds
from ltpa.sweep.plan import fit_alone, make_plan, parse_grid, read_notebook, read_variants
from tests.test_repository import NOTEBOOKS, ROOT

TRAIN = str(ROOT / "notebooks" / "01_train.ipynb")
ABLATION = str(ROOT / "notebooks" / "03_ablation.ipynb")


def of_course(path):
    target = read_notebook(path)
    return replace(target, settings=settings_of(target.code))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=0..3", [0, 1, 2, 3]),
        ("seed=-1..1", [-1, 0, 1]),
        ("model=vgg-late, vgg-att3-concat-pc", ["vgg-late", "vgg-att3-concat-pc"]),
        ("rate=1e-2,0.5,none,true", [0.01, 0.5, None, True]),
        ("models=[a,b],['c, d']", [["a", "b"], ["c, d"]]),
        ("name='a,b',c", ["a,b", "c"]),
        ("limit=[1,2]", [[1, 2]]),
    ],
)
def test_values_of_a_grid(text, values):
    assert parse_grid([text]) == {text.partition("=")[0]: values}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], "write name=a,b,c"),
        (["seed=3..0"], "a range must go up"),
        (["seed=1,,2"], "a value is empty"),
        (["seed=1", "seed=2"], "given twice"),
        (["a b=1", "seed="], r"(?s)--grid a b.*--grid seed="),
    ],
)
def test_bad_grids(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_grid(texts)


def test_files_of_variants(tmp_path):
    (tmp_path / "v.csv").write_text("model,width\nvgg-late,0.5\nvgg,\n")
    (tmp_path / "v.yaml").write_text("- {model: vgg-late, width: 0.5}\n- {model: vgg}\n")
    expected = [{"model": "vgg-late", "width": 0.5}, {"model": "vgg"}]
    assert read_variants(str(tmp_path / "v.csv")) == read_variants(str(tmp_path / "v.yaml")) == expected
    made = make_plan(tmp_path / "out", fit_alone(), {"epochs": 2}, {"seed": [0, 1]}, expected)
    assert [record.name for record in made.records] == [
        "model=vgg-late,seed=0,width=0.5", "model=vgg-late,seed=1,width=0.5", "model=vgg,seed=0", "model=vgg,seed=1",
    ]  # fmt: skip
    assert all(record.parameters["epochs"] == 2 for record in made.records)
    for text in ("model: vgg", "[]", "- 3", "{"):
        (tmp_path / "v.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"v\.yaml"):
            read_variants(str(tmp_path / "v.yaml"))


def test_all_problems_are_named_once_before_anything_starts(tmp_path):
    grid = {"model": ["vgg-lat", "vgg-late"], "epoch": [1, 2], "width": [9, 0.5]}
    with pytest.raises(ValueError, match="vgg-lat") as error:
        make_plan(tmp_path, of_course(TRAIN), {"run_dir": "x"}, grid)
    lines = str(error.value).splitlines()
    for words in (
        "did you mean 'epochs'",
        "did you mean 'vgg-late'",
        "width must be",
        "run_dir is chosen by the sweep",
    ):
        assert sum(words in line for line in lines) == 1
    assert not list(tmp_path.iterdir())


def test_a_notebook_with_its_own_module_is_checked_by_it(tmp_path):
    """Fields together, too: this baseline is none of the models."""
    with pytest.raises(ValueError, match="baseline='vgg-late'"):
        make_plan(tmp_path, of_course(ABLATION), {"models": ["vgg", "vgg-gap"]}, {"seeds": [[0], [1]]})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_of_the_course_can_be_planned(path, tmp_path):
    target = of_course(str(path))
    assert target.settings is not None
    assert set(target.defaults) - {"runs_on_drive"} <= set(target.settings.defaults())
    (record,) = make_plan(tmp_path, target, {}, {}).records
    assert record.name == path.stem


def test_a_larger_grid_finds_what_is_done(tmp_path):
    target = of_course(TRAIN)
    first = make_plan(tmp_path, target, {"dataset": "shapes"}, {"model": ["vgg-late"], "seed": [0, 1]})
    replace(first.records[0], state="done").save(tmp_path)
    replace(first.records[1], state="failed").save(tmp_path)
    # Another order, one more seed, and a parameter that had the notebook's own value, written in another way.
    grid = {"width": ["1.0", 0.5], "seed": [0, 1, 2], "model": ["vgg-late"]}
    second = make_plan(tmp_path, target, {"dataset": "shapes"}, grid)
    assert len(second.records) == 6
    assert {record.name: record.state for record in second.records if record.state != "waiting"} == {
        "model=vgg-late,seed=0": "done", "model=vgg-late,seed=1": "failed",
    }  # fmt: skip
    assert len(second.open) == 5


def test_another_sweep_in_the_folder_is_refused(tmp_path):
    for record in make_plan(tmp_path, fit_alone(), {"epochs": 2}, {"seed": [0]}).records:
        record.save(tmp_path)
    with pytest.raises(ValueError, match=r"epochs 2 there, 3 now.*choose another --out"):
        make_plan(tmp_path, fit_alone(), {"epochs": 3}, {"seed": [0]})


def test_names_are_folders_and_different(tmp_path):
    data = {"data_dir": ["a/b", "a:b", "a_b", "x" * 300, "x" * 301]}
    names = [record.name for record in make_plan(tmp_path, fit_alone(), {}, data).records]
    assert len(set(names)) == 5
    assert names[2] == "data_dir=a_b"
    assert all("/" not in name and len(name) < 150 for name in names)


def test_costs_follow_the_runs_that_are_there(tmp_path):
    """Seconds for an image and an epoch, of the same model if there is one, else by operations."""
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    settings = {"model": "vgg-late", "width": 0.125, "image_size": 32, "dataset": "shapes", "train_limit": None}
    (run / "config.json").write_text(json.dumps({**settings, "data": {"train": 1000}}))
    (run / "history.csv").write_text("epoch,train_loss,test_accuracy,seconds\n1,1,0.5,20\n2,1,0.5,22\n3,1,0.5,90\n")
    common = {"dataset": "shapes", "width": 0.125, "epochs": 4}
    grid = {"train_limit": [500, None], "model": ["vgg-late", "vgg"]}
    made = make_plan(tmp_path / "out", fit_alone(), common, grid)
    seconds = expected_seconds(made, tmp_path / "runs")
    assert seconds["model=vgg-late,train_limit=500"] == pytest.approx(0.022 * 500 * 4)
    assert seconds["model=vgg-late,train_limit=None"] == pytest.approx(0.022 * 1000 * 4)
    assert 0 < seconds["model=vgg,train_limit=None"] < seconds["model=vgg-late,train_limit=None"] / 5
    assert set(expected_seconds(made, tmp_path / "nowhere").values()) == {None}
    replace(made.records[0], state="done").save(tmp_path / "out")
    table = cost_table(make_plan(tmp_path / "out", fit_alone(), common, grid))
    assert list(table.columns) == ["train_limit", "model", "state", "expected seconds"] or list(table.columns)[:2] == [
        "model", "train_limit",
    ]  # fmt: skip
    assert list(table["state"]) == ["done", "waiting", "waiting", "waiting"]


def test_a_dry_run_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["sweep", TRAIN, "-p", "dataset", "shapes", "--grid", "seed=0..2", "--out", "out", "--dry-run"]
    assert main(command) == 0
    assert "3 variants, 3 to be executed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "seed=0"], "name one notebook, or give --no-notebook"),
        ([TRAIN, "--no-notebook"], "name one notebook, or give --no-notebook"),
        (["nowhere.ipynb"], "nowhere.ipynb"),
        (["--no-notebook", "--epochs", "3"], "unexpected --epochs"),
        (["--no-notebook", "--workers", "0"], "--workers must be at least 1"),
        (["--no-notebook", "--grid", "epoch=3"], "did you mean 'epochs'"),
    ],
)
def test_wrong_commands(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments, "--out", "out"]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_papermill_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "papermill.inspection", None)
    with pytest.raises(ImportError, match=r"pip install 'ltpa\[sweep\]'"):
        plans.read_notebook(TRAIN)
