"""What notebook 02 looks at: shipped weights, a run, photographs in place of test images, your own folder."""

import pytest
import torch
from PIL import Image

import ltpa
from ltpa.course import attention_maps
from ltpa.course.attention_maps import LookConfig
from ltpa.data.samples import Photographs


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return attention_maps.find_network(LookConfig(device="cpu"))


def test_unknown_runs_are_answered_with_the_closest_name():
    with pytest.raises(FileNotFoundError, match=r"did you mean 'cifar10-small'\? known: auto, cifar10-small"):
        attention_maps.find_network(LookConfig(run="cifar10-smal"))


def test_photographs_stand_in_for_test_images(network, capsys, monkeypatch):
    config = LookConfig(device="cpu")
    data = attention_maps.find_images(network, config)
    assert isinstance(data, Photographs)
    assert "download = True" in capsys.readouterr().out
    output = ltpa.attend(network.model, data.test.images)
    titles, wrong = attention_maps.describe(network, data, output.logits)
    assert titles[3].startswith("a rocket | ")
    assert titles[3].endswith("truth: none of these")
    assert all(data.test.labels[wrong] >= 0)
    assert "of the 3 that show one of its classes are right; the other 6 show none" in capsys.readouterr().out
    assert attention_maps.snapshot_figures(network, data, config) == {}
    assert attention_maps.verdict(data, {}, wrong).startswith("Not decidable")
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install 'ltpa\[notebooks\]'"):
        attention_maps.find_images(network, config)


def test_a_folder_of_its_classes_takes_the_place_of_cifar(network, tmp_path, capsys):
    for part in ("train", "test"):
        for number, name in enumerate(network.model.classes):
            (tmp_path / part / name).mkdir(parents=True)
            color = (number * 20, 0, 100 if part == "test" else 0)
            Image.new("RGB", (32, 32), color).save(tmp_path / part / name / "0.png")
    data = attention_maps.find_images(network, LookConfig(data_dir=str(tmp_path), device="cpu"))
    assert data.name == "folder"
    assert len(data.test) == 10
    output = ltpa.attend(network.model, data.test.images)
    titles, wrong = attention_maps.describe(network, data, output.logits)
    assert len(titles) == 10
    verdict = attention_maps.verdict(data, output.maps, wrong)
    assert all(level in verdict for level in output.maps)
    assert "of 10 test images are right" in capsys.readouterr().out
    (tmp_path / "train" / network.model.classes[0]).rename(tmp_path / "train" / "zebra")
    (tmp_path / "test" / network.model.classes[0]).rename(tmp_path / "test" / "zebra")
    with pytest.raises(ValueError, match="zebra"):
        attention_maps.find_images(network, LookConfig(data_dir=str(tmp_path), device="cpu"))


def test_entropies_are_a_row_for_each_level():
    collapsed = torch.zeros(4, 2, 2)
    collapsed[:, 0, 0] = 1
    table = attention_maps.entropy_table({"conv7": torch.ones(4, 2, 2), "conv10": collapsed})
    assert table.to_numpy().tolist() == [[1, 1, 1], [0, 0, 0]]
    assert list(table.index) == ["conv7", "conv10"]


def test_images_are_drawn_by_the_seed():
    first, again, other = (LookConfig(seed=seed, examples=3).draw(50).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 3
    assert len(LookConfig(examples=9).draw(4)) == 4
