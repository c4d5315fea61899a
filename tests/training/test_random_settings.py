"""Random parameters and odd files: they work, or are refused with words that name them; nothing else, and no hang.

A few in every run of the tests, all of them in the slow ones.
"""

import math
import os
import shutil
import signal
import struct
import zlib
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ltpa import TrainConfig, fit, load_data
from ltpa.models.networks import PAPER_NAMES
from tests.test_config import NAMES, contradicts, is_wrong

SIZES = pytest.mark.parametrize("examples", [8, pytest.param(1000, marks=pytest.mark.slow)])
FILES = pytest.mark.parametrize("examples", [20, pytest.param(500, marks=pytest.mark.slow)])


def profile(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def told(function):
    """What it returns, or the error that a user is told; any other error ends the test."""
    try:
        return function()
    except (ValueError, TypeError) as error:
        return error


@contextmanager
def at_most(seconds):
    """Ends what hangs."""

    def ring(*_):
        raise AssertionError(f"it hangs: not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- parameters

# Values that a training of one step on a few small pictures can have.
RIGHT = {
    "model": st.sampled_from(PAPER_NAMES),
    "width": st.sampled_from([1 / 32, 1 / 64, 1e-9, 0.05]),
    "normalizer": st.sampled_from(["softmax", "sigmoid"]),
    "dropout": st.booleans(),
    "dataset": st.sampled_from(["shapes", "folder"]),
    "data_dir": st.just("pictures"),
    "image_size": st.integers(32, 44),
    "train_limit": st.integers(2, 8),
    "test_limit": st.integers(1, 4),
    "validation": st.sampled_from([0, 0.0, 0.5]),
    "epochs": st.just(1),
    "batch_size": st.integers(8, 10**6),
    "learning_rate": st.floats(1e-9, 100),
    "weight_decay": st.floats(0, 1),
    "label_smoothing": st.floats(0, 1, exclude_max=True),
    "augment": st.sampled_from(["auto", "flip+shift", "flip+shift+cutout", "shift", "none"]),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "device": st.sampled_from(["auto", "cpu"]),
    "seed": st.integers(0, 2**31 - 1),
    "snapshots": st.integers(0, 5),
    "run_dir": st.sampled_from([None, "here", "runs/ünï ☃", "a/b/c", "-x", "%s{}\n"]),
}
NEEDED = ("dataset", "data_dir", "width", "image_size", "train_limit", "test_limit", "epochs", "batch_size", "device")
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(
        ["ten", "", "3", -1, 0, 2**70, 3.5, math.nan, math.inf, -math.inf, {}, object, 1j, "cuda:99", "~x"]
    ),
)
UNKNOWN = st.sampled_from(["epoch", "lr", "Model", "learningrate", "x y", ""]) | st.text(max_size=8)


@st.composite
def parameter_sets(draw):
    """Some of the right values; then, in half of the sets one to three that may be wrong, or a name that is."""
    names = [name for name in NAMES if name in RIGHT and (name in NEEDED or draw(st.booleans()))]
    values = {name: draw(RIGHT[name]) for name in names}
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        values[draw(st.sampled_from(NAMES) | UNKNOWN)] = draw(JUNK)
    return values


def cannot_be_tried(values):
    """Right, but not to be tried in a test: too large, a download, or a folder that is not there."""
    large = {"width": 0.1, "image_size": 64, "train_limit": 100, "test_limit": 100, "epochs": 2, "snapshots": 256}
    return (
        any((values[name] is None or values[name] > most) for name, most in large.items() if name in values)
        or values.get("minutes") is not None
        or values["dataset"] not in ("shapes", "folder")
        or (values["dataset"] == "folder" and values["data_dir"] != "pictures")
    )


def grow(root):
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(5):
                pixels = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


@SIZES
def test_random_parameters_train_a_step_or_are_refused_by_name(examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grow(tmp_path / "pictures")
    outcomes = {"trained": 0, "refused": 0, "this machine": 0, "not tried": 0}

    @profile(examples)
    @given(parameter_sets())
    def check(values):
        wrong = [name for name, value in values.items() if name not in NAMES or is_wrong(name, value)]
        for path in tmp_path.iterdir():
            if path.name != "pictures":
                shutil.rmtree(path)
        config = told(lambda: TrainConfig(**values))
        if isinstance(config, Exception):
            assert wrong or contradicts(values), config
            assert all((name if name in NAMES else repr(name)) in str(config) for name in wrong)
            assert os.listdir(tmp_path) == ["pictures"]
            outcomes["refused"] += 1
            return
        assert not wrong
        assert not contradicts(values)
        if cannot_be_tried(values):
            outcomes["not tried"] += 1
            return
        with at_most(120):
            run = told(lambda: fit(config, progress=False))
        if isinstance(run, Exception):
            # What only the machine or the pictures show: a GPU that is not there, a part that is empty.
            assert [name for name in ("device", "precision", "validation", "run_dir") if name in str(run)], run
            outcomes["this machine"] += 1
            return
        (row,) = run.history
        assert math.isfinite(row["train_loss"])
        assert all(value.isfinite().all() for value in run.model.state_dict().values())
        outcomes["trained"] += 1

    check()
    assert outcomes["trained"] >= examples / 4, outcomes
    assert outcomes["refused"] >= examples / 8, outcomes
    print(outcomes)


# --- image files

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "JPEG2000")
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "LA", "YCbCr", "HSV", "LAB")
SUFFIXES = (".png", ".jpg", ".JPEG", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


@st.composite
def pictures(draw):
    """A file in some format, mode and size, as Pillow writes it; a PNG where it cannot."""
    mode, size = draw(st.sampled_from(MODES)), (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
    kind, more = draw(st.sampled_from(FORMATS)), draw(st.sampled_from([{}, {"save_all": True}]))
    noise = np.random.default_rng(0).integers(0, draw(st.sampled_from([1, 30, 256])), (*size, 3), dtype=np.uint8)
    buffer = BytesIO()
    try:
        Image.fromarray(noise).convert(mode).save(buffer, kind, **more)
    except (OSError, ValueError, KeyError):
        buffer = BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@st.composite
def damaged(draw):
    """A picture that is cut, or has bytes that are other ones, more, or fewer."""
    content = bytearray(draw(pictures()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["cut", "change", "insert", "remove", "repeat"]))
        if kind == "cut":
            del content[at:]
        elif kind == "change":
            content[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=200))
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 30))]
        else:
            content += content[at:]
    return bytes(content)


@st.composite
def announced(draw):
    """The head of a picture of any size, with few or no pixels behind it."""
    width, height = (draw(st.sampled_from([0, 1, 31, 7071, 7072, 65535, 2**31 - 1])) for _ in range(2))
    body = zlib.compress(bytes(draw(st.sampled_from([0, 100, 10**6]))))

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    kind = draw(st.sampled_from(["png", "gif", "bmp", "ppm", "pgm", "tiff"]))
    if kind == "png":
        head = struct.pack(
            ">IIBBBBB", width, height, draw(st.sampled_from([1, 8, 16])), draw(st.integers(0, 6)), 0, 0, 0
        )
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    if kind == "gif":
        return b"GIF89a" + struct.pack("<HHBBB", width & 0xFFFF, height & 0xFFFF, 0x80, 0, 0) + bytes(6) + b",;" + body
    if kind == "bmp":
        fields = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + fields + body
    if kind == "tiff":
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 9)]
        return (
            b"II*\0\x08\0\0\0" + struct.pack("<H", 6) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
        )
    return f"P{6 if kind == 'ppm' else 5} {width} {height} 255\n".encode() + body


CONTENT = st.one_of(
    st.binary(max_size=300),
    pictures(),
    pictures(),
    pictures(),
    damaged(),
    damaged(),
    damaged(),
    announced(),
    st.text().map(str.encode),
)
STEMS = st.one_of(
    st.sampled_from(["x", "a b", "-rf", "%s{0}", "ünï ☃", "new\nline", "con", "x.png", "..x", "~"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=30),
)


@FILES
def test_odd_files_are_read_or_refused_by_name(examples, tmp_path):
    grow(tmp_path / "data")
    folder = tmp_path / "data" / "train" / "dog"
    outcomes = {"read": 0, "refused": 0, "left out": 0}

    @profile(examples)
    @given(CONTENT, STEMS, st.sampled_from(SUFFIXES), st.integers(32, 64))
    def check(content, stem, suffix, size):
        file = folder / (stem + suffix)
        if file.exists():
            return
        file.write_bytes(content)
        with at_most(60):
            data = told(lambda: load_data("folder", tmp_path / "data", image_size=size))
        file.unlink()
        if isinstance(data, Exception):
            assert f"{file}: " in str(data), data
            assert "replace or delete" in str(data)
            outcomes["refused"] += 1
        else:
            assert data.train.images.shape[1:] == (3, size, size)
            assert data.train.images.dtype == torch.uint8
            assert len(data.train) - 10 == (not stem.startswith("."))
            outcomes["read" if len(data.train) == 11 else "left out"] += 1

    check()
    assert outcomes["read"] >= examples / 20, outcomes
    assert outcomes["refused"] >= examples / 5, outcomes
    print(outcomes)
