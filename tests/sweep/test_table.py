"""The table of a sweep and its figure."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import ltpa
from ltpa.sweep.plan import fit_alone, make_plan
from ltpa.viz import sweep_figure, to_png


def test_rows_are_in_the_order_of_numbers_and_a_moved_folder_is_read(tmp_path):
    made = make_plan(tmp_path / "a", fit_alone(), {}, {"seed": [10, 9, 2], "width": [0.25]})
    for record in made.records:
        replace(record, state="done", run="run", notebook="s3://b/n.ipynb").save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    table = ltpa.load_sweep(tmp_path / "b")
    assert list(table["seed"]) == [2, 9, 10]
    assert table["path"][0] == str(tmp_path / "b" / "seed=2,width=0.25" / "run")
    assert set(table["notebook"]) == {"s3://b/n.ipynb"}


def test_what_is_no_sweep_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        ltpa.load_sweep(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "variant.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a/variant\.json is damaged"):
        ltpa.load_sweep(tmp_path)


@pytest.fixture
def table():
    draw = np.random.default_rng(0)
    rows = [
        {"model": model, "width": width, "seed": seed, "state": "done", "test_accuracy": draw.random()}
        for model in ("a", "b")
        for width in (0.125, 0.5, 2.0)
        for seed in range(4)
    ]
    return pd.DataFrame([*rows, {**rows[0], "seed": 9, "state": "failed", "test_accuracy": np.nan}])


def test_points_means_and_intervals(table):
    figure = sweep_figure(table, "width", by="model")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    bars = axes.containers
    assert [bar.get_label() for bar in bars] == ["a", "b"]
    for model, bar in zip("ab", bars, strict=True):
        groups = table[table["model"] == model].dropna().groupby("width")["test_accuracy"]
        line, _, (segments,) = bar
        assert np.allclose(line.get_ydata(), groups.mean())
        assert list(line.get_xdata()) == [0.125, 0.5, 2.0]
        for segment, (_, values) in zip(segments.get_segments(), groups, strict=True):
            expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
            assert np.allclose(sorted(segment[:, 1]), expected)
    points = [line for line in axes.lines if line.get_alpha() is not None]
    assert sum(len(line.get_xdata()) for line in points) == 24
    assert to_png(figure)


def test_words_have_a_place_each(table):
    (axes,) = sweep_figure(table, "model", by="width").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert len({x for bar in axes.containers for x in bar[0].get_xdata()}) == 6, "lines stand side by side"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("widht",), "did you mean 'width'"),
        (("width", "model"), "'model' does not hold numbers"),
        (("width", "test_accuracy", "modle"), "did you mean 'model'"),
    ],
)
def test_wrong_columns(table, columns, message):
    with pytest.raises(ValueError, match=message):
        sweep_figure(table, *columns)
