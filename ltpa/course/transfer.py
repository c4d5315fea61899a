"""Notebook 07: are frozen features worth more on other pictures than the pixels and an untrained network are?"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import Field

from ..config import EachOnce, FilePath, Variant, settings
from ..data.dataset import Dataset, Split, load_data
from ..data.split import stratified
from ..metrics.statistics import CONTRADICTED, SUPPORTED, UNDECIDED, Effect, packed, write_effects
from ..viz.style import FONT, LINE_COLORS, add_legend, new_figure
from ..viz.words import model_in_words
from . import setup
from .effects import MARGIN, compare_scores, draw_runs, few_seeds, paragraph, style_runs
from .effects import effects_figure as effects_figure
from .grid import MODELS, AblationConfig
from .grid import collect as collect
from .grid import train_missing as train_missing
from .setup import report as report
from .transfer_probe import PIXELS, UNTRAINED, Probes, count_words
from .transfer_probe import probe_grid as probe_grid

CLAIM = "Attention descriptors transfer better than mean local features"
_FEATURES = {"g_s": LINE_COLORS[0], "mean": LINE_COLORS[1], "g": LINE_COLORS[3]}
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
        None, description="at most this many of its training images"
    )
    target_test_limit: Annotated[int, Field(ge=2, le=10**9)] | None = Field(
        None, description="at most this many of its test images"
    )
    per_class: Annotated[Sequence[Annotated[int, Field(ge=2, le=10**9)] | None], EachOnce] = Field(
        (5, 20, 100, None), description="numbers of labeled images a class; None is all. The seed chooses which"
    )

    @classmethod
    def contradictions(cls, values: Mapping[str, Any]) -> list[str]:
        """Refuse a target that the networks are trained on."""
        lines = super().contradictions(values)
        target, folders = values.get("target"), [values.get(name) for name in ("target_dir", "data_dir")]
        same_folder = None not in folders and len({Path(str(f)).expanduser().absolute() for f in folders}) == 1
        if target and target == values.get("dataset") and (target != "folder" or same_folder):
            lines.append(f"target={target!r} is what the networks are trained on: choose another")
        return lines

    def target_data(self) -> Dataset:
        """Load the data set that the features are tried on."""
        if self.target == "digits":
            return digits(self.target_train_limit, self.target_test_limit)
        train_limit, test_limit = self.target_train_limit, self.target_test_limit
        return load_data(self.target, self.target_dir, train_limit=train_limit, test_limit=test_limit)


parameters = partial(setup.parameters, kind=TransferConfig)


def digits(train_limit: int | None = None, test_limit: int | None = None) -> Dataset:
    """Return scikit-learn's digits (8x8 gray, from UCI), scaled up; always the same 450 of 1,797 are for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits need scikit-learn: pip install 'ltpa[notebooks]'") from error
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels).long()
    images = torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear")
    everything = Split((255 * images).round().byte().expand(-1, 3, -1, -1).contiguous(), labels)
    taken = stratified(labels, _DIGITS_TEST, seed=0, proportional=True)
    kept = torch.ones(len(labels), dtype=torch.bool).index_fill(0, taken, False)
    train, test = (
        part if limit is None or limit >= len(part) else part[stratified(part.labels, limit, seed=0)]
        for part, limit in ((everything[kept.nonzero().squeeze(1)], train_limit), (everything[taken], test_limit))
    )
    return Dataset("digits", tuple("0123456789"), train, test, *train.statistics())


# Comparisons


def compare(probes: Probes) -> list[Effect]:
    """Compare trained descriptors with the baseline's features, with the same network before training, with the pixels.

    What attention adds, what training adds, what a network adds: the intervals of each question hold together.
    """
    config, names = probes.grid.config, probes.descriptors
    comparisons: list[Effect] = []
    together = len(probes.correct) * max(1, len(names))
    for count, by_name in probes.correct.items():
        words = {"claim": CLAIM, "measure": measure(probes, count)}
        words["data"] = f"{config.data_described()} to {probes.target.name}"
        scores = {name: {seed: c.double() for seed, c in by_seed.items()} for name, by_seed in by_name.items()}
        for name in names:
            for baseline, key in ((probes.baseline,) * 2, ("untrained", name + UNTRAINED), (PIXELS, PIXELS)):
                compared = {name: scores[name]} | ({baseline: scores[key]} if key in scores else {})
                comparisons += compare_scores(compared, baseline, config, together=together, **words)
    return comparisons


def measure(probes: Probes, count: int | None) -> str:
    """Return what is compared, in words."""
    return f"accuracy on {probes.target.name}, {count_words(count)}"


def claim_verdict(comparisons: Sequence[Effect], measure: str, name: str) -> str:
    """Return the verdict on features: they must be better than the baseline's, than untrained ones and than pixels."""
    verdicts = [c.verdict for c in comparisons if (c.measure, c.model) == (measure, name)]
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return SUPPORTED if len(verdicts) == 3 and set(verdicts) == {SUPPORTED} else UNDECIDED


def accuracy_table(probes: Probes) -> pd.DataFrame:
    """Return the accuracy on the target in %, the mean over seeds with its interval."""
    columns = {
        count_words(count): {name: probes.accuracy(count, name).text(1, 100) for name in probes.names}
        for count in probes.correct
    }
    return pd.DataFrame(columns).rename_axis("features")


def comparison_table(comparisons: Sequence[Effect], baseline: str) -> pd.DataFrame:
    """Return the comparisons with one baseline, in points, by features (rows) and number of labels (columns)."""
    columns: dict[str, dict[str, str]] = {}
    for c in comparisons:
        if c.baseline == baseline:
            text = f"{c.interval.text(1, 100, sign=True)} {c.verdict}"
            columns.setdefault(c.measure.rpartition(", ")[2], {})[c.model] = text
    return pd.DataFrame(columns).rename_axis(f"minus {baseline}")


def write_results(probes: Probes, comparisons: Sequence[Effect], folder: str | Path = "runs") -> list[Path]:
    """Write all effects, and the accuracy of every classifier."""
    target = probes.target.name
    accuracies = [
        {"target": target, "features": name, "seed": seed, "labels_per_class": count or "all"}
        | {"test_images": len(correct), "accuracy": correct.double().mean().item(), "correct": packed(correct)}
        for count, by_name in probes.correct.items()
        for name in probes.names
        for seed, correct in by_name[name].items()
    ]
    path = Path(folder) / f"transfer_{target}.csv"
    pd.DataFrame(accuracies).round({"accuracy": 6}).to_csv(path, index=False, lineterminator="\n")
    return [write_effects(comparisons, Path(folder) / f"effects_07_{target}.csv"), path]


def conclusion(probes: Probes, comparisons: Sequence[Effect]) -> str:
    """Return what can and what cannot be concluded, in a few sentences."""
    if not any(c.baseline == probes.baseline for c in comparisons):
        return f"Nothing can be concluded: there is no pair of descriptors and {probes.baseline} with the same seed."
    lines = [
        f"The claim: descriptors of attention transfer to {probes.target.name} better than the local features of "
        f"{probes.grid.config.baseline}. Each must be better than {probes.baseline}, than the same network before "
        "training and than the pixels; the intervals of each question hold together with 95 %, the margin is "
        f"{100 * MARGIN:g} points."
    ]
    for count in probes.correct:
        verdicts = {name: claim_verdict(comparisons, measure(probes, count), name) for name in probes.descriptors}
        names = {
            word: ", ".join(name for name in verdicts if verdicts[name] == word) or "none"
            for word in (SUPPORTED, CONTRADICTED, UNDECIDED)
        }
        lines.append(f"With {count_words(count)}: {'; '.join(f'{word}: {text}' for word, text in names.items())}.")
    for words, baseline in (("pixels", PIXELS), ("their untrained selves", "untrained")):
        verdicts_of_all = [c.verdict for c in comparisons if c.baseline == baseline]
        better = verdicts_of_all.count(SUPPORTED)
        lines.append(f"Trained descriptors are better than {words} in {better} of {len(verdicts_of_all)} comparisons.")
    lines += [few_seeds(comparisons), "This says nothing about larger networks, longer training or other data."]
    return "\n".join(paragraph(line) for line in lines if line)


def transfer_figure(probes: Probes) -> Figure:
    """Draw accuracy against labels, a panel for each network: what its classifier reads, and its global feature.

    Dashed lines are those of the untrained network, black ones those of the pixels; the lines are means over seeds.
    """
    if not probes.trained:
        raise ValueError("there is nothing to draw: " + probes.grid.complaints())
    variants = list(dict.fromkeys(name.rpartition(": ")[0] for name in probes.trained))
    down = math.ceil(len(variants) / 2)
    figure = new_figure(1.7 + 3.3 * down)
    panels = figure.subplots(down, 2, sharex=True, sharey=True, squeeze=False).flat
    conditions = [count_words(count).replace(" a ", "\na ") for count in probes.correct]
    for axes, variant in zip(panels, variants, strict=False):
        lines = {PIXELS: ("black", "-")}
        for kind, color in _FEATURES.items():
            if (name := f"{variant}: {kind}") in probes.trained:
                lines |= {name: (color, "-"), name + UNTRAINED: (color, "--")}
        for number, (name, (color, style)) in enumerate(lines.items()):
            columns = [probes.accuracies(count, name) for count in probes.correct]
            draw_runs(axes, columns, 0.03 * (number - (len(lines) - 1) / 2), color, style)
        style_runs(axes, model_in_words(variant), conditions, len(probes.target.classes))
    for axes in list(panels)[len(variants) :]:
        axes.axis("off")
    figure.supylabel(f"accuracy on {probes.target.name} (%)", fontsize=FONT)
    words = {"g_s": "attention descriptors", "mean": "mean local features", "g": "global feature"}
    kinds = [kind for kind in _FEATURES if any(name.endswith(f": {kind}") for name in probes.trained)]
    handles = [Line2D([], [], color=_FEATURES[kind], marker="o", label=words[kind]) for kind in kinds]
    handles += [
        Line2D([], [], color="0.4", linestyle="--", marker="o", fillstyle="none", label="the same, untrained"),
        Line2D([], [], color="black", marker="o", label="pixels"),
        Line2D([], [], color="0.4", linestyle=":", label="chance"),
    ]
    add_legend(figure, handles, columns=3)
    return figure
