"""`python -m ltpa train`: every field is an option, all problems are named at once, and nothing is trained before."""

import os
import signal
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

import ltpa
from ltpa import TrainConfig
from ltpa import __main__ as command_line
from ltpa.__main__ import main
from ltpa.training.choices import chosen
from ltpa.training.trainer import TrainingDiverged
from tests.tools.processes import ROOT, Started

TINY = {"dataset": "shapes", "width": 0.03125, "train_limit": 64, "test_limit": 20, "epochs": 1, "batch_size": 32}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(monkeypatch):
    """Stands in for `fit`: what it was called with."""
    configs = []

    def fit(config):
        configs.append(config)
        return ltpa.Run(config, (), None, config.path, [{"test_accuracy": 0.5, "train_loss": 1.0}])

    monkeypatch.setattr(command_line, "fit", fit)
    return configs


def options(settings, separator="-"):
    return [str(part) for name, value in settings.items() for part in (f"--{name.replace('_', separator)}", value)]


def test_trains_what_fit_trains(tmp_path, capsys):
    assert main(["train", *options(TINY)]) == 0
    printed = capsys.readouterr().out
    config = TrainConfig(**TINY)
    run = ltpa.load_run(config.path)
    assert run.config == replace(chosen(config), run_dir=str(config.path))
    assert run.complete
    for words in (f"run folder {config.path}", "  epochs = 1  (changed)", f"{run.history[-1]['test_accuracy']:.1%}"):
        assert words in printed
    assert main(["train", *options(TINY, "_")]) == 0
    assert "is complete: nothing to train" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize("separator", ["-", "_"])
def test_every_field_is_an_option(trained, separator):
    changed = {"dataset": "shapes", "device": "cpu", "dropout": True, "validation": 0.25, "train_limit": 7}
    values = {**TrainConfig.defaults(), **changed, "run_dir": "12"}
    assert main(["train", *options(values, separator)]) == 0
    assert trained == [TrainConfig(**values)]
    assert trained[0].run_dir == "12", "a folder's name stays text"


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        (["--train-limit", "None"], "train_limit", None),
        (["--run-dir=none"], "run_dir", None),
        (["--run_dir", ""], "run_dir", None),
        (["--minutes", "~"], "minutes", None),
        (["--learning-rate", "5e-2"], "learning_rate", 0.05),
        (["--learning_rate=1"], "learning_rate", 1.0),
        (["--dropout"], "dropout", True),
        (["--dropout", "False"], "dropout", False),
        (["--dropout", "--no-dropout"], "dropout", False),
        (["--epochs", "3", "--epochs", "4"], "epochs", 4),
    ],
)
def test_values(trained, typed, name, value):
    assert main(["train", "--device", "cpu", *typed]) == 0
    assert getattr(trained[0], name) == value
    assert type(getattr(trained[0], name)) is type(value)


def test_all_problems_in_one_message_and_nothing_trained(trained, tmp_path, capsys):
    typed = ["--epoch", "3", "--widht=2", "more", "--batch-size", "x", "--seed", "1.5", "--learning-rate", "nan"]
    Path("some.yaml").write_text("modle: vgg\ntest_limit: 0\n")
    assert main(["train", "-f", "some.yaml", *typed, "--model", "vgg-lat", "--no-x"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    expected = {
        "'modle'": "did you mean 'model'?",
        "'epoch'": "did you mean 'epochs'?",
        "'widht'": "did you mean 'width'?",
        "'more'": "--name value",
        "vgg-lat'": "did you mean 'vgg-late'?",
        "test_limit": "at least 1",
        "batch_size": "'x'",
        "learning_rate": "number",
        "seed": "1.5",
        "'no_x'": "unknown",
    }
    lines = err.splitlines()
    assert len(lines) == len(expected)
    for name, words in expected.items():
        assert any(name in line and words in line for line in lines), name
    assert trained == []
    assert os.listdir(tmp_path) == ["some.yaml"]


def test_a_beginning_is_no_abbreviation(trained, capsys):
    for typed in (["--epoch", "3"], ["--learning", "0.1"]):
        assert main(["train", *typed]) == 1
        assert "did you mean" in capsys.readouterr().err
    assert trained == []


def test_options_override_files_and_later_files_earlier_ones(trained):
    Path("one.yaml").write_text(yaml.safe_dump({**TINY, "epochs": 7, "seed": 3}))
    Path("two.yaml").write_text(
        "seed: 4\nnormalizer: sigmoid\n# a remark\nlearning_rate: 1e-2\nrun_dir: None\nminutes:\n"
    )
    Path("none.yaml").write_text("# nothing\n")
    files = ["-f", "one.yaml", "-f", "two.yaml", "--file", "none.yaml"]
    assert main(["train", "--epochs", "2", *files, "--device", "cpu"]) == 0
    changes = {"epochs": 2, "seed": 4, "normalizer": "sigmoid", "learning_rate": 0.01, "device": "cpu"}
    assert trained == [TrainConfig(**{**TINY, **changes})]


def test_files_of_the_notebooks(trained):
    assert main(["train", "-f", str(ROOT / "notebooks" / "params" / "quick" / "01_train.yaml")]) == 0
    assert trained == [TrainConfig(**ltpa.QUICK)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs: [1", "some.yaml is not a YAML file"),
        (b"\xff\xfe\x00", "some.yaml is not a YAML file"),
        (b"false", "some.yaml must hold lines such as 'epochs: 10', not"),
        (b"- epochs", "some.yaml must hold lines such as 'epochs: 10', not"),
        (b"epochs: ten", "'ten'"),
        (b"3: 4", "unknown parameter '3'"),
        (b"a: !!python/object/apply:os.getcwd []", "some.yaml is not a YAML file"),
        (None, "some.yaml"),
    ],
)
def test_files_that_cannot_be_used(trained, content, words, capsys):
    if content is not None:
        Path("some.yaml").write_bytes(content)
    assert main(["train", "-f", "some.yaml"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert trained == []


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (TrainingDiverged("the loss is not finite. Try a lower learning rate"), 1, "error: the loss is not finite"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "to continue, run the same command again; what is saved is in runs"),
        (SystemExit(143), 143, "to continue, run the same command again; what is saved is in runs"),
    ],
)
def test_what_stops_a_training_is_one_line(monkeypatch, error, status, words, capsys):
    def fit(config):
        raise error

    monkeypatch.setattr(command_line, "fit", fit)
    try:
        found = main(["train", "--device", "cpu"])
    except SystemExit as stop:
        found = stop.code
    assert found == status
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def train_in_process(arguments):
    sys.exit(main(["train", *arguments]))


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path):
    """SIGTERM in the middle of a training, in a process of its own; then the same command again, to the end."""
    settings = {**TINY, "train_limit": 128, "epochs": 8}
    process = Started(tmp_path, train_in_process, options(settings))
    history = TrainConfig(**settings).path / "history.csv"
    deadline = time.monotonic() + 60
    while not history.is_file() and process.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    status, out, err = process.end()
    assert status == 143, err
    assert err.splitlines() == [f"to continue, run the same command again; what is saved is in {history.parent}"]
    assert "saved: call fit again to continue" in out
    epochs = len(history.read_text().splitlines()) - 1
    assert 1 <= epochs < 8
    assert main(["train", *options(settings)]) == 0
    assert ltpa.load_run(history.parent).complete


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"--{field.name.replace('_', '-')}" in text for field in fields(TrainConfig))
    assert "passes over the training images; None chooses by their number (default: None)" in text


def test_wrong_use_exits_with_2(trained, capsys):
    for typed in (["train", "-f"], ["trian"], []):
        with pytest.raises(SystemExit) as stop:
            main(typed)
        assert stop.value.code == 2
        assert "usage: python -m ltpa" in capsys.readouterr().err
    assert trained == []


def test_all_problems_are_told_at_once(trained, capsys, tmp_path):
    assert (
        main(["train", "--weight-decay", "-1e-3", "--epochs", "--widht=2", "--seed", "-1", "stray", "--minutes"]) == 1
    )
    text = capsys.readouterr().err
    for words in (
        "weight_decay must be",
        "not -0.001",
        "--epochs needs a value",
        "did you mean 'width'",
        "not -1",
        "stray",
    ):
        assert words in text
    assert "--minutes needs a value" in text
    assert trained == []


def test_files_are_read_as_they_are_written(trained, capsys, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 010\nlearning_rate: 1e-2\ndropout: yes\nminutes: ~\ntrain_limit: null\n")
    assert main(["train", "-f", str(file)]) == 0
    (config,) = trained
    assert (config.epochs, config.learning_rate, config.dropout, config.minutes) == (10, 0.01, True, None)
    for text, words in (("minutes: 1:30", "not '1:30'"), ("epochs: 1\nepochs: 2", "'epochs' is given twice")):
        file.write_text(text)
        assert main(["train", "-f", str(file)]) == 1
        assert words in capsys.readouterr().err
