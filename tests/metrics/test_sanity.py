"""Layers made random: which ones, as in a new model, and what that does to maps."""

import copy
import math

import pytest
import torch

from ltpa import attend, create_model, explain, metrics
from ltpa.metrics import entropy_rise, histogram_entropy, layers_top_down, randomization
from tests.metrics.helpers import CLASSES, build, pictures, some_maps


def test_layers_come_from_the_top_down():
    trunk = [f"trunk.conv{k}" for k in range(13, 0, -1)]
    levels = ["attention.conv13", "attention.conv10", "attention.conv7"]
    with_branch = layers_top_down(build("vgg-att3-concat-pc", "sigmoid"), pictures(1))
    assert with_branch == ["head", *levels, "global_branch", *trunk]
    assert layers_top_down(build("vgg-att3-concat-pc"), pictures(1)) == ["head", *levels, *trunk]
    assert layers_top_down(build("vgg-gap"), pictures(1)) == ["head", *trunk]
    pan = layers_top_down(build("vgg-pan"), pictures(1))
    assert pan[:2] == ["head", "attention.conv13"]
    assert (
        pan.index("trunk.conv11") < pan.index("attention.conv10") < pan.index("gate_branch") < pan.index("trunk.conv10")
    )
    resnet = ["trunk.stage3", "trunk.stage2", "trunk.stage1", "trunk.conv1"]
    assert layers_top_down(build("resnet164"), pictures(1)) == ["head", "norm", *resnet]


@pytest.mark.parametrize("name", ["vgg", "vgg-pan", "vgg-att2-indep-add", "resnet164-att2-concat-dp"])
def test_the_layers_hold_every_weight(name):
    model = build(name)
    layers = layers_top_down(model, pictures(1))
    held = [id(p) for layer in layers for p in model.get_submodule(layer).parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_only_layers_from_the_top_down_to_the_stop_are_changed():
    model, images = build(), pictures(2)
    seen = []

    def maps_of(net, batch):
        seen.append(copy.deepcopy(net.state_dict()))
        return attend(net, batch, "fp32").maps

    layers = layers_top_down(model, images)
    found = randomization(model, images, maps_of)
    assert list(found) == layers
    before = model.state_dict()
    learnt = [name for name, p in model.named_parameters() if name.endswith(("weight", ".u"))]
    for number, state in enumerate(seen):  # the first is the trained model
        for name in learnt:
            layer = next(k for k, layer in enumerate(layers) if name.startswith(f"{layer}."))
            if layer >= number:
                assert torch.equal(state[name], before[name]), (number, name)
            elif before[name].ndim > 1 or name.endswith(".u"):
                assert not torch.allclose(state[name], before[name]), (number, name)


def test_the_random_layers_are_those_of_a_new_model():
    """Statistics of every weight beside those of `create_model`; batch norms are exactly as new."""
    model = build("vgg-att3-concat-add")
    kept = []
    randomization(model, pictures(2), lambda net, x: kept.append(copy.deepcopy(net)) or attend(net, x, "fp32").maps)
    torch.manual_seed(5)
    new = create_model("vgg-att3-concat-add", CLASSES, width=1 / 32).state_dict()
    for name, value in kept[-1].state_dict().items():
        if name in ("mean", "std"):
            continue
        if value.numel() >= 256 and value.ndim > 1:
            assert value.std().item() == pytest.approx(new[name].std().item(), rel=0.25), name
        elif "norm" in name or ".1." in name:
            assert torch.equal(value, new[name]), name


def test_the_similarity_is_that_of_the_maps_before_and_after():
    model, images = build(), pictures(3)
    kept = []
    found = randomization(model, images, lambda net, x: kept.append(attend(net, x, "fp32").maps) or kept[-1])
    for (layer, values), maps in zip(found.items(), kept[1:], strict=True):
        for level, similarity in values.items():
            expected = metrics.rank_agreement(kept[0][level], maps[level])
            torch.testing.assert_close(similarity["rank_agreement"], expected.abs(), msg=layer)
            torch.testing.assert_close(
                similarity["correlation"], metrics.correlation(kept[0][level], maps[level]).abs(), msg=layer
            )


def test_attention_cannot_depend_on_what_lies_above_it():
    """The head never changes a map; with softmax and pc neither does the global branch."""
    found = randomization(build("vgg-att3-concat-pc", faithful=True), pictures(2))
    for level, similarity in found["head"].items():
        torch.testing.assert_close(similarity["rank_agreement"], torch.ones(2), msg=level)
    # The attention of a level changes its own map only.
    torch.testing.assert_close(found["attention.conv13"]["conv10"]["rank_agreement"], torch.ones(2))
    assert (found["attention.conv13"]["conv13"]["rank_agreement"] < 0.999).all()
    assert all((values["rank_agreement"] < 0.999).all() for values in found["trunk.conv1"].values())


def test_explanations_can_be_checked_too():
    model, images = build("vgg"), pictures(2)
    target = attend(model, images, "fp32").logits.argmax(1)
    stops = ["head", "trunk.conv1"]
    found = randomization(model, images, lambda net, x: {"saliency": explain(net, x, "saliency", target)}, stops=stops)
    assert list(found) == stops
    assert all((found[stop]["saliency"]["rank_agreement"] < 0.999).all() for stop in stops)


def test_a_map_that_ignores_the_model_never_changes():
    maps = some_maps(2)
    found = randomization(build("vgg"), pictures(2), lambda net, x: {"noise": maps})
    assert all((values["noise"]["rank_agreement"] > 0.9999).all() for values in found.values())


def test_the_model_and_the_callers_random_numbers_stay_as_they_were():
    model = build().train()
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = randomization(model, pictures(2), seed=1, stops=["trunk.conv1"])
    torch.testing.assert_close(torch.rand(2), expected)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again, other = (randomization(model, pictures(2), seed=s, stops=["trunk.conv1"]) for s in (1, 2))
    value = first["trunk.conv1"]["conv13"]["rank_agreement"]
    torch.testing.assert_close(again["trunk.conv1"]["conv13"]["rank_agreement"], value, rtol=0, atol=0)
    assert not torch.equal(other["trunk.conv1"]["conv13"]["rank_agreement"], value)


def test_several_draws_are_averaged():
    model, images, kept = build(), pictures(2), []
    found = randomization(
        model,
        images,
        lambda net, x: kept.append(attend(net, x, "fp32").maps) or kept[-1],
        stops=["trunk.conv1"],
        draws=3,
    )
    assert len(kept) == 4
    for level, similarity in found["trunk.conv1"].items():
        each = [metrics.rank_agreement(kept[0][level], maps[level]).abs() for maps in kept[1:]]
        assert not torch.allclose(each[0], each[1])
        torch.testing.assert_close(similarity["rank_agreement"], sum(each) / 3, msg=level)


def test_histogram_entropy_against_counting():
    maps = torch.cat([some_maps(3, 8), torch.ones(1, 8, 8)])
    values = histogram_entropy(maps, bins=10)
    for one, value in zip(maps.double(), values.tolist(), strict=True):
        low, high = one.min().item(), one.max().item()
        counts = [0] * 10
        for x in one.flatten().tolist():
            counts[min(9, int((x - low) / (high - low) * 10)) if high > low else 0] += 1
        expected = -sum(c / 64 * math.log(c / 64) for c in counts if c)
        assert value == pytest.approx(expected, abs=1e-6)


def test_entropy_rises_where_learning_made_the_map_orderly():
    model, images = build(), pictures(3)
    orderly = torch.zeros(3, 8, 8)
    orderly[:, 2:4, 2:4] = 1
    noise = some_maps(3, 8)
    maps = {"learned": (orderly, noise), "lost": (noise, orderly), "same": (noise, noise), "flat": (0 * noise, noise)}

    def maps_of(net, _):
        return {name: pair[net is not model] for name, pair in maps.items()}

    rises = entropy_rise(model, images, maps_of, draws=2)
    before, after = histogram_entropy(orderly), histogram_entropy(noise)
    torch.testing.assert_close(rises["learned"]["relative"], (after - before) / before)
    torch.testing.assert_close(rises["learned"]["difference"], after - before)
    assert (rises["lost"]["relative"] < 0).all()
    torch.testing.assert_close(rises["same"]["relative"], torch.zeros(3))
    assert rises["flat"]["relative"].isnan().all()
    torch.testing.assert_close(rises["flat"]["difference"], after)


def test_entropy_is_compared_with_a_wholly_random_model():
    model, images, states = build(), pictures(2), []

    def maps_of(net, batch):
        states.append(copy.deepcopy(net.state_dict()))
        return attend(net, batch, "fp32").maps

    rises = entropy_rise(model, images, maps_of, draws=2)
    assert list(rises) == ["conv7", "conv10", "conv13"]
    assert len(states) == 3
    for name, weights in model.named_parameters():
        if weights.ndim > 1:
            drawn = [states[k][name] for k in (1, 2)]
            assert torch.equal(states[0][name], weights)
            assert not torch.allclose(drawn[0], weights)
            assert not torch.allclose(drawn[0], drawn[1])


def test_what_cannot_be_made_random_is_refused():
    with pytest.raises(ValueError, match=r"unknown layer 'trunk.conv14': did you mean 'trunk.conv4'"):
        randomization(build(), pictures(1), stops=["trunk.conv14"])
    with pytest.raises(ValueError, match="no attention maps; give maps_of"):
        randomization(build("vgg"), pictures(1))
