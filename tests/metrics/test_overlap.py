"""Maps against masks: against slow loops, scikit-learn and scipy; and the maps that know nothing."""

import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from ltpa import metrics
from ltpa.maps import resize
from ltpa.metrics import MEASURES, controls, localization, picture_controls, rank_agreement
from ltpa.metrics.overlap import Threshold, best_threshold, blur, jaccard, localization_tensors


def maps(n=6, h=8, w=8, seed=0, steps=None):
    """Random maps; with `steps`, of so few different values that most positions are tied."""
    values = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed))
    return values if steps is None else (values * steps).round() / steps


def masks(n=6, h=8, w=8, seed=1, part=0.2):
    objects = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed)) < part
    objects[:, 0, 0] = True  # none is empty
    return objects


def slow_localization(weights, inside):
    """One map and mask of the same size, by loops over pixels and thresholds."""
    from sklearn.metrics import average_precision_score

    weights, inside = weights.flatten().double().tolist(), inside.flatten().tolist()
    size, count = sum(inside), len(inside)
    top = [k for k in range(count) if weights[k] == max(weights)]

    def iou(threshold):
        marked = [value >= threshold for value in weights]
        both = sum(a and b for a, b in zip(marked, inside, strict=True))
        return both / (sum(marked) + size - both)

    return {
        "share": sum(v for v, b in zip(weights, inside, strict=True) if b) / sum(weights),
        "pointing": sum(inside[k] for k in top) / len(top),
        "iou": iou(sum(weights) / count),
        "best_iou": max(iou(threshold) for threshold in set(weights)),
        "average_precision": average_precision_score(inside, weights),
    }


@pytest.mark.parametrize("steps", [None, 8, 1])
@pytest.mark.parametrize("part", [0.03, 0.3, 1.0])
def test_localization_is_the_loop_and_scikit_learn(steps, part):
    some, objects = maps(5, 7, 6, steps=steps), masks(5, 7, 6, part=part)
    some[some.sum((1, 2)) == 0] += 1
    expected = pd.DataFrame([slow_localization(a, b) for a, b in zip(some, objects, strict=True)])
    table = localization(some, objects)
    assert tuple(table) == MEASURES
    assert_frame_equal(table, expected, check_dtype=False, atol=1e-6)


def test_the_tensors_are_the_columns():
    for name, values in localization_tensors(maps(), masks()).items():
        np.testing.assert_array_equal(values.numpy(), localization(maps(), masks())[name])


def test_maps_are_scaled_to_the_masks():
    some, objects = maps(5, 4, 3), masks(5, 16, 18)
    assert_frame_equal(localization(some, objects), localization(resize(some, (16, 18)), objects))


def test_height_and_width_are_not_mixed_up():
    some = torch.zeros(1, 2, 4)
    some[0, 1, 3] = 1.0  # at the bottom, on the right
    objects = torch.zeros(1, 8, 32, dtype=torch.bool)
    objects[0, 4:, 24:] = True
    assert localization(some, objects)["pointing"].item() == 1
    assert localization(some, objects)["share"].item() > 0.5
    assert localization(some, objects.flip(1))["pointing"].item() == 0
    assert localization(some, objects.flip(2))["pointing"].item() == 0


def test_a_perfect_map_is_perfect_and_the_opposite_is_not():
    objects = masks()
    assert (localization(objects.float(), objects) == 1).all(axis=None)
    opposite = localization((~objects).float(), objects)
    assert (opposite[["share", "pointing", "iou"]] == 0).all(axis=None)
    np.testing.assert_allclose(opposite["best_iou"], objects.float().mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1 / 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_uniform_reaches_the_part_that_the_object_fills(value, size):
    """A map without weight too: both prefer nothing."""
    objects = masks(4, 30, 31)
    for values in localization_tensors(torch.full((4, *size), value), objects).values():
        torch.testing.assert_close(values, objects.float().mean((1, 2)))


def test_scale_flips_and_transposes_change_nothing():
    some, objects = maps(), masks()
    expected = localization(some, objects)
    for other in (
        localization(some * 2.0**-20, objects),
        localization(some.flip(2), objects.flip(2)),
        localization(some.mT, objects.mT),
    ):
        assert_frame_equal(other, expected, rtol=1e-6)


def test_empty_masks_are_nan_and_the_others_stay():
    some, objects = maps(), masks()
    expected = localization(some, objects)
    objects[2] = False
    expected.loc[2] = math.nan
    assert_frame_equal(localization(some, objects), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_measured_in_at_least_float32(dtype):
    some, objects = maps().to(dtype), masks()
    table = localization(some, objects)
    assert set(table.dtypes) == {np.dtype("float64" if dtype == torch.float64 else "float32")}
    assert_frame_equal(table, localization(some.double(), objects), check_dtype=False, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_masks_of_0_and_1_are_masks(dtype):
    assert_frame_equal(localization(maps(), masks().to(dtype)), localization(maps(), masks()))


def test_batches_have_no_effect(monkeypatch):
    some, objects = maps(7), masks(7)
    expected = localization(some, objects)
    monkeypatch.setattr("ltpa.metrics.overlap._PIXELS", 3 * 64)
    assert_frame_equal(localization(some, objects), expected)
    assert localization(some[:0], objects[:0]).shape == (0, len(MEASURES))


@pytest.mark.parametrize(
    ("some", "objects", "message"),
    [
        (maps(3), masks(2), "2 masks for 3 maps"),
        (maps(3)[0], masks(3), r"\(8, 8\); one map alone: maps\[None\]"),
        (torch.zeros(3, 0, 8), masks(3), r"\(N, h, w\)"),
        (maps(3), masks(6).view(3, 2, 8, 8), r"choose one object .*: masks\[:, 0\]"),
        (maps(3), masks(3)[0], r"\(N, H, W\)"),
        (maps(3) - 0.5, masks(3), "lowest is -0.*are they scores"),
        (maps(3).where(maps(3) < 0.9, math.nan), masks(3), "NaN or infinite values in 3 of 3 maps, first in 0"),
        (maps(3).where(maps(3) < 0.9, math.inf), masks(3), "NaN or infinite"),
        (maps(3), masks(3) * 255, "0 and 1"),
        (maps(3), masks(3) * math.nan, "0 and 1"),
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


def test_two_thousand_maps_in_a_second_on_one_core():
    some, objects = maps(2_000, 32, 32), masks(2_000, 32, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        while not seconds or (min(seconds) > 0.9 and len(seconds) < 5):
            start = time.process_time()  # of this process: others may use the machine
            localization(some, objects)
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 1, seconds


# --- controls


def test_controls_know_nothing_and_are_seeded():
    first = controls(5, (32, 24), seed=3)
    assert tuple(first) == metrics.CONTROLS
    for name, some in first.items():
        assert some.shape == (5, 32, 24)
        assert some.min() >= 0
        assert torch.equal(some, controls(5, (32, 24), seed=3)[name])
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
    assert blur(some, 4.0).shape == some.shape
    assert blur(some, 4.0).std() < some.std()


# --- maps that need the picture, but no network


def test_otsu_is_the_smaller_side_of_the_best_cut():
    from skimage.filters import threshold_otsu

    draw = torch.Generator().manual_seed(0)
    images = torch.full((4, 3, 32, 32), 60, dtype=torch.uint8)
    images[0, :, 4:10, 5:9] = 200  # a bright object
    images[1, :, 20:30, 3:30] = 10  # a dark one
    images = (images.int() + torch.randint(0, 9, images.shape, generator=draw)).byte()
    images[2:] = torch.randint(0, 256, (2, 3, 32, 32), generator=draw)
    maps = picture_controls(images)["Otsu"]
    expected = torch.zeros(2, 32, 32)
    expected[0, 4:10, 5:9] = 1
    expected[1, 20:30, 3:30] = 1
    assert torch.equal(maps[:2], expected)
    for one, map_ in zip(images[2:], maps[2:], strict=True):
        gray = (torch.tensor([0.299, 0.587, 0.114]) @ (one.float() / 255).flatten(1) * 255).round().byte().view(32, 32)
        bright = gray > int(threshold_otsu(gray.numpy()))
        assert torch.equal(map_.bool(), ~bright if bright.float().mean() > 0.5 else bright)
    assert (picture_controls(torch.full((1, 3, 32, 32), 0.5))["Otsu"] == 0).all()


def test_the_difference_of_gaussians_is_that_of_scipy_for_dark_and_bright_objects_alike():
    from scipy.ndimage import gaussian_filter

    images = torch.full((2, 3, 32, 32), 0.5)
    images[0, :, 12:18, 12:18], images[1, :, 12:18, 12:18] = 0.9, 0.1
    maps = picture_controls(images)["difference of Gaussians"]
    gray = images[0, 0].numpy()
    fine, coarse = (gaussian_filter(gray, s, radius=r, mode="mirror") for s, r in ((2, 6), (8, 24)))
    np.testing.assert_allclose(maps[0], abs(fine - coarse), atol=1e-5)
    torch.testing.assert_close(maps[0], maps[1])


# --- thresholds


def test_jaccard_is_scikit_learns():
    from sklearn.metrics import jaccard_score

    generator = torch.Generator().manual_seed(0)
    marked, masks = (torch.rand(2, 5, 6, 7, generator=generator) < 0.4).unbind()
    masks[2] = False
    values = jaccard(marked, masks)
    assert values[2].isnan()
    for i in (0, 1, 3, 4):
        assert values[i].item() == pytest.approx(jaccard_score(masks[i].flatten(), marked[i].flatten()))


def test_thresholds_mark_from_a_part_of_the_highest_or_a_multiple_of_the_mean():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 10.0]]])  # mean 4
    assert Threshold("max", 0.3).mark(maps).tolist() == [[[False, False], [True, True]]]
    assert Threshold("mean", 0.5).mark(maps).tolist() == [[[False, True], [True, True]]]
    assert Threshold("mean", 1.0).mark(torch.zeros(1, 2, 2)).all()


@pytest.mark.parametrize(("of", "factor"), [("max", 0.35), ("mean", 2.0)])
def test_the_best_threshold_finds_objects_that_a_threshold_cut_out(of, factor):
    maps = torch.rand(20, 16, 16, generator=torch.Generator().manual_seed(3)) ** 4
    masks = Threshold(of, factor).mark(maps)
    assert jaccard(best_threshold(maps, masks).mark(maps), masks).mean() == 1
