"""Running a model over many images: device, precision, batches."""

import math
import platform
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor

from .data.dataset import Split
from .data.files import ImageFiles
from .distributed import ALONE, Processes, launched
from .errors import closest
from .maps import entropy
from .models.backbones import check_images
from .models.networks import AttentionOutput, ImageClassifier, pairs

BATCH_PIXELS = 500 * 32 * 32  # of the images that are looked at together, unless another number of them is asked for
_BY_LEVEL = ("maps", "scores", "descriptors")  # what `AttentionOutput` has for each level
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device for "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or "mps".

    Under torchrun every process of a machine has a GPU of its own.

    Raises:
        ValueError: a device that this machine does not have, or more processes than GPUs.
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
            f"device={name!r}: this machine has {gpus} CUDA GPU{'' if gpus == 1 else 's'}; "
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
            f"{processes.local_count} processes on this machine, and {gpus} GPU{'' if gpus == 1 else 's'}: start as "
            f"many processes as there are GPUs (torchrun --nproc-per-node {gpus}), or set device='cpu'"
        )
    return torch.device("cuda", processes.local_rank)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of convolutions: "auto" is bf16 where the hardware is fast at it, else fp16 on a CUDA GPU, else fp32.

    Fast at bf16 are CUDA capability 8 and up, and CPUs with AMX or AVX512-BF16 instructions.

    Raises:
        ValueError: an unknown name, or fp16 on anything but a GPU.
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
    """The context in which a model computes in `dtype`."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def to_float(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [0, 1]; float images pass."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def images_at_once(images: Tensor | ImageFiles, batch_size: int | None = None) -> int:
    """A batch size as it was asked for; for None one that needs as much memory for large images as for small ones.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size is None:
        return max(1, BATCH_PIXELS // (images.shape[-2] * images.shape[-1]))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size


@torch.inference_mode()
def attend_batches(
    model: ImageClassifier,
    images: Tensor | ImageFiles,
    precision: str = "auto",
    batch_size: int | None = None,
    *,
    query: Tensor | None = None,
) -> Iterator[tuple[slice, AttentionOutput]]:
    """Runs a model in evaluation mode over images, batch by batch, on the model's device.

    Args:
        model: any model of `ltpa.create_model`; its training mode is restored afterwards.
        images: uint8, or float in [0, 1], (N, 3, H, W), on any device or in files.
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: images at once; memory does not grow with N. None is 500 of 32x32 pixels, fewer of larger ones.
        query: None, or images like `images`: see `AttentionNetwork.attend`. One query stands for all
            images, or one image for all queries, and N is the larger number.

    Yields:
        which images (or queries, where they are more), and what the model saw in them.

    Raises:
        TypeError, ValueError: images or a query that no model here can read; see also `choose_precision`.
    """
    asked = {} if query is None else {"query": query}
    for name, value in {"images": images, **asked}.items():
        if not isinstance(value, Tensor | ImageFiles):
            raise TypeError(f"{name} must be a tensor (N, 3, H, W), not {type(value).__name__}")
        check_images(to_float(value[:1] if value.ndim else value), name)
    batch_size = images_at_once(images, batch_size)
    device = model.mean.device
    dtype = choose_precision(precision, device)
    count = len(images) if query is None else pairs(len(images), len(query))

    parts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]

    def batches(values: Tensor | ImageFiles) -> Iterator[Tensor]:
        if isinstance(values, ImageFiles):
            read = values.batches([torch.arange(len(values))[part if len(values) > 1 else slice(1)] for part in parts])
        else:
            read = (values if len(values) == 1 else values[part] for part in parts)
        for batch in read:
            yield to_float(batch.to(device)).to(model.mean.dtype, memory_format=torch.channels_last)

    was_training = model.training
    model.eval()
    try:
        queries = [repeat(None, len(parts))] if query is None else [batches(query)]
        for part, batch, asking in zip(parts, batches(images), *queries, strict=True):
            with autocast(device, dtype):
                seen = model.attend(batch, **({} if query is None else {"query": asking}))
            yield part, seen
    finally:
        model.train(was_training)


def attend(
    model: ImageClassifier,
    images: Tensor | ImageFiles,
    precision: str = "auto",
    batch_size: int | None = None,
    *,
    query: Tensor | None = None,
) -> AttentionOutput:
    """`model.attend` for any number of images: float32 results on the CPU, without gradients.

    Args:
        model, images, precision, batch_size, query: see `attend_batches`.

    Raises:
        TypeError, ValueError: no images, or see `attend_batches`.
    """
    found = [_to_cpu(seen) for _, seen in attend_batches(model, images, precision, batch_size, query=query)]
    if not found:
        raise ValueError("there are no images to look at")
    return AttentionOutput(
        logits=torch.cat([seen.logits for seen in found]),
        global_feature=None if found[0].global_feature is None else torch.cat([seen.global_feature for seen in found]),
        **{
            name: OrderedDict(
                (level, torch.cat([getattr(seen, name)[level] for seen in found])) for level in getattr(found[0], name)
            )
            for name in _BY_LEVEL
        },
    )


def _to_cpu(seen: AttentionOutput) -> AttentionOutput:
    """In float32 and on the CPU, so that the results of many batches do not fill the GPU."""
    g = seen.global_feature
    return AttentionOutput(
        logits=seen.logits.float().cpu(),
        global_feature=None if g is None else g.float().cpu(),
        **{
            name: OrderedDict((level, values.float().cpu()) for level, values in getattr(seen, name).items())
            for name in _BY_LEVEL
        },
    )


def evaluate(
    model: ImageClassifier, split: Split, precision: str = "auto", batch_size: int | None = None
) -> dict[str, float]:
    """Accuracy in [0, 1], cross-entropy in nats, and the mean entropy of each level's maps (1 = uniform).

    Args:
        model, precision, batch_size: see `attend_batches`.
        split: images and labels.

    Returns:
        {"accuracy": ..., "loss": ..., "entropy_conv7": ..., ...}; NaN where no image has a map with any weight.

    Raises:
        TypeError, ValueError: no images, labels that are not one class an image, or see `attend_batches`.
    """
    return examine(model, split, precision, batch_size).scores


@dataclass(frozen=True)
class Examined:
    """What a model does with test images.

    Attributes:
        scores: see `evaluate`.
        predictions: int64 (N,), the class that each image is taken for.
        strongest: of each level, the share (N,) of each map's weight that its strongest position has (NaN for a map
            without any weight), and the number of positions.
    """

    scores: dict[str, float]
    predictions: Tensor
    strongest: dict[str, tuple[Tensor, int]]


def examine(
    model: ImageClassifier,
    split: Split,
    precision: str = "auto",
    batch_size: int | None = None,
    processes: Processes = ALONE,
) -> Examined:
    """`evaluate`, and for each image what it is taken for and how much of a map its strongest position has.

    Several processes share the images, and every one gets the result for all.
    """
    if not len(split):
        raise ValueError("there are no images to evaluate on")
    if split.labels.shape != (len(split),):
        raise ValueError(f"one label an image is needed: {len(split)} images, labels {tuple(split.labels.shape)}")
    found = processes.gather(_tally(model, split.part(processes.bounds(len(split))), precision, batch_size))
    scores = {}
    for key in dict.fromkeys(key for tally in found for key in tally.sums):
        count = sum(tally.counts.get(key, 0) for tally in found)
        scores[key] = sum(tally.sums.get(key, 0.0) for tally in found) / count if count else math.nan
    strongest = [tally.strongest for tally in found if tally.strongest]
    return Examined(
        scores=scores,
        predictions=torch.cat([part for tally in found for part in tally.predictions]),
        strongest={
            level: (torch.cat([part for shares in strongest for part in shares[level][0]]), positions)
            for level, (_, positions) in (strongest[0] if strongest else {}).items()
        },
    )


@dataclass
class _Tally:
    """What is summed up over batches; an `Examined` of the images of one process is made of it."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    predictions: list[Tensor] = field(default_factory=list)
    strongest: dict[str, tuple[list[Tensor], int]] = field(default_factory=dict)


def _tally(model: ImageClassifier, split: Split, precision: str, batch_size: int | None) -> _Tally:
    tally = _Tally()
    for part, seen in attend_batches(model, split.images, precision, batch_size) if len(split) else ():
        labels, logits = split.labels[part], seen.logits.float()
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ValueError(f"labels must lie in 0 ... {logits.shape[1] - 1}, the classes of the model")
        labels = labels.to(logits.device)
        predicted = logits.argmax(1)
        tally.predictions.append(predicted.cpu())
        found = {
            "accuracy": ((predicted == labels).sum(), len(labels)),
            "loss": (torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), len(labels)),
        }
        for level, maps in seen.maps.items():
            # A class activation map may be nowhere positive and then has no entropy: the mean is over the others.
            values = entropy(maps)
            values = values[~values.isnan()]
            found[f"entropy_{level}"] = (values.sum(), len(values))
            flat = maps.flatten(1).float()
            shares, _ = tally.strongest.setdefault(level, ([], flat.shape[1]))
            shares.append((flat.amax(1) / flat.sum(1)).cpu())
        for key, (value, count) in found.items():
            tally.sums[key] = tally.sums.get(key, 0.0) + value.item()
            tally.counts[key] = tally.counts.get(key, 0) + count
    return tally
