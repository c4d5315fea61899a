"""What a training needs: checked data, processes that agree, seeded generators."""

from collections.abc import Mapping
from typing import Any

import torch

from ..config import TrainConfig
from ..data.dataset import Dataset, load_data
from ..distributed import Processes
from ..inference import check_split
from .loader import steps_per_epoch
from .run import fingerprint


def data_for(config: TrainConfig, download: bool = True, test_only: bool = False) -> Dataset:
    """Return the data set of the settings; with `validation`, held-out training images are its test split.

    A folder's own validation images take their place. `test_only` leaves out the training images, unless `validation`
    needs them.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(f"data_for takes the settings, an ltpa.TrainConfig (run.config), not {type(config).__name__}")
    return load_data(
        config.dataset,
        config.data_dir,
        image_size=config.side,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
        download=download,
        memory_gb=config.memory_gb,
        test_only=test_only,
        validation=config.validation,
        skip_broken=config.skip_broken,
    )


def check_arguments(config: Any, data: Any) -> None:
    """Refuse anything but settings and a data set."""
    if not isinstance(config, TrainConfig):
        hint = "; of a dictionary: TrainConfig(**settings)" if isinstance(config, Mapping) else ""
        raise TypeError(f"config must be a TrainConfig, such as TrainConfig(epochs=10), not {config!r:.60}{hint}")
    if data is not None and not isinstance(data, Dataset):
        raise TypeError(f"data must be a Dataset, as ltpa.load_data returns it, not {type(data).__name__}")


def check_data(data: Dataset, batch_size: int, processes: Processes) -> None:
    """Refuse images, labels and batch sizes that cannot be trained on."""
    if data.train.labels.ndim != 1:
        raise ValueError("training needs one label an image; scenes of two objects are for looking, not for training")
    if len(data.train) < 2 or not len(data.test):
        raise ValueError(f"{len(data.train)} training and {len(data.test)} test images are too few to train and test")
    if len(data.classes) < 2 or not all(isinstance(name, str) for name in data.classes):
        raise ValueError(f"a classifier needs the names of at least two classes, not {data.classes!r}")
    for name, split in (("training", data.train), ("test", data.test)):
        if split.labels.shape != (len(split),) or split.labels.dtype != torch.int64:
            raise ValueError(f"{name} labels must be {len(split)} of int64, as many as images")
        outside = int(((split.labels < 0) | (split.labels >= len(data.classes))).sum())
        if outside:
            raise ValueError(f"{outside} {name} labels lie outside 0 ... {len(data.classes) - 1}, the known classes")
        if split.dtype not in (torch.uint8, torch.float32):
            raise TypeError(f"{name} images must be uint8 (or float32 in [0, 1]), not {split.dtype}")
        check_split(split, f"{name} images")
    count = processes.count
    if batch_size % count or batch_size < 2 * count:
        nearest = max(2, round(batch_size / count)) * count
        raise ValueError(
            f"batch_size={batch_size} is divided among {count} processes, which needs a multiple of {count}, from "
            f"{2 * count} up (batch norm compares images): take batch_size={nearest}, or another number of processes"
        )
    if count > 1 and len(data.train) // steps_per_epoch(len(data.train), batch_size) < 2 * count:
        raise ValueError(f"{len(data.train)} training images are too few for {count} processes; start fewer")


def check_alike(processes: Processes, settings: dict[str, Any], data: Dataset, dtype: torch.dtype) -> None:
    """Refuse processes that differ in settings, images or precision."""
    if processes.count > 1:
        own = processes.together(fingerprint, data) | settings | {"precision": str(dtype)}
        processes.together(_compare, own, processes.gather(own), processes.rank)


def _compare(own: dict[str, Any], everyone: list[dict[str, Any]], rank: int) -> None:
    for other_rank, other in enumerate(everyone):
        differing = [f"{name} ({own[name]!r}, {value!r})" for name, value in other.items() if own[name] != value]
        if differing:
            raise ValueError(
                f"processes {rank} and {other_rank} differ in {'; '.join(differing)}; give all the same options, the "
                "same data and, where their hardware differs, the same precision"
            )


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed as `torch.manual_seed` does, except the generators of GPUs that are not in use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
