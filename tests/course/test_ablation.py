"""The ablation: its grid, what is missing, comparisons against plain re-computations, tables, figures, gradients."""

import contextlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import ltpa
from ltpa.course import ablation, effects, global_feature
from ltpa.course import grid as grids
from ltpa.course.ablation import AblationConfig
from ltpa.metrics.crossed import crossed_difference, holm
from ltpa.metrics.statistics import (
    COLUMNS,
    CONTRADICTED,
    SUPPORTED,
    TOO_FEW_SEEDS,
    UNDECIDED,
    effects_frame,
    unpacked,
)
from ltpa.models.cost import gmac
from ltpa.sweep.plan import fit_alone, make_plan
from ltpa.viz import to_png
from ltpa.viz.words import model_in_words
from tests.tools.tiny_grid import GRID

TINY = {**GRID, "models": ["vgg-late", "vgg-att3-concat-pc", "vgg-att3-concat-dp sigmoid"], "seeds": [3, 0]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the runs of a tiny grid, and the grid."""
    folder = tmp_path_factory.mktemp("ablation")
    with contextlib.chdir(folder):
        config = AblationConfig(**TINY)
        ablation.train_missing(config)
        return folder, ablation.collect(config)


# The grid


def test_the_grid_goes_seed_by_seed_with_the_settings_of_plain_runs():
    cells = AblationConfig(**TINY).grid()
    assert [(cell.variant, cell.seed) for cell in cells] == [(m, s) for s in (3, 0) for m in TINY["models"]]
    last = cells[-1].config
    shared = {key: TINY[key] for key in ("width", "train_limit", "test_limit", "epochs", "batch_size", "device")}
    assert last == ltpa.TrainConfig(
        model="vgg-att3-concat-dp", normalizer="sigmoid", dataset="shapes", seed=0, **shared
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["vgg-lat"], "epochs": 0}, r"(?s)epochs must.*models=.*'vgg-lat': did you mean 'vgg-late'"),
        ({"models": ["vgg-late", "vgg-gap hard"]}, "unknown normalizer 'hard' of vgg-gap"),
        ({"models": ["vgg-late", "vgg-late softmax"]}, "models must be a list of one or more different values"),
        ({"models": "vgg-late"}, "models must be a list"),
        ({"baseline": "vgg"}, "baseline='vgg': .*known: vgg-late"),
        ({"seeds": [0, 0]}, "seeds must be a list of one or more different values"),
        ({"seeds": [0.5]}, "seeds must be a list, each a whole number"),
        ({"budget": math.inf}, "budget must be a number, at least 0, or None"),
        ({"data_name": ""}, "data_name must not be empty"),
    ],
)
def test_bad_parameters_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        AblationConfig(**{**TINY, **changes})


def test_the_grid_is_found_again_and_not_trained_twice(trained, monkeypatch, capsys):
    folder, grid = trained
    monkeypatch.chdir(folder)
    assert [result.cell for result in grid.results] == grid.config.grid()
    assert grid.complaints() == "all 6 runs are there"
    monkeypatch.setattr(grids, "fit", lambda *_: pytest.fail("trained again"))
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
    shutil.copytree(folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    paths = [cell.config.path for cell in whole.config.grid()]
    (paths[0] / "weights.safetensors").write_bytes(b"not weights")
    (paths[1] / "history.csv").unlink()
    settings = json.loads((paths[2] / "config.json").read_text())
    (paths[2] / "config.json").write_text(json.dumps({**settings, "width": 0.5}))
    settings = json.loads((paths[3] / "config.json").read_text())
    (paths[3] / "config.json").write_text(json.dumps({**settings, "classes": ["a"] * 10}))
    shutil.rmtree(paths[4])
    grid = ablation.collect(whole.config)
    assert [result.cell for result in grid.results] == whole.config.grid()[5:]
    reasons = list(grid.missing.values())
    for reason, words in zip(
        reasons, ["is damaged", "history.csv missing", "does not fit", "other classes", "not trained"], strict=True
    ):
        assert words in reason
    assert grid.complaints().startswith("5 of 6 runs are left out:\n  vgg-late, seed 3: ")
    # Training what is missing trains what lacks a file, says what it cannot use, and goes on.
    ablation.train_missing(whole.config)
    assert capsys.readouterr().out.count("left out: ") == 2
    found = [result.cell for result in ablation.collect(whole.config).results]
    assert found == [whole.config.grid()[i] for i in (1, 4, 5)]


def test_the_grid_of_a_sweep(trained, tmp_path, monkeypatch, capsys):
    """Its runs, models, seeds and settings take the place of the notebook's; a sweep over other settings is refused."""
    folder, whole = trained
    monkeypatch.chdir(tmp_path)
    common = {"dataset": "shapes", **{n: v for n, v in TINY.items() if n not in ("models", "seeds")}}
    variants = [{"model": "vgg-late"}, {"model": "vgg-att3-concat-dp", "normalizer": "sigmoid"}]
    for record in make_plan(Path("sweep"), fit_alone(), common, {"seed": [0, 3]}, variants).records:
        own = record.parameters
        config = whole.config.train_config(f"{own['model']} {own.get('normalizer', 'softmax')}", own["seed"])
        shutil.copytree(folder / config.path, tmp_path / "sweep" / record.name / "run")
        replace(record, state="done", run="run").save(Path("sweep"))
    config = AblationConfig.from_text({"sweep": "sweep", "epochs": 99, "baseline": "vgg-late", "device": "cpu"})
    assert (config.epochs, config.width, set(config.seeds)) == (1, 1 / 32, {0, 3})
    assert set(config.models) == {"vgg-late", "vgg-att3-concat-dp sigmoid"}
    ablation.train_missing(config)
    assert "nothing is trained" in capsys.readouterr().out
    grid = ablation.collect(config)
    assert grid.complaints() == "all 4 runs are there"
    accuracies = {(r.cell.variant, r.cell.seed): r.accuracy for r in whole.results}
    assert {(r.cell.variant, r.cell.seed): r.accuracy for r in grid.results}.items() <= accuracies.items()
    settings = json.loads((grid.results[0].run.path / "config.json").read_text())
    (grid.results[0].run.path / "config.json").write_text(json.dumps({**settings, "epochs": 2}))
    with pytest.raises(ValueError, match="differ in epochs"):
        AblationConfig.from_text({"sweep": "sweep"})


def test_a_run_that_is_not_finished_is_named(trained, monkeypatch):
    folder, grid = trained
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ltpa.Run, "complete", False)
    assert all(reason.endswith("has 1 of 1 epoch") for reason in ablation.collect(grid.config).missing.values())


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
    monkeypatch.setattr(grids.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(grids, "fit", lambda config, data: done.append(config))
    ablation.train_missing(AblationConfig(**TINY, budget=4))
    assert 1 <= len(done) < 6
    assert f"{6 - len(done)} runs not trained" in capsys.readouterr().out
    done.clear()
    ablation.train_missing(AblationConfig(**TINY, budget=0))
    assert done == []


def test_a_run_that_diverges_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tried = []

    def diverge(config, data):
        tried.append(config)
        raise ltpa.training.trainer.TrainingDiverged("the loss is not finite")

    monkeypatch.setattr(grids, "fit", diverge)
    ablation.train_missing(AblationConfig(**TINY))
    assert len(tried) == 6
    assert capsys.readouterr().out.count("left out: the loss is not finite") == 6


# Comparisons


def made_up(accuracies, images=2000):
    """Scores with such accuracies, {variant: [accuracy of each seed]}; each seed errs at places of its own."""
    draw = torch.Generator().manual_seed(0)

    def correct(accuracy):
        right = torch.arange(images) < round(accuracy * images)
        return right[torch.randperm(images, generator=draw)]

    return {name: {s: correct(a) for s, a in enumerate(values)} for name, values in accuracies.items()}


def around(accuracy, seeds=8, step=0.001):
    return [accuracy + step * (s - (seeds - 1) / 2) for s in range(seeds)]


WORDS = {"data": "shapes", "budget": "4 epochs"}
PC, ADD, UNIFORM, LATE = "vgg-att3-concat-pc", "vgg-att3-concat-add", "vgg-att3-concat-uniform", "vgg-late-norm"


def test_the_planned_contrasts_are_tested_with_holms_correction():
    scores = made_up({"vgg": around(0.2), LATE: around(0.6), UNIFORM: around(0.7), PC: around(0.712), ADD: around(0.8)})
    effects_ = ablation.compare(scores, **WORDS)
    assert [(e.model, e.baseline) for e in effects_] == [(PC, UNIFORM), (ADD, UNIFORM), (UNIFORM, LATE)]
    assert [e.claim for e in effects_] == [ablation.MAPS, ablation.MAPS, ablation.LEVELS]
    tables = {name: effects.table_of(scores[name]) for name in (PC, ADD, UNIFORM, LATE)}
    found = [
        crossed_difference(
            tables[e.model], tables[e.baseline], [t for n, t in tables.items() if n not in (e.model, e.baseline)]
        )
        for e in effects_
    ]
    assert [e.interval for e in effects_] == holm(found, effects.MARGIN)
    assert [e.verdict for e in effects_] == [UNDECIDED, SUPPORTED, SUPPORTED]
    assert {(e.seeds, e.interval.n, e.margin, e.data, e.budget) for e in effects_} == {
        (8, 2000, 0.005, "shapes", "4 epochs")
    }
    wide = made_up({LATE: around(0.6, 4, 0.02), UNIFORM: around(0.7, 4, 0.02)})
    more = made_up({"vgg-att-concat-uniform": around(0.8, 8, 0.01)})
    (alone,), (pooled,) = (
        ablation.compare({**wide, **more}, **WORDS, also=also) for also in ([], ["vgg-att-concat-uniform", "missing"])
    )
    assert alone.interval.low < pooled.interval.low
    text = " ".join(ablation.conclusion(effects_).split())
    assert "With 8 seeds, 3 comparisons" in text
    assert f"better than {UNIFORM}: {ADD} (+10.0 points); undecided: {PC} (+1.2 points). And" in text


def test_without_planned_models_all_are_compared_with_the_baseline():
    scores = made_up({"vgg-late": around(0.6, 3), "vgg": around(0.5, 3), PC: around(0.7, 4)})
    effects_ = ablation.compare(scores, **WORDS)
    assert [(e.model, e.baseline, e.seeds) for e in effects_] == [("vgg", "vgg-late", 3), (PC, "vgg-late", 3)]
    assert [e.verdict for e in effects_] == [CONTRADICTED, SUPPORTED]
    assert ablation.compare(scores, **WORDS, baseline="vgg-gap") == []
    assert "Nothing can be concluded" in ablation.conclusion([])


def test_two_seeds_and_equal_seeds_decide_nothing():
    for accuracies in ({LATE: [0.6, 0.61], UNIFORM: [0.8, 0.81]}, {LATE: [0.6] * 4, UNIFORM: [0.9] * 4}):
        (one,) = ablation.compare(made_up(accuracies), **WORDS)
        assert (one.interval.known, one.verdict) == (False, UNDECIDED)
        few = TOO_FEW_SEEDS in " ".join(ablation.conclusion([one]).split())
        assert few == (len(accuracies[LATE]) == 2)


def test_scores_of_different_images_are_not_compared():
    scores = {"vgg-late": {0: torch.rand(20)}, "vgg": {0: torch.rand(1)}}
    with pytest.raises(ValueError, match=r"vgg and vgg-late were measured on different images .*\(1,\) and \(20,\)"):
        effects.compare_scores(scores, "vgg-late", AblationConfig(**TINY), claim="c", measure="accuracy")
    with pytest.raises(ValueError, match="different images"):
        ablation.compare(scores, **WORDS)


def test_scores_are_compared_with_one_baseline_for_other_notebooks():
    scores = made_up({"vgg-late": around(0.6, 3), "vgg": around(0.5, 3), PC: around(0.7, 3)})
    config = AblationConfig(**{**TINY, "data_name": "birds of Kent"})
    found = effects.compare_scores(scores, "vgg-late", config, claim="c", measure="accuracy")
    tables = [effects.table_of(scores[name]) for name in ("vgg", "vgg-late", PC)]
    assert found[0].interval == crossed_difference(tables[0], tables[1], tables[2:]).interval(2)
    assert (found[0].data, found[0].budget) == ("birds of Kent", config.described())
    more = effects.compare_scores(scores, "vgg-late", config, claim="c", measure="accuracy", data="x", together=9)
    assert more[0].interval.low < found[0].interval.low
    assert more[0].data == "x"
    assert effects.compare_scores(scores, "vgg-gap", config, claim="c", measure="accuracy") == []


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
    assert "data_name" not in config.common()


def test_worse_equal_and_better_models_are_sorted():
    scores = made_up(
        {"vgg-late": around(0.7), "vgg": around(0.8), "vgg-gap": around(0.6), "vgg-pan": around(0.7)}, images=100_000
    )
    found = ablation.compare(scores, **WORDS)
    assert [e.verdict for e in found] == [SUPPORTED, CONTRADICTED, CONTRADICTED]
    text = effects.sorted_out(found)
    assert text.startswith("better than vgg-late: vgg (+10.0 points); worse: vgg-gap (-10.0 points);")
    assert "if at all: vgg-pan (+0.0 points)" in text
    # A difference that does not show in the digits printed is none.
    tiny = replace(found[1], interval=effects.Interval(-0.0004, -0.0005, -0.0003))
    assert "if at all: vgg-gap (+0.0 points)" in effects.sorted_out([tiny])


def test_tables_figures_and_files_of_a_real_grid(trained, tmp_path):
    _, grid = trained
    runs_ = grid.frame()
    found = ablation.compare(grid.scores(), **WORDS)
    costs = ablation.cost_table(runs_)
    assert list(costs.index) == TINY["models"]
    assert [name for name in costs if name.startswith("entropy")] == [f"entropy conv{n}" for n in (7, 10, 13)]
    accuracies = ablation.accuracy_table(runs_)
    mean = np.mean([r.accuracy for r in grid.results_of("vgg-late")])
    assert accuracies.loc["vgg-late", "accuracy, % [95 % over seeds]"] == f"{100 * mean:.1f}", "two seeds"
    open_figures = plt.get_fignums()
    figure, cost_figure = ablation.ablation_figure(runs_, found), ablation.cost_figure(runs_)
    assert plt.get_fignums() == open_figures
    left, right = figure.axes
    points = [list(line.get_xdata()) for line in left.lines if line.get_marker() == "o"]
    for drawn, variant in zip(points, TINY["models"], strict=True):
        assert drawn == pytest.approx([100 * r.accuracy for r in grid.results_of(variant)], abs=1e-4)
    means = [line.get_xdata() for line in right.lines if line.get_marker() == "|"]
    assert means == [pytest.approx([100 * e.interval.mean]) for e in found]
    names = [label.get_text().replace("\n", " ") for label in left.get_yticklabels()]
    assert names == [model_in_words(name) for name in TINY["models"]]
    for line, variant in zip(cost_figure.axes[0].lines, TINY["models"], strict=True):
        expected = 1000 * gmac(grid.results_of(variant)[0].run.model)
        assert list(line.get_xdata()) == pytest.approx([expected] * 2, abs=1e-3)
    assert min(len(to_png(f)) for f in (figure, cost_figure)) > 10_000

    paths = ablation.write_results(grid, found, tmp_path / "new")
    runs, answers, written = (pd.read_csv(path, dtype={"correct": str}) for path in paths)
    assert list(zip(runs["variant"], runs["seed"], strict=True)) == [(m, s) for m in TINY["models"] for s in (3, 0)]
    for row, packed_row in zip(runs.itertuples(), answers.itertuples(), strict=True):
        (result,) = [r for r in grid.results_of(row.variant) if r.cell.seed == row.seed]
        assert row.accuracy == pytest.approx(result.accuracy, abs=1e-6)
        assert (row.width, row.train_limit, row.dataset) == (1 / 32, 64, "shapes")
        assert (packed_row.variant, packed_row.seed) == (row.variant, row.seed)
        assert unpacked(packed_row.correct, packed_row.images).tolist() == result.correct.tolist()
    assert list(written) == list(COLUMNS)
    pd.testing.assert_frame_equal(written, effects_frame(found))


def test_a_grid_without_any_run_says_what_to_do(trained, tmp_path, monkeypatch):
    trained[1].require_runs()
    monkeypatch.chdir(tmp_path)
    grid = ablation.collect(AblationConfig(**TINY))
    with pytest.raises(ValueError, match=r"(?s)there is no run to compare; 6 of 6 runs.*set budget=None"):
        grid.require_runs()
    for draw in (lambda runs: ablation.ablation_figure(runs, []), ablation.cost_figure):
        with pytest.raises(ValueError, match="no run to draw"):
            draw(grid.frame())


# Does it look at g?


def test_the_whole_model_is_the_run_with_a_branch_that_changes_nothing(trained):
    run = trained[1].results_of("vgg-att3-concat-pc")[0].run
    whole = global_feature.whole_model(run)
    assert run.model.global_branch is None
    assert whole.global_branch is not None
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(whole(images), run.model(images), atol=1e-5)
    sigmoid = trained[1].results_of("vgg-att3-concat-dp sigmoid")[0].run
    assert global_feature.whole_model(sigmoid) is sigmoid.model


def test_gradient_sums_are_those_of_every_parameter(trained):
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6)
    for variant, dead in (("vgg-att3-concat-pc", True), ("vgg-att3-concat-dp sigmoid", False)):
        model = global_feature.whole_model(trained[1].results_of(variant)[0].run)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        sums = global_feature.gradient_sums(model, images, labels)
        exact = model.double()
        torch.nn.functional.cross_entropy(exact(images.double()), labels).backward()
        expected = dict.fromkeys(global_feature.PARTS, 0.0)
        for name, parameter in exact.named_parameters():
            part = next(part for part, start in global_feature.PARTS.items() if name.startswith(start))
            expected[part] += 0.0 if parameter.grad is None else parameter.grad.abs().sum().item()
        model.zero_grad(set_to_none=True)
        model.float()
        assert sums == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        branch = sums["conv14, conv15"] + sums["fc, which gives g"]
        assert (branch < 1e-10 * sums["conv1 to conv13"]) == dead
        assert sums["attention"] > 0
        table = ablation.gradient_table({"pc": model}, ltpa.Split(images, labels))
        assert table.loc["pc", "attention"] == f"{sums['attention']:.1e}"


def test_maps_with_another_global_feature(trained):
    images = (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).byte()
    models = ablation.attention_models(trained[1])
    assert list(models) == ["pc", "dp sigmoid"]
    models = {"late": trained[1].results_of("vgg-late")[0].run.model, "pc": models["pc"], "dp": models["dp sigmoid"]}
    maps = ablation.exchanged_maps(models, images, "conv10")
    assert list(maps) == ["pc, own g", "pc, other g", "dp, own g", "dp, other g"]
    moved = ablation.moved_attention(models, images, "conv10")["attention that moves"]
    assert moved["pc"] == pytest.approx(0, abs=1e-4)
    assert moved["dp"] == pytest.approx(global_feature.change(maps["dp, own g"], maps["dp, other g"]), abs=1e-4)
    own = ltpa.attend(models["dp"], images, "fp32")
    model = models["dp"]
    local = model.trunk(model.normalize(images.float() / 255))["conv10"]
    _, expected, _ = model.attention["conv10"](local, own.global_feature.roll(1, 0))
    assert torch.allclose(maps["dp, other g"], expected, atol=1e-6)
    assert 0 < global_feature.change(maps["dp, own g"], maps["dp, other g"]) < 1


def test_change_is_the_part_of_the_attention_that_moves():
    a = torch.tensor([[[0.5, 0.5], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]])
    b = torch.tensor([[[0.5, 0.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 3.0]]])
    assert global_feature.change(a, a) == 0
    assert global_feature.change(a, b) == pytest.approx((0.5 + 1.0) / 2)
