"""Data sets: what `load_data` returns, what it makes of users' folders, and how it answers what it cannot use."""

import dataclasses
import io
import os
import pickle
import shutil
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from ltpa import Dataset, Split, hold_out, load_data
from ltpa.data import cifar as download
from ltpa.data import dataset as data
from ltpa.data.dataset import channel_statistics, stratified
from ltpa.data.shapes import CLASSES, draw_shapes

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def plain(color=RED, size=(32, 32), mode="RGB"):
    return Image.new(mode, size, color)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grow(root, files):
    """Writes files, given as {path: content, image, or None for a plain one of its own color}."""
    for number, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            content = plain((number % 256, number // 256, 77))
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return root


def two_classes(**counts):
    counts = counts or {"cat": 10, "dog": 10}
    return {f"{name}/{i:03d}.png": None for name, count in counts.items() for i in range(count)}


def both_parts(train=None, test=None):
    files = {f"train/{name}": content for name, content in (train or two_classes(cat=2, dog=2)).items()}
    return files | {f"test/{name}": content for name, content in (test or {"cat/t.png": WHITE_PNG}).items()}


WHITE_PNG = encoded(plain(WHITE))


def picture_of(root, content, name="x.png", size=32):
    """The pixels (3, H, W) that `load_data` makes of a file."""
    grow(root, {"train/a/" + name: content, "train/b/y.png": None, "test/a/z.png": WHITE_PNG})
    loaded = load_data("folder", root, image_size=size)
    assert len(loaded.train) == 2
    return loaded.train.images[0]


def colors(picture):
    """The distinct colors of a picture."""
    return {tuple(color) for color in picture.flatten(1).T.tolist()}


def corners(picture):
    """Colors at the middles of the four quarters, row by row."""
    return [tuple(picture[:, y, x].tolist()) for y in (8, 24) for x in (8, 24)]


def quarters(four, size=(32, 32)):
    image = Image.new("RGB", size)
    wide, high = size[0] // 2, size[1] // 2
    for i, color in enumerate(four):
        image.paste(color, (i % 2 * wide, i // 2 * high, i % 2 * wide + wide, i // 2 * high + high))
    return image


# --- what every data set looks like -----------------------------------------------------------------------------------


def check(loaded, count, classes, size=32, masks=False):
    assert isinstance(loaded, Dataset)
    for part, number in zip((loaded.train, loaded.test), count, strict=True):
        assert len(part) == number
        assert (part.images.shape, part.images.dtype) == ((number, 3, size, size), torch.uint8)
        assert (part.labels.shape, part.labels.dtype) == ((number,), torch.int64)
        assert part.images.is_contiguous()
        assert part.labels.min() >= 0
        assert part.labels.max() < len(classes)
        if masks:
            assert (part.masks.shape, part.masks.dtype) == ((number, size, size), torch.bool)
        else:
            assert part.masks is None
    assert loaded.classes == tuple(classes)
    values = loaded.train.images.double() / 255
    assert np.allclose(loaded.mean, values.mean((0, 2, 3)), atol=1e-9, rtol=0)
    assert np.allclose(loaded.std, values.std((0, 2, 3), correction=0).clamp_min(1 / 255), atol=1e-7, rtol=0)
    assert all(type(number) is float for number in loaded.mean + loaded.std)
    assert type(loaded.notes) is tuple


def test_shapes():
    loaded = load_data("shapes", train_limit=30, test_limit=20, seed=4)
    check(loaded, (30, 20), CLASSES, masks=True)
    assert loaded.name == "shapes"
    for part, seed in ((loaded.train, 8), (loaded.test, 9)):
        for found, expected in zip(
            (part.images, part.labels, part.masks), draw_shapes(len(part), 32, seed), strict=True
        ):
            assert torch.equal(found, expected)
    check(load_data("shapes", image_size=48, train_limit=2, test_limit=1), (2, 1), CLASSES, 48, masks=True)


def test_shapes_sizes(monkeypatch):
    assert (data.SHAPES_TRAIN, data.SHAPES_TEST) == (10_000, 2_000)
    monkeypatch.setattr(data, "SHAPES_TRAIN", 12)
    monkeypatch.setattr(data, "SHAPES_TEST", 7)
    check(load_data("shapes"), (12, 7), CLASSES, masks=True)
    check(load_data("shapes", train_limit=10**9, test_limit=8), (12, 7), CLASSES, masks=True)


def test_scenes_of_two():
    loaded = load_data("shapes", train_limit=5, test_limit=3, objects=2)
    assert loaded.train.labels.shape == (5, 2)
    assert loaded.test.masks.shape == (3, 2, 32, 32)
    held = hold_out(loaded, 0.4)
    assert (len(held.train), len(held.test)) == (3, 2)
    assert held.test.masks.shape == (2, 2, 32, 32)


def test_split_selection():
    part = Split(*draw_shapes(10))
    some = part[torch.tensor([7, 2])]
    assert torch.equal(some.labels, part.labels[[7, 2]])
    assert torch.equal(some.masks[1], part.masks[2])
    assert len(part[:3]) == 3
    assert Split(part.images, part.labels)[:2].masks is None


def test_statistics_of_a_constant_channel():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[:, 1] = 255
    images[0, 2] = 3
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((0, 1, 0.25 * 3 / 255), abs=1e-12)
    assert std == pytest.approx((1 / 255, 1 / 255, 3 / 255 * 0.1875**0.5), abs=1e-9)
    assert min(std) == 1 / 255


# --- numbers and names that are wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar", "did you mean 'cifar10'"),
        ("CIFAR100", "did you mean 'cifar100'"),
        ("Shape", "did you mean 'shapes'"),
        ("", "known: shapes, cifar10, cifar100, svhn, folder"),
        (None, "known: shapes"),
        (["shapes"], "known: shapes"),
    ],
)
def test_unknown_name(name, words):
    with pytest.raises(ValueError, match="unknown data set") as caught:
        load_data(name)
    assert repr(name) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["shapes", "cifar10", "folder"])
@pytest.mark.parametrize(
    ("parameter", "value", "kind"),
    [
        ("image_size", 31, ValueError),
        ("image_size", 1025, ValueError),
        ("image_size", -32, ValueError),
        ("image_size", None, TypeError),
        ("image_size", 32.0, TypeError),
        ("image_size", "32", TypeError),
        ("image_size", (32, 32), TypeError),
        ("train_limit", 0, ValueError),
        ("train_limit", 10**30, ValueError),
        ("train_limit", True, TypeError),
        ("train_limit", 0.5, TypeError),
        ("test_limit", -1, ValueError),
        ("test_limit", "all", TypeError),
        ("test_limit", np.int64(3), TypeError),
        ("seed", -1, ValueError),
        ("seed", None, TypeError),
        ("seed", 1.5, TypeError),
        ("objects", 0, ValueError),
        ("objects", 3, ValueError),
        ("objects", None, TypeError),
    ],
)
def test_wrong_numbers(name, parameter, value, kind, tmp_path):
    with pytest.raises(
        kind, match=rf"^{parameter} must be (at least \d+ and at most \d+|a whole number), not "
    ) as caught:
        load_data(name, tmp_path, download=False, **{parameter: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "folder"])
def test_two_objects_only_of_shapes(name, tmp_path):
    with pytest.raises(ValueError, match="only 'shapes' draws scenes of two objects"):
        load_data(name, tmp_path, objects=2, download=False)


@pytest.mark.parametrize("root", [None, 3, b"data", ["data"]])
def test_root_that_is_no_path(root):
    with pytest.raises(TypeError, match="data_dir must be a path"):
        load_data("folder", root)


@pytest.mark.parametrize("root", ["", "  "])
def test_empty_root(root):
    with pytest.raises(ValueError, match="data_dir must not be empty"):
        load_data("folder", root)


def test_home_of_nobody():
    with pytest.raises(ValueError, match=r"'~no-such-user/x': there is no such user"):
        load_data("folder", "~no-such-user/x")


# --- folders ----------------------------------------------------------------------------------------------------------


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
    assert loaded.notes[0] == f"beside train/ and test/, these folders of {tmp_path} are not read: extra, val"


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
        ({}, "has no sub-folders; put the images of each class into a folder"),
        ({"a.png": None, "b.txt": b""}, "has no sub-folders"),
        ({"cat/a.png": None}, "has one class only, 'cat'; a classifier needs at least two"),
        ({"cat/a.png": None, "dog/readme.txt": b""}, r"dog holds no images that may be read \(\.jpg, .*\.png"),
        ({"cat/a.png": None, "dog/a.heic": b"x"}, "dog holds no images"),
        ({"cat/a.png": None, "dog/a.png": None}, "too few images to set some aside for the test"),
        ({"train/cat/a.png": None, "train/dog/a.png": None}, r"holds train/ but no test/; give both, or only one"),
        ({"test/cat/a.png": None, "cat/a.png": None}, r"holds test/ but no train/; give both"),
        (both_parts({"cat/a.png": None}), "train has one class only, 'cat'"),
        (both_parts(test={"cat/a.png": None, "emu/a.png": None}), "classes that train/ lacks: emu; known: cat, dog"),
        (both_parts(test={"a.png": None}), "test has no sub-folders"),
        (both_parts(test={"cat/a.txt": b""}), "cat holds no images"),
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
    with pytest.raises(ValueError, match="one class only"):
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


@pytest.mark.parametrize("method", ["iterdir", "read_bytes"])
def test_unreadable(method, tmp_path, monkeypatch):
    """Made by hand, because tests that run as root may read everything."""
    grow(tmp_path, both_parts())

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
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
        with pytest.raises(ValueError, match=r"may be read|you may read|Permission denied"):
            load_data("folder", tmp_path)
    finally:
        (tmp_path / locked).chmod(0o700)


# --- images that are converted ----------------------------------------------------------------------------------------


def test_gray(tmp_path):
    assert colors(picture_of(tmp_path, plain(100, mode="L"))) == {(100, 100, 100)}


def test_black_and_white(tmp_path):
    image = plain(0, mode="1")
    image.paste(1, (0, 0, 16, 32))
    assert corners(picture_of(tmp_path, image)) == [WHITE, BLACK, WHITE, BLACK]


def test_palette(tmp_path):
    image = plain(0, mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(2, (0, 0, 16, 32))
    assert corners(picture_of(tmp_path, image)) == [BLUE, RED, BLUE, RED]


@pytest.mark.parametrize("transparency", [2, b"\xff\xff\x00"], ids=["index", "table"])
def test_palette_with_transparency(transparency, tmp_path):
    image = plain(0, mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(2, (0, 0, 16, 32))
    content = encoded(image, transparency=transparency)
    assert corners(picture_of(tmp_path, content)) == [WHITE, RED, WHITE, RED]


def test_transparent_color(tmp_path):
    content = encoded(quarters([RED, GREEN, BLUE, BLACK]), transparency=BLUE)
    assert corners(picture_of(tmp_path, content)) == [RED, GREEN, WHITE, BLACK]


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (200, 0, 50)), (51, (244, 204, 214))])
def test_alpha_is_laid_on_white(alpha, expected, tmp_path):
    assert colors(picture_of(tmp_path, plain((200, 0, 50, alpha), mode="RGBA"))) == {expected}


def test_gray_with_alpha(tmp_path):
    image = plain((0, 0), mode="LA")
    image.paste((40, 255), (0, 0, 16, 32))
    assert corners(picture_of(tmp_path, image)) == [(40, 40, 40), WHITE, (40, 40, 40), WHITE]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits(kind, tmp_path):
    values = np.repeat(np.array([0, 257, 128 * 257 + 100, 65535], dtype=np.uint16), 8)[None].repeat(32, 0)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    content = b"P5 32 32 65535\n" + values.astype(">u2").tobytes() if kind == "PPM" else encoded(image, kind)
    picture = picture_of(tmp_path, content)
    assert picture[:, 5, ::8].tolist() == [[0, 1, 128, 255]] * 3


def test_sixteen_bits_but_dark(tmp_path):
    """Values that would fit into 8 bits are nearly black all the same."""
    content = encoded(Image.fromarray(np.full((32, 32), 200, dtype=np.uint16)))
    assert colors(picture_of(tmp_path, content)) == {(1, 1, 1)}


def turned(orientation):
    """Quarters that show red, green / blue, white once the EXIF orientation is undone: a table from the standard."""
    upright = np.array([[0, 1], [2, 3]])
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),  # to be shown, it is turned clockwise
        7: np.rot90(upright.T, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    return quarters([(RED, GREEN, BLUE, WHITE)[i] for i in stored.flatten()])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    picture = picture_of(tmp_path, encoded(turned(orientation), kind, exif=exif.tobytes(), **options), name="x.jpg")
    found, expected = np.array(corners(picture)), np.array([RED, GREEN, BLUE, WHITE])
    assert np.abs(found - expected).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif(exif, tmp_path):
    content = encoded(plain((120, 120, 120)), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert colors(picture_of(tmp_path, content, name="x.jpg")) == {(120, 120, 120)}


def test_rotation_beside_broken_exif(tmp_path):
    """A maker's name that is no text (Pillow's own exif_transpose chokes on it)."""
    entries = [struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHII", 0x010F, 5, 1, 0)]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + b"".join(entries) + bytes(4)
    assert corners(picture_of(tmp_path, encoded(turned(6), exif=exif))) == [RED, GREEN, BLUE, WHITE]


def test_cmyk(tmp_path):
    image = plain((0, 255, 255, 0), mode="CMYK")
    assert colors(picture_of(tmp_path / "t", encoded(image, "TIFF"), name="x.tif")) == {RED}
    (color,) = colors(picture_of(tmp_path / "j", encoded(image, "JPEG", quality=95), name="x.jpg"))
    assert np.abs(np.array(color) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_many(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(plain(GREEN), kind, save_all=True, append_images=[plain(RED), plain(BLUE)], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert colors(picture_of(tmp_path, content, name=f"x.{kind.lower()}")) == {GREEN}


def test_transparent_gif(tmp_path):
    image = plain(0, mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (0, 0, 16, 32))
    content = encoded(image, "GIF", transparency=0)
    assert corners(picture_of(tmp_path, content, name="x.gif")) == [GREEN, WHITE, GREEN, WHITE]


@pytest.mark.parametrize("size", [(1, 41), (41, 1), (1, 1)])
def test_one_pixel_wide(size, tmp_path):
    image = plain(BLACK, size)
    image.putpixel((size[0] // 2, size[1] // 2), (10, 20, 30))
    assert colors(picture_of(tmp_path, image)) == {(10, 20, 30)}  # the middle square is one pixel


def test_long_and_thin_takes_little_memory(tmp_path):
    """Not scaled to 32 x 64 million pixels before it is cropped."""
    assert colors(picture_of(tmp_path, plain(0, (1, 2_000_000), "L"))) == {BLACK}
    assert colors(picture_of(tmp_path, plain(0, (20_000, 1), "L"))) == {BLACK}


@pytest.mark.parametrize("size", [(600, 200), (200, 600)])
def test_middle_of_a_large_one(size, tmp_path):
    image = plain(RED, size)
    left, top = (size[0] - 200) // 2, (size[1] - 200) // 2
    image.paste(quarters([GREEN, BLUE, WHITE, BLACK], (200, 200)), (left, top))
    picture = picture_of(tmp_path, image, size=40)
    assert picture.shape == (3, 40, 40)
    assert [tuple(picture[:, y, x].tolist()) for y in (0, 39) for x in (0, 39)] == [GREEN, BLUE, WHITE, BLACK]
    assert corners(picture) == [GREEN, BLUE, WHITE, BLACK]


@pytest.mark.parametrize("size", [(32, 32), (39, 32), (32, 45)])
def test_no_blur_where_the_side_fits(size, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    top, left = (size[1] - 32) // 2, (size[0] - 32) // 2
    expected = torch.from_numpy(pixels[top : top + 32, left : left + 32]).permute(2, 0, 1)
    assert torch.equal(picture_of(tmp_path, Image.fromarray(pixels)), expected)


def test_scaling_averages(tmp_path):
    """A chequered board of single pixels becomes gray when it is made smaller, not one of its colors."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    picture = picture_of(tmp_path, Image.fromarray(board.astype(np.uint8)))
    assert (picture[:, 2:-2, 2:-2].int() - 127).abs().max() <= 1


@pytest.mark.parametrize(("name", "kind"), [("x.png", "JPEG"), ("x.jpg", "PNG"), ("x.gif", "BMP"), ("x.JPEG", "WEBP")])
def test_wrong_extension(name, kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = picture_of(tmp_path, encoded(plain((99, 99, 99)), kind, **options), name=name)
    assert colors(picture) == {(99, 99, 99)}


def test_photo_of_a_phone_with_two_pictures(tmp_path):
    image = plain((99, 99, 99))
    content = encoded(image, "MPO", save_all=True, append_images=[plain(BLACK)])
    assert colors(picture_of(tmp_path, content, name="x.jpg")) == {(99, 99, 99)}


# --- images that are refused ------------------------------------------------------------------------------------------


def png_that_declares(width, height):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
FLOAT = encoded(Image.new("F", (32, 32), 0.5), "TIFF")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "not an image of a known format"),
        (POSTSCRIPT, "not an image of a known format"),  # Pillow would start Ghostscript
        (b"\x89PNG\r\n\x1a\n", "not a"),
        (NOISE[: len(NOISE) // 2], "not a readable image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "not a"),
        (FLOAT, "floating-point numbers"),
        (png_that_declares(50_000, 50_000), "more than 50,000,000 pixels"),  # beyond Pillow's own limit
        (png_that_declares(10_000, 9_000), "more than 50,000,000 pixels"),  # Pillow would warn
        (png_that_declares(7_100, 7_100), "more than 50,000,000 pixels"),
        (png_that_declares(7_000, 7_000), "not a readable image"),  # allowed, but the pixels are missing
        (png_that_declares(0, 10), "not a"),
    ],
    ids=["empty", "html", "eps", "magic", "half", "jpeg", "float", "2500M", "90M", "50.4M", "49M", "0"],
)
def test_unreadable_image_is_named(content, words, tmp_path):
    grow(tmp_path, both_parts(two_classes(cat=3, dog=3) | {"dog/b ad.png": content}))
    with pytest.raises(ValueError, match="replace or delete it") as caught:
        load_data("folder", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'train' / 'dog' / 'b ad.png'}: ")
    assert words in message
    assert "BytesIO" not in message


def test_threads_leave_the_warnings_alone(tmp_path):
    grow(tmp_path, two_classes(cat=30, dog=30))
    before = list(warnings.filters)
    for _ in range(3):
        load_data("folder", tmp_path)
    assert warnings.filters == before


# --- limits and parts -------------------------------------------------------------------------------------------------


def test_limits(tmp_path):
    train, test = two_classes(a=10, b=10, c=3), two_classes(a=4, b=4)
    grow(tmp_path, both_parts(train, test))
    loaded = load_data("folder", tmp_path, train_limit=15, test_limit=3)
    check(loaded, (15, 3), "abc")
    assert loaded.train.labels.bincount().tolist() == [6, 6, 3]
    assert sorted(loaded.test.labels.bincount().tolist()) == [1, 2]
    assert torch.equal(load_data("folder", tmp_path, train_limit=15).train.images, loaded.train.images)
    other = load_data("folder", tmp_path, train_limit=15, seed=1)
    assert not torch.equal(other.train.images, loaded.train.images)
    whole = load_data("folder", tmp_path)
    assert len(whole.train) == 23
    assert len(load_data("folder", tmp_path, train_limit=10**9, test_limit=10**9).train) == 23
    assert len(load_data("folder", tmp_path, train_limit=1).train) == 1  # fewer than there are classes
    # What is chosen are whole samples, in their order.
    for image, label in zip(loaded.train.images, loaded.train.labels, strict=True):
        assert any(
            torch.equal(image, i) and label == j for i, j in zip(whole.train.images, whole.train.labels, strict=True)
        )


def test_stratified():
    labels = torch.tensor([0] * 50 + [1] * 20 + [7] * 5)[torch.randperm(75, generator=torch.Generator().manual_seed(0))]
    for count, expected in ((3, (1, 1, 1)), (12, (4, 4, 4)), (25, (10, 10, 5)), (60, (35, 20, 5)), (75, (50, 20, 5))):
        chosen = stratified(labels, count, 0)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert [int((labels[chosen] == label).sum()) for label in (0, 1, 7)] == list(expected)
    for count, expected in ((15, (10, 4, 1)), (30, (20, 8, 2)), (75, (50, 20, 5))):
        chosen = stratified(labels, count, 0, proportional=True)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert [int((labels[chosen] == label).sum()) for label in (0, 1, 7)] == list(expected)
    assert stratified(labels, 12, 0).tolist() == stratified(labels, 12, 0).tolist()
    assert stratified(labels, 12, 0).tolist() != stratified(labels, 12, 1).tolist()
    assert set(stratified(labels, 12, 0).tolist()) < set(stratified(labels, 25, 0).tolist())  # nested
    pairs = torch.stack([labels, labels.flip(0)], dim=1)  # scenes go by their first object
    assert torch.equal(stratified(pairs, 12, 0), stratified(labels, 12, 0))


def test_stratified_is_fair_within_a_class():
    """Over many seeds each of 20 samples is chosen about 5 of 20 times."""
    chosen = torch.cat([stratified(torch.zeros(20, dtype=torch.int64), 5, seed) for seed in range(400)])
    counts = chosen.bincount(minlength=20)
    assert (counts - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


def some_data(*counts):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    images = torch.arange(len(labels))[:, None, None, None].expand(-1, 3, 4, 4).to(torch.uint8)
    train = Split(images, labels, torch.zeros(len(labels), 4, 4, dtype=torch.bool))
    names = tuple("abcdefghij"[: len(counts)])
    return Dataset("folder", names, train, Split(images[:1], labels[:1]), (0.0,) * 3, (1.0,) * 3, ("a note",))


def test_hold_out():
    whole = some_data(100, 50, 10)
    part = hold_out(whole, 0.2)
    assert part.test.labels.bincount().tolist() == [20, 10, 2]
    assert part.train.labels.bincount().tolist() == [80, 40, 8]
    assert part.test.masks.shape == (32, 4, 4)
    numbers = [split.images[:, 0, 0, 0].tolist() for split in (part.train, part.test)]
    assert sorted(numbers[0] + numbers[1]) == list(range(160))  # disjoint, and nothing lost
    assert (part.classes, part.notes) == (whole.classes, whole.notes)
    assert (part.mean, part.std) == channel_statistics(part.train.images)
    assert torch.equal(hold_out(whole, 0.2).test.images, part.test.images)
    assert not torch.equal(hold_out(whole, 0.2, seed=1).test.images, part.test.images)
    assert hold_out(some_data(50, 50), 0.01).test.labels.tolist() in ([0], [1])
    assert len(hold_out(whole, np.float64(0.5)).test) == 80


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, 0.001, 0.999, float("nan"), float("inf"), 10**400])
def test_hold_out_of_nothing_or_everything(fraction):
    with pytest.raises(ValueError, match=f"validation={fraction} of 20 images leaves one part empty: choose e.g. 0.1"):
        hold_out(some_data(10, 10), fraction)


@pytest.mark.parametrize("fraction", ["0.1", None, True, [0.1]])
def test_hold_out_of_no_number(fraction):
    with pytest.raises(TypeError, match="validation must be a number"):
        hold_out(some_data(10, 10), fraction)


# --- CIFAR and SVHN ---------------------------------------------------------------------------------------------------


def fake_cifar(root, monkeypatch, name="cifar10"):
    """A tiny archive's content, as torchvision reads it; MD5s are not checked by torchvision, but by our download."""
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    classes = 10 if name == "cifar10" else 100
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pixels, labels = {}, {}
    for split, files, count in (("train", kind.train_list, 60), ("test", kind.test_list, 30)):
        monkeypatch.setattr(kind, f"{split}_list", [(file, None) for file, _ in files])
        pixels[split], labels[split] = [], []
        for i, (file, _) in enumerate(files):
            values = generator.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
            targets = [(7 * k + i) % classes for k in range(count)]
            key = "labels" if name == "cifar10" else "fine_labels"
            (folder / file).write_bytes(pickle.dumps({"data": values, key: targets}, protocol=2))
            pixels[split].append(values.reshape(count, 3, 32, 32))
            labels[split] += targets
        pixels[split] = torch.from_numpy(np.concatenate(pixels[split]))
    meta = dict(kind.meta, md5=None)
    monkeypatch.setattr(kind, "meta", meta)
    names = [f"class {label}" for label in range(classes)]
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: names}, protocol=2))
    return pixels, labels, names


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, tmp_path, monkeypatch):
    pixels, labels, names = fake_cifar(tmp_path, monkeypatch, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_data(name, str(tmp_path), download=False)
    check(loaded, (len(pixels["train"]), 30), names)
    assert loaded.name == name
    for part, split in ((loaded.train, "train"), (loaded.test, "test")):
        assert torch.equal(part.images, pixels[split])
        assert part.labels.tolist() == labels[split]


def test_cifar_is_not_downloaded_twice(tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch)
    folder = tmp_path / datasets.CIFAR10.base_folder
    digests = {file.name: download._md5(file) for file in folder.iterdir()}
    archive = dataclasses.replace(download.ARCHIVES["cifar10"], files=digests, urls=())
    monkeypatch.setitem(download.ARCHIVES, "cifar10", archive)
    assert len(load_data("cifar10", tmp_path).train) == 300
    (folder / "data_batch_3").write_bytes(b"something else")
    with pytest.raises(download.DownloadError, match="could not be downloaded"):
        load_data("cifar10", tmp_path)


def test_cifar_limits_and_sizes(tmp_path, monkeypatch):
    pixels, labels, names = fake_cifar(tmp_path, monkeypatch)
    loaded = load_data("cifar10", tmp_path, train_limit=50, test_limit=10, image_size=64, download=False)
    check(loaded, (50, 10), names, 64)
    assert loaded.train.labels.bincount().tolist() == [5] * 10
    assert loaded.test.labels.bincount().tolist() == [1] * 10
    small = load_data("cifar10", tmp_path, train_limit=50, test_limit=10, download=False)
    assert torch.equal(small.train.images, pixels["train"][stratified(torch.tensor(labels["train"]), 50, 0)])
    assert torch.equal(small.train.labels, loaded.train.labels)
    # Interpolated between the centers: in each direction 3/4 of the nearest pixel and 1/4 of the next.
    values = small.train.images[0].double()
    near, far = values[:, :-1], values[:, 1:]
    rows = torch.stack([0.75 * near + 0.25 * far, 0.25 * near + 0.75 * far], dim=2).flatten(1, 2)
    near, far = rows[:, :, :-1], rows[:, :, 1:]
    both = torch.stack([0.75 * near + 0.25 * far, 0.25 * near + 0.75 * far], dim=3).flatten(2, 3)
    assert (loaded.train.images[0, :, 1:-1, 1:-1].double() - both).abs().max() <= 0.5 + 1e-4
    one = load_data("cifar10", tmp_path, train_limit=2, test_limit=1, download=False)
    assert (len(one.train), len(one.test)) == (2, 1)


def fake_svhn(root, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    generator = np.random.default_rng(0)
    pixels, labels = {}, {}
    for split, count in (("train", 40), ("test", 20)):
        url, filename, _ = datasets.SVHN.split_list[split]
        monkeypatch.setitem(datasets.SVHN.split_list, split, [url, filename, None])
        pixels[split] = generator.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels[split] = np.arange(count) % 10 + 1  # in the files, 10 is the digit 0
        scipy_io.savemat(root / filename, {"X": pixels[split], "y": labels[split][:, None].astype(np.uint8)})
    return pixels, labels


def test_svhn(tmp_path, monkeypatch):
    pixels, labels = fake_svhn(tmp_path, monkeypatch)
    loaded = load_data("svhn", tmp_path, download=False)
    check(loaded, (40, 20), "0123456789")
    for part, split in ((loaded.train, "train"), (loaded.test, "test")):
        assert part.labels.tolist() == [label % 10 for label in labels[split]]
        assert np.array_equal(part.images.numpy(), np.moveaxis(pixels[split], (3, 2, 0, 1), (0, 1, 2, 3)))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
@pytest.mark.parametrize("root", [".", "nowhere", "file", "nul\0l"])
def test_missing_and_not_to_be_downloaded(name, root, tmp_path, monkeypatch):
    if name == "svhn":
        pytest.importorskip("scipy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="allow the download") as caught:
        load_data(name, root, download=False)
    assert str(caught.value).startswith(f"{name} is not in {root} or not complete")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_damaged_cifar(tmp_path, monkeypatch):
    """Nothing is unpickled whose MD5 is wrong."""
    fake_cifar(tmp_path, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [(file, "0" * 32) for file, _ in datasets.CIFAR10.train_list])
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("was unpickled"))
    with pytest.raises(FileNotFoundError, match="not complete"):
        load_data("cifar10", tmp_path, download=False)


def test_svhn_needs_scipy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"'svhn' needs scipy to be read: pip install"):
        load_data("svhn", tmp_path, download=False)
