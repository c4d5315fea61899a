"""Whether measures rank maps alike."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from ltpa.metrics import measure_agreement, ranks

pytest.importorskip("scipy")


def test_against_counting_pairs():
    scores = pd.DataFrame(np.random.default_rng(0).random((9, 4)), index=list("abcdefghi"), columns=list("wxyz"))
    table = measure_agreement(scores, lower_is_better=["y"])
    assert len(table) == 6
    assert table["tau"].is_monotonic_increasing
    sign = {"w": 1, "x": 1, "y": -1, "z": 1}
    for row in table.itertuples():
        first, second = scores[row.first] * sign[row.first], scores[row.second] * sign[row.second]
        alike = [(first[a] - first[b]) * (second[a] - second[b]) > 0 for a, b in combinations("abcdefghi", 2)]
        assert row.tau == pytest.approx((2 * sum(alike) - 36) / 36)
        assert row.discordant == pytest.approx(1 - sum(alike) / 36)
        assert (row.best_of_first, row.best_of_second, row.maps) == (first.idxmax(), second.idxmax(), 9)


def test_contradiction_ties_and_gaps():
    up = np.arange(8.0)
    index = pd.MultiIndex.from_product([["one", "two"], list("abcd")])
    scores = pd.DataFrame({"up": up, "down": -up, "flat": 0 * up, "gaps": np.where(up < 6, up, np.nan)}, index=index)
    table = measure_agreement(scores).set_index(["first", "second"])
    assert table.loc[("up", "down"), "tau"] == pytest.approx(-1)
    assert table.loc[("up", "down"), "contradict"]
    assert table.loc[("up", "down"), ["best_of_first", "best_of_second"]].tolist() == ["two d", "one a"]
    assert np.isnan(table.loc[("up", "flat"), ["tau", "discordant"]].astype(float)).all()
    assert table.loc[("up", "gaps"), ["tau", "maps"]].tolist() == pytest.approx([1, 6])
    assert not table.loc[("up", "gaps"), "contradict"]
    turned = measure_agreement(scores[["up", "down"]], lower_is_better=["down"])
    assert turned["tau"].tolist() == pytest.approx([1])
    assert ranks(scores, ["down"])["down"].tolist() == ranks(scores)["up"].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]
    with pytest.raises(ValueError, match="no column of the table: left"):
        measure_agreement(scores, ["left"])
