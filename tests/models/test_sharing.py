"""Networks to pass on: folders, the hub (a stand-in), ONNX files, and the commands `show` and `export`."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import ltpa
from ltpa.__main__ import main
from tests.tools.crash import tiny_config, tiny_data

NAMES = ["vgg-att3-concat-add", "vgg-gap", "vgg-pan", "resnet164-att2-indep-dp", "resnet18-att2-concat-dp"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ltpa.fit(tiny_config(tmp_path_factory.mktemp("sharing") / "run", epochs=1), tiny_data(), progress=False)


def a_model(name, **options):
    width = {} if name.startswith("resnet18") else {"width": 1 / 32}
    torch.manual_seed(0)
    model = ltpa.create_model(name, 3, normalizer="sigmoid", **width, **options).eval()
    model.classes = ("ant", "bee", "c")
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_network_answers_as_before(name, tmp_path):
    model, images = a_model(name), torch.rand(2, 3, 64, 64)
    again = ltpa.load_pretrained(model.save_pretrained(tmp_path / "it"), device="cpu")
    before, after = ltpa.attend(model, images), ltpa.attend(again, images)
    assert torch.equal(before.logits, after.logits)
    assert before.maps.keys() == after.maps.keys()
    assert all(torch.equal(before.maps[level], after.maps[level]) for level in before.maps)
    assert (again.classes, again.name) == (model.classes, name)
    assert not again.training
    assert ltpa.load_pretrained(again.save_pretrained(tmp_path / "it")).classes == model.classes, "replaced"


def test_the_card_says_what_a_run_knows(run, tmp_path):
    folder = run.model.save_pretrained(tmp_path)
    card = (folder / "README.md").read_text()
    for words in (run.classes[0], f"{run.history[-1]['test_accuracy']:.1%}", "60 images", "1 epoch,", "32x32", "ltpa"):
        assert words in card
    assert ltpa.load_pretrained(folder).facts == run.model.facts == ltpa.load_run(run.path).model.facts
    assert torch.equal(ltpa.load_pretrained(run.path).head.weight, run.model.head.weight), "a run's folder will do"


def test_the_hub(run, tmp_path, monkeypatch):
    import huggingface_hub

    class Api:
        def __init__(self, token):
            pass

        def create_repo(self, name, private, exist_ok):
            (tmp_path / name).mkdir(parents=True)

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path / name))
    assert run.model.push_to_hub("me/ants") == "https://hub/me/ants"
    assert {path.name for path in (tmp_path / "me/ants").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert torch.equal(ltpa.load_pretrained("me/ants").head.weight, run.model.head.weight)

    def offline(name, allow_patterns):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match=r"'me/bees' is not a folder here and cannot .*no route.*HF_HOME"):
        ltpa.load_pretrained("me/bees")


def test_what_cannot_be_saved_or_loaded(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        run.model.save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="unknown weights 'cifar10-smal': did you mean 'cifar10-small'"):
        ltpa.load_pretrained("cifar10-smal")
    folder = run.model.save_pretrained(tmp_path / "it")
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        ltpa.load_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"classes": []}))
    with pytest.raises(ValueError, match=r"config\.json"):
        ltpa.load_pretrained(folder)


@pytest.mark.parametrize(("name", "query"), [("vgg-att3-concat-add", True), ("vgg-att3-concat-pc", False)])
def test_an_onnx_file_agrees_with_torch(name, query, tmp_path):  # of one size, or of any size with kernels in float16
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = a_model(name)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    folder, file = model.save_pretrained(tmp_path / "it"), tmp_path / "it.onnx"
    options = ["--image-size", "40", "--query"] if query else ["--image-size", "0", "--half"]
    assert main(["export", str(folder), str(file), *options]) == 0
    session = runtime.InferenceSession(str(file))
    images, queries = torch.rand(3, 3, 40, 40), torch.rand(3, 3, 40, 40)
    inputs = {"images": images.numpy()} | ({"query": queries.numpy()} if query else {})
    expected = ltpa.attend(model, images, "fp32", **({"query": queries} if query else {}))
    for got, wanted in zip(session.run(None, inputs), (expected.logits, *expected.maps.values()), strict=True):
        assert np.abs(got - wanted.numpy()).max() < 1e-4
    assert session.get_modelmeta().custom_metadata_map["classes"].split("\n") == list(model.classes)
    assert [output.name for output in session.get_outputs()] == ["logits", *(f"map_{level}" for level in expected.maps)]


def test_export_refuses_before_it_computes(tmp_path, capsys):
    for arguments, words in (
        (["cifar10-small", str(tmp_path / "it.onnx"), "--query"], "depends on a query"),
        (["cifar10-small", str(tmp_path / "it.pt")], "must end in .onnx"),
        (["cifar10-small", str(tmp_path / "no" / "it.onnx")], "no folder"),
        (["nonsense", str(tmp_path / "it.onnx")], "unknown weights"),
    ):
        assert main(["export", *arguments]) == 1
        assert words in capsys.readouterr().err


def test_show_saves_a_picture(tmp_path, capsys):
    Image.new("RGB", (64, 48), "green").save(tmp_path / "photo.jpg")
    assert main(["show", str(tmp_path / "photo.jpg"), "--save", str(tmp_path / "maps.png")]) == 0
    assert Image.open(tmp_path / "maps.png").width > 300
    assert main(["show", str(tmp_path / "missing.jpg"), "--save", str(tmp_path / "maps.png")]) == 1
    assert "missing.jpg" in capsys.readouterr().err
