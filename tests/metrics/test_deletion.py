"""Hidden cells: a model that has learned to do without them, and maps that say which matter."""

import copy

import pytest
import torch
from torch import nn

from ltpa import Split, attend
from ltpa.data.shapes import draw_shapes
from ltpa.inference import to_float
from ltpa.metrics import delete_cells, each_cell_hidden, effect_prediction, intervene, train_with_hidden_cells
from ltpa.metrics.deletion import CELLS, Deletion, hide
from tests.metrics.helpers import build, pictures, some_maps


class Cells(nn.Module):
    """A model whose answer is 1 as long as a few cells of the picture are bright."""

    def __init__(self, rows, columns):
        super().__init__()
        self.rows, self.columns = rows, columns
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        light = images[:, :, self.rows, self.columns].mean((1, 2, 3)) - 0.75
        return torch.stack([-light, light], 1) * self.scale


def test_hidden_cells_have_the_color():
    images, color = to_float(pictures(3)), torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    hidden = torch.rand(3, CELLS**2, generator=torch.Generator().manual_seed(0)) < 0.5
    for size in (32, 36):
        images = torch.nn.functional.interpolate(images, size=(size, size))
        changed = hide(images, hidden, color)
        for i in range(3):
            for row in range(0, size, 5):
                for column in range(0, size, 7):
                    cell = int((row + 0.5) * CELLS / size) * CELLS + int((column + 0.5) * CELLS / size)
                    expected = color.flatten() if hidden[i, cell] else images[i, :, row, column]
                    assert torch.equal(changed[i, :, row, column], expected)


def test_curves_against_hiding_cell_by_cell():
    model, images, maps = build("vgg-gap"), pictures(3), some_maps(3)
    curves = delete_cells(model, images, maps, steps=4, precision="fp32")
    assert curves.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    for i in range(3):
        target = attend(model, images[i : i + 1], "fp32").logits.argmax().item()
        weights = {
            (row, column): maps[i, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean().item()
            for row in range(CELLS)
            for column in range(CELLS)
        }
        for curve, sign in ((curves.most_first, -1), (curves.least_first, 1)):
            cells = sorted(weights, key=lambda cell, sign=sign, weights=weights: sign * weights[cell])
            for k, count in enumerate((0, 16, 32, 48, 64)):
                picture = to_float(images[i : i + 1]).clone()
                for row, column in cells[:count]:
                    picture[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = model.mean
                probability = attend(model, picture, "fp32").logits.softmax(1)[0, target].item()
                assert curve[i, k].item() == pytest.approx(probability, abs=1e-5)


def test_gain_is_the_area_between_the_curves():
    fractions = torch.tensor([0, 0.5, 1])
    right = Deletion(fractions, torch.tensor([[1.0, 0, 0]]), torch.tensor([[1.0, 1, 0]]))
    assert right.gain.tolist() == [0.5]
    assert Deletion(fractions, right.least_first, right.most_first).gain.tolist() == [-0.5]


def test_the_map_of_what_the_model_looks_at_gains_most():
    model = Cells(slice(8, 16), slice(16, 24))
    images = torch.ones(6, 3, 32, 32)
    truth = torch.zeros(6, 32, 32)
    truth[:, 8:16, 16:24] = 1
    maps = {"truth": truth, "inverse": 1 - truth, "noise": some_maps(6), "uniform": torch.ones(6, 4, 4)}
    gains = {name: delete_cells(model, images, value).gain.mean().item() for name, value in maps.items()}
    assert gains["truth"] > 0.7
    assert gains["inverse"] < -0.7
    assert abs(gains["noise"]) < 0.3
    effects = intervene(model, images, each_cell_hidden(model, images))
    assert effects.moved.shape == (6, CELLS**2)
    assert (effects.moved > 0).sum().item() == 6 * 4  # two cells by two
    scores = {name: effect_prediction(value, effects)["prediction"].nanmean().item() for name, value in maps.items()}
    assert scores["truth"] == pytest.approx(1, abs=1e-5)
    assert scores["inverse"] == pytest.approx(-1, abs=1e-5)
    assert abs(scores["noise"]) < 0.2


class OneCell(nn.Module):
    """A model that has learned to look at the first cell alone, where another would do as well."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3 * CELLS**2, 3)
        self.mix.weight.data.zero_()
        for k in range(3):
            self.mix.weight.data[k, k * CELLS**2] = 30
        self.mix.bias.data.zero_()

    def forward(self, images):
        return self.mix(torch.nn.functional.adaptive_avg_pool2d(images, CELLS).flatten(1) - 0.5)


def test_training_with_hidden_cells_teaches_to_do_without_them():
    """The copy loses less of its accuracy to hidden cells, on pictures it was not trained on."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (600,), generator=draw)  # a class is a color
    images = torch.randint(0, 100, (600, 3, 32, 32), generator=draw, dtype=torch.uint8)
    images[torch.arange(600), labels] += 60
    model, train, test = OneCell(), Split(images[:500], labels[:500]), Split(images[500:], labels[500:])
    state = copy.deepcopy(model.state_dict())
    tuned = train_with_hidden_cells(model, train, epochs=3, learning_rate=0.3)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not tuned.training
    hidden = torch.rand(100, CELLS**2, generator=draw) < 0.6
    covered = hide(to_float(test.images), hidden, tuned.mean)
    before, after = (
        (attend(one, covered).logits.argmax(1) == test.labels).float().mean().item() for one in (model, tuned)
    )
    assert before < 0.7
    assert after > 0.9


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_random_numbers():
    train = Split(*draw_shapes(40)[:2])
    train.labels.remainder_(3)
    models = [OneCell() for _ in range(3)]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = train_with_hidden_cells(models[0], train).state_dict()
    torch.testing.assert_close(torch.rand(2), expected)
    again, other = (train_with_hidden_cells(model, train, seed=s).state_dict() for s, model in enumerate(models[1:]))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_any_network_can_be_trained():
    train = Split(*draw_shapes(20)[:2])
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    tuned = train_with_hidden_cells(network, train, normalize=((0.5,) * 3, (0.25,) * 3))
    curves = delete_cells(tuned, train.images, some_maps(20), train.labels)
    assert curves.gain.shape == (20,)
    with pytest.raises(ValueError, match="one map for each image"):
        delete_cells(tuned, train.images, some_maps(3))
