"""Teaching a network to be asked: scenes of two objects, a query, and the class of the one that it shows.

Training on single objects never needs the query: what attracts attention is the only object there is. Here the label
depends on it. A copy of a trained model goes on training; the query's global feature is all that tells which object
counts, and the logits are made of what the map gathers from the scene.
"""

import copy
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import (
    QUICK,
    BatchSize,
    Count,
    Device,
    EachOnce,
    FilePath,
    LearningRate,
    Limit,
    Seed,
    SettingsBase,
    Variant,
    Width,
    settings,
)
from ..data.dataset import Split
from ..data.samples import photographs
from ..inference import choose_precision
from ..models.networks import ImageClassifier
from ..progress import Progress
from ..training.optim import Steps, make_optimizer, one_cycle
from ..training.run import Run, load_run
from ..training.trainer import train_step
from .ablation import AblationConfig
from .query_scenes import Questions, draw_questions, side_by_side
from .setup import test_data

BATCH, PEAK = 64, 0.03  # scenes a step, and the peak of the learning rate


class Asked(nn.Module):
    """A model with a question in its input: scenes and queries (N, 2, 3, H, W) -> logits of the scenes."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pairs: Tensor) -> Tensor:
        """Return what the model sees where the queries direct it."""
        scenes, queries = pairs.unbind(1)
        return self.model.attend(scenes, query=queries).logits


def _describe(loss: Tensor) -> tuple[str, str]:
    return "learning to be asked", f"loss {loss.item():.3f}"


def learn_to_ask(run: Run, scenes: Split, bank: Split, steps: int, progress: bool = True) -> ImageClassifier:
    """Trains a copy of a run's model to answer for the object of a scene that a query shows.

    Args:
        run: a run whose maps depend on the global feature; it stays as it is. Precision and seed are those of the run.
        scenes: scenes of two objects for training, labels (N, 2).
        bank: single images for training, from which the queries are drawn.
        steps: optimizer steps; 0 gives an unchanged copy.
        progress: show a progress bar.

    Raises:
        ValueError: a model that no query can steer, or data that are no such scenes.
    """
    if not run.model.uses_global_feature:
        raise ValueError(f"{run.config.model} with softmax cannot learn to be asked: its map does not depend on g")
    model = copy.deepcopy(run.model)
    device = model.mean.device
    dtype = choose_precision(run.config.precision, device)
    optimizer = make_optimizer(model, learning_rate=PEAK, weight_decay=run.config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    network, schedule = Asked(model), Steps(steps)
    generator = torch.Generator().manual_seed(run.config.seed)
    model.train()
    with Progress(steps, show=progress) as bar, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.config.seed)  # of dropout
        for step in range(steps):
            part = scenes[torch.randint(len(scenes), (BATCH,), generator=generator)]
            questions = draw_questions(part, bank, seed=run.config.seed * 1_000_003 + step)
            which = torch.randint(2, (BATCH,), generator=generator)  # the first or the second object
            queries = questions.queries[which, torch.arange(BATCH)]
            labels = questions.labels[which, torch.arange(BATCH)]
            loss, _ = train_step(
                network,
                optimizer,
                scaler,
                torch.stack([part.images, queries], dim=1).to(device),
                labels.to(device),
                rate=one_cycle(schedule.done(step), PEAK),
                smoothing=0.1,
                dtype=dtype,
            )
            bar.update(step + 1, partial(_describe, loss))
    return model.eval()


@settings
class AskConfig(SettingsBase):
    """Parameters of the notebook that asks the maps."""

    models: Annotated[Sequence[Variant], EachOnce] = Field(
        tuple(f"vgg-att3-concat-{kind}{normalizer}" for kind in ("dp", "add", "pc") for normalizer in ("", " sigmoid")),
        description="variants as in notebook 03; each is trained on single objects, or found under `runs/`",
    )
    run: FilePath = Field("auto", description="a run on real images to ask too; 'auto' takes pictures of scikit-image")
    data_dir: FilePath = Field("auto", description="where that run's data lie; 'auto' is where they were in training")
    scenes: Annotated[int, Field(ge=2, le=2000)] = Field(500, description="scenes of two objects that are asked")
    steps: Annotated[int, Field(ge=0, le=10**6)] = Field(
        300, description="optimizer steps of the model that learns to be asked; 0 leaves that out"
    )
    examples: Annotated[int, Field(ge=1, le=64)] = Field(3, description="pictures a figure")
    seed: Seed = Field(0, description="of the queries; the models are trained with seed 0")
    width: Width = Field(QUICK["width"], description="of the models, as below")
    train_limit: Limit | None = None
    test_limit: Limit | None = None
    epochs: Count = QUICK["epochs"]
    batch_size: BatchSize = QUICK["batch_size"]
    learning_rate: LearningRate = QUICK["learning_rate"]
    device: Device = "auto"

    def grid(self) -> AblationConfig:
        """The runs on single objects, one a variant, as the grid that `ablation.train_missing` trains."""
        shared = {f.name for f in fields(self)} & {f.name for f in fields(AblationConfig)} - {"data_dir"}
        values = {name: getattr(self, name) for name in shared}
        return AblationConfig(baseline=self.models[0], seeds=(0,), **values)


def real_questions(config: AskConfig, otherwise: Run) -> tuple[Run, Questions, tuple[str, ...]]:
    """Questions about pairs of real pictures, the run that is to answer them, and the names of the classes.

    Args:
        config: names a run on real images, whose test images are paired (the even ones) and ask (the odd ones); with
            "auto" four photographs are paired, and each asks for itself.
        otherwise: the run that answers for the photographs.

    Raises:
        FileNotFoundError, ValueError: see `ltpa.load_run` and `ltpa.course.setup.test_data`.
        ImportError: scikit-image is missing.
    """
    if config.run == "auto":
        run, (even, classes) = otherwise, photographs()
        odd, count = even, config.examples
    else:
        run = load_run(config.run, config.device)
        data = test_data(run, config)
        even, odd, classes, count = data.test[::2], data.test[1::2], data.classes, config.scenes
    return run, draw_questions(side_by_side(even, count, config.seed), odd, config.seed), classes
