"""Measures of maps alone, and of maps against masks: against slow loops, scikit-learn and scipy."""

import math
import time

import numpy as np
import pytest
import torch

from ltpa import metrics
from ltpa.maps import resize
from ltpa.metrics import (
    controls,
    correlation,
    effective_positions,
    entropy,
    localization,
    rank_agreement,
    summary,
)
from ltpa.metrics.overlap import MEASURES, blur


def maps(n=6, h=8, w=8, seed=0, steps=None):
    """Random maps; with `steps`, of so few different values that most positions are tied."""
    values = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed))
    return values if steps is None else (values * steps).round() / steps


def masks(n=6, h=8, w=8, seed=1, part=0.2):
    found = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed)) < part
    found[:, 0, 0] = True  # none is empty
    return found


# --- maps alone


def test_effective_positions_count_positions():
    some = torch.zeros(3, 4, 5)
    some[0, 1, 2] = 7.0
    some[1, :2, :3] = 0.5
    some[2] = 0.1
    torch.testing.assert_close(effective_positions(some), torch.tensor([1.0, 6.0, 20.0]))
    assert effective_positions(torch.zeros(1, 2, 2)).isnan().all()


def test_effective_positions_are_the_exponential_of_the_entropy():
    some = maps(5, 6, 7)
    torch.testing.assert_close(effective_positions(some), (entropy(some) * math.log(42)).exp())


@pytest.mark.parametrize("steps", [None, 3])
def test_rank_agreement_is_scipys(steps):
    from scipy.stats import pearsonr, spearmanr

    first, second = maps(8, steps=steps), maps(8, seed=5, steps=steps)
    for i, (rank, line) in enumerate(zip(rank_agreement(first, second), correlation(first, second), strict=True)):
        x, y = first[i].flatten().double().numpy(), second[i].flatten().double().numpy()
        assert rank.item() == pytest.approx(spearmanr(x, y).statistic, abs=1e-6)
        assert line.item() == pytest.approx(pearsonr(x, y).statistic, abs=1e-6)


def test_rank_agreement_knows_order_only():
    some = maps()
    torch.testing.assert_close(rank_agreement(some, some.exp() * 3), torch.ones(6))
    torch.testing.assert_close(rank_agreement(some, 1 - some), -torch.ones(6))
    assert rank_agreement(some, torch.ones(6, 8, 8)).isnan().all()


def test_rank_agreement_of_two_sizes_is_that_at_the_larger():
    fine, coarse = maps(4, 16, 16), maps(4, 8, 8, seed=2)
    expected = rank_agreement(fine, resize(coarse, (16, 16)))
    torch.testing.assert_close(rank_agreement(fine, coarse), expected)
    torch.testing.assert_close(rank_agreement(coarse, fine), expected)
    tall, wide = maps(4, 16, 8), maps(4, 8, 16)
    torch.testing.assert_close(
        rank_agreement(tall, wide), rank_agreement(resize(tall, (16, 16)), resize(wide, (16, 16)))
    )


def test_rank_agreement_needs_pairs():
    with pytest.raises(ValueError, match="as many first as second maps, not 6 and 5"):
        rank_agreement(maps(6), maps(5))


def slow_bilinear(one, height, width):
    """Half-pixel centers, clamped at the border."""
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * one.shape[0] / height - 0.5, 0), one.shape[0] - 1)
            u = min(max((x + 0.5) * one.shape[1] / width - 0.5, 0), one.shape[1] - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, one.shape[0] - 1), min(x0 + 1, one.shape[1] - 1)
            top = one[y0, x0] * (1 - (u - x0)) + one[y0, x1] * (u - x0)
            bottom = one[y1, x0] * (1 - (u - x0)) + one[y1, x1] * (u - x0)
            out[y, x] = top * (1 - (v - y0)) + bottom * (v - y0)
    return out


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (9, 8), (4, 3)])
def test_resize_is_bilinear(size):
    some = maps(2, 4, 3)
    for one, scaled in zip(some, resize(some, size), strict=True):
        np.testing.assert_allclose(scaled.numpy(), slow_bilinear(one.double().numpy(), *size), rtol=1e-6)


@pytest.mark.parametrize("value", [1 / 3, 1 / 64, 0.1, 1e-7])
def test_resize_keeps_equal_values_equal(value):
    scaled = resize(torch.full((1, 7, 5), value), (32, 31))
    assert (scaled == torch.tensor(value)).all()


def test_resize_to_a_smaller_size_sees_every_position():
    """Plain bilinear sampling would see some and miss others."""
    each = torch.eye(64).view(64, 8, 8)
    scaled = resize(each, (2, 2))
    assert (scaled.sum((1, 2)) > 0).all()
    torch.testing.assert_close(scaled.sum(0), torch.ones(2, 2))  # each of the four is a weighted mean
    assert scaled[0].argmax() == 0
    assert scaled[7].argmax() == 1


# --- maps against masks


def slow_localize(one, mask):
    """One map and mask of the same size, by loops over pixels and thresholds."""
    weights, inside = one.flatten().double().tolist(), mask.flatten().tolist()
    size, count = sum(inside), len(inside)
    top = [k for k in range(count) if weights[k] == max(weights)]
    mean = sum(weights) / count

    def iou(threshold):
        marked = [value >= threshold for value in weights]
        both = sum(a and b for a, b in zip(marked, inside, strict=True))
        return both / (sum(marked) + size - both)

    return {
        "share": sum(v for v, b in zip(weights, inside, strict=True) if b) / sum(weights),
        "pointing": sum(inside[k] for k in top) / len(top),
        "iou": iou(mean),
        "best_iou": max(iou(threshold) for threshold in set(weights)),
    }


@pytest.mark.parametrize("steps", [None, 8, 2, 1])
@pytest.mark.parametrize("part", [0.03, 0.3, 1.0])
def test_localize_is_the_loop_and_scikit_learn(steps, part):
    from sklearn.metrics import average_precision_score

    some, objects = maps(9, 7, 6, steps=steps), masks(9, 7, 6, part=part)
    some[some.sum((1, 2)) == 0] += 1
    found = localization(some, objects)
    assert tuple(found) == MEASURES
    for i in range(9):
        expected = slow_localize(some[i], objects[i])
        truth, scores = objects[i].flatten().numpy(), some[i].flatten().numpy()
        expected["average_precision"] = average_precision_score(truth, scores)
        for name, value in expected.items():
            assert found[name][i].item() == pytest.approx(value, abs=1e-6), name


def test_localize_scales_maps_up():
    some, objects = maps(5, 4, 3), masks(5, 16, 18)
    expected = localization(resize(some, (16, 18)), objects)
    for name, value in localization(some, objects).items():
        torch.testing.assert_close(value, expected[name])


def test_height_and_width_are_not_mixed_up():
    some = torch.zeros(1, 2, 4)
    some[0, 1, 3] = 1.0  # at the bottom, on the right
    objects = torch.zeros(1, 8, 32, dtype=torch.bool)
    objects[0, 4:, 24:] = True
    found = localization(some, objects)
    assert found["pointing"].item() == 1
    assert found["share"].item() > 0.5
    assert localization(some, objects.flip(1))["pointing"].item() == 0
    assert localization(some, objects.flip(2))["pointing"].item() == 0


def test_a_perfect_map_is_perfect_and_the_opposite_is_not():
    objects = masks()
    for name, value in localization(objects.float(), objects).items():
        torch.testing.assert_close(value, torch.ones(6), msg=name)
    opposite = localization((~objects).float(), objects)
    for name in ("share", "pointing", "iou"):
        assert (opposite[name] == 0).all(), name
    torch.testing.assert_close(opposite["best_iou"], objects.float().mean((1, 2)))


@pytest.mark.parametrize("value", [0.0, 1e-30, 1 / 3, 0.7])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
def test_uniform_reaches_the_part_that_the_object_fills(value, size):
    """A map without weight too: both prefer nothing."""
    objects = masks(4, 30, 31)
    for name, found in localization(torch.full((4, *size), value), objects).items():
        torch.testing.assert_close(found, objects.float().mean((1, 2)), msg=name)


def test_the_scale_of_a_map_is_without_meaning():
    some, objects = maps(), masks()
    expected = localization(some, objects)
    for factor in (2.0**-20, 64.0):
        for name, value in localization(some * factor, objects).items():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_pictures_turned_together_are_the_same():
    some, objects = maps(), masks()
    expected = localization(some, objects)
    for turned in (localization(some.flip(2), objects.flip(2)), localization(some.mT, objects.mT)):
        for name, value in turned.items():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_empty_masks_are_nan_and_the_others_stay():
    some, objects = maps(), masks()
    expected = localization(some, objects)
    objects[2] = False
    for name, value in localization(some, objects).items():
        assert value.isnan().tolist() == [i == 2 for i in range(6)], name
        torch.testing.assert_close(value[[0, 1, 3, 4, 5]], expected[name][[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_measured_in_at_least_float32(dtype):
    some, objects = maps().to(dtype), masks()
    expected = localization(some.double(), objects)
    for name, value in localization(some, objects).items():
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(value.double(), expected[name].double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_masks_of_0_and_1_are_masks(dtype):
    some, objects = maps(), masks()
    for name, value in localization(some, objects.to(dtype)).items():
        torch.testing.assert_close(value, localization(some, objects)[name])


def test_batches_are_without_effect(monkeypatch):
    some, objects = maps(7), masks(7)
    expected = localization(some, objects)
    monkeypatch.setattr("ltpa.metrics.overlap._PIXELS", 3 * 64)
    for name, value in localization(some, objects).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert all(value.shape == (0,) for value in localization(some[:0], objects[:0]).values())


@pytest.mark.parametrize(
    ("some", "objects", "message"),
    [
        (maps(3), masks(2), "one mask a map, not 2 masks for 3 maps"),
        (maps(3)[0], masks(3), r"maps must have the shape \(N, h, w\), not \(8, 8\); one map alone: maps\[None\]"),
        (maps(3)[:, None], masks(3), r"maps must have the shape"),
        (torch.zeros(3, 0, 8), masks(3), r"maps must have the shape"),
        (maps(3), masks(6).view(3, 2, 8, 8), r"several objects choose one: masks\[:, 0\]"),
        (maps(3), masks(3)[0], r"masks must have the shape \(N, H, W\)"),
        (maps(3) - 0.5, masks(3), "weights from 0 up, but the lowest is -0.*are they scores"),
        (maps(3).where(maps(3) < 0.9, math.nan), masks(3), "hold NaN or infinite values, in 3 of 3, first in 0"),
        (maps(3).where(maps(3) < 0.9, math.inf), masks(3), "hold NaN or infinite"),
        (maps(3), masks(3) * 255, "masks must be bool, or hold only 0 and 1"),
        (maps(3), masks(3) * 0.5, "masks must be bool, or hold only 0 and 1"),
        (maps(3), masks(3) * math.nan, "masks must be bool, or hold only 0 and 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(some, objects, message):
    with pytest.raises(ValueError, match=message):
        localization(some, objects)


def test_what_is_no_tensor_is_a_type_error():
    with pytest.raises(TypeError, match="maps must be a tensor"):
        localization(maps().numpy(), masks())
    with pytest.raises(TypeError, match="masks must be a tensor"):
        localization(maps(), masks().numpy())


def test_ten_thousand_maps_in_two_seconds_on_one_core():
    some, objects = maps(10_000, 32, 32), masks(10_000, 32, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        while not seconds or (min(seconds) > 1.9 and len(seconds) < 5):
            start = time.process_time()  # of this process: others may use the machine
            localization(some, objects)
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 2, seconds


# --- controls and the summary


def test_controls_know_nothing_and_are_seeded():
    first = controls(5, (32, 24), seed=3)
    assert tuple(first) == metrics.CONTROLS
    for name, some in first.items():
        assert some.shape == (5, 32, 24)
        assert some.min() >= 0
        torch.testing.assert_close(some, controls(5, (32, 24), seed=3)[name], rtol=0, atol=0)
    assert (first["uniform"] == first["uniform"][0, 0, 0]).all()
    noise = first["blurred noise"]
    assert not torch.equal(noise, controls(5, (32, 24), seed=4)["blurred noise"])
    assert rank_agreement(noise[:1], noise[1:2]).abs() < 0.6
    assert (noise.diff(dim=2).abs().mean() / noise.std()) < 0.5  # white noise: 1.1
    center = first["center"][0]
    torch.testing.assert_close(center, center.flip(0).flip(1))
    y, x = divmod(center.argmax().item(), 24)
    assert y in (15, 16)
    assert x in (11, 12)
    assert center[16, 12].item() == pytest.approx(math.exp(-(0.5**2 + 0.5**2) / (2 * 6**2)), rel=1e-5)


def test_blur_is_a_gaussian():
    from scipy.ndimage import gaussian_filter

    some = maps(2, 40, 44)[:, None]
    for one, blurred in zip(some[:, 0].double().numpy(), blur(some, 2.0)[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(blurred, gaussian_filter(one, 2.0, mode="mirror", truncate=3.0), atol=1e-5)


def test_blur_of_a_small_image_does_not_fail():
    some = maps(1, 3, 5)[:, None]
    blurred = blur(some, 4.0)
    assert blurred.shape == some.shape
    assert blurred.std() < some.std()


def test_summary_is_the_mean_beside_the_controls():
    some, objects = maps(6, 16, 16), masks(6, 32, 32)
    objects[1] = False
    rows = summary({"conv10": some, "conv13": objects.float()}, objects, seed=2)
    assert list(rows) == ["conv10", "conv13", *metrics.CONTROLS]
    for row in rows.values():
        assert (row["images"], row["without_object"]) == (5, 1)
    kept = [0, 2, 3, 4, 5]
    for name, value in localization(some[kept], objects[kept]).items():
        assert rows["conv10"][name] == pytest.approx(value.mean().item(), rel=1e-5)
        assert rows["conv13"][name] == pytest.approx(1)
    noise = localization(controls(6, (32, 32), 2)["blurred noise"], objects)
    assert rows["blurred noise"]["share"] == pytest.approx(noise["share"].nanmean().item())
    assert rows["uniform"]["share"] == pytest.approx(objects[kept].float().mean().item(), rel=1e-5)
    assert list(summary(some, objects)) == ["map", *metrics.CONTROLS]


def test_summary_refuses_the_names_of_its_controls():
    with pytest.raises(ValueError, match="the names uniform are those of the controls"):
        summary({"uniform": maps()}, masks())


def test_summary_without_any_object_is_nan():
    rows = summary(maps(), masks() & False)
    assert rows["map"]["images"] == 0
    assert math.isnan(rows["map"]["share"])
