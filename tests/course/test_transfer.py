"""Transfer: features and linear classifiers against plain re-computations, controls, verdicts from made-up numbers."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ltpa
from ltpa.course import transfer, transfer_probe
from ltpa.course.grid import Grid, Result
from ltpa.course.transfer import TransferConfig
from ltpa.course.transfer_probe import Probes
from ltpa.metrics import crossed
from ltpa.metrics.statistics import CONTRADICTED, SUPPORTED, UNDECIDED
from ltpa.viz import to_png
from tests.tools.tiny_grid import GRID

STRENGTHS = (0.01,)  # nothing to choose, which takes time
TINY = {
    **GRID,
    "models": [*GRID["models"], "vgg-att3-concat-pc"],
    "target_train_limit": 40,
    "target_test_limit": 30,
    "per_class": [2, None],
}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """What linear classifiers make of the features of a tiny grid."""
    with contextlib.chdir(tmp_path_factory.mktemp("transfer")), pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_probe, "STRENGTHS", STRENGTHS)
        config = TransferConfig(**TINY)
        transfer.train_missing(config)
        return transfer.probe_grid(transfer.collect(config), config.target_data(), config.per_class)


def pictures(count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name, normalizer="softmax"):
    torch.manual_seed(0)
    return ltpa.create_model(name, 10, width=1 / 32, normalizer=normalizer).eval()


# Features


@pytest.mark.parametrize(
    ("name", "normalizer"),
    [("vgg-att3-concat-pc", "softmax"), ("vgg-att2-indep-dp", "sigmoid"), ("vgg-pan", "softmax")],
)
def test_descriptors_are_what_the_classifier_reads(name, normalizer):
    model, read = network(name, normalizer), []
    model.head.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0]))
    with torch.no_grad():
        seen = model.attend(pictures())
        again = model.head(list(seen.descriptors.values()))
    of = read[: len(seen.descriptors)]
    assert all(torch.equal(a, b) for a, b in zip(seen.descriptors.values(), of, strict=True))
    assert torch.equal(again, seen.logits)
    assert list(seen.descriptors) == (["conv13"] if name == "vgg-pan" else list(seen.maps))


@pytest.mark.parametrize("name", ["vgg", "vgg-late", "vgg-gap", "resnet164"])
def test_models_without_attention_have_no_descriptors(name):
    assert not network(name).attend(pictures(2)).descriptors


def test_features_are_the_descriptors_side_by_side_and_g():
    images = pictures(5)
    for name, kinds in {
        "vgg-att3-concat-dp": ["g_s", "g"],
        "vgg-att3-concat-pc": ["g_s"],
        "vgg-late": ["mean", "g"],
    }.items():
        model = network(name)
        found = transfer_probe.features(model, images)
        with torch.no_grad():
            seen = model.attend(images)
        assert list(found) == kinds
        if "g_s" in kinds:
            assert torch.allclose(found["g_s"], torch.cat([seen.descriptors[k] for k in seen.maps], 1), atol=1e-5)
        if "g" in kinds:
            assert torch.allclose(found["g"], seen.global_feature, atol=1e-5)
    assert list(transfer_probe.features(network("vgg-gap"), images)) == ["mean"]


def test_mean_features_are_those_of_the_levels_that_attention_reads():
    model, images = network("vgg-late"), pictures(3)
    with torch.no_grad():
        local = model.trunk(model.normalize(images))
    expected = [torch.cat([local[level][i].flatten(1).mean(1) for level in local]) for i in range(3)]
    assert torch.allclose(transfer_probe.features(model, images)["mean"], torch.stack(expected), atol=1e-6)
    assert list(local) == ["conv7", "conv10", "conv13"]


def test_the_untrained_network_is_the_one_that_training_began_with(tmp_path):
    config = ltpa.TrainConfig(
        **{"model": "vgg-att3-concat-dp", "dataset": "shapes", "width": 1 / 32, "train_limit": 64, "test_limit": 20},
        **{"epochs": 1, "batch_size": 32, "seed": 7, "snapshots": 4, "precision": "fp32", "run_dir": tmp_path / "run"},
    )
    data = ltpa.data_for(config)
    run = ltpa.fit(config, data, progress=False)
    before, after = torch.random.get_rng_state(), run.snapshots()[1]
    model = transfer_probe.untrained(run)
    assert torch.equal(torch.random.get_rng_state(), before)
    maps = ltpa.attend(model, data.test.images[ltpa.snapshot_indices(data, 4)], "fp32").maps
    for level, first in run.snapshots()[0].items():
        assert torch.allclose(maps[level], first, atol=1e-6)
        assert not torch.allclose(maps[level], after[level], atol=1e-6)
    assert torch.equal(model.mean, run.model.mean)


# Dataset and labels


def test_digits_are_scikit_learns_and_the_test_is_apart():
    from sklearn.datasets import load_digits

    data = transfer.digits()
    assert (len(data.train), len(data.test), data.train.images.shape[1:]) == (1347, 450, (3, 32, 32))
    images, labels = load_digits(return_X_y=True)
    assert sorted(torch.cat([data.train.labels, data.test.labels]).tolist()) == sorted(labels.tolist())
    counts, all_counts = torch.bincount(data.test.labels), np.bincount(labels)
    assert (np.abs(counts.numpy() - 450 * all_counts / 1797) <= 1).all()
    up = torch.nn.functional.interpolate(
        torch.from_numpy(images).float().view(-1, 1, 8, 8), size=(32, 32), mode="bilinear"
    )
    known = {(255 / 16 * u).round().byte().numpy().tobytes(): int(label) for u, label in zip(up, labels, strict=True)}
    for part in (data.train, data.test):
        assert torch.equal(part.images[:, 0], part.images[:, 2])
        for image, label in zip(part.images[::7], part.labels[::7], strict=True):
            assert known[image[:1].numpy().tobytes()] == label
    parts = [{image.numpy().tobytes() for image in part.images} for part in (data.train, data.test)]
    assert sum(map(len, parts)) == 1797
    assert not parts[0] & parts[1]
    few = transfer.digits(100, 40)
    assert torch.bincount(few.train.labels).tolist() == [10] * 10
    assert torch.bincount(few.test.labels).tolist() == [4] * 10


def test_labels_are_drawn_class_by_class():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    chosen = transfer_probe.labeled(labels, 5, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [5, 3, 5]
    assert len(chosen.unique()) == len(chosen)
    assert not torch.equal(chosen, transfer_probe.labeled(labels, 5, seed=1))
    assert torch.equal(chosen, transfer_probe.labeled(labels, 5, seed=0))
    assert transfer_probe.labeled(labels, None, seed=0).tolist() == list(range(73))


# The linear classifier


def blobs(count=60, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    x = draw.normal(size=(count, 5)) + 0.8 * np.eye(5)[labels] * [1, 10, 0.1, 1, 1] * 3
    return torch.from_numpy(x * [1, 100, 1e-3, 1, 1]).float(), torch.from_numpy(labels)


def test_the_classifier_is_chosen_by_cross_validation_on_the_training_images():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    (x, y), (test, _) = blobs(), blobs(30, seed=1)

    def answers(a, labels, b, c):
        mean, std = a.mean(0), a.std(0)
        model = LogisticRegression(C=c, max_iter=2000).fit((a - mean) / std, labels)
        return model.predict((b - mean) / std)

    a, labels = x.double().numpy(), y.numpy()
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(a, labels))
    means = [
        np.mean([(answers(a[fit], labels[fit], a[held], c) == labels[held]).mean() for fit, held in folds])
        for c in transfer_probe.STRENGTHS
    ]
    expected = answers(a, labels, test.double().numpy(), transfer_probe.STRENGTHS[int(np.argmax(means))])
    found = transfer_probe.linear_answers(x, y, test)
    assert found.tolist() == expected.tolist()
    assert found.dtype == torch.int64
    # An answer depends on no other test image: nothing is standardized or chosen by them.
    assert transfer_probe.linear_answers(x, y, torch.cat([test[:1], 1e6 * test[1:]]))[0] == found[0]


def test_two_labels_a_class_are_enough_and_one_is_refused():
    x, y = blobs(6)
    assert transfer_probe.linear_answers(x, y, x).shape == (6,)
    with pytest.raises(ValueError, match="two labeled images or more"):
        transfer_probe.linear_answers(x[:4], y[:4], x)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("sklearn.datasets", transfer.digits),
        ("sklearn.linear_model", lambda: transfer_probe.linear_answers(*blobs(6), blobs(6)[0])),
    ],
)
def test_without_scikit_learn_it_is_told_how_to_get_it(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'ltpa\[notebooks\]'"):
        call()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "shapes"}, ValueError, "target='shapes' is what the networks are trained on"),
        ({"dataset": "folder", "target": "folder"}, ValueError, "target='folder' is what the networks are trained on"),
        ({"per_class": [1]}, ValueError, "per_class"),
    ],
)
def test_bad_parameters_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        TransferConfig(**{**TINY, **changes})


def test_another_folder_is_another_data_set():
    config = TransferConfig(**{**TINY, "dataset": "folder", "target": "folder", "target_dir": "elsewhere"})
    assert config.target_dir == "elsewhere"


def test_shapes_can_be_the_target():
    config = TransferConfig(**{**TINY, "dataset": "svhn", "target": "shapes"})
    data = config.target_data()
    assert (data.name, len(data.train), len(data.test)) == ("shapes", 40, 30)


# The grid


def test_every_feature_and_its_controls_are_tried(probed):
    kinds = [
        "vgg-late: mean",
        "vgg-late: g",
        "vgg-att3-concat-dp: g_s",
        "vgg-att3-concat-dp: g",
        "vgg-att3-concat-pc: g_s",
    ]
    assert probed.trained == kinds
    assert probed.names == [*kinds, *(f"{name}, untrained" for name in kinds), "pixels"]
    assert probed.baseline == "vgg-late: mean"
    assert probed.descriptors == ["vgg-att3-concat-dp: g_s", "vgg-att3-concat-pc: g_s"]
    for of in probed.correct.values():
        for right in of.values():
            assert list(right) == [1, 0]
            assert {values.shape for values in right.values()} == {(30,)}


def test_the_numbers_are_those_of_the_features(probed, monkeypatch):
    monkeypatch.setattr(transfer_probe, "STRENGTHS", STRENGTHS)
    train, test = probed.target.train, probed.target.test
    for result in probed.grid.results:
        if result.cell.variant != "vgg-att3-concat-dp":
            continue
        chosen, seed = transfer_probe.labeled(train.labels, 2, result.cell.seed), result.cell.seed
        for model, end in ((result.run.model, ""), (transfer_probe.untrained(result.run), ", untrained")):
            seen = [ltpa.attend(model, images, "fp32") for images in (train.images[chosen], test.images)]
            a, b = (torch.cat(list(s.descriptors.values()), 1) for s in seen)
            right = transfer_probe.linear_answers(a, train.labels[chosen], b) == test.labels
            agree = right == probed.correct[2][f"vgg-att3-concat-dp: g_s{end}"][seed]
            assert agree.sum() >= 29, "other batches round otherwise"
    a, b = (part.images.flatten(1).float() / 255 for part in (train, test))
    assert torch.equal(
        transfer_probe.linear_answers(a, train.labels, b) == test.labels, probed.correct[None]["pixels"][0]
    ), "all labels"


def made_up(accuracies, images=1000):
    """Probes with such accuracies, the same at both numbers of labels, give or take a little by seed."""
    config = TransferConfig(models=["vgg-late", "vgg-att3-concat-pc"], seeds=[0, 1, 2], per_class=[5, None])
    grid = Grid(config)
    for cell in config.grid():
        run = ltpa.Run(cell.config, tuple("abcdefghij"), None, Path("nowhere"))
        grid.results.append(Result(cell, run, torch.ones(images, dtype=torch.bool)))
    of = {
        name: {s: torch.arange(images) < round((value + (s - 1) / 500) * images) for s in range(3)}
        for name, value in accuracies.items()
    }
    data = transfer.digits(100, 40)
    return Probes(grid, data, {5: of, None: of})


ATT, LATE = "vgg-att3-concat-pc: g_s", "vgg-late: mean"


@pytest.mark.parametrize(
    ("attention", "before", "pixels", "verdict"),
    [
        (0.9, 0.6, 0.5, SUPPORTED),
        (0.9, 0.95, 0.5, CONTRADICTED),  # the untrained network is better
        (0.9, 0.6, 0.95, CONTRADICTED),  # the pixels are
        (0.6, 0.5, 0.5, CONTRADICTED),  # no better than the baseline
    ],
)
def test_a_claim_needs_the_baseline_and_both_controls(attention, before, pixels, verdict):
    of = {ATT: attention, LATE: 0.7, f"{ATT}, untrained": before, f"{LATE}, untrained": 0.6, "pixels": pixels}
    probes = made_up(of)
    comparisons = transfer.compare(probes)
    means = {(c.baseline, c.measure, c.model): c.interval.mean for c in comparisons}
    for measure in ("accuracy on digits, 5 labels a class", "accuracy on digits, all labels"):
        assert means[LATE, measure, ATT] == pytest.approx(attention - 0.7)
        assert means["untrained", measure, ATT] == pytest.approx(attention - before)
        assert means["pixels", measure, ATT] == pytest.approx(attention - pixels)
        assert transfer.claim_verdict(comparisons, measure, ATT) == verdict
    assert len(means) == 2 * 3
    text = " ".join(transfer.conclusion(probes, comparisons).split())
    assert f"{verdict}: {ATT}" in text
    assert f"With all labels: {SUPPORTED}: {ATT if verdict == SUPPORTED else 'none'};" in text
    assert f"better than pixels in {2 * (attention > pixels)} of 2 comparisons" in text


def test_chance_in_one_control_leaves_it_open():
    of = {ATT: 0.9, LATE: 0.7, f"{ATT}, untrained": 0.89, f"{LATE}, untrained": 0.6, "pixels": 0.5}
    probes = made_up(of)
    probes.correct[5][f"{ATT}, untrained"][0] = torch.arange(1000) < 930
    comparisons = transfer.compare(probes)
    assert transfer.claim_verdict(comparisons, transfer.measure(probes, 5), ATT) == UNDECIDED
    assert transfer.claim_verdict(comparisons, transfer.measure(probes, 5), "vgg: g_s") == UNDECIDED


def test_intervals_are_corrected_for_all_of_one_question(monkeypatch):
    of = {ATT: 0.9, LATE: 0.7, f"{ATT}, untrained": 0.8, f"{LATE}, untrained": 0.6, "pixels": 0.5}
    together, interval = [], crossed.Difference.interval
    monkeypatch.setattr(crossed.Difference, "interval", lambda self, n: together.append(n) or interval(self, n))
    transfer.compare(made_up(of))
    assert together == [2] * 6, "one network with attention, two numbers of labels"


def test_files_tables_and_figure(probed, tmp_path):
    comparisons = transfer.compare(probed)
    effects_path, accuracy_path = transfer.write_results(probed, comparisons, tmp_path)
    rows = pd.read_csv(effects_path)
    assert rows["baseline"].value_counts().to_dict() == {"vgg-late: mean": 4, "untrained": 4, "pixels": 4}
    assert set(rows["measure"]) == {"accuracy on digits, 2 labels a class", "accuracy on digits, all labels"}
    assert rows["model"].str.endswith(": g_s").all()
    key = ("untrained", "accuracy on digits, all labels", "vgg-att3-concat-dp: g_s")
    (one,) = [c for c in comparisons if (c.baseline, c.measure, c.model) == key]
    row = rows.set_index(["baseline", "measure", "model"]).loc[key]
    assert row["effect"] == pytest.approx(one.interval.mean, abs=1e-6)
    assert (row["verdict"], row["data"], row["seeds"], row["n"]) == (UNDECIDED, "shapes to digits", 2, 30)
    each = pd.read_csv(accuracy_path).set_index(["features", "seed", "labels_per_class"])
    assert len(each) == 2 * 11 * 2
    right = probed.correct[None]["pixels"][0].double().mean().item()
    assert each.loc[("pixels", 0, "all"), "accuracy"] == pytest.approx(right, abs=1e-6)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(each.loc[("pixels", 0, "all"), "correct"]), "uint8"))
    assert bits[:30].tolist() == probed.correct[None]["pixels"][0].int().tolist()
    table = transfer.accuracy_table(probed)
    assert list(table.index) == probed.names
    assert table.loc["pixels", "all labels"] == f"{100 * probed.accuracy(None, 'pixels').mean:.1f}", "no interval"
    assert transfer.comparison_table(comparisons, "pixels").shape == (2, 2)
    assert "Fewer than 3 seeds" in transfer.conclusion(probed, comparisons)

    figure = transfer.transfer_figure(probed)
    assert figure.axes[0].get_title() == "no attention"
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert len(points) == 2 * (1 + 4), "pixels, and two kinds of features, trained and untrained"
    assert list(points[1].get_ydata()) == [
        100 * r.double().mean().item() for r in probed.correct[None]["pixels"].values()
    ]
    assert len(to_png(figure)) > 10_000


def test_nothing_to_draw_or_to_conclude_is_named():
    probes = Probes(Grid(TransferConfig(**TINY)), transfer.digits(100, 40), {5: {}})
    with pytest.raises(ValueError, match="nothing to draw"):
        transfer.transfer_figure(probes)
    assert "Nothing can be concluded" in transfer.conclusion(probes, transfer.compare(probes))
