"""The comparison of maps: its numbers against direct computation, its words against its numbers, its pictures."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import ltpa
from ltpa import TrainConfig, create_model, explain, load_data
from ltpa.course import map_quality
from ltpa.course.map_quality import MapQualityConfig
from ltpa.course.map_quality_measure import Row, Threshold, best_threshold, cases, image_interval, jaccard, otsu
from ltpa.course.map_quality_plot import selection
from ltpa.data.dataset import Split
from ltpa.metrics import deletion_insertion, localization, permuted_attention, rank_agreement
from ltpa.metrics.statistics import COLUMNS, bootstrap_interval
from ltpa.viz import to_png
from ltpa.viz.overlay import overlay


@pytest.fixture(scope="module")
def pictures():
    test = load_data("shapes", train_limit=10, test_limit=12).test
    return test[:8], test[8:]


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    made = {"pc softmax": "vgg-att2-concat-pc", "vgg-gap": "vgg-gap"}
    return {name: create_model(model, 10, width=1 / 32).eval() for name, model in made.items()}


@pytest.fixture(scope="module")
def rows(models, pictures):
    methods = ("gradcam", "saliency", "cam")
    return map_quality.compare(models, *pictures, methods=methods, costly=3, seed=1, progress=False)


def row_of(rows, model, name):
    (row,) = [r for r in rows if (r.model, r.name) == (model, name)]
    return row


def test_every_map_of_every_model_is_a_row(rows):
    controls = ["uniform", "blurred noise", "center", "Otsu"]
    attention = ["conv10", "conv13", "Grad-CAM conv10", "Grad-CAM conv13", "saliency"]
    assert [r.name for r in rows if r.model == "pc softmax"] == [*attention, *controls]
    assert [r.name for r in rows if r.model == "vgg-gap"] == ["Grad-CAM", "saliency", "CAM", *controls]
    assert [r.kind for r in rows[:9]] == ["level"] * 2 + ["method"] * 3 + ["control"] * 4
    assert [r.family for r in rows[:9]] == ["attention"] * 2 + ["Grad-CAM"] * 2 + ["saliency", *controls]
    for r in rows:
        assert r.maps.shape == (8, 32, 32)
        assert r.values["deletion"].shape == r.values["insertion"].shape == (3,)
        assert ("ms" in r.values) == ("sanity" in r.values) == (r.kind != "control")
        assert ("permuted" in r.values) == (r.kind == "level")


def test_the_values_are_those_of_the_measures(rows, models, pictures):
    measured, held_out = pictures
    model, row = models["pc softmax"], row_of(rows, "pc softmax", "conv10")
    maps = explain(model, measured.images, "attention", layer="conv10")
    torch.testing.assert_close(row.maps, maps)
    for name, column in localization(maps, measured.masks).items():
        np.testing.assert_array_equal(row.values[name], column)
    curves = deletion_insertion(model, measured.images[:3], maps[:3], steps=10, seed=1)
    torch.testing.assert_close(row.values["insertion"], curves.insertion_area)
    torch.testing.assert_close(row.values["deletion"], curves.deletion_area)
    torch.testing.assert_close(row.curves[2], curves.insertion.mean(0))
    torch.testing.assert_close(row.values["permuted"], permuted_attention(model, measured.images[:3], seed=1)["conv10"])
    on_held_out = explain(model, held_out.images, "attention", layer="conv10")
    assert row.threshold == best_threshold(on_held_out, held_out.masks)
    torch.testing.assert_close(row.values["jaccard"], jaccard(row.threshold.mark(maps), measured.masks))
    assert row.held_out == pytest.approx(localization(on_held_out, held_out.masks)["average_precision"].mean())
    assert (next(iter(row.sanity)), list(row.sanity)[-1]) == ("head", "trunk.conv1")
    torch.testing.assert_close(row.sanity["head"], torch.ones(3))
    torch.testing.assert_close(row.values["sanity"], row.sanity["trunk.conv1"])


def test_uniform_is_the_part_that_the_object_fills(rows, pictures):
    part = pictures[0].masks.float().mean((1, 2))
    for name in ("share", "pointing", "iou", "average_precision", "jaccard"):
        torch.testing.assert_close(row_of(rows, "vgg-gap", "uniform").values[name], part)


def test_what_cannot_be_compared_is_refused(models, pictures):
    measured, held_out = pictures
    with pytest.raises(ValueError, match="masks, which these data lack"):
        map_quality.compare(models, Split(measured.images, measured.labels), held_out)
    with pytest.raises(ValueError, match="held-out ones"):
        map_quality.compare(models, measured, held_out[:0])


# --- thresholds, Otsu, intervals


def test_jaccard_is_scikit_learns():
    from sklearn.metrics import jaccard_score

    generator = torch.Generator().manual_seed(0)
    marked, masks = (torch.rand(2, 5, 6, 7, generator=generator) < 0.4).unbind()
    masks[2] = False
    values = jaccard(marked, masks)
    assert values[2].isnan()
    for i in (0, 1, 3, 4):
        assert values[i].item() == pytest.approx(jaccard_score(masks[i].flatten(), marked[i].flatten()))


def test_thresholds_mark_from_a_part_of_the_highest_or_a_multiple_of_the_mean():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 10.0]]])  # mean 4
    assert Threshold("max", 0.3).mark(maps).tolist() == [[[False, False], [True, True]]]
    assert Threshold("mean", 0.5).mark(maps).tolist() == [[[False, True], [True, True]]]
    assert Threshold("mean", 1.0).mark(torch.zeros(1, 2, 2)).all()


@pytest.mark.parametrize(("of", "factor"), [("max", 0.35), ("mean", 2.0)])
def test_the_best_threshold_finds_objects_that_a_threshold_cut_out(of, factor):
    maps = torch.rand(20, 16, 16, generator=torch.Generator().manual_seed(3)) ** 4
    masks = Threshold(of, factor).mark(maps)
    assert jaccard(best_threshold(maps, masks).mark(maps), masks).mean() == 1


def test_otsu_is_the_smaller_side_of_the_best_cut(monkeypatch):
    images = torch.full((2, 3, 32, 32), 60, dtype=torch.uint8)
    images[0, :, 4:10, 5:9] = 200  # a bright object
    images[1, :, 20:30, 3:30] = 10  # a dark one
    images = (images.int() + torch.randint(0, 9, images.shape, generator=torch.Generator().manual_seed(0))).byte()
    expected = torch.zeros(2, 32, 32)
    expected[0, 4:10, 5:9] = 1
    expected[1, 20:30, 3:30] = 1
    assert torch.equal(otsu(images), expected)
    assert (otsu(torch.full((1, 3, 32, 32), 0.5)) == 0).all()
    monkeypatch.setitem(sys.modules, "skimage.filters", None)
    with pytest.raises(ImportError, match=r"pip install 'ltpa\[notebooks\]'"):
        otsu(images)


def test_intervals_over_images_are_bootstraps_that_leave_nan_out():
    values = torch.rand(60, generator=torch.Generator().manual_seed(0))
    interval = image_interval(values, 5)
    assert interval == bootstrap_interval(values.double().numpy(), confidence=1 - 0.05 / 5, resamples=2_000)
    assert image_interval(torch.cat([values, torch.tensor([math.nan])]), 5) == interval
    assert image_interval(torch.tensor([math.nan])).n == 0


# --- effects and sentences


def made_rows(gain=0.3, goes_by=0.3, segments=0.1):
    """A model whose conv10 finds the object, is gone by, and segments better than most; Otsu and saliency beat it."""
    generator = torch.Generator().manual_seed(0)
    noise, other = (torch.rand(2, 40, generator=generator) * 0.02).unbind()

    def one(name, family, kind, precision, faithful, overlap, held_out):
        values = {
            "average_precision": precision + noise,
            "insertion": faithful + noise,
            "deletion": 0.9 - faithful + other,
            "permuted": noise,
            "jaccard": overlap + (noise if name == "conv10" else other),
        }
        return Row("pc", name, family, kind, torch.rand(40, 4, 4, generator=generator), values, held_out=held_out)

    return [  # conv7 is best where it is measured, conv10 where it is chosen
        one("conv7", "attention", "level", 0.9, 0.9, 0.9, 0.1),
        one("conv10", "attention", "level", 0.3 + gain, 0.3 + goes_by, 0.4 + segments, 0.6),
        one("Grad-CAM conv7", "Grad-CAM", "method", 0.9, 0.3, 0.9, 0.1),
        one("Grad-CAM conv10", "Grad-CAM", "method", 0.3, 0.3, 0.4, 0.5),
        one("saliency", "saliency", "method", 0.3 + 2 * gain, 0.3, 0.4, 0.5),
        one("uniform", "uniform", "control", 0.1, 0.3, 0.06, 0.2),
        one("center", "center", "control", 0.3, 0.3, 0.1, 0.2),
        one("Otsu", "Otsu", "control", 0.3, 0.3, 0.4 + 2 * segments, 0.2),
    ]


def test_object_effects_are_paired_differences_with_intervals_for_all_together():
    rows = made_rows()
    effects = map_quality.object_effects(rows, "5 epochs")
    assert [(e.baseline, e.measure, e.verdict) for e in effects] == [
        ("center", "average precision, conv10 - center", "supported"),
        ("Grad-CAM", "average precision, conv10 - Grad-CAM conv10", "supported"),
        ("saliency", "average precision, conv10 - saliency", "contradicted"),
        ("center", "insertion area, conv10 - center", "supported"),
        ("center", "deletion area, center - conv10", "supported"),
    ]
    difference = rows[1].values["average_precision"] - rows[6].values["average_precision"]
    assert effects[0].interval == image_interval(difference, 5)
    assert [e.interval.mean for e in effects] == pytest.approx([0.3, 0.3, -0.3, 0.3, 0.3], abs=1e-6)
    assert {(e.seeds, e.budget, e.interval.n) for e in effects} == {(1, "5 epochs", 40)}


def test_a_difference_that_the_table_does_not_show_decides_nothing():
    effects = map_quality.object_effects(made_rows(gain=0.0004), "")
    assert effects[0].interval.low > 0
    assert effects[0].verdict == "undecided"
    assert map_quality.effects_table(effects)["effect [interval]"][0] == "+0.000 [+0.000, +0.000]"


def test_segmentation_effects_have_a_correction_of_their_own():
    rows = made_rows()
    effects = map_quality.segmentation_effects(rows, "")
    assert [(e.baseline, e.verdict) for e in effects] == [
        ("Grad-CAM", "supported"), ("saliency", "supported"), ("Otsu", "contradicted"), ("uniform", "supported")
    ]  # fmt: skip
    assert effects[0].interval == image_interval(rows[1].values["jaccard"] - rows[3].values["jaccard"], 4)
    assert [e.baseline for e in map_quality.segmentation_effects([r for r in rows if r.kind != "method"], "")] == [
        "Otsu", "uniform"
    ]  # fmt: skip


def test_permutation_effects_are_compared_with_a_tenth():
    rows = made_rows()
    rows[0].values["permuted"] = rows[0].values["permuted"] + 0.2
    effects = map_quality.permutation_effects(rows, "")
    assert [e.verdict for e in effects] == ["supported", "contradicted"]
    assert effects[0].interval == rows[0].interval("permuted")
    table = map_quality.permutation_table(rows, effects)
    agreement = image_interval(rank_agreement(rows[1].maps, rows[4].maps)).text(2)
    assert table.loc[("pc", "conv10")].tolist() == [effects[1].interval.text(1, 100), "contradicted", agreement]
    rows[1].values["permuted"] = torch.tensor([0.0, 0.2] * 20)
    text = map_quality.describe_permutation_effects(map_quality.permutation_effects(rows, ""))
    assert text.startswith("No level")
    assert text.endswith("For 1 of 2 levels it matters where the weights lie; 1 are undecided.")


def test_the_sentences_count_the_verdicts():
    text = map_quality.describe_object_effects(map_quality.object_effects(made_rows(), ""))
    assert text.startswith("In 1 of 1 models with attention (pc) ")
    assert "Of 2 comparisons" in text
    assert "wins 1, loses 1, and 0 are undecided" in text
    text = map_quality.describe_object_effects(map_quality.object_effects(made_rows(goes_by=-0.3), ""))
    assert text.startswith("No model (pc) ")
    text = map_quality.describe_segmentation_effects(map_quality.segmentation_effects(made_rows(), ""))
    assert "than Grad-CAM in 1 of 1 models (worse in 0)" in text
    assert "than Otsu in 0 of 1 models (worse in 1)" in text


def test_without_attention_there_is_nothing_to_decide():
    rows = [row for row in made_rows() if row.kind != "level"]
    for effects, describe in (
        (map_quality.object_effects(rows, ""), map_quality.describe_object_effects),
        (map_quality.segmentation_effects(rows, ""), map_quality.describe_segmentation_effects),
        (map_quality.permutation_effects(rows, ""), map_quality.describe_permutation_effects),
    ):
        assert effects == []
        assert "nothing to decide" in describe(effects)


# --- tables


def test_the_table_has_the_means(rows):
    table = map_quality.table(rows)
    assert list(table.index) == [(r.model, r.name) for r in rows]
    assert list(table) == list(map_quality.COLUMNS)
    expected = row_of(rows, "pc softmax", "conv10").values["share"].mean().item()
    assert table.loc[("pc softmax", "conv10"), "share"] == pytest.approx(expected, abs=0.006)
    assert math.isnan(table.loc[("vgg-gap", "uniform"), "sanity"])
    assert list(map_quality.table(rows[:2], ["ms"])) == ["ms"]


def test_the_files_hold_means_and_effects(rows, tmp_path):
    effects = [*map_quality.object_effects(rows, "b"), *map_quality.segmentation_effects(rows, "b")]
    measured, written = (pd.read_csv(path) for path in map_quality.save(rows, effects, tmp_path))
    assert (tmp_path / "effects_04.csv").is_file()
    assert list(zip(measured["model"], measured["map"], strict=True)) == [(r.model, r.name) for r in rows]
    for line, row in zip(measured.to_dict("records"), rows, strict=True):
        interval = row.interval("average_precision")
        names = ["average_precision", "average_precision_low", "average_precision_high", "average_precision_n"]
        assert [line[n] for n in names] == pytest.approx([interval.mean, interval.low, interval.high, 8], abs=5e-5)
        assert math.isnan(line["sanity"]) == (row.kind == "control")
    assert tuple(written) == COLUMNS
    assert written["verdict"].tolist() == [effect.verdict for effect in effects]
    assert set(written["seeds"]) == {1}
    assert set(written["n"]) == {3, 8}


# --- pictures


def test_cases_are_best_median_and_worst():
    values = {"average_precision": torch.tensor([0.5, math.nan, 0.9, 0.1, 0.7, 0.2])}
    row = Row("m", "n", "attention", "level", torch.zeros(6, 2, 2), values)
    assert cases(row) == {"best": 2, "median": 0, "worst": 3}
    row.values["share"] = torch.full((6,), math.nan)
    with pytest.raises(ValueError, match="no image of m, n has a value of share"):
        cases(row, "share")


def test_scores_have_a_panel_a_measure_and_a_line_a_map(rows):
    figure = map_quality.scores_figure(rows)
    assert len(figure.axes) == 2
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert sorted(names) == sorted({r.name for r in rows})
    assert names[-4:] == ["uniform", "blurred noise", "center", "Otsu"]
    points = [line for line in figure.axes[0].lines if line.get_label() == "conv10"]
    expected = row_of(rows, "pc softmax", "conv10").values["average_precision"].mean().item()
    assert [line.get_xdata()[0] for line in points] == pytest.approx([expected], rel=1e-5)
    assert to_png(figure).startswith(b"\x89PNG")


def test_curves_and_sanity_have_a_line_a_row(rows):
    of_model = [r for r in rows if r.model == "pc softmax"]
    figure = map_quality.curves_figure(of_model)
    shown = selection(of_model)
    assert [row.kind for row in shown] == [*(row.kind for row in of_model if row.kind == "level"), "method", "control"]
    best = max(row.values["average_precision"].nanmean() for row in of_model if row.kind == "method")
    assert shown[-2].values["average_precision"].nanmean() == best
    assert [len(axes.lines) for axes in figure.axes] == [len(shown)] * 2
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), of_model[0].curves[2])
    assert figure.axes[0].lines[0].get_xdata()[-1] == 100
    panel = map_quality.sanity_figure(of_model).axes[0]
    lines = [line for line in panel.lines if len(line.get_xdata()) > 2]
    assert len(lines) == len(shown) - 1, "a control has no weights"
    assert lines[0].get_ydata()[0] == 1
    assert lines[0].get_ydata()[-1] == pytest.approx(of_model[0].values["sanity"].nanmean().item(), abs=1e-6)


def test_cases_show_the_images_that_the_measure_chose(rows, pictures):
    of_model = [r for r in rows if r.model == "pc softmax"]
    figure = map_quality.cases_figure(of_model, pictures[0])
    shown = selection(of_model)
    assert len(figure.axes) == 3 * len(shown)
    for number, r in enumerate(shown):
        assert figure.axes[number].get_title().replace("\n", " ") == r.name
        for line, i in enumerate(cases(r).values()):
            panel = figure.axes[line * len(shown) + number]
            assert panel.get_xlabel() == f"image {i}: {r.values['average_precision'][i]:.2f}"
            picture = pictures[0].images[i].permute(1, 2, 0).numpy()
            drawn = np.asarray(panel.images[0].get_array())
            finer = drawn.shape[0] // picture.shape[0]
            expected = overlay(picture.repeat(finer, 0).repeat(finer, 1), (r.maps[i] / r.maps[i].max()).numpy())
            assert np.abs(drawn.astype(int) - expected).max() <= 1


# --- parameters of the notebook


def test_the_runs_are_those_of_the_quick_settings():
    configs = MapQualityConfig().runs()
    assert list(configs) == [
        "pc softmax", "pc sigmoid", "dp softmax", "dp sigmoid", "add softmax", "add sigmoid", "vgg-gap"
    ]  # fmt: skip
    expected = TrainConfig(**ltpa.QUICK, model="vgg-att3-concat-dp", normalizer="sigmoid", seed=0)
    assert configs["dp sigmoid"].path == expected.path
    assert MapQualityConfig(seed=3, width=0.25, models=["vgg"]).runs() == {
        "vgg": TrainConfig(**{**ltpa.QUICK, "width": 0.25}, model="vgg", seed=3)
    }


def test_the_split_does_not_overlap(pictures):
    measured, held_out = MapQualityConfig(images=5, held_out=3).split(pictures[0])
    assert torch.equal(measured.images, pictures[0].images[:5])
    assert torch.equal(held_out.images, pictures[0].images[5:])
    with pytest.raises(ValueError, match="need 9 test images, and there are 8; lower them"):
        MapQualityConfig(images=5, held_out=4).split(pictures[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": "vgg"}, "models"),
        ({"models": ["vgg", "vgg"]}, "different"),
        ({"models": ["vgg-att3-concat-cp"]}, "did you mean 'vgg-att3-concat-pc"),
        ({"methods": ["grad-cam"]}, "did you mean 'gradcam'"),
        ({"images": 0, "costly_images": 1.5}, "images.*2.*\n.*costly_images.*whole number"),
    ],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MapQualityConfig(**wrong)
