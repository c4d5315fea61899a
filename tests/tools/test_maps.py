"""The command that writes what the page on maps shows."""

import pandas as pd

from ltpa.course import map_quality
from tests.course.test_map_quality import made
from tests.tools.__main__ import main
from tests.tools.maps import BEGIN, END
from tests.tools.results import read_effects


def test_tables_effects_and_picture_come_from_the_runs_that_are_there(tmp_path, monkeypatch, capsys):
    config = map_quality.MapQualityConfig(models=["vgg-att3-concat-pc", "vgg-late"], seeds=[0, 1, 2])
    file = tmp_path / "parameters.yaml"
    file.write_text("models: [vgg-att3-concat-pc, vgg-late]\nseeds: [0, 1, 2]\n", encoding="utf-8")
    (first, _path), *others = map_quality.run_folders(config.grid()).items()
    for _, one in others:
        (tmp_path / "runs" / one.name).mkdir(parents=True)
        (tmp_path / "runs" / one.name / "config.json").write_text("{}", encoding="utf-8")
    measured_runs = {}
    monkeypatch.setattr(map_quality, "measure_runs", lambda runs, *_: measured_runs.update(runs) or made())
    (tmp_path / "docs" / "images").mkdir(parents=True)
    page = tmp_path / "docs" / "results" / "04_map_quality.md"
    page.parent.mkdir()
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\nmore\n", encoding="utf-8")
    words = ["maps", "--file", str(file), "--runs", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
    assert main(words) == 0
    assert list(measured_runs.values()) == [tmp_path / "runs" / one.name for _, one in others]
    assert f"not trained: {first[0]} {first[1]}\n" in capsys.readouterr().out
    data = tmp_path / "docs" / "results" / "data"
    assert set(read_effects(data / "effects_04.csv")["seeds"]) == {5}
    assert "attention" in pd.read_csv(data / "table_04_average_precision.csv")["average precision"].tolist()
    again = map_quality.Values(map_quality.Measured.read(data, "maps_04"))
    assert again.models == ["pc", "vgg-late"]
    text = page.read_text("utf-8")
    assert "average precision of 0.60 to 0.60" in text
    assert "with 0.60 to 0.60: better in 0 and worse in 0 of 1 networks" in text
    assert "1 of 2 levels can be permuted" in text
    assert len(list((tmp_path / "docs" / "images").glob("04*.png"))) == 1
