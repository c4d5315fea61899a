"""The trials of the training recipe take the steps of the package's own optimizer."""

from dataclasses import replace

import pytest
import torch

import ltpa
from ltpa.training.optim import make_optimizer
from tests.tools import recipe


@pytest.mark.parametrize(
    "name", ["the recipe", "SGD, rate 0.1", "first layer of whitened patches", "dirac initialization"]
)
def test_a_step_is_that_of_the_package(name):
    data = ltpa.load_data("shapes", train_limit=100, test_limit=100)
    # In single precision, and with one rate for all that is no filter.
    small = replace(recipe.PARTS[name], width=1 / 16, batch=50, epochs=1, other_rate=0.06)
    trial = recipe.Trial(small, data, seed=0)
    model = ltpa.create_model("vgg-att3-concat-pc", 10, width=1 / 16, dropout=False, mean=data.mean, std=data.std)
    model.load_state_dict(trial.model.state_dict())
    model.train()
    optimizer = make_optimizer(model, optimizer=small.optimizer, learning_rate=small.rate, weight_decay=5e-4)
    for group in optimizer.param_groups:
        group["lr"] = trial.factor[0].item() * small.rate
    with torch.autocast("cpu", torch.bfloat16):
        images, labels = trial._batch(trial.parts[0])
        loss = torch.nn.functional.cross_entropy(model(images).float(), labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    trial.advance()
    pairs = zip(trial.model.named_parameters(), model.parameters(), strict=True)
    for (parameter, own), theirs in pairs:
        if theirs.grad is not None:
            assert torch.allclose(own, theirs, rtol=1e-3, atol=1e-4), parameter


def test_every_part_trains():
    data = ltpa.hold_out(ltpa.load_data("shapes", train_limit=200, test_limit=10), 0.25)
    parts = ["random flips", "lookahead every 5 steps", "dirac initialization"]
    table = recipe.measure(parts, data, seeds=1, at_once=2, epochs=7)
    assert table["part"].tolist() == parts
    assert table["held-out accuracy"].between(0, 1).all()
