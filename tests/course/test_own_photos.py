"""Notebook 08: folders and zip files, what is chosen for photos, and maps measured against their rivals."""

import zipfile

import pytest
import torch
from PIL import Image

import ltpa
from ltpa.course import own_photos
from ltpa.course.own_photos import OwnPhotosConfig
from ltpa.course.own_photos_measure import (
    ATTENTION,
    CENTER,
    GRADCAM,
    NORM,
    PERMUTED,
    Score,
    describe,
    effects_table,
    feature_norms,
    measure,
    permuted,
    rival_effects,
    scores_figure,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_zip(path, names):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)


# Folders and zip files


@pytest.mark.parametrize("wrapping", ["", "photos/", "a/b/"])
def test_a_zip_file_is_unpacked_beside_itself_once(wrapping, folder, capsys):
    names = [f"{wrapping}{name}/{i}.jpg" for name in ("cat", "dog") for i in range(2)]
    write_zip(folder / "up" / "photos.zip", [*names, f"__MACOSX/{wrapping}cat/._0.jpg"])
    root = own_photos.unpacked("up/photos.zip")
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg")) == [
        "cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg",
    ]  # fmt: skip
    assert root.is_relative_to("up/photos")
    (root / "cat" / "0.jpg").write_text("changed")
    assert own_photos.unpacked("up/photos.zip") == root
    assert (root / "cat" / "0.jpg").read_text() == "changed"
    assert [line.split(" in")[0] for line in capsys.readouterr().out.splitlines()] == [
        "up/photos.zip was unpacked", "up/photos.zip is unpacked",
    ]  # fmt: skip


def test_no_member_of_a_zip_file_leaves_its_folder(folder):
    write_zip(folder / "up" / "photos.zip", ["cat/0.jpg", "dog/0.jpg", "../../outside.jpg"])
    own_photos.unpacked("up/photos.zip")
    assert not (folder / "outside.jpg").exists()
    assert not (folder.parent / "outside.jpg").exists()


def test_what_cannot_be_unpacked_leaves_nothing(folder):
    write_zip(folder / "up" / "photos.zip", [f"cat/{i}.jpg" for i in range(50)])
    content = (folder / "up" / "photos.zip").read_bytes()
    damaged = content.replace(b"cat/7.jpg", b"cat/7.jpx", 1)  # its name differs from that in the index
    for name, text in (("cut.zip", content[:100]), ("photos.rar", b"Rar!"), ("damaged.zip", damaged)):
        (folder / "up" / name).write_bytes(text)
        with pytest.raises(ValueError, match=name):
            own_photos.unpacked(f"up/{name}")
    assert not [path for path in (folder / "up").iterdir() if path.is_dir()]


def test_folders_are_taken_as_they_are_and_a_missing_drive_is_explained(folder):
    assert own_photos.unpacked(str(folder)) == folder
    with pytest.raises(FileNotFoundError, match="runs_on_drive=True connects Google Drive"):
        own_photos.unpacked("/content/drive/MyDrive/photos")


# What is chosen


def test_without_photos_the_quick_network_is_trained(capsys):
    config = own_photos.training_settings(OwnPhotosConfig(epochs=2, seed=3))
    assert config == ltpa.TrainConfig(**{**ltpa.QUICK, "epochs": 2, "seed": 3})
    assert "data_dir is None" in capsys.readouterr().out


def test_photos_get_a_backbone_or_where_there_is_none_a_small_network(folder, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError("the weights cannot be downloaded")

    monkeypatch.setattr(own_photos, "create_model", lambda *_, **__: None)
    config = own_photos.training_settings(OwnPhotosConfig(data_dir=str(folder)))
    assert (config.model, config.pretrained, config.freeze) == (own_photos.BACKBONE, True, True)
    assert (config.dataset, config.data_dir, config.epochs) == ("folder", str(folder), None)
    assert not own_photos.training_settings(OwnPhotosConfig(data_dir=str(folder), freeze=False)).freeze

    monkeypatch.setattr(own_photos, "create_model", refuse)
    config = own_photos.training_settings(OwnPhotosConfig(data_dir=str(folder), image_size=48))
    assert (config.model, config.pretrained, config.image_size) == (own_photos.SMALL["model"], False, 48)
    assert "the weights cannot be downloaded\nGoing on without" in capsys.readouterr().out
    named = own_photos.training_settings(OwnPhotosConfig(data_dir=str(folder), model="resnet18-att3-concat-add"))
    assert (named.model, named.pretrained) == ("resnet18-att3-concat-add", True), "what was named is not replaced"


def test_a_model_without_maps_is_refused():
    with pytest.raises(ValueError, match="model='vgg-late' has no attention maps"):
        OwnPhotosConfig(model="vgg-late")


# Pictures and mistakes


def test_classes_are_counted_and_mistakes_found(folder, capsys):
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count + label):
                Image.new("RGB", (40, 40), (90 * label, 40 * i, len(split))).save(folder / split / name / f"{i}.png")
    data = ltpa.load_data("folder", folder)
    table = own_photos.class_table(data)
    assert table.to_dict("list") == {"training": [3, 4, 7], "test": [2, 3, 5]}
    assert list(table.index) == ["cat", "dog", "all"]
    assert len([panel for panel in own_photos.sheet(data, 0).axes if panel.images]) == 7

    logits = torch.tensor([[3.0, 0], [0, 1], [0, 2], [4, 0], [0.1, 0]])
    assert own_photos.misclassified(logits, data.test.labels, 2).tolist() == [3, 1]
    assert "3 of 5 test photos are misclassified" in capsys.readouterr().out
    assert own_photos.least_certain(logits, 2).tolist() == [4, 1]
    (panel,) = own_photos.confusion_figure(data.test.labels, logits, data.classes).axes
    assert [text.get_text() for text in panel.texts] == ["1", "1", "2", "1"]


def test_of_many_classes_the_matrix_has_those_with_most_mistakes():
    labels = torch.arange(40)
    answers = labels.clone()
    answers[30:32] = torch.tensor([31, 30])
    logits = torch.nn.functional.one_hot(answers).float()
    (panel,) = own_photos.confusion_figure(labels, logits, [f"c{i}" for i in range(40)]).axes
    names = [text.get_text() for text in panel.get_xticklabels()]
    assert len(names) == 15
    assert {"c30", "c31"} <= set(names)
    assert panel.get_title() == "the 15 of 40 classes with most mistakes"


# Measuring


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ltpa.create_model("vgg-att3-concat-pc", 3, width=1 / 32).eval()


def test_norms_are_those_of_the_features_that_are_weighted(network):
    photos = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = {}
    hook = network.attention["conv10"].register_forward_pre_hook(lambda _, inputs: features.update(x=inputs[0]))
    with torch.no_grad():
        network.attend(photos / 255)
    hook.remove()
    norms = feature_norms(network, photos)
    assert list(norms) == list(network.attention)
    torch.testing.assert_close(norms["conv10"], (features["x"] ** 2).sum(1).sqrt())


def test_permuting_keeps_the_weights():
    maps = torch.rand(4, 5, 6)
    mixed = permuted(maps, 0)
    assert torch.equal(mixed.flatten(1).sort().values, maps.flatten(1).sort().values)
    assert not torch.equal(mixed, maps)
    assert torch.equal(mixed, permuted(maps, 0))


def test_every_level_is_measured_against_every_rival(network):
    photos = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scores = measure(network, photos, progress=False)
    kinds = [(level, kind) for level in network.attention for kind in (ATTENTION, PERMUTED, NORM, GRADCAM)]
    assert [(score.level, score.kind) for score in scores] == [("", CENTER), *kinds]
    curves = ltpa.metrics.deletion_insertion(
        network,
        photos,
        ltpa.attend(network, photos, "fp32").maps["conv13"],
        fill="blur",
        fractions=[k / 8 for k in range(9)],
    )
    (attention,) = [score for score in scores if (score.level, score.kind) == ("conv13", ATTENTION)]
    torch.testing.assert_close(attention.difference, curves.insertion_area - curves.deletion_area)
    effects = rival_effects(scores, "m", "d")
    assert {effect.verdict for effect in effects} == {"undecided"}, "three photos decide nothing"
    assert "3 photos decide nothing" in describe(effects)
    assert len(scores_figure(scores).axes) == 1


def scores_of(count, **means):
    """Scores of a level "deep" with some noise; the means are those of attention and its rivals."""
    noise = torch.Generator().manual_seed(0)
    return [
        Score("" if kind == CENTER else "deep", kind, mean + 0.05 * torch.randn(count, generator=noise), torch.zeros(1))
        for kind, mean in means.items()
    ]


def test_a_map_says_something_only_if_it_beats_random_order_and_center():
    means = {CENTER: 0.1, ATTENTION: 0.5, PERMUTED: 0.0, NORM: 0.5, GRADCAM: 0.8}
    effects = rival_effects(scores_of(40, **means), "m", "d")
    verdicts = {effect.baseline: effect.verdict for effect in effects}
    assert verdicts == {CENTER: "supported", PERMUTED: "supported", NORM: "undecided", GRADCAM: "contradicted"}
    text = describe(effects)
    assert "deep: better than a spot in the center and its own weights in random order; worse than Grad-CAM" in text
    assert "deep: this map says which parts of a photo the answer depends on. It was not shown to say more" in text
    assert list(effects_table(effects)["attention is better"]) == [verdicts[e.baseline] for e in effects]

    effects = rival_effects(scores_of(40, **{**means, CENTER: 0.5, NORM: 0.1}), "m", "d")
    assert "No level's map was shown to say anything" in describe(effects)
    effects = rival_effects(scores_of(40, **{**means, NORM: 0.1}), "m", "d")
    assert "At deep it says more than the plain norm" in describe(effects)
    assert {e.verdict for e in rival_effects(scores_of(5, **means), "m", "d")} == {"undecided"}
