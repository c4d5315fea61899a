"""`ltpa.show`: a figure of pictures in any form with the maps of any model."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.images import MIN_SIDE
from ..data.sources import DEFAULT_SIDE, MAX_ASPECT, Picture, at_resolution, read_named
from ..inference import attend
from ..maps import named_maps
from ..models.classifier import ImageClassifier
from ..models.foreign import unwrapped
from ..pretrained import DEFAULT, load_pretrained
from ..training.run import Run
from .composer import fit_for_display
from .figures import LINE, UNSURE, attention_figure, captions
from .style import FONT

SHOWN = 600  # most pixels of a picture's longer side in the figure; the model reads the full picture
_NAMED = 12  # classes that are named under a figure

Model = Run | ImageClassifier | str | os.PathLike
"""A run, a model, or a name or folder that `ltpa.load_pretrained` knows."""


def show(
    images: Picture | Sequence[Picture],
    model: Model | None = None,
    *,
    maps: Mapping[str, Tensor] | None = None,
    side: int | None = None,
    classes: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    masks: Tensor | None = None,
    scale: float | None = None,
) -> Figure:
    """Draw pictures with their attention maps, one row for each picture; save the figure with `figure.savefig(path)`.

    A line under the figure names the classes that the network knows. A picture that is longer than four times its width
    is drawn squeezed to that, as the network reads it, and its title says so.

    Args:
        images: one or more paths, addresses (https://...), encoded files, Pillow images, arrays (H, W, 3) or tensors
            (3, H, W); or a folder, or a batch.
        model: whose maps to draw: a run, a model, or a name or folder for `ltpa.load_pretrained`; without it and
            `maps`, the weights for CIFAR-10 that come with ltpa.
        maps: maps of any other network instead: name -> non-negative weights (N, h, w).
        side: pixels of the shorter side that the model reads; by default that of the picture, but 32 to 224.
        classes: class names, for models that know none.
        titles: one for each picture, instead of the model's answers.
        masks: bool (N, H, W), drawn as outlines; needs pictures of one size.
        scale: upper end of the color scale, in multiples of the even share; by default chosen from the maps.
    """
    if model is not None and maps is not None:
        raise ValueError("give either a model (or a run) or maps={name: weights (N, h, w)}")
    names, pictures = map(list, zip(*read_named(images), strict=True))
    drawn: dict[str, Any]
    caption = ""
    if maps is not None:
        drawn = named_maps(maps)
    else:
        network = network_of(DEFAULT if model is None else model)
        outputs = [attend(network, readable(picture, side)[None]) for picture in pictures]
        drawn = {level: [output.maps[level][0] for output in outputs] for level in outputs[0].maps}
        logits = torch.cat([output.logits for output in outputs])
        known = class_names(network, classes, logits.shape[1])
        answers = captions(logits, known)
        caption = "" if drawn else "This network has no attention maps. "
        caption += known_classes(known, any(answer.startswith("unsure") for answer in answers))
        titles = _with_names(answers, names) if titles is None else titles
    if masks is None:
        titles = [""] * len(pictures) if titles is None else titles
        if len(titles) == len(pictures):
            titles = [_with_shape(title, picture) for title, picture in zip(titles, pictures, strict=True)]
        pictures = [fit_for_display(picture, SHOWN) for picture in pictures]
    figure = attention_figure(pictures, drawn, titles=titles, masks=masks, scale=scale)
    if caption:
        text = textwrap.fill(caption, round(9 * figure.get_figwidth()))
        figure.supxlabel(text, fontsize=FONT, x=0.01, ha="left", parse_math=False)
        figure.set_figheight(figure.get_figheight() + LINE * (1 + text.count("\n")))
    return figure


def network_of(model: Any) -> ImageClassifier:
    """Return the network of a run, of a name or a folder that `ltpa.load_pretrained` knows, or the model itself."""
    network = load_pretrained(model) if isinstance(model, str | os.PathLike) else unwrapped(model)
    if not isinstance(network, ImageClassifier):
        raise TypeError(
            f"a run or a model of ltpa is needed, not {type(network).__name__}; maps of any other model can be shown "
            "with ltpa.show(images, maps={...})"
        )
    return network


def class_names(network: ImageClassifier, names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the given class names, or those that a network knows, or numbers; there must be `count`."""
    if names is None:
        names = network.classes or [str(number) for number in range(count)]
    if len(names) != count:
        raise ValueError(f"the model knows {count} classes, but {len(names)} names were given")
    return tuple(names)


def known_classes(names: Sequence[str], unsure: bool = False) -> str:
    """Return a sentence on the classes that a network knows, and one on unsure answers if there are some."""
    listed = ", ".join(names[:_NAMED]) + (f" ... ({len(names)} classes)" if len(names) > _NAMED else "")
    text = f"The network can answer only: {listed}."
    return text + f" Unsure: its answer has a probability under {100 * UNSURE:.0f} %." * unsure


def readable(picture: Tensor, side: int | None = None) -> Tensor:
    """Return a picture (3, H, W) at the size that the network reads: shorter side `side`, by default 32 to 224."""
    shorter = min(picture.shape[1:])
    if side is None and MIN_SIDE <= shorter <= DEFAULT_SIDE and max(picture.shape[1:]) <= MAX_ASPECT * shorter:
        return picture
    return at_resolution(picture, side if side is not None else min(max(shorter, MIN_SIDE), DEFAULT_SIDE))


def _with_names(answers: list[str], names: Sequence[str]) -> list[str]:
    """Return the answers with the names of the files, if there are several."""
    if len(names) < 2 or not all(names):
        return answers
    return [f"{name} | {answer}" for name, answer in zip(names, answers, strict=True)]


def _with_shape(title: str, picture: Tensor) -> str:
    """Return the title of a picture, with its size if it will be drawn squeezed."""
    _, height, width = picture.shape
    if max(height, width) <= MAX_ASPECT * min(height, width):
        return title
    return " | ".join(filter(None, [title, f"squeezed from {width}x{height}"]))
