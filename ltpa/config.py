"""Settings: the rules stand at the field; Python values are read strictly, text by the rules of `from_text`."""

import ast
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from .data.augment import Augmentation
from .data.dataset import DatasetName
from .data.images import MAX_SIDE, MIN_SIDE
from .errors import check_path, closest
from .models.networks import (
    ImageClassifier,
    backbone_of,
    check_name,
    create_model,
    image_size_for,
    is_backbone,
    list_models,
    parse_variant,
)

Normalizer = Literal["softmax", "sigmoid"]
ImageSize = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Optimizer = Literal["muon", "sgd", "adamw"]
Count = Annotated[int, Field(ge=1, le=10**6)]
Limit = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Width = Annotated[float, Field(gt=0, le=4)]
LearningRate = Annotated[float, Field(gt=0, le=100)]
BatchSize = Annotated[int, Field(ge=2, le=10**6)]

_NONE_WORDS = ("", "none", "null", "~")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", NoneType: "None"}
Settings = TypeVar("Settings", bound="SettingsBase")
Item = TypeVar("Item")


# Rules that pydantic does not have. A message goes on after the field's name.


def _known_model(value: str) -> str:
    try:
        return check_name(value)
    except ValueError as error:
        raise ValueError(f"={value!r}: {str(error).partition(': ')[2]}") from error


def _known_variant(value: str) -> str:
    try:
        model, normalizer = parse_variant(value)
    except ValueError as error:
        raise ValueError(f"={value!r}: {error}") from error
    return model if normalizer == "softmax" else f"{model} {normalizer}"  # each variant is written in one way


def _device(value: str) -> str:
    if not re.fullmatch("auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?", value):
        raise ValueError(f"={value!r}: known: auto, cpu, cuda, cuda:<number>, mps")
    return value


def _each_once(values: Sequence[Item]) -> Sequence[Item]:
    if isinstance(values, str) or not values or len(set(values)) < len(values):
        raise ValueError(f"must be a list of one or more different values, not {values!r}")
    return values


ModelName = Annotated[str, AfterValidator(_known_model)]
Variant = Annotated[str, AfterValidator(_known_variant)]  # a model and its normalizer: "vgg-att3-concat-pc sigmoid"
Device = Annotated[str, AfterValidator(_device)]
FilePath = Annotated[str, BeforeValidator(check_path)]
EachOnce = AfterValidator(_each_once)  # Annotated[Sequence[Variant], EachOnce]


class SettingsBase:
    """What all settings share; the decorator `settings` makes the classes."""

    __pydantic_fields__: ClassVar[dict[str, FieldInfo]]

    @classmethod
    def from_text(cls, values: Mapping[str, Any]) -> Self:
        """Make settings of values that may be text: from a file, the command line or papermill.

        "None", "none", "null", "~" and "" are None, "1e-2" is a number, "true" and "no" are switches, "0, 1" and
        "[0, 1]" are lists; values that are not text are left alone.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"settings must be a dictionary of names and values, not {values!r}")
        hints = get_type_hints(cls, include_extras=True)
        return cls(**{str(k): _from_text(v, hints[k]) if k in hints else v for k, v in values.items()})

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the fields' defaults."""
        return {name: field.default for name, field in cls.__pydantic_fields__.items()}

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """Return what each field is, in words."""
        return {name: field.description or "" for name, field in cls.__pydantic_fields__.items()}

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with fields together; `values` holds only the fields that are right alone."""
        return []


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def settings(cls: type[Settings]) -> type[Settings]:
    """Turn a class into a frozen dataclass whose fields are checked; the docstring lists the fields' descriptions.

    One ValueError names all problems, a line each; for an unknown name the closest known one.
    """
    options = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    checked: Any = pydantic_dataclass(frozen=True, config=options)(cls)
    checked_init = checked.__init__

    def __init__(self: Any, *unnamed: Any, **values: Any) -> None:
        if unnamed:
            how = "**settings" if isinstance(unnamed[0], Mapping) else f"{next(iter(checked.defaults()))}=..."
            raise TypeError(f"settings are given by name, {cls.__name__}({how}), not {unnamed[0]!r:.60}")
        try:
            wrong, lines = set[str](), list[str]()
            checked_init(self, **values)
        except ValidationError as error:
            wrong, lines = _problems(checked, error)
        given = {**checked.defaults(), **values}  # after an error no field is set
        right = {name: getattr(self, name) if not wrong else v for name, v in given.items() if name not in wrong}
        if lines := lines + checked.contradictions(right):
            raise ValueError("\n".join(lines))

    checked.__init__ = __init__
    attributes = [f"    {name}: {text}" for name, text in checked.descriptions().items() if text]
    checked.__doc__ = "\n".join([(cls.__doc__ or "").strip(), "", "Attributes:", *attributes])
    return checked


def _problems(cls: Any, error: ValidationError) -> tuple[set[str], list[str]]:
    """Return the names of the wrong fields, and a line about each."""
    hints, lines = get_type_hints(cls, include_extras=True), dict[str, str]()
    for problem in error.errors():
        name, value = str(problem["loc"][0]), problem["input"]
        if name not in hints or problem["type"] == "unexpected_keyword_argument":
            line = f"unknown parameter {name!r}: {closest(name, [f.name for f in dataclasses.fields(cls)])}"
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
            line = f"{name}{text}" if text.startswith("=") else f"{name} {text}"
        elif problem["type"] == "literal_error" and isinstance(value, str):
            choices = re.findall("'([^']*)'", problem["ctx"]["expected"])
            line = f"{name}={value!r}: {closest(value, choices)}"
        else:
            line = f"{name} must be {_expected(hints[name])}, not {value!r:.80}"
        lines.setdefault(name, line)
    return set(lines), list(lines.values())


def _expected(hint: Any, constraints: Sequence[Any] = ()) -> str:
    """Say in words what a field takes: "a whole number, at least 1 and at most 9, or None"."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        return _expected(inner, [c for m in metadata for c in (m.metadata if isinstance(m, FieldInfo) else [m])])
    if get_origin(hint) in (UnionType, Union):
        return ", or ".join(_expected(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if _is_list(hint):
        return f"a list, each {_expected(get_args(hint)[0])}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [f"{words[name]} {getattr(c, name)}" for c in constraints for name in words if hasattr(c, name)]
    return _KINDS.get(hint, "a path" if hint is Path else str(hint)) + (", " + " and ".join(limits) if limits else "")


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _from_text(value: Any, hint: Any) -> Any:
    """Turn text into what a field of this type takes; where that is impossible, leave it for the field's own check."""
    if get_origin(hint) is Annotated:
        return _from_text(value, get_args(hint)[0])
    parts = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    kinds = [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]
    if any(map(_is_list, kinds)) and isinstance(value, str | list | tuple):
        item = get_args(next(filter(_is_list, kinds)))[0]
        return [_from_text(part, item) for part in (_split(value) if isinstance(value, str) else value)]
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if word in _NONE_WORDS and word not in choices and (NoneType in kinds or word not in ("", "~")):
        return None
    if bool in kinds and word in _BOOLEANS:
        return _BOOLEANS[word]
    for kind in (int, float):
        try:
            if kind in kinds:
                return kind(value)
        except ValueError:
            continue
    return value


def yaml_file(file: str) -> Any:
    """Return the `yaml_values` of a file; a ValueError names one that is not YAML."""
    import yaml

    try:
        return yaml_values(Path(file).expanduser().read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a YAML file: {' '.join(str(error).split())}") from error


def yaml_values(text: str) -> Any:
    """Return the values of a YAML text; all but plain decimal numbers, switches and null stays text, as written.

    (YAML 1.1 would read 1:30 as 90, 010 as 8 and 1e-3 as a text.) A name that is given twice is an error.
    """
    import yaml  # here, because only files need it

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value]
            if twice := [name for name in names if names.count(name) > 1]:
                raise yaml.YAMLError(f"{twice[0]!r} is given twice")
            return super().construct_mapping(node, deep)

    number = r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    for kind, pattern in (("int", "[-+]?(0|[1-9][0-9]*)"), ("float", number), ("null", "~|null|Null|NULL|")):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^({pattern})$"), None)
    switches = re.compile(f"^({'|'.join(_BOOLEANS)})$", re.IGNORECASE)
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", switches, None)
    return Loader(text).get_single_data()


def _split(text: str) -> Sequence[Any]:
    """Return the parts of "a, b" or "[0, 1]"."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [part.strip().strip("'\"") for part in text.strip().strip("[]()").split(",") if part.strip()]
    return value if isinstance(value, list | tuple) else [value]


@settings
class TrainConfig(SettingsBase):
    """Settings of a training run; the names are also the parameters of the notebooks."""

    model: ModelName = Field(
        "vgg-att3-concat-pc", description="a name of `ltpa.list_models()`, or another for `create_model`"
    )
    width: Width = Field(1.0, description="factor on every channel count")
    normalizer: Normalizer = Field("softmax", description="of the attention weights")
    dropout: bool = Field(
        False, description="use the authors' dropout rates, chosen for 300 epochs; they hurt short runs"
    )
    pretrained: bool = Field(False, description="start from the pretrained weights of the model's timm backbone")
    freeze: bool = Field(False, description="train only what reads the pretrained backbone: fast, for few images")
    dataset: DatasetName = Field("cifar10", description="'folder' is your own images")
    data_dir: FilePath = Field("data", description="folder for downloads, or of your own images")
    image_size: ImageSize | None = Field(
        None, description="side in pixels; None is 32, or what the backbone was made for (224)"
    )
    train_limit: Annotated[int, Field(ge=2, le=10**9)] | None = Field(
        None, description="at most this many training images"
    )
    test_limit: Limit | None = Field(None, description="at most this many test images")
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="part of the training images that replaces the test images, to choose settings without them"
    )
    skip_broken: bool = Field(
        False, description="leave out pictures of a folder that cannot be read; otherwise they are listed as an error"
    )
    epochs: Count | None = Field(None, description="passes over the training images; None chooses by their number")
    minutes: Annotated[float, Field(gt=0, le=10**5)] | None = Field(
        None,
        description="train for this long instead of `epochs`, last test included; the schedule follows the clock",
    )
    batch_size: BatchSize | None = Field(
        None, description="images per optimizer step (batch norm compares images); None chooses by their number"
    )
    optimizer: Optimizer | None = Field(None, description="muon, sgd or adamw; None chooses by the model")
    learning_rate: LearningRate | None = Field(
        None, description="peak of the schedule, with muon that of the filters; None chooses by the other settings"
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        5e-4, description="of the weights; biases, norms and attention vectors have none"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="of the cross-entropy")
    progressive_resizing: bool = Field(
        True, description="train on smaller pictures first: half the side for 30 % of the steps, then three quarters"
    )
    augment: Augmentation = Field(
        "auto", description="'auto' flips and shifts, but does not flip digits; cutout is for long trainings"
    )
    precision: Precision = Field("auto", description="of the convolutions; fp16 needs a GPU")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:<number> or mps (not tested)")
    seed: Seed = Field(0, description="of initialization, order, augmentation and dropout, not of the data")
    memory_gb: Annotated[float, Field(gt=0, le=10**6)] | None = Field(
        None,
        description="memory for the images; beyond it they are read from their files; None is half of the free memory",
    )
    snapshots: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="save the attention maps of this many test images after every epoch"
    )
    run_dir: FilePath | None = Field(
        None, description="the run's folder; None is `runs/<model>-<dataset>-<hash of the settings>`"
    )

    # Where and in which precision a run is computed, and how much of it is kept, does not make it another run.
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset(
        {"device", "precision", "data_dir", "run_dir", "memory_gb", "snapshots"}
    )

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Refuse fp16 on a CPU, pretrained weights of no backbone, and a validation part that leaves one side empty."""
        lines = []
        if (values.get("pretrained") or values.get("freeze")) and "model" in values:
            if not is_backbone(values["model"]):
                lines.append(
                    f"pretrained and freeze are for timm backbones such as {list_models('*lite0*add')[0]}, and "
                    f"model={values['model']!r} has none"
                )
            elif not values.get("pretrained", True):
                lines.append("freeze=True keeps the backbone's weights, which are random without pretrained=True")
        if (values.get("precision"), values.get("device")) == ("fp16", "cpu"):
            lines.append(
                "precision='fp16' needs a GPU, but device='cpu' is none; set precision='auto' or device='cuda'"
            )
        limit, validation = values.get("train_limit"), values.get("validation")
        if limit and validation and not 1 <= round(limit * validation) <= limit - 2:
            lines.append(
                f"validation={validation} of train_limit={limit} images leaves too few: at least one must be held out "
                "and two be left to train on"
            )
        return lines

    def create_model(self, num_classes: int, **changes: Any) -> ImageClassifier:
        """Create the model of these settings with random weights; `changes` are options of `ltpa.create_model`."""
        own = {"width": self.width, "normalizer": self.normalizer, "dropout": self.dropout}
        model = create_model(self.model, num_classes, **{**own, "pretrained": self.pretrained, **changes})
        if self.freeze:
            backbone_of(model).freeze()
        return model

    def identity(self) -> dict[str, Any]:
        """Return the settings that tell this run from others."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in self.NOT_IDENTITY}

    @property
    def side(self) -> int:
        """The side of the images in pixels: `image_size`, or what suits the model."""
        return self.image_size or image_size_for(self.model)

    @property
    def planned_epochs(self) -> int | None:
        """The number of epochs; None where the clock decides."""
        return self.epochs if self.minutes is None else None

    @property
    def path(self) -> Path:
        """The run's folder."""
        if self.run_dir is not None:
            return Path(self.run_dir).expanduser()
        # Only what differs from the defaults is hashed: a setting that a later version adds changes no old name.
        defaults = self.defaults()
        changed = {name: value for name, value in self.identity().items() if value != defaults[name]}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{self.model}-{self.dataset}-{digest}"


#: Trains the flagship on the drawn shapes in about a minute on a laptop; notebooks/params/quick holds the same.
QUICK: dict[str, Any] = {
    "dataset": "shapes",
    "width": 0.125,
    "epochs": 5,
    "batch_size": 64,
}
