"""Running a model over many images: device, precision, batches."""

import platform
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .data import Split
from .measure import entropy
from .models import Attended, ImageClassifier

BATCH = 500


def choose_device(name: str = "auto") -> torch.device:
    """The device for "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ValueError: a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(
            f"device={name!r}: this machine has {found} CUDA GPU{'' if found == 1 else 's'}; "
            "on Colab choose Runtime > Change runtime type > T4 GPU, or set device='auto'"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={name!r}: this machine has no Apple GPU; set device='auto'")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of convolutions: "auto" is bf16 where the hardware is fast at it, else fp16 on a CUDA GPU, else fp32.

    Fast at bf16 are CUDA capability 8 and up, and CPUs with AMX or AVX512-BF16 instructions.

    Raises:
        ValueError: fp16 on anything but a GPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision='fp16' needs a GPU; on a CPU choose 'auto', 'bf16' or 'fp32'")
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
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


@torch.inference_mode()
def attend_batches(
    model: ImageClassifier, images: Tensor, precision: str = "auto", batch_size: int = BATCH
) -> Iterator[tuple[slice, Attended]]:
    """Runs a model in evaluation mode over images, batch by batch, on the model's device.

    Args:
        model: any model of `ltpa.create_model`; its training mode is restored afterwards.
        images: uint8, or float in [0, 1], (N, 3, H, W), on any device.
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: images at once; memory does not grow with N.

    Yields:
        which images, and what the model saw in them.
    """
    device = model.mean.device
    dtype = choose_precision(precision, device)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(images), batch_size):
            part = slice(start, min(start + batch_size, len(images)))
            batch = to_float(images[part].to(device)).contiguous(memory_format=torch.channels_last)
            with autocast(device, dtype):
                yield part, model.attend(batch)
    finally:
        model.train(was_training)


def attend(model: ImageClassifier, images: Tensor, precision: str = "auto", batch_size: int = BATCH) -> Attended:
    """`model.attend` for any number of images: float32 results on the CPU, without gradients.

    Args:
        model, images, precision, batch_size: see `attend_batches`.
    """
    found = [seen for _, seen in attend_batches(model, images, precision, batch_size)]
    if not found:
        raise ValueError("there are no images to look at")

    def join(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.float().cpu() for part in parts]).clone()

    return Attended(
        logits=join([seen.logits for seen in found]),
        maps=OrderedDict((level, join([seen.maps[level] for seen in found])) for level in found[0].maps),
        scores=OrderedDict((level, join([seen.scores[level] for seen in found])) for level in found[0].scores),
        global_feature=None if found[0].global_feature is None else join([seen.global_feature for seen in found]),
    )


def evaluate(
    model: ImageClassifier, split: Split, precision: str = "auto", batch_size: int = BATCH
) -> dict[str, float]:
    """Accuracy in [0, 1], cross-entropy in nats, and the mean entropy of each level's maps (1 = uniform).

    Args:
        model, precision, batch_size: see `attend_batches`.
        split: images and labels.

    Returns:
        {"accuracy": ..., "loss": ..., "entropy_conv7": ..., ...}.
    """
    sums: dict[str, float] = {}
    for part, seen in attend_batches(model, split.images, precision, batch_size):
        labels = split.labels[part].to(seen.logits.device)
        logits = seen.logits.float()
        found = {
            "accuracy": (logits.argmax(1) == labels).sum(),
            "loss": torch.nn.functional.cross_entropy(logits, labels, reduction="sum"),
            **{f"entropy_{level}": entropy(maps).sum() for level, maps in seen.maps.items()},
        }
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + value.item()
    return {key: value / len(split) for key, value in sums.items()}
