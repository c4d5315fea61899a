"""The ablation: its grid, what is missing, comparisons against plain re-computations, scripts, gradients."""

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml
from scipy import stats

import ltpa
from ltpa.course import ablation, comparison, scripts
from ltpa.course import global_feature as flaw
from ltpa.course.ablation import AblationConfig, Grid, Result
from ltpa.course.ablation_plot import ablation_figure, cost_figure
from ltpa.metrics.statistics import CONTRADICTED, SUPPORTED, UNDECIDED
from ltpa.models.cost import gmac
from ltpa.viz import to_png
from tests.tools.tiny_grid import GRID

TINY = {**GRID, "models": ["vgg-late", "vgg-att3-concat-pc", "vgg-att3-concat-dp sigmoid"], "seeds": [3, 0]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the runs of a tiny grid, and the grid."""
    folder = tmp_path_factory.mktemp("ablation")
    here = os.getcwd()
    os.chdir(folder)
    try:
        config = AblationConfig(**TINY)
        ablation.train_missing(config)
        return folder, ablation.collect(config)
    finally:
        os.chdir(here)


# The grid


def test_the_grid_goes_seed_by_seed_with_the_settings_of_plain_runs():
    cells = AblationConfig(**TINY).grid()
    assert [(cell.variant, cell.seed) for cell in cells] == [(m, s) for s in (3, 0) for m in TINY["models"]]
    last = cells[-1].config
    shared = {key: TINY[key] for key in ("width", "train_limit", "test_limit", "epochs", "batch_size", "device")}
    assert last == ltpa.TrainConfig(
        model="vgg-att3-concat-dp", normalizer="sigmoid", dataset="shapes", learning_rate=0.05, seed=0, **shared
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"models": ["vgg-lat"], "epochs": 0}, ValueError, "models: unknown model 'vgg-lat': did you mean 'vgg-late'"),
        ({"models": ["vgg-late", "vgg-gap hard"]}, ValueError, "unknown normalizer 'hard' of vgg-gap"),
        ({"models": ["vgg-late", "vgg-late softmax"]}, ValueError, "models names a variant twice"),
        ({"models": "vgg-late"}, TypeError, "models must be a list of names"),
        ({"models": []}, TypeError, "models must be a list of names"),
        ({"baseline": "vgg"}, ValueError, "baseline='vgg': .*known: vgg-late"),
        ({"seeds": [0, 0]}, ValueError, "seeds has a number twice"),
        ({"seeds": [0.5]}, TypeError, "seed must be a whole number"),
        ({"seeds": 3}, TypeError, "seeds must be a list"),
        ({"budget": -1}, ValueError, "budget must be 0 or more minutes, or None"),
        ({"budget": math.inf}, ValueError, "budget must be 0 or more minutes, or None"),
        ({"budget": "ten"}, TypeError, "budget must be a number"),
        ({"data_name": 3}, TypeError, "data_name must be a name, not 3"),
        ({"data_name": ""}, ValueError, "data_name must not be empty"),
    ],
)
def test_bad_parameters_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        AblationConfig(**{**TINY, **changes})


def test_all_problems_come_in_one_message():
    with pytest.raises(ValueError, match=r"(?s)models: unknown.*seeds must.*epochs must"):
        AblationConfig(**{**TINY, "models": ["vg"], "seeds": None, "epochs": 0})


def test_the_grid_is_found_again_and_not_trained_twice(trained, monkeypatch, capsys):
    folder, grid = trained
    monkeypatch.chdir(folder)
    assert [result.cell for result in grid.results] == grid.config.grid()
    assert grid.complaints() == "all 6 runs are there"
    monkeypatch.setattr(ablation, "fit", lambda *_: pytest.fail("trained again"))
    ablation.train_missing(grid.config)
    assert capsys.readouterr().out == ""


def test_results_are_those_of_the_runs(trained):
    for result in trained[1].results:
        assert result.accuracy == pytest.approx(result.run.history[-1]["test_accuracy"], abs=1e-12)
        assert result.correct.shape == (40,)
        levels = [] if result.cell.variant == "vgg-late" else ["conv7", "conv10", "conv13"]
        assert list(result.entropies) == levels
        assert result.seconds == result.run.history[0]["seconds"]


def test_what_is_missing_unfinished_or_broken_is_named_and_left_out(trained, monkeypatch, tmp_path, capsys):
    folder, whole = trained
    subprocess.run(["cp", "-r", str(folder / "runs"), str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    paths = [cell.config.path for cell in whole.config.grid()]
    (paths[0] / "weights.safetensors").write_bytes(b"not weights")
    (paths[1] / "history.csv").unlink()
    settings = json.loads((paths[2] / "config.json").read_text())
    (paths[2] / "config.json").write_text(json.dumps({**settings, "width": 0.5}))
    settings = json.loads((paths[3] / "config.json").read_text())
    (paths[3] / "config.json").write_text(json.dumps({**settings, "classes": ["a"] * 10}))
    subprocess.run(["rm", "-r", str(paths[4])], check=True)
    grid = ablation.collect(whole.config)
    assert [result.cell for result in grid.results] == whole.config.grid()[5:]
    reasons = list(grid.missing.values())
    for reason, words in zip(
        reasons, ["is damaged", "history.csv missing", "does not fit", "other classes", "not trained"], strict=True
    ):
        assert words in reason
    assert grid.complaints().startswith("5 of 6 runs are left out:\n  vgg-late, seed 3: ")
    assert comparison.compare(grid) == []
    assert "Nothing can be concluded" in comparison.conclusion({"vgg-late": []})
    # Training what is missing trains what lacks a file, says what it cannot use, and goes on.
    ablation.train_missing(whole.config)
    told = capsys.readouterr().out
    assert told.count("left out: ") == 2
    found = [result.cell for result in ablation.collect(whole.config).results]
    assert found == [whole.config.grid()[i] for i in (1, 4, 5)]


def test_a_run_that_is_not_finished_is_named(trained, monkeypatch):
    folder, grid = trained
    monkeypatch.chdir(folder)
    cell = grid.config.grid()[0]
    longer = replace(cell, config=replace(cell.config, run_dir=str(cell.config.path), epochs=3))
    monkeypatch.setattr(ltpa.Run, "complete", False)
    images = ltpa.training.run.fingerprint(ltpa.data_for(cell.config))
    assert ablation._found(cell, images)[1].endswith("has 1 of 1 epochs")
    assert "other settings" in ablation._found(longer, images)[1]


def test_runs_that_were_trained_on_other_images_are_left_out(trained, monkeypatch, capsys):
    folder, grid = trained
    monkeypatch.chdir(folder)
    data = ltpa.data_for(grid.config.grid()[0].config)
    pixels = data.train.images.clone()
    pixels[0, 0, 0, 0] ^= 1
    other = replace(data, train=replace(data.train, images=pixels))
    found = ablation.collect(grid.config, other)
    assert found.results == []
    assert all("was trained on other images" in why for why in found.missing.values())
    ablation.train_missing(grid.config, other)
    assert capsys.readouterr().out.count("left out: the run folder") == 6


def test_the_budget_ends_the_training_and_says_what_is_left(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    done = []
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(ablation.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(ablation, "fit", lambda config, data: done.append(config))
    ablation.train_missing(AblationConfig(**TINY, budget=4))
    assert 1 <= len(done) < 6
    assert f"{6 - len(done)} runs are not trained" in capsys.readouterr().out
    done.clear()
    ablation.train_missing(AblationConfig(**TINY, budget=0))
    assert done == []


def test_a_run_that_diverges_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tried = []

    def diverge(config, data):
        tried.append(config)
        raise ltpa.TrainingDiverged("the loss is not finite")

    monkeypatch.setattr(ablation, "fit", diverge)
    ablation.train_missing(AblationConfig(**TINY))
    assert len(tried) == 6
    assert capsys.readouterr().out.count("left out: the loss is not finite") == 6


# Comparisons


def made_up(accuracies, images=1000, baseline="vgg-late"):
    """A grid of results with such accuracies, {variant: {seed: accuracy}}; wrong are the last images."""
    config = AblationConfig(models=list(accuracies), seeds=[0, 1, 2, 3], baseline=baseline)
    grid = Grid(config)
    for cell in config.grid():
        if cell.seed in accuracies[cell.variant]:
            correct = torch.arange(images) < round(accuracies[cell.variant][cell.seed] * images)
            grid.results.append(Result(cell, None, correct))
    return grid


def test_comparisons_are_paired_by_seed():
    grid = made_up(
        {
            "vgg-late": {0: 0.70, 1: 0.75, 2: 0.72},
            "vgg": {0: 0.78, 1: 0.84, 2: 0.79, 3: 0.99},
            "vgg-gap": {1: 0.65, 2: 0.61},
        }
    )
    first, second = comparison.compare(grid)
    assert (first.variant, second.variant) == ("vgg", "vgg-gap")
    assert first.differences == pytest.approx({0: 0.08, 1: 0.09, 2: 0.07})
    assert second.differences == pytest.approx({1: -0.10, 2: -0.11})
    values = np.array([0.08, 0.09, 0.07])
    low, high = stats.t.interval(0.975, 2, loc=0.08, scale=stats.sem(values))
    assert (first.over_seeds.mean, first.over_seeds.low, first.over_seeds.high) == pytest.approx((0.08, low, high))
    assert first.over_images.mean == pytest.approx(0.08)
    assert first.verdict == SUPPORTED
    assert second.verdict == UNDECIDED, "two seeds and a wide interval"
    assert second.over_images.high < 0


def test_over_images_is_the_bootstrap_of_the_mean_difference():
    grid = made_up({"vgg-late": {0: 0.5, 1: 0.5}, "vgg": {0: 0.5, 1: 0.5}})
    draw = torch.Generator().manual_seed(0)
    grid.results = [Result(r.cell, None, torch.rand(400, generator=draw) < 0.6) for r in grid.results]
    by_cell = {(r.cell.variant, r.cell.seed): r.correct.double() for r in grid.results}
    values = sum(by_cell["vgg", seed] - by_cell["vgg-late", seed] for seed in (0, 1)) / 2
    (found,) = comparison.compare(grid)
    spread = values.std().item() / 20
    assert found.over_images.mean == pytest.approx(values.mean().item())
    assert found.over_images.low == pytest.approx(values.mean().item() - 1.96 * spread, abs=0.15 * spread)
    assert found.over_images.high == pytest.approx(values.mean().item() + 1.96 * spread, abs=0.15 * spread)


def test_another_baseline():
    grid = made_up({"vgg-late": {0: 0.7, 1: 0.7}, "vgg": {0: 0.8, 1: 0.8}})
    (found,) = comparison.compare(grid, "vgg")
    assert found.variant == "vgg-late"
    assert found.differences == pytest.approx({0: -0.1, 1: -0.1})


def test_two_baselines_share_one_correction_and_a_pair_is_compared_once(tmp_path):
    seeds = {"vgg-late": (0.70, 0.72, 0.71), "vgg-gap": (0.73, 0.76, 0.75), "vgg": (0.60, 0.65, 0.62)}
    grid = made_up({name: dict(enumerate(values)) for name, values in seeds.items()})
    found = comparison.compare_with_each(grid, ["vgg-late", "vgg", "vgg-late"])
    assert {baseline: [c.variant for c in of] for baseline, of in found.items()} == {
        "vgg-late": ["vgg-gap", "vgg"],
        "vgg": ["vgg-gap"],
    }
    against = found["vgg"][0]
    assert against.differences == pytest.approx({0: 0.13, 1: 0.11, 2: 0.13})
    values = np.array([0.13, 0.11, 0.13])
    low, high = stats.t.interval(1 - 0.05 / 3, 2, loc=values.mean(), scale=stats.sem(values))
    assert (against.over_seeds.low, against.over_seeds.high) == pytest.approx((low, high))
    alone = comparison.compare(grid)[0].over_seeds
    assert found["vgg-late"][0].over_seeds.low < alone.low, "three intervals together are wider than two"

    text = " ".join(comparison.conclusion(found).split())
    assert "With 3 seeds, 3 comparisons" in text
    assert "And better than vgg: vgg-gap (+12.3 points); worse: none;" in text
    assert (
        comparison.accuracy_table(grid, found["vgg"], "vgg")
        .splitlines()[0]
        .endswith("minus vgg: over seeds, over test images")
    )
    rows = list(csv.DictReader(comparison.write_effects(grid, found, tmp_path).open()))
    assert [(row["model"], row["baseline"]) for row in rows] == [
        ("vgg-gap", "vgg-late"),
        ("vgg", "vgg-late"),
        ("vgg-gap", "vgg"),
    ]
    assert float(rows[2]["effect"]) == pytest.approx(values.mean(), abs=1e-6)


def test_a_baseline_without_results_is_compared_with_nothing():
    grid = made_up({"vgg-late": {0: 0.7, 1: 0.7}, "vgg-gap": {0: 0.8, 1: 0.8}})
    found = comparison.compare_with_each(grid, ["vgg-late", "vgg"])
    assert found["vgg"] == []
    assert found["vgg-late"] == comparison.compare(grid)
    assert "vgg:" not in comparison.conclusion(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "shapes"),
        ({"dataset": "folder", "data_dir": "my/birds"}, "folder birds"),
        ({"dataset": "folder", "data_dir": "my/birds", "data_name": "birds of Kent"}, "birds of Kent"),
    ],
)
def test_the_data_are_called_what_the_parameters_say(changes, words):
    config = AblationConfig(**{**TINY, **changes})
    assert config.data_described() == words
    (row,) = comparison.effect_rows("c", Grid(config), {"accuracy": [made_up_comparison()]})
    assert row["data"] == words
    assert "data_name" not in config.common()
    (row,) = comparison.effect_rows("c", Grid(config), {"accuracy": [made_up_comparison()]}, data=f"{words} to digits")
    assert row["data"] == f"{words} to digits"


def made_up_comparison():
    interval = comparison.Interval(0.1, 0.0, 0.2, 2)
    return comparison.Comparison("vgg", {0: 0.1, 1: 0.1}, interval, interval, UNDECIDED)


def test_the_conclusion_says_what_the_numbers_say():
    seeds = range(4)
    grid = made_up(
        {
            "vgg-late": dict.fromkeys(seeds, 0.7),
            "vgg": {s: 0.8 + (s - 1.5) / 1000 for s in seeds},
            "vgg-gap": {s: 0.6 + (s - 1.5) / 1000 for s in seeds},
            "vgg-pan": {s: 0.701 + (s - 1.5) / 1000 for s in seeds},
            "resnet164": {s: 0.725 + (s - 1.5) / 20 for s in seeds},
        },
        images=100_000,
    )
    found = comparison.compare(grid)
    assert [c.verdict for c in found] == [SUPPORTED, CONTRADICTED, CONTRADICTED, UNDECIDED]
    text = " ".join(comparison.conclusion({"vgg-late": found}).split())
    assert "With 4 seeds, 4 comparisons" in text
    assert "better than vgg-late: vgg (+10.0 points); worse: vgg-gap (-10.0 points);" in text
    assert "if at all: vgg-pan (+0.1 points); not decidable at this budget: resnet164 (+2.5 points)." in text
    table = comparison.accuracy_table(grid, found).splitlines()
    assert len(table) == 6
    assert table[1].split() == ["vgg-late", "4", "70.0", "[70.0,", "70.0]"]
    assert table[2].startswith("vgg        ")
    assert table[2].endswith("  supported")


def test_tables_figure_and_csv_of_a_real_grid(trained, tmp_path):
    _, grid = trained
    comparisons = comparison.compare(grid)
    assert len(comparison.cost_table(grid).splitlines()) == 4
    open_figures = plt.get_fignums()
    figure = ablation_figure(grid, comparisons)
    assert plt.get_fignums() == open_figures
    left, right = figure.axes
    points = [line for line in left.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [2, 2, 2]
    assert list(points[0].get_xdata()) == [100 * r.accuracy for r in grid.of("vgg-late")]
    drawn = [list(line.get_xdata()) for line in right.lines if line.get_marker() == "o"]
    assert drawn == [[pytest.approx(100 * d) for d in c.differences.values()] for c in comparisons]
    assert [label.get_text() for label in left.get_yticklabels()] == TINY["models"]
    assert len(to_png(figure)) > 10_000

    by_variant, by_run = (
        list(csv.DictReader(path.open())) for path in comparison.write_csv(grid, comparisons, tmp_path)
    )
    assert [row["variant"] for row in by_variant] == TINY["models"]
    assert [(row["variant"], int(row["seed"])) for row in by_run] == [(m, s) for m in TINY["models"] for s in (3, 0)]
    for row in by_run:
        (result,) = [r for r in grid.of(row["variant"]) if r.cell.seed == int(row["seed"])]
        assert float(row["accuracy"]) == pytest.approx(result.accuracy, abs=1e-6)
        assert (row["width"], row["train_limit"], row["dataset"]) == (str(1 / 32), "64", "shapes")
    for row, found in zip(by_variant[1:], comparisons, strict=True):
        assert float(row["difference_over_seeds_low"]) == pytest.approx(found.over_seeds.low, abs=1e-6)
        assert (row["verdict"], row["baseline"], row["seeds"]) == (found.verdict, "vgg-late", "2")
    assert by_variant[0]["verdict"] == ""


def test_the_figure_of_the_costs_has_every_run(trained):
    _, grid = trained
    (axes,) = cost_figure(grid).axes
    for line, variant in zip(axes.lines, TINY["models"], strict=True):
        model = grid.of(variant)[0].run.model
        assert list(line.get_xdata()) == [1000 * gmac(model)] * 2
        assert list(line.get_ydata()) == [100 * r.accuracy for r in grid.of(variant)]
        assert line.get_label() == variant


def test_a_grid_without_any_run_says_what_to_do(trained, tmp_path, monkeypatch):
    trained[1].require_runs()
    monkeypatch.chdir(tmp_path)
    grid = ablation.collect(AblationConfig(**TINY))
    with pytest.raises(
        ValueError, match=r"(?s)there is no run to go on with; 6 of 6 runs are left out:.*set budget=None"
    ):
        grid.require_runs()


@pytest.mark.parametrize("draw", [lambda grid: ablation_figure(grid, []), cost_figure])
def test_no_run_no_figure(draw):
    with pytest.raises(ValueError, match="no run to draw"):
        draw(Grid(AblationConfig(**TINY)))


# Scripts for many machines


@pytest.fixture
def recorded(tmp_path):
    """An environment whose `papermill` writes down its arguments; and a function that reads what it was called with."""
    fake = tmp_path / "bin" / "papermill"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ncat >/dev/null\nfor a in "$@"; do printf "%s\\n" "$a"; done >>{tmp_path}/calls\n')
    fake.chmod(0o755)

    def calls():
        words = (tmp_path / "calls").read_text().splitlines()
        starts = [i for i, word in enumerate(words) if word == "notebooks/01_train.ipynb"]
        return [words[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]

    return {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}, calls


def config_of(call):
    """The settings that notebook 01 makes of papermill's arguments."""
    names, values = call[3::3], call[4::3]
    assert call[2::3] == ["-p"] * len(names)
    return ltpa.TrainConfig(
        **{n: yaml.safe_load(v) if v != "None" else None for n, v in zip(names, values, strict=True)}
    )


def test_the_shell_script_calls_papermill_once_a_run(recorded):
    environment, calls = recorded
    config = AblationConfig(**TINY, dataset="folder", data_dir="my photos/it's")
    subprocess.run(["bash", "-euc", scripts.commands(config)], env=environment, check=True, timeout=60)
    found = calls()
    assert [config_of(call) for call in found] == [cell.config for cell in config.grid()]
    assert [config_of(call).path for call in found] == [cell.config.path for cell in config.grid()]
    assert len({call[1] for call in found}) == len(found), "an output each"


@pytest.mark.parametrize(
    ("where", "variable"), [("slurm", "SLURM_ARRAY_TASK_ID"), ("kubernetes", "JOB_COMPLETION_INDEX")]
)
def test_array_jobs_train_the_run_of_their_number(where, variable, recorded):
    environment, calls = recorded
    config = AblationConfig(**TINY)
    script = scripts.commands(config, where)
    if where == "kubernetes":
        job = yaml.safe_load(script)["spec"]
        assert job["completions"] == 6
        container = job["template"]["spec"]["containers"][0]
        command = [*container["command"], *container["args"]]
    else:
        assert "#SBATCH --array=0-5" in script
        command = ["bash", "-c", script]
    for number in range(6):
        subprocess.run(command, env={**environment, variable: str(number)}, check=True, timeout=60)
    assert [config_of(call) for call in calls()] == [cell.config for cell in config.grid()]


def test_unknown_places_are_refused():
    with pytest.raises(ValueError, match="did you mean 'slurm'"):
        scripts.commands(AblationConfig(**TINY), "slrm")


def test_the_parameters_of_the_scripts_are_those_of_notebook_01():
    """Also its defaults: what the script leaves out has the same value in the notebook as in `TrainConfig`."""
    import nbformat

    path = Path(__file__).parents[2] / "notebooks" / "01_train.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    namespace = {}
    exec(next(c.source for c in cells if "parameters" in c.metadata.get("tags", [])), namespace)
    words = scripts.commands(AblationConfig(**TINY)).split()
    given = {words[i + 1] for i, word in enumerate(words) if word == "-p"}
    assert "snapshots" in given
    assert given <= set(namespace)


# Does it look at g?


def test_the_whole_model_is_the_run_with_a_branch_that_changes_nothing(trained):
    run = trained[1].of("vgg-att3-concat-pc")[0].run
    whole = flaw.whole_model(run)
    assert run.model.global_branch is None
    assert whole.global_branch is not None
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(whole(images), run.model(images), atol=1e-5)
    sigmoid = trained[1].of("vgg-att3-concat-dp sigmoid")[0].run
    assert flaw.whole_model(sigmoid) is sigmoid.model


def test_gradient_sums_are_those_of_every_parameter(trained):
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6)
    for variant, dead in (("vgg-att3-concat-pc", True), ("vgg-att3-concat-dp sigmoid", False)):
        model = flaw.whole_model(trained[1].of(variant)[0].run)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        sums = flaw.gradient_sums(model, images, labels)
        exact = model.double()
        torch.nn.functional.cross_entropy(exact(images.double()), labels).backward()
        expected = dict.fromkeys(flaw.PARTS, 0.0)
        for name, parameter in exact.named_parameters():
            part = next(part for part, start in flaw.PARTS.items() if name.startswith(start))
            expected[part] += 0.0 if parameter.grad is None else parameter.grad.abs().sum().item()
        model.zero_grad(set_to_none=True)
        model.float()
        assert sums == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        branch = sums["conv14, conv15"] + sums["fc, which gives g"]
        assert (branch < 1e-10 * sums["conv1 to conv13"]) == dead
        assert sums["attention"] > 0
        table = flaw.gradient_table({variant: sums, "without": {"classifier": 1.0}})
        assert "none" in table
        assert len(table.splitlines()) == 3


def test_maps_with_another_global_feature(trained):
    images = (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).byte()
    models = {"pc": trained[1].of("vgg-att3-concat-pc")[0].run.model}
    models["dp"] = trained[1].of("vgg-att3-concat-dp sigmoid")[0].run.model
    maps = flaw.exchanged_maps(models, images, "conv10")
    assert list(maps) == ["pc, own g", "pc, other g", "dp, own g", "dp, other g"]
    assert torch.equal(maps["pc, own g"], maps["pc, other g"])
    assert flaw.change(maps["pc, own g"], maps["pc, other g"]) == 0
    own = ltpa.attend(models["dp"], images, "fp32")
    model = models["dp"]
    local = model.trunk(model.normalize(images.float() / 255))["conv10"]
    _, expected, _ = model.attention["conv10"](local, own.global_feature.roll(1, 0))
    assert torch.allclose(maps["dp, other g"], expected, atol=1e-6)
    assert 0 < flaw.change(maps["dp, own g"], maps["dp, other g"]) < 1


def test_change_is_the_part_of_the_attention_that_moves():
    a = torch.tensor([[[0.5, 0.5], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]])
    b = torch.tensor([[[0.5, 0.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 3.0]]])
    assert flaw.change(a, a) == 0
    assert flaw.change(a, b) == pytest.approx((0.5 + 1.0) / 2)


def test_importing_the_ablation_needs_no_scipy():
    program = "import sys; sys.modules['scipy'] = None; import ltpa.course.ablation, ltpa.course.comparison\n"
    program += "import ltpa.metrics.statistics as s\n"
    program += "try: s.t_interval([1, 2])\nexcept ImportError as error: print(error)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "confidence intervals need scipy: pip install 'ltpa[notebooks]'"
