"""Notebooks in plain Python."""

import json

from tests.tools import notebook


def test_cells_run_with_the_parameters_and_figures_are_files(tmp_path, capsys):
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# text"]},
        {"cell_type": "code", "id": "b", "metadata": {"tags": ["parameters"]}, "source": ["x = 1\n", "y = 2"]},
        {"cell_type": "code", "id": "c", "metadata": {}, "source": ["import ltpa\n", "x + y"]},
        {"cell_type": "code", "id": "d", "metadata": {}, "source": [
            "from ltpa.viz.style import new_figure\n", "ltpa.viz.display(new_figure(1), alt='empty')"]},
    ]  # fmt: skip
    path = tmp_path / "one.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert notebook.execute(path, {"x": 10}, tmp_path / "figures")["x"] == 10
    assert capsys.readouterr().out == "12\n"
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["d.png"]
