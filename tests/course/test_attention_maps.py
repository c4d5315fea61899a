"""What notebook 02 looks at: built-in weights, a run, a folder of your own; what is named is not replaced."""

import dataclasses

import pytest
import torch
from PIL import Image

import ltpa
from ltpa import pretrained
from ltpa.course import attention_maps
from ltpa.course.attention_maps import LookConfig
from ltpa.data.download import DownloadError
from tests.training.harness import write_run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder without data, on a machine without a network."""

    def refuse(*_, **__):
        raise DownloadError("cifar10-test.parquet could not be downloaded. Tried: ...")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ltpa.data.cifar.fetch", refuse)
    monkeypatch.setattr("ltpa.data.cifar._fetch_from_hub", refuse)
    return tmp_path


@pytest.fixture
def network():
    return attention_maps.built_in("cifar10-small", "cpu")


def part(data, count):
    return dataclasses.replace(data, test=data.test[:count])


def test_unknown_runs_are_answered_with_the_closest_name():
    with pytest.raises(FileNotFoundError, match=r"did you mean 'cifar10-small'\? known: built-in, auto, cifar10-small"):
        attention_maps.find(LookConfig(run="cifar10-smal"))


def test_by_default_drawn_pictures_are_shown_where_there_is_no_network(capsys):
    """Every section of the notebook then shows something."""
    config = LookConfig(device="cpu", examples=3)
    network, data = attention_maps.find(config)
    printed = capsys.readouterr().out
    assert "could not be downloaded: instead of cifar10, drawn pictures and weights for them are shown" in printed
    assert network.name == pretrained.DRAWN
    assert data.test.masks is not None
    output = ltpa.attend(network.model, data.test[:100])
    titles, wrong = attention_maps.describe(network, part(data, 100), output.logits)
    assert len(titles) == 100
    figures = attention_maps.snapshot_figures(network, data, config)
    assert list(figures) == list(output.maps)
    assert len(figures["conv7"].axes) >= 2 * 3
    verdict = attention_maps.verdict(part(data, 100), output.maps, wrong)
    assert all(f"{level}: right" in verdict or f"{level}: wrong" in verdict for level in output.maps)
    assert "on the object" in verdict


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"run": "cifar10-small"}, "could not be downloaded"),
        ({"run": "cifar10-small", "download": False}, "cifar10 is not in data or not complete"),
        ({"data_dir": "no/such/folder"}, "data_dir='no/such/folder' is not a folder"),
        ({"run": pretrained.DRAWN, "data_dir": "no/such/folder"}, "data_dir='no/such/folder' is not a folder"),
        ({"data_dir": "."}, "data_dir='.' holds no images for this network, .* cifar10"),
        ({"run": pretrained.DRAWN, "data_dir": "."}, "data_dir='.' holds no images for this network, .* shapes"),
    ],
    ids=str,
)
def test_what_was_named_is_not_replaced(named, message, folder):
    with pytest.raises((OSError, ValueError), match=message):
        attention_maps.find(LookConfig(device="cpu", **named))
    assert [path.name for path in folder.iterdir() if path.name != "data"] == []


def test_auto_names_the_newest_complete_run_with_maps(capsys):
    for number, options in enumerate(
        ({}, {"epochs": 3}, {"model": "vgg-late"}, {"seed": 1}, {"epochs": 2}, {"model": "vgg"})
    ):
        path = write_run(f"runs/{number}", **options)
        if number == 3:
            (path / "history.csv").unlink()
    network = attention_maps.find_network(LookConfig(run="auto", device="cpu"))
    assert network.name == "runs/0"
    assert capsys.readouterr().out.splitlines() == [
        "passed over:",
        "  runs/5: vgg has no attention maps",
        "  runs/4: unfinished, 1 of 2 epochs",
        "  the run folder runs/3 is incomplete: history.csv missing (it is written after the first epoch); call fit "
        "again with its settings, or delete it",
        "  runs/2: vgg-late has no attention maps",
        "  runs/1: unfinished, 1 of 3 epochs",
        "the newest complete run with maps, runs/0: vgg-att3-concat-pc on shapes, 1 epoch, test accuracy 12.5%",
    ]


def test_a_network_without_snapshots_shows_those_of_the_drawn_pictures(network, folder, capsys):
    data = attention_maps.find_images(attention_maps.built_in(pretrained.DRAWN, "cpu"), LookConfig())
    figures = attention_maps.snapshot_figures(network, data, LookConfig(examples=2, device="cpu"))
    assert "cifar10-small has no maps of earlier epochs" in capsys.readouterr().out
    assert len(figures) == 3


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


def test_the_border_of_a_plain_picture_is_bright_because_of_the_zeros_around_it():
    plain = attention_maps.plain_pictures(20)
    assert plain.flatten(2).std(dim=2).max() == 0
    model = ltpa.load_pretrained()
    table = attention_maps.border_table(model, plain)
    assert list(table.index) == ["conv7", "conv10", "conv13"]
    assert table.loc["conv7", "as it is"] > 1.5
    assert table.loc["conv7", "continued"] == pytest.approx(1, abs=0.01)
    maps = ltpa.attend(model, plain).maps["conv7"].numpy()
    ring = [m[y, x] / m.mean() for m in maps for y in range(32) for x in range(32) if {y, x} & {0, 31}]
    assert table.loc["conv7", "as it is"] == pytest.approx(sum(ring) / len(ring), abs=0.006)
