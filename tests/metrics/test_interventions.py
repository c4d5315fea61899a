"""Scenes drawn again with one thing changed, and maps that predict what that does to the answer."""

import pytest
import torch
from torch import nn

from ltpa.data.shapes import CHANGES, draw_shapes
from ltpa.inference import to_float
from ltpa.metrics import accuracy_without_object, changed_scenes, effect_prediction, intervene
from ltpa.metrics.interventions import CHANCE_MARGIN, NO_OBJECT, Interventions
from ltpa.models.foreign import as_classifier
from tests.metrics.helpers import build, pictures, some_maps

COUNT = 60


class Window(nn.Module):
    """A model whose answer depends on the mean color of one part of the picture alone."""

    def __init__(self, rows, columns):
        super().__init__()
        self.window = (slice(None), slice(None), rows, columns)
        self.mix = nn.Linear(3, 5)
        generator = torch.Generator().manual_seed(0)
        self.mix.weight.data = 20 * torch.randn(5, 3, generator=generator)

    def forward(self, images):
        return self.mix(images[self.window].mean((2, 3)) - 0.5)


@pytest.fixture(scope="module")
def drawn():
    return draw_shapes(COUNT, seed=1)


@pytest.fixture(scope="module")
def scenes(drawn):
    return changed_scenes(drawn[0])


def test_only_what_is_named_changes(drawn, scenes):
    images, labels, masks = drawn
    assert list(scenes) == ["no object", *(f"{change} {k}" for change in CHANGES[1:] for k in (1, 2))]
    changed = {name: (scene.images != images).any(1) for name, scene in scenes.items()}
    near = torch.nn.functional.max_pool2d(masks.float(), 3, 1, 1).bool()  # the object with its soft edge
    deep = ~torch.nn.functional.max_pool2d((~masks).float(), 3, 1, 1).bool()  # without; few soft pixels are left
    assert not (changed["no object"] & ~near).any()
    assert changed["no object"][masks].float().mean() > 0.99
    assert not scenes["no object"].masks.any()
    for number in (1, 2):
        other, ground, strokes = (f"{change} {number}" for change in CHANGES[1:])
        assert (scenes[other].labels != labels).all()
        assert (changed[other] & ~near & ~scenes[other].masks).float().mean() < 0.01
        assert changed[ground][deep].float().mean() < 0.03
        assert changed[ground][~near].float().mean() > 0.9
        assert changed[strokes][deep].float().mean() < 0.03
        assert 0.05 < changed[strokes].float().mean() < 0.3
        for name in (ground, strokes):
            assert torch.equal(scenes[name].labels, labels)
            assert torch.equal(scenes[name].masks, masks)
    assert all(not torch.equal(scenes[f"{c} 1"].images, scenes[f"{c} 2"].images) for c in CHANGES[1:])


def test_changed_pictures_come_from_the_same_distribution():
    """Means and deviations of 400 pictures with each change beside those of 400 other pictures."""
    others = draw_shapes(400, 16, seed=8)[0].double()
    for change in CHANGES[1:]:
        images, labels, masks = draw_shapes(400, 16, 1, change=change)
        assert labels.bincount(minlength=10).min() > 10
        assert masks.flatten(1).any(1).all()
        assert (images.double().mean() - others.mean()).abs() < 4
        assert (images.double().std() - others.std()).abs() < 4


def test_pictures_that_cannot_be_drawn_again_are_refused(drawn):
    with pytest.raises(ValueError, match="not the first 60 drawn pictures of seed 3"):
        changed_scenes(drawn[0], seed=3)
    with pytest.raises(ValueError, match="unknown change 'no objects': did you mean 'no object'"):
        draw_shapes(3, change="no objects")
    with pytest.raises(ValueError, match="one object"):
        draw_shapes(3, objects=2, change="no object")


def test_effects_against_a_slow_computation(drawn, scenes):
    model, images = build("vgg-att3-concat-pc"), drawn[0][:8]
    changed = {name: scene[:8] for name, scene in scenes.items()}
    effects = intervene(model, images, changed, precision="fp32", batch_size=3)
    assert effects.names == tuple(scenes)
    with torch.no_grad():
        for i in range(8):
            before = model(to_float(images[i : i + 1])).softmax(1)[0]
            for k, scene in enumerate(changed.values()):
                after = model(to_float(scene.images[i : i + 1])).softmax(1)[0]
                distance = sum(abs(a - b) for a, b in zip(before.tolist(), after.tolist(), strict=True)) / 2
                assert effects.moved[i, k].item() == pytest.approx(distance, abs=1e-5)
                best = before.argmax()
                assert effects.drop[i, k].item() == pytest.approx((before[best] - after[best]).item(), abs=1e-5)
                assert effects.answers[i, k] == after.argmax()
                expected = (scene.images[i].double() - images[i].double()).abs().mean(0) / 255
                torch.testing.assert_close(effects.changes[i, k].double(), expected, atol=1e-6, rtol=0)


def test_prediction_is_spearmans_correlation():
    stats = pytest.importorskip("scipy.stats")
    draw = torch.Generator().manual_seed(0)
    moved, changes = torch.rand(5, 6, generator=draw), torch.rand(5, 6, 8, 8, generator=draw) ** 3
    effects = Interventions(tuple("abcdef"), moved, moved, moved.long(), changes)
    maps = some_maps(5, 8)
    values = effect_prediction(maps, effects)
    for i in range(5):
        weighed = [(maps[i] * changes[i, k]).sum().item() / maps[i].sum().item() for k in range(6)]
        assert values["weighed"][i].tolist() == pytest.approx(weighed, abs=1e-6)
        expected = stats.spearmanr(weighed, moved[i]).statistic
        assert values["prediction"][i].item() == pytest.approx(expected, abs=1e-5)
        per_pixel = [w / changes[i, k].mean().item() for k, w in enumerate(weighed)]
        expected = stats.spearmanr(per_pixel, moved[i]).statistic
        assert values["prediction_per_pixel"][i].item() == pytest.approx(expected, abs=1e-5)


def test_the_map_of_what_the_model_looks_at_predicts_best(drawn, scenes):
    """The model reads the middle of the picture, and the map says so; the others point elsewhere or nowhere."""
    middle = slice(10, 22)
    effects = intervene(Window(middle, middle), drawn[0], scenes)
    truth = torch.zeros(COUNT, 32, 32)
    truth[:, middle, middle] = 1
    maps = {"truth": truth, "elsewhere": 1 - truth, "uniform": torch.ones(COUNT, 4, 4), "noise": some_maps(COUNT, 8)}
    scores = {name: effect_prediction(value, effects)["prediction"].nanmean().item() for name, value in maps.items()}
    assert scores["truth"] > 0.65
    assert all(scores["truth"] > scores[name] + 0.1 for name in maps if name != "truth")
    untouched = ~(effects.changes * truth[:, None]).flatten(2).any(2)
    assert untouched.any()
    assert effects.moved[untouched].max() < 1e-6  # nothing that the model reads has changed


def test_an_empty_map_counts_as_uniform_and_a_constant_answer_says_nothing(drawn, scenes):
    effects = intervene(Window(slice(0, 32), slice(0, 32)), drawn[0], scenes)
    empty, uniform = (effect_prediction(torch.full((COUNT, 8, 8), v), effects) for v in (0.0, 1.0))
    assert torch.equal(empty["prediction"], uniform["prediction"])
    still = Interventions(effects.names, *([torch.zeros_like(effects.moved)] * 3), effects.changes)
    assert effect_prediction(some_maps(COUNT), still)["prediction"].isnan().all()


def test_without_its_object_the_label_is_guessed(drawn, scenes):
    _, labels, masks = draw_shapes(500, 16, seed=1)
    nothing = torch.zeros(500, 1)
    guesses = torch.randint(10, (500, 1), generator=torch.Generator().manual_seed(0))
    changes = masks[:, None].float()
    excess = accuracy_without_object(Interventions((NO_OBJECT,), nothing, nothing, guesses, changes), labels, 10)
    assert excess.high < CHANCE_MARGIN
    assert excess.low < 0 < excess.high
    leaks = guesses.where(torch.arange(500)[:, None] % 5 > 0, labels[:, None])  # a fifth is known
    assert accuracy_without_object(Interventions((NO_OBJECT,), nothing, nothing, leaks, changes), labels, 10).low > 0.1


def test_other_pictures_are_refused():
    model = as_classifier(Window(slice(0, 8), slice(0, 8)))
    with pytest.raises(ValueError, match="'half' must hold the same pictures changed"):
        intervene(model, pictures(4), {"half": pictures(2)})
    with pytest.raises(ValueError, match="there are no changes"):
        intervene(model, pictures(4), {})
