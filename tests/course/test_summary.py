"""What notebooks 01 and 02 conclude: the numbers of the sentences against the tensors that they are made from."""

import pytest
import torch

from ltpa.course.attention_maps import describe_maps
from ltpa.course.training import describe_training
from ltpa.maps import entropy
from ltpa.metrics.statistics import bootstrap_interval

HEALTHY = (torch.tensor([0.1, 0.5] * 50), 64)
LABELS = torch.tensor([0, 1, 2, 2] * 25)


def trained(predictions, scores=None, **strongest):
    scores = scores or dict.fromkeys((f"entropy_{level}" for level in strongest), 0.8)
    return describe_training(LABELS, predictions, strongest, scores)


@pytest.mark.parametrize(
    ("predictions", "percent", "verdict"),
    [
        ((LABELS + (torch.arange(100) < 10).long()) % 3, "90.0", "supported"),
        (torch.full((100,), 2), "50.0", "undecided"),
        (torch.full((100,), 3), "0.0", "undecided"),  # equal values have no interval
    ],
)
def test_accuracy_is_judged_beside_the_most_frequent_class(predictions, percent, verdict):
    text = trained(predictions, conv7=HEALTHY)
    interval = bootstrap_interval((predictions == LABELS).double().numpy())
    assert text.startswith(f"{percent} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] % of 100 test images")
    assert f"is {verdict}." in text
    assert "conv7 0.80" in text


def test_no_map_is_called_healthy_beside_an_entropy_of_1():
    flat, collapsed = (torch.full((100,), 1.01 / 64), 64), (torch.full((100,), 0.99), 64)
    scores = {"entropy_conv4": 0.02, "entropy_conv7": 0.9996, "entropy_conv10": 0.9951, "entropy_conv13": 0.994}
    text = trained(LABELS, scores, conv4=collapsed, conv7=flat, conv10=HEALTHY, conv13=HEALTHY)
    lines = text.splitlines()[2:6]
    assert [("conv4" in line, "collapsed" in line) for line in lines[:2]] == [(True, True), (False, False)]
    assert "conv7 are uniform" in lines[1]
    assert "conv10 are almost uniform" in lines[2]
    assert "conv13 0.99." in lines[3]
    assert "conv10" not in lines[3]
    assert "no attention maps" in trained(LABELS)


def scene(count=60):
    """Maps of which one has 80 % of its weight on the object where the answer is right and 30 % else; one is even."""
    masks = torch.zeros(count, 8, 8, dtype=torch.bool)
    masks[:, 2:4, 2:4] = True
    right = torch.arange(count) % 3 > 0
    share = torch.where(right, 0.8, 0.3) + 0.01 * torch.randn(count, generator=torch.Generator().manual_seed(0))
    on = masks / 4 * share[:, None, None] + ~masks / 60 * (1 - share[:, None, None])
    return {"conv7": torch.full((count, 8, 8), 1 / 64), "conv10": on}, right, masks, share


def test_levels_that_find_the_object_and_those_that_do_not():
    maps, right, masks, share = scene()
    lines = describe_maps(maps, right, masks).splitlines()
    assert "6.2%" in lines[0]
    assert lines[1].startswith("  conv7: right 6.2 [6.2, 6.2], wrong 6.2 [6.2, 6.2], no difference is shown")
    assert lines[1].endswith("undecided")
    group = bootstrap_interval(share[right].double().numpy(), 6).text(1, 100)
    assert f"  conv10: right {group}, wrong 3" in lines[2]
    assert lines[2].endswith("they differ; more than the even share: supported")
    assert lines[3].startswith("conv10: more attention")
    assert "Not shown for conv7" in lines[3]


def test_the_conclusion_is_another_one_when_no_level_or_every_level_finds_the_object():
    maps, right, masks, _ = scene()
    assert describe_maps({"conv7": maps["conv7"]}, right, masks).splitlines()[-1].startswith("No level")
    assert describe_maps({"conv10": maps["conv10"]}, right, masks).splitlines()[-1].startswith("Every level")


def test_they_differ_only_where_the_printed_digits_do():
    _, right, masks, share = scene()
    closer = 0.5 + 0.0002 * right + 1e-6 * share  # apart without doubt, and 0.50 both
    on = masks / 4 * closer[:, None, None] + ~masks / 60 * (1 - closer[:, None, None])
    line = describe_maps({"conv10": on}, right, masks).splitlines()[1]
    assert "right 50.0 [50.0, 50.0], wrong 50.0 [50.0, 50.0], no difference is shown" in line


def test_without_masks_or_without_wrong_answers():
    maps, right, masks, _ = scene()
    text = describe_maps(maps, right)
    value = bootstrap_interval(entropy(maps["conv10"])[right].double().numpy(), 4)
    assert f"  conv10: right {value.text(2)}, wrong" in text
    assert "no masks" in text
    all_right = describe_maps(maps, torch.ones_like(right), masks)
    assert "wrong" not in all_right
    assert "  conv10: right" in all_right


def test_a_model_without_maps():
    assert "no attention maps" in describe_maps({}, torch.tensor([True]))
