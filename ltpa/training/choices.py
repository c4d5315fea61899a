"""Values for settings that are None, chosen once before training."""

import dataclasses
from typing import Any, NamedTuple

from ..config import TrainConfig
from ..data.dataset import Dataset
from ..data.images import MAX_SIDE, MIN_SIDE
from ..models.networks import is_backbone
from ..progress import logger

# Peak learning rates at 128 images a step; they grow with the square root of the batch size.
RATES = {"muon": 0.06, "sgd": 0.1, "adamw": 1e-3}
BACKBONE_RATE = 2e-3  # of what reads a backbone, with adamw
MANY = 20_000  # images


def chosen(config: TrainConfig, data: Dataset | None = None) -> TrainConfig:
    """Return the settings with a suitable value in place of every None that asks for one.

    Without `data`, many images are assumed. With a backbone, images have their whole size from the start.
    """
    count = MANY if data is None else len(data.train)
    side = config.side if data is None else max(MIN_SIDE, min(MAX_SIDE, data.train.shape[-1]))
    backbone = is_backbone(config.model)
    optimizer = config.optimizer or ("adamw" if backbone else "muon")
    batch_size = config.batch_size or _batch_size(count, backbone)
    rate = (BACKBONE_RATE if backbone and optimizer == "adamw" else RATES[optimizer]) * (batch_size / 128) ** 0.5
    suiting: dict[str, Any] = {
        "image_size": config.image_size or side,
        "epochs": config.epochs or _epochs(config, count),
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": config.learning_rate or float(f"{rate:.3g}"),
        "progressive_resizing": config.progressive_resizing and not backbone,
    }
    if all(getattr(config, name) == value for name, value in suiting.items()):
        return config
    # The folder is that of the settings as they were given.
    return dataclasses.replace(config, **suiting, run_dir=str(config.path))


class Numbers(NamedTuple):
    """The settings that `chosen` has filled in, none of them None."""

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float


def numbers_of(config: TrainConfig) -> Numbers:
    """Return the values that `chosen` has filled in."""
    values = (config.epochs, config.batch_size, config.optimizer, config.learning_rate)
    assert None not in values, "`chosen` comes first"
    return Numbers(*values)  # type: ignore[arg-type]


def log_choices(given: TrainConfig, config: TrainConfig) -> None:
    """Log the values that `chosen` has put in place of None."""
    values = dataclasses.asdict(config)
    names = [name for name, value in dataclasses.asdict(given).items() if value is None and values[name] is not None]
    if names := [name for name in names if name != "run_dir"]:
        logger.info(f"chosen: {', '.join(f'{name}={values[name]!r}' for name in names)}")


def _batch_size(count: int, backbone: bool) -> int:
    """Return a power of two with at least seven steps an epoch: from 16 to 512, or to 32 with a backbone."""
    return min(32 if backbone else 512, 1 << max(4, (count // 7).bit_length() - 1))


def _epochs(config: TrainConfig, count: int) -> int:
    """Return more epochs for fewer images, and for a frozen backbone, whose epochs are cheap."""
    if not is_backbone(config.model):
        return 10 if count >= MANY else 20 if count >= 1000 else 40
    if config.freeze:
        return 15 if count < 2000 else 10
    return 12 if count < 2000 else 6
