"""What settings that are None stand for: chosen once, before anything else is done with them."""

import dataclasses

from ..config import TrainConfig

# Peak learning rates at 128 images a step; they grow with the square root of the batch size.
RATES = {"muon": 0.06, "sgd": 0.1, "adamw": 1e-3}


def chosen(config: TrainConfig) -> TrainConfig:
    """Return the settings with a value in place of every None that means "what suits"; others stay as they are."""
    optimizer = config.optimizer or "muon"
    rate = config.learning_rate
    if rate is None:
        rate = float(f"{RATES[optimizer] * (config.batch_size / 128) ** 0.5:.3g}")
    if (optimizer, rate) == (config.optimizer, config.learning_rate):
        return config
    # The folder is that of the settings as they were given.
    return dataclasses.replace(config, optimizer=optimizer, learning_rate=rate, run_dir=str(config.path))
