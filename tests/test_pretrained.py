"""Weights that come with the package, and how they are made: whole or refused, and in agreement with their card."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import ltpa
from ltpa import pretrained
from ltpa.data.samples import photographs
from ltpa.training.checkpoint import load_tensors
from ltpa.viz import captions
from tests.tools import pack
from tests.tools.__main__ import main

ROOT = Path(__file__).parent.parent
NAME = pretrained.DEFAULT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the package's weights that a test may damage."""
    copy = tmp_path / "weights"
    shutil.copytree(pretrained.FOLDER, copy)
    monkeypatch.setattr(pretrained, "FOLDER", copy)
    return copy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A complete run, small, on data with masks."""
    settings = {"dataset": "shapes", "width": 0.0625, "train_limit": 400, "test_limit": 60, "epochs": 1, "snapshots": 3}
    path = tmp_path_factory.mktemp("runs") / "run"
    return ltpa.fit(ltpa.TrainConfig(**settings, batch_size=50, device="cpu", run_dir=path), progress=False)


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """(folder, facts, tensors) of its weights."""
    folder = tmp_path_factory.mktemp("packed")
    path = pack.pack(trained, "tiny-shapes", images=4, folder=folder, precision="fp32", say=lambda text: None)
    tensors, facts = load_tensors(path)
    return folder, facts, tensors


# --- loading


def test_the_shipped_weights_are_what_the_pages_say():
    facts = pretrained.pretrained_facts(NAME)
    assert facts["settings"]["width"] == 0.25  # "a quarter of its width"
    assert facts["figures"]["accuracy"]["mean"] >= 0.89
    assert facts["figures"]["images"] == 10_000
    text = json.dumps(facts)
    assert not re.search(r"/(home|root|work|tmp)\b", text), "a path of some machine"


def test_it_is_a_model_in_float32_and_evaluation_mode_with_its_classes():
    model, facts = ltpa.load_pretrained(NAME, "cpu"), pretrained.pretrained_facts(NAME)
    assert model.name == facts["settings"]["model"]
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert " ".join(model.classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    assert facts["dataset"] == "cifar10"
    assert len(facts["history"]) == facts["settings"]["epochs"]
    output = ltpa.attend(model, torch.rand(2, 3, 40, 48), "fp32")
    assert list(output.maps) == ["conv7", "conv10", "conv13"]
    for maps in output.maps.values():
        assert torch.allclose(maps.sum((1, 2)), torch.ones(2), atol=1e-5)


def test_loading_is_deterministic_and_draws_no_random_number():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (ltpa.load_pretrained(device="cpu").state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_index_names_every_file_with_its_checksum():
    index = json.loads((pretrained.FOLDER / "index.json").read_text())
    assert sorted(index) == ltpa.list_pretrained() == sorted(p.stem for p in pretrained.FOLDER.glob("*.safetensors"))
    assert NAME in index
    for name, entry in index.items():
        content = (pretrained.FOLDER / f"{name}.safetensors").read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        assert len(content) < 4_000_000
        assert (pretrained.FOLDER / f"{name}.md").is_file()


def test_card_and_page_are_those_of_the_files():
    everything = [pretrained.pretrained_facts(name) for name in ltpa.list_pretrained()]
    for facts in everything:
        text = (pretrained.FOLDER / f"{facts['name']}.md").read_text(encoding="utf-8")
        assert text == pack.card(facts)
        accuracy = facts["figures"]["accuracy"]
        assert accuracy["low"] < accuracy["mean"] < accuracy["high"]
        assert accuracy["mean"] == pytest.approx(facts["history"][-1]["test_accuracy"], abs=0.005)
        by_class = facts["figures"]["by_class"].values()
        assert sum(row["accuracy"] * row["images"] for row in by_class) == pytest.approx(
            accuracy["mean"] * facts["figures"]["images"], abs=1e-6
        )
        assert f"{100 * accuracy['mean']:.1f} %" in text
        assert "data_dir" not in json.dumps(facts), "a folder of the machine it was trained on"
    _, _, rest = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition(pack.BEGIN)
    assert rest.partition(pack.END)[0].strip() == pack.weights_table(everything)


def test_unknown_names_are_answered_with_the_closest():
    with pytest.raises(ValueError, match="unknown weights 'cifar10-smal': did you mean 'cifar10-small'"):
        ltpa.load_pretrained("cifar10-smal")


@pytest.mark.parametrize("change", ["first byte", "middle byte", "last byte", "empty", "cut short"])
def test_a_file_that_was_altered_or_cut_off_is_refused(folder, change):
    path = folder / f"{NAME}.safetensors"
    content = bytearray(path.read_bytes())
    if "byte" in change:
        content[{"first byte": 0, "middle byte": len(content) // 2, "last byte": -1}[change]] ^= 1
    else:
        del content[0 if change == "empty" else -1 :]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"was altered or cut off: .* SHA-256 .*install ltpa again"):
        ltpa.load_pretrained(NAME)


def test_missing_files_are_named(folder):
    (folder / f"{NAME}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar10-small.safetensors is missing.*install ltpa again"):
        ltpa.load_pretrained(NAME)
    (folder / "index.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"index.json.*is damaged; install ltpa again"):
        ltpa.list_pretrained()
    (folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"index.json.*is missing; install ltpa again"):
        ltpa.load_pretrained(NAME)


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="cuda:63"):
        ltpa.load_pretrained(NAME, "cuda:63")


def test_show_uses_them_where_no_run_is_given():
    picture = photographs()[0].images[0]
    figure = ltpa.show(picture)
    assert [axes.get_title().split()[0] for axes in figure.axes[1:4]] == ["conv7", "conv10", "conv13"]


# --- packing


def test_packed_weights_are_those_of_the_run_but_for_rounding(trained, packed, monkeypatch):
    folder, facts, tensors = packed
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    model = ltpa.load_pretrained("tiny-shapes", "cpu")
    state = trained.model.state_dict()
    tensors = {key: value for key, value in tensors.items() if not key.startswith(pretrained.SNAPSHOTS)}
    assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in state.items()}
    kernels = {key for key, value in tensors.items() if value.dtype == torch.float16}
    assert "trunk.conv1.0.weight" in kernels
    assert all(tensors[key].dtype == torch.float32 for key in tensors if "running" in key or tensors[key].ndim == 1)
    test = ltpa.data_for(trained.config).test
    before, after = (ltpa.attend(one, test.images, "fp32") for one in (trained.model, model))
    assert (before.logits - after.logits).abs().max() < 0.02 * before.logits.std()
    for level, maps in before.maps.items():
        assert (maps - after.maps[level]).abs().max() < 0.02 * maps.max()
    assert facts["figures"]["accuracy"]["mean"] == pytest.approx(ltpa.evaluate(model, test, "fp32")["accuracy"])
    assert facts["settings"] == trained.config.identity()
    assert facts["history"] == trained.history
    assert model.classes == trained.classes == trained.model.classes


def test_maps_of_every_epoch_are_packed_with_their_images(trained, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", packed[0])
    numbers, maps_by_epoch = pretrained.pretrained_snapshots("tiny-shapes")
    assert numbers == ltpa.snapshot_indices(ltpa.data_for(trained.config), 3).tolist()
    for epoch, maps in trained.snapshots().items():
        assert list(maps_by_epoch[epoch]) == list(maps) == ["conv7", "conv10", "conv13"]
        for level, values in maps.items():
            assert torch.allclose(maps_by_epoch[epoch][level], values, rtol=1e-3, atol=1e-7)
    assert list(maps_by_epoch) == [0, 1]
    test = ltpa.data_for(trained.config).test[torch.tensor(numbers)]
    last = ltpa.attend(trained.model, test.images).maps["conv13"]
    assert torch.allclose(maps_by_epoch[1]["conv13"], last, rtol=0.1, atol=1e-3)
    assert f"maps of the test images {numbers[0]}, " in (packed[0] / "tiny-shapes.md").read_text()
    assert [len(part) for part in pack.packed_snapshots(trained, ltpa.data_for(trained.config), 2)] == [2, 6]
    with pytest.raises(ValueError, match=r"snapshots=4: .* has the maps of 3 images"):
        pack.pack(trained, "tiny", snapshots=4, folder=tmp_path / "w", say=lambda text: None)


def test_values_that_float16_cannot_hold_stay_float32():
    assert pack.halved(torch.randn(3, 3)).dtype == torch.float16
    for values in (torch.full((2, 2), 1e5), torch.full((2, 2), 1e-7), torch.randn(4, 4) * 1e-6):
        assert torch.equal(pack.halved(values), values)
    assert pack.halved(torch.zeros(2, 2)).dtype == torch.float16


def test_what_is_measured(packed):
    folder, facts, _ = packed
    figures = facts["figures"]
    assert set(figures["faithfulness"]["maps"]) == {"conv7", "conv10", "conv13", *ltpa.metrics.CONTROLS}
    assert set(figures["localization"]) == set(figures["faithfulness"]["maps"])
    assert all(0 <= low <= mid <= high <= 1.0001 for low, mid, high in figures["entropy"].values())
    text = (folder / "tiny-shapes.md").read_text()
    assert text == pack.card(facts)
    assert "--train-limit 400" in text
    assert "Localization against the exact masks of the same 4 images" in text
    assert "does not depend on the global feature" in text


def test_commands_name_every_setting_that_differs(packed):
    facts = json.loads(json.dumps(packed[1]))
    facts["settings"]["dataset"], facts["dataset"] = "folder", "cifar10"
    jpeg, lossless = pack.commands(facts).splitlines()
    assert jpeg.startswith("python -m ltpa train --dataset folder --data-dir DIR --width 0.0625 ")
    assert lossless == jpeg.replace("--dataset folder --data-dir DIR", "--dataset cifar10")
    import argparse

    from ltpa.__main__ import add_train_options, settings_from
    from ltpa.config import TrainConfig

    parser = argparse.ArgumentParser()
    add_train_options(parser)
    config = settings_from(TrainConfig, vars(parser.parse_args(lossless.split()[4:])), [])
    assert config.identity() == {**packed[1]["settings"], "dataset": "cifar10"}


def test_the_command_packs_and_writes_the_table(trained, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"# x\n{pack.BEGIN}\n{pack.END}\n")
    options = ["--images", "4", "--folder", str(tmp_path), "--write", str(page), "--precision", "fp32"]
    assert main(["pack", str(trained.path), "tiny", *options]) == 0
    assert "# tiny" in capsys.readouterr().out
    assert "| [`tiny`](../ltpa/weights/tiny.md) | `vgg-att3-concat-pc`, width 0.0625 |" in page.read_text()


def test_what_is_not_packed(trained, tmp_path, capsys):
    short = tmp_path / "short"
    shutil.copytree(trained.path, short)
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**settings, "epochs": 3}))
    assert main(["pack", str(short), "tiny", "--folder", str(tmp_path / "w")]) == 1
    assert re.search("is not complete: 1 of 3 epochs are there; call fit again", capsys.readouterr().err)
    (short / "config.json").write_text(json.dumps({**settings, "data": {**settings["data"], "crc32": "00000000"}}))
    assert main(["pack", str(short), "tiny", "--folder", str(tmp_path / "w")]) == 1
    assert "these are not the images" in capsys.readouterr().err
    with pytest.raises(ValueError, match="small letters, digits and hyphens"):
        pack.pack(trained, "../tiny", folder=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_float16_that_costs_accuracy_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "halved", lambda values: torch.zeros_like(values).half())
    monkeypatch.setattr(pack, "LOST", -1.0)
    with pytest.raises(ValueError, match="float16 costs too much"):
        pack.pack(trained, "tiny", images=2, folder=tmp_path / "w", say=lambda text: None)
    monkeypatch.setattr(pack, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="choose a smaller width"):
        pack.pack(trained, "tiny", images=2, folder=tmp_path / "w", say=lambda text: None)
    assert not (tmp_path / "w").exists()


# --- pictures of which some show none of the classes


def test_captions_of_pictures_without_a_known_class():
    logits = torch.tensor([[0.0, 9, 0], [9, 0, 0], [9.0, 0, 0]])
    texts = captions(logits, ("airplane", "cat", "horse"), torch.tensor([1, 1, -1]))
    assert texts == ["cat 100 %", "airplane 100 % | truth: cat", "airplane 100 % | truth: none of these"]


def test_explorer_on_pictures_with_partly_unknown_labels():
    model = ltpa.load_pretrained(device="cpu")
    panel = ltpa.explore(model, ltpa.Split(photographs(32)[0].images, torch.tensor([3, -1, -1, 7])))
    assert panel._rows()[0].truth == "cat"
    panel.position.value = 1
    assert panel._rows()[0].truth is None
    panel.which.value = "misclassified"
    assert all(panel._labels[number] >= 0 for number in panel.chosen) or "no image" in panel.message.value
    panel.which.value = "class: horse"
    assert panel.chosen == [3]
    panel.which.value = "least certain first"
    assert sorted(panel.chosen) == [0, 1, 2, 3]
