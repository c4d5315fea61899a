"""`python -m tests.tools benchmark`: how fast training is here, beside a plain loop and beside what the machine can do.

All variants take turns, several times over, so that whatever else the machine does hits all of them alike.
"""

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import Field
from tqdm import tqdm

from ltpa.__main__ import add_options, settings_from
from ltpa.config import (
    BatchSize,
    Count,
    Device,
    ModelName,
    Precision,
    SettingsBase,
    TrainConfig,
    Width,
    settings,
)
from ltpa.data.dataset import Split
from ltpa.data.shapes import CLASSES, draw_shapes
from ltpa.inference import choose_device, choose_precision
from ltpa.models.cost import gmac
from tests.tools.beside import beside
from tests.tools.loops import AHEAD, Measures, our_batches, our_loop, plain_loop
from tests.tools.model_table import REFERENCE
from tests.tools.roofline import bare_convolutions, convolutions, matrix_product

PLAIN, OURS, DATA, BARE = "plain", "ours", "data and augmentation alone", "bare convolutions"
CONTROL = f"ours, {REFERENCE}"
COMPILED = "ours, with torch.compile"
BESIDE = {1: "ours beside one other program", 2: "ours beside two other programs"}
_DRAWN, _REPEATED = 2**24, 2**26  # bytes: of the pictures that are drawn, and of the set that they are repeated to


@settings
class Settings(SettingsBase):
    """What is timed, and for how long."""

    model: ModelName = Field("vgg-att3-concat-pc", description="a name of ltpa.list_models()")
    width: Width = Field(0.125, description="factor on the channels")
    batch_size: BatchSize = Field(64, description="images a step")
    image_size: Annotated[int, Field(ge=32, le=1024)] = Field(32, description="side in pixels")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    precision: Precision = Field("auto", description="of the convolutions")
    seconds: Annotated[float, Field(gt=0, le=3600)] = Field(2.0, description="of a turn of each variant")
    steps: Count | None = Field(None, description="of a turn, instead of seconds")
    repeats: Count = Field(3, description="turns of each variant")
    beside: bool = Field(False, description="time ours beside other programs too, each with two threads")
    compile: bool = Field(False, description="try torch.compile too, which takes a minute on a CPU")


@dataclass
class Variant:
    """What takes turns.

    Attributes:
        name: what the table calls it.
        start: makes a generator whose every `next` is one step.
        images: of a step; 0 where it has none.
        operations: floating-point operations of a step; 0 where they say nothing.
        model, dtype, layout: what the table says of it.
        ahead: steps whose data may be ready when it starts, because workers load them.
        rates: steps a second, of every turn.
        cpu: seconds of processor time a step, of every turn.
        kept, peak: bytes on the GPU between steps, and at most.
        failure: why it could not be measured.
    """

    name: str
    start: Callable[[], Iterator[None]]
    images: int
    operations: float = 0.0
    model: str = ""
    dtype: torch.dtype = torch.float32
    layout: str = ""
    ahead: int = 0
    rates: list[float] | None = None
    cpu: list[float] = field(default_factory=list)
    kept: int = 0
    peak: int = 0
    failure: str = ""


def benchmark(settings: Settings, show: bool = True) -> pd.DataFrame:
    """Time all variants; return one row each, see `row_of`. Ctrl-C ends it early, once every variant had a turn."""
    device = choose_device(settings.device)
    dtype = choose_precision(settings.precision, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        variants: list[Variant] = []
        try:
            variants += _variants(settings, device, dtype)
            turns = variants * settings.repeats
            for variant in tqdm(turns, "turns", leave=False, disable=None if show else True):
                _turn(variant, settings, device)
        except KeyboardInterrupt:
            if not variants or not all(variant.rates or variant.failure for variant in variants):
                raise
        except torch.cuda.OutOfMemoryError as error:
            size = settings.batch_size
            raise ValueError(
                f"batch_size={size} of {settings.image_size}x{settings.image_size} pixels does not fit into the memory "
                f"of {device}; try {size // 2}"
            ) from error
    rows = [row_of(variant, variants, settings, device) for variant in variants]
    return pd.DataFrame(rows, columns=COLUMNS)


def _variants(settings: Settings, device: torch.device, dtype: torch.dtype) -> list[Variant]:
    """All that take turns."""
    config = TrainConfig(
        model=settings.model,
        width=settings.width,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        learning_rate=1e-3,
        device=settings.device,
        precision=settings.precision,
    )
    split = _pictures(settings.image_size)
    resident = Split(split.images.to(device), split.labels.to(device))
    model = config.create_model(len(CLASSES))
    layers = convolutions(model, config.image_size)
    learns_all = sum(p.numel() for p in model.parameters())
    whole = config.create_model(len(CLASSES), faithful=True)
    has_dead_branch = learns_all < sum(p.numel() for p in whole.parameters())
    operations = 6e9 * gmac(model, config.image_size) * config.batch_size  # forward, and twice that backward
    del model, whole
    ours = Measures(dtype)
    full, short = torch.float32, _name_of(dtype)
    asked = {OURS: ours}
    if dtype != full:
        asked[f"ours without {short}"] = replace(ours, dtype=full)
    asked["ours without channels_last"] = replace(ours, channels_last=False)
    asked["ours without resident images"] = replace(ours, resident=False)
    asked["ours without batched augmentation"] = replace(ours, resident=False, batched=False)
    if has_dead_branch:
        asked["ours with the dead branch"] = replace(ours, skips_dead_branch=False)
    if settings.compile:
        asked[COMPILED] = replace(ours, compiled=True)

    def variant(name: str, config: TrainConfig, measures: Measures) -> Variant:
        images = resident if measures.resident else split
        return Variant(
            name,
            our_loop(config, images, len(CLASSES), measures),
            config.batch_size,
            operations if config.model == settings.model else 0.0,
            config.model,
            measures.dtype,
            "channels_last" if measures.channels_last else "NCHW",
            0 if measures.resident else AHEAD,
        )

    plain = plain_loop(config, split, len(CLASSES))
    found = [Variant(PLAIN, plain, config.batch_size, operations, config.model, full, "NCHW", AHEAD)]
    found += [variant(name, config, measures) for name, measures in asked.items()]
    if settings.beside:
        found += [replace(found[1], name=name, start=beside(count, found[1].start)) for count, name in BESIDE.items()]
    if settings.model != REFERENCE:
        found.append(variant(CONTROL, replace(config, model=REFERENCE), ours))
    found.append(Variant(DATA, _data_alone(resident, config.batch_size, ours, device), config.batch_size))
    bare = bare_convolutions(layers, config.batch_size, device, dtype)
    found.append(Variant(BARE, bare, config.batch_size, operations, config.model, dtype, "channels_last"))
    side = 8192 if device.type == "cuda" else 2048
    for kind in dict.fromkeys((dtype, full)):
        name = f"product of {side}x{side} matrices, {_name_of(kind)}"
        found.append(Variant(name, matrix_product(side, device, kind), 0, 2.0 * side**3, dtype=kind))
    return found


def _pictures(image_size: int) -> Split:
    """Pictures that are drawn, repeated until they fill the caches of a CPU as a data set would."""
    size = 3 * image_size**2
    images, labels, _ = draw_shapes(max(1, min(500, _DRAWN // size)), image_size)
    times = max(1, _REPEATED // (size * len(images)))
    return Split(images.repeat(times, 1, 1, 1), labels.repeat(times))


def _data_alone(
    split: Split, batch_size: int, measures: Measures, device: torch.device
) -> Callable[[], Iterator[None]]:
    batches = our_batches(split, batch_size, measures, device)
    return lambda: (None for _ in batches())


def _turn(variant: Variant, settings: Settings, device: torch.device) -> None:
    """Times a variant once, after a step that is not timed: caches, and what the variant before it leaves running.

    Workers start with the turn and end with it: they take no time from the others. Steps whose data they had ready
    are not timed (as far as half the time of a turn goes), because in a long run nothing is ready for free.
    """
    if variant.failure:
        return
    before = _allocated(device) - variant.kept
    steps = variant.start()
    try:
        started = time.perf_counter()
        untimed = 0
        while untimed < max(variant.ahead, 1) and (not untimed or time.perf_counter() - started < settings.seconds / 2):
            next(steps)
            untimed += 1
            _wait(device)
        if device.type == "cuda":
            variant.kept = _allocated(device) - before
            torch.cuda.reset_peak_memory_stats(device)
        count, started, processor = 0, time.perf_counter(), time.process_time()
        while (
            count < settings.steps if settings.steps else not count or time.perf_counter() < started + settings.seconds
        ):
            next(steps)
            count += 1
        _wait(device)
        rate = count / (time.perf_counter() - started)
        processor = (time.process_time() - processor) / count
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        if variant.name != COMPILED:
            raise
        variant.failure = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return
    finally:
        steps.close()
        if variant.ahead or device.type == "cuda":
            gc.collect()  # workers end with the iterator that they belong to
    variant.rates = [*(variant.rates or []), rate]
    variant.cpu.append(processor)
    if device.type == "cuda":
        variant.peak = max(variant.peak, torch.cuda.max_memory_allocated(device) - before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def row_of(variant: Variant, variants: list[Variant], settings: Settings, device: torch.device) -> dict[str, Any]:
    """Return one row of the table and of the file, with four digits; what does not apply is missing.

    `images_per_s` (the median of the turns), `best` (of them), `times_plain` and `times_ours` (ratios of medians),
    `ms_per_step` (at the median), `cpu_ms` (processor time of a step, of all threads but not of the workers that load
    data: with one thread it hardly depends on what else the machine does), `tflops` (1e12 operations a second at the
    median: three forward passes a step, of the network without dead branch), `peak_gpu_gib` (2**30 bytes: weights,
    momentum, gradients and activations, without the resident images), and what was timed.
    """
    medians = {v.name: statistics.median(v.rates) for v in variants if v.rates}
    figures: dict[str, float] = {}
    if rate := medians.get(variant.name):
        if variant.images:
            figures |= {"images_per_s": rate * variant.images, "best": max(variant.rates or []) * variant.images}
        if variant.images and variant.name != DATA:
            figures |= {"times_plain": rate / medians[PLAIN], "times_ours": rate / medians[OURS]}
        figures |= {"ms_per_step": 1000 / rate, "cpu_ms": 1000 * statistics.median(variant.cpu)}
        if variant.operations:
            figures["tflops"] = rate * variant.operations / 1e12
    if variant.peak and variant.images:
        figures["peak_gpu_gib"] = variant.peak / 2**30
    return {
        "variant": variant.name,
        **{name: float(f"{value:.4g}") for name, value in figures.items()},
        "failure": variant.failure or None,
        "model": variant.model or None,
        "precision": _name_of(variant.dtype) if variant.name != DATA else None,
        "layout": variant.layout or None,
        **{name: getattr(settings, name) for name in ("width", "batch_size", "image_size")},
        "turns": len(variant.rates or []),
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


FIGURES = ["images_per_s", "best", "times_plain", "times_ours", "ms_per_step", "cpu_ms", "tflops", "peak_gpu_gib"]
COLUMNS = ["variant", *FIGURES, "failure", "model", "precision", "layout", "width", "batch_size", "image_size"]
COLUMNS += ["turns", "device", "threads", "torch"]


def _name_of(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def describe(device: torch.device) -> str:
    """Return a device in words, such as "AMD EPYC, 2 cores"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else name}, {os.cpu_count()} cores" + ("" if device.type == "cpu" else f", {device}")


def table(rows: pd.DataFrame) -> str:
    """Return the rows for a terminal, without columns that are empty everywhere."""
    shown = rows[["variant", "precision", *FIGURES, "failure"]].dropna(axis="columns", how="all")
    return shown.to_string(index=False, na_rep="", float_format="{:g}".format)


def summary(rows: pd.DataFrame) -> list[str]:
    """Return what the rows say, in sentences."""
    row_of_variant = rows.set_index("variant")
    speed, step = row_of_variant.images_per_s, row_of_variant.ms_per_step
    lines = [
        f"ours does {speed[OURS] / speed[PLAIN]:.2f} times the images of the plain loop",
        f"ours reaches {speed[OURS] / speed[BARE]:.1%} of its bare convolutions",
        f"data and augmentation take {step[DATA] / step[OURS]:.2%} of a step ({step[DATA]:g} of {step[OURS]:g} ms)",
    ]
    if CONTROL in speed:
        lines.append(f"a step takes {speed[CONTROL] / speed[OURS] - 1:+.1%} longer than that of {REFERENCE}")
    for name in (name for name in BESIDE.values() if name in speed):
        lines.append(f"{name}, a step takes {speed[OURS] / speed[name]:.2f} times as long")
    ours = row_of_variant.tflops[OURS]
    for name, tflops in row_of_variant.tflops[speed.isna()].dropna().items():
        lines.append(f"ours computes {ours:g} TFLOP/s, {ours / tflops:.1%} of a {name} ({tflops:g})")
    return lines


TAKES_UNKNOWN = True  # `main` names the option that is close


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools benchmark`."""
    parser.description = (
        "Training speed, side by side: a plain PyTorch loop, ours, ours without each of its measures, and the bound of "
        "bare convolutions and matrix products. Nothing is downloaded. With the defaults it takes two minutes or so on "
        "two CPU cores (12 variants x 3 turns x 2 s, and what is not timed); at --width 1 a step takes seconds there: "
        "add --steps 1. Ctrl-C shows what was timed so far, once every variant had a turn."
    )
    add_options(parser, Settings)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows into a CSV file too")


def main(arguments: argparse.Namespace) -> None:
    """Print what is timed, the table, and what it says; write the file."""
    settings = settings_from(Settings, vars(arguments), arguments.unknown)
    device = choose_device(settings.device)
    dtype = choose_precision(settings.precision, device)
    if arguments.csv:
        if arguments.csv.is_dir():
            raise ValueError(f"--csv {arguments.csv} is a folder; name a file in it")
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    turn = f"{settings.steps} steps" if settings.steps else f"{settings.seconds:g} s"
    print(
        f"{settings.model} at width {settings.width:g}, batch {settings.batch_size}, "
        f"{settings.image_size}x{settings.image_size} pixels; {settings.repeats} turns of {turn} for each variant\n"
        f"{describe(device)}; torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"precision {_name_of(dtype)}",
        flush=True,
    )
    rows = benchmark(settings)
    print("\n" + table(rows) + "\n\n" + "\n".join(summary(rows)))
    if arguments.csv:
        rows.to_csv(arguments.csv, index=False)
        print(f"rows in {arguments.csv}")
