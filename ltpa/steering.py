"""Does a query steer the attention? Scenes of two objects, asked for the one and for the other.

The paper's query-driven attention scores the local features of one image with the global feature of another. Whether
the map then goes to what the query shows is measured here on scenes with exact masks, paired: the same scene is asked
for each of its objects, so that an object that attracts attention whatever is asked for counts for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Split
from .inference import attend
from .localisation import localise
from .maps import rank_agreement
from .models import ImageClassifier
from .statistics import NOT_SUPPORTED, SUPPORTED, Interval, bootstrap_interval

WORTHWHILE = 0.6  # attention that goes to the queried object less often than in three of five cases is not steered

Steering = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Questions:
    """Scenes of two objects, and for each of them three queries.

    Attributes:
        scenes: N scenes, labels (N, 2), masks (N, 2, H, W).
        queries: uint8 (3, N, 3, h, w): an image of the first object's class, one of the second's, and one of a class
            that is not in the scene.
        labels: int64 (3, N), their classes.
    """

    scenes: Split
    queries: Tensor
    labels: Tensor

    def sheet(self, chosen: Tensor, classes: tuple[str, ...]) -> tuple[Tensor, list[str]]:
        """Each chosen scene followed by its three queries, as images of one size (4 K, 3, H, W), and their titles."""
        height, width = self.scenes.images.shape[2:]
        images, titles = [], []
        for scene in chosen.tolist():
            images.append(self.scenes.images[scene])
            titles.append(" and ".join(classes[label] for label in self.scenes.labels[scene].tolist()))
            for query, label, asked in zip(self.queries, self.labels, ("1st", "2nd", "absent"), strict=True):
                wide, high = width - query.shape[3], height - query.shape[2]
                border = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
                images.append(torch.nn.functional.pad(query[scene], border, value=255))
                titles.append(f"asks for {asked}: {classes[label[scene]]}")
        return torch.stack(images), titles


def draw_questions(scenes: Split, bank: Split, seed: int = 0) -> Questions:
    """Draws the queries for scenes of two objects from single images.

    Args:
        scenes: labels (N, 2) of different classes, masks (N, 2, H, W).
        bank: images of one object, labels (M,): of every class in the scenes, and of three classes at least.
        seed: of the draw.

    Raises:
        ValueError: no scenes of two objects with masks, or a bank that lacks a class.
    """
    if scenes.labels.ndim != 2 or scenes.labels.shape[1] != 2 or scenes.masks is None or not len(scenes):
        raise ValueError("questions are asked about scenes of two objects: labels (N, 2) and masks (N, 2, H, W)")
    count = int(max(scenes.labels.max(), bank.labels.max())) + 1
    numbers = torch.bincount(bank.labels, minlength=count)
    if (numbers[scenes.labels] == 0).any() or (numbers > 0).sum() < 3:
        raise ValueError("the single images must show every class that is in the scenes, and three classes at least")
    generator = torch.Generator().manual_seed(seed)
    strangers = (numbers > 0).float().expand(len(scenes), -1).scatter(1, scenes.labels, 0.0)
    absent = torch.multinomial(strangers, 1, generator=generator).squeeze(1)
    labels = torch.stack([*scenes.labels.unbind(1), absent])  # (3, N)
    # The images of a class lie together in the order of the labels, from `first` on.
    order, first = bank.labels.argsort(stable=True), numbers.cumsum(0) - numbers
    among = (torch.rand(labels.shape, generator=generator, dtype=torch.float64) * numbers[labels]).long()
    return Questions(scenes, bank.images[order[first[labels] + among]], labels)


def side_by_side(split: Split, count: int, seed: int = 0) -> Split:
    """Scenes of two images beside one another: what real images without masks allow; a mask is a half.

    Args:
        split: single images (M, 3, H, W), labels (M,) of two classes at least.
        count: N, number of scenes.
        seed: of the choice.

    Returns:
        images (N, 3, H, 2W), labels (N, 2), masks (N, 2, H, 2W).

    Raises:
        ValueError: all images are of one class.
    """
    if len(split.labels.unique()) < 2:
        raise ValueError("scenes need images of two classes at least")
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(len(split), (count,), generator=generator)
    differs = (split.labels[left, None] != split.labels).float()  # (N, M)
    right = torch.multinomial(differs, 1, generator=generator).squeeze(1)
    images = torch.cat([split.images[left], split.images[right]], dim=3)
    width = split.images.shape[3]
    masks = torch.zeros(count, 2, *images.shape[2:], dtype=torch.bool)
    masks[:, 0, :, :width] = True
    masks[:, 1, :, width:] = True
    return Split(images, torch.stack([split.labels[left], split.labels[right]], dim=1), masks)


def steer(model: ImageClassifier, questions: Questions, precision: str = "auto") -> Steering:
    """How far the queries steer the maps of every level.

    Args:
        model: one whose maps can be asked for (see `AttentionNetwork.attend`; softmax + `pc` warns).
        questions: scenes and queries.
        precision: see `ltpa.attend`.

    Returns:
        level -> (N,) tensors, each the mean over both objects of a scene:
        `queried`: share of the attention on the object that is asked for;
        `other`: share on the other object;
        `absent`: share on an object when a class is asked for that is not there;
        `swing`: `queried` - `other`, which is also how much an object's share grows when it is asked for and not the
        other one;
        `follows`: how often the higher of the two objects' highest scores is that of the one asked for (a tie counts
        1/2). It goes by the order of positions alone: exactly 1/2 where the map ignores the query, and for all `pc`;
        `agreement`: Spearman's correlation of the scores under both questions, 1 = the same order of positions.

    Raises:
        TypeError, ValueError: see `ltpa.attend`.
    """
    scenes, masks = questions.scenes, questions.scenes.masks
    seen = [attend(model, scenes.images, precision, query=query) for query in questions.queries]
    found: Steering = {}
    for level in seen[0].maps:
        shares = torch.stack(  # (question, scene, object)
            [torch.stack([localise(s.maps[level], mask)["share"] for mask in masks.unbind(1)], 1) for s in seen]
        )
        first, second = (_first_leads(s.scores[level], masks) for s in seen[:2])
        queried = (shares[0, :, 0] + shares[1, :, 1]) / 2
        other = (shares[0, :, 1] + shares[1, :, 0]) / 2
        found[level] = {
            "queried": queried,
            "other": other,
            "absent": shares[2].mean(1),
            "swing": queried - other,
            "follows": (first + 1 - second) / 2,
            "agreement": rank_agreement(*(_from_zero(s.scores[level]) for s in seen[:2])),
        }
    return found


def _first_leads(scores: Tensor, masks: Tensor) -> Tensor:
    """Whether the first object has the highest score (N, h, w) on either of two (N, 2, H, W): 1, 0, or 1/2 for a tie.

    Scores are not blended with their neighbours, so that only their order counts.
    """
    scaled = torch.nn.functional.interpolate(scores[:, None], masks.shape[2:], mode="nearest")
    highest = scaled.masked_fill(~masks, -torch.inf).amax((2, 3))  # (N, 2)
    return ((highest[:, 0] - highest[:, 1]).sign() + 1) / 2


def _from_zero(scores: Tensor) -> Tensor:
    return scores - scores.amin((1, 2), keepdim=True)


def geometry(model: ImageClassifier, split: Split, precision: str = "auto") -> dict[str, float]:
    """What the global feature knows of the classes.

    Args:
        model: one with a global feature.
        split: single images with labels (N,), several of each class.
        precision: see `ltpa.attend`.

    Returns:
        `cosine`: mean cosine similarity of the class means of `g`, of different classes: near 1, all point the same
        way and ask almost the same; `nearest_mean`: how often `g` is nearest to the mean of its own class, means of
        even images, asked for odd ones; `classifier`: accuracy of the model itself on the same images.

    Raises:
        ValueError: the model has no global feature.
    """
    seen = attend(model, split.images, precision)
    if seen.global_feature is None:
        raise ValueError("this model computes no global feature: no map of it depends on one")
    g, labels = seen.global_feature, split.labels
    even = torch.arange(len(g)) % 2 == 0
    classes = labels[even].unique()
    means = torch.stack([g[even & (labels == c)].mean(0) for c in classes])
    cosines = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=2)
    answers = classes[torch.cdist(g[~even], means).argmin(1)]
    return {
        "cosine": cosines[~torch.eye(len(means), dtype=torch.bool)].mean().item(),
        "nearest_mean": (answers == labels[~even]).double().mean().item(),
        "classifier": (seen.logits.argmax(1) == labels)[~even].double().mean().item(),
    }


def follows_interval(values: Mapping[str, Tensor], comparisons: int = 1) -> Interval:
    """How often the attention follows the query, with a bootstrap interval over scenes (95 %, see `Interval`)."""
    return bootstrap_interval(values["follows"].double().numpy(), comparisons)


def steering_table(measured: Mapping[str, Steering]) -> str:
    """{variant: what `steer` found} as text, a row a level; intervals are over scenes and hold one by one."""
    wide = max(map(len, measured))
    lines = [
        f"{'':{wide}}          share of the attention on      swing of the share    follows the query   same order",
        f"{'model':{wide}}  level  queried  other  absent         [95 %]               [95 %]        (Spearman)",
    ]
    for variant, levels in measured.items():
        for level, values in levels.items():
            shares = "  ".join(f"{values[key].mean():6.3f}" for key in ("queried", "other", "absent"))
            swing, follows = bootstrap_interval(values["swing"].double().numpy()), follows_interval(values)
            # "+ 0.0" because a mean of zeros may be minus zero.
            swing_text = f"{swing.mean + 0.0:+.3f} [{swing.low + 0.0:+.3f}, {swing.high + 0.0:+.3f}]"
            follows_text = f"{follows.mean:.3f} [{follows.low:.3f}, {follows.high:.3f}]"
            agreement = values["agreement"].nanmean()
            lines.append(f"{variant:{wide}}  {level:6} {shares}   {swing_text}  {follows_text}     {agreement:.3f}")
    return "\n".join(lines)


def conclusion(measured: Mapping[str, Steering]) -> str:
    """Whether "the attention goes to what the query shows" holds, in sentences computed from the numbers.

    A level counts as steered where attention follows the query in more than three of five cases; the intervals of all
    levels hold together with 95 % (Bonferroni). Models whose order of positions cannot change do not take part.
    """
    asked = {
        f"{variant} at {level}": values
        for variant, levels in measured.items()
        if not variant.split()[0].endswith("-pc")
        for level, values in levels.items()
    }
    if not asked:
        return "Nothing can be concluded: no model that can be asked was measured."
    follows = {name: follows_interval(values, len(asked)) for name, values in asked.items()}
    steered = [name for name, i in follows.items() if i.low > WORTHWHILE]
    if steered:
        outcome = f"{SUPPORTED} for {', '.join(steered)}"
    elif all(i.high < WORTHWHILE for i in follows.values()):
        outcome = f"{NOT_SUPPORTED}: at none of {len(asked)} levels"
    else:
        outcome = "not decidable with so few scenes"
    best = max(follows, key=lambda name: follows[name].mean)
    above, below = sum(i.low > 0.5 for i in follows.values()), sum(i.high < 0.5 for i in follows.values())
    return (
        f'"Attention goes to what the query shows in more than {100 * WORTHWHILE:.0f} % of the cases": {outcome}.\n'
        f"A map that ignores the query reaches 50 %. {above} of {len(asked)} levels lie above that, {below} below, by "
        f"intervals that hold together.\nThe highest is {best}: {100 * follows[best].mean:.1f} % "
        f"[{100 * follows[best].low:.1f}, {100 * follows[best].high:.1f}]."
    )
