"""The comparison of maps: its numbers against direct computation, its words against its numbers, its pictures."""

import csv
import math
import re
import sys

import numpy as np
import pytest
import torch

import ltpa
from ltpa import TrainConfig, create_model, explain, load_data
from ltpa.course import map_quality as truth
from ltpa.course import map_quality_plot as truth_plots
from ltpa.course.map_quality import Claim, Interval, Row, Threshold
from ltpa.course.setup import TruthConfig
from ltpa.data.dataset import Split
from ltpa.metrics import deletion_insertion, localization, permuted_attention
from ltpa.viz import to_png


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures():
    test = load_data("shapes", train_limit=10, test_limit=18).test
    return test[:12], test[12:]


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    made = {"pc softmax": "vgg-att2-concat-pc", "vgg-gap": "vgg-gap"}
    return {name: create_model(model, 10, width=1 / 16).eval() for name, model in made.items()}


@pytest.fixture(scope="module")
def rows(models, pictures):
    methods = ("gradcam", "saliency", "cam")
    return truth.compare(models, *pictures, methods=methods, costly=4, seed=1, progress=False)


def row(rows, model, name):
    (found,) = [r for r in rows if (r.model, r.name) == (model, name)]
    return found


def test_every_map_of_every_model_is_a_row(rows):
    fixed = ["uniform", "blurred noise", "center", "Otsu"]
    attention = ["conv10", "conv13", "Grad-CAM conv10", "Grad-CAM conv13", "saliency"]
    assert [r.name for r in rows if r.model == "pc softmax"] == [*attention, *fixed]
    assert [r.name for r in rows if r.model == "vgg-gap"] == ["Grad-CAM", "saliency", "CAM", *fixed]
    assert [r.kind for r in rows[:9]] == ["level"] * 2 + ["method"] * 3 + ["control"] * 4
    for r in rows:
        assert r.maps.shape == (12, 32, 32)
        assert r.values["deletion"].shape == r.values["insertion"].shape == (4,)
        assert ("ms" in r.values) == ("sanity" in r.values) == (r.kind != "control")
        assert ("permuted" in r.values) == (r.kind == "level")


def test_the_values_are_those_of_the_measures(rows, models, pictures):
    measured, held_out = pictures
    model = models["pc softmax"]
    maps = explain(model, measured.images, "attention", layer="conv10")
    found = row(rows, "pc softmax", "conv10")
    torch.testing.assert_close(found.maps, maps)
    for name, value in localization(maps, measured.masks).items():
        torch.testing.assert_close(found.values[name], value)
    curves = deletion_insertion(model, measured.images[:4], maps[:4], steps=10, seed=1)
    torch.testing.assert_close(found.values["insertion"], curves.insertion_area)
    torch.testing.assert_close(found.values["deletion"], curves.deletion_area)
    torch.testing.assert_close(found.curves[2], curves.insertion.mean(0))
    permuted = permuted_attention(model, measured.images[:4], seed=1)
    torch.testing.assert_close(found.values["permuted"], permuted["conv10"])
    on_held_out = explain(model, held_out.images, "attention", layer="conv10")
    assert found.threshold == truth.best_threshold(on_held_out, held_out.masks)
    torch.testing.assert_close(found.values["jaccard"], truth.jaccard(found.threshold.mark(maps), measured.masks))
    expected = localization(on_held_out, held_out.masks)["average_precision"].mean().item()
    assert found.held_out == pytest.approx(expected)
    assert next(iter(found.sanity)) == "head"
    torch.testing.assert_close(found.sanity["head"], torch.ones(4))
    assert list(found.sanity)[-1] == "trunk.conv1"


def test_uniform_is_the_part_that_the_object_fills(rows, pictures):
    part = pictures[0].masks.float().mean((1, 2))
    for model in ("pc softmax", "vgg-gap"):
        for name in ("share", "pointing", "iou", "average_precision", "jaccard"):
            torch.testing.assert_close(row(rows, model, "uniform").values[name], part)


def test_what_cannot_be_compared_is_refused(models, pictures):
    measured, held_out = pictures
    bare = Split(measured.images, measured.labels)
    with pytest.raises(ValueError, match="which these data lack; the dataset 'shapes' has them"):
        truth.compare(models, bare, held_out)
    with pytest.raises(ValueError, match="held-out ones"):
        truth.compare(models, measured, held_out[:0])


# --- thresholds, Otsu, intervals


def test_jaccard_is_scikit_learns():
    from sklearn.metrics import jaccard_score

    generator = torch.Generator().manual_seed(0)
    marked, masks = (torch.rand(2, 5, 6, 7, generator=generator) < 0.4).unbind()
    masks[2] = False
    found = truth.jaccard(marked, masks)
    assert found[2].isnan()
    for i in (0, 1, 3, 4):
        assert found[i].item() == pytest.approx(jaccard_score(masks[i].flatten(), marked[i].flatten()))


def test_thresholds_mark_from_a_part_of_the_highest_or_a_multiple_of_the_mean():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 10.0]]])  # mean 4
    assert Threshold("max", 0.3).mark(maps).tolist() == [[[False, False], [True, True]]]
    assert Threshold("mean", 0.5).mark(maps).tolist() == [[[False, True], [True, True]]]
    assert Threshold("mean", 1.0).mark(torch.zeros(1, 2, 2)).all()


@pytest.mark.parametrize(("of", "factor"), [("max", 0.35), ("mean", 2.0)])
def test_the_best_threshold_is_found(of, factor):
    """Objects that were cut out of the maps by a threshold are found again by one that marks the same pixels."""
    maps = torch.rand(20, 16, 16, generator=torch.Generator().manual_seed(3)) ** 4
    masks = Threshold(of, factor).mark(maps)
    best = truth.best_threshold(maps, masks)
    assert truth.jaccard(best.mark(maps), masks).mean() == 1


def test_otsu_is_the_smaller_side_of_the_best_cut():
    images = torch.full((2, 3, 32, 32), 60, dtype=torch.uint8)
    images[0, :, 4:10, 5:9] = 200  # a bright object
    images[1, :, 20:30, 3:30] = 10  # a dark one
    images = (images.int() + torch.randint(0, 9, images.shape, generator=torch.Generator().manual_seed(0))).byte()
    found = truth.otsu(images)
    expected = torch.zeros(2, 32, 32)
    expected[0, 4:10, 5:9] = 1
    expected[1, 20:30, 3:30] = 1
    assert torch.equal(found, expected)
    assert (truth.otsu(torch.full((1, 3, 32, 32), 0.5)) == 0).all()


def test_otsu_without_scikit_image_says_how_to_get_it(monkeypatch, pictures):
    monkeypatch.setitem(sys.modules, "skimage.filters", None)
    with pytest.raises(ImportError, match=r"pip install 'ltpa\[notebooks\]'"):
        truth.otsu(pictures[0].images)


def test_the_interval_is_scipys_percentile_bootstrap():
    from scipy.stats import bootstrap

    values = torch.rand(60, generator=torch.Generator().manual_seed(0)) ** 3
    found = truth.interval(values, 0.9)
    theirs = bootstrap(
        (values.double().numpy(),),
        np.mean,
        confidence_level=0.9,
        method="percentile",
        n_resamples=20_000,
        random_state=1,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.mean == pytest.approx(values.mean().item(), rel=1e-6)
    assert found.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.08 * width)
    assert found.n == 60
    assert found == truth.interval(values, 0.9)


def test_the_interval_leaves_nan_out_and_grows_with_the_confidence():
    values = torch.arange(20.0)
    with_nan = torch.cat([values, torch.tensor([math.nan] * 3)])
    assert truth.interval(with_nan) == truth.interval(values)
    narrow, wide = truth.interval(values, 0.8), truth.interval(values, 0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert truth.interval(torch.ones(5)) == Interval(1.0, 1.0, 1.0, 5)
    assert truth.interval(torch.tensor([math.nan])).n == 0
    with pytest.raises(ValueError, match="above 0 and below 1, not 95"):
        truth.interval(values, 95)


# --- words


def made_rows(gain=0.3, goes_by=0.3):
    """A model whose conv10 is better than all else by `gain`, and more faithful than the center by `goes_by`."""
    noise = torch.rand(40, generator=torch.Generator().manual_seed(0)) * 0.1

    def one(name, kind, precision, faithful, held_out):
        values = {
            "average_precision": precision + noise,
            "insertion": faithful + noise,
            "deletion": 0.9 - faithful + noise.flip(0),
            "permuted": noise,
        }
        return Row("pc", name, kind, torch.rand(40, 4, 4), values, held_out=held_out)

    return [
        one("conv7", "level", 0.9, 0.9, 0.1),  # best where it is measured, not where it is chosen
        one("conv10", "level", 0.3 + gain, 0.3 + goes_by, 0.6),
        one("Grad-CAM conv7", "method", 0.9, 0.3, 0.1),
        one("Grad-CAM conv10", "method", 0.3, 0.3, 0.5),
        one("saliency", "method", 0.3 + 2 * gain, 0.3, 0.5),
        one("center", "control", 0.3, 0.3, 0.2),
    ]


def test_levels_and_rivals_are_chosen_on_the_held_out_images():
    texts = [claim.text for claim in truth.claims(made_rows())]
    assert texts == [
        "conv10 finds the object better than center (average precision)",
        "conv10 finds the object better than Grad-CAM conv10 (average precision)",
        "conv10 finds the object better than saliency (average precision)",
        "the model goes by conv10 more than by the center (insertion area)",
        "the model misses conv10 more than the center (deletion area)",
    ]


def test_claims_are_paired_differences_with_intervals_for_all_together():
    rows = made_rows()
    found = truth.claims(rows, seed=3)
    difference = rows[1].values["average_precision"] - rows[-1].values["average_precision"]
    assert found[0].effect == truth.interval(difference, 1 - 0.05 / 5, seed=3)
    assert found[0].effect.mean == pytest.approx(0.3, abs=1e-6)
    assert found[4].effect.mean == pytest.approx(0.3, abs=1e-6)
    assert [claim.verdict for claim in found] == ["supported"] * 2 + ["not supported"] + ["supported"] * 2


def segmented_rows(gain):
    """conv10 segments better by `gain` than Grad-CAM and saliency, and worse than Otsu; uniform is far behind."""
    noise = torch.rand(40, generator=torch.Generator().manual_seed(1)) * 0.02
    scores = {"conv7": 0.9, "conv10": 0.4 + gain, "Grad-CAM conv7": 0.9, "Grad-CAM conv10": 0.4, "saliency": 0.4}
    kinds = dict.fromkeys(["conv7", "conv10"], "level") | dict.fromkeys(["Otsu", "uniform"], "control")
    found = []
    for name, score in (scores | {"Otsu": 0.4 + 2 * gain, "uniform": 0.06}).items():
        values = {"jaccard": score + (noise if name == "conv10" else noise.flip(0))}
        held_out = 0.1 if name.endswith("conv7") else 0.6  # the best where it is measured, not where it is chosen
        found.append(Row("pc", name, kinds.get(name, "method"), torch.zeros(40, 4, 4), values, held_out=held_out))
    return found


def test_segmentation_is_a_claim_of_its_own_with_a_correction_of_its_own():
    rows = segmented_rows(0.1)
    found = truth.segmentation_claims(rows, seed=2)
    assert [claim.text for claim in found] == [
        f"conv10, binarized, segments better than {rival} (Jaccard index)"
        for rival in ("Grad-CAM conv10", "saliency", "Otsu", "uniform")
    ]
    assert {claim.about for claim in found} == {truth.SEGMENTS}
    difference = rows[1].values["jaccard"] - rows[3].values["jaccard"]
    assert found[0].effect == truth.interval(difference, 1 - 0.05 / 4, seed=2)
    assert [claim.verdict for claim in found] == ["supported", "supported", "not supported", "supported"]
    assert truth.segmentation_verdict(found) == (
        "The binarized map of the best level segments the object better than Grad-CAM in 1 of 1 models (worse in 0), "
        "than saliency in 1 of 1 models (worse in 0), than Otsu in 0 of 1 models (worse in 1), than uniform in 1 of 1 "
        "models (worse in 0); the rest is not decided."
    )
    without = truth.segmentation_claims([row for row in rows if row.kind != "method"])
    assert [claim.text.split(" than ")[1] for claim in without] == ["Otsu (Jaccard index)", "uniform (Jaccard index)"]
    assert truth.segmentation_claims([row for row in rows if row.kind != "level"]) == []
    assert truth.segmentation_verdict([]).startswith("There is no model with attention")


def test_the_effects_have_both_claims(tmp_path):
    found = [*truth.claims(made_rows()), *truth.segmentation_claims(segmented_rows(0.1))]
    lines = list(csv.DictReader(truth.write_effects(found, "5 epochs", tmp_path).open()))
    assert [line["claim"] for line in lines] == [truth.FINDS] * 5 + [truth.SEGMENTS] * 4
    assert [line["measure"] for line in lines] == [claim.text for claim in found]
    assert lines[7]["verdict"] == "not supported"
    assert float(lines[7]["high"]) < 0


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.2, "supported"), (-0.2, -0.1, "not supported"), (-0.1, 0.1, "not decidable at this budget")],
)
def test_a_claim_says_what_its_interval_says(low, high, words):
    assert Claim("pc", "text", Interval((low + high) / 2, low, high, 9)).verdict == words


def test_the_verdict_counts():
    assert truth.verdict(truth.claims(made_rows())) == (
        "Of 1 models with attention, 1 have a level whose map finds the object and is what the model goes by, both "
        "more than a spot in the center would (pc); of 2 comparisons with other explanations at finding the object, "
        "attention wins 1, loses 1, and 0 are not decided."
    )
    assert truth.verdict(truth.claims(made_rows(goes_by=-0.3))).startswith("Of 1 models with attention, 0 have")
    assert truth.verdict([]).startswith("There is no model with attention")


def test_the_explanation_has_a_sentence_a_level():
    sentences = truth.explanation(made_rows())
    assert len(sentences) == 3
    assert sentences[0].startswith("pc conv7: permuting its weights moves 5 % (")
    assert "rank agreement with saliency" in sentences[1]
    assert sentences[2].startswith("Of 2 levels, 2 can be permuted")
    assert sentences[2].endswith("For 0 it matters where they lie; 0 are not decided.")
    rows = made_rows()
    rows[0].values["permuted"] += 0.2
    rows[1].values["permuted"] = torch.tensor([0.0, 0.2] * 20)
    expected = "Of 2 levels, 0 can be permuted.*For 1 it matters where they lie; 1 are not decided"
    assert re.match(expected, truth.explanation(rows)[2])


def test_cases_are_best_median_and_worst():
    values = {"average_precision": torch.tensor([0.5, math.nan, 0.9, 0.1, 0.7, 0.2])}
    assert truth.cases(Row("m", "n", "level", torch.zeros(6, 2, 2), values)) == {"best": 2, "median": 0, "worst": 3}
    with pytest.raises(ValueError, match="no image of m, n has a value of share"):
        truth.cases(Row("m", "n", "level", torch.zeros(1, 2, 2), {"share": torch.tensor([math.nan])}), "share")


def test_the_table_has_a_line_a_row_and_a_block_a_model(rows):
    lines = truth.table(rows).split("\n")
    assert len(lines) == 1 + 2 + len(rows)
    assert lines[1] == "pc softmax"
    heads = lines[0].split()
    assert (heads[0], heads[-1]) == ("share", "ms/image")
    line = next(line for line in lines if line.strip().startswith("uniform"))
    cells = line.split()[1:]
    assert cells[0] == f"{row(rows, 'pc softmax', 'uniform').values['share'].mean():.2f}"
    assert cells[-1] == cells[-2] == "–"
    assert len({len(line) for line in lines if line.startswith("  ")}) == 1


def test_the_csv_holds_the_means_and_the_claims(rows, tmp_path):
    found = truth.claims(rows)
    paths = truth.save(rows, found, tmp_path, "table")
    assert [path.name for path in paths] == ["table.csv", "table_claims.csv"]
    lines, told = (list(csv.DictReader(path.open())) for path in paths)
    assert [(line["model"], line["map"]) for line in lines] == [(r.model, r.name) for r in rows]
    for line, r in zip(lines, rows, strict=True):
        value = truth.interval(r.values["average_precision"])
        assert float(line["average_precision"]) == pytest.approx(value.mean, abs=5e-5)
        assert float(line["average_precision_low"]) == pytest.approx(value.low, abs=5e-5)
        assert line["average_precision_n"] == "12"
        assert bool(line["sanity"]) == (r.kind != "control")
    assert [line["verdict"] for line in told] == [claim.verdict for claim in found]
    assert all(line["n"] in ("4", "12") for line in told)


# --- pictures


def test_scores_have_a_panel_a_measure_and_a_line_a_map(rows):
    figure = truth_plots.scores_figure(rows)
    assert len(figure.axes) == 4
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert sorted(names) == sorted({r.name for r in rows})
    assert names[-4:] == ["uniform", "blurred noise", "center", "Otsu"]
    marks = {line.get_label() for axes in figure.axes for line in axes.containers}
    assert marks == {"pc softmax", "vgg-gap"}
    points = figure.axes[0].containers[0].lines[0].get_xydata()
    expected = row(rows, "pc softmax", "conv10").values["average_precision"].mean().item()
    assert points[0][0] == pytest.approx(expected, rel=1e-5)
    assert to_png(figure).startswith(b"\x89PNG")


def test_curves_and_sanity_have_a_line_a_row(rows):
    of_model = [r for r in rows if r.model == "pc softmax"]
    figure = truth_plots.curves_figure(of_model)
    assert [len(axes.lines) for axes in figure.axes] == [9, 9]
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), of_model[0].curves[2])
    assert figure.axes[0].lines[0].get_xdata()[-1] == 100
    panel = truth_plots.sanity_figure(of_model).axes[0]
    lines = [line for line in panel.lines if len(line.get_xdata()) > 2]
    assert len(lines) == 5
    assert lines[0].get_ydata()[0] == 1
    assert lines[0].get_ydata()[-1] == pytest.approx(of_model[0].values["sanity"].nanmean().item(), abs=1e-6)


def test_cases_show_the_images_that_the_measure_chose(rows, pictures):
    of_model = [r for r in rows if r.model == "vgg-gap"]
    figure = truth_plots.cases_figure(of_model, pictures[0])
    assert len(figure.axes) == 6 * len(of_model)
    for number, r in enumerate(of_model):
        for k, (case, i) in enumerate(truth.cases(r).items()):
            left, right = figure.axes[6 * number + 2 * k : 6 * number + 2 * k + 2]
            assert left.get_title() == f"image {i}"
            assert right.get_title() == f"{case} {r.values['average_precision'][i]:.2f}"
            np.testing.assert_allclose(right.images[0].get_array(), r.maps[i])
            picture = pictures[0].images[i].permute(1, 2, 0).numpy() / 255
            np.testing.assert_allclose(left.images[0].get_array(), picture, atol=1e-6)


# --- parameters of the notebook


def test_the_runs_are_those_of_the_quick_settings():
    found = TruthConfig().runs()
    assert list(found) == [
        "pc softmax", "pc sigmoid", "dp softmax", "dp sigmoid", "add softmax", "add sigmoid", "vgg-gap"
    ]  # fmt: skip
    expected = TrainConfig(**ltpa.QUICK, model="vgg-att3-concat-dp", normalizer="sigmoid", seed=0)
    assert found["dp sigmoid"].path == expected.path
    assert found["vgg-gap"].path == TrainConfig(**ltpa.QUICK, model="vgg-gap", seed=0).path
    assert TruthConfig(seed=3, width=0.25, models=["vgg"]).runs() == {
        "vgg": TrainConfig(**{**ltpa.QUICK, "width": 0.25}, model="vgg", seed=3)
    }


def test_the_split_does_not_overlap(pictures):
    measured, held_out = TruthConfig(images=8, held_out=4).split(pictures[0])
    assert torch.equal(measured.images, pictures[0].images[:8])
    assert torch.equal(held_out.images, pictures[0].images[8:])
    with pytest.raises(ValueError, match="need 13 test images, and there are 12; lower them"):
        TruthConfig(images=8, held_out=5).split(pictures[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": "vgg"}, "models must be a list of names"),
        ({"models": []}, "models must be a list of names"),
        ({"models": ["vgg", "vgg"]}, "names a variant twice"),
        ({"models": ["vgg-att3-concat-cp"]}, "models: unknown model 'vgg-att3-concat-cp': did you mean"),
        ({"models": ["vgg-pan sofmax"]}, "did you mean 'softmax'"),
        ({"methods": ["grad-cam"]}, "did you mean 'gradcam'"),
        ({"images": 0}, "images must be at least 2"),
        ({"costly_images": 1.5}, "costly_images must be a whole number"),
        ({"fill": "black"}, "fill='black': known: blur, mean"),
    ],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TruthConfig(**wrong)
