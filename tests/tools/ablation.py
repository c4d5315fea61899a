"""The measurement of docs/results/03_ablation.md: `python -m tests.tools ablation rates|run|write|levels ...`.

`rates DIR` chooses learning rates; `run DIR` does this, too, and then trains all models; what is done is not repeated.
`write` makes the tables and figures of the page, `levels DIR` those of a trained network of the package.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import ltpa
from ltpa.course.uniform_levels import uniform_levels
from ltpa.data.dataset import Dataset
from ltpa.inference import evaluate_images
from ltpa.metrics.statistics import packed, unpacked
from ltpa.models.cost import gmac, parameters
from tests.tools import ablation_page

PC, UNIFORM, LATE = "vgg-att3-concat-pc", "vgg-att3-concat-uniform", "vgg-late-norm"
PRIMARY = (PC, UNIFORM, LATE, "vgg-att3-concat-add", "vgg-att-concat-uniform")
RATES = (0.04, 0.08, 0.16)
RATE_SEEDS, SEEDS, SECONDARY_SEEDS = (100, 101), tuple(range(8)), (0, 1, 2)
HELD_OUT = 0.1
EPOCHS, BATCH, WIDTH = 4, 250, 0.125
LEVELS_FILE = "levels.json"
SECONDARY: dict[str, dict[str, Any]] = {  # name in the tables: settings
    f"{PC} sigmoid": {"model": PC, "normalizer": "sigmoid"},
    **{
        name: {"model": name}
        for name in (
            "vgg-att3-concat-dp",
            "vgg-att3-concat-sdp",
            "vgg-att3-concat-static",
            "vgg-att3-concat-permuted",
            "vgg-gap",
            "vgg-pan",
            "vgg",
            "vgg-late",
        )
    },
    f"{LATE} width 0.1287": {"model": LATE, "width": 0.1287},  # costs what `add` costs
    **{f"{name} sgd": {"model": name, "optimizer": "sgd"} for name in (PC, UNIFORM, LATE)},
}


@dataclass(frozen=True)
class Job:
    """One training: its name in the tables, its seed, and the settings in which it differs from the others."""

    variant: str
    seed: int
    settings: Mapping[str, Any] = field(hash=False)

    @property
    def name(self) -> str:
        """Name of the file with its results."""
        rate = self.settings.get("learning_rate")
        kind = "rate" if "validation" in self.settings else "run"
        return f"{kind} {self.variant} {'' if rate is None else f'{rate:g} '}{self.seed}".replace(" ", "_")


def rate_jobs() -> list[Job]:
    """Return the trainings that choose a rate for each primary model, on held-out training images."""
    return [
        Job(model, seed, {"model": model, "learning_rate": rate, "validation": HELD_OUT})
        for model in PRIMARY
        for rate in RATES
        for seed in RATE_SEEDS
    ]


def main_jobs(rates: Mapping[str, float]) -> list[Job]:
    """Return the measured trainings, with the chosen rates; secondary models take the flagship's, SGD its default."""
    jobs = [Job(model, seed, {"model": model, "learning_rate": rates[model]}) for seed in SEEDS for model in PRIMARY]
    for name, own in SECONDARY.items():
        rate = {} if "optimizer" in own else {"learning_rate": rates[PC]}
        jobs += [Job(name, seed, {**rate, **own}) for seed in SECONDARY_SEEDS]
    return jobs


def chosen_rates(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return the rate of each model with the highest mean held-out accuracy, the smaller one where two are equal."""
    table = pd.DataFrame([{"variant": r["variant"], "seed": r["seed"], **r["settings"], **r} for r in results])
    means = table.groupby(["variant", "learning_rate"])["accuracy"].mean().sort_index()
    return {str(model): float(of.idxmax()[1]) for model, of in means.groupby("variant")}


@cache
def _data(data_dir: str, train_limit: int | None, test_limit: int | None) -> Dataset:
    return ltpa.load_data("folder", data_dir, train_limit=train_limit, test_limit=test_limit)


def execute(job: Job, out: Path, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Train and test one network; write and return its results."""
    torch.set_num_threads(1)
    data = _data(shared["data_dir"], shared["train_limit"], shared["test_limit"])
    values = {"width": WIDTH, "epochs": EPOCHS, "batch_size": BATCH, "dataset": "folder", **shared, **job.settings}
    config = ltpa.TrainConfig(**values, seed=job.seed, run_dir=str(out / "runs" / job.name))
    run = ltpa.fit(config, ltpa.hold_out(data, HELD_OUT) if config.validation else data, progress=False)
    result: dict[str, Any] = {"variant": job.variant, "seed": job.seed, "settings": dict(job.settings)}
    result |= {"device": torch.cuda.get_device_name() if run.model.mean.is_cuda else "cpu", "torch": torch.__version__}
    result |= {"history": run.history, "accuracy": run.history[-1]["test_accuracy"]}
    result |= {"parameters": parameters(run.model), "gmac": gmac(run.model)}
    result |= {"train_images": len(data.train), "epochs": run.config.epochs, "rate": run.config.learning_rate}
    if not config.validation:
        correct = evaluate_images(run.model, data.test, config.precision).correct
        result |= {"images": len(correct), "accuracy": correct.double().mean().item(), "correct": packed(correct)}
    part = out / f"{job.name}.part"
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(out / f"{job.name}.json")
    shutil.rmtree(out / "runs" / job.name)
    return result


def execute_all(jobs: list[Job], out: Path, shared: Mapping[str, Any], pool: Executor) -> list[dict[str, Any]]:
    """Execute the jobs that have no results yet; return the results of all. One error names those that failed."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not (out / f"{job.name}.json").is_file()]
    failed = []
    futures = {pool.submit(execute, job, out, shared): job for job in missing}
    for number, future in enumerate(as_completed(futures), start=1):
        job = futures[future]
        try:
            accuracy, history = (future.result()[name] for name in ("accuracy", "history"))
            words = f"{accuracy:.4f} in {sum(row['seconds'] for row in history):.0f} s"
        except Exception as error:
            failed.append(job.name)
            words = f"failed: {type(error).__name__}: {error}"
        print(f"{number} of {len(missing)} {job.name}: {words}", flush=True)
    if failed:
        raise ValueError(f"{len(failed)} trainings failed, the same command tries them again: {', '.join(failed)}")
    return list(read_results(out, jobs))


def read_results(out: Path, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Return the results of jobs."""
    for job in jobs:
        yield json.loads((out / f"{job.name}.json").read_text("utf-8"))


def write_levels_file(out: Path, name: str, answers: Mapping[str, torch.Tensor]) -> None:
    """Write the answers of a network with uniform levels, so that `write` can make their table elsewhere."""
    out.mkdir(parents=True, exist_ok=True)
    values = {level: {"images": len(correct), "correct": packed(correct)} for level, correct in answers.items()}
    (out / LEVELS_FILE).write_text(json.dumps({"name": name, "answers": values}), encoding="utf-8")


def read_levels_file(out: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Return what `write_levels_file` has written."""
    file = json.loads((out / LEVELS_FILE).read_text("utf-8"))
    answers = {level: torch.from_numpy(unpacked(v["correct"], v["images"])) for level, v in file["answers"].items()}
    return file["name"], answers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools ablation`."""
    parser.add_argument("what", choices=["rates", "run", "write", "levels"])
    parser.add_argument("data_dir", nargs="?", metavar="DIR", help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="results (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="trainings at once (default 1)")
    parser.add_argument("--model", default="cifar10-small", help="of `levels` (default: %(default)s)")
    parser.add_argument("--train-limit", type=int, help="to try the chain: fewer training images")
    parser.add_argument("--test-limit", type=int, help="to try the chain: fewer test images")
    parser.add_argument("--tiny", action="store_true", help="to try the chain: 1/32 width and one epoch")


def main(arguments: argparse.Namespace) -> None:
    """Run one step of the measurement."""
    if arguments.what != "write" and not arguments.data_dir:
        raise ValueError(f"name the folder of the images: python -m tests.tools ablation {arguments.what} DIR")
    limits = {"train_limit": arguments.train_limit, "test_limit": arguments.test_limit}
    if arguments.what == "levels":
        data = ltpa.load_data("folder", arguments.data_dir, **limits)
        answers = uniform_levels(ltpa.load_pretrained(arguments.model), data)
        write_levels_file(arguments.out, arguments.model, answers)
        ablation_page.write_levels(arguments.model, answers)
        return
    if arguments.what == "write":
        rates = list(read_results(arguments.out, rate_jobs()))
        jobs = main_jobs(chosen_rates(rates))
        trained = [job for job in jobs if job.variant in PRIMARY or (arguments.out / f"{job.name}.json").is_file()]
        runs = list(read_results(arguments.out, trained))
        ablation_page.write_page(rates, runs, PRIMARY)
        if (arguments.out / LEVELS_FILE).is_file():
            ablation_page.write_levels(*read_levels_file(arguments.out))
        return
    shared = {"data_dir": arguments.data_dir, **limits}
    sized = _tiny if arguments.tiny else lambda job: job
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
        best = chosen_rates(execute_all(list(map(sized, rate_jobs())), arguments.out, shared, pool))
        print(f"chosen rates: {best}")
        if arguments.what == "run":
            execute_all(list(map(sized, main_jobs(best))), arguments.out, shared, pool)


def _tiny(job: Job) -> Job:
    return replace(job, settings={"width": 1 / 32, **job.settings, "epochs": 1})
