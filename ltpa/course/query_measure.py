"""How far queries steer a model's maps and answers, and what its global feature knows of the classes."""

import torch
from torch import Tensor

from ..data.dataset import Split
from ..inference import attend
from ..maps import rank_agreement
from ..metrics.overlap import localization_tensors
from ..models.networks import ImageClassifier
from .query_scenes import Queries

Levels = dict[str, dict[str, Tensor]]  # level -> measure -> (N,)


def steer(model: ImageClassifier, queries: Queries, precision: str = "auto") -> Levels:
    """Measure how far the queries steer a model's maps: level -> measure -> (N,), the means over a scene's objects.

    `queried`: share of the attention on the object that the query shows; `other`: share on the other object;
    `absent`: share on an object when the query shows a class that is not in the scene;
    `swing`: `queried` - `other`, which is also how much an object's share grows when the query changes to it;
    `follows`: how often the object with the highest score is that of the query (a tie counts 1/2). Only the order of
    positions matters: exactly 1/2 where the map ignores the query, and for all `pc`;
    `agreement`: Spearman's correlation of the scores under both queries, 1 = the same order of positions.

    Softmax with `pc` warns that queries cannot steer it.
    """
    images, masks = queries.scenes.images, queries.masks
    outputs = [attend(model, images, precision, query=query) for query in queries.images]
    levels: Levels = {}
    for level in outputs[0].maps:
        of_query = [[localization_tensors(o.maps[level], m)["share"] for m in masks.unbind(1)] for o in outputs]
        shares = torch.stack([torch.stack(of_objects, 1) for of_objects in of_query])  # (query, scene, object)
        first, second = (_first_leads(output.scores[level], masks) for output in outputs[:2])
        queried = (shares[0, :, 0] + shares[1, :, 1]) / 2
        other = (shares[0, :, 1] + shares[1, :, 0]) / 2
        # Ranks of numbers from zero up, as of maps.
        ranked = (o.scores[level] - o.scores[level].amin((1, 2), keepdim=True) for o in outputs[:2])
        levels[level] = {
            "queried": queried,
            "other": other,
            "absent": shares[2].mean(1),
            "swing": queried - other,
            "follows": (first + 1 - second) / 2,
            "agreement": rank_agreement(*ranked),
        }
    return levels


def _first_leads(scores: Tensor, masks: Tensor) -> Tensor:
    """Return whether the first of the objects (N, 2, H, W) has the highest score (N, h, w): 1, 0, or 1/2 for a tie.

    Scores are not blended with their neighbors, so that only their order counts.
    """
    scaled = torch.nn.functional.interpolate(scores[:, None], masks.shape[2:], mode="nearest")
    highest = scaled.masked_fill(~masks, -torch.inf).amax((2, 3))  # (N, 2)
    return ((highest[:, 0] - highest[:, 1]).sign() + 1) / 2


def answers(model: ImageClassifier, queries: Queries, precision: str = "auto") -> dict[str, float]:
    """Measure how often a model names the class of the query, that of the other object, and that of an absent one.

    If it names the class of a query that is not in the scene, the answer comes from the query itself, by a leak through
    the map, and right answers prove nothing about attention.
    """
    first, second, absent = (
        attend(model, queries.scenes.images, precision, query=query).logits.argmax(1) for query in queries.images
    )
    one, two, missing = queries.labels
    return {
        "queried": torch.cat([first == one, second == two]).double().mean().item(),
        "other": torch.cat([first == two, second == one]).double().mean().item(),
        "absent": (absent == missing).double().mean().item(),
    }


def geometry(model: ImageClassifier, split: Split, precision: str = "auto") -> dict[str, float]:
    """Measure what the global feature knows of the classes, on single images with labels (N,), several of each class.

    `cosine`: mean cosine similarity of the class means of `g`, of different classes: near 1, all point the same way;
    `nearest_mean`: how often `g` is nearest to the mean of its own class, means of even images, tested on odd ones;
    `classifier`: accuracy of the model itself on the same images.
    """
    output = attend(model, split.images, precision)
    if output.global_feature is None:
        raise ValueError("this model computes no global feature: no map of it depends on one")
    g, labels = output.global_feature, split.labels
    even = torch.arange(len(g)) % 2 == 0
    classes = labels[even].unique()
    means = torch.stack([g[even & (labels == c)].mean(0) for c in classes])
    cosines = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=2)
    nearest = classes[torch.cdist(g[~even], means).argmin(1)]
    return {
        "cosine": cosines[~torch.eye(len(means), dtype=torch.bool)].mean().item(),
        "nearest_mean": (nearest == labels[~even]).double().mean().item(),
        "classifier": (output.logits.argmax(1) == labels)[~even].double().mean().item(),
    }


def typical(levels: Levels, count: int) -> tuple[str, Tensor]:
    """Return what to show, chosen by the measure: the best level, and `count` scenes from best to worst swing."""
    level = max(levels, key=lambda level: levels[level]["follows"].mean().item())
    order = levels[level]["swing"].argsort(descending=True, stable=True)
    return level, order[torch.linspace(0, len(order) - 1, count).long()]
