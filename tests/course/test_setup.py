"""What the first cell of a notebook does: paths beside the notebook, parameters that papermill was given."""

import pytest

from ltpa import TrainConfig
from ltpa.course import setup, training
from ltpa.course.attention_maps import LookConfig
from ltpa.course.query import QueryConfig


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout whose notebooks/ is the working folder, with a photo in it."""
    (tmp_path / "ltpa").mkdir()
    (tmp_path / "ltpa" / "_version.py").touch()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "cat.jpg").touch()
    monkeypatch.delenv("LTPA_FOLDER", raising=False)
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path.resolve()


def test_a_path_beside_the_notebook_is_found_again_and_again(project, capsys):
    for name in ("data", "run"):
        (project / "notebooks" / name).mkdir()
    for _ in range(2):  # the cell may be run again, from the project's folder
        config = setup.parameters({"photo": "cat.jpg", "run": "run", "data_dir": "elsewhere"}, LookConfig)
        assert config.photo == str(project / "notebooks" / "cat.jpg")
        assert config.run == str(project / "notebooks" / "run")
        assert config.data_dir == "elsewhere"
    assert capsys.readouterr().out.count(f"working folder: {project}") == 1
    assert setup.parameters({}, TrainConfig).data_dir == "data", "a default is the project's"
    assert setup.parameters({"photo": str(project / "x.jpg")}, LookConfig).photo == str(project / "x.jpg")


def test_from_the_projects_folder_nothing_moves(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert setup.parameters({"photo": "notebooks/cat.jpg"}, LookConfig).photo == "notebooks/cat.jpg"
    assert capsys.readouterr().out == ""


def test_what_papermill_was_given_is_not_replaced(monkeypatch, capsys):
    """Without a GPU the defaults give way to the quick parameters; a data set that was named does not."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    defaults = TrainConfig.defaults()
    cells = ["", "\n".join(f"{name} = {value!r}" for name, value in defaults.items())]
    assert training.parameters({**defaults, "In": cells}).dataset == "shapes"
    assert "There is no GPU in use" in capsys.readouterr().out
    named = training.parameters({**defaults, "In": [*cells, '# Parameters\ndataset = "cifar10"']})
    assert named == TrainConfig()
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="data_dir='photos' is not used by dataset='shapes'"):
        training.parameters({**defaults, "In": cells, "dataset": "shapes", "data_dir": "photos"})
    assert training.parameters({**defaults, "In": cells, "data_dir": "photos"}).dataset == "cifar10"
    with pytest.raises(ValueError, match="data_dir='photos' holds the images of a run; name the run, too"):
        setup.parameters({"data_dir": "photos"}, QueryConfig)
