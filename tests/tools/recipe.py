"""What each part of the training recipe is worth: `python -m tests.tools recipe DIR --csv FILE`, on one GPU.

Some parts that were tried are not in the package. So this file has a training step of its own, which a CUDA graph
repeats; several networks train at once. Accuracies are of a tenth of the training images, which is held out.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ltpa
from ltpa.data.dataset import Dataset
from ltpa.training.trainer import shrunk


@dataclass(frozen=True)
class Recipe:
    """A training of the main model; the defaults are the recipe without the higher rate of biases and norms."""

    optimizer: str = "muon"
    rate: float = 0.06  # of the filters; of everything, with SGD
    other_rate: float = 0.102  # of what SGD moves beside Muon
    norm_factor: float = 1.0  # on the rate of biases and norms
    momentum: float = 0.6
    batch: int = 128
    epochs: float = 3.0
    growth: tuple[tuple[float, float], ...] = ((0.3, 0.5), (0.6, 0.75))
    shift: int = 2
    alternating: bool = True
    smoothing: float = 0.1
    norm_momentum: float = 0.1
    whitened: bool = False
    dirac: bool = False
    lookahead: int = 0  # steps between two averages
    width: float = field(default=0.125, kw_only=True)


PARTS = {
    "the recipe": Recipe(),
    "SGD, rate 0.1": Recipe(optimizer="sgd", rate=0.1),
    "whole pictures, as many epochs": Recipe(growth=()),
    "whole pictures, as many operations": Recipe(growth=(), epochs=1.932),
    "random flips": Recipe(alternating=False),
    "no shift": Recipe(shift=0),
    "shift 4": Recipe(shift=4),
    "label smoothing 0": Recipe(smoothing=0.0),
    "label smoothing 0.2": Recipe(smoothing=0.2),
    "rate 0.04": Recipe(rate=0.04, other_rate=0.068),
    "rate 0.09": Recipe(rate=0.09, other_rate=0.153),
    "rate of the rest 0.06": Recipe(other_rate=0.06),
    "rate of the rest 0.2": Recipe(other_rate=0.2),
    "rate of the rest 0.4": Recipe(other_rate=0.4),
    "batch 64, rate 0.042": Recipe(batch=64, rate=0.042, other_rate=0.0714),
    "batch 256, rate 0.085": Recipe(batch=256, rate=0.085, other_rate=0.1445),
    "batch 512, rate 0.12": Recipe(batch=512, rate=0.12, other_rate=0.204),
    "biases and norms 4 times as fast": Recipe(norm_factor=4.0),
    "biases and norms 16 times as fast": Recipe(norm_factor=16.0),
    "batch norm momentum 0.03": Recipe(norm_momentum=0.03),
    "batch norm momentum 0.3": Recipe(norm_momentum=0.3),
    "first layer of whitened patches": Recipe(whitened=True),
    "dirac initialization": Recipe(dirac=True),
    "lookahead every 5 steps": Recipe(lookahead=5),
}
LONG = Recipe(epochs=20, width=0.1875)
PARTS |= {
    "3/16 width, 20 epochs": LONG,
    "3/16 width, 20 epochs, rate 0.03": replace(LONG, rate=0.03, other_rate=0.051),
    "3/16 width, 20 epochs, rate 0.09": replace(LONG, rate=0.09, other_rate=0.153),
    "3/16 width, 20 epochs, shift 4": replace(LONG, shift=4),
    "3/16 width, 20 epochs, lookahead every 5 steps": replace(LONG, lookahead=5),
    "3/16 width, whole pictures, as many operations": replace(LONG, growth=(), epochs=12.9),
    "5/16 width, 9 epochs": Recipe(epochs=9, width=0.3125),
}


class Trial:
    """One training; `advance` takes a step without waiting for the GPU."""

    def __init__(self, recipe: Recipe, data: Dataset, seed: int) -> None:
        self.recipe, self.device = recipe, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.images, self.labels = data.train.images.to(self.device), data.train.labels.to(self.device)
        torch.manual_seed(seed)
        model = ltpa.create_model(
            "vgg-att3-concat-pc", len(data.classes), width=recipe.width, dropout=False, mean=data.mean, std=data.std
        )
        banks = [p for p in model.parameters() if p.ndim == 4]
        if recipe.dirac:
            for bank in banks[1:]:
                nn.init.dirac_(bank.data[: min(bank.shape[:2])])
        if recipe.whitened:
            whiten(banks[0], (data.train.images[:2000] / 255 - model.mean) / model.std)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = recipe.norm_momentum
        dead = {"conv14", "conv15", "fc"}  # get no gradient
        named = [(n, p) for n, p in model.named_parameters() if dead.isdisjoint(n.split("."))]
        muon = recipe.optimizer == "muon"
        self.filters = [p for _, p in named if muon and p.ndim == 4 and p is not banks[0]]
        self.rest = [(n, p) for n, p in named if all(p is not f for f in self.filters)]
        self.buffers = [torch.zeros_like(p) for p in (*self.filters, *(p for _, p in self.rest))]
        self._draw(seed)
        self.done = torch.zeros(1, dtype=torch.int64, device=self.device)  # steps
        self.slow: list[Tensor] | None = None
        self.graphs: dict[float, torch.cuda.CUDAGraph] = {}
        self.steps = 0

    def _draw(self, seed: int) -> None:
        recipe, count = self.recipe, len(self.images)
        self.total, an_epoch = round(recipe.epochs * count / recipe.batch), count // recipe.batch
        generator = torch.Generator().manual_seed(seed)
        epochs = [torch.randperm(count, generator=generator) for _ in range(self.total // an_epoch + 1)]
        order = torch.cat([e[: an_epoch * recipe.batch].view(an_epoch, -1) for e in epochs])[: self.total]
        flip = (torch.rand(count, generator=generator) < 0.5)[order]
        if recipe.alternating:
            flip ^= (torch.arange(self.total) // an_epoch % 2 == 1)[:, None]
        else:
            flip = torch.rand(order.shape, generator=generator) < 0.5
        shifts = torch.randint(-recipe.shift, recipe.shift + 1, (2, *order.shape), generator=generator)
        done = (torch.arange(self.total).double() + 1) / (self.total + 1)
        warm_up = 0.02 if recipe.optimizer == "muon" else 0.25
        factor = torch.minimum(done / warm_up, (1 - done) / (1 - warm_up)).float()
        self.parts = [next((part for until, part in recipe.growth if at < until), 1.0) for at in done.tolist()]
        self.order, self.flip, self.factor = (t.to(self.device) for t in (order, flip, factor))
        self.down, self.across = shifts.to(self.device)

    def _batch(self, part: float) -> tuple[Tensor, Tensor]:
        index, flip, down, across = (
            t.index_select(0, self.done)[0] for t in (self.order, self.flip, self.down, self.across)
        )
        side = self.images.shape[-1]
        last, positions = side - 1, torch.arange(side, device=self.device)
        rows, columns = (last - (last - (positions + by[:, None]).abs()).abs() for by in (down, across))
        columns = torch.where(flip[:, None], columns.flip(1), columns)
        batch = self.images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return shrunk(batch.float() / 255, part).contiguous(memory_format=torch.channels_last), self.labels[index]

    def step(self, part: float) -> None:
        """Take one step on pictures at a part of their side."""
        recipe = self.recipe
        images, labels = self._batch(part)
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)
        gradients = torch.autograd.grad(loss, [*self.filters, *(p for _, p in self.rest)])
        factor, other = self.factor.index_select(0, self.done), recipe.other_rate
        with torch.no_grad():
            for number, (bank, gradient) in enumerate(zip(self.filters, gradients, strict=False)):
                momentum = self.buffers[number].mul_(recipe.momentum).add_(gradient)
                direction = orthogonal((gradient + recipe.momentum * momentum).float().flatten(1)).view(bank.shape)
                bank.mul_(len(bank) ** 0.5 / bank.norm()).sub_(recipe.rate * factor * direction)
            for number, (name, parameter) in enumerate(self.rest, start=len(self.filters)):
                weight = parameter.ndim > 1
                gradient = gradients[number].float() + (5e-4 * parameter if weight else 0)
                momentum = self.buffers[number].mul_(0.9).add_(gradient)
                rate = other if recipe.optimizer == "muon" else recipe.rate
                rate *= 1.0 if weight or name.endswith(".u") else recipe.norm_factor
                parameter.sub_(rate * factor * (gradient + 0.9 * momentum))
            self.done += 1

    def prepare(self) -> None:
        """Record a step on pictures of each size."""
        if self.device.type == "cpu":
            return
        self.stream = torch.cuda.Stream()
        state = [*self.model.state_dict().values(), *self.buffers, self.done]
        before = [tensor.clone() for tensor in state]
        for part in sorted(set(self.parts)):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(part)
            torch.cuda.synchronize()
            self.graphs[part] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[part], stream=self.stream):
                self.step(part)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        torch.cuda.synchronize()

    def advance(self) -> bool:
        """Start the next step; return whether there are more."""
        part = self.parts[self.steps]
        if self.graphs:
            with torch.cuda.stream(self.stream):
                self.graphs[part].replay()
                self._average()
        else:
            self.step(part)
            self._average()
        self.steps += 1
        return self.steps < self.total

    @torch.no_grad()
    def _average(self) -> None:
        every = self.recipe.lookahead
        if not every or (self.steps + 1) % every:
            return
        weights = [t for t in self.model.state_dict().values() if t.dtype.is_floating_point]
        self.slow = self.slow or [weight.clone() for weight in weights]
        decay = 0.95**every * ((self.steps + 1) / self.total) ** 3
        for slow, weight in zip(self.slow, weights, strict=True):
            slow.lerp_(weight, 1 - decay)
            weight.copy_(slow)

    def accuracy(self, data: Dataset) -> float:
        """Return the accuracy on the held-out images."""
        return ltpa.evaluate(self.model, data.test)["accuracy"]


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix after three Newton-Schulz steps."""
    x = matrix / matrix.norm()
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


@torch.no_grad()
def whiten(bank: Tensor, images: Tensor) -> None:
    """Fill the filters of the first layer with whitening directions of 3x3 patches and their negatives."""
    patches = F.unfold(images, 3).transpose(1, 2).reshape(-1, bank[0].numel())
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors.flip(1) / (values.flip(0) + 5e-4).sqrt()).T.reshape(-1, *bank.shape[1:])
    half = min(len(filters), math.ceil(len(bank) / 2))
    filters = torch.cat([filters[:half], -filters[:half]])[: len(bank)]
    bank[: len(filters)] = filters * (bank.norm() / len(bank) ** 0.5 / filters.flatten(1).norm(dim=1).mean())


def measure(names: Iterable[str], data: Dataset, seeds: int, at_once: int, epochs: float | None = None) -> pd.DataFrame:
    """Train every recipe with every seed; return a row a training."""
    jobs, rows = [(name, seed) for name in names for seed in range(seeds)], []
    for start in range(0, len(jobs), at_once):
        part = jobs[start : start + at_once]
        recipes = [replace(PARTS[name], **({} if epochs is None else {"epochs": epochs})) for name, _ in part]
        trials = [Trial(recipe, data, seed) for recipe, (_, seed) in zip(recipes, part, strict=True)]
        for trial in trials:
            trial.prepare()
        running = list(trials)
        while running:
            running = [trial for trial in running if trial.advance()]
        for (name, seed), trial in zip(part, trials, strict=True):
            rows.append({"part": name, "seed": seed, "held-out accuracy": trial.accuracy(data)})
            print(*rows[-1].values(), flush=True)
    return pd.DataFrame(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools recipe`."""
    parser.add_argument("data_dir", metavar="DIR", help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--csv", type=Path, required=True, help="file for the results")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="some of the recipes")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default 3)")
    parser.add_argument("--at-once", type=int, default=12, help="trainings at the same time (default 12)")
    parser.add_argument("--epochs", type=float, help="to try it: the same for all recipes")


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the file."""
    data = ltpa.hold_out(ltpa.load_data("folder", arguments.data_dir), 0.1)
    table = measure(arguments.only or PARTS, data, arguments.seeds, arguments.at_once, arguments.epochs)
    table.to_csv(arguments.csv, index=False, lineterminator="\n")
    print(table.groupby("part", sort=False)["held-out accuracy"].agg(["mean", "std"]))
