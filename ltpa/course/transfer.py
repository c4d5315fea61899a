"""Transfer: what frozen features are worth on other pictures than those they were learnt from.

The paper (Jetley et al. 2018, arXiv 1804.02391) reads the descriptors `g_s` of a trained network with a linear
classifier on other data sets. A linear classifier alone can do much, and so can a network with random weights: only
what a trained network adds to the pixels and to its own untrained self has been transferred.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..config import EachOnce, FilePath, Variant, settings
from ..data.dataset import Dataset, load_data
from ..data.split import Split, channel_statistics, stratified
from ..inference import attend, to_float
from ..metrics.statistics import CONTRADICTED, SUPPORTED, UNDECIDED, t_interval
from ..models.networks import ImageClassifier, create_model
from ..training.run import Run
from .effects import MARGIN, Comparison, compare_scores
from .grid import MODELS, AblationConfig, Grid

CLAIM = "Features with attention transfer better"
PIXELS, UNTRAINED = "pixels", ", untrained"
STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # C of the logistic regression: small is strongly regularized
_DIGITS_TEST = 450  # of scikit-learn's 1,797


@settings
class TransferConfig(AblationConfig):
    """Parameters of the test of transfer: those of the ablation whose runs are read, and the target's."""

    models: Annotated[Sequence[Variant], EachOnce] = MODELS
    target: Literal["digits", "shapes", "cifar10", "cifar100", "svhn", "folder"] = Field(
        "digits", description="the other data set; 'digits' is scikit-learn's, without a download"
    )
    target_dir: FilePath = Field("data", description="folder of its download, or of your own images")
    target_train_limit: Annotated[int, Field(ge=20, le=10**9)] | None = Field(
        None, description="use at most so many of its training images"
    )
    target_test_limit: Annotated[int, Field(ge=2, le=10**9)] | None = Field(
        None, description="use at most so many of its test images"
    )
    per_class: Annotated[Sequence[Annotated[int, Field(ge=2, le=10**9)] | None], EachOnce] = Field(
        (5, 20, 100, None), description="numbers of labeled images a class; None is all. The seed chooses which"
    )

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Refuse a target that the networks are trained on, and models without features to transfer."""
        lines = super().contradictions(values)
        target, folders = values.get("target"), [values.get(name) for name in ("target_dir", "data_dir")]
        same_folder = None not in folders and len({Path(str(f)).expanduser().absolute() for f in folders}) == 1
        if target and target == values.get("dataset") and (target != "folder" or same_folder):
            lines.append(f"target={target!r} is what the networks are trained on: choose another")
        if "vgg-gap" in {values.get("baseline"), *values.get("models", ())}:
            lines.append("vgg-gap has neither g_s nor g: take it out of models and baseline")
        return lines

    def target_data(self) -> Dataset:
        """The data set that the features are tried on."""
        if self.target == "digits":
            return digits(self.target_train_limit, self.target_test_limit)
        limits = {"train_limit": self.target_train_limit, "test_limit": self.target_test_limit}
        return load_data(self.target, self.target_dir, **limits)


def digits(train_limit: int | None = None, test_limit: int | None = None, image_size: int = 32) -> Dataset:
    """scikit-learn's digits (8x8 gray, from UCI): scaled up, 450 of the 1,797 set aside for the test, the same always.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits need scikit-learn: pip install 'ltpa[notebooks]'") from error
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels).long()
    images = torch.nn.functional.interpolate(images, size=(image_size, image_size), mode="bilinear")
    everything = Split((255 * images).round().byte().expand(-1, 3, -1, -1).contiguous(), labels)
    taken = stratified(labels, _DIGITS_TEST, seed=0, proportional=True)
    kept = torch.ones(len(labels), dtype=torch.bool).index_fill(0, taken, False)
    train, test = everything[kept.nonzero().squeeze(1)], everything[taken]
    train, test = (
        part if limit is None or limit >= len(part) else part[stratified(part.labels, limit, seed=0)]
        for part, limit in ((train, train_limit), (test, test_limit))
    )
    return Dataset("digits", tuple("0123456789"), train, test, *channel_statistics(train.images))


def features(model: ImageClassifier, images: Tensor) -> dict[str, Tensor]:
    """What a linear classifier may read of a network that is not trained further, in float32.

    Args:
        model: any model of `ltpa.create_model`.
        images: (N, 3, H, W), uint8, or float in [0, 1].

    Returns:
        "g_s": the descriptors of all levels side by side (N, sum of C), of a model with attention; "g": the global
        feature (N, C), of a model that has one.
    """
    seen = attend(model, images, "fp32")
    found = {"g_s": torch.cat(list(seen.descriptors.values()), dim=1)} if seen.descriptors else {}
    return found | ({} if seen.global_feature is None else {"g": seen.global_feature})


def untrained(run: Run) -> ImageClassifier:
    """A run's network as it was before training: the random weights of its seed."""
    config = run.config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = create_model(
            config.model, len(run.classes), width=config.width, normalizer=config.normalizer, dropout=config.dropout
        )
    model.mean.copy_(run.model.mean)
    model.std.copy_(run.model.std)
    return model.to(run.model.mean.device).eval()


def linear_answers(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Answers of scikit-learn's logistic regression on standardized features.

    How strongly it is regularized is chosen by cross-validation on the training images alone (3 folds, or 2 where a
    class has no more).

    Args:
        train: features (N, C) of the labeled images.
        labels: int64 (N,).
        test: features (M, C).

    Returns:
        int64 (M,).

    Raises:
        ValueError: a class with one labeled image only.
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("linear classifiers need scikit-learn: pip install 'ltpa[notebooks]'") from error
    least = labels.unique(return_counts=True)[1].min().item()
    if least < 2:
        raise ValueError("every class needs two labeled images or more, one to learn from and one to choose by")
    folds = StratifiedKFold(min(3, least), shuffle=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, cv=folds)
    # Float64, in which the solver converges to what other solvers find.
    search.fit(train.double().numpy(), labels.numpy())
    return torch.from_numpy(search.predict(test.double().numpy())).long()


@dataclass(frozen=True)
class Probes:
    """What linear classifiers made of features.

    Attributes:
        grid: the runs.
        target: the data set.
        right: number of labels a class (None: all) -> features -> seed -> bool (M,), whether each test image of the
            target is classified rightly. Features are "pixels", "<variant>: g_s", "<variant>: g", and the last two
            with ", untrained".
    """

    grid: Grid
    target: Dataset
    right: dict[int | None, dict[str, dict[int, Tensor]]]

    @property
    def names(self) -> list[str]:
        """All features, the trained ones first, the pixels last."""
        names = list(dict.fromkeys(name for of in self.right.values() for name in of))
        return sorted(names, key=lambda name: (name == PIXELS, name.endswith(UNTRAINED)))

    @property
    def trained(self) -> list[str]:
        """The features of trained networks."""
        return [name for name in self.names if name != PIXELS and not name.endswith(UNTRAINED)]

    @property
    def baseline(self) -> str:
        """What the others are compared with: what the classifier of the baseline reads."""
        of = [name for name in self.trained if name.rpartition(": ")[0] == self.grid.config.baseline]
        return of[0] if of else f"{self.grid.config.baseline}: g"


def probe_grid(grid: Grid, target: Dataset) -> Probes:
    """Reads every run of a grid, its untrained self and the pixels with linear classifiers, and tells what came of it.

    Args:
        grid: what was collected with a `TransferConfig`.
        target: see `TransferConfig.target_data`.

    Raises:
        ValueError: see `linear_answers`.
    """
    config = grid.config
    probes = Probes(grid, target, {count: {} for count in config.per_class})
    pixels = tuple(to_float(part.images).flatten(1) for part in (target.train, target.test))
    for seed in dict.fromkeys(result.cell.seed for result in grid.results):
        _probe(probes, PIXELS, seed, *pixels)
    for result in grid.results:
        for model, suffix in ((result.run.model, ""), (untrained(result.run), UNTRAINED)):
            train, test = (features(model, part.images) for part in (target.train, target.test))
            for kind in train:
                _probe(probes, f"{result.cell.variant}: {kind}{suffix}", result.cell.seed, train[kind], test[kind])
    return probes


def _probe(probes: Probes, name: str, seed: int, train: Tensor, test: Tensor) -> None:
    labels, told = probes.target.train.labels, []
    for count, right in probes.right.items():
        chosen = labeled(labels, count, seed)
        answers = linear_answers(train[chosen], labels[chosen], test)
        right.setdefault(name, {})[seed] = answers == probes.target.test.labels
        told.append(f"{100 * right[name][seed].double().mean():.1f}")
    print(f"{name}, seed {seed}: {', '.join(told)} % right")


def labeled(labels: Tensor, count: int | None, seed: int) -> Tensor:
    """Indices of the images whose labels a classifier is given: `count` a class (fewer of a class that is smaller)."""
    if count is None:
        return torch.arange(len(labels))
    sizes = labels.unique(return_counts=True)[1]
    return stratified(labels, sum(min(count, size) for size in sizes.tolist()), seed)


# What is concluded


@dataclass(frozen=True)
class Effects:
    """Comparisons of trained features, by number of labels a class; the intervals of each question hold together.

    Attributes:
        baseline: with what the baseline's classifier reads.
        untrained: with the same features of the same network before training.
        pixels: with the pixels.
    """

    baseline: dict[int | None, list[Comparison]]
    untrained: dict[int | None, list[Comparison]]
    pixels: dict[int | None, list[Comparison]]


def effects(probes: Probes) -> Effects:
    """The three comparisons of all trained features: what attention adds, what training adds, what a network adds."""
    together = len(probes.right) * max(1, len(probes.trained))
    scores = {
        count: {name: {seed: r.double() for seed, r in by_seed.items()} for name, by_seed in of.items()}
        for count, of in probes.right.items()
    }
    found = Effects({}, {}, {})
    config = probes.grid.config
    for count, of in scores.items():
        words = {
            "claim": CLAIM,
            "measure": f"accuracy on {probes.target.name}, {count_words(count)}",
            "data": f"{config.data_described()} to {probes.target.name}",
        }
        trained = {name: of[name] for name in probes.trained}
        others = len(probes.right) * max(1, len(trained) - 1)
        with_pixels = trained | {PIXELS: of[PIXELS]} if trained else {}
        found.baseline[count] = compare_scores(trained, probes.baseline, config, together=others, **words)
        found.pixels[count] = compare_scores(with_pixels, PIXELS, config, together=together, **words)
        found.untrained[count] = [
            compared
            for name in trained
            for compared in compare_scores(
                {name: of[name], "untrained": of[name + UNTRAINED]}, "untrained", config, together=together, **words
            )
        ]
    return found


def claim_verdict(found: Effects, count: int | None, name: str) -> str:
    """Whether features transfer better than the baseline's: they must also be better than pixels and untrained ones.

    Args:
        found: the comparisons.
        count: the number of labels a class.
        name: the features.
    """
    verdicts = [
        compared.verdict
        for of in (found.baseline, found.untrained, found.pixels)
        for compared in of[count]
        if compared.model == name
    ]
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return SUPPORTED if len(verdicts) == 3 and set(verdicts) == {SUPPORTED} else UNDECIDED


def count_words(count: int | None) -> str:
    """A number of labels in words."""
    return "all labels" if count is None else f"{count} labels a class"


def accuracy_table(probes: Probes) -> str:
    """Accuracy on the target in %, the mean over seeds with its interval, as lines of text."""
    width = max(map(len, probes.names), default=0)
    lines = [f"{'':{width}}" + "".join(f"  {count_words(count):>20}" for count in probes.right)]
    for name in probes.names:
        cells = []
        for of in probes.right.values():
            interval = t_interval([right.double().mean().item() for right in of[name].values()])
            mean, low, high = (f"{100 * v:.1f}" for v in (interval.mean, interval.low, interval.high))
            cells.append(f"{mean} [{low}, {high}]" if interval.low == interval.low else mean)
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>20}" for cell in cells))
    return "\n".join(lines)


def effect_table(found: Mapping[int | None, Sequence[Comparison]]) -> str:
    """Comparisons of one question as lines of text, in percentage points, with the wider of both intervals."""
    width = max((len(c.model) for of in found.values() for c in of), default=0)
    lines = [f"{'':{width}}" + "".join(f"  {count_words(count):>22}" for count in found)]
    for name in dict.fromkeys(c.model for of in found.values() for c in of):
        cells = []
        for of in found.values():
            (interval,) = (c.interval for c in of if c.model == name)
            mean, low, high = (f"{100 * v:+.1f}" for v in (interval.mean, interval.low, interval.high))
            cells.append(f"{mean} [{low}, {high}]" if interval.low == interval.low else mean)
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>22}" for cell in cells))
    return "\n".join(lines)


def written_effects(probes: Probes, found: Effects) -> list[Comparison]:
    """Return the three comparisons of the descriptors with the fewest and the most labels, for the file of effects."""
    counts = list(dict.fromkeys((next(iter(probes.right)), list(probes.right)[-1])))
    return [
        c
        for of in (found.baseline, found.untrained, found.pixels)
        for count in counts
        for c in of[count]
        if c.model.endswith(": g_s")
    ]


def accuracy_rows(probes: Probes) -> list[dict[str, Any]]:
    """The accuracy of every classifier, as rows of a CSV file."""
    return [
        {"target": probes.target.name, "features": name, "seed": seed, "labels_per_class": count or "all"}
        | {"test_images": len(right), "accuracy": round(right.double().mean().item(), 6)}
        for count, of in probes.right.items()
        for name in probes.names
        for seed, right in of[name].items()
    ]


def conclusion(probes: Probes, found: Effects) -> str:
    """What can and what cannot be concluded, in a few sentences."""
    names = [name for name in probes.trained if f"{name.rpartition(': ')[0]}: g_s" in probes.trained]
    if not any(found.baseline.values()):
        return f"Nothing can be concluded: there is no pair of features and {probes.baseline} with the same seed."
    lines = [
        f"The claim: features of networks with attention transfer to {probes.target.name} better than those of "
        f"{probes.grid.config.baseline}. Each must be better than {probes.baseline}, than the same network before "
        "training and than the pixels; the intervals of each question hold together with 95 %, the margin is "
        f"{100 * MARGIN:g} points."
    ]
    for count in found.baseline:
        by_verdict = {
            verdict: [name for name in names if claim_verdict(found, count, name) == verdict]
            for verdict in (SUPPORTED, CONTRADICTED, UNDECIDED)
        }
        told = "; ".join(f"{verdict}: {', '.join(of) or 'none'}" for verdict, of in by_verdict.items())
        lines.append(f"With {count_words(count)}: {told}.")
    for words, of in (("pixels", found.pixels), ("their untrained selves", found.untrained)):
        better = [(c, count) for count, cs in of.items() for c in cs if c.verdict == SUPPORTED]
        total = sum(map(len, of.values()))
        lines.append(f"Trained features are better than {words} in {len(better)} of {total} comparisons.")
    lines.append("This says nothing about larger networks, longer training or other data.")
    return "\n".join(textwrap.fill(line, 110, break_on_hyphens=False) for line in lines)
