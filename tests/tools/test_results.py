"""The pages of results: their tables are current, and the committed files agree with one another."""

import pandas as pd
import pytest
import yaml

from ltpa.course import map_quality, query
from ltpa.course.effects import MARGIN
from ltpa.course.robustness import AttackConfig
from ltpa.course.transfer import TransferConfig
from ltpa.metrics.statistics import Interval, verdict
from tests.tools.results import BEGIN, COLUMNS, END, FOLDER, KINDS, effects_tables, pages, read_effects

DATA = FOLDER / "data"
ROW = {
    **{"claim": "attention helps", "model": "vgg-att3-concat-pc", "baseline": "vgg-late", "measure": "accuracy"},
    **{"data": "shapes", "budget": "5 epochs", "seeds": 3, "n": 200, "effect": 0.0123, "low": -0.004, "high": 0.0286},
    "margin": 0.005,
    "verdict": "undecided",
}


def cells(table):
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_generated_parts_are_current():
    texts = pages()
    assert len(texts) == 6
    outdated = [path.name for path, text in texts.items() if path.read_text("utf-8") != text]
    assert not outdated, "run `python -m tests.tools results`"


def test_effects_are_in_points_and_one_seed_is_said():
    one_seed = {**ROW, "claim": "maps find it", "seeds": 1, "low": None, "high": None, "verdict": "supported"}
    first, second = effects_tables(pd.DataFrame([ROW, one_seed])).split("**maps find it**")
    assert cells(first) == [["`vgg-att3-concat-pc`", "vgg-late", "accuracy", "200", "+1.2 [-0.4, +2.9]", "undecided"]]
    assert cells(second)[0][-2:] == ["+1.2", "supported"]
    assert ("one seed" in first, "one seed" in second) == (False, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [*(({column: None}, column) for column in COLUMNS), ({"verdict": "yes"}, "'yes'"), ({"low": "much"}, "much")],
)
def test_other_files_are_refused_by_name(change, message, tmp_path):
    row = {key: value for key, value in (ROW | change).items() if value is not None}
    pd.DataFrame([row]).to_csv(tmp_path / "effects_03.csv", index=False)
    with pytest.raises(ValueError, match=rf"effects_03.csv.*{message}"):
        read_effects(tmp_path / "effects_03.csv")


def test_pages_are_written_between_marks(tmp_path):
    (tmp_path / "data").mkdir()
    pd.DataFrame([ROW]).to_csv(tmp_path / "data" / "effects_03_more.csv", index=False)
    for name in ("03_page.md", "index.md"):
        (tmp_path / name).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    texts = {path.name: text for path, text in pages(tmp_path).items()}
    assert set(texts) == {"03_page.md", "index.md"}
    assert all(text.startswith("before\n") and text.endswith("\nafter\n") for text in texts.values())
    assert "old" not in "".join(texts.values())
    (tmp_path / "index.md").write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match=r"index.md lacks the marks"):
        pages(tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("06_robustness", AttackConfig), ("07_transfer", TransferConfig)])
def test_data_and_budget_follow_from_the_committed_parameters(name, kind):
    (file,) = DATA.glob(f"effects_{name[:2]}*.csv")
    effects = read_effects(file)
    if effects["budget"].str.contains("version 0.1").all():
        pytest.skip("not measured with these parameters yet")
    parameters = FOLDER.parents[1] / "notebooks" / "params" / "ablation" / f"{name}.yaml"
    config = kind(**yaml.safe_load(parameters.read_text("utf-8")))
    suffix = f" to {config.target}" if isinstance(config, TransferConfig) else ""
    assert set(effects["data"]) == {config.data_described() + suffix}
    assert set(effects["seeds"]) == {len(config.seeds)}
    (budget,) = set(effects["budget"])
    assert config.described() == budget


@pytest.mark.parametrize("file", sorted(path.name for kind in KINDS[1:] for path in DATA.glob(f"{kind}_*.csv")))
def test_verdicts_follow_from_the_intervals(file):
    margins = {"03": MARGIN, "05": query.MARGIN, "06": MARGIN, "07": MARGIN}
    for row in read_effects(DATA / file).itertuples():
        assert row.low <= row.effect <= row.high
        if (margin := margins.get(file.partition("_")[2][:2])) is not None:
            assert row.margin == margin
        assert row.verdict == verdict(Interval(row.effect, row.low, row.high), row.margin)


def test_effects_of_transfer_are_those_of_the_accuracies():
    (file,) = DATA.glob("effects_07_*.csv")
    accuracies = pd.read_csv(DATA / file.name.replace("effects_07", "transfer"), dtype={"labels_per_class": str})
    accuracies = accuracies.groupby(["features", "labels_per_class"])["accuracy"].mean()
    for row in read_effects(file).itertuples():
        labels = row.measure.rpartition(", ")[2].split()[0]
        other = f"{row.model}, untrained" if row.baseline == "untrained" else row.baseline
        assert accuracies[row.model, labels] - accuracies[other, labels] == pytest.approx(row.effect, abs=2e-6)


@pytest.mark.skipif(not (DATA / "effects_04.csv").exists(), reason="not measured on these pictures yet")
def test_effects_of_maps_are_those_of_the_published_values():
    effects = read_effects(DATA / "effects_04.csv")
    (budget,) = set(effects["budget"])
    again = map_quality.all_effects(map_quality.Values(map_quality.Measured.read(DATA, "maps_04")), budget)
    assert [effect.claim for effect in again] == effects["claim"].tolist()
    assert [effect.interval.mean for effect in again] == pytest.approx(effects["effect"].tolist(), abs=1e-3)
