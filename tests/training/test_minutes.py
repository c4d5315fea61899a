"""Training by the clock: on machines of any speed it ends in time, with the learning rate at its end."""

import signal
import time

import pytest
import torch

from ltpa import evaluate, fit, load_run
from ltpa.training import callbacks, trainer
from ltpa.training.checkpoint import load_tensors
from ltpa.viz import learning_curve
from tests.tools.crash import tiny_config, tiny_data
from tests.training.harness import disturb, kill_self, quiet

BUDGET = 20.0  # seconds


def small_config(folder, **changes):
    return tiny_config(folder, model="vgg", width=1 / 64, **changes)


class Machine:
    """A clock that only training steps and tests move, at the speed of some machine."""

    def __init__(self, monkeypatch, step, test):
        self.now, self.rates = 1000.0, []
        plain_step, plain_examine = trainer.train_step, trainer.evaluate_images

        def slow_step(*args, **settings):
            self.now += step
            self.rates.append(settings["factor"])
            return plain_step(*args, **settings)

        def slow_examine(model, split, *rest, **processes):
            self.now += test * len(split) / 30
            return plain_examine(model, split, *rest, **processes)

        monkeypatch.setattr(trainer, "train_step", slow_step)
        for module in (trainer, callbacks):
            monkeypatch.setattr(module, "evaluate_images", slow_examine)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("step", "test"),
    [(0.2, 0.4), (0.4, 2.0), (1.0, 0.4), (0.36, 0.97)],
    ids=["fast", "long tests", "less than two epochs", "uneven"],
)
def test_it_ends_in_time_on_any_machine(step, test, monkeypatch, tmp_path):
    machine = Machine(monkeypatch, step, test)
    config = small_config(tmp_path / "run", minutes=BUDGET / 60, optimizer="sgd")
    run = quiet(config, tiny_data())
    assert run.complete
    spent = machine.now - 1000.0
    assert 0.95 * BUDGET <= spent <= 1.05 * BUDGET + step, "and a step that was begun is finished"
    assert [row["epoch"] for row in run.history] == list(range(1, len(run.history) + 1))
    # The learning rate rises over a quarter of the time, and has fallen to nearly zero at the last step.
    top = machine.rates.index(max(machine.rates))
    assert max(machine.rates) >= 0.7
    assert top / len(machine.rates) == pytest.approx(0.25, abs=0.12)
    assert machine.rates[-1] <= (step + 0.5) / (BUDGET - test) / 0.75 + 0.02
    assert run.history[-1]["schedule"] == 1
    assert all(row["schedule"] < 1 for row in run.history[:-1])
    assert sum(row["seconds"] for row in run.history) <= spent
    assert load_run(config.path, "cpu").history == run.history


def test_the_last_test_is_of_the_weights_that_are_saved(monkeypatch, tmp_path):
    Machine(monkeypatch, 0.5, 1.0)
    run = quiet(small_config(tmp_path / "run", minutes=0.2), tiny_data())
    weights, facts = load_tensors(run.path / "weights.safetensors")
    assert facts["epochs"] == len(run.history)
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    monkeypatch.undo()
    found = evaluate(run.model, tiny_data().test, "fp32")
    assert found["accuracy"] == run.history[-1]["test_accuracy"]


def test_an_interrupted_run_goes_on_with_the_time_that_is_left(monkeypatch, tmp_path, capsys):
    machine = Machine(monkeypatch, 1.0, 2.0)
    config = small_config(tmp_path / "run", minutes=1.0)
    disturb(monkeypatch, "train_step", kill_self(signal.SIGINT, [21]))
    with pytest.raises(KeyboardInterrupt):
        quiet(config, tiny_data())
    half = machine.now - 1000.0
    assert 20 < half < 50
    machine.now += 10_000  # Colab was away for some hours
    later = machine.now
    run = fit(config, tiny_data())
    assert run.complete
    assert half + machine.now - later == pytest.approx(60, rel=0.07)
    assert machine.rates[-1] < 0.1
    assert machine.rates[21] == pytest.approx(machine.rates[20], rel=0.2), "no second warm-up"
    told = capsys.readouterr().out
    assert "continuing" in told
    assert "1 minute on cpu" in told
    assert f"passes over the training images, test accuracy {run.history[-1]['test_accuracy']:.1%}" in told
    monkeypatch.setattr(trainer, "train_step", lambda *_, **__: pytest.fail("trained again"))
    assert quiet(config, tiny_data()).history == run.history


def test_no_time_at_all_still_trains_a_step_and_tests_it(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, 5.0, 10.0)
    run = quiet(small_config(tmp_path / "run", minutes=0.01), tiny_data())
    assert run.complete
    assert len(machine.rates) == 1
    assert len(run.history) == 1


def test_real_time(tmp_path):
    """Not with a made-up clock: three seconds are three seconds, but for what a loaded machine takes away."""
    started = time.monotonic()
    run = quiet(small_config(tmp_path / "run", minutes=0.05), tiny_data())
    assert 2.0 < time.monotonic() - started < 5.0
    assert len(run.history) > 1
    assert run.history[-1]["learning_rate"] < 0.05 * run.config.learning_rate


def test_the_curve_of_a_run_by_the_clock(monkeypatch, tmp_path):
    Machine(monkeypatch, 1.0, 2.0)
    run = quiet(small_config(tmp_path / "run", minutes=0.5), tiny_data())
    figure = learning_curve(run.history, run.config.planned_epochs)
    assert figure.axes[0].get_xlim()[1] >= len(run.history)
