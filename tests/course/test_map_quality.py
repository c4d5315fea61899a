"""The comparison of maps: its numbers against direct computation, its words against its numbers, its pictures."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

import ltpa
from ltpa import TrainConfig, create_model, explain, load_data
from ltpa.course import map_quality
from ltpa.course.map_quality import How, MapQualityConfig, Measured, Values
from ltpa.course.map_quality_effects import BEATS_NORM, DEPENDS, LEAKS, PREDICTS
from ltpa.course.map_quality_maps import compute_maps, feature_norms, methods_of, smoothed
from ltpa.course.map_quality_measure import ABOUT, ANSWERS, VALUES, measure, measure_runs
from ltpa.course.map_quality_plot import cases, selection
from ltpa.metrics import (
    changed_scenes,
    class_contrast,
    delete_cells,
    deletion_insertion,
    effect_prediction,
    intervene,
    localization,
    permuted_attention,
    picture_controls,
    randomization,
    train_with_hidden_cells,
)
from ltpa.metrics.crossed import two_level_interval
from ltpa.metrics.overlap import best_threshold, jaccard
from ltpa.metrics.statistics import COLUMNS
from ltpa.viz import to_png
from ltpa.viz.overlay import overlay

HOW = How(methods=("gradcam", "saliency", "cam"), images=8, held_out=4, costly=3, draws=2, seed=1)
CONTROLS = ["uniform", "blurred noise", "center", "Otsu", "difference of Gaussians", "the object"]


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", train_limit=10, test_limit=12)


@pytest.fixture(scope="module")
def pictures(data):
    return HOW.split(data.test)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    made = {"pc softmax": "vgg-att2-concat-pc", "vgg-gap": "vgg-gap"}
    return {name: create_model(model, 10, width=1 / 32).eval() for name, model in made.items()}


@pytest.fixture(scope="module")
def measured(models, pictures, data):
    return Measured.join([measure(model, *pictures, HOW, data.train, name) for name, model in models.items()])


@pytest.fixture(scope="module")
def values(measured):
    return Values(measured)


def rows_of(measured, model, name):
    frame = measured.by_image
    return frame[(frame["model"] == model) & (frame["map"] == name)]


def test_every_map_of_every_model_is_measured_on_every_image(measured):
    frame = measured.by_image
    assert list(frame) == [*ABOUT, "image", *VALUES, *ANSWERS, "held_out", "threshold", "ms"]
    layers = ["conv7", "conv10", "conv13"]
    norms, gradients = ([f"{name} {layer}" for layer in layers] for name in ("feature norm", "Grad-CAM"))
    saliency = ["saliency", "saliency, as conv10", "saliency, as conv13"]
    for model, own in (("pc softmax", ["conv10", "conv13"]), ("vgg-gap", [])):
        cam = ["CAM"] if model == "vgg-gap" else []
        names = list(dict.fromkeys(frame[frame["model"] == model]["map"]))
        assert names == [*own, *norms, *gradients, *saliency, *cam, *CONTROLS, ""]
    assert (frame.groupby(["model", "map"]).size() == 8).all()
    about = frame.drop_duplicates("map").set_index("map")
    assert about.loc["Grad-CAM conv10", ["family", "kind", "layer"]].tolist() == ["Grad-CAM", "method", "conv10"]
    assert about.loc["saliency", ["family", "layer"]].tolist() == ["saliency", ""]
    assert about.loc["the object", "kind"] == "oracle"


def test_the_values_are_those_of_the_measures(measured, models, pictures, data):
    images, held_out = pictures
    model, rows = models["pc softmax"], rows_of(measured, "pc softmax", "conv10")
    maps = explain(model, images.images, "attention", layer="conv10")
    for name, column in localization(maps, images.masks).items():
        np.testing.assert_array_equal(rows[name].astype(np.float32), column)
    few = images.images[:3]
    curves = deletion_insertion(model, few, maps[:3], fill="mean", seed=1)
    for name, area in (("deletion", curves.deletion_area), ("insertion", curves.insertion_area)):
        np.testing.assert_allclose(rows[name][:3], area, rtol=1e-5)
        assert rows[name][3:].isna().all()
    np.testing.assert_allclose(rows["permuted"][:3], permuted_attention(model, few, seed=1)["conv10"], rtol=1e-5)
    effects = intervene(model, images.images, changed_scenes(images.images), precision="fp32")
    np.testing.assert_allclose(rows["prediction"], effect_prediction(maps, effects)["prediction"], rtol=1e-5)
    hider = train_with_hidden_cells(model, data.train, 1)
    target = ltpa.attend(model, few, "fp32").logits.argmax(1)
    gain = delete_cells(hider, few, maps[:3], target, seed=1, precision="fp32").gain
    np.testing.assert_allclose(rows["gain"][:3], gain, rtol=1e-4, atol=1e-6)
    scenes = load_data("shapes", train_limit=1, test_limit=3, objects=2).test
    contrast = class_contrast(model, scenes, lambda x, _: {"": explain(model, x, "attention", layer="conv10")})
    np.testing.assert_allclose(rows["answer"][:3], contrast[""]["answer"], rtol=1e-5)
    assert rows["own"][:3].tolist() == pytest.approx([0.5] * 3), "attention has one map for all classes"
    on_held_out = explain(model, held_out.images, "attention", layer="conv10")
    threshold = best_threshold(on_held_out, held_out.masks)
    assert set(rows["threshold"]) == {str(threshold)}
    np.testing.assert_allclose(rows["jaccard"], jaccard(threshold.mark(maps), images.masks), rtol=1e-5)
    expected = localization(on_held_out, held_out.masks)["average_precision"].mean()
    assert rows["held_out"].iloc[0] == pytest.approx(expected)
    answers = measured.by_image[measured.by_image["map"] == ""]
    right = ltpa.attend(model, images.images, "fp32").logits.argmax(1) == images.labels
    assert answers[answers["model"] == "pc softmax"]["right"].tolist() == right.float().tolist()


def test_sanity_is_the_absolute_agreement_over_the_draws(measured, models, pictures):
    few = pictures[0].images[:3]
    maps_of = {"maps_of": lambda net, x: {"": explain(net, x, "attention", layer="conv10")}, "stops": ["trunk.conv1"]}
    draws = randomization(models["pc softmax"], few, seed=1, draws=2, **maps_of)
    expected = draws["trunk.conv1"][""]["rank_agreement"]
    np.testing.assert_allclose(rows_of(measured, "pc softmax", "conv10")["sanity"][:3], expected, rtol=1e-4)
    curves = measured.curves
    lines = curves[(curves["curve"] == "sanity") & (curves["map"] == "conv10")]
    assert (lines["x"].iloc[0], lines["x"].iloc[-1]) == ("head", "trunk.conv1")
    assert lines["value"].iloc[0] == pytest.approx(1)
    assert lines["value"].iloc[-1] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert not set(curves[curves["curve"] == "sanity"]["kind"]) & {"control", "oracle"}


def test_uniform_is_the_part_that_the_object_fills_and_the_object_is_perfect(measured, pictures):
    part = pictures[0].masks.float().mean((1, 2))
    for name in ("share", "pointing", "iou", "average_precision", "jaccard"):
        np.testing.assert_allclose(rows_of(measured, "vgg-gap", "uniform")[name], part, rtol=1e-6)
        np.testing.assert_allclose(rows_of(measured, "vgg-gap", "the object")[name], torch.ones(8), rtol=1e-6)


def test_the_norm_is_that_of_the_local_features(models, pictures):
    model, images = models["vgg-gap"], pictures[0].images[:2]
    with torch.no_grad():
        features = model.trunk(model.normalize(images / 255))
    for layer, norms in feature_norms(model, images).items():
        torch.testing.assert_close(norms, features[layer].square().sum(1).sqrt())


def test_methods_are_smoothed_to_the_grid_of_a_layer(models, pictures):
    model, images = models["pc softmax"], pictures[0].images[:2]
    plan = methods_of(model, images[:1], ["saliency"])
    maps = {name: maps for name, (maps, _) in compute_maps(plan, model, images, torch.tensor([0, 1])).items()}
    fine = explain(model, images, "saliency", torch.tensor([0, 1]))
    torch.testing.assert_close(maps["saliency"], fine)
    means = fine.view(2, 8, 4, 8, 4).mean((2, 4))
    expected = torch.nn.functional.interpolate(means[:, None], size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps["saliency, as conv13"], expected[:, 0])
    assert smoothed(fine, None) is fine


def test_what_cannot_be_measured_is_refused(pictures):
    with pytest.raises(ValueError, match="need 12 test images, and there are 8; lower them"):
        HOW.split(pictures[0])
    with pytest.raises(ValueError, match="masks, which these data lack"):
        replace(HOW, images=4).split(ltpa.Split(pictures[0].images, pictures[0].labels))
    with pytest.raises(ValueError, match="no run"):
        measure_runs({}, HOW)


def test_runs_are_measured_once_and_read_then(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = {"dataset": "shapes", "width": 1 / 32, "train_limit": 16, "test_limit": 12, "epochs": 1, "batch_size": 8}
    config = TrainConfig(model="vgg-att-concat-pc", **tiny)
    ltpa.fit(config)
    how = replace(HOW, methods=("saliency",), draws=1)
    runs = {("pc", 0): config.path}
    first = measure_runs(runs, how, progress=False)
    monkeypatch.setattr("ltpa.course.map_quality_measure.measure", None)
    again = measure_runs(runs, how, progress=False)
    pd.testing.assert_frame_equal(first.by_image, again.by_image, rtol=1e-3, check_dtype=False)
    pd.testing.assert_frame_equal(first.curves, again.curves, rtol=1e-3, check_dtype=False)
    assert again.by_image.groupby("map").size().eq(8).all()
    with pytest.raises(TypeError):
        measure_runs(runs, replace(how, images=7), progress=False)  # another measurement


# --- effects and sentences, from made values


def made(seeds=5, images=40, gain=0.3, level="conv10"):
    """Two models: conv10 of "pc" is `gain` better than saliency, and as good as the norm of the features."""
    draw = np.random.default_rng(0)
    easy, rows = 0.02 * draw.normal(size=images), []
    maps = [  # model, name, family, kind, layer, average precision, held out
        ("pc", "conv7", "attention", "level", "conv7", 0.9, 0.1),
        ("pc", level, "attention", "level", level, 0.3 + gain, 0.6),
        ("pc", "feature norm conv7", "feature norm", "features", "conv7", 0.9, 0.9),
        ("pc", f"feature norm {level}", "feature norm", "features", level, 0.3 + gain, 0.5),
        ("pc", "saliency", "saliency", "method", "", 0.9, 0.5),
        ("pc", f"saliency, as {level}", "saliency", "method", level, 0.3, 0.5),
        ("pc", "center", "center", "control", "", 0.3, 0.2),
        ("vgg-late", "feature norm conv7", "feature norm", "features", "conv7", 0.3, 0.6),
        ("vgg-late", f"feature norm {level}", "feature norm", "features", level, 0.9, 0.5),
    ]
    for seed, (model, name, family, kind, layer, precision, held_out) in product(range(seeds), maps):
        value = precision + easy + 0.02 * draw.normal() + 0.01 * draw.normal(size=images)
        about = {"model": model, "seed": seed, "map": name, "family": family, "kind": kind, "layer": layer}
        for image in range(images):
            row = about | {"image": image, "average_precision": value[image], "held_out": held_out}
            moved = (0.4 if layer == "conv7" else 0.0) + easy[image] / 10
            rows.append(row | {"permuted": moved, "jaccard": value[image], "answer": value[image] + 0.2})
    for seed, model, image in product(range(seeds), ("pc", "vgg-late"), range(images)):
        about = {"model": model, "seed": seed, "map": "", "family": "", "kind": "network", "layer": ""}
        named = float((image % 10 == 0) == (model == "pc"))
        rows.append(about | {"image": image, "right": 1.0, "right_without_object": named})
    columns = [*ABOUT, "image", *VALUES, *ANSWERS, "held_out", "threshold", "ms"]
    return Measured(pd.DataFrame(rows, columns=columns), pd.DataFrame(columns=[*ABOUT, "curve", "x", "value"]))


def test_the_level_is_chosen_on_the_held_out_images_and_rivals_are_those_of_its_layer():
    measured = made()
    values = Values(measured)
    assert values.layers == {"pc": dict.fromkeys(range(5), "conv10"), "vgg-late": dict.fromkeys(range(5), "conv7")}
    precision = measured.by_image.pivot(index=["model", "map", "seed"], columns="image", values="average_precision")
    for family, name in (("attention", "conv10"), ("saliency", "saliency, as conv10"), ("center", "center")):
        np.testing.assert_array_equal(values.table("pc", family, "average_precision"), precision.loc[("pc", name)])
    assert values.table("vgg-late", "attention", "average_precision") is None


def test_scenes_without_an_answer_differ_from_seed_to_seed():
    measured = made()
    frame = measured.by_image
    frame.loc[(frame["map"] == "conv10") & (frame["image"] == frame["seed"]), "answer"] = math.nan
    frame.loc[frame["image"] >= 30, "answer"] = math.nan
    assert Values(measured).table("pc", "attention", "answer").shape == (5, 30)
    (named,) = map_quality.contrast_effects(Values(measured), "")
    assert (named.seeds, named.interval.n) == (5, 25)


def test_each_seed_has_its_own_level():
    measured = made()
    frame = measured.by_image
    frame.loc[(frame["map"] == "conv7") & (frame["seed"] == 3), "held_out"] = 0.7
    values = Values(measured)
    assert values.layers["pc"] == {0: "conv10", 1: "conv10", 2: "conv10", 3: "conv7", 4: "conv10"}
    table = values.table("pc", "saliency", "average_precision")
    assert table[3].mean() == pytest.approx(0.9, abs=0.1), "conv7 has the resolution of the picture"
    effects = map_quality.object_effects(values, "")
    assert any("attention at conv10 or conv7 - " in effect.measure for effect in effects)


def test_effects_are_differences_with_intervals_over_seeds_and_images_for_each_claim():
    values = Values(made())
    effects = [e for e in map_quality.object_effects(values, "5 epochs") if "average precision" in e.measure]
    assert [(e.baseline, e.verdict) for e in effects] == [
        ("center", "supported"),
        ("saliency", "supported"),
        ("feature norm", "undecided"),
        ("feature norm of vgg-late", "contradicted"),
    ]
    own, norm = (values.table("pc", family, "average_precision") for family in ("attention", "feature norm"))
    assert effects[2].interval == two_level_interval(own - norm, comparisons=2)
    other = values.of_map("vgg-late", "feature norm conv10", "average_precision")
    assert effects[3].interval == two_level_interval(own, other, comparisons=2)
    assert {(e.seeds, e.budget, e.interval.n, e.data) for e in effects} == {(5, "5 epochs", 40, "shapes")}
    assert effects[3].claim == BEATS_NORM


def test_a_difference_that_the_table_does_not_show_decides_nothing():
    measured = made(seeds=1)
    frame = measured.by_image
    center, conv10 = frame["map"] == "center", frame["map"] == "conv10"
    frame.loc[conv10, "average_precision"] = frame.loc[center, "average_precision"].to_numpy() + 0.0004
    (effect,) = [e for e in map_quality.object_effects(Values(measured), "") if e.baseline == "center"][:1]
    assert effect.interval.low > 0
    assert effect.verdict == "undecided"
    assert map_quality.effects_table([effect])["effect [interval]"][0] == "+0.000 [+0.000, +0.000]"


def test_permutation_is_compared_with_a_tenth_and_answers_without_the_object_with_chance():
    values = Values(made())
    permuted = map_quality.permutation_effects(values, "")
    assert [(e.claim, e.verdict) for e in permuted] == [(DEPENDS, "supported"), (DEPENDS, "contradicted")]
    leaks = map_quality.leak_effects(values, "")
    assert [(e.model, e.claim, e.verdict) for e in leaks] == [
        ("pc", LEAKS, "undecided"),
        ("vgg-late", LEAKS, "supported"),
    ]
    assert [e.interval.mean for e in leaks] == pytest.approx([0, 0.8])
    (named,) = map_quality.contrast_effects(values, "")
    assert (named.model, named.verdict, named.interval.mean) == ("pc", "supported", pytest.approx(0.3, abs=0.03))
    assert not any(e.claim == PREDICTS for e in map_quality.object_effects(values, "") if "rank" not in e.measure)


def test_the_agreement_of_measures_is_the_mean_over_the_networks():
    measured = made()
    measured.by_image["jaccard"] = 1 - measured.by_image["average_precision"]
    table = map_quality.agreement(Values(measured))
    assert table[["first", "second", "mean", "networks"]].to_numpy().tolist() == [
        ["average_precision", "jaccard", -1, 2]
    ]


def test_the_sentences_count_the_verdicts_and_say_what_few_seeds_cannot():
    effects = map_quality.all_effects(Values(made()), "")
    text = map_quality.describe(effects)
    assert f"{BEATS_NORM}: supported in 0 of 2 comparisons, contradicted in 1, undecided in 1." in text
    assert "networks trained again" not in text
    assert "networks trained again" in map_quality.describe(map_quality.all_effects(Values(made(seeds=2)), ""))
    assert "nothing to decide" in map_quality.describe([])


# --- tables and files


def test_the_summary_has_a_row_for_each_family_and_a_column_for_each_model():
    values = Values(made())
    table = map_quality.summary(values)
    assert list(table.index) == ["attention", "feature norm", "saliency", "center"]
    expected = two_level_interval(values.table("pc", "saliency", "average_precision")).text(2)
    assert table.loc["saliency", "pc"] == expected
    assert table.loc["saliency", "vgg-late"] == ""


@pytest.mark.parametrize(("seeds", "file"), [(5, "effects_04.csv"), (2, "single_04.csv")])
def test_the_files_hold_what_was_measured_and_effects(seeds, file, tmp_path):
    measured = made(seeds=seeds)
    effects = map_quality.all_effects(Values(measured), "b")
    paths = map_quality.write_results(measured, effects, tmp_path)
    assert paths[-1].name == file
    written = pd.read_csv(paths[-1])
    assert tuple(written) == COLUMNS
    assert written["verdict"].tolist() == [effect.verdict for effect in effects]
    means = pd.read_csv(tmp_path / "maps_measured.csv").set_index(["model", "map"])
    expected = measured.by_image.groupby(["model", "map"])["average_precision"].mean()
    assert means.loc[("pc", "conv10"), "average_precision"] == pytest.approx(expected["pc", "conv10"], abs=5e-5)
    measured.small().write(tmp_path, "maps_04")
    again = map_quality.all_effects(Values(Measured.read(tmp_path, "maps_04")), "b")
    assert [e.interval.mean for e in again] == pytest.approx([e.interval.mean for e in effects], abs=1e-3)


# --- pictures


def test_cases_are_best_median_and_worst():
    assert cases([0.5, math.nan, 0.9, 0.1, 0.7, 0.2]) == {"best": 2, "median": 0, "worst": 3}
    with pytest.raises(ValueError, match="no image has a score"):
        cases([math.nan])


def test_scores_have_a_panel_a_measure_and_a_line_a_family(values):
    figure = map_quality.scores_figure(values)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["attention", "feature norm", "Grad-CAM", "saliency", "CAM", *CONTROLS[:-1]]
    (point,) = [line for line in figure.axes[0].lines if line.get_label() == "attention"]
    expected = values.table("pc softmax", "attention", "average_precision").mean()
    assert point.get_xdata()[0] == pytest.approx(expected, rel=1e-5)
    assert to_png(figure).startswith(b"\x89PNG")


def test_curves_and_sanity_have_a_line_a_map(measured, values):
    shown = selection(values, "pc softmax")
    assert shown[:2] == ["conv10", "conv13"]
    assert len(shown) == 5
    assert selection(values, "vgg-gap")[0].startswith("feature norm")
    figure = map_quality.curves_figure(measured, "pc softmax")
    assert [len(axes.lines) for axes in figure.axes] == [len(shown) + 1] * 2, "and the object itself"
    rows = measured.curves[(measured.curves["map"] == "conv10") & (measured.curves["curve"] == "insertion")]
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), rows["value"])
    assert figure.axes[0].lines[0].get_xdata()[-1] == 100
    panel = map_quality.sanity_figure(measured, "pc softmax").axes[0]
    assert len(panel.lines) == len(shown) - 1, "a control has no weights"
    assert panel.lines[0].get_ydata()[0] == 1


def test_cases_show_the_images_that_the_measure_chose(values, models, pictures):
    model = models["pc softmax"]
    figure = map_quality.cases_figure(values, "pc softmax", model, pictures[0], HOW)
    shown = selection(values, "pc softmax")
    assert len(figure.axes) == 3 * len(shown)
    maps = explain(model, pictures[0].images, "attention", layer="conv10")
    precision = values.of_map("pc softmax", "conv10", "average_precision")[0]
    for line, i in enumerate(cases(precision).values()):
        panel = figure.axes[line * len(shown)]
        assert panel.get_xlabel() == f"image {i}: {precision[i]:.2f}"
        picture = pictures[0].images[i].permute(1, 2, 0).numpy()
        drawn = np.asarray(panel.images[0].get_array())
        finer = drawn.shape[0] // picture.shape[0]
        expected = overlay(picture.repeat(finer, 0).repeat(finer, 1), (maps[i] / maps[i].max()).numpy())
        assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_controls_need_the_picture_only(pictures):
    images, masks = pictures[0].images, pictures[0].masks
    maps = map_quality.without_network(images, masks, seed=3)
    assert list(maps) == CONTROLS
    for name, expected in picture_controls(images).items():
        assert torch.equal(maps[name], expected)


# --- parameters of the notebook


def test_the_runs_are_those_of_the_quick_settings():
    runs = map_quality.run_folders(MapQualityConfig().grid())
    assert list(runs) == [
        (name, 0) for name in ("pc softmax", "pc sigmoid", "add softmax", "dp softmax", "vgg-late", "vgg-gap")
    ]
    expected = TrainConfig(**ltpa.QUICK, model="vgg-att3-concat-pc", normalizer="sigmoid", seed=0)
    assert runs["pc sigmoid", 0] == expected.path
    wide = MapQualityConfig(seeds=[3], width=0.25, models=["vgg-gap"], train_limit=200)
    config = TrainConfig(**{**ltpa.QUICK, "width": 0.25, "train_limit": 200}, model="vgg-gap", seed=3)
    assert map_quality.run_folders(wide.grid()) == {("vgg-gap", 3): config.path}
    assert MapQualityConfig().described() == "width 0.125, 5 epochs of 10,000 drawn pictures"
    assert wide.described() == "width 0.25, 5 epochs of 200 drawn pictures"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": "vgg"}, "models"),
        ({"models": ["vgg", "vgg"]}, "different"),
        ({"models": ["vgg-att3-concat-cp"]}, "did you mean 'vgg-att3-concat-pc"),
        ({"methods": ["grad-cam"]}, "did you mean 'gradcam'"),
        ({"images": 0, "costly_images": 1.5}, "images.*2.*\n.*costly_images.*whole number"),
        ({"fill": "black"}, "mean, noise, blur"),
    ],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MapQualityConfig(**wrong)
