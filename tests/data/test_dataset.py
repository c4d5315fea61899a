"""Data sets: what `load_data` returns, its limits and parts, and how it answers what it cannot use."""

import numpy as np
import pytest
import torch
from PIL import Image

from ltpa import Dataset, Split, hold_out, load_data
from ltpa.data import dataset as data
from ltpa.data.shapes import CLASSES, draw_shapes
from ltpa.data.split import stratified

from .pictures import both_parts, grow, two_classes

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


def test_the_test_images_alone():
    whole, alone = (load_data("shapes", train_limit=5, test_limit=20, test_only=only) for only in (False, True))
    assert torch.equal(alone.test.images, whole.test.images)
    assert (len(alone.train), alone.train.shape, alone.train.masks.shape) == (0, (0, 3, 32, 32), (0, 32, 32))
    assert (alone.mean, alone.std) == whole.test.statistics()


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
    mean, std = Split(images, torch.zeros(4)).statistics()
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


@pytest.mark.parametrize(
    ("parameter", "value", "kind"),
    [
        ("image_size", 31, ValueError),
        ("image_size", 1025, ValueError),
        ("image_size", None, TypeError),
        ("image_size", 32.0, TypeError),
        ("image_size", "32", TypeError),
        ("train_limit", 0, ValueError),
        ("train_limit", 10**30, ValueError),
        ("train_limit", True, TypeError),
        ("test_limit", -1, ValueError),
        ("test_limit", np.int64(3), TypeError),
        ("seed", -1, ValueError),
        ("seed", None, TypeError),
        ("objects", 3, ValueError),
    ],
)
def test_wrong_numbers(parameter, value, kind, tmp_path):
    for name in ("shapes", "cifar10", "folder"):
        with pytest.raises(kind, match=rf"^{parameter} must be .*{value}"):
            load_data(name, tmp_path, download=False, **{parameter: value})


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "folder"])
def test_two_objects_only_of_shapes(name, tmp_path):
    with pytest.raises(ValueError, match="only 'shapes' draws scenes of two objects"):
        load_data(name, tmp_path, objects=2, download=False)


@pytest.mark.parametrize(
    ("root", "words"),
    [
        (None, "must be a path, not None"),
        (b"data", "must be a path"),
        (" ", "must not be empty"),
        ("~no-such-user/x", "there is no such user"),
    ],
)
def test_root_that_is_no_path(root, words):
    with pytest.raises(ValueError, match=f"data_dir: .*{words}"):
        load_data("folder", root)


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
    assert (part.mean, part.std) == part.train.statistics()
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


def test_no_download_among_somebodys_own_pictures(tmp_path):
    (tmp_path / "bees").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "bees" / "1.jpg")
    with pytest.raises(ValueError, match=r"bees.1\.jpg.*'cifar10': set dataset='folder'"):
        load_data("cifar10", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bees"]
