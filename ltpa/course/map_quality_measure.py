"""Measure every map of trained networks, image by image; every network alone, so that many can be measured at once."""

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from ..data.dataset import Dataset, Split, load_data
from ..inference import attend
from ..maps import entropy
from ..metrics.contrast import class_contrast
from ..metrics.deletion import delete_cells, train_with_hidden_cells
from ..metrics.faithfulness import Curves, deletion_insertion, permuted_attention
from ..metrics.interventions import Interventions, changed_scenes, effect_prediction, intervene
from ..metrics.overlap import MEASURES, best_threshold, jaccard, localization_tensors
from ..metrics.sanity import entropy_rise, layers_top_down, randomization
from ..models.classifier import ImageClassifier
from ..progress import Progress
from ..training.run import Run, load_run
from .map_quality_maps import NETWORK, Method, compute_maps, kind_without_network, methods_of, without_network

ABOUT = ("model", "seed", "map", "family", "kind", "layer")  # columns that say what was measured
VALUES = (
    *(*MEASURES, "jaccard", "entropy"),  # where the map lies
    *("prediction", "prediction_per_pixel", "gain", "deletion", "insertion", "permuted"),  # what the answer does
    *("own", "answer", "sanity", "entropy_rise"),  # for other classes, and without what was learned
)
ANSWERS = ("right", "right_without_object")  # of the network itself, 0 or 1 for each image
_PUBLISHED = ("average_precision", "jaccard", "prediction", "prediction_per_pixel", "gain", "permuted", "answer")
_NO_TEXT = {"map": "", "family": "", "layer": ""}
_TEST_SEED = 1  # of the drawn test pictures, see `changed_scenes`
_CURVE = ("curve", "x", "value")


@dataclass(frozen=True)
class How:
    """What is measured on which images: the first `images` test images, and `held_out` others to choose on.

    `costly` is how many of the images the slow measures take, `draws` how often the weights become random, and
    `hidden_epochs` how often a copy of the network sees the training pictures with parts hidden; with 0 there is no
    in-domain deletion.
    """

    methods: tuple[str, ...] = ("gradcam", "saliency", "occlusion", "cam")
    images: int = 200
    held_out: int = 100
    costly: int = 50
    draws: int = 1
    hidden_epochs: int = 1
    fill: str = "mean"
    seed: int = 0

    def split(self, test: Split) -> tuple[Split, Split]:
        """Return the test images to measure, and others to choose on."""
        needed = self.images + self.held_out
        if needed > len(test):
            raise ValueError(
                f"images={self.images} and held_out={self.held_out} need {needed} test images, "
                f"and there are {len(test)}; lower them"
            )
        if test.masks is None:
            raise ValueError("maps are measured against masks, which these data lack; the dataset 'shapes' has them")
        return test[: self.images], test[self.images : needed]


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        by_image: a row for each image under each map: `ABOUT`, "image", `VALUES` (NaN if not measured), and, the same
            for all images of a map, "held_out", the mean average precision on the held-out images; "threshold", which
            was best there; "ms", milliseconds for the map of an image. Rows of the kind "network" have `ANSWERS`
            instead: whether the network names the object, and whether it still does where the object is not drawn.
        curves: `ABOUT`, and means over the images: curve "deletion" and "insertion" (x: the fraction of the pixels) and
            "sanity" (x: the last layer that was made random, from the top down).
    """

    by_image: pd.DataFrame
    curves: pd.DataFrame

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return what several networks gave."""
        return cls(
            *(pd.concat([getattr(p, name) for p in parts], ignore_index=True) for name in ("by_image", "curves"))
        )

    def small(self) -> Self:
        """Return what is published: by image only what the effects rest on, and curves as means over the seeds (-1)."""
        columns = [*ABOUT, "image", *_PUBLISHED, *ANSWERS, "held_out"]
        lines = [column for column in (*ABOUT, *_CURVE) if column not in ("seed", "value")]
        curves = self.curves.groupby(lines, sort=False)["value"].mean().reset_index().assign(seed=-1)
        return replace(self, by_image=self.by_image[columns], curves=curves[[*ABOUT, *_CURVE]])

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>_by_image.csv.gz` and `<name>_curves.csv`; where the second is, both are whole."""
        folder.mkdir(parents=True, exist_ok=True)
        for part, path in zip((self.by_image, self.curves), _paths(folder, name), strict=True):
            unfinished = path.with_name(f"{path.name}.part")
            compression: Any = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None  # no date in the file
            part.to_csv(unfinished, index=False, float_format=_short, lineterminator="\n", compression=compression)
            unfinished.replace(path)

    @classmethod
    def read(cls, folder: Path, name: str) -> Self:
        """Read what `write` has written."""
        by_image, curves = (
            pd.read_csv(path, dtype={"layer": str, "x": str, "threshold": str}).fillna(_NO_TEXT)
            for path in _paths(folder, name)
        )
        return cls(by_image, curves)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}_by_image.csv.gz", folder / f"{name}_curves.csv"


def measure_runs(runs: Mapping[tuple[str, int], Path], how: How, workers: int = 1, progress: bool = True) -> Measured:
    """Measure the runs in these folders, by the names and seeds that the table shows; keep the results beside them.

    What is already measured in the same way is read. With several workers each measures one run at a time in a process
    of its own, on one core.
    """
    jobs = [(name, seed, path, how) for (name, seed), path in runs.items()]
    if not jobs:
        raise ValueError("there is no run whose maps could be measured")
    parts: list[Measured] = []
    with Progress(len(jobs), show=progress) as bar:
        for job, part in zip(jobs, _results(jobs, workers), strict=True):
            parts.append(part)
            bar.update(len(parts), partial(_title, job))
    return Measured.join(parts)


def _results(jobs: Sequence[tuple[str, int, Path, How]], workers: int) -> Iterator[Measured]:
    if workers == 1:
        yield from map(_measure_run, jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_core) as pool:
        yield from pool.map(_measure_run, jobs)


def _title(job: tuple[str, int, Path, How]) -> tuple[str, str]:
    return job[0], f"seed {job[1]}"


def _one_core() -> None:
    torch.set_num_threads(1)


def is_measured(path: Path, how: How) -> bool:
    """Return whether the maps of the run in a folder have been measured in this way."""
    return _paths(path, _name(load_run(path), how))[-1].is_file()


def _name(run: Run, how: How) -> str:
    """Return how the files of a measurement begin: another name for other weights or another measurement."""
    digest = hashlib.sha256(json.dumps(asdict(how)).encode())
    for weights in run.model.state_dict().values():
        digest.update(weights.cpu().numpy().tobytes())
    return f"maps-{digest.hexdigest()[:12]}"


def _measure_run(job: tuple[str, int, Path, How]) -> Measured:
    name, seed, path, how = job
    run = load_run(path)
    folder, file = Path(path), _name(run, how)
    if _paths(folder, file)[-1].is_file():
        measured = Measured.read(folder, file)
        for part in (measured.by_image, measured.curves):
            part["model"] = name
        return measured
    data = _data(run.config.train_limit, run.config.test_limit, run.config.side)
    measured = measure(run.model, *how.split(data.test), how, data.train, name, seed)
    measured.write(folder, file)
    return measured


@lru_cache(1)
def _data(train_limit: int | None, test_limit: int | None, side: int) -> Dataset:
    """Return the drawn pictures of a run, which runs that are measured one after another share."""
    return load_data("shapes", train_limit=train_limit, test_limit=test_limit, image_size=side)


def measure(
    model: ImageClassifier, images: Split, held_out: Split, how: How, train: Split, name: str = "", seed: int = 0
) -> Measured:
    """Measure all maps of a network, and those of none, on these images; thresholds are chosen on the held-out ones.

    The images are the first drawn test pictures, so that they can be drawn again with one thing changed. The training
    images are those on which a copy of the network learns to do without parts of a picture.
    """
    assert images.masks is not None
    assert held_out.masks is not None
    few, target = images.images[: how.costly], attend(model, images.images, "fp32").logits.argmax(1)
    plan = methods_of(model, images.images[:1], how.methods)
    own = compute_maps(plan, model, images.images, target)
    others = compute_maps(plan, model, held_out.images, None)
    maps = {key: value for key, (value, _) in own.items()} | without_network(images.images, images.masks, how.seed)
    chosen_on = {key: value for key, (value, _) in others.items()}
    chosen_on |= without_network(held_out.images, held_out.masks, how.seed + 1)
    effects = intervene(model, images.images, changed_scenes(images.images, _TEST_SEED), precision="fp32")
    sanity = _sanity(model, few, target[: len(few)], plan, how)
    redrawn = _on_other_terms(model, few, target[: len(few)], plan, how)
    hider = train_with_hidden_cells(model, train, how.seed, how.hidden_epochs) if how.hidden_epochs else None

    rows, curves = list[dict[str, Any]](), list[dict[str, Any]]()
    run = {"model": name, "seed": seed}
    for key, values in maps.items():
        about = run | _about(key, plan.get(key))
        predicted = effect_prediction(values, effects)
        by_image = localize(values, images.masks, chosen_on[key], held_out.masks) | redrawn.get(key, {})
        by_image |= {measure: predicted[measure] for measure in ("prediction", "prediction_per_pixel")}
        deleted = deletion_insertion(model, few, values[: len(few)], target[: len(few)], fill=how.fill, seed=how.seed)
        by_image |= {"deletion": deleted.deletion_area, "insertion": deleted.insertion_area}
        if hider is not None:
            hidden = delete_cells(hider, few, values[: len(few)], target[: len(few)], seed=how.seed, precision="fp32")
            by_image["gain"] = hidden.gain
        by_image |= {"ms": own[key][1]} if key in own else {}
        for layer, agreement in sanity.get(key, {}).items():
            curves.append(about | {"curve": "sanity", "x": layer, "value": agreement.nanmean().item()})
            by_image["sanity"] = agreement  # the last one stays: all layers
        rows += _by_image(about, by_image, len(images))
        curves += [about | point for point in _points(deleted)]
    answers = {"right": target == images.labels, "right_without_object": _without_object(effects) == images.labels}
    rows += _by_image(run | {"map": "", "family": "", "kind": NETWORK, "layer": ""}, answers, len(images))
    columns = [*ABOUT, "image", *VALUES, *ANSWERS, "held_out", "threshold", "ms"]
    return Measured(pd.DataFrame(rows, columns=columns), pd.DataFrame(curves, columns=[*ABOUT, *_CURVE]))


def _on_other_terms(
    model: ImageClassifier, images: Tensor, target: Tensor, plan: Mapping[str, Method], how: How
) -> dict[str, dict[str, Tensor]]:
    """Return map -> measure -> values (K,) of what needs other maps: of permuted or random weights, of other scenes."""
    scenes = load_data("shapes", train_limit=1, test_limit=len(images), objects=2).test
    contrast = class_contrast(model, scenes, lambda x, classes: _maps_alone(plan, model, x, classes))
    rise = entropy_rise(model, images, lambda net, x: _maps_alone(plan, net, x, target), seed=how.seed, draws=how.draws)
    results = {
        key: {"own": contrast[key]["own"], "answer": contrast[key]["answer"], "entropy_rise": rise[key]["difference"]}
        for key in plan
    }
    if hasattr(model, "attention"):
        for level, moved in permuted_attention(model, images, how.seed).items():
            results[level]["permuted"] = moved
    return results


def _maps_alone(plan: Mapping[str, Method], model: Any, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {key: maps for key, (maps, _) in compute_maps(plan, model, images, target).items()}


def _without_object(effects: Interventions) -> Tensor:
    return effects.answers[:, effects.names.index("no object")]


def _points(deleted: Curves) -> Iterator[dict[str, Any]]:
    for curve, values in (("deletion", deleted.deletion), ("insertion", deleted.insertion)):
        for fraction, value in zip(deleted.fractions.tolist(), values.mean(0).tolist(), strict=True):
            yield {"curve": curve, "x": f"{fraction:.4f}", "value": value}


def _about(key: str, method: Method | None) -> dict[str, Any]:
    if method is None:
        return {"map": key, "family": key, "kind": kind_without_network(key), "layer": ""}
    return {"map": key, "family": method.family, "kind": method.kind, "layer": method.layer}


def _by_image(about: Mapping[str, Any], values: Mapping[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each image; costly measures stop early."""
    lists = {
        key: value.float().tolist() if isinstance(value, Tensor) else [value] * count for key, value in values.items()
    }
    for image in range(count):
        yield {**about, "image": image} | {key: each[image] for key, each in lists.items() if image < len(each)}


def localize(maps: Tensor, masks: Tensor, held_out: Tensor, held_out_masks: Tensor) -> dict[str, Any]:
    """Return how well maps (N, H, W) find and segment objects, at the best threshold of the held-out maps."""
    threshold = best_threshold(held_out, held_out_masks)
    return {
        **localization_tensors(maps, masks),
        "jaccard": jaccard(threshold.mark(maps), masks),
        "entropy": entropy(maps),
        "held_out": localization_tensors(held_out, held_out_masks)["average_precision"].nanmean().item(),
        "threshold": str(threshold),
    }


def _sanity(
    model: ImageClassifier, images: Tensor, target: Tensor, plan: Mapping[str, Method], how: How
) -> dict[str, dict[str, Tensor]]:
    """Return map -> layer -> how alike the maps (N,) still are when it and all layers above it are random.

    This is the absolute rank agreement, since an inverted map keeps its structure; the mean over the draws. The layers
    are the head, the attention, a third of the trunk and all of it.
    """
    layers = layers_top_down(model, images)
    trunk = [layer for layer in layers if layer.startswith("trunk.")]
    above = [layer for layer in layers if layer not in trunk]
    stops = list(dict.fromkeys([above[0], above[-1], trunk[len(trunk) // 3], trunk[-1]]))
    similarities = randomization(
        model,
        images,
        lambda net, x: _maps_alone(plan, net, x, target),
        stops=stops,
        seed=how.seed,
        draws=how.draws,
    )
    return {key: {stop: similarities[stop][key]["rank_agreement"] for stop in stops} for key in plan}
