"""The settings of a training run: one frozen dataclass that refuses what cannot work, before anything slow happens."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .data.augment import AUGMENTATIONS
from .data.dataset import DATASETS
from .errors import closest
from .models.attention import NORMALIZERS
from .models.networks import ImageClassifier, create_model, list_models, parse_variant

TARGETS = ("digits", *DATASETS)  # of transfer
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Where and in which arithmetic a run is computed does not make it another run.
_NOT_IDENTITY = ("device", "precision", "data_dir", "run_dir", "memory_gb")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the names are also the parameters of the notebooks.

    Attributes:
        model: a name of `ltpa.list_models()`.
        width: factor on every channel count, above 0 and at most 4.
        normalizer: "softmax" or "sigmoid".
        dropout: use the authors' dropout rates; they were chosen for 300 epochs and hurt short runs.
        dataset: "shapes", "cifar10", "cifar100", "svhn" or "folder".
        data_dir: folder for downloads, or of one's own images.
        image_size: side in pixels, from 32 up.
        train_limit, test_limit: use at most so many images.
        validation: 0, or the part of the training images that takes the place of the test images: for choosing
            settings without looking at the test set.
        epochs: passes over the training images.
        minutes: train for so long instead, on whatever machine there is: the schedule follows the clock, and the last
            test is within the time. Loading the data is not.
        batch_size: images per optimizer step, from 2 up (batch norm compares images).
        learning_rate: the peak of the one-cycle schedule.
        weight_decay: of the weights; biases, norms and attention vectors have none.
        label_smoothing: in [0, 1).
        augment: "auto", "flip+shift", "shift" or "none"; auto does not flip digits.
        precision: "auto", "fp32", "bf16" or "fp16" (GPU only).
        device: "auto", "cpu", "cuda", "cuda:1" or "mps" (which is not tested).
        seed: of initialization, order, augmentation and dropout; the data sets do not depend on it.
        memory_gb: what the images may take in memory, in gigabytes; None is half of what is free. Images of a folder
            that take more are read from their files whenever they are used.
        snapshots: keep the attention maps of so many test images after every epoch.
        run_dir: the run's own folder; None means `runs/<model>-<dataset>-<hash of the settings>`.

    Raises:
        ValueError, TypeError: one message with all problems.
    """

    model: str = "vgg-att3-concat-pc"
    width: float = 1.0
    normalizer: str = "softmax"
    dropout: bool = False
    dataset: str = "cifar10"
    data_dir: str | Path = "data"
    image_size: int = 32
    train_limit: int | None = None
    test_limit: int | None = None
    validation: float = 0.0
    epochs: int = 10
    minutes: float | None = None
    batch_size: int = 512
    learning_rate: float = 0.2
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    augment: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    memory_gb: float | None = None
    snapshots: int = 0
    run_dir: str | Path | None = None

    def __post_init__(self) -> None:
        """Checks every field and reports all problems at once."""
        raise_problems(check_fields(self))
        for name in _NUMBERS.keys() & {field.name for field in fields(self)}:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("data_dir", "run_dir"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else str(value))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """From names and values, such as a parameter file; an unknown name is answered with the closest known one."""
        if not isinstance(values, Mapping):
            raise TypeError(f"settings must be a dictionary of names and values, not {values!r}")
        known = {name: values[name] for field in fields(cls) if (name := field.name) in values}
        problems = unknown_names(values, [field.name for field in fields(cls)])
        raise_problems(problems + check_values(known))
        return cls(**known)

    def create_model(self, num_classes: int, **changes: Any) -> ImageClassifier:
        """The model of these settings, with random weights; `changes` are options of `ltpa.create_model`."""
        own = {"width": self.width, "normalizer": self.normalizer, "dropout": self.dropout}
        return create_model(self.model, num_classes, **{**own, **changes})

    def identity(self) -> dict[str, Any]:
        """The settings that make this run a different one from others, all but device, precision and folders."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_IDENTITY}

    @property
    def planned_epochs(self) -> int | None:
        """How many epochs the run will have; None where that depends on the machine."""
        return self.epochs if self.minutes is None else None

    @property
    def path(self) -> Path:
        """The run's folder."""
        if self.run_dir is not None:
            return Path(self.run_dir).expanduser()
        # Only what differs from the defaults is hashed: a setting that a later version adds changes no old name.
        changed = {f.name: v for f in fields(self) if (v := self.identity().get(f.name, f.default)) != f.default}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{self.model}-{self.dataset}-{digest}"


def check_fields(config: Any) -> list[tuple[type, str]]:
    """The problems with the fields of a dataclass of settings; the rules go by the fields' names."""
    return check_values({field.name: getattr(config, field.name) for field in fields(config)})


def check_values(values: Mapping[str, Any]) -> list[tuple[type, str]]:
    """The problems with values of fields, one by one and, of those that are right, with each other."""
    problems = {name: check_field(name, value) for name, value in values.items()}
    right = {name: value for name, value in values.items() if problems[name] is None}
    return [problem for problem in problems.values() if problem] + _contradictions(right)


def _contradictions(values: Mapping[str, Any]) -> list[tuple[type, str]]:
    found = []
    if (values.get("precision"), values.get("device")) == ("fp16", "cpu"):
        found.append("precision='fp16' needs a GPU, and device='cpu' is none; set precision='auto' or device='cuda'")
    limit, validation = values.get("train_limit"), values.get("validation")
    if limit and validation and not 1 <= round(limit * validation) <= limit - 2:
        found.append(
            f"validation={validation} of train_limit={limit} images leaves too few: at least one must be held out, and "
            "two be left to train on"
        )
    return [(ValueError, message) for message in found]


def unknown_names(values: Mapping[str, Any], known: list[str]) -> list[tuple[type, str]]:
    """A problem for each name that is not known."""
    return [(TypeError, f"unknown parameter {name!r}: {closest(name, known)}") for name in values if name not in known]


def raise_problems(problems: list[tuple[type, str]]) -> None:
    """Raises one error with all messages; ValueError unless every problem is one of type."""
    if problems:
        kind = TypeError if all(kind is TypeError for kind, _ in problems) else ValueError
        raise kind("\n".join(message for _, message in problems))


_CHOICES = {
    "model": list_models(),
    "normalizer": NORMALIZERS,
    "dataset": DATASETS,
    "target": TARGETS,
    "augment": AUGMENTATIONS,
    "precision": PRECISIONS,
    "fill": ("blur", "mean"),
}
_LISTS = {  # name: what may be in the list
    "methods": ("gradcam", "saliency", "integrated_gradients", "occlusion", "cam"),
}
_WHOLE = {  # name: (least, most, may be None)
    "image_size": (32, 1024, False),
    "train_limit": (2, 10**9, True),
    "test_limit": (1, 10**9, True),
    "epochs": (1, 10**6, False),
    "batch_size": (2, 10**6, False),
    "seed": (0, 2**31 - 1, False),
    "snapshots": (0, 256, False),
    "examples": (1, 64, False),
    "photo_side": (32, 1024, False),
    "images": (2, 10**6, False),
    "held_out": (1, 10**6, False),
    "costly_images": (2, 10**6, False),
    "scenes": (2, 2000, False),
    "steps": (0, 10**6, False),
    "pgd_steps": (1, 1000, False),
    "labels": (2, 10**9, True),
    "target_train_limit": (20, 10**9, True),
    "target_test_limit": (2, 10**9, True),
}
_MAY_BE_NONE = ("run_dir", "photo", "budget", "minutes", "memory_gb")
_NUMBERS = {  # name: (condition, what is allowed)
    "width": (lambda v: 0 < v <= 4, "above 0 and at most 4"),
    "validation": (lambda v: 0 <= v < 1, "0, or a part of the training images below 1"),
    "learning_rate": (lambda v: 0 < v <= 100, "above 0 and at most 100"),
    "weight_decay": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "label_smoothing": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "minutes": (lambda v: 0 < v <= 10**5, "above 0 and at most 100000, or None"),
    "memory_gb": (lambda v: 0 < v <= 10**6, "above 0 and at most 1000000, or None"),
    "budget": (lambda v: 0 <= v < math.inf, "0 or more minutes, or None"),
    "epsilon": (lambda v: 0 < v <= 255, "above 0 and at most 255"),
}


def check_field(name: str, value: Any) -> tuple[type, str] | None:
    """The problem with one field's value, as the kind of error and its message, or None."""
    if name in _CHOICES:
        if not isinstance(value, str):
            return TypeError, f"{name} must be a string, not {value!r}"
        if value not in _CHOICES[name]:
            return ValueError, f"{name}={value!r}: {closest(value, _CHOICES[name])}"
    elif name in _LISTS:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            return TypeError, f"{name} must be a list of names, not {value!r}"
        if wrong := [v for v in value if v not in _LISTS[name]]:
            return ValueError, f"{name}: unknown {wrong[0]!r}: {closest(wrong[0], _LISTS[name])}"
        if not value or len(set(value)) < len(value):
            return ValueError, f"{name} must hold one name or more, each once, not {value!r}"
    elif name in _WHOLE:
        least, most, may_be_none = _WHOLE[name]
        if value is None and may_be_none:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            return TypeError, f"{name} must be a whole number{' or None' if may_be_none else ''}, not {value!r}"
        if not least <= value <= most:
            why = " (batch norm compares images)" if name == "batch_size" else ""
            return ValueError, f"{name} must be at least {least} and at most {most}{why}, not {value}"
    elif name in _NUMBERS:
        allowed, words = _NUMBERS[name]
        if value is None and name in _MAY_BE_NONE:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return TypeError, f"{name} must be a number, not {value!r}"
        if not allowed(value):  # which no condition does for nan
            return ValueError, f"{name} must be {words}, not {value}"
    elif name in ("dropout", "solutions", "runs_on_drive", "download"):
        if not isinstance(value, bool):
            return TypeError, f"{name} must be True or False, not {value!r}"
    elif name == "device":
        if not isinstance(value, str):
            return TypeError, f"device must be a string, not {value!r}"
        if not re.fullmatch("auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?", value):
            return ValueError, f"device={value!r}: known: auto, cpu, cuda, cuda:<number>, mps"
    elif name in ("models", "baseline"):
        return _variants_problem(name, [value] if name == "baseline" else value)
    elif name in _NUMBER_LISTS:
        return _numbers_problem(name, value)
    elif name == "chosen":
        if not isinstance(value, list | tuple) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            return TypeError, f"chosen must be a list of whole numbers, not {value!r}"
        if not value or min(value) < 0:
            return ValueError, f"chosen must name images from 0 up, not {value!r}"
    elif value is None and name in _MAY_BE_NONE:
        return None
    elif not isinstance(value, str | Path):
        return TypeError, f"{name} must be {'a name' if name == 'data_name' else 'a path'}, not {value!r}"
    elif not str(value).strip():
        return ValueError, f"{name} must not be empty"
    else:
        try:
            Path(value).expanduser()
        except RuntimeError:
            return ValueError, f"{name}={str(value)!r}: there is no such user; a folder of that name is './{value}'"
    return None


def _variants_problem(name: str, values: Any) -> tuple[type, str] | None:
    if not isinstance(values, list | tuple) or not values or not all(isinstance(v, str) for v in values):
        return TypeError, f"{name} must be a list of names such as 'vgg-att3-concat-pc sigmoid', not {values!r}"
    try:
        different = {parse_variant(value) for value in values}
    except ValueError as error:
        return ValueError, f"{name}: {error}"
    return (ValueError, f"{name} names a variant twice: {values!r}") if len(different) < len(values) else None


_NUMBER_LISTS = {  # name: (of what, the field whose rules its values follow)
    "seeds": ("whole numbers", "seed"),
    "epsilons": ("numbers", "epsilon"),
    "per_class": ("whole numbers, or None for all", "labels"),
}


def _numbers_problem(name: str, values: Any) -> tuple[type, str] | None:
    words, rule = _NUMBER_LISTS[name]
    if not isinstance(values, list | tuple) or not values:
        return TypeError, f"{name} must be a list of {words}, not {values!r}"
    if problem := next((problem for value in values if (problem := check_field(rule, value))), None):
        return problem[0], f"{name}: {problem[1]}"
    return (ValueError, f"{name} has a number twice: {values!r}") if len(set(values)) < len(values) else None


#: Trains the flagship on the embedded shapes in about a minute on a laptop; notebooks/params/quick holds the same.
QUICK: dict[str, Any] = {
    "dataset": "shapes",
    "width": 0.125,
    "epochs": 5,
    "batch_size": 64,
    "learning_rate": 0.05,
}
