"""Folders as people have them: what is read, and what is explained instead of learnt."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ltpa
from ltpa import load_data
from ltpa.data.layout import read_layout

from .pictures import RED, WHITE, colors, encoded, grow, plain, two_classes

TEXT = b"1 0.5 0.5 0.2 0.2"
SMALL = two_classes(cat=2, dog=2)


def below(folder, files=None):
    return {f"{folder}/{name}": content for name, content in (files or SMALL).items()}


def flat(folder, count=3, ending="png", content=None):
    return {f"{folder}/{number:04d}.{ending}": content for number in range(count)}


def noise(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def half():
    image = plain(0, mode="L")
    image.paste(1, (0, 0, 16, 32))
    return image


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training", "testing"),
        ("Train", "VALID"),
        ("train", "val"),
        ("TRAIN", "dev"),
        ("train", "eval"),
        ("train_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train/images", "validation/images"),
        ("train2017", "val2017"),
    ],
)
def test_names_of_splits(train, test, tmp_path):
    layout = read_layout(grow(tmp_path, below(train) | below(test, {"cat/x.png": None})))
    assert layout.classes == ("cat", "dog")
    assert (len(layout.train[0]), len(layout.test[0])) == (4, 1)
    assert layout.validation is None


@pytest.mark.parametrize("names", [("test", "val"), ("Testing", "dev"), ("eval", "valid")])
def test_test_and_validation_folders(names, tmp_path):
    files = below("train") | below(names[0], {"cat/x.png": plain(RED)}) | below(names[1], {"dog/y.png": plain(WHITE)})
    grow(tmp_path, files)
    usual = load_data("folder", tmp_path)
    assert colors(usual.test.images[0]) == {RED}
    assert names[1] in usual.notes[0]
    config = ltpa.TrainConfig(dataset="folder", data_dir=str(tmp_path), validation=0.1)
    for test_only in (False, True):
        own = ltpa.data_for(config, test_only=test_only)
        assert colors(own.test.images[0]) == {WHITE}
        assert own.test.labels.tolist() == [1]
        assert len(own.train) == (0 if test_only else 4)
    assert any("validation" in note for note in own.notes)


def test_validation_without_a_folder_of_its_own(tmp_path):
    grow(tmp_path, below("train", two_classes(cat=10, dog=10)) | below("val", {"cat/x.png": None}))
    data = load_data("folder", tmp_path, validation=0.2, test_only=True)
    assert (len(data.train), len(data.test)) == (16, 4)


def test_a_test_folder_without_classes_is_left_out_if_there_is_another(tmp_path):
    grow(tmp_path, below("train") | below("val", {"cat/x.png": None}) | flat("test", 7))
    layout = read_layout(tmp_path)
    assert len(layout.test[0]) == 1
    assert any("test" in note and "7 pictures" in note for note in layout.notes)


def test_tiny_imagenet(tmp_path):
    classes = {f"{name}/images/{name}_{n}.JPEG": None for name in ("n01443537", "n01629819") for n in range(3)}
    boxes = {f"{name}/{name}_boxes.txt": TEXT for name in ("n01443537", "n01629819")}
    grow(tmp_path / "train", classes | boxes)
    layout = read_layout(tmp_path / "train")
    assert layout.classes == ("n01443537", "n01629819")
    assert len(layout.train[0]) == 6
    assert "2 .txt" in layout.notes[0]
    grow(tmp_path, flat("val/images") | flat("test/images") | {"val/val_annotations.txt": TEXT, "wnids.txt": TEXT})
    with pytest.raises(ValueError, match=f"data_dir={tmp_path / 'train'}"):
        read_layout(tmp_path)


def test_a_picture_is_known_by_its_content(tmp_path):
    jpeg = encoded(noise(), "JPEG")
    grow(tmp_path, {"cat/a.jfif": jpeg, "cat/b.jpe": jpeg, "cat/c": jpeg, "cat/d.dat": encoded(noise(), "WEBP")})
    grow(tmp_path, {"dog/a.png": None, "dog/b.png": None, "dog/c.npy": b"no picture", "dog/d": b"no picture"})
    data = load_data("folder", tmp_path)
    assert len(data.train) + len(data.test) == 6


def test_nothing_is_left_out_in_silence(tmp_path):
    grow(tmp_path, SMALL)
    others = {"cat/Thumbs.db": b"x", "cat/.DS_Store": b"x", "dog/a.txt": TEXT, "dog/b.txt": TEXT, "dog/noending": b"x"}
    grow(tmp_path, others | {"stray.png": None, "docs/a.pdf": b"%PDF", "__MACOSX/x.png": None})
    (tmp_path / "cat" / "lost.png").symlink_to("nowhere")
    (tmp_path / "cat" / "round").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    layout = read_layout(tmp_path)
    assert (layout.classes, len(layout.train[0])) == (("cat", "dog"), 4)
    notes = "; ".join(layout.notes)
    kinds = ("1 .db", "1 hidden file", "2 .txt", "1 files without", "1 picture", "1 hidden folder", "docs")
    for kind in (*kinds, "1 broken links", "1 links to a folder above", "1 things that are not files"):
        assert kind in notes


def test_sub_folders_of_a_class_are_read_with_a_note(tmp_path):
    grow(tmp_path, {"cat/old/a.png": None, "cat/new/b.png": None, "cat/c.png": None, "dog/a.png": None})
    layout = read_layout(tmp_path)
    assert Counter(layout.train[1].tolist()) == {0: 3, 1: 1}
    assert "old" in layout.notes[0]


@pytest.mark.parametrize(
    "names",
    [("bus", "car", "train"), ("control", "test"), ("valid", "invalid"), ("mask", "no_mask"), ("class1", "class2")],
)
def test_classes_that_only_sound_like_something_else(names, tmp_path):
    grow(tmp_path, {f"{name}/{n}.png": noise(n) for name in names for n in range(3)})
    assert read_layout(tmp_path).classes == tuple(sorted(names))


# --- what is explained ------------------------------------------------------------------------------------------------

VOC = flat("JPEGImages", ending="jpg") | flat("SegmentationClass") | flat("Annotations", 3, "xml", TEXT)
COCO = flat("train2017") | flat("val2017") | {"annotations/instances_train2017.json": b"{}"}
YOLO = flat("train/images") | flat("train/labels", 3, "txt", TEXT) | flat("valid/images") | {"data.yaml": b""}
YOLO_2 = flat("images/train") | flat("images/val") | flat("labels/train", 3, "txt", TEXT)
PETS = flat("images", ending="jpg") | flat("annotations/trimaps") | flat("annotations/xmls", 3, "xml", TEXT)
CUB = below("images") | below("segmentations") | {"attributes/a.txt": TEXT, "classes.txt": TEXT}
MASKS = {f"{kind}/{n:04d}.png": noise(n) for kind in ("cat", "dog") for n in range(3)} | flat("masks", 3)
UNNAMED_MASKS = {f"cells/{n:04d}.png": noise(n) for n in range(3)} | flat("truth", 3, content=half())
COPY = SMALL | below("pets")
INSIDE = {f"{name}/{part}/{n}.png": None for name in ("cat", "dog") for part in ("train", "test") for n in range(2)}
AMONG = {f"{kind}/{kind} ({n}){end}.png": None for kind in ("ill", "well") for n in range(3) for end in ("", "_mask")}
EACH_MASKS = {
    f"{name}/{part}/{n}.png": None for name in ("cat", "dog") for part in ("images", "masks") for n in range(2)
}


@pytest.mark.parametrize(
    ("files", "words"),
    {
        "one too high": (below("data"), "data_dir={root}/data"),
        "two too high": (below("archive/dataset"), "data_dir={root}/archive/dataset"),
        "splits too high": (below("a/train") | below("a/test", {"cat/x.png": None}), "data_dir={root}/a"),
        "too high beside another": (below("data") | flat("figures"), "data_dir={root}/data"),
        "train alone": (below("train"), "data_dir={root}/train"),
        "unlabeled test": (below("train") | flat("test"), "data_dir={root}/train"),
        "State Farm": (below("imgs/train") | flat("imgs/test") | {"list.csv": TEXT}, "data_dir={root}/imgs/train"),
        "folds": (flat("fold1") | flat("fold2"), "fold1, fold2"),
        "nested folds": (below("fold_1") | below("fold_2"), "fold_1, fold_2"),
        "HAM10000": (flat("images_part_1") | flat("images_part_2"), "images_part_1, images_part_2"),
        "test and val": (below("test") | below("val"), "no train"),
        "flat splits": (flat("train") | flat("test"), "{root}/train holds 3 pictures"),
        "same children": (below("2019") | below("2020"), "cat, dog"),
        "splits inside": (INSIDE, "{root}/train/<class>"),
        "a copy": (COPY, "data_dir={root}/pets"),
        "cat.0.jpg": ({f"{name}.{n}.jpg": None for name in ("cat", "dog") for n in range(3)}, "no folders of classes"),
        "images and a table": (flat("images") | {"labels.csv": TEXT}, "{root}/images holds 3 pictures"),
        "VOC": (VOC, "{root}/JPEGImages"),
        "VOC too high": (below("VOC2012", VOC), "{root}/VOC2012/JPEGImages"),
        "COCO": (COCO, "{root}/train2017"),
        "YOLO": (YOLO, "{root}/train/images"),
        "YOLO 2": (YOLO_2, "{root}/images/train"),
        "pets": (PETS, "{root}/images"),
        "CUB": (CUB, "data_dir={root}/images"),
        "masks": (MASKS, "{root}/masks"),
        "unnamed masks": (UNNAMED_MASKS, "{root}/truth"),
        "masks among pictures": (AMONG, "{root}/ill"),
        "masks in each": (EACH_MASKS, "move masks"),
        "two of a kind": (below("train") | below("Training") | below("test"), "several training folders"),
        "an archive": ({"data.zip": b"PK"}, "unpack"),
        "only labels": (flat("cat", 2, "txt", TEXT) | flat("dog", 2, "txt", TEXT), "4 .txt"),
    }.values(),
)
def test_what_is_explained_instead_of_learnt(files, words, tmp_path):
    grow(tmp_path, files)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_data("folder", tmp_path)
    assert words.format(root=tmp_path) in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    chosen = str(caught.value).partition("data_dir=")[2].split()
    if chosen:
        read_layout(Path(chosen[0].rstrip(".,;")))  # the advice is right


# --- broken pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gb", [None, 1e-9])
def test_broken_pictures_are_named_at_once_or_left_out(memory_gb, tmp_path):
    good = two_classes(cat=20, dog=20)
    broken = {"cat/zero.jpg": b"", "dog/page.jpg": b"<html>", "dog/cut.png": encoded(noise())[:900]}
    expected = load_data("folder", grow(tmp_path / "good", good), memory_gb=memory_gb)
    for name in ("train", "test"):
        grow(tmp_path / "both" / name, good | broken)
    with pytest.raises(ValueError, match="6 of 86 pictures") as caught:
        load_data("folder", tmp_path / "both", memory_gb=memory_gb)
    for name in broken:
        assert f"train/{name}: " in str(caught.value)
        assert f"test/{name}: " in str(caught.value)
    data = load_data("folder", tmp_path / "both", memory_gb=memory_gb, skip_broken=True)
    assert (len(data.train), len(data.test)) == (40, 40)
    assert data.train.in_files is expected.train.in_files
    assert any("6 of 86" in note for note in data.notes)
    clean = load_data(
        "folder", grow(tmp_path / "clean", {f"{s}/{k}": v for s in ("train", "test") for k, v in good.items()})
    )
    assert data.train.labels.tolist() == clean.train.labels.tolist()
    assert data.test.checksum(data.train.checksum()) > 0
    assert data.train[:].images.shape == (40, 3, 32, 32)
    config = ltpa.TrainConfig(dataset="folder", data_dir=str(tmp_path / "both"), skip_broken=True)
    assert len(ltpa.data_for(config).test) == 40


def test_many_broken_pictures_are_counted(tmp_path):
    grow(tmp_path, flat("cat", 30, "png", b"x") | flat("dog", 30))
    with pytest.raises(ValueError, match=r"and \d+ more"):
        load_data("folder", tmp_path)
    with pytest.raises(ValueError, match="training images of cat"):
        load_data("folder", tmp_path, skip_broken=True)


# --- gray pictures of more than 8 bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gb", [None, 1e-9])
def test_deep_gray_has_one_rule_for_the_whole_folder(memory_gb, tmp_path):
    def deep(value, kind=np.uint16):
        return encoded(Image.fromarray(np.full((32, 32), value, dtype=kind)), "TIFF")

    files = {f"train/{name}/{n}.tif": deep(100 * n) for name in ("cat", "dog") for n in range(4)}
    grow(tmp_path, files | {"test/cat/x.tif": deep(419), "test/dog/y.png": plain((7, 7, 7))})
    data = load_data("folder", tmp_path, memory_gb=memory_gb)
    levels = [0, 50, 100, 150]  # 511 is white
    assert data.train.images[:, 0, 0, 0].tolist() == levels * 2
    assert data.test.images[:, 0, 0, 0].tolist() == [209, 7]
    assert any("from 0 to 419" in note and "511" in note for note in data.notes)
    few = load_data("folder", tmp_path, memory_gb=memory_gb, test_only=True)
    assert torch.equal(few.test.images, data.test.images)
    part = load_data("folder", tmp_path, memory_gb=memory_gb, train_limit=4, test_limit=1)
    assert set(part.train.images[:, 0, 0, 0].tolist()) <= set(levels)
    if memory_gb:
        assert torch.equal(next(data.train.batches([slice(0, 4)])), data.train.images[:4])
