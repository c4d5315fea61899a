"""Folders of your own images: what is read of them, and which are refused."""

import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from ltpa import load_data

from .pictures import BLACK, BLUE, GREEN, RED, WHITE, both_parts, colors, encoded, grow, plain, two_classes
from .test_dataset import check

WHITE_PNG = encoded(plain(WHITE))


def test_folder_of_two_parts(tmp_path):
    train = {"cat/b.png": plain(RED), "cat/a.PNG": plain(GREEN), "dog/deep/er/c.jpeg": encoded(plain(BLUE), "JPEG")}
    grow(tmp_path, both_parts(train, {"dog/x.png": plain(WHITE), "cat/y.bmp": encoded(plain(BLACK), "BMP")}))
    loaded = load_data("folder", tmp_path)
    check(loaded, (3, 2), ("cat", "dog"))
    assert loaded.name == "folder"
    assert loaded.notes == ()
    assert loaded.train.labels.tolist() == [0, 0, 1]
    assert loaded.test.labels.tolist() == [0, 1]
    assert [colors(image) for image in loaded.train.images[:2]] == [{GREEN}, {RED}]  # in the order of their names
    assert torch.equal(loaded.test.images[1], torch.full((3, 32, 32), 255, dtype=torch.uint8))


def test_split_of_one_part(tmp_path):
    """A seeded fifth of every class, however rare, and the note says so."""
    counts = {"often": 50, "rare": 5, "some": 15}
    grow(tmp_path, two_classes(**counts))
    loaded = load_data("folder", tmp_path, seed=3)
    check(loaded, (56, 14), counts)
    assert loaded.test.labels.bincount().tolist() == [10, 1, 3]
    assert loaded.train.labels.bincount().tolist() == [40, 4, 12]
    assert len(loaded.notes) == 1
    assert "14 of 70 images were set aside for the test, stratified, seed 3" in loaded.notes[0]
    pixels = [{tuple(image[:, 0, 0].tolist()) for image in part.images} for part in (loaded.train, loaded.test)]
    assert len(pixels[0]) == 56
    assert len(pixels[1]) == 14
    assert not pixels[0] & pixels[1]
    again = load_data("folder", tmp_path, seed=3)
    assert torch.equal(again.test.images, loaded.test.images)
    assert not torch.equal(load_data("folder", tmp_path, seed=4).test.images, loaded.test.images)


def test_rare_class_is_never_taken_out_of_the_training(tmp_path):
    grow(tmp_path, two_classes(many=30, one=1, pair=2))
    loaded = load_data("folder", tmp_path)
    assert loaded.train.labels.bincount().tolist()[1:] == [1, 2]
    assert loaded.notes[1] == "no test images of: one, pair"


def test_class_without_test_images(tmp_path):
    grow(tmp_path, both_parts(two_classes(cat=2, dog=2, eel=2), {"dog/t.png": None}))
    loaded = load_data("folder", tmp_path)
    assert loaded.classes == ("cat", "dog", "eel")
    assert loaded.test.labels.tolist() == [1]
    assert loaded.notes == ("no test images of: cat, eel",)


def test_copies_are_counted(tmp_path):
    same, other = encoded(plain(RED)), encoded(plain(GREEN))
    train = {"cat/1.png": same, "cat/2.png": same, "dog/1.png": other, "dog/2.png": None}
    grow(
        tmp_path, both_parts(train, {"cat/9.png": same, "dog/7.png": same, "dog/8.png": other, "dog/9.png": WHITE_PNG})
    )
    (note,) = load_data("folder", tmp_path).notes
    assert note.startswith("3 test images are exact copies of training images")
    shutil.rmtree(tmp_path / "test")
    for path in (tmp_path / "train").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "train").rmdir()
    for number in range(20):
        (tmp_path / "cat" / f"copy{number}.png").write_bytes(same)
    assert "test images are exact copies" in load_data("folder", tmp_path).notes[-1]


def test_what_is_no_image_is_ignored(tmp_path):
    junk = {
        "cat/.DS_Store": b"x",
        "cat/Thumbs.db": b"x",
        "cat/notes.txt": b"x",
        "cat/._000.png": b"x",
        "cat/.hidden.png": b"x",
        "cat/.ipynb_checkpoints/000-checkpoint.png": b"x",
        "cat/noextension": b"x",
        ".git/x.png": b"x",
        "__MACOSX/x.png": b"x",
        "readme.md": b"x",
        "stray.png": b"x",
    }
    grow(tmp_path, {f"train/{name}": content for name, content in junk.items()} | both_parts())
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    (tmp_path / "train" / "cat" / "folder.png").mkdir()
    loaded = load_data("folder", tmp_path)
    assert loaded.classes == ("cat", "dog")
    assert len(loaded.train) == 4


def test_names_of_the_parts_in_any_case(tmp_path):
    """Train/ and Test/ are the parts, not two classes."""
    grow(tmp_path, {name.replace("train", "Train").replace("test", "TEST"): c for name, c in both_parts().items()})
    grow(tmp_path, {"val/cat/x.png": None, "extra/y.png": None})
    loaded = load_data("folder", tmp_path)
    assert loaded.classes == ("cat", "dog")
    assert len(loaded.train) == 4
    assert "extra" in loaded.notes[1]
    assert "val/" in loaded.notes[0]


def test_paths(tmp_path, monkeypatch):
    """Spaces, other alphabets, ~, relative paths, links."""
    root = grow(
        tmp_path / "mes données 图 'x'",
        both_parts({"chât é/ü #1.png": None, "犬/%20.png": None}, {"犬/a.png": WHITE_PNG}),
    )
    expected = load_data("folder", root)
    assert expected.classes == ("chât é", "犬")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(root)
    os.symlink("nowhere", root / "train" / "犬" / "dangling.png")
    os.symlink("loop", root / "train" / "loop")
    os.symlink(root / "train", root / "train" / "犬" / "round")
    elsewhere = (root / "train" / "chât é").rename(tmp_path / "elsewhere")
    (root / "train" / "chât é").symlink_to(elsewhere)
    for path in (str(root), f"~/{root.name}", root.name, Path("link"), f"{root}/"):
        assert torch.equal(load_data("folder", path).train.images, expected.train.images)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no pictures"),
        ({"a.png": None, "b.txt": b""}, "no folders of classes"),
        ({"a.zip": b"PK"}, "unpack"),
        ({"cat/a.png": None}, "has only one class, 'cat'; a classifier needs at least two"),
        ({"cat/a.png": None, "dog/readme.txt": b""}, "only one class, 'cat'"),
        ({"cat/a.png": None, "dog/a.png": None}, "too few images to set some aside for the test"),
        ({"train/cat/a.png": None, "train/dog/a.png": None}, "data_dir=.*train "),
        ({"test/cat/a.png": None, "cat/a.png": None}, r"holds test/ but no train/"),
        (both_parts({"cat/a.png": None}), "train has only one class, 'cat'"),
        (both_parts(test={"cat/a.png": None, "emu/a.png": None}), "classes that train/ lacks: emu; known: cat, dog"),
        (both_parts(test={"a.png": None}), "test/ .*data_dir=.*train"),
        (both_parts(test={"cat/a.txt": b""}), "test/ holds no pictures.*data_dir=.*train"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folders_that_cannot_be_used(files, words, tmp_path):
    grow(tmp_path, files)
    with pytest.raises(ValueError, match=words) as caught:
        load_data("folder", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_one_class_in_a_folder_named_test(tmp_path):
    grow(tmp_path / "test", {"cat/a.png": None, "cat/b.png": None})
    with pytest.raises(ValueError, match="only one class"):
        load_data("folder", tmp_path / "test")


@pytest.mark.parametrize("root", ["nowhere", "nowhere/x", "file", "file/x", "x" * 300, "nul\0l"])
def test_missing_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="is not a folder") as caught:
        load_data("folder", root)
    message = str(caught.value)
    assert message.startswith(f"data_dir {root!r}")
    assert str(tmp_path) in message
    assert "it should hold train/<class>/* and test/<class>/*, or <class>/*" in message


@pytest.mark.parametrize(("where", "method"), [(os, "scandir"), (Path, "read_bytes")])
def test_unreadable(where, method, tmp_path, monkeypatch):
    """Made by hand, because tests that run as root may read everything."""
    grow(tmp_path, both_parts())

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(where, method, refuse)
    with pytest.raises(ValueError, match="Permission denied") as caught:
        load_data("folder", tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("locked", [".", "train", "train/cat", "train/cat/000.png"])
def test_locked(locked, tmp_path):
    grow(tmp_path, both_parts())
    (tmp_path / locked).chmod(0)
    if os.access(tmp_path / locked, os.R_OK):
        pytest.skip("root may read everything")
    try:
        with pytest.raises(ValueError, match=r"permission to read|allowed to read|Permission denied"):
            load_data("folder", tmp_path)
    finally:
        (tmp_path / locked).chmod(0o700)


def test_threads_leave_the_warnings_alone(tmp_path):
    grow(tmp_path, two_classes(cat=30, dog=30))
    before = list(warnings.filters)
    for _ in range(3):
        load_data("folder", tmp_path)
    assert warnings.filters == before


def test_a_file_that_is_no_image_is_named(tmp_path):
    grow(tmp_path, both_parts(two_classes(cat=3, dog=3) | {"dog/b ad.png": b"no picture"}))
    for memory_gb in (None, 1e-9):
        with pytest.raises(ValueError, match=r"b ad\.png: .*\n.*skip_broken=True"):
            load_data("folder", tmp_path, memory_gb=memory_gb)


@pytest.mark.parametrize("parts", [two_classes(cat=10, dog=5), both_parts()], ids=["one", "two"])
def test_the_test_images_alone(parts, tmp_path):
    grow(tmp_path, parts)
    whole, alone = load_data("folder", tmp_path), load_data("folder", tmp_path, test_only=True)
    assert torch.equal(alone.test.images, whole.test.images)
    assert alone.classes == whole.classes
    assert (len(alone.train), alone.train.shape) == (0, (0, 3, 32, 32))
    assert (alone.mean, alone.std) == whole.test.statistics()
