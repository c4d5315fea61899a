"""What every notebook starts with: its folder, its parameters, the machine it runs on, and a run to look at."""

import ast
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import pretrained
from ..config import QUICK, TrainConfig, check_fields, check_values, raise_problems, unknown_names
from ..data.dataset import Dataset, Split
from ..data.samples import Photographs, stand_ins
from ..errors import closest
from ..inference import choose_device
from ..models.networks import AttentionOutput, parse_variant
from ..training.report import report as report
from ..training.run import Run, load_run
from ..training.trainer import data_for, fit
from ..viz import figures as plots
from . import summary as findings
from .drive import runs_on_drive

# Changing none of these means: the defaults, made for a GPU.
_SIZE = ("width", "dataset", "image_size", "train_limit", "test_limit", "epochs")


@dataclass(frozen=True)
class LookConfig:
    """Parameters of a notebook that looks at a run.

    Attributes:
        run: weights that come with ltpa, a run's folder, or "auto" (see `find_run`).
        examples: pictures a figure.
        chosen: numbers of test images to show.
        photo: a file of one's own; None takes pictures that scikit-image ships.
        photo_side: pixels of a photo's shorter side for the network.
        seed: of the random choice of images.
        data_dir: where the run's data lie; "auto" is where they were when it was trained. For weights that come with
            ltpa it may also be a folder of images, `test/<class>/*` and `train/<class>/*`.
        download: whether a data set that is not there may be downloaded; otherwise a handful of pictures stand in.
        device: "auto", "cpu" or "cuda".
        epochs, train_limit, test_limit: of the quick model that is trained where there is no run.

    Raises:
        ValueError, TypeError: one message with all problems.
    """

    run: str = pretrained.DEFAULT
    examples: int = 5
    chosen: Sequence[int] = (0, 1, 2)
    photo: str | None = None
    photo_side: int = 96
    seed: int = 0
    data_dir: str = "auto"
    download: bool = False
    device: str = "auto"
    epochs: int = QUICK["epochs"]
    train_limit: int | None = None
    test_limit: int | None = None

    def __post_init__(self) -> None:
        """Checks every field and reports all problems at once."""
        raise_problems(check_fields(self))

    def draw(self, count: int) -> Tensor:
        """Indices of at most `examples` of `count` images, by the seed."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[: self.examples]


@dataclass(frozen=True)
class TruthConfig:
    """Parameters of the notebook that measures maps; the runs that it compares are those of `ltpa.QUICK`.

    Attributes:
        models: names of `ltpa.list_models()`, with the normalizer behind the name where it is not softmax.
        methods: of `ltpa.explain`, to compare attention with.
        images: so many test images are measured.
        held_out: so many others choose thresholds and levels.
        costly_images: deletion, insertion and the sanity check take so many of `images`.
        fill: what takes the place of deleted pixels, "blur" or "mean".
        seed: of the runs, of the controls and of the bootstrap.
        device: "auto", "cpu" or "cuda".
        width, epochs, batch_size, learning_rate, train_limit, test_limit: of the runs, see `TrainConfig`.

    Raises:
        ValueError, TypeError: one message with all problems.
    """

    models: Sequence[str] = (
        *(f"vgg-att3-concat-{kind}{normalizer}" for kind in ("pc", "dp", "add") for normalizer in ("", " sigmoid")),
        "vgg-gap",
    )
    methods: Sequence[str] = ("gradcam", "saliency", "occlusion", "cam")
    images: int = 200
    held_out: int = 100
    costly_images: int = 50
    fill: str = "blur"
    seed: int = 0
    device: str = "auto"
    width: float = QUICK["width"]
    epochs: int = QUICK["epochs"]
    batch_size: int = QUICK["batch_size"]
    learning_rate: float = QUICK["learning_rate"]
    train_limit: int | None = None
    test_limit: int | None = None

    def __post_init__(self) -> None:
        """Checks every field and reports all problems at once."""
        raise_problems(check_fields(self))

    def runs(self) -> dict[str, TrainConfig]:
        """The settings of the runs by short names: "pc softmax" is vgg-att3-concat-pc with softmax."""
        names = ("width", "epochs", "batch_size", "learning_rate", "train_limit", "test_limit", "seed", "device")
        shared = {"dataset": QUICK["dataset"]} | {name: getattr(self, name) for name in names}
        found = {}
        for variant in self.models:
            model, normalizer = parse_variant(variant)
            short = model.removeprefix("vgg-att3-concat-")
            name = f"{short} {normalizer}" if "-att" in model or model == "vgg-pan" else short
            found[name] = TrainConfig(model=model, normalizer=normalizer, **shared)
        return found

    def budget(self) -> str:
        """How the models are trained, in words."""
        images = "all" if self.train_limit is None else self.train_limit
        return f"width {self.width:g}, {self.epochs} epochs of {images} training images, seed {self.seed}, n = images"

    def split(self, test: Split) -> tuple[Split, Split]:
        """Test images to measure, and others to choose on.

        Raises:
            ValueError: there are too few test images.
        """
        if self.images + self.held_out > len(test):
            raise ValueError(
                f"images={self.images} and held_out={self.held_out} need {self.images + self.held_out} test images, "
                f"and there are {len(test)}; lower them"
            )
        return test[: self.images], test[self.images : self.images + self.held_out]


Config = TypeVar("Config")


def parameters(namespace: Mapping[str, Any], kind: type[Config]) -> Config:
    """The notebook's parameters as settings of one kind; moves to the project's folder.

    papermill passes a misspelt parameter without a word. So the names that the cell of the parameters and papermill's
    injected cell assign are compared with the known ones; what other cells assign is the student's own business.

    Every notebook may have the parameter `runs_on_drive` beside those of the class: True puts `runs/` on Google Drive.

    Args:
        namespace: the notebook's `globals()`.
        kind: the dataclass of the settings, such as `TrainConfig`.

    Raises:
        ValueError, TypeError: one message with all problems: unknown names with the closest known one, wrong values.
        OSError: see `ltpa.course.drive.runs_on_drive`.
    """
    os.chdir(project_folder())
    known = [*(field.name for field in fields(kind)), "runs_on_drive"]
    values = {name: namespace[name] for name in known if name in namespace}
    problems = unknown_names(dict.fromkeys(_assigned_parameters(namespace.get("In", []), known)), known)
    raise_problems(problems + check_values(values))
    on_drive = values.pop("runs_on_drive", False)
    config = kind(**values)
    if on_drive:
        print(f"runs/ is on Google Drive: {runs_on_drive(Path.cwd())}")
    return config


def _assigned_parameters(executed: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names assigned in the last executed cell of parameters (it assigns most of the known), and in injected ones."""
    found: list[str] = []
    for source in reversed(executed):
        try:
            nodes = ast.parse(source).body
        except SyntaxError:
            continue
        targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        is_parameters = 2 * len(set(names) & set(known)) > len(known)
        if is_parameters or source.startswith("# Parameters"):  # papermill's comment
            found += names
        if is_parameters:
            break
    return found


def train_config(namespace: Mapping[str, Any]) -> TrainConfig:
    """The settings of a training notebook, from its parameters; a small run instead of hours where there is no GPU.

    If no parameter that makes a run long was changed, the quick parameters take the place of the unchanged ones on a
    machine without a GPU, and it is said.

    Args:
        namespace: the notebook's `globals()`.

    Raises:
        ValueError, TypeError: see `parameters`; a GPU that was asked for and is not there.
    """
    config = parameters(namespace, TrainConfig)
    default = TrainConfig()
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    changed = {name for name, value in values.items() if value != getattr(default, name)}
    if choose_device(config.device).type != "cpu" or changed & set(_SIZE):
        return config
    quick = {name: value for name, value in QUICK.items() if name not in changed}
    print(
        "There is no GPU in use, and the default run would take hours on a CPU. On Colab: Runtime > "
        "Change runtime type > T4 GPU, then run all again.\nGoing on with the quick parameters: "
        + ", ".join(f"{name}={value}" for name, value in quick.items())
    )
    return TrainConfig(**{**values, **quick})


def project_folder() -> Path:
    """The folder that relative paths start from: the repository around the working folder, else the working folder.

    So `runs/` is the same whether a notebook runs from the repository (papermill), from `notebooks/` (Jupyter) or in
    Colab. The environment variable LTPA_FOLDER names another one.
    """
    if os.environ.get("LTPA_FOLDER"):
        folder = Path(os.environ["LTPA_FOLDER"]).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "ltpa" / "_version.py").is_file():
            return folder
    return here


def find_run(look: LookConfig) -> Run:
    """The run to look at: weights that come with ltpa, a run's folder, or for "auto" the newest under `runs/`.

    Where there is none yet, "auto" trains a quick one.

    Raises:
        FileNotFoundError, ValueError: see `ltpa.load_run` and `ltpa.load_pretrained`.
    """
    if look.run in pretrained.list_pretrained():
        run = pretrained.load_pretrained(look.run, look.device)
        print(f"weights that come with ltpa: {look.run}, {run.config.model}, {run.notes[0]}")
        return run
    if look.run != "auto":
        if not Path(look.run).expanduser().is_dir():
            known = closest(look.run, ["auto", *pretrained.list_pretrained()])
            raise FileNotFoundError(f"run={look.run!r} is neither the folder of a run nor a known name: {known}")
        return load_run(look.run, look.device)
    for folder in sorted((path.parent for path in Path("runs").glob("*/config.json")), key=_written, reverse=True):
        try:
            run = load_run(folder, look.device)
        except (ValueError, FileNotFoundError) as error:
            print(f"left out: {error}")
            continue
        print(f"the newest run, {folder}: {len(run.history)} epochs of {run.config.model} on {run.config.dataset}")
        return run
    print("there is no run under runs/ yet: training the quick model first, on pictures drawn by code")
    limits = {"epochs": look.epochs, "train_limit": look.train_limit, "test_limit": look.test_limit}
    return fit(TrainConfig(**{**QUICK, **limits, "snapshots": 8, "device": look.device}))


def test_data(run: Run, look: LookConfig) -> Dataset:
    """The data of a run, to look at its test images.

    Raises:
        FileNotFoundError, ValueError: see `ltpa.load_data`; images that are not of the classes of the run.
    """
    return _of_its_classes(
        data_for(run.config if look.data_dir == "auto" else replace(run.config, data_dir=look.data_dir)), run
    )


def _of_its_classes(data: Dataset, run: Run) -> Dataset:
    if data.classes != run.classes:
        raise ValueError(
            f"the classes of the data, {', '.join(data.classes)}, are not those of the run, {', '.join(run.classes)}; "
            "set data_dir to the folder that the run was trained on"
        )
    return data


def look_at(run: Run, look: LookConfig) -> Dataset:
    """The data of a run, to look at its test images; where they would have to be downloaded and may not, `stand_ins`.

    Raises:
        FileNotFoundError, ValueError: see `test_data`.
        ImportError: pictures must stand in, and scikit-image or scikit-learn is missing.
    """
    config = run.config
    if look.data_dir != "auto":
        is_folder = Path(look.data_dir, "test").expanduser().is_dir()
        config = replace(config, data_dir=look.data_dir, dataset="folder" if is_folder else config.dataset)
    try:
        return _of_its_classes(data_for(config, look.download), run)
    except FileNotFoundError:
        if config.dataset in ("folder", "shapes"):
            raise
        print(
            f"{config.dataset} is not in {config.data_dir}/, and may not be downloaded: pictures that scikit-image and "
            "scikit-learn ship stand in. download = True gets its test images."
        )
        return stand_ins(run.classes, config.image_size)


def described(run: Run, data: Dataset, logits: Tensor) -> tuple[list[str], Tensor]:
    """A title for every test image, and the numbers of those that are misclassified; prints how many are right.

    Args:
        run, data: see `look_at`.
        logits: (N, classes), of all test images.

    Returns:
        the titles, and the numbers (K,).
    """
    labels = data.test.labels.to(logits.device)
    titles = plots.captions(logits, run.classes, labels)
    known = labels >= 0
    wrong = ((logits.argmax(1) != labels) & known).nonzero().flatten().cpu()
    count = int(known.sum())
    if isinstance(data, Photographs):
        titles = [f"{name} | {title}" for name, title in zip(data.names, titles, strict=True)]
        print(
            f"{run.config.model} on {len(titles)} photographs: {count - len(wrong)} of the {count} that show one of "
            f"its classes are right; the other {len(titles) - count} show none, and it cannot say so"
        )
    else:
        print(f"{run.config.model} on {data.name}: {1 - len(wrong) / count:.1%} of {count} test images are right")
    return titles, wrong


def caution(data: Dataset, text: str) -> None:
    """Prints what a section cannot show where photographs stand in for test images; otherwise nothing."""
    if isinstance(data, Photographs):
        print(f"No test images here: {text}")


def verdict(data: Dataset, maps: Mapping[str, Tensor], wrong: Tensor) -> str:
    """What the maps of all test images showed (`ltpa.course.summary.looked`), or why a handful of pictures cannot tell.

    Args:
        data: see `look_at`.
        maps: level -> weights (N, h, w), of all its test images.
        wrong: numbers (K,) of the misclassified ones.
    """
    if isinstance(data, Photographs):
        return (
            "Not decidable: a handful of pictures, chosen by us, shows what maps look like, no more. download = True "
            "takes the test images; what was measured on them stands in the model card in ltpa/weights."
        )
    right = torch.ones(len(data.test), dtype=torch.bool)
    right[wrong] = False
    return findings.looked(maps, right, data.test.masks)


def snapshots_of(run: Run, data: Dataset) -> dict[int, dict[str, Tensor]]:
    """`run.snapshots()`, or an empty dictionary and a line that says why there is nothing to see."""
    if isinstance(data, Photographs):
        print("no test images, no snapshots of their maps: train with snapshots=8 to see how its maps change")
        return {}
    found = run.snapshots()
    if not found:
        print("this run kept no snapshots: train with snapshots=8 to see how its maps change")
    return found


def photos(look: LookConfig) -> list[Any]:
    """The photo that the parameters name; without one, a cat, an astronaut and a cup that scikit-image ships.

    Raises:
        ImportError: scikit-image is missing.
    """
    if look.photo is not None:
        return [look.photo]
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("name a photo, or install scikit-image: pip install 'ltpa[notebooks]'") from error
    return [data.chelsea(), data.astronaut(), data.coffee()]


def show_maps(
    data: Dataset, seen: AttentionOutput, titles: list[str], picked: Sequence[int] | Tensor, alt: str
) -> None:
    """Shows some test images with their maps.

    Args:
        data: the data set.
        seen: what the model saw in all its test images.
        titles: a title for every test image.
        picked: numbers of the images to show.
        alt: what the picture shows, for those who cannot see it.

    Raises:
        ValueError: a number beyond the test set.
    """
    picked = torch.as_tensor(picked)
    if int(picked.max()) >= len(data.test):
        raise ValueError(f"there is no test image {int(picked.max())}: there are {len(data.test)}, counted from 0")
    sample = data.test[picked]
    maps = {level: maps[picked] for level, maps in seen.maps.items()}
    figure = plots.attention_figure(sample.images, maps, titles=[titles[i] for i in picked], masks=sample.masks)
    plots.show(figure, alt)


def _written(folder: Path) -> float:
    weights = folder / "weights.safetensors"
    return weights.stat().st_mtime if weights.is_file() else 0.0
