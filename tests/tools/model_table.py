"""What a model costs: parameters, multiply-accumulate operations, and the time of a training step.

`python -m tests.tools models` prints these for every network of the paper; `--write docs/models.md` puts
the table between the two marks there.
"""

import argparse
import fnmatch
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ltpa.inference import autocast, choose_device, choose_precision
from ltpa.models.cost import gmac, parameters
from ltpa.models.networks import PAPER_NAMES, create_model

from .marks import check_marks, write_between

REFERENCE = "vgg-late"  # what the times are relative to: the attention models' trunk and cost, without attention
BEGIN, END = "<!-- models: made by `python -m tests.tools models --write docs/models.md` -->", "<!-- end of models -->"


def step_times(
    names: list[tuple[str, str]], *, width: float = 1.0, batch_size: int = 16, repeats: int = 5, device: str = "auto"
) -> dict[tuple[str, str], float]:
    """Time of a training step (forward, backward, update; precision "auto") relative to that of `vgg-late`.

    Each step is timed right after one of `vgg-late`, and the median of the ratios is taken: so a machine whose speed
    drifts does no harm.

    Args:
        names: models as (name, normalizer).
        width, batch_size, device: of all of them; the images have 32x32 pixels and there are ten classes.
        repeats: timed steps of each, after one that is not counted.
    """
    place = choose_device(device)
    reference = _stepper(REFERENCE, "softmax", width, batch_size, place)
    ratios = {}
    for name, normalizer in names:
        step = _stepper(name, normalizer, width, batch_size, place)
        step(), reference()
        ratios[name, normalizer] = statistics.median(step() / reference() for _ in range(repeats))
    return ratios


def _stepper(name: str, normalizer: str, width: float, batch_size: int, device: torch.device) -> Callable[[], float]:
    """A function that trains one step and returns its seconds."""
    model = create_model(name, 10, width=width, normalizer=normalizer).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.rand(batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % 10
    dtype = choose_precision("auto", device)

    def step() -> float:
        started = time.perf_counter()
        with autocast(device, dtype):
            logits = model(images).float()
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return step


def table_rows(pattern: str = "*") -> list[tuple[str, str]]:
    """The models of the table as (name, normalizer); those whose sigmoid variant has other parts stand twice."""
    rows = []
    for name in fnmatch.filter(PAPER_NAMES, pattern):
        rows.append((name, "softmax"))
        if name.endswith(("-pc", "-permuted")) or name == "vgg-pan":
            rows.append((name, "sigmoid"))
    return rows


def model_table(pattern: str = "*", times: dict[tuple[str, str], float] | None = None) -> str:
    """The table of docs/models.md: full width, ten classes, 32x32 images."""
    lines = [
        f"| model | parameters (M) | GMAC | step, {REFERENCE} = 1 |" if times else "| model | parameters (M) | GMAC |",
        "| --- | --- | --- | --- |" if times else "| --- | --- | --- |",
    ]
    for name, normalizer in table_rows(pattern):
        with torch.device("meta"):
            model = create_model(name, 10, normalizer=normalizer)
        model.to_empty(device="cpu")  # whatever the weights are, the operations are the same
        cells = [f"`{name}`" + (", sigmoid" if normalizer == "sigmoid" else "")]
        cells += [f"{parameters(model) / 1e6:.2f}", f"{gmac(model):.2f}"]
        cells += [f"{times[name, normalizer]:.2f}"] if times else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m tests.tools models`."""
    parser.add_argument("pattern", nargs="?", default="*", help="which models, for example 'vgg-att3-*'")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")
    parser.add_argument("--no-times", action="store_true", help="leave the time of a training step out")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a timed step (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each model (default 5)")


def main(arguments: argparse.Namespace) -> None:
    """Prints the table, or writes it into a file.

    Raises:
        ValueError: a pattern that no model has, or a file without the marks.
    """
    rows = table_rows(arguments.pattern)
    if not rows:
        raise ValueError(f"no model is called {arguments.pattern!r}; see ltpa.list_models()")
    if arguments.batch_size < 2 or arguments.repeats < 1:
        raise ValueError("--batch-size must be at least 2 (batch norm compares images) and --repeats at least 1")
    if arguments.write:
        check_marks(arguments.write, BEGIN, END)
    times = None
    if not arguments.no_times:
        times = step_times(rows, batch_size=arguments.batch_size, repeats=arguments.repeats)
    table = model_table(arguments.pattern, times)
    if arguments.write:
        write_between(arguments.write, BEGIN, table, END)
    else:
        print(table)
