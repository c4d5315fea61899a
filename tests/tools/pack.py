"""`python -m tests.tools pack RUN NAME`: a run becomes weights that come with the package, measured, with a model card.

Kernels and matrices are stored in float16. Whatever would lose more than rounding (tiny or huge values), and all
vectors (biases, batch norm with its running statistics), stay in float32: a variance must neither overflow nor vanish.

The card and the table in docs/models.md are made from the facts in the file alone: they cannot disagree with it.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltpa import metrics, pretrained
from ltpa._version import __version__
from ltpa.config import TrainConfig
from ltpa.data.dataset import Dataset
from ltpa.data.split import stratified
from ltpa.inference import attend, attend_batches, choose_precision
from ltpa.metrics.statistics import bootstrap_interval
from ltpa.models.classifier import ImageClassifier
from ltpa.training.checkpoint import load_tensors, save_tensors, write
from ltpa.training.run import Run, fingerprint, load_run, model_of
from ltpa.training.trainer import data_for
from tests.tools.marks import check_marks, write_between

MOST_BYTES = 4_000_000
LOST = 0.003  # of the accuracy, at most, by float16
CONFUSIONS = 6
BEGIN, END = "<!-- weights: made by `python -m tests.tools pack` -->", "<!-- end of weights -->"
_ROUNDING = 1e-3  # relative, of a whole tensor; that of normal float16 numbers is below 5e-4


def pack(
    run: Run,
    name: str,
    *,
    dataset: str | None = None,
    description: str | None = None,
    images: int = 100,
    seed: int = 0,
    precision: str = "auto",
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes `NAME.safetensors`, `NAME.md` (the model card) and their entry in `index.json`.

    Args:
        run: a complete run, from `ltpa.load_run`; its data must still be where they were, they are measured on.
        name: small letters, digits and hyphens; weights of that name are replaced.
        dataset: the data set whose images others should look at, where it is not the one that was trained on: "cifar10"
            for a run on CIFAR-10 as a folder of JPEG files. It must have the same classes in the same order.
        description: the data that were trained on, in words.
        images: so many test images, balanced over the classes, for deletion and insertion.
        seed: of the choice of these images and of controls.
        precision: of the measurements, see `ltpa.attend`.
        folder: where to write; without it, into the package.
        say: is told what is being done.

    Returns:
        the file of weights.

    Raises:
        ValueError: a run that is not complete, other images than it was trained on, a bad name, more than 4 MB, or
            float16 that costs more than 0.3 points of accuracy. Nothing is written then.
    """
    folder = pretrained.FOLDER if folder is None else folder
    path = folder / f"{name}.safetensors"
    if not name or not set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"):
        raise ValueError(f"a name of weights is made of small letters, digits and hyphens, not {name!r}")
    if not run.complete:
        raise ValueError(
            f"the run {run.path} is not complete: {len(run.history)} of {run.config.planned_epochs or 'all'} "
            "epochs are there; call fit again with its settings, or python -m ltpa train, and pack it then"
        )
    say(f"reading {run.config.dataset}")
    data = data_for(run.config)
    there, known = fingerprint(data), json.loads((run.path / "config.json").read_text(encoding="utf-8"))["data"]
    if there != known:
        raise ValueError(f"these are not the images that {run.path} was trained on: {there} here, {known} there")
    state = {key: value.cpu() for key, value in run.model.state_dict().items()}
    kernels = {key for key, value in run.model.named_parameters() if value.ndim > 1}
    packed = {key: halved(value) if key in kernels else value for key, value in state.items()}
    size = sum(value.numel() * value.element_size() for value in packed.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"{size / 1e6:.1f} MB are more than the {MOST_BYTES / 1e6:g} MB allowed: choose a smaller width"
        )
    rounded = {key: value.float() if value.is_floating_point() else value for key, value in packed.items()}
    model = model_of(run.config, run.classes, rounded, path, run.model.mean.device.type)
    figures = measured(model, data, images, seed, precision, say)
    say("the same accuracy with the float32 weights")
    before = torch.cat(
        [seen.logits.argmax(1).cpu() for _, seen in attend_batches(run.model, data.test.images, precision)]
    )
    figures["float32"] = {
        "accuracy": (before == data.test.labels).double().mean().item(),
        "same_answers": (before == figures.pop("answers")).double().mean().item(),
    }
    if figures["float32"]["accuracy"] - figures["accuracy"]["mean"] > LOST:
        raise ValueError(
            f"float16 costs too much: accuracy {figures['accuracy']['mean']:.2%}, "
            f"{figures['float32']['accuracy']:.2%} in float32; nothing is written"
        )
    facts = {
        "name": name,
        "settings": run.config.identity(),
        "dataset": dataset or run.config.dataset,
        "classes": list(run.classes),
        "history": run.history,
        "data": {"description": description or run.config.dataset, **there},
        "figures": figures,
        "parameters": sum(value.numel() for value in run.model.parameters()),
        "ltpa": __version__,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(path, packed, facts)
    content = path.read_bytes()
    index_path = folder / "index.json"
    index = json.loads(index_path.read_text(encoding="utf-8")) if index_path.is_file() else {}
    index[name] = {"sha256": pretrained.digest(content), "bytes": len(content)}
    write(index_path, (json.dumps(dict(sorted(index.items())), indent=2) + "\n").encode())
    write(folder / f"{name}.md", card(load_tensors(path)[1]).encode())
    return path


def halved(values: Tensor) -> Tensor:
    """In float16, or as it is where that would lose more than rounding does."""
    half = values.half()
    error = (half.float() - values).norm() / values.norm().clamp_min(1e-30)
    return half if half.isfinite().all() and error < _ROUNDING else values


def measured(
    model: ImageClassifier, data: Dataset, images: int, seed: int, precision: str, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Accuracy, confusions and entropies on all test images, faithfulness on some, localization where there are masks.

    Returns:
        JSON-able figures, means with 95 % intervals over images (bootstrap) as {"mean", "low", "high"}, and "answers",
        a tensor (N,).
    """
    test = data.test
    say(f"accuracy and entropies on {len(test)} test images")
    answers, entropies = [], {}
    for _, seen in attend_batches(model, test.images, precision):
        answers.append(seen.logits.argmax(1).cpu())
        for level, maps in seen.maps.items():
            entropies.setdefault(level, []).append(metrics.entropy(maps.float()).cpu())
    answers = torch.cat(answers)
    right = answers == test.labels
    mistakes = torch.stack([test.labels, answers])[:, ~right].unique(dim=1, return_counts=True)
    worst = sorted(zip(mistakes[1].tolist(), mistakes[0].T.tolist(), strict=True), key=lambda row: (-row[0], row[1]))
    some = test[stratified(test.labels, min(images, len(test)), seed)]
    maps = dict(attend(model, some.images, precision).maps)
    controls = metrics.controls(len(some), tuple(some.images.shape[2:]), seed)
    return {
        "images": len(test),
        "precision": str(choose_precision(precision, model.mean.device)).removeprefix("torch."),
        "accuracy": _interval(right),
        "by_class": {
            name: {
                "accuracy": right[test.labels == label].double().mean().item(),
                "images": int((test.labels == label).sum()),
            }
            for label, name in enumerate(data.classes)
            if (test.labels == label).any()
        },
        "confusions": [
            {"truth": data.classes[truth], "answer": data.classes[answer], "images": count}
            for count, (truth, answer) in worst[:CONFUSIONS]
        ],
        "entropy": {
            level: torch.cat(values).nanquantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
            for level, values in entropies.items()
        },
        "faithfulness": _faithfulness(model, some.images, maps, controls, seed, precision, say),
        "localization": None
        if some.masks is None
        else {name: metrics.localization(m, some.masks).mean().to_dict() for name, m in (maps | controls).items()},
        "answers": answers,
    }


def _faithfulness(
    model: ImageClassifier,
    images: Tensor,
    maps: Mapping[str, Tensor],
    controls: Mapping[str, Tensor],
    seed: int,
    precision: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Deletion and insertion of maps and controls, and what each map has over the center, image by image."""
    fill, steps, curves = "blur", 16, {}
    for name, values in (maps | controls).items():
        say(f"deletion and insertion on {len(images)} of them: {name}")
        curves[name] = metrics.deletion_insertion(
            model, images, values, fill=fill, steps=steps, seed=seed, precision=precision
        )
    center = curves["center"]
    rows = {
        name: {
            "deletion": _interval(curve.deletion_area),
            "insertion": _interval(curve.insertion_area),
            "deletion_minus_center": _interval(curve.deletion_area - center.deletion_area),
            "insertion_minus_center": _interval(curve.insertion_area - center.insertion_area),
        }
        for name, curve in curves.items()
    }
    return {"images": len(images), "fill": fill, "steps": steps, "seed": seed, "controls": list(controls), "maps": rows}


def _interval(values: Tensor) -> dict[str, float]:
    found = bootstrap_interval(values.double().numpy())
    return {"mean": found.mean, "low": found.low, "high": found.high}


# --- the card


def card(facts: Mapping[str, Any]) -> str:
    """The model card, in Markdown, from the facts of a file of weights and nothing else."""
    settings, figures, history = facts["settings"], facts["figures"], facts["history"]
    size = settings["image_size"]
    parts = [
        f"# {facts['name']}",
        f"`{settings['model']}` at {settings['width']:g} of the paper's channels, {facts['parameters']:,} parameters, "
        f"for images of {size}x{size} pixels in {len(facts['classes'])} classes: {', '.join(facts['classes'])}. "
        f"Test accuracy **{_percent(figures['accuracy'])}** ({figures['images']:,} images; 95 % over images, "
        "bootstrap). Made by `python -m tests.tools pack`; every number here is in the file's metadata as well.",
        f"```python\nimport ltpa\n\n"
        f'model = ltpa.load_pretrained("{facts["name"]}")\nltpa.show("photo.jpg", model)\n```',
        "## Data and recipe",
        f"Trained on {facts['data']['description']}: {facts['data']['train']:,} images, tested on "
        f"{facts['data']['test']:,} (CRC-32 of all: {facts['data']['crc32']}). "
        f"The images of `{facts['dataset']}` belong to it. Loss, accuracy, rate and time of every epoch are in "
        f'`ltpa.pretrained.pretrained_facts("{facts["name"]}")["history"]`.',
        f"{len(history)} epochs, seed {settings['seed']}, ltpa {facts['ltpa']}. Settings that differ from the defaults "
        "of `TrainConfig`: "
        + (", ".join(f"`{key} = {value!r}`" for key, value in changed(settings).items()) or "none")
        + ".",
        "The command that trained it, `DIR` being the folder of the images, and that for lossless data:"
        if settings["dataset"] == "folder" and facts["dataset"] != "folder"
        else "The command that trained it:",
        f"```bash\n{commands(facts)}\n```",
        "## Accuracy by class",
        _by_class(figures),
        "The most frequent confusions: "
        + (
            ", ".join(f"{row['truth']} taken for {row['answer']} ({row['images']})" for row in figures["confusions"])
            or "none"
        )
        + ".",
        f"The accuracy before kernels were rounded to float16: {_p(figures['float32']['accuracy'], 2)}; "
        f"{_p(figures['float32']['same_answers'], 2)} of the answers are the same. All figures: {figures['precision']} "
        "convolutions.",
        *_maps(figures),
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits(facts)),
        "## License",
        "MIT, like ltpa. No image of the data set is contained.",
    ]
    return "\n\n".join(parts) + "\n"


def _maps(figures: Mapping[str, Any]) -> list[str]:
    if not figures["entropy"]:
        return []
    faith = figures["faithfulness"]
    lines = ["| level | entropy, median | 90 % of the images |", "| --- | --- | --- |"]
    lines += [
        f"| {level} | {mid:.2f} | {low:.2f} to {high:.2f} |" for level, (low, mid, high) in figures["entropy"].items()
    ]
    table = ["| map | deletion | insertion | insertion minus center |", "| --- | --- | --- | --- |"]
    for name, row in faith["maps"].items():
        cells = [_number(row[key]) for key in ("deletion", "insertion", "insertion_minus_center")]
        known = name + (" (control)" if name in faith["controls"] else "")
        table.append(f"| {known} | " + " | ".join(cells if name != "center" else [*cells[:2], ""]) + " |")
    found = [
        "## Maps",
        "Entropy of the maps of all test images (1 = uniform, 0 = one position):",
        "\n".join(lines),
        f"Faithfulness: area under the probability of the predicted class while pixels are deleted (low is faithful) "
        f"or inserted (high is faithful) in the order of the map; {faith['images']} test images, balanced over the "
        f"classes, seed {faith['seed']}, {faith['steps']} steps, fill {faith['fill']}; 95 % intervals over images. The "
        "controls know nothing of the picture: a map says something only beyond them.",
        "\n".join(table),
    ]
    if figures["localization"] is None:
        return [*found, "Localization was not measured: these data have no masks."]
    rows = ["| map | pointing | average precision |", "| --- | --- | --- |"]
    rows += [
        f"| {name} | {row['pointing']:.2f} | {row['average_precision']:.2f} |"
        for name, row in figures["localization"].items()
    ]
    return [*found, f"Localization against the exact masks of the same {faith['images']} images:", "\n".join(rows)]


def limits(facts: Mapping[str, Any]) -> list[str]:
    """What these weights cannot do, in sentences."""
    settings, found = facts["settings"], []
    size, classes = settings["image_size"], len(facts["classes"])
    found.append(f"Trained at {size}x{size} pixels; larger pictures are read, and were not measured.")
    found.append(
        f"It answers one of {classes} classes whatever it is shown, often with confidence; it cannot say 'none'."
    )
    if "-pc" in settings["model"] and settings["normalizer"] == "softmax":
        found.append(
            "Softmax with parametrized compatibility (`pc`): the map does not depend on the global feature at all."
        )
    if settings["dataset"] == "folder" and facts["dataset"] != "folder":
        found.append(
            f"Trained and measured on {facts['data']['description']}, not on the lossless `{facts['dataset']}`, "
            "where its accuracy was not measured."
        )
    if settings["train_limit"]:
        found.append(f"Trained on {facts['data']['train']:,} images only.")
    if settings["test_limit"]:
        found.append(f"Measured on {facts['data']['test']:,} test images only.")
    found.append("One seed: how far others scatter was not measured.")
    found.append("A map shows what is weighted, which need not be why the answer was given: see Faithfulness above.")
    return found


def changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from the defaults, in the order of `TrainConfig`."""
    defaults = TrainConfig.defaults()
    return {name: settings[name] for name in defaults if settings.get(name, defaults[name]) != defaults[name]}


def commands(facts: Mapping[str, Any]) -> str:
    """The exact command of the run; where a folder stood for a data set, also the one for the data set itself."""
    settings = {name: value for name, value in changed(facts["settings"]).items() if name != "dataset"}
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    own = facts["settings"]["dataset"]
    lines = [f"python -m ltpa train --dataset {own} {'--data-dir DIR ' if own == 'folder' else ''}{options}".strip()]
    if facts["dataset"] != own:
        lines.append(f"python -m ltpa train --dataset {facts['dataset']} {options}".strip())
    return "\n".join(lines)


def readme_table(all_facts: list[Mapping[str, Any]]) -> str:
    """A table of all weights, for docs/models.md."""
    lines = ["| name | model | trained on | test accuracy [95 % over images] |", "| --- | --- | --- | --- |"]
    for facts in all_facts:
        settings, name = facts["settings"], facts["name"]
        what = f"{facts['data']['description']}, {len(facts['history'])} epochs, seed {settings['seed']}"
        lines.append(
            f"| [`{name}`](../ltpa/weights/{name}.md) | `{settings['model']}`, width {settings['width']:g} | {what} | "
            f"{_percent(facts['figures']['accuracy'])} |"
        )
    return "\n".join(lines)


def _by_class(figures: Mapping[str, Any]) -> str:
    lines = ["| class | accuracy | images |", "| --- | --- | --- |"]
    lines += [f"| {name} | {_p(row['accuracy'])} | {row['images']:,} |" for name, row in figures["by_class"].items()]
    return "\n".join(lines)


def _p(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _percent(interval: Mapping[str, float]) -> str:
    return f"{_p(interval['mean'])} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _number(interval: Mapping[str, float]) -> str:
    if math.isnan(interval["low"]):
        return f"{interval['mean']:.3f}"
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


# --- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m tests.tools pack`."""
    parser.add_argument("run", help="the folder of a complete run")
    parser.add_argument("name", help=f"of the weights, such as {pretrained.DEFAULT}")
    parser.add_argument("--dataset", help="the data set whose images belong to it, where not its own (cifar10)")
    parser.add_argument("--description", help="what it was trained on, in words, for the card")
    parser.add_argument("--data-dir", help="where the images of the run are now, if they were moved")
    parser.add_argument("--images", type=int, default=100, help="for deletion and insertion (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default: 0)")
    parser.add_argument("--precision", default="auto", help="of the measurements (default: auto)")
    parser.add_argument("--device", default="auto", help="(default: auto)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the package)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")


def main(arguments: argparse.Namespace) -> None:
    """Packs a run and prints its card.

    Raises:
        ValueError, FileNotFoundError: see `pack` and `ltpa.load_run`.
    """
    if arguments.write:
        check_marks(arguments.write, BEGIN, END)
    run = load_run(arguments.run, arguments.device)
    if arguments.data_dir:
        run.config = TrainConfig(**{**dataclasses.asdict(run.config), "data_dir": arguments.data_dir})
    began = time.monotonic()
    path = pack(
        run,
        arguments.name,
        dataset=arguments.dataset,
        description=arguments.description,
        images=arguments.images,
        seed=arguments.seed,
        precision=arguments.precision,
        folder=arguments.folder,
        say=lambda text: print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr),
    )
    if arguments.write:
        index = json.loads((path.parent / "index.json").read_text(encoding="utf-8"))
        rows = [load_tensors(path.parent / f"{name}.safetensors")[1] for name in sorted(index)]
        write_between(arguments.write, BEGIN, readme_table(rows), END)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {time.monotonic() - began:.0f} s")
