"""What is told after an epoch: against loops, and in trainings whose maps are made flat or pointed by hand."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from ltpa import Split, create_model, evaluate, fit
from ltpa.inference import attend, evaluate_images
from ltpa.training import callbacks
from ltpa.training import trainer as train
from ltpa.training.health import COLLAPSED, UNIFORM, problems
from tests.tools.crash import tiny_config, tiny_data

LABELS = torch.tensor([0, 1, 2, 0])


def told(predictions=(0, 1, 1, 1), labels=LABELS, **strongest):
    shares = {level: (torch.tensor(values), n) for level, (values, n) in strongest.items()}
    return problems(labels, torch.tensor(predictions), shares)


def test_predictions_that_are_all_equal():
    assert told() == []
    (words,) = told(predictions=(1, 1, 1, 1))
    assert words.startswith("every test image is taken for the same class")
    assert "try a lower learning_rate" in words
    assert told(predictions=(0, 0, 0, 0), labels=torch.zeros(4, dtype=torch.int64)) == []  # as it should be


def test_only_maps_that_are_so_in_every_image_are_told():
    healthy = [0.5, 0.02, 0.99, 1.0]
    flat = [1.05 / 64] * 4
    pointed = [0.96, 0.97, 1.0, 0.99]
    found = told(conv7=(flat, 64), conv10=(pointed, 256), conv13=(healthy, 64))
    assert [words.split(":")[0] for words in found] == [
        "attention at conv7 is uniform",
        "attention at conv10 is collapsed",
    ]
    assert all("Try" in words for words in found)
    assert told(conv7=([*flat[:3], 2 / 64], 64)) == []
    assert told(conv7=([*pointed[:3], 0.9], 64)) == []
    assert told(cam=([math.nan] * 4, 64)) == []
    assert told(cam=([math.nan, *flat[:3]], 64)) == []


def test_the_strongest_position_is_found_by_looking_at_every_one():
    torch.manual_seed(0)
    model = create_model("vgg-att2-concat-dp", 10, width=1 / 32).eval()
    split = tiny_data().test
    found = evaluate_images(model, split, "fp32", batch_size=7)
    assert found.scores == evaluate(model, split, "fp32", batch_size=7)
    seen = attend(model, split.images, "fp32", batch_size=7)
    assert found.predictions.tolist() == [max(range(10), key=row.__getitem__) for row in seen.logits.tolist()]
    assert list(found.strongest) == ["conv10", "conv13"]
    for level, maps in seen.maps.items():
        shares, positions = found.strongest[level]
        assert positions == maps.shape[1] * maps.shape[2]
        for share, rows in zip(shares.tolist(), maps.tolist(), strict=True):
            values = [value for row in rows for value in row]
            assert share == pytest.approx(max(values) / sum(values), rel=1e-5)


@pytest.mark.parametrize(("factor", "word"), [(0.0, "uniform"), (1e9, "collapsed")])
def test_a_training_tells_once_a_level(tmp_path, monkeypatch, factor, word):
    models = []
    plain = train.evaluate_images

    def examine_spoilt(model, *args, **processes):
        with torch.no_grad():
            for name in ("conv7", "conv13") if len(models) >= 2 else ():
                model.attention[name].u.mul_(factor).nan_to_num_(0.0)
        return plain(model, *args, **processes)

    monkeypatch.setattr(train, "evaluate_images", examine_spoilt)
    config = tiny_config(tmp_path / "run", epochs=4)
    run = fit(config, tiny_data(), progress=False, callbacks=[lambda run: models.append(run.model)])
    about_maps = [words for words in run.notes if "attention at" in words]
    assert [words.split(":")[:2] for words in about_maps] == [
        ["after epoch 3", f" attention at {level} is {word}"] for level in ("conv7", "conv13")
    ]


def test_a_training_that_answers_always_the_same_tells(tmp_path, capfd):
    def spoil(run):
        with torch.no_grad():
            run.model.head.classifiers[0].bias[3] = 1e4

    run = fit(tiny_config(tmp_path / "run", epochs=2), tiny_data(), callbacks=[spoil])
    assert len(run.notes) == 1
    # In the first epoch so small a network may do it by itself; in the second it must.
    assert re.match("after epoch [12]: every test image is taken for the same class", run.notes[0])
    assert f"note: {run.notes[0]}" in capfd.readouterr().out


def test_the_maps_of_an_even_network_are_uniform_and_only_those():
    """The limits on real maps: u = 0 gives even maps; a little more than the limit is not uniform."""
    torch.manual_seed(0)
    model = create_model("vgg-att-concat-pc", 10, width=1 / 32).eval()
    split = tiny_data().test
    with torch.no_grad():
        model.attention["conv13"].u.zero_()
    shares, positions = evaluate_images(model, split, "fp32").strongest["conv13"]
    assert torch.allclose(shares * positions, torch.ones(len(split)))
    assert 1 < UNIFORM < 1.5
    assert 0.5 < COLLAPSED < 1


def test_one_test_image_is_no_evidence(tmp_path):
    data = tiny_data()
    one = Split(data.test.images[:1], data.test.labels[:1])
    examined = evaluate_images(create_model("vgg", 10, width=1 / 32).eval(), one, "fp32")
    assert problems(one.labels, examined.predictions, examined.strongest) == []


@pytest.mark.parametrize(
    ("later", "pixels", "warnings"),
    [(0.1, 1, 0), (0.29, 1, 0), (2.0, 1, 1), (2.0, 20, 0)],
    ids=["as promised", "not three times as long", "twenty times as long", "the pictures have grown"],
)
def test_a_training_that_becomes_far_slower_says_so_once(later, pixels, warnings, monkeypatch, caplog):
    """A first second that is not counted, then steps of 0.1 s, and the later ones; a test takes an hour."""
    clock, state = SimpleNamespace(now=0.0), SimpleNamespace(step=0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: clock.now))
    trainer, slowdown = SimpleNamespace(state=state, pixels=1), callbacks.Slowdown()
    slowdown.on_start(trainer)
    with caplog.at_level("WARNING", logger="ltpa"):
        for step in range(1, 201):
            state.step, clock.now = step, clock.now + (1.0 if step == 1 else 0.1 if step <= 60 else later)
            trainer.pixels = 1 if step <= 60 else pixels
            slowdown.on_step(trainer)
            if step % 50 == 0:
                clock.now += 3600
                slowdown.on_epoch(trainer)
    assert len(caplog.records) == warnings
    assert all(re.search(r"a step takes .* s on average, .* times as long", r.message) for r in caplog.records)
