"""Levels made uniform: against networks built so, run image by image with norms estimated by their own batch."""

import copy

import pytest
import torch

import ltpa
from ltpa.course.uniform_levels import uniform_effects, uniform_levels, uniform_table
from ltpa.metrics.statistics import bootstrap_interval


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = ltpa.create_model("vgg-att3-concat-pc", 10, width=1 / 16, dropout=False).eval()
    for level in model.attention.values():
        level.u.data.mul_(20)
    return model


@pytest.fixture(scope="module")
def data():
    return ltpa.load_data("shapes", train_limit=60, test_limit=40)


@torch.no_grad()
def test_uniform_levels_are_means_over_positions(network, data):
    answers = uniform_levels(network, data)
    assert list(answers) == ["none", "conv7", "conv10", "conv13", "all"]
    for name, replaced in {"none": (), "conv10": ("conv10",), "all": ("conv7", "conv10", "conv13")}.items():
        slow = copy.deepcopy(network)

        def descriptors(images, slow=slow, replaced=replaced):
            local = slow.trunk(slow.normalize(images.float() / 255))
            own = slow.attend(images.float() / 255).descriptors
            for level in replaced:
                mean = local[level].mean((2, 3))
                own[level] = mean if slow.attention[level].W is None else slow.attention[level].W(mean)
            return own

        train, test = (descriptors(split.images) for split in (data.train, data.test))
        parts = []
        for level, norm in zip(train, slow.head.norms, strict=True):
            centered = (test[level] - train[level].mean(0)) / (train[level].var(0) + norm[0].eps).sqrt()
            parts.append((centered * norm[0].weight + norm[0].bias).relu())
        predicted = slow.head.classifiers[0](torch.cat(parts, 1)).argmax(1)
        agree = (answers[name] == (predicted == data.test.labels)).float().mean()
        assert agree == 1, name
    assert network.attention["conv7"].compatibility == "pc", "the network stays as it is"


def test_what_is_lost_is_the_difference_over_the_same_images():
    right = torch.arange(200) < 150
    answers = {"none": right, "conv7": right.clone(), "all": torch.arange(200) < 50}
    effects = uniform_effects(answers, "d", "b")
    lost = (right.double() - answers["all"].double()).numpy()
    assert effects[1].interval == bootstrap_interval(lost, 2)
    assert [(e.model, e.verdict) for e in effects] == [("conv7", "undecided"), ("all", "supported")]
    row = uniform_table({"pc": answers}).loc["pc"]
    assert list(row.index) == ["as it is, %", "conv7 uniform", "all uniform"]
    low, high = (-100 * end for end in (effects[1].interval.high, effects[1].interval.low))
    assert row["as it is, %"] == "75.0"
    assert row["all uniform"] == f"-50.0 [{low:.1f}, {high:.1f}]"


def test_networks_without_levels_are_refused(data):
    with pytest.raises(ValueError, match="no attention"):
        uniform_levels(ltpa.create_model("vgg-late", 10, width=1 / 32), data)
    with pytest.raises(ValueError, match="classifier for each level"):
        uniform_levels(ltpa.create_model("vgg-att2-indep-pc", 10, width=1 / 32), data)
