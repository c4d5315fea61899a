"""The embedded data set: the same pictures everywhere, exact masks, and no shortcut for a classifier."""

import hashlib
import math
import time
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch

from ltpa.data import shapes
from ltpa.data.shapes import CLASSES, draw_shapes

SPLITS = (0, 1)  # seeds; load_data draws training and test pictures with the seeds 2 s and 2 s + 1


def digest(*tensors):
    joint = hashlib.sha256()
    for tensor in tensors:
        joint.update(tensor.contiguous().numpy().tobytes())
    return joint.hexdigest()


@pytest.fixture(scope="module")
def thousand():
    return draw_shapes(1000)


def test_pictures_are_the_same_on_every_machine(thousand):
    """Verified with three versions of numpy, and with SIMD and fast BLAS kernels switched off."""
    assert digest(*thousand) == "51ff11ad1dd97698152892646de8c607a43907290173753fd51db4b3f5bdd5a3"
    scenes = draw_shapes(300, 48, seed=7, objects=2)
    assert digest(*scenes) == "9d3c2e8c959e3b0e0feba36919b2d924b075bb6d84313fe1e0f9654fdbea74fa"


def test_shapes_and_types(thousand):
    images, labels, masks = thousand
    assert (images.shape, images.dtype) == ((1000, 3, 32, 32), torch.uint8)
    assert (labels.shape, labels.dtype) == ((1000,), torch.int64)
    assert (masks.shape, masks.dtype) == ((1000, 32, 32), torch.bool)
    assert len(CLASSES) == len(set(CLASSES)) == 10


@pytest.mark.parametrize("size", [16, 33, 64, 128])
def test_any_size(size):
    images, labels, masks = draw_shapes(20, size, seed=3)
    assert images.shape == (20, 3, size, size)
    assert masks.shape == (20, size, size)
    assert torch.equal(labels, draw_shapes(20, 32, seed=3)[1])
    # An object is the same part of the picture at every size, up to the pixels at its edge.
    small = draw_shapes(20, 32, seed=3)[2].double().mean((1, 2))
    assert (masks.double().mean((1, 2)) - small).abs().max() < (0.03 if size < 32 else 0.015)


@pytest.mark.parametrize("objects", [1, 2])
def test_fewer_pictures_are_the_first_of_more(objects):
    many = draw_shapes(1200, 16, 5, objects)
    few = draw_shapes(600, 16, 5, objects)
    assert all(torch.equal(a[:600], b) for a, b in zip(many, few, strict=True))
    one = draw_shapes(1, 16, 5, objects)
    assert all(torch.equal(a[:1], b) for a, b in zip(many, one, strict=True))


@pytest.mark.parametrize("objects", [1, 2])
def test_portions_do_not_change_the_pictures(objects, monkeypatch):
    whole = draw_shapes(510, 16, 1, objects)
    monkeypatch.setattr(shapes, "_PIXELS", 16**2 * 70 + 1)  # seventy pictures at a time
    assert digest(*draw_shapes(510, 16, 1, objects)) == digest(*whole)
    monkeypatch.setattr(shapes, "_PIXELS", 1)
    assert digest(*draw_shapes(12, 16, 1, objects)) == digest(*(part[:12] for part in whole))


def test_large_pictures_take_little_memory():
    tracemalloc.start()
    draw_shapes(20, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def test_speed():
    start = time.process_time()
    draw_shapes(250)
    assert time.process_time() - start < 1


def test_seeds_differ_and_splits_are_disjoint():
    drawn = [draw_shapes(500, 16, seed)[0].flatten(1).numpy() for seed in (*SPLITS, 2, 3)]
    rows = {row.tobytes() for part in drawn for row in part}
    assert len(rows) == 4 * 500
    for other in drawn[1:]:  # nor is a picture the same but for noise
        assert np.abs(drawn[0].astype(float) - other).mean(1).min() > 10


@pytest.mark.parametrize("objects", [1, 2])
def test_labels_are_balanced_in_every_block_and_in_no_order(objects):
    labels = draw_shapes(1500, 16, 2, objects)[1].reshape(1500, objects)
    for block in labels[:, 0].split(500):
        assert block.bincount(minlength=10).tolist() == [50] * 10
    same_as_next = (labels[1:, 0] == labels[:-1, 0]).double().mean()
    assert abs(same_as_next - 0.1) < 0.03
    if objects == 2:
        # The second class is any of the other nine: 1500 / 9 of each distance, within 5 sigma.
        distance = (labels[:, 1] - labels[:, 0]) % 10
        counts = distance.bincount(minlength=10)
        assert counts[0] == 0
        assert (counts[1:] - 1500 / 9).abs().max() < 5 * math.sqrt(1500 / 9)


@pytest.mark.parametrize("objects", [1, 2])
def test_prefix_of_many_is_almost_balanced(objects):
    labels = draw_shapes(100, 16, 0, objects)[1].reshape(100, objects)[:, 0]
    assert labels.bincount(minlength=10).min() >= 3


def spy_on_objects(monkeypatch):
    """What `_object` was given and drew, and what it covered: labels, places, angles, coverage."""
    seen = []
    original = shapes._object

    def spy(draw, labels, place, size):
        angles = []

        def drawn(*shape, **limits):
            angles.append(draw(*shape, **limits))
            return angles[-1]

        cover = original(drawn, labels, place, size)
        assert len(angles) == 1
        seen.append((labels, place * size, angles[0], cover))
        return cover

    monkeypatch.setattr(shapes, "_object", spy)
    return seen


def polygon(name):
    """Corners (u, v) of a silhouette, one or more closed outlines."""
    if name == "square":
        return [[(-0.707, -0.707), (0.707, -0.707), (0.707, 0.707), (-0.707, 0.707)]]
    if name == "triangle":  # equilateral, in the unit circle
        return [[(math.cos(a), math.sin(a)) for a in (math.pi / 2, math.pi * 7 / 6, math.pi * 11 / 6)]]
    if name == "star":
        return [[(r * math.cos(k * math.pi / 5), r * math.sin(k * math.pi / 5)) for k, r in enumerate([1.0, 0.42] * 5)]]
    if name == "cross":
        a, b = 0.95, 0.28
        quarter = [(a, -b), (a, b), (b, b)]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(-v, u) for u, v in quarter]
        return [corners]
    if name == "arrow":
        return [[(-0.2, -0.97), (0.2, -0.97), (0.2, 0), (0.75, 0), (0, 1), (-0.75, 0), (-0.2, 0)]]
    if name == "hourglass":
        wide = 0.85 * 0.62
        return [[(0, 0), (wide, 0.85), (-wide, 0.85)], [(0, 0), (-wide, -0.85), (wide, -0.85)]]
    return None


def in_outline(x, y, corners):
    """Even-odd rule: how many edges a ray to the right crosses."""
    odd = False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            odd = not odd
    return odd


def in_shape(name, x, y, radius, angle):
    """Whether the point (x, y), in pixels from the object's center, lies in it."""
    if name == "disc":
        return math.dist((0, 0), (x, y)) <= 0.85 * radius
    if name == "ring":
        return 0.55 * radius <= math.dist((0, 0), (x, y)) <= radius
    if name == "crescent":
        bite = (0.5 * radius * math.cos(angle), 0.5 * radius * math.sin(angle))
        return math.dist((0, 0), (x, y)) <= radius and math.dist(bite, (x, y)) >= 0.8 * radius
    if name == "heart":
        turned = complex(x, y) / radius * complex(math.cos(angle), -math.sin(angle))
        p, q = 1.36 * turned.real, 1.36 * turned.imag + 0.1
        return (p * p + q * q - 1) ** 3 - p * p * q**3 <= 0
    turn = radius * complex(math.cos(angle), math.sin(angle))
    outlines = [[((turn * complex(u, v)).real, (turn * complex(u, v)).imag) for u, v in o] for o in polygon(name)]
    return any(in_outline(x, y, outline) for outline in outlines)


@pytest.mark.parametrize("objects", [1, 2])
def test_masks_against_a_slow_rasterizer(objects, monkeypatch):
    seen = spy_on_objects(monkeypatch)
    count, size = 40, 24
    _, drawn_labels, masks = draw_shapes(count, size, 11, objects)
    drawn_labels, masks = drawn_labels.reshape(count, objects), masks.reshape(count, objects, size, size)
    assert len(seen) == objects
    compared = set()
    for which, (labels, places, angles, cover) in enumerate(seen):
        assert labels.tolist() == drawn_labels[:, which].tolist()
        for i in range(count):
            name = CLASSES[labels[i]]
            if (name, which) in compared:
                continue
            compared.add((name, which))
            diameter, cx, cy = places[i]
            for row in range(size):
                for column in range(size):
                    hits = sum(
                        in_shape(name, column + dx - cx, row + dy - cy, diameter / 2, angles[i])
                        for dx in (0.25, 0.75)
                        for dy in (0.25, 0.75)
                    )
                    assert cover[i, row, column] == hits / 4, (name, row, column)
                    assert bool(masks[i, which, row, column]) == (hits >= 2), (name, row, column)
    assert {name for name, which in compared if which == 0} == set(CLASSES)


@pytest.mark.parametrize("objects", [1, 2])
def test_size_place_and_rotation(objects, monkeypatch):
    seen = spy_on_objects(monkeypatch)
    size = 32
    _, _, masks = draw_shapes(500, size, 4, objects)
    masks = masks.reshape(500, objects, size, size)
    middles = (np.arange(size) + 0.5)[None]
    for which, (labels, places, angles, cover) in enumerate(seen):
        diameter, cx, cy = places.T
        smallest, largest = (0.35, 0.5) if objects == 1 else (0.3, 0.4)
        assert smallest * size <= diameter.min() < (smallest + 0.01) * size
        assert (largest - 0.01) * size < diameter.max() <= largest * size
        for center in (cx, cy):  # wholly inside the picture, and everywhere in it
            assert (center - diameter / 2).min() >= 0
            assert (center + diameter / 2).max() <= size
            assert (center - diameter / 2).min() < 0.5
            assert (center + diameter / 2).max() > size - 0.5
        histogram = np.histogram(angles, bins=8, range=(0, 2 * np.pi))[0]
        assert np.abs(histogram - 500 / 8).max() < 5 * math.sqrt(500 / 8)
        mask = masks[:, which].numpy()
        area = mask.sum((1, 2))
        assert area.min() > 0
        # No pixel of the mask is farther from the center than the object reaches.
        away = np.sqrt((middles[..., None] - cy[:, None, None]) ** 2 + (middles[:, None] - cx[:, None, None]) ** 2)
        assert (away * mask - diameter[:, None, None] / 2).max() <= math.hypot(0.25, 0.25)
        for name, of_unit in (
            ("disc", math.pi * 0.85**2),
            ("ring", math.pi * (1 - 0.55**2)),
            ("square", 4 * 0.707**2),
            ("triangle", 3 * math.sqrt(3) / 4),
        ):
            rows = labels == CLASSES.index(name)
            exact = of_unit * (diameter[rows] / 2) ** 2
            relative = cover[rows].sum((1, 2)) / exact
            assert abs(relative.mean() - 1) < 0.01, name
            assert np.abs(relative - 1).max() < 0.1, name
            # Two of four points are enough for a pixel, which adds about 0.07 pixels all along the outline.
            assert 1 < (area[rows] / exact).mean() < 1.12, name


def test_two_objects():
    images, labels, masks = draw_shapes(500, 32, 9, objects=2)
    assert (images.shape, labels.shape, masks.shape) == ((500, 3, 32, 32), (500, 2), (500, 2, 32, 32))
    assert (labels[:, 0] != labels[:, 1]).all()
    assert not (masks[:, 0] & masks[:, 1]).any()
    assert masks.flatten(2).any(2).all()
    # In different halves, in about half of the pictures side by side.
    rows, columns = (masks.any(3 - d).double() for d in (0, 1))  # (500, 2, 32) each
    at = torch.arange(32.0, dtype=torch.float64)
    middle = [(part * at).sum(2) / part.sum(2) for part in (rows, columns)]
    apart = [m[:, 1] - m[:, 0] for m in middle]
    assert (torch.maximum(*apart) > 6).all()
    assert 0.35 < (apart[0] > apart[1]).double().mean() < 0.65


@pytest.mark.parametrize("size", [16, 32])
def test_two_objects_do_not_touch(size):
    """No pixel of one mask is a neighbor of the other, not even at a corner."""
    first, second = draw_shapes(500, size, 9, objects=2)[2].float().unbind(1)
    grown = torch.nn.functional.max_pool2d(first[:, None], 3, stride=1, padding=1)[:, 0]
    assert not (grown * second).any()


def test_object_differs_where_the_mask_is(thousand):
    """Color inside is unlike that just outside, and a wrong mask would not fit."""
    images, _, masks = thousand

    def contrast(chosen):
        ring = torch.nn.functional.max_pool2d(chosen[:, None].float(), 5, stride=1, padding=2)[:, 0].bool() & ~chosen
        inside, outside = (
            (images * part[:, None]).double().sum((2, 3)) / part.sum((1, 2))[:, None] for part in (chosen, ring)
        )
        return (inside - outside).abs().amax(1)

    assert (contrast(masks) > 20).double().mean() > 0.9
    assert contrast(masks).mean() > 1.5 * contrast(masks.roll(1, 0)).mean()


def test_brightness_says_nothing(thousand):
    """Objects and ground have the same mean over the set, and as many objects are darker as are brighter."""
    images, _, masks = thousand
    gray = images.double().mean(1)
    assert abs(gray[masks].mean() - gray[~masks].mean()) < 8
    inside = (gray * masks).sum((1, 2)) / masks.sum((1, 2))
    brighter = inside > (gray * ~masks).sum((1, 2)) / (~masks).sum((1, 2))
    assert 0.44 < brighter.double().mean() < 0.56


def average_precision(masks, scores):
    """Average precision of each row of scores (N, n); scikit-learn's is slower."""
    hits = np.take_along_axis(masks, np.argsort(-scores, 1), 1)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / hits.sum(1)


def test_average_precision():
    draw = np.random.default_rng(0)
    masks, scores = draw.random((20, 30)) < 0.3, draw.random((20, 30))
    sklearn = pytest.importorskip("sklearn.metrics")
    expected = [sklearn.average_precision_score(*row) for row in zip(masks, scores, strict=True)]
    assert average_precision(masks, scores) == pytest.approx(expected)


@pytest.mark.parametrize(("objects", "size"), [(1, 32), (2, 32), (1, 96)])
def test_no_simple_filter_finds_the_objects(objects, size):
    """Filters without learning, each as it is and blurred, stay under an average precision of 0.40."""
    images, _, masks = draw_shapes(200 if size == 32 else 40, size, 1, objects)
    masks = masks.reshape(len(images), objects, -1).any(1).numpy()
    color = images.numpy() / 255
    gray = color.mean(1)
    scipy = pytest.importorskip("scipy.ndimage")
    blurred = partial(scipy.gaussian_filter, axes=(1, 2))
    scale = size / 32
    differences = blurred(gray, 2 * scale) - blurred(gray, 8 * scale)
    down, across = np.gradient(gray, axis=(1, 2))
    detectors = {
        "difference of Gaussians": differences,
        "its negative": -differences,
        "its absolute value": np.abs(differences),
        "brightness": gray,
        "darkness": -gray,
        "distance from the mean": np.abs(gray - gray.mean((1, 2), keepdims=True)),
        "saturation": (color.max(1) - color.min(1)) / color.max(1).clip(1e-6),
        "gradient energy": down**2 + across**2,
    }
    for name, found in detectors.items():
        for sigma in (0, 1, 4):
            scores = blurred(found, sigma * scale).reshape(len(images), -1)
            assert average_precision(masks, scores).mean() < 0.4, (name, sigma)


def test_pictures_vary_in_color_and_light(thousand):
    images = thousand[0].double()
    mean = images.mean((2, 3))
    assert (mean.std(0) > 15).all()
    assert torch.corrcoef(mean.T)[0, 1] < 0.8  # colors, not grays
    steps = (images[..., 1:] - images[..., :-1]).abs().median()
    assert 5 < steps < 30  # noise
    halves = images[..., :16, :].mean((1, 2, 3)) - images[..., 16:, :].mean((1, 2, 3))
    assert halves.abs().mean() > 4  # lighting from one side
    assert (images == 0).double().mean() < 0.02
    assert (images == 255).double().mean() < 0.05


@pytest.mark.parametrize("features", ["pixels", "brightness"])
def test_a_linear_classifier_fails(features, thousand):
    """Ridge regression on 1,000 pictures stays under 30 %, at the best of several strengths."""
    (train, labels, _), (test, answers, _) = thousand, draw_shapes(500, seed=1)
    if features == "brightness":  # less to fit, so less overfitting
        train, test = (part.float().mean(1, keepdim=True) for part in (train, test))
    train, test = (part.flatten(1).float() / 255 for part in (train, test))
    mean = train.mean(0)
    train, test = train - mean, test - mean
    targets = torch.eye(10)[labels] - 0.1
    gram = train @ train.T  # the dual form: as many unknowns as pictures
    best = 0.0
    for strength in (1.0, 100.0, 1000.0):
        weights = train.T @ torch.linalg.solve(gram + strength * torch.eye(len(gram)), targets)
        best = max(best, ((test @ weights).argmax(1) == answers).double().mean().item())
    assert 0.08 < best < 0.3


@pytest.mark.parametrize(
    "arguments",
    [{"count": 0}, {"count": -1}, {"count": 5, "image_size": 15}, {"count": 5, "seed": -1}]
    + [{"count": 5, "objects": objects} for objects in (0, 3, -1)],
)
def test_numbers_out_of_range(arguments):
    (wrong, value) = list(arguments.items())[-1]
    with pytest.raises(ValueError, match=f"{wrong}={value}"):
        draw_shapes(**arguments)
