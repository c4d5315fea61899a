"""Training: `fit(config)` makes a run, a folder that can be killed at any moment and goes on where it was.

What happens in step k is a function of the settings and of k alone: the order of the samples of (seed, epoch), the
augmentation of (seed, epoch, sample), dropout of (seed, step), the learning rate of the step. So a checkpoint needs
no random state, and a resumed run on a CPU gives the same weights, bit by bit.
"""

import csv
import io
import json
import math
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ._version import __version__
from .augment import augmented_batch, choose_augmentation
from .checkpoint import (
    load_checkpoint,
    load_tensors,
    remove_checkpoints,
    save_checkpoint,
    save_tensors,
    write,
)
from .config import TrainConfig
from .data import Data, hold_out, load_data, stratified
from .inference import attend, autocast, choose_device, choose_precision, evaluate, to_float
from .models import ImageClassifier, create_model

WARM_UP = 0.25  # of all steps: the learning rate rises, then falls to zero
MOMENTUM = 0.9
SAVE_MINUTES = 5.0  # a long epoch is saved this often


class TrainingDiverged(FloatingPointError):
    """The loss is no longer a finite number; the weights of the last finished epoch are kept."""


@dataclass
class Run:
    """A training run, finished or not.

    Attributes:
        config: its settings.
        classes: class names.
        model: the network, in evaluation mode, with the weights of the last finished epoch.
        history: one dict an epoch: epoch (from 1), train_loss, train_accuracy, test_loss, test_accuracy (in [0, 1];
            of the held-out images where `validation` is set), learning_rate, seconds (of the whole epoch), and
            entropy_<level>, the mean entropy of the test images' maps (1 = uniform).
        path: its folder, with config.json, history.csv and weights.safetensors.
        notes: what `fit` had to say about data and training.
    """

    config: TrainConfig
    classes: tuple[str, ...]
    model: ImageClassifier
    path: Path
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every epoch was trained."""
        return len(self.history) >= self.config.epochs

    def snapshots(self) -> dict[int, dict[str, Tensor]]:
        """Maps of the same few test images after every epoch: {epoch: {level: (K, h, w)}}, 0 = before training."""
        files = sorted((self.path / "snapshots").glob("epoch-*.safetensors"))
        return {int(file.stem.split("-")[1]): load_tensors(file)[0] for file in files}


def fit(
    config: TrainConfig,
    data: Data | None = None,
    *,
    resume: bool = True,
    on_epoch: Callable[[Run], None] | None = None,
    progress: bool = True,
) -> Run:
    """Trains a model, or goes on with a run that was interrupted; returns at once if it is complete.

    SGD with Nesterov momentum and a one-cycle schedule (linear up over a quarter of the steps, linear down to zero);
    test accuracy after every epoch, of the weights that are saved; nothing is chosen by it.

    Args:
        config: the settings.
        data: the data set; None loads the one that the settings name (`data_for`).
        resume: go on with what `config.path` holds; False refuses a folder that holds a run.
        on_epoch: called with the run after every epoch, and once at the start of a resumed run.
        progress: show a progress bar and messages on standard output.

    Raises:
        ValueError: settings and machine, or settings and data, or settings and run folder do not fit together.
        FileExistsError: resume is False and the folder holds a run.
        TrainingDiverged: the loss is not finite.
        OSError: the run folder cannot be written; what it holds stays.
    """
    say = print if progress else (lambda message: None)
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    data = data_for(config) if data is None else data
    for note in data.notes:
        say(f"note: {note}")
    _check_data(data)
    path = config.path
    _claim_folder(path, config, data, resume)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = create_model(
            config.model,
            len(data.classes),
            width=config.width,
            normalizer=config.normalizer,
            dropout=config.dropout,
            mean=data.mean,
            std=data.std,
        ).to(device, memory_format=torch.channels_last)
        run = Run(config, data.classes, model, path, notes=list(data.notes))
        state = _State.start(run, dtype, device)
        state.restore(say)
        if run.history and on_epoch:
            on_epoch(run)
        if not run.complete:
            _train(run, state, data, device, dtype, on_epoch, progress, say)
    remove_checkpoints(path / "checkpoints")
    model.eval()
    return run


def data_for(config: TrainConfig) -> Data:
    """The data set that the settings name; where they ask for validation, the held-out part stands in for the test.

    Raises:
        See `ltpa.load_data`.
    """
    data = load_data(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
    )
    return hold_out(data, config.validation) if config.validation else data


def load_run(path: str | Path, device: str = "auto") -> Run:
    """Reads a run: its settings, history, and model with the weights of the last finished epoch.

    Raises:
        FileNotFoundError: no such folder, or a file of the run is missing; the message names it.
        ValueError: a file of the run is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {str(path)!r}; runs are folders with a config.json")
    missing = [name for name in ("config.json", "history.csv", "weights.safetensors") if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"the run folder {path} is incomplete: {', '.join(missing)} missing (it is written after the first epoch); "
            "call fit again with its settings, or delete it"
        )
    settings = _read_settings(path)
    weights, _ = load_tensors(path / "weights.safetensors")
    config = _config_of(path, settings)
    model = create_model(
        config.model, len(settings["classes"]), width=config.width, normalizer=config.normalizer, dropout=config.dropout
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}/weights.safetensors does not fit the model in config.json: {error}") from error
    model.to(choose_device(device), memory_format=torch.channels_last).eval()
    return Run(config, tuple(settings["classes"]), model, path, _read_history(path))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One-cycle schedule: up from near zero to the peak over the first quarter of the steps, then down to zero."""
    done = (step + 1) / (steps + 1)
    return peak * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The samples of every step of an epoch: a permutation given by (seed, epoch), in batches of nearly equal size.

    No sample is left out, and no batch is a small remainder: sizes differ by one at most.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return list(order.tensor_split(math.ceil(count / batch_size)))


def optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay only on matrices and convolutions, not on biases, norms and `u`."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, nesterov=True)


@dataclass
class _State:
    """What a checkpoint holds beside the run itself: optimiser, scaler, position, sums of the epoch under way."""

    run: Run
    optimiser: torch.optim.SGD
    scaler: torch.amp.GradScaler
    step: int = 0
    sums: Tensor | None = None  # of the epoch under way, on the device: loss, correct, samples
    seconds: float = 0.0  # of the epoch under way

    @classmethod
    def start(cls, run: Run, dtype: torch.dtype, device: torch.device) -> "_State":
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        return cls(run, optimiser(run.model, run.config), scaler, sums=_zeros(device))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def save(self) -> None:
        tensors = {f"model.{name}": value for name, value in self.run.model.state_dict().items()}
        for number, parameter in enumerate(self._parameters()):
            momentum = self.optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{number}"] = momentum
        meta = {
            "history": self.run.history,
            "sums": self.sums.tolist(),
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.run.path / "checkpoints", self.step, tensors, meta)

    def restore(self, say: Callable[[str], None]) -> None:
        """Takes up the newest whole checkpoint; without one, a complete run's weights; else starts anew."""
        run = self.run
        found = load_checkpoint(run.path / "checkpoints", say)
        if found is not None:
            tensors, meta = found
            run.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k[:6] == "model."})
            for number, parameter in enumerate(self._parameters()):
                if f"momentum.{number}" in tensors:
                    momentum = tensors[f"momentum.{number}"].to(parameter.device)
                    self.optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
            self.step, self.seconds = meta["step"], meta["seconds"]
            self.sums = torch.tensor(meta["sums"], dtype=self.sums.dtype, device=self.sums.device)
            if meta["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(meta["scaler"])
            run.history[:] = meta["history"]
            say(f"going on with {run.path} after {len(run.history)} of {run.config.epochs} epochs (step {self.step})")
        elif (run.path / "weights.safetensors").is_file() and (run.path / "history.csv").is_file():
            history = _read_history(run.path)
            if len(history) >= run.config.epochs:
                run.history[:] = history
                run.model.load_state_dict(load_tensors(run.path / "weights.safetensors")[0])
                say(f"{run.path} is complete: nothing to train")
            else:
                say(f"{run.path} has no checkpoint to go on from: it is trained from the start")


def _train(
    run: Run,
    state: _State,
    data: Data,
    device: torch.device,
    dtype: torch.dtype,
    on_epoch: Callable[[Run], None] | None,
    progress: bool,
    say: Callable[[str], None],
) -> None:
    config = run.config
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    mode = choose_augmentation(config.augment, config.dataset)
    per_epoch = math.ceil(len(images) / config.batch_size)
    steps = per_epoch * config.epochs
    watched = data.test.images[snapshot_indices(data, config.snapshots)] if config.snapshots else None
    if watched is not None and state.step == 0:
        _save_snapshot(run, watched, 0)
    started, first, saved = time.monotonic(), state.step, time.monotonic()
    with _Progress(steps, state.step, progress) as bar, _interrupts() as interrupted:
        while state.step < steps:
            epoch, position = divmod(state.step, per_epoch)
            batches = epoch_batches(len(images), config.batch_size, config.seed, epoch)
            tick = time.monotonic()
            run.model.train()
            for number in range(position, per_epoch):
                index = batches[number].to(device)
                batch = augmented_batch(images, index, mode, config.seed, epoch)
                rate = learning_rate(state.step, steps, config.learning_rate)
                torch.manual_seed(config.seed * 1_000_003 + state.step)
                loss, correct = _step(run.model, state, batch, labels[index], rate, config.label_smoothing, dtype)
                state.sums += torch.stack([loss * len(index), correct, torch.full_like(loss, len(index))])
                state.step += 1
                bar.step(state, run, epoch)
                if state.step - first == 5:
                    left = (steps - state.step) * (time.monotonic() - started) / 5
                    say(f"{config.epochs} epochs on {_describe(device, dtype)}: about {_duration(left)} to go")
                if interrupted or time.monotonic() - saved > SAVE_MINUTES * 60:
                    state.seconds += time.monotonic() - tick
                    tick = saved = time.monotonic()
                    _check_finite(state, run)
                    state.save()
                    if interrupted:
                        say(f"interrupted; saved after step {state.step}: call fit again to go on")
                        interrupted.raise_again()
            _check_finite(state, run)
            scores = evaluate(run.model, data.test, config.precision)
            loss, correct, seen = state.sums.tolist()
            state.seconds += time.monotonic() - tick
            run.history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": loss / seen,
                    "train_accuracy": correct / seen,
                    "test_loss": scores.pop("loss"),
                    "test_accuracy": scores.pop("accuracy"),
                    "learning_rate": rate,
                    "seconds": state.seconds,
                    **scores,
                }
            )
            state.sums, state.seconds = _zeros(device), 0.0
            _save_epoch(run)
            if watched is not None:
                _save_snapshot(run, watched, epoch + 1)
            state.save()
            saved = time.monotonic()
            bar.step(state, run, epoch)
            if on_epoch:
                on_epoch(run)
            if interrupted and state.step < steps:
                say(f"interrupted; saved after epoch {epoch + 1}: call fit again to go on")
                interrupted.raise_again()


def _step(
    model: nn.Module,
    state: _State,
    batch: Tensor,
    labels: Tensor,
    rate: float,
    smoothing: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One optimiser step; the loss and the number of correct predictions, as float64 tensors on the device."""
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    with autocast(batch.device, dtype):
        logits = model(to_float(batch)).float()
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    state.optimiser.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimiser)
    state.scaler.update()
    correct = (logits.argmax(1) == labels).sum()
    return loss.detach().to(state.sums.dtype), correct.to(state.sums.dtype)


def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def _check_finite(state: _State, run: Run) -> None:
    """Before anything is saved: the loss of the epoch so far is a number."""
    if not math.isfinite(state.sums[0].item()):
        kept = f"the weights of epoch {len(run.history)} are kept in {run.path}" if run.history else "nothing was saved"
        raise TrainingDiverged(
            f"the loss is not finite after step {state.step}; {kept}. "
            f"Try a lower learning rate (it was {run.config.learning_rate}) or precision='fp32'"
        )


def snapshot_indices(data: Data, count: int) -> Tensor:
    """The test images whose maps a run keeps: spread over the classes, the same for every run on this data."""
    return stratified(data.test.labels, min(count, len(data.test)), seed=0)


def _save_snapshot(run: Run, images: Tensor, epoch: int) -> None:
    maps = attend(run.model, images, run.config.precision).maps
    save_tensors(run.path / "snapshots" / f"epoch-{epoch:04d}.safetensors", dict(maps), {"epoch": epoch})


def _save_epoch(run: Run) -> None:
    save_tensors(run.path / "weights.safetensors", run.model.state_dict(), {"epochs": len(run.history)})
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(run.history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.history)
    write(run.path / "history.csv", table.getvalue().encode())


def _read_history(path: Path) -> list[dict[str, float]]:
    with (path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [{key: int(value) if key == "epoch" else float(value) for key, value in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / 'history.csv'} is damaged: {error}") from error


def _check_data(data: Data) -> None:
    if data.train.labels.ndim != 1:
        raise ValueError("training needs one label an image; scenes of two objects are for looking, not for training")
    if len(data.train) < 2 or not len(data.test):
        raise ValueError(f"{len(data.train)} training and {len(data.test)} test images are too few to train and test")
    for name, split in (("training", data.train), ("test", data.test)):
        outside = int(((split.labels < 0) | (split.labels >= len(data.classes))).sum())
        if outside:
            raise ValueError(f"{outside} {name} labels lie outside 0 ... {len(data.classes) - 1}, the known classes")


def _fingerprint(data: Data) -> dict[str, Any]:
    """What data a run was trained on, so that it never goes on with other data."""
    digest = zlib.crc32(data.train.labels.numpy().tobytes(), zlib.crc32(data.train.images.numpy().tobytes()))
    digest = zlib.crc32(data.test.labels.numpy().tobytes(), zlib.crc32(data.test.images.numpy().tobytes(), digest))
    return {"train": len(data.train), "test": len(data.test), "crc32": f"{digest:08x}"}


def _claim_folder(path: Path, config: TrainConfig, data: Data, resume: bool) -> None:
    """Writes config.json into a new folder; refuses one that belongs to other settings or other data."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"run_dir {path} is a file; name a folder")
    settings = {
        **config.identity(),
        "classes": list(data.classes),
        "data": _fingerprint(data),
    }
    if (path / "config.json").is_file():
        if not resume:
            raise FileExistsError(f"{path} holds a run already; choose another run_dir, or resume=True")
        before = _read_settings(path)
        differing = [
            f"  {name}: {before.get(name)!r} there, {settings[name]!r} now"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if differing:
            raise ValueError(
                f"the run folder {path} belongs to other settings:\n" + "\n".join(differing) + "\n"
                f"choose another run_dir, for example {path}-2, or leave run_dir out: then every setting has its own"
            )
        return
    strangers = [p.name for p in path.iterdir() if not p.name.startswith(".")] if path.is_dir() else []
    if strangers:
        raise ValueError(
            f"the folder {path} is not a run (it has no config.json) and not empty ({strangers[0]}, ...); "
            "choose another run_dir"
        )
    write(path / "config.json", json.dumps({**settings, "ltpa": __version__}, indent=2).encode())


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads((path / "config.json").read_text())
        return settings if isinstance(settings["classes"], list) else {}["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged ({error!r}); delete the folder or restore it") from error


def _config_of(path: Path, settings: dict[str, Any]) -> TrainConfig:
    values = {name: value for name, value in settings.items() if name not in ("classes", "data", "ltpa")}
    try:
        return TrainConfig.from_dict({**values, "run_dir": str(path)})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / 'config.json'} holds settings that this version cannot use: {error}") from error


class _Progress:
    """The bar on standard output: epoch, loss, accuracies, time left."""

    _FORMAT = "{desc} |{bar:20}| {percentage:3.0f}% {remaining} left{postfix}"

    def __init__(self, steps: int, done: int, show: bool) -> None:
        self._bar = tqdm(total=steps, initial=done, file=sys.stdout, disable=not show, mininterval=0.5, ncols=110,
                         bar_format=self._FORMAT)  # fmt: skip
        self._shown = 0.0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, state: _State, run: Run, epoch: int) -> None:
        """Reading the sums waits for the GPU, so it happens twice a second and not after every step."""
        if self._bar.disable:
            return
        now, last = time.monotonic(), state.step == self._bar.total
        if last or now - self._shown > 0.5:
            self._shown = now
            self._bar.set_description_str(f"epoch {epoch + 1}/{run.config.epochs}", refresh=False)
            loss, correct, seen = state.sums.tolist()
            words = f"loss {loss / seen:.3f}, accuracy {correct / seen:.1%}" if seen else ""
            if run.history:
                words += f"{', ' if words else ''}test {run.history[-1]['test_accuracy']:.1%}"
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(state.step - self._bar.n)
        if last:
            self._bar.refresh()


class _Interrupted:
    """Whether a signal to stop has come; it is raised again when everything is saved."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def raise_again(self) -> None:
        """KeyboardInterrupt for Ctrl-C and the notebook's stop button; SystemExit for SIGTERM."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.number or 0))


@contextmanager
def _interrupts() -> Iterator[_Interrupted]:
    """Within it, SIGINT and SIGTERM only set a flag, so that no step and no save is cut in two."""
    found = _Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def note(number: int, _: object) -> None:
        found.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _describe(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({os.cpu_count()} cores)"
    return f"{name} in {str(dtype).removeprefix('torch.')}"
