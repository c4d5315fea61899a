"""The settings: what is accepted, what is refused and with which words, and what makes a run another run."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field

from ltpa import TrainConfig
from ltpa.config import QUICK, EachOnce, Seed, SettingsBase, Variant, settings
from ltpa.course.grid import AblationConfig
from ltpa.errors import closest
from ltpa.models.networks import PAPER_NAMES

NAMES = [field.name for field in fields(TrainConfig)]
WHOLE = {
    "image_size": (32, 1024),
    "train_limit": (2, 10**9),
    "test_limit": (1, 10**9),
    "epochs": (1, 10**6),
    "batch_size": (2, 10**6),
    "seed": (0, 2**31 - 1),
    "snapshots": (0, 256),
}
LIMITS = ("train_limit", "test_limit", "image_size", "epochs", "batch_size")
# name: (accepted, refused by value)
NUMBERS = {
    "minutes": ((0.1, 10, 600), (0, -1, 1e6)),
    "memory_gb": ((1e-3, 4, 1e6), (0, -1, math.inf)),
    "width": ((0.01, 1, 4.0), (0, -1, 4.01)),
    "validation": ((0, 0.5, 0.999), (1, 1.0, -0.1)),
    "learning_rate": ((1e-6, 1, 100), (0, -0.1, 100.5)),
    "weight_decay": ((0, 0.5, 1), (-1e-9, 1.01)),
    "label_smoothing": ((0, 0.999), (1, -0.1)),
}
CHOICES = {
    "model": PAPER_NAMES,
    "normalizer": ["softmax", "sigmoid"],
    "dataset": ["shapes", "cifar10", "cifar100", "svhn", "folder"],
    "optimizer": ["muon", "sgd", "adamw"],
    "augment": ["auto", "flip+shift", "flip+shift+cutout", "shift", "crop+flip", "none"],
    "precision": ["auto", "fp32", "bf16", "fp16"],
    "device": ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"],
}
ANOTHER = {
    "model": "resnet18-att3-concat-pc",
    "pretrained": True,
    "freeze": True,
    "width": 0.5,
    "normalizer": "sigmoid",
    "dropout": True,
    "dataset": "svhn",
    "image_size": 64,
    "skip_broken": True,
    "train_limit": 100,
    "test_limit": 100,
    "validation": 0.1,
    "epochs": 3,
    "minutes": 10.0,
    "batch_size": 64,
    "optimizer": "sgd",
    "progressive_resizing": False,
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "augment": "none",
    "seed": 1,
}
HARMLESS = {
    "snapshots": 4,
    "device": "cpu",
    "precision": "fp32",
    "data_dir": "/elsewhere",
    "run_dir": "here",
    "memory_gb": 2.0,
}


def refusal(**values):
    with pytest.raises(ValueError, match=r".") as caught:
        TrainConfig(**values)
    return str(caught.value)


def test_defaults_and_frozen():
    config = TrainConfig()
    assert config.dataset == "cifar10"
    assert set(ANOTHER) | set(HARMLESS) == set(NAMES)
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3
    assert replace(config, epochs=3).epochs == 3
    assert hash(config) == hash(TrainConfig())
    assert TrainConfig(**QUICK).dataset == "shapes"


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
    least, most = WHOLE[name]
    for value in (least, most):
        assert getattr(TrainConfig(**{name: value}), name) == value
    junk = ("10", "ten", 3.5, 10.0, True, math.nan, [1], np.int64(10), *(() if name in LIMITS else (None,)))
    for value in (least - 1, most + 1, -(10**400), 10**400, *junk):
        line = refusal(**{name: value})
        assert line.startswith(f"{name} must be a whole number, at least {least} and at most {most}")
        assert ("or None" in line) == (name in LIMITS)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    accepted, refused = NUMBERS[name]
    for value in accepted:
        assert getattr(TrainConfig(**{name: value}), name) == value
    optional = name in ("minutes", "memory_gb", "learning_rate")
    for value in (*refused, math.nan, math.inf, "0.1", "yes", True, 1j, [0.1], *(() if optional else (None,))):
        line = refusal(**{name: value})
        assert line.startswith(f"{name} must be a number, ")
        assert line.endswith(f"not {value!r}")


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name):
    for value in CHOICES[name]:
        assert getattr(TrainConfig(**{name: value}), name) == value
    for value in ("", "nonsense", CHOICES[name][-1] + " "):
        assert re.match(rf"{name}={re.escape(repr(value))}: .*known: .*{CHOICES[name][0]}", refusal(**{name: value}))
    for value in (1, True, ["cpu"], b"cpu", *(() if name == "optimizer" else (None,))):
        assert refusal(**{name: value}).startswith(f"{name} must be ")


@pytest.mark.parametrize("value", ["cuda:", "cuda:x", "cuda:-1", "cuda:01", "cuda:²", "cuda:100", "auto:", "cpu:0"])
def test_devices_that_torch_would_choke_on(value):
    assert refusal(device=value).startswith(f"device={value!r}: known: auto, cpu, cuda, cuda:<number>, mps")


def test_switch():
    assert TrainConfig(dropout=True).dropout is True
    for value in (1, 0, "yes", None, np.bool_(True)):
        assert refusal(dropout=value) == f"dropout must be True or False, not {value!r}"


def test_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = TrainConfig(data_dir=Path("~/dätä sets"), run_dir="~/runs/a b")
    assert config.data_dir == "~/dätä sets"
    assert config.path == tmp_path / "runs" / "a b"
    assert TrainConfig(run_dir=Path("x")).run_dir == "x"
    for name in ("data_dir", "run_dir"):
        for value in (3, ["a"], b"data", True, *((None,) if name == "data_dir" else ())):
            assert refusal(**{name: value}) == f"{name} must be a path, not {value!r}"
        for value in ("", " \t"):
            assert refusal(**{name: value}).startswith(f"{name} must not be empty")
        assert refusal(**{name: "~no-such-user/x"}).startswith(f"{name}='~no-such-user/x': ")


def test_all_problems_in_one_message():
    lines = refusal(
        model="vgg-atl3", epochs="ten", batch_size=1, learning_rate=math.nan, dropout=None, device="gpu", epoch=3
    ).splitlines()
    named = {re.match(r"(?:unknown parameter ')?(\w+)", line)[1] for line in lines}
    assert named == {"model", "epochs", "batch_size", "learning_rate", "dropout", "device", "epoch"}
    assert len(lines) == 7
    assert next(line for line in lines if "'epoch'" in line).startswith(
        "unknown parameter 'epoch': did you mean 'epochs'? known: model, width, "
    )


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("None", "run_dir", None), ("none", "train_limit", None), ("null", "minutes", None), ("~", "run_dir", None),
        ("", "memory_gb", None), ("none", "augment", "none"), ("1e-2", "learning_rate", 0.01), ("5e-2", "width", 0.05),
        (" 3 ", "epochs", 3), ("2", "minutes", 2.0), ("yes", "dropout", True), ("False", "dropout", False),
        ("~", "data_dir", "~"), ("vgg", "model", "vgg"), (0.5, "width", 0.5), (None, "run_dir", None),
    ],
)  # fmt: skip
def test_text_becomes_a_value_at_the_door(text, name, value):
    read = getattr(TrainConfig.from_text({name: text}), name)
    assert read == value
    assert type(read) is type(value)


def test_text_that_is_no_value():
    for name, text in (("data_dir", "None"), ("epochs", "1e2"), ("dropout", "perhaps"), ("width", "nan")):
        with pytest.raises(ValueError, match=f"^{name} must be "):
            TrainConfig.from_text({name: text})
    with pytest.raises(ValueError, match=r"(?s)^batch_size must.*'epoch': did you mean 'epochs'.*'7'"):
        TrainConfig.from_text({"epoch": "3", 7: 1, "batch_size": "0"})
    for wrong in (None, ["epochs"], "epochs", 3):
        with pytest.raises(ValueError, match="settings must be a dictionary"):
            TrainConfig.from_text(wrong)


@settings
class Lists(SettingsBase):
    """Settings with lists."""

    seeds: Annotated[Sequence[Seed], EachOnce] = Field((0, 1), description="of the runs")
    models: Annotated[Sequence[Variant], EachOnce] = ("vgg",)


@settings
class More(Lists):
    """Settings that inherit."""

    parts: Annotated[Sequence[int | None], EachOnce] = (5, None)


def test_lists():
    assert Lists(seeds=[1, 2]).seeds == [1, 2]
    more = More.from_text({"seeds": "3, 4", "models": "['vgg', 'vgg-pan sigmoid']", "parts": ["7", "none"]})
    assert (more.seeds, more.models, more.parts) == ([3, 4], ["vgg", "vgg-pan sigmoid"], [7, None])
    for wrong in ([1, 1], [], 3, "ab", ["a"], [-1], None):
        with pytest.raises(ValueError, match=r"^seeds must be a list"):
            Lists(seeds=wrong)
    with pytest.raises(ValueError, match="did you mean 'vgg'"):
        Lists(models=["vgx"])
    assert "seeds: of the runs" in More.__doc__


def test_fields_are_compared_as_they_are_kept():
    config = AblationConfig(models=["vgg-late softmax", "vgg"], seeds=[0])
    assert (config.models[0], config.baseline) == ("vgg-late", "vgg-late")


def test_settings_survive_json():
    config = TrainConfig(**ANOTHER, **HARMLESS)
    assert TrainConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_closest():
    assert closest("CIFAR-10", ["cifar10", "svhn"]) == "did you mean 'cifar10'? known: cifar10, svhn"
    assert closest("SVHN", ["cifar10", "svhn"]).startswith("did you mean 'svhn'?")
    assert closest("photos", iter(["cifar10", "svhn"])) == "known: cifar10, svhn"
    assert closest(None, ["a"]) == "known: a"


def test_run_folder_is_pinned():
    """A run is found again by its folder: these names must not change with the version, the machine or Python."""
    assert TrainConfig().path == Path("runs/vgg-att3-concat-pc-cifar10-44136fa3")
    assert TrainConfig(**QUICK).path == Path("runs/vgg-att3-concat-pc-shapes-4eaedb7f")


def test_run_folder_follows_the_identity():
    config = TrainConfig()
    assert replace(config, **{k: v for k, v in HARMLESS.items() if k != "run_dir"}).path == config.path
    assert replace(config, run_dir="here").path == Path("here")
    assert set(config.identity()) == set(ANOTHER)
    backbone = {"model": ANOTHER["model"], "pretrained": True}
    needs = {"pretrained": {"model": ANOTHER["model"]}, "freeze": backbone}
    paths = {replace(config, **needs.get(name, {}), **{name: value}).path for name, value in ANOTHER.items()}
    assert len(paths | {config.path}) == len(ANOTHER) + 1
    assert TrainConfig(width=1).path == TrainConfig(width=1.0).path == config.path
    changed = TrainConfig(**ANOTHER, **HARMLESS)
    assert json.loads(json.dumps(changed.identity())) == ANOTHER


def wrongs_and_rights():
    rights = {name: list(CHOICES[name]) for name in CHOICES}
    rights |= {name: list(limits) for name, limits in WHOLE.items()}
    rights |= {name: list(accepted) for name, (accepted, _) in NUMBERS.items()}
    rights |= {
        "dropout": [True, False],
        "skip_broken": [True, False],
        "progressive_resizing": [True, False],
        "pretrained": [False],
        "freeze": [False],
        "data_dir": ["data", Path("x")],
        "run_dir": [None, "r"],
    }
    junk = ["ten", "", -1, 2**70, 3.5, 0.3, 1, 512, math.nan, math.inf, None, True, [], {}, (1,), b"x", object, 1j]
    return rights, junk


def test_random_settings():
    """Random dictionaries: a configuration, or an error that names each wrong field and no other."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    rights, junk = wrongs_and_rights()
    anything = st.sampled_from(junk) | st.text() | st.integers() | st.floats()
    names = st.sampled_from([*NAMES, "epoch", "lr", "Model", "x y", "", "\n"])
    good = st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(rights[name])))
    mixed = st.tuples(names, anything) | good
    outcomes = {"config": 0, "error": 0}

    @hypothesis.settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @hypothesis.given((st.lists(good, max_size=8) | st.lists(mixed, max_size=5)).map(dict))
    def check(values):
        wrong = {name for name, value in values.items() if name not in NAMES or is_wrong(name, value)}
        try:
            config = TrainConfig(**values)
        except ValueError as error:
            message = str(error)
        else:
            message = ""
        if message:
            outcomes["error"] += 1
            assert wrong or contradicts(values)
            assert all((name if name in NAMES else f"unknown parameter {name!r}") in message for name in wrong)
            pattern = r"^(\w+)(?: must|=)(?!.* (?:of train_limit=|needs a GPU))"
            named = re.findall(pattern, message, flags=re.MULTILINE)
            assert sorted(named) == sorted(wrong & set(NAMES))
        else:
            outcomes["config"] += 1
            assert not wrong
            assert not contradicts(values)
            assert all(getattr(config, k) == (str(v) if isinstance(v, Path) else v) for k, v in values.items())
            assert json.loads(json.dumps(config.identity())) == config.identity()

    check()
    assert min(outcomes.values()) > 50


def is_wrong(name, value):
    """The rules once more, from the documentation."""
    if name in CHOICES:
        if name == "optimizer" and value is None:
            return False
        return not isinstance(value, str) or (
            value not in CHOICES[name] and not (name == "device" and re.fullmatch(r"cuda:[1-9]?\d", value, re.ASCII))
        )
    if name in WHOLE:
        least, most = WHOLE[name]
        return not (value is None and name in LIMITS) and (type(value) is not int or not least <= value <= most)
    if name in NUMBERS:
        if value is None and name in ("minutes", "memory_gb", "learning_rate"):
            return False
        if type(value) not in (int, float) or value != value:
            return True
        return {
            "minutes": not 0 < value <= 10**5,
            "memory_gb": not 0 < value <= 10**6,
            "width": not 0 < value <= 4,
            "validation": not 0 <= value < 1,
            "learning_rate": not 0 < value <= 100,
            "weight_decay": not 0 <= value <= 1,
            "label_smoothing": not 0 <= value < 1,
        }[name]
    if name in ("dropout", "progressive_resizing", "skip_broken", "pretrained", "freeze"):
        return type(value) is not bool
    if value is None:
        return name == "data_dir"
    if not isinstance(value, str | Path) or not str(value).strip():
        return True
    return str(value).startswith("~") and str(value).split("/")[0] != "~"


def contradicts(settings):
    """Fields that are right alone, and not together."""
    right = {name: value for name, value in settings.items() if name in NAMES and not is_wrong(name, value)}
    held = round((right.get("train_limit") or 0) * right.get("validation", 0))
    if right.get("pretrained") or right.get("freeze"):
        return True  # no model of these is a backbone
    return (right.get("precision") == "fp16" and right.get("device") == "cpu") or bool(
        right.get("train_limit") and right.get("validation") and (held < 1 or right["train_limit"] - held < 2)
    )


def test_contradictions_are_named_with_all_else():
    lines = refusal(train_limit=5, validation=0.05, epochs="ten", precision="fp16", device="cpu").splitlines()
    assert [line.split()[0] for line in lines] == ["epochs", "precision='fp16'", "validation=0.05"]
    assert "train_limit" in refusal(train_limit=2, validation=0.5)
    refusal(train_limit=3, validation=0.5)  # round(1.5) = 2 are held out
    assert TrainConfig(train_limit=4, validation=0.5).validation == 0.5
