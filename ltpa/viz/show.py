"""`ltpa.show`: a figure of pictures in any form with the maps of any model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.images import MIN_SIDE
from ..data.sources import DEFAULT_SIDE, Picture, at_resolution, read_pictures
from ..inference import attend
from ..models.networks import ImageClassifier
from ..pretrained import load_pretrained
from ..training.run import Run
from .composer import fit_for_display
from .figures import attention_figure, captions

SHOWN = 600  # most pixels of a picture's longer side in the figure; the model reads the full picture


def show(
    images: Picture | Sequence[Picture],
    model: Run | ImageClassifier | None = None,
    *,
    maps: Mapping[str, Tensor] | None = None,
    side: int | None = None,
    classes: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    masks: Tensor | None = None,
    scale: float | None = None,
) -> Figure:
    """Draw pictures with their attention maps, one row for each picture; save the figure with `figure.savefig(path)`.

    Args:
        images: one or more paths, encoded files, Pillow images, arrays (H, W, 3) or tensors (3, H, W); or a batch.
        model: whose maps to draw; without it and `maps`, `ltpa.load_pretrained()` (the ten classes of CIFAR-10).
        maps: maps of any other network instead: name -> non-negative weights (N, h, w).
        side: pixels of the shorter side that the model reads; by default that of the picture, but 32 to 224.
        classes: class names, for models that know none.
        titles: one for each picture, instead of the model's answers.
        masks: bool (N, H, W), drawn as outlines; needs pictures of one size.
        scale: upper end of the color scale, in multiples of uniform; by default chosen from the maps.
    """
    if model is not None and maps is not None:
        raise ValueError("give a model (or a run), or maps={name: weights (N, h, w)}: one of the two")
    pictures = read_pictures(images)
    drawn: dict[str, Any]
    if maps is not None:
        drawn = {name: values if isinstance(values, list) else torch.as_tensor(values) for name, values in maps.items()}
    else:
        model = load_pretrained() if model is None else model
        network = network_of(model)
        outputs = [attend(network, readable(picture, side)[None]) for picture in pictures]
        drawn = {level: [output.maps[level][0] for output in outputs] for level in outputs[0].maps}
        logits = torch.cat([output.logits for output in outputs])
        names = classes or named_classes(model) or [str(number) for number in range(logits.shape[1])]
        if len(names) != logits.shape[1]:
            raise ValueError(f"the model knows {logits.shape[1]} classes, but {len(names)} names were given")
        titles = captions(logits, names) if titles is None else titles
    if masks is None:
        pictures = [fit_for_display(picture, SHOWN) for picture in pictures]
    return attention_figure(pictures, drawn, titles=titles, masks=masks, scale=scale)


def network_of(model: Any) -> ImageClassifier:
    """Return the network of a run, or the model itself."""
    network = model.model if isinstance(model, Run) else model
    if not isinstance(network, ImageClassifier):
        raise TypeError(
            f"a run or a model of ltpa is needed, not {type(network).__name__}; maps of any other model can be shown "
            "with ltpa.show(images, maps={...})"
        )
    return network


def named_classes(model: Any) -> Sequence[str] | None:
    """Return the class names of a run or a model, if it knows them."""
    return getattr(model, "classes", None)


def readable(picture: Tensor, side: int | None = None) -> Tensor:
    """Return a picture (3, H, W) at the size that the network reads: shorter side `side`, by default 32 to 224."""
    shorter = min(picture.shape[1:])
    if side is None and MIN_SIDE <= shorter <= DEFAULT_SIDE:
        return picture
    return at_resolution(picture, side if side is not None else min(max(shorter, MIN_SIDE), DEFAULT_SIDE))
