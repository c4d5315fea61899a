"""Running a model over many images: `attend` and `evaluate`, device and precision."""

import platform
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checks import check_images
from .data.dataset import Split
from .distributed import ALONE, Processes, launched
from .errors import closest, counted
from .maps import entropy
from .models.classifier import AttentionOutput, evaluation_mode, pairs
from .models.foreign import Normalization, as_classifier

Model = Any  # a run, a model of ltpa, or any torch.nn.Module from images to logits, see `as_classifier`
BATCH_PIXELS = 500 * 32 * 32  # in a batch, unless a batch size is given
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or "mps".

    Under torchrun every process of a machine gets its own GPU.
    """
    processes, gpus = launched(), torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if processes.count == 1:
            return torch.device(name)
    kind = str(name).partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device={name!r}: {closest(kind, ('auto', 'cpu', 'cuda', 'mps'))}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r}: the number after the colon must be that of a GPU, from 0") from error
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(
            f"device={name!r}: this machine has {counted(gpus, 'CUDA GPU')}; "
            "on Colab choose Runtime > Change runtime type > T4 GPU, or set device='auto'"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={name!r}: this machine has no Apple GPU; set device='auto'")
    if processes.count == 1 or device.type == "cpu":
        return device
    if device.type == "mps" or device.index is not None:
        raise ValueError(f"device={name!r}: {processes.count} processes need one each: set device='auto'")
    if processes.local_count > gpus:
        raise ValueError(
            f"{counted(processes.local_count, 'process', 'processes')} on this machine, and {counted(gpus, 'GPU')}: "
            f"start as many processes as there are GPUs (torchrun --nproc-per-node {gpus}), or set device='cpu'"
        )
    return torch.device("cuda", processes.local_rank)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype for autocast: "auto" is bf16 on hardware that is fast at it, else fp16 on CUDA, else fp32.

    GPUs from CUDA capability 8 up and CPUs with AMX or AVX512-BF16 instructions are fast at bf16.
    """
    if name != "auto" and name not in _DTYPES:
        raise ValueError(f"precision={name!r}: {closest(name, ('auto', *_DTYPES))}")
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision='fp16' needs a GPU; on a CPU choose 'auto', 'bf16' or 'fp32'")
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_is_fast_at_bf16() else torch.float32


def _cpu_is_fast_at_bf16() -> bool:
    if platform.system() != "Linux":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a model computes in `dtype`."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1], and float images as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def images_at_once(images: Tensor | Split, batch_size: int | None = None) -> int:
    """Return the batch size; None means one whose memory does not depend on the size of the images."""
    if batch_size is None:
        return max(1, BATCH_PIXELS // (images.shape[-2] * images.shape[-1]))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size


@torch.inference_mode()
def attend_batches(
    model: Model,
    images: Tensor | Split,
    precision: str = "auto",
    batch_size: int | None = None,
    *,
    query: Tensor | None = None,
    normalize: Normalization | None = None,
) -> Iterator[tuple[slice, AttentionOutput]]:
    """Run a model in evaluation mode on its device; yield a slice of the images and its output for them, by batches.

    The arguments are those of `attend`. With more queries than images, the slices are of the queries.
    """
    network = as_classifier(model, normalize)
    for name, value in {"images": images, **({} if query is None else {"query": query})}.items():
        if not isinstance(value, Tensor | Split):
            raise TypeError(f"{name} must be a tensor (N, 3, H, W), not {type(value).__name__}")
        check_split(value, name) if isinstance(value, Split) else check_images(value, name)
    batch_size = images_at_once(images, batch_size)
    device, weights = network.mean.device, network.mean.dtype
    dtype = choose_precision(precision, device)
    dtype = torch.float32 if weights in (torch.float16, torch.bfloat16) else dtype  # no autocast
    count = len(images) if query is None else pairs(len(images), len(query))
    parts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]

    def batches(values: Tensor | Split) -> Iterator[Tensor]:
        split = values if isinstance(values, Split) else Split(values, torch.empty(0))
        for batch in split.batches(parts if len(values) > 1 else [slice(None)] * len(parts)):
            yield to_float(batch.to(device)).to(weights, memory_format=torch.channels_last)

    queries: Iterator[Tensor | None] = repeat(None, len(parts)) if query is None else batches(query)
    for part, batch, one_query in zip(parts, batches(images), queries, strict=True):
        # Restored after every batch: the caller has the model in its own mode, also where it stops early.
        with evaluation_mode(network), autocast(device, dtype):
            output = network.compute(batch, **({} if one_query is None else {"query": one_query}))
        yield part, output


def check_split(split: Split, name: str = "images") -> None:
    """Check the images of a split, see `check_images`; those in files are uint8, of which one is looked at."""
    check_images(split[:1].images if split.in_files else split.images, name)


def attend(
    model: Model,
    images: Tensor | Split,
    precision: str = "auto",
    batch_size: int | None = None,
    *,
    query: Tensor | None = None,
    normalize: Normalization | None = None,
) -> AttentionOutput:
    """Run a model on any number of images; return its logits and maps, float32 on the CPU.

    Args:
        model: a run, any model of `ltpa.create_model`, or your own module from images to logits, which has no maps.
        images: uint8, or float in [0, 1], (N, 3, H, W), on any device; or a split.
        precision: "auto", "fp32", "bf16" or "fp16"; weights in half precision compute in theirs.
        batch_size: None means 500 images of 32x32 pixels, fewer larger ones.
        query: images whose global features score the positions of `images`: as many as these, or one for all; or many
            for one image.
        normalize: (mean, std) per channel, for your own module if it reads normalized images.
    """
    batches = attend_batches(model, images, precision, batch_size, query=query, normalize=normalize)
    outputs = [_combined([output], lambda tensors: tensors[0].float().cpu()) for _, output in batches]
    if not outputs:
        raise ValueError("there are no images to look at")
    return _combined(outputs, torch.cat)


def _combined(outputs: list[AttentionOutput], combine: Callable[[list[Tensor]], Tensor]) -> AttentionOutput:
    """Combine each tensor of the outputs."""

    def levels(name: str) -> "OrderedDict[str, Tensor]":
        values = [getattr(output, name) for output in outputs]
        return OrderedDict((level, combine([value[level] for value in values])) for level in values[0])

    features = [output.global_feature for output in outputs if output.global_feature is not None]
    return AttentionOutput(
        combine([output.logits for output in outputs]),
        levels("maps"),
        levels("scores"),
        combine(features) if features else None,
        levels("descriptors"),
    )


@dataclass(frozen=True)
class Evaluation:
    """A model's results on labeled images, image by image; NaN for a map whose weights are all 0."""

    predictions: Tensor  # int64 (N,)
    correct: Tensor  # bool (N,)
    losses: Tensor  # (N,), cross-entropy in nats
    entropies: dict[str, Tensor]  # level -> (N,), 1 = uniform
    strongest: dict[str, tuple[Tensor, int]]  # level -> (N,) largest share of a map's weight; number of positions

    @property
    def scores(self) -> dict[str, float]:
        """The means over the images that `evaluate` returns."""
        entropies = {f"entropy_{level}": values.double().nanmean() for level, values in self.entropies.items()}
        means = {"accuracy": self.correct.double().mean(), "loss": self.losses.double().mean(), **entropies}
        return {name: value.item() for name, value in means.items()}


def evaluate(
    model: Model,
    split: Split,
    precision: str = "auto",
    batch_size: int | None = None,
    *,
    normalize: Normalization | None = None,
) -> dict[str, float]:
    """Return the accuracy, the loss in nats, and the mean entropy of each level's maps: {"entropy_conv7": ..., ...}.

    An entropy is 1 for uniform maps, 0 for maps with all weight on one position, and leaves out maps without any
    weight. `split` is images with labels, such as `data.test`; the other arguments are those of `ltpa.attend`.
    """
    return evaluate_images(model, split, precision, batch_size, normalize=normalize).scores


def evaluate_images(
    model: Model,
    split: Split,
    precision: str = "auto",
    batch_size: int | None = None,
    processes: Processes = ALONE,
    *,
    normalize: Normalization | None = None,
    outputs: Callable[[slice], Iterable[tuple[slice, AttentionOutput]]] | None = None,
) -> Evaluation:
    """Evaluate a model image by image; several processes share the images, and each gets all results.

    `outputs`, if given, yields the model's answers for a slice of the images in place of `attend_batches`.
    """
    if not isinstance(split, Split):
        hint = "a data set has two: data.test" if hasattr(split, "test") else "ltpa.Split(images, labels) makes one"
        raise TypeError(f"split must be images with labels, not {type(split).__name__}; {hint}")
    if not len(split):
        raise ValueError("there are no images to evaluate on")
    if split.labels.shape != (len(split),):
        raise ValueError(f"one label an image is needed: {len(split)} images, labels {tuple(split.labels.shape)}")
    bounds = processes.bounds(len(split))
    labels = split.labels[bounds]
    outputs = outputs or (
        lambda part: attend_batches(model, split.part(part), precision, batch_size, normalize=normalize)
    )
    own = list(_evaluated_batches(outputs(bounds), labels)) if len(labels) else []
    batches = [batch for theirs in processes.gather(own) for batch in theirs]
    return Evaluation(
        torch.cat([batch.predictions for batch in batches]),
        torch.cat([batch.correct for batch in batches]),
        torch.cat([batch.losses for batch in batches]),
        {level: torch.cat([batch.entropies[level] for batch in batches]) for level in batches[0].entropies},
        {
            level: (torch.cat([batch.strongest[level][0] for batch in batches]), positions)
            for level, (_, positions) in batches[0].strongest.items()
        },
    )


def _evaluated_batches(outputs: Iterable[tuple[slice, AttentionOutput]], all_labels: Tensor) -> Iterator[Evaluation]:
    for part, output in outputs:
        labels, logits = all_labels[part], output.logits.float()
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ValueError(f"labels must lie in 0 ... {logits.shape[1] - 1}, the classes of the model")
        labels = labels.to(logits.device)
        predictions = logits.argmax(1)
        flat = {level: maps.flatten(1).float() for level, maps in output.maps.items()}
        yield Evaluation(
            predictions.cpu(),
            (predictions == labels).cpu(),
            torch.nn.functional.cross_entropy(logits, labels, reduction="none").cpu(),
            {level: entropy(maps).cpu() for level, maps in output.maps.items()},
            {level: ((maps.amax(1) / maps.sum(1)).cpu(), maps.shape[1]) for level, maps in flat.items()},
        )
