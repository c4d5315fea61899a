"""Does a query steer the attention? Scenes of two objects, asked for the one and for the other.

The paper's query-driven attention scores the local features of one image with the global feature of another. Whether
the map then goes to what the query shows is measured here on scenes with exact masks, paired: the same scene is asked
for each of its objects, so that an object that attracts attention whatever is asked for counts for nothing.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..data.dataset import Split
from ..inference import attend
from ..maps import rank_agreement
from ..metrics.overlap import localization_tensors
from ..metrics.statistics import CONTRADICTED, SUPPORTED, Interval, bootstrap_interval
from ..metrics.statistics import verdict as verdict_of
from ..models.networks import ImageClassifier
from .query_scenes import Questions
from .tables import write_rows

WORTHWHILE = 0.6  # attention that goes to the queried object less often than in three of five cases is not steered

Steering = dict[str, dict[str, Tensor]]


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
            [
                torch.stack([localization_tensors(s.maps[level], mask)["share"] for mask in masks.unbind(1)], 1)
                for s in seen
            ]
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

    Scores are not blended with their neighbors, so that only their order counts.
    """
    scaled = torch.nn.functional.interpolate(scores[:, None], masks.shape[2:], mode="nearest")
    highest = scaled.masked_fill(~masks, -torch.inf).amax((2, 3))  # (N, 2)
    return ((highest[:, 0] - highest[:, 1]).sign() + 1) / 2


def _from_zero(scores: Tensor) -> Tensor:
    return scores - scores.amin((1, 2), keepdim=True)


def answers(model: ImageClassifier, questions: Questions, precision: str = "auto") -> dict[str, float]:
    """What a model answers that is asked.

    Returns:
        `queried`: how often it names the class that it is asked for; `other`: how often that of the other object;
        `absent`: how often it names the class that it is asked for although it is not in the scene. Then the answer
        comes from the query itself, by a leak through the map, and right answers prove nothing about attention.
    """
    first, second, absent = (
        attend(model, questions.scenes.images, precision, query=query).logits.argmax(1) for query in questions.queries
    )
    one, two, missing = questions.labels
    return {
        "queried": torch.cat([first == one, second == two]).double().mean().item(),
        "other": torch.cat([first == two, second == one]).double().mean().item(),
        "absent": (absent == missing).double().mean().item(),
    }


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


def best_level(levels: Steering) -> str:
    """The level that follows the query most often."""
    return max(levels, key=lambda level: levels[level]["follows"].mean().item())


def typical(levels: Steering, count: int) -> tuple[str, Tensor]:
    """What to show, chosen by the measure: the level that follows best, and `count` scenes from best to worst swing."""
    level = best_level(levels)
    order = levels[level]["swing"].argsort(descending=True, stable=True)
    return level, order[torch.linspace(0, len(order) - 1, count).long()]


def follows_interval(values: Mapping[str, Tensor], comparisons: int = 1) -> Interval:
    """How often the attention follows the query, with a bootstrap interval over scenes (95 %, see `Interval`)."""
    return bootstrap_interval(values["follows"].double().numpy(), comparisons)


def steering_table(measured: Mapping[str, Steering]) -> str:
    """{variant: what `steer` found} as text, a row a level; intervals are over scenes and hold one by one."""
    wide = max(map(len, measured))
    lines = [
        " " * wide + "          share of the attention on   swing of the share        follows the query     same order",
        f"{'model':{wide}}  level  queried   other  absent   and 95 % interval         and 95 % interval    (ranks)",
    ]
    for variant, levels in measured.items():
        for level, values in levels.items():
            shares = "  ".join(f"{values[key].mean():6.3f}" for key in ("queried", "other", "absent"))
            swing, follows = bootstrap_interval(values["swing"].double().numpy()), follows_interval(values)
            # "+ 0.0" because zero may be minus zero.
            mean, low, high = (f"{round(value, 3) + 0.0:+.3f}" for value in (swing.mean, swing.low, swing.high))
            follows_text = f"{follows.mean:.3f} [{follows.low:.3f}, {follows.high:.3f}]"
            agreement = values["agreement"].nanmean()
            lines.append(
                f"{variant:{wide}}  {level:6} {shares}   {mean} [{low}, {high}]  {follows_text}     {agreement:.3f}"
            )
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
        outcome = f"{CONTRADICTED}: at none of {len(asked)} levels"
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


def explanation(measured: Mapping[str, Steering], masks: Tensor) -> str:
    """For each variant, at the level that finds objects best: how much it looks at objects, and how much at which.

    Args:
        measured: {variant: what `steer` found}.
        masks: of the scenes, (N, 2, H, W).
    """
    area = masks.any(1).double().mean()
    lines = [f"the two objects fill {100 * area:.0f} % of a picture; of the attention"]
    for variant, levels in measured.items():
        level = max(levels, key=lambda name: (levels[name]["queried"] + levels[name]["other"]).mean().item())
        both = (levels[level]["queried"] + levels[level]["other"]).mean()
        swing = round(100 * levels[level]["swing"].mean().item(), 1) + 0.0
        lines.append(
            f"  {variant} at {level}: {100 * both:.0f} % lies on the two; {swing:+.1f} points go to the "
            "one that is asked for"
        )
    return "\n".join(lines)


def write_effects(measured: Mapping[str, Steering], budget: str, folder: str | Path = "runs") -> Path:
    """Writes `effects_05.csv`, which the page of verdicts is made of: follows the attention the query, or ignores it?

    Args:
        measured: {variant: what `steer` found}.
        budget: how the models were trained, in words.
        folder: where to.
    """
    asked = [(variant, level, values) for variant, levels in measured.items() for level, values in levels.items()]
    rows = []
    for variant, level, values in asked:
        follows = follows_interval(values, len(asked))
        effect = Interval(follows.mean - 0.5, follows.low - 0.5, follows.high - 0.5, follows.n)
        rows.append(
            {"claim": "Attention goes to what a query shows", "model": f"{variant} at {level}"}
            | {"baseline": "ignoring the query (50 %)", "measure": "follows the query", "data": "shapes, two objects"}
            | {"budget": budget, "n": effect.n, "effect": round(effect.mean, 4)}
            | {"low": round(effect.low, 4), "high": round(effect.high, 4)}
            | {"verdict": verdict_of(effect, WORTHWHILE - 0.5)}
        )
    return write_rows(Path(folder) / "effects_05.csv", rows)
