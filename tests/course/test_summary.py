"""What notebooks 01 and 02 conclude: every number of the sentences against the tensors that it is made from."""

import re

import pytest
import torch

from ltpa import entropy
from ltpa.course import summary as findings
from ltpa.metrics.statistics import bootstrap_interval

HEALTHY = {"conv7": (torch.tensor([0.1, 0.5] * 50), 64)}
LABELS = torch.tensor([0, 1, 2, 2] * 25)


def test_a_network_that_learnt_and_one_that_guesses():
    wrong = torch.arange(100) < 10
    text = findings.trained(LABELS, (LABELS + wrong.long()) % 3, HEALTHY)
    found = bootstrap_interval((~wrong).double().numpy())
    assert text.startswith(
        f"90.0% ({found.low:.1%} to {found.high:.1%}) of 100 test images are right; always the most frequent class: 50"
    )
    assert "tell the classes apart is supported" in text
    assert "No level's maps (conv7) are all uniform or all collapsed" in text
    guess = findings.trained(LABELS, torch.full((100,), 2), HEALTHY)
    assert "50.0% (" in guess
    assert "tell the classes apart is not decidable at this budget" in guess
    assert "tell the classes apart is not supported" in findings.trained(LABELS, torch.full((100,), 3), HEALTHY)


def test_maps_that_say_nothing_are_told():
    flat = {"conv7": (torch.full((100,), 1.01 / 64), 64), **{"conv10": HEALTHY["conv7"]}}
    text = findings.trained(LABELS, LABELS, flat)
    assert "Attention at conv7 is uniform" in text
    assert "No level's maps" not in text
    assert "It has no attention maps." in findings.trained(LABELS, LABELS, {})


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
    lines = findings.looked(maps, right, masks).splitlines()
    assert lines[0] == "The object fills 6.2% of a picture. Of the attention lies on it:"
    assert re.match(r"  conv7: right 6\.2% .* wrong 6\.2% .*, no difference is shown; .*: not", lines[1])
    group = bootstrap_interval(share[right].double().numpy(), 6)
    assert f"  conv10: right {group.mean:.1%} ({group.low:.1%} to {group.high:.1%}), wrong 3" in lines[2]
    assert lines[2].endswith("they differ; more than the even share: supported")
    assert lines[3] == "Levels that find the object: conv10; that do not, or not decidably: conv7."


def test_without_masks_or_without_wrong_answers():
    maps, right, masks, _ = scene()
    text = findings.looked(maps, right)
    value = bootstrap_interval(entropy(maps["conv10"])[right].double().numpy(), 4)
    assert f"  conv10: right {value.mean:.2f} ({value.low:.2f} to {value.high:.2f}), wrong" in text
    assert text.endswith("these data have no masks (the dataset 'shapes' has).")
    all_right = findings.looked(maps, torch.ones_like(right), masks)
    assert "wrong" not in all_right
    assert "  conv10: right" in all_right


def test_a_model_without_maps():
    assert findings.looked({}, torch.tensor([True])) == "This model has no attention maps: nothing was shown."


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="one finite value or more"):
        findings.trained(LABELS[:0], LABELS[:0], {})
