"""The measurement of 03: its plan, the choice of rates, the page from results that are made up, one real training."""

import json
import shutil
from collections import Counter

import pandas as pd
import pytest
import torch
from PIL import Image

import ltpa
from ltpa.config import TrainConfig
from ltpa.course.ablation import CONTRASTS
from ltpa.metrics.statistics import COLUMNS, packed, unpacked
from tests.tools import ablation, ablation_page
from tests.tools.__main__ import main

RATES = dict.fromkeys(ablation.PRIMARY, 0.06)


def test_the_plan_is_that_of_the_page():
    page = (ablation_page.DOCS / "results" / "03_ablation.md").read_text("utf-8")
    assert all(f"`{name}`" in page for name in ablation.PRIMARY)
    assert {name for _, *pair in CONTRASTS for name in pair} <= {*ablation.PRIMARY}
    rates, runs = ablation.rate_jobs(), ablation.main_jobs(RATES)
    assert len(rates) == 5 * 3 * 2
    assert Counter(job.variant for job in runs) == {
        **dict.fromkeys(ablation.PRIMARY, 8), **dict.fromkeys(ablation.SECONDARY, 3)
    }  # fmt: skip
    assert not {job.seed for job in rates} & {job.seed for job in runs}
    assert len({job.name for job in rates + runs}) == len(rates + runs)
    for job in rates + runs:
        config = TrainConfig(**job.settings, seed=job.seed)
        assert (config.validation > 0) == (job in rates)
        assert (config.learning_rate is None) == (config.optimizer == "sgd")


def test_the_rate_is_that_of_the_highest_mean():
    def result(model, rate, seed, accuracy):
        return {"variant": model, "seed": seed, "accuracy": accuracy, "settings": {"learning_rate": rate}}

    results = [
        result("a", 0.03, 0, 0.9),
        result("a", 0.03, 1, 0.5),
        result("a", 0.06, 0, 0.8),
        result("a", 0.06, 1, 0.7),
    ]
    results += [result("b", rate, 0, 0.5) for rate in (0.12, 0.06, 0.03)]
    assert ablation.chosen_rates(results) == {"a": 0.06, "b": 0.03}


def made_up(jobs, images=400):
    """Results as `execute` writes them, with the accuracy 0.6 and more for later models."""
    names = list(dict.fromkeys(job.variant for job in jobs))
    for job in jobs:
        draw = torch.Generator().manual_seed(job.seed + 1000 * names.index(job.variant))
        correct = torch.rand(images, generator=draw) < 0.6 + 0.015 * names.index(job.variant)
        row = {
            "epoch": 1,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "test_loss": 1.0,
            "learning_rate": 0.0,
            "seconds": 2,
        }
        row |= {"test_accuracy": correct.double().mean().item(), "entropy_conv7": 0.9}
        yield {
            **{"variant": job.variant, "seed": job.seed, "settings": job.settings, "device": "a GPU", "torch": "2"},
            **{"history": [row], "accuracy": row["test_accuracy"], "parameters": 10, "gmac": 0.05, "epochs": 1},
            **{"train_images": 50_000, "rate": job.settings.get("learning_rate", 0.1)},
            **{"images": images, "correct": packed(correct)},
        }


def test_the_page_is_made_of_the_results(tmp_path):
    for folder in ("results/data", "images"):
        (tmp_path / folder).mkdir(parents=True)
    page = tmp_path / "results" / "03_ablation.md"
    shutil.copy(ablation_page.DOCS / "results" / "03_ablation.md", page)
    rates, runs = list(made_up(ablation.rate_jobs())), list(made_up(ablation.main_jobs(RATES)))
    effects = ablation_page.write_page(rates, runs, ablation.PRIMARY, tmp_path)
    assert [(e.seeds, e.interval.n) for e in effects] == [(8, 400)] * 3
    text = page.read_text("utf-8")
    assert all(f"{e.claim}: **{e.verdict}**. `{e.model}` minus" in text for e in effects)
    accuracies, held_out = (part.partition("<!-- end of")[0] for part in text.split("ablation write` -->")[2:4])
    assert accuracies.count("| `vgg") == len(ablation.PRIMARY) + len(ablation.SECONDARY)
    assert held_out.count("| vgg") == len(ablation.PRIMARY)
    data = tmp_path / "results" / "data"
    levels = {"none": torch.arange(90) < 60, "conv7": torch.arange(90) < 50}
    ablation.write_levels_file(tmp_path, "net", levels)
    name, again = ablation.read_levels_file(tmp_path)
    assert (name, [v.tolist() for v in again.values()]) == ("net", [v.tolist() for v in levels.values()])
    ablation_page.write_levels(name, again, tmp_path)
    assert pd.read_csv(data / "single_03.csv")["effect"].tolist() == pytest.approx([1 / 9], abs=1e-6)
    assert "-11.1 [" in page.read_text("utf-8").partition("ablation levels` -->")[2]
    answers = pd.read_csv(data / "ablation_correct.csv", dtype={"correct": str})
    table = pd.read_csv(data / "ablation_runs.csv")
    for row, answer in zip(table.itertuples(), answers.itertuples(), strict=True):
        assert (row.variant, row.seed) == (answer.variant, answer.seed)
        assert row.accuracy == pytest.approx(unpacked(answer.correct, answer.images).mean())
    assert list(pd.read_csv(data / "effects_03.csv")) == list(COLUMNS)
    assert len(pd.read_csv(data / "ablation_rates.csv")) == 30
    pictures = ("03_ablation", "ablation_rates")
    assert all((tmp_path / "images" / f"{name}.png").stat().st_size > 20_000 for name in pictures)


@pytest.fixture
def folder(tmp_path):
    shapes = ltpa.load_data("shapes", train_limit=40, test_limit=20)
    for name, split in (("train", shapes.train), ("test", shapes.test)):
        for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = tmp_path / "images" / name / shapes.classes[label]
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{index}.png")
    return tmp_path / "images"


def test_a_training_writes_its_results_and_is_not_repeated(folder, tmp_path, capsys):
    shared = {"data_dir": str(folder), "train_limit": None, "test_limit": None, "epochs": 1, "batch_size": 8}
    settings = {"model": "vgg-late-norm", "width": 1 / 32, "learning_rate": 0.06}
    jobs = [ablation.Job("late", 3, settings), ablation.Job("late", 3, {**settings, "validation": 0.5})]
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    result, held_out = (ablation.execute(job, out, shared) for job in jobs)
    assert result == json.loads((out / f"{jobs[0].name}.json").read_text())
    assert result["accuracy"] == pytest.approx(unpacked(result["correct"], 20).mean())
    assert result["accuracy"] == pytest.approx(result["history"][-1]["test_accuracy"], abs=1e-6)
    assert (result["images"], result["train_images"], result["rate"]) == (20, 40, 0.06)
    assert "correct" not in held_out, "the test images are for the measured runs alone"
    assert not list((out / "runs").iterdir())
    assert ablation.execute_all(jobs, out, shared, None) == [result, held_out], "nothing is left for workers"
    assert main(["ablation", "run"]) == 1
    assert "name the folder of the images" in capsys.readouterr().err
