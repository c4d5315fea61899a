"""Linear probes: what a linear classifier makes of the frozen features of networks, of untrained networks, of pixels.

The paper (Jetley et al. 2018, arXiv 1804.02391) reads the descriptors `g_s` of a trained network with a linear
classifier on other data sets. A linear classifier alone can do much, and so can a network with random weights: only
what a trained network adds to the pixels and to its own untrained self has been transferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import Dataset
from ..data.split import stratified
from ..inference import attend, images_at_once, to_float
from ..metrics.statistics import Interval, t_interval
from ..models.backbones import VGGTrunk
from ..models.classifier import ImageClassifier, evaluation_mode
from ..training.run import Run
from .grid import Grid

PIXELS, UNTRAINED = "pixels", ", untrained"
STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # C of the logistic regression: small is strongly regularized


def features(model: ImageClassifier, images: Tensor) -> dict[str, Tensor]:
    """Return what a linear classifier may read of a network that is not trained further, in float32.

    "g_s" are the descriptors of all levels side by side (N, sum of C), of a model with attention; "mean" the mean of
    the local features of the same levels, of a VGG without; "g" is the global feature (N, C), of a model that has one.
    """
    output = attend(model, images, "fp32")
    if output.descriptors:
        kinds = {"g_s": torch.cat(list(output.descriptors.values()), dim=1)}
    else:
        kinds = {"mean": mean_features(model, images)} if isinstance(getattr(model, "trunk", None), VGGTrunk) else {}
    return kinds | ({} if output.global_feature is None else {"g": output.global_feature})


@torch.inference_mode()
def mean_features(model: Any, images: Tensor) -> Tensor:
    """Return the local features of all levels of a model's trunk, averaged over the positions (N, sum of C)."""
    with evaluation_mode(model):
        batches = (to_float(batch.to(model.mean.device)) for batch in images.split(images_at_once(images)))
        levels = (model.trunk(model.normalize(batch)).values() for batch in batches)
        return torch.cat([torch.cat([local.mean((2, 3)) for local in of], dim=1).cpu() for of in levels])


def untrained(run: Run) -> ImageClassifier:
    """Return a run's network as it was before training: the random weights of its seed."""
    config = run.config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = config.create_model(len(run.classes))
    model.mean.copy_(run.model.mean)
    model.std.copy_(run.model.std)
    return model.to(run.model.mean.device).eval()


def linear_answers(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Return the answers of scikit-learn's logistic regression on standardized features.

    How strongly it is regularized is chosen by cross-validation on the training images alone (3 folds, or 2 where a
    class has no more). `train` (N, C) has two or more images of each class.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits  # scikit-learn needs it too
    except ImportError as error:
        raise ImportError("linear classifiers need scikit-learn: pip install 'ltpa[notebooks]'") from error
    least = int(labels.unique(return_counts=True)[1].min())
    if least < 2:
        raise ValueError("every class needs two labeled images or more, one to learn from and one to choose by")
    folds = StratifiedKFold(min(3, least), shuffle=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, cv=folds)
    # In float64 the solver converges to what other solvers find. Its steps are too small for several threads.
    with threadpool_limits(1):
        search.fit(train.double().numpy(), labels.numpy())
    return torch.from_numpy(search.predict(test.double().numpy())).long()


def labeled(labels: Tensor, count: int | None, seed: int) -> Tensor:
    """Return the indices of `count` images a class (fewer of a class that is smaller); None is all images."""
    if count is None:
        return torch.arange(len(labels))
    sizes = labels.unique(return_counts=True)[1]
    return stratified(labels, sum(min(count, size) for size in sizes.tolist()), seed)


def count_words(count: int | None) -> str:
    """Return a number of labels in words."""
    return "all labels" if count is None else f"{count} labels a class"


@dataclass(frozen=True)
class Probes:
    """What linear classifiers made of features of the grid's runs, on the target data set.

    Attributes:
        correct: number of labels a class (None: all) -> features -> seed -> bool (M,), whether each test image of the
            target is classified rightly. Features are "pixels", "<variant>: g_s", "<variant>: g", and the last two
            with ", untrained".
    """

    grid: Grid
    target: Dataset
    correct: dict[int | None, dict[str, dict[int, Tensor]]]

    @property
    def names(self) -> list[str]:
        """All features, the trained ones first, the pixels last."""
        names = dict.fromkeys(name for by_name in self.correct.values() for name in by_name)
        return sorted(names, key=lambda name: (name == PIXELS, name.endswith(UNTRAINED)))

    @property
    def trained(self) -> list[str]:
        """The features of trained networks."""
        return [name for name in self.names if name != PIXELS and not name.endswith(UNTRAINED)]

    @property
    def baseline(self) -> str:
        """The features that descriptors are compared with: the baseline's from the same levels."""
        baseline = self.grid.config.baseline
        return next((name for name in self.trained if name.rpartition(": ")[0] == baseline), f"{baseline}: mean")

    @property
    def descriptors(self) -> list[str]:
        """The descriptors of trained networks, without the baseline's."""
        return [name for name in self.trained if name.endswith(": g_s") and name != self.baseline]

    def accuracies(self, count: int | None, name: str) -> list[float]:
        """Return the accuracy of each seed, in [0, 1]."""
        return [correct.double().mean().item() for correct in self.correct[count][name].values()]

    def accuracy(self, count: int | None, name: str) -> Interval:
        """Return the mean accuracy with its interval over seeds."""
        return t_interval(self.accuracies(count, name), bounds=(0, 1))


def probe_grid(grid: Grid, target: Dataset, per_class: Sequence[int | None]) -> Probes:
    """Try linear classifiers on the features of every run, on those of its untrained self and on the pixels.

    `per_class` are numbers of labeled images a class; None is all.
    """
    probes = Probes(grid, target, {count: {} for count in per_class})
    pixels = [to_float(part.images).flatten(1) for part in (target.train, target.test)]
    for seed in dict.fromkeys(result.cell.seed for result in grid.results):
        _probe(probes, PIXELS, seed, *pixels)
    for result in grid.results:
        for model, suffix in ((result.run.model, ""), (untrained(result.run), UNTRAINED)):
            train, test = (features(model, part.images) for part in (target.train, target.test))
            for kind in train:
                _probe(probes, f"{result.cell.variant}: {kind}{suffix}", result.cell.seed, train[kind], test[kind])
    return probes


def _probe(probes: Probes, name: str, seed: int, train: Tensor, test: Tensor) -> None:
    labels, percent = probes.target.train.labels, []
    for count, by_name in probes.correct.items():
        chosen = labeled(labels, count, seed)
        correct = linear_answers(train[chosen], labels[chosen], test) == probes.target.test.labels
        by_name.setdefault(name, {})[seed] = correct
        percent.append(f"{100 * correct.double().mean():.1f}")
    print(f"{name}, seed {seed}: {', '.join(percent)} % right")
