"""`python -m tests.tools pack RUN NAME`: a run becomes weights that come with the package, measured, with a model card.

Kernels and matrices are stored in float16. Whatever would lose more than rounding (tiny or huge values), and all
vectors (biases, batch norm with its running statistics), stay in float32: a variance must neither overflow nor vanish.
The card and the table in docs/models.md are made from the facts in the file alone, so they agree with it.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltpa import metrics, pretrained
from ltpa._version import __version__
from ltpa.config import TrainConfig
from ltpa.data.dataset import Dataset
from ltpa.data.split import stratified
from ltpa.inference import attend, choose_precision, evaluate_images
from ltpa.metrics.statistics import Interval, bootstrap_interval
from ltpa.models.classifier import ImageClassifier
from ltpa.training.checkpoint import load_tensors, save_tensors, write
from ltpa.training.run import Run, fingerprint, load_run, model_of, snapshot_indices
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
    snapshots: int | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write `NAME.safetensors`, `NAME.md` (the model card) and their entry in `index.json`; return the file of weights.

    Args:
        run: a complete run; it is measured on its data, which must still be there.
        name: small letters, digits and hyphens; weights of that name are replaced.
        dataset: the data set whose images others should look at, if it is not the one that was trained on: "cifar10"
            for a run on CIFAR-10 as a folder of JPEG files. It must have the same classes in the same order.
        description: the data that were trained on, in words.
        images: the number of test images, balanced over the classes, for deletion and insertion.
        seed: of the choice of these images and of controls.
        precision: of the measurements, see `ltpa.attend`.
        snapshots: the number of test images whose maps by epoch are stored, too; None is all that the run kept.
        folder: where to write; None is the package.
        say: prints a line of progress.
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
    now, trained_on = fingerprint(data), json.loads((run.path / "config.json").read_text(encoding="utf-8"))["data"]
    if now != trained_on:
        raise ValueError(f"these are not the images that {run.path} was trained on: {now} here, {trained_on} there")
    packed = rounded(run.model)
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in packed.items()}
    numbers, maps = packed_snapshots(run, data, snapshots)
    model = model_of(run.config, run.classes, tensors, path, run.model.mean.device.type)
    facts = {
        "name": name,
        "settings": run.config.identity(),
        "dataset": dataset or run.config.dataset,
        "classes": list(run.classes),
        "history": run.history,
        "data": {"description": description or run.config.dataset, **now},
        "figures": measured(run.model, model, data, images, seed, precision, say),
        "parameters": sum(value.numel() for value in run.model.parameters()),
        pretrained.SNAPSHOTS: numbers,
        "ltpa": __version__,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(path, packed | maps, facts)
    content, index_path = path.read_bytes(), folder / "index.json"
    index = json.loads(index_path.read_text(encoding="utf-8")) if index_path.is_file() else {}
    index[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    write(index_path, (json.dumps(dict(sorted(index.items())), indent=2) + "\n").encode())
    write(folder / f"{name}.md", card(load_tensors(path)[1]).encode())
    return path


def packed_snapshots(run: Run, data: Dataset, limit: int | None) -> tuple[list[int], dict[str, Tensor]]:
    """Return the numbers of the test images whose maps are stored, and the maps (float16) by their name in the file."""
    maps_by_epoch = run.snapshots()
    kept = len(next(iter(maps_by_epoch[0].values()))) if 0 in maps_by_epoch else 0
    if limit is not None and limit > kept:
        raise ValueError(f"snapshots={limit}: {run.path} has the maps of {kept} images from the first epoch on")
    count = kept if limit is None else limit
    maps = {
        f"{pretrained.SNAPSHOTS}/{epoch:04d}/{level}": level_maps[:count].half().contiguous()
        for epoch, by_level in maps_by_epoch.items()
        for level, level_maps in by_level.items()
        if count
    }
    return snapshot_indices(data, kept)[:count].tolist() if count else [], maps


def rounded(model: ImageClassifier) -> dict[str, Tensor]:
    """Return the state of a model with its kernels in float16."""
    kernels = {key for key, value in model.named_parameters() if value.ndim > 1}
    state = {key: halved(v.cpu()) if key in kernels else v.cpu() for key, v in model.state_dict().items()}
    size = sum(value.numel() * value.element_size() for value in state.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"{size / 1e6:.1f} MB are more than the {MOST_BYTES / 1e6:g} MB allowed: choose a smaller width"
        )
    return state


def halved(values: Tensor) -> Tensor:
    """Return values in float16, or as they are where that would lose more than rounding does."""
    half = values.half()
    error = (half.float() - values).norm() / values.norm().clamp_min(1e-30)
    return half if half.isfinite().all() and error < _ROUNDING else values


def measured(
    exact: ImageClassifier,
    model: ImageClassifier,
    data: Dataset,
    images: int,
    seed: int,
    precision: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return figures for JSON: of all test images, of `images` of them for what is slow, and of the exact weights.

    Means have 95 % intervals over images (bootstrap), {"mean", "low", "high"}.
    """
    test = data.test
    say(f"accuracy and entropies on {len(test)} test images, also with the float32 weights")
    before, after = (evaluate_images(one, test, precision) for one in (exact, model))
    lost = (before.correct.double().mean() - after.correct.double().mean()).item()
    if lost > LOST:
        raise ValueError(f"float16 costs too much: {100 * lost:.2f} points of accuracy; nothing is written")
    confusions = torch.stack([test.labels, after.predictions])[:, ~after.correct].unique(dim=1, return_counts=True)
    worst = sorted(zip(confusions[1].tolist(), confusions[0].T.tolist(), strict=True), key=lambda r: (-r[0], r[1]))
    some = test[stratified(test.labels, min(images, len(test)), seed)]
    maps = dict(attend(model, some.images, precision).maps)
    controls = metrics.controls(len(some), (some.images.shape[2], some.images.shape[3]), seed)
    members = {name: test.labels == label for label, name in enumerate(data.classes)}
    return {
        "images": len(test),
        "precision": str(choose_precision(precision, model.mean.device)).removeprefix("torch."),
        "accuracy": _interval(after.correct),
        "float32": {
            "accuracy": before.correct.double().mean().item(),
            "same_answers": (before.predictions == after.predictions).double().mean().item(),
        },
        "by_class": {
            name: {"accuracy": after.correct[chosen].double().mean().item(), "images": int(chosen.sum())}
            for name, chosen in members.items()
            if chosen.any()
        },
        "confusions": [
            {"truth": data.classes[truth], "answer": data.classes[answer], "images": count}
            for count, (truth, answer) in worst[:CONFUSIONS]
        ],
        "entropy": {
            level: values.nanquantile(torch.tensor([0.05, 0.5, 0.95]).to(values)).tolist()
            for level, values in after.entropies.items()
        },
        "faithfulness": _faithfulness(model, some.images, maps, controls, seed, precision, say),
        "localization": None
        if some.masks is None
        else {name: metrics.localization(m, some.masks).mean().to_dict() for name, m in (maps | controls).items()},
    }


def _faithfulness(
    model: ImageClassifier,
    images: Tensor,
    maps: dict[str, Tensor],
    controls: dict[str, Tensor],
    seed: int,
    precision: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Deletion and insertion of maps and controls, and what each map has over the center, image by image."""
    how = {"fill": "mean", "seed": seed}
    curves = {}
    for name, values in (maps | controls).items():
        say(f"deletion and insertion on {len(images)} of them: {name}")
        curves[name] = metrics.deletion_insertion(model, images, values, precision=precision, **how)
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
    return {"images": len(images), **how, "controls": list(controls), "maps": rows}


def _interval(values: Tensor) -> dict[str, float]:
    interval = bootstrap_interval(values.double().numpy())
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


# --- the card


def card(facts: Mapping[str, Any]) -> str:
    """Return the model card, in Markdown, from the facts of a file of weights and nothing else."""
    settings, figures, name = facts["settings"], facts["figures"], facts["name"]
    size, exact = settings["image_size"], figures["float32"]
    differing = ", ".join(f"`{key} = {value!r}`" for key, value in changed(settings).items()) or "none"
    confusions = ", ".join(
        f"{row['truth']} taken for {row['answer']} ({row['images']})" for row in figures["confusions"]
    )
    rows = [(label, _p(row["accuracy"]), f"{row['images']:,}") for label, row in figures["by_class"].items()]
    parts = [
        f"# {name}",
        f"`{settings['model']}` at {settings['width']:g} of the paper's channels, {facts['parameters']:,} parameters, "
        f"for images of {size}x{size} pixels in {len(facts['classes'])} classes: {', '.join(facts['classes'])}. "
        f"Test accuracy **{_percent(figures['accuracy'])}** ({figures['images']:,} images; 95 % over images, "
        "bootstrap). Made by `python -m tests.tools pack`; every number here is in the file's metadata as well.",
        f'```python\nimport ltpa\n\nmodel = ltpa.load_pretrained("{name}")\nltpa.show("photo.jpg", model)\n```',
        "## Data and recipe",
        f"Trained on {facts['data']['description']}: {facts['data']['train']:,} images, tested on "
        f"{facts['data']['test']:,} (CRC-32 of all: {facts['data']['crc32']}). The images of `{facts['dataset']}` "
        "belong to it. Loss, accuracy, rate and time of every epoch are in "
        f'`ltpa.pretrained.pretrained_facts("{name}")["history"]`.',
        f"{len(facts['history'])} epochs, seed {settings['seed']}, ltpa {facts['ltpa']}. Settings that differ from the "
        f"defaults of `TrainConfig`: {differing}.",
        "The command that trained it, `DIR` being the folder of the images, and that for lossless data:"
        if settings["dataset"] == "folder" != facts["dataset"]
        else "The command that trained it:",
        f"```bash\n{commands(facts)}\n```",
        "## Accuracy by class",
        _table(("class", "accuracy", "images"), rows),
        f"The most frequent confusions: {confusions or 'none'}.",
        f"The accuracy before kernels were rounded to float16: {_p(exact['accuracy'], 2)}; "
        f"{_p(exact['same_answers'], 2)} of the answers are the same. All figures: {figures['precision']} "
        "convolutions.",
        *_maps(figures),
        *_stored_snapshots(facts),
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
    entropies = [
        (level, f"{mid:.2f}", f"{low:.2f} to {high:.2f}") for level, (low, mid, high) in figures["entropy"].items()
    ]
    areas = [
        (
            name + (" (control)" if name in faith["controls"] else ""),
            *(Interval(**row[key]).text(3) for key in ("deletion", "insertion")),
            "" if name == "center" else Interval(**row["insertion_minus_center"]).text(3, sign=True),
        )
        for name, row in faith["maps"].items()
    ]
    parts = [
        "## Maps",
        "Entropy of the maps of all test images (1 = uniform, 0 = one position):",
        _table(("level", "entropy, median", "90 % of the images"), entropies),
        f"Faithfulness: area under the probability of the predicted class while pixels are deleted (low is faithful) "
        f"or inserted (high is faithful) in the order of the map; {faith['images']} test images, balanced over the "
        f"classes, seed {faith['seed']}, fill {faith['fill']}; 95 % intervals over images. The "
        "controls know nothing of the picture: a map says something only beyond them.",
        _table(("map", "deletion", "insertion", "insertion minus center"), areas),
    ]
    if figures["localization"] is None:
        return [*parts, "Localization was not measured: these data have no masks."]
    rows = [(m, f"{r['pointing']:.2f}", f"{r['average_precision']:.2f}") for m, r in figures["localization"].items()]
    parts.append(f"Localization against the exact masks of the same {faith['images']} images:")
    return [*parts, _table(("map", "pointing", "average precision"), rows)]


def _stored_snapshots(facts: Mapping[str, Any]) -> list[str]:
    numbers = facts.get(pretrained.SNAPSHOTS)
    if not numbers:
        return []
    listed = ", ".join(map(str, numbers))
    return [f"The file also has the maps of the test images {listed} before training and after every epoch (float16)."]


def limits(facts: Mapping[str, Any]) -> list[str]:
    """Return what these weights cannot do, in sentences."""
    settings, data = facts["settings"], facts["data"]
    size = settings["image_size"]
    sentences = {
        f"Trained at {size}x{size} pixels; larger pictures are read, and were not measured.": True,
        f"It answers one of {len(facts['classes'])} classes whatever it is shown, often with confidence; it cannot say "
        "'none'.": True,
        "Softmax with parametrized compatibility (`pc`): the map does not depend on the global feature at all.": "-pc"
        in settings["model"]
        and settings["normalizer"] == "softmax",
        f"Trained and measured on {data['description']}, not on the lossless `{facts['dataset']}`, where its accuracy "
        "was not measured.": settings["dataset"] == "folder" != facts["dataset"],
        f"Trained on {data['train']:,} images only.": bool(settings["train_limit"]),
        f"Measured on {data['test']:,} test images only.": bool(settings["test_limit"]),
        "One seed: how far others scatter was not measured.": True,
        "A map shows what is weighted, which need not be why the answer was given: see Faithfulness above.": True,
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the defaults, in the order of `TrainConfig`."""
    defaults = TrainConfig.defaults()
    return {name: settings[name] for name in defaults if settings.get(name, defaults[name]) != defaults[name]}


def commands(facts: Mapping[str, Any]) -> str:
    """Return the exact command of the run; after a folder in place of a data set, also that for the data set itself."""
    settings = {name: value for name, value in changed(facts["settings"]).items() if name != "dataset"}
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    own = facts["settings"]["dataset"]
    lines = [f"python -m ltpa train --dataset {own} {'--data-dir DIR ' if own == 'folder' else ''}{options}".strip()]
    if facts["dataset"] != own:
        lines.append(f"python -m ltpa train --dataset {facts['dataset']} {options}".strip())
    return "\n".join(lines)


def weights_table(all_facts: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of all weights, for docs/models.md."""
    rows = [
        (
            f"[`{facts['name']}`](../ltpa/weights/{facts['name']}.md)",
            f"`{facts['settings']['model']}`, width {facts['settings']['width']:g}",
            f"{facts['data']['description']}, {len(facts['history'])} epochs, seed {facts['settings']['seed']}",
            _percent(facts["figures"]["accuracy"]),
        )
        for facts in all_facts
    ]
    return _table(("name", "model", "trained on", "test accuracy [95 % over images]"), rows)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows))


def _p(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _percent(interval: Mapping[str, float]) -> str:
    return Interval(**interval).text(1, 100).replace(" [", " % [")


# --- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools pack`."""
    parser.add_argument("run", help="the folder of a complete run")
    parser.add_argument("name", help=f"of the weights, such as {pretrained.DEFAULT}")
    parser.add_argument("--dataset", help="the data set whose images belong to it, where not its own (cifar10)")
    parser.add_argument("--description", help="what it was trained on, in words, for the card")
    parser.add_argument("--data-dir", help="where the images of the run are now, if they were moved")
    parser.add_argument("--images", type=int, default=100, help="for deletion and insertion (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default: 0)")
    parser.add_argument("--precision", default="auto", help="of the measurements (default: auto)")
    parser.add_argument(
        "--snapshots", type=int, help="test images whose maps of every epoch are stored too (default: all of the run)"
    )
    parser.add_argument("--device", default="auto", help="(default: auto)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the package)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")


def main(arguments: argparse.Namespace) -> None:
    """Pack a run and print its card."""
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
        snapshots=arguments.snapshots,
        folder=arguments.folder,
        say=lambda text: print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr),
    )
    if arguments.write:
        index = json.loads((path.parent / "index.json").read_text(encoding="utf-8"))
        rows = [load_tensors(path.parent / f"{name}.safetensors")[1] for name in sorted(index)]
        write_between(arguments.write, BEGIN, weights_table(rows), END)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {time.monotonic() - began:.0f} s")
