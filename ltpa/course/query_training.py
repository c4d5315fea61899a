"""Training with queries: scenes of two objects, a query, and as the label the class of the object that it shows.

Training on single objects never needs a query: whatever attracts attention is the only object there is. Here the label
depends on it. A copy of a trained model is trained further; only the query's global feature says which object counts,
and the logits are made of what the map gathers from the scene.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from ..data.dataset import Split
from ..inference import choose_precision
from ..models.networks import ImageClassifier
from ..progress import Progress
from ..training.optim import WARM_UP, Steps, make_optimizer, schedule
from ..training.run import Run
from ..training.trainer import train_step
from .query_scenes import draw_queries

BATCH, PEAK = 64, 0.02  # scenes a step, and the peak of the learning rate


class WithQuery(nn.Module):
    """A model with the query in its input: scenes and queries (N, 2, 3, H, W) -> logits of the scenes."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the logits that the maps of the queries give."""
        scenes, queries = pairs.unbind(1)
        return self.model.compute(scenes, query=queries).logits


def learn_to_ask(run: Run, scenes: Split, bank: Split, steps: int, progress: bool = True) -> ImageClassifier:
    """Train a copy of a run's model to name the object of a scene that a query, drawn from the bank, shows.

    Precision and seed are those of the run; its maps must depend on the global feature. 0 steps give an unchanged copy.
    """
    if not run.model.uses_global_feature:
        raise ValueError(f"{run.config.model} with softmax cannot learn from queries: its map does not depend on g")
    model = copy.deepcopy(run.model)
    device = model.mean.device
    dtype = choose_precision(run.config.precision, device)
    optimizer = make_optimizer(model, learning_rate=PEAK, weight_decay=run.config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    network, steps_done = WithQuery(model), Steps(steps)
    generator = torch.Generator().manual_seed(run.config.seed)
    model.train()
    with Progress(steps, show=progress) as bar, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.config.seed)  # of dropout
        for step in range(steps):
            part = scenes[torch.randint(len(scenes), (BATCH,), generator=generator)]
            drawn = draw_queries(part, bank, seed=run.config.seed * 1_000_003 + step)
            which = torch.randint(2, (BATCH,), generator=generator)  # the first or the second object
            queries = drawn.images[which, torch.arange(BATCH)]
            labels = drawn.labels[which, torch.arange(BATCH)]
            loss, _ = train_step(
                network,
                optimizer,
                scaler,
                torch.stack([part.images, queries], dim=1).to(device),
                labels.to(device),
                factor=schedule(steps_done.done(step), WARM_UP["muon"]),
                smoothing=0.1,
                dtype=dtype,
            )
            bar.update(step + 1, partial(_words, loss))
    return model.eval()


def _words(loss: Tensor) -> tuple[str, str]:
    """Return what the progress bar says; reading the loss waits for the GPU."""
    return "training with queries", f"loss {loss.item():.3f}"
