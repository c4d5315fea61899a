"""The table of verdicts: every row of the files is there, in points, and the README has what the command gives."""

import csv
import re
from pathlib import Path

import pytest
import yaml

from ltpa.course.ablation import AblationConfig
from ltpa.course.map_quality import SEGMENTS
from ltpa.course.robustness import AttackConfig
from ltpa.course.transfer import TransferConfig
from tests.tools.__main__ import main
from tests.tools.verdicts import BEGIN, COLUMNS, END, read_effects, verdict_table

ROOT = Path(__file__).parents[2]
ROW = {
    **{"claim": "attention helps", "model": "vgg-att3-concat-pc", "baseline": "vgg-late", "measure": "accuracy"},
    **{"data": "shapes", "budget": "5 epochs", "n": "3", "effect": "0.0123", "low": "-0.004", "high": "0.0286"},
    "verdict": "not decidable at this budget",
}


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_row_is_there_in_points(tmp_path):
    other = {**ROW, "claim": "maps find it", "n": "1", "effect": "0.5", "low": "", "high": "", "verdict": "supported"}
    longer = {**ROW, "budget": "50 epochs", "effect": "-0.01"}
    rows = read_effects([write_csv(tmp_path / "a.csv", [ROW, longer]), write_csv(tmp_path / "b.csv", [other])])
    assert rows == [ROW, longer, other]
    lines = verdict_table(rows).splitlines()
    assert [line for line in lines if line.startswith("**")] == [
        "**attention helps** (shapes; 5 epochs)",
        "**attention helps** (shapes; 50 epochs)",
        "**maps find it** (shapes; 5 epochs)",
    ]
    told = [line for line in lines if line.startswith("| `")]
    assert told == [
        "| `vgg-att3-concat-pc` | vgg-late | accuracy | 3 | +1.2 [-0.4, +2.9] | not decidable at this budget |",
        "| `vgg-att3-concat-pc` | vgg-late | accuracy | 3 | -1.0 [-0.4, +2.9] | not decidable at this budget |",
        "| `vgg-att3-concat-pc` | vgg-late | accuracy | 1 | +50.0 | supported |",
    ]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_file_that_lacks_a_column_is_named(column, tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", [{k: v for k, v in ROW.items() if k != column}])
    assert main(["verdicts", str(path)]) == 1
    assert f"a.csv is no file of effects: it lacks {column}" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, capsys, monkeypatch):
    path = write_csv(tmp_path / "a.csv", [{**ROW, "low": "much"}])
    assert main(["verdicts", str(path)]) == 1
    assert "could not convert string to float" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["verdicts"]) == 1
    assert "there are no files of effects" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "name", "kind", "behind"),
    [
        ("03", "03_ablation", AblationConfig, ""),
        ("06", "06_robustness", AttackConfig, ""),
        ("07_digits", "07_transfer", TransferConfig, " to digits"),
    ],
)
def test_the_files_say_what_the_code_says_for_their_parameters(number, name, kind, behind):
    """No column of the committed files was typed by hand: data and budget follow from the parameters beside them."""
    parameters = ROOT / "notebooks" / "params" / "ablation" / f"{name}.yaml"
    config = kind(**yaml.safe_load(parameters.read_text("utf-8")))
    rows = read_effects([ROOT / "docs" / f"effects_{number}.csv"])
    assert {row["data"] for row in rows} == {config.data_described() + behind}
    assert {row["budget"] for row in rows} == {config.described()}


def test_the_accuracies_of_the_classifiers_are_those_of_the_effects():
    with (ROOT / "docs" / "transfer_digits.csv").open(encoding="utf-8", newline="") as file:
        accuracies: dict[tuple[str, str], list[float]] = {}
        for row in csv.DictReader(file):
            accuracies.setdefault((row["features"], row["labels_per_class"]), []).append(float(row["accuracy"]))
    for row in read_effects([ROOT / "docs" / "effects_07_digits.csv"]):
        labels = "5" if ", 5 labels" in row["measure"] else "all"
        other = f"{row['model']}, untrained" if row["baseline"] == "untrained" else row["baseline"]
        first, second = accuracies[row["model"], labels], accuracies[other, labels]
        assert len(first) == len(second) == int(row["n"])
        assert sum(first) / 5 - sum(second) / 5 == pytest.approx(float(row["effect"]), abs=2e-6)


def test_the_jaccard_index_of_the_claims_is_that_of_the_table():
    def read(name):
        with (ROOT / "docs" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    table = {(row["model"], row["map"]): float(row["jaccard"]) for row in read("maps_measured.csv")}
    found = [row for row in read("maps_measured_claims.csv") if "segments better" in row["claim"]]
    assert len(found) == 24
    for row in found:
        level, rival = re.match(r"(\w+), binarized, segments better than (.*) \(Jaccard", row["claim"]).groups()
        assert float(row["difference"]) == pytest.approx(
            table[row["model"], level] - table[row["model"], rival], abs=2e-4
        )
    effects = [row for row in read("effects_04.csv") if row["claim"] == SEGMENTS]
    assert [(row["model"], row["effect"], row["verdict"]) for row in effects] == [
        (row["model"], row["difference"], row["verdict"]) for row in found
    ]


def test_the_readme_has_what_the_command_gives():
    text = (ROOT / "README.md").read_text("utf-8")
    table = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert table == verdict_table(read_effects(sorted((ROOT / "docs").glob("effects_*.csv"))))
