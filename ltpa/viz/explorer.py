"""The explorer: click through pictures, levels and models, or upload a photo, and see where the network looks.

Widgets of ipywidgets' core alone (7.7 and 8), and one picture whose bytes change: nothing flickers or piles up, and
Colab needs no custom widget manager. What cannot be done is said in the panel.
"""

import base64
import functools
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import torch
from torch import Tensor

from ..attribution import METHODS, explain
from ..data.dataset import Dataset, Split
from ..data.images import LEAST, READ, Picture, at_resolution, read_pictures
from ..data.samples import Photographs
from ..inference import attend, attend_batches
from ..models.networks import AttentionOutput, ImageClassifier
from ..training.run import Run
from . import composer
from .composer import COLORS, MAXIMUM, UNIFORM, Row, fit_for_display

IN_ORDER, UNCERTAIN, WRONG = "all, in order", "least certain first", "misclassified"
NOTHING = "nothing"
RESOLUTIONS = (32, 64, 96, 128, 224)
_KEPT = 200  # maps and pictures, of some fifty images


def explore(
    model: "Run | ImageClassifier",
    images: "Dataset | Split | Picture | Sequence[Picture] | None" = None,
    *,
    classes: Sequence[str] | None = None,
    others: "Mapping[str, Run | ImageClassifier] | None" = None,
    folder: str | Path = "runs/figures",
) -> "Explorer":
    """Shows the panel in a notebook; elsewhere, and where a page has no kernel, its picture is there all the same.

    Args:
        model: a run, or a model.
        images: a data set (its test images), a split, or pictures of any kind that `ltpa.show` takes; None begins with
            an empty panel that waits for a photo. A label below 0 is that of a picture of none of the classes.
        classes: names of the classes, for a model; a run and a data set know theirs.
        others: further runs or models, by name, that a second row can show.
        folder: where the button saves the picture, as PNG and PDF.

    Returns:
        the panel; `.png()` is its picture.

    Raises:
        ValueError, TypeError: something that is no model or no picture.
    """
    explorer = Explorer(model, images, classes=classes, others=others, folder=folder)
    explorer.display()
    return explorer


class Explorer:
    """The panel, see `explore`; its widgets are attributes, so that a program can move them too.

    Attributes:
        which, position, draw: choose an image; `chosen` are the numbers of the images that are chosen from
            (where there are none, a picture says so).
        upload, resolution: a photo of one's own, and the pixels of its shorter side for the network.
        levels, strength, colors, scale, compare: what is shown, and how.
        save, message, picture: a button, a line of text, and the picture.
        widget: all of it.
    """

    def __init__(
        self,
        model: "Run | ImageClassifier",
        images: "Dataset | Split | Picture | Sequence[Picture] | None" = None,
        *,
        classes: Sequence[str] | None = None,
        others: "Mapping[str, Run | ImageClassifier] | None" = None,
        folder: str | Path = "runs/figures",
    ) -> None:
        if clash := {NOTHING, "", *METHODS} & set(others or {}):
            raise ValueError(f"others: {sorted(clash)[0]!r} cannot be the name of a model here, choose another")
        self.models = {"": _model(model), **{name: _model(other) for name, other in (others or {}).items()}}
        self.folder = Path(folder)
        self._labels: Tensor | None = None
        self._names = images.names if isinstance(images, Photographs) else ()
        if isinstance(images, Dataset):
            classes, images = classes or images.classes, images.test
        if isinstance(images, Split):
            self._labels = images.labels if images.labels.ndim == 1 else None
        elif isinstance(images, Tensor) and images.ndim == 4:
            images = Split(images, torch.zeros(len(images), dtype=torch.int64))
        if isinstance(images, Split) and images.dtype != torch.uint8:
            images = images.images
        self._split = images if isinstance(images, Split) else None
        self._pictures = [] if images is None or isinstance(images, Split) else read_pictures(images)
        self._count = len(self._pictures if self._split is None else self._split)
        classes = classes or getattr(model, "classes", None)
        self._name = self.models[""].name or type(self.models[""]).__name__
        self._photo: Tensor | None = None
        self._photo_name = ""
        self._predictions: Tensor | None = None
        self._seen: dict[Any, Any] = {}
        count = self._look(_entered(self._image(0)), "", "probe").logits.shape[1] if self._count else None
        self._classes = tuple(classes) if classes else tuple(map(str, range(count or 0)))
        if count is not None and len(self._classes) != count:
            raise ValueError(f"the model knows {count} classes, but {len(self._classes)} names were given")
        self.chosen = list(range(self._count))
        self._build()
        self._update()

    def _image(self, number: int) -> Tensor:
        return self._pictures[number] if self._split is None else self._split[number].images

    # --- the widgets

    def _build(self) -> None:
        w, narrow = ipywidgets, ipywidgets.Layout(width="300px")
        label = {"description_width": "95px"}
        ways = [IN_ORDER, UNCERTAIN]
        if self._labels is not None:
            ways += [WRONG, *(f"class: {name}" for name in self._classes)]
        some = self._count > 0
        self.which = w.Dropdown(options=ways, description="images", style=label, layout=narrow, disabled=not some)
        self.position = w.IntSlider(
            min=0, max=max(0, len(self.chosen) - 1), description="number", style=label, layout=narrow, disabled=not some
        )
        self.draw = w.Button(description="at random", disabled=not some, layout=w.Layout(width="110px"))
        self.upload = w.FileUpload(
            accept="image/*", multiple=False, description="upload a photo", layout=w.Layout(width="170px")
        )
        self.resolution = w.Dropdown(
            options=[(f"{side} pixels", side) for side in RESOLUTIONS], value=96, description="photo at", style=label,
            layout=w.Layout(width="210px"),
        )  # fmt: skip
        levels = list(self._levels())
        self.levels = w.SelectMultiple(
            options=levels, value=levels, description="levels", rows=max(2, len(levels)), style=label, layout=narrow
        )
        self.strength = w.FloatSlider(
            value=0.6, min=0, max=1, step=0.05, description="overlay", style=label, layout=narrow
        )
        self.colors = w.Dropdown(options=list(COLORS), description="colors", style=label, layout=narrow)
        self.scale = w.Dropdown(options=[UNIFORM, MAXIMUM], description="scale", style=label, layout=narrow)
        self.compare = w.Dropdown(
            options=[NOTHING, *(name for name in self.models if name), *self._methods()],
            description="second row", style=label, layout=narrow,
        )  # fmt: skip
        self.save = w.Button(description="save as PNG and PDF", layout=w.Layout(width="180px"))
        self.message = w.HTML()
        self.picture = w.Image(format="png", layout=w.Layout(max_width="100%", align_self="flex-start"))
        self.widget = w.VBox(
            [
                w.HBox(
                    [
                        w.VBox([self.which, self.position, w.HBox([self.draw, self.upload]), self.resolution]),
                        w.VBox([self.levels, self.compare]),
                        w.VBox([self.strength, self.colors, self.scale, self.save]),
                    ],
                    layout=w.Layout(flex_flow="row wrap"),
                ),
                self.message,
                self.picture,
            ]
        )
        for control in (self.levels, self.strength, self.colors, self.scale, self.compare):
            control.observe(self._guarded(self._update), "value")
        self.which.observe(self._guarded(self._choose), "value")
        self.position.observe(self._guarded(self._browse), "value")
        self.resolution.observe(self._guarded(self._update), "value")
        self.draw.on_click(self._guarded(self._at_random))
        self.upload.observe(self._guarded(self._take_photo), "value")
        self.save.on_click(self._guarded(self._save))

    def _guarded(self, action: Callable[[], None]) -> Callable[[Any], None]:
        """An answer to an event: what goes wrong is told in the panel."""

        @functools.wraps(action)
        def answer(_: Any) -> None:
            self._say("")
            try:
                action()
            except Exception as error:  # the panel stays usable whatever happens
                self._say(str(error) or type(error).__name__, wrong=True)

        return answer

    def _say(self, text: str, wrong: bool = False) -> None:
        safe = text.replace("&", "&amp;").replace("<", "&lt;")
        self.message.value = f'<b style="color: {"#b00020" if wrong else "#1b5e20"}">{safe}</b>' if text else ""

    # --- events

    def _choose(self) -> None:
        way = self.which.value
        if way == IN_ORDER:
            chosen = list(range(self._count))
        elif way.startswith("class: "):
            label = self._classes.index(way.removeprefix("class: "))
            chosen = (self._labels == label).nonzero().flatten().tolist()
        elif way == WRONG:
            wrong = (self._probabilities().argmax(1) != self._labels) & (self._labels >= 0)
            chosen = wrong.nonzero().flatten().tolist()
        else:
            chosen = self._probabilities().amax(1).argsort(stable=True).tolist()
        self.chosen = chosen
        self._photo = None
        moved = self.position.value != 0
        self.position.value = 0
        self.position.max = max(0, len(chosen) - 1)
        self._say(f"{len(chosen)} images" if chosen else f"there is no image: {way}", wrong=not chosen)
        if not moved:
            self._update()

    def _browse(self) -> None:
        self._photo = None
        self._update()

    def _at_random(self) -> None:
        self._photo = None
        if not self.chosen:
            self._update()
            return
        before, last = self.position.value, len(self.chosen) - 1
        number = random.randrange(max(1, last))
        self.position.value = number + (number >= before) if last else 0  # another one than before
        if self.position.value == before:
            self._update()

    def _take_photo(self) -> None:
        name, content = uploaded(self.upload.value)
        if content is None:
            return
        try:
            (self._photo,) = read_pictures(content)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self._photo_name = name
        self._seen = {key: seen for key, seen in self._seen.items() if not str(key[0]).startswith("photo")}
        self._update()

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"attention-{time.strftime('%Y%m%d-%H%M%S')}-{len(list(self.folder.iterdir()))}"
        image = self._compose()
        paths = [self.folder / f"{stem}.{ending}" for ending in ("png", "pdf")]
        image.save(paths[0])
        image.save(paths[1], resolution=150)
        self._say("saved: " + ", ".join(map(str, paths)))

    def _update(self) -> None:
        self.picture.value = composer.to_png(self._compose())

    # --- what is shown

    def _compose(self) -> Any:
        rows = self._rows()
        return composer.compose(rows, colors=self.colors.value, strength=self.strength.value, scale=self.scale.value)

    def _rows(self) -> list[Row]:
        if self._photo is not None:
            truth, title, key = None, self._photo_name, f"photo {self.resolution.value}"
            shown = self._kept(("photo",), lambda: fit_for_display(self._photo))
            entered = self._kept((key,), lambda: at_resolution(self._photo, self.resolution.value))
        elif self.chosen:
            index = self.chosen[min(self.position.value, len(self.chosen) - 1)]
            key, picture = index, self._image(index)
            title = self._names[index] if self._names else f"image {index}"
            shown = self._kept((index, "shown"), lambda: fit_for_display(picture))
            entered = _entered(picture)
            label = -1 if self._labels is None else int(self._labels[index])
            truth = self._classes[label] if label >= 0 else None
        else:
            title = f"there is no image: {self.which.value}" if self._count else "upload a photo"
            return [Row(title, torch.full((3, 64, 64), 235, dtype=torch.uint8), {})]
        rows = [self._row(f"{title}: {self._name}", shown, entered, "", key, truth)]
        other = self.compare.value
        try:
            if other in self.models:
                rows.append(self._row(other, shown, entered, other, key, truth))
            elif other != NOTHING:
                answer = next(iter(sorted(rows[0].probabilities.items(), key=lambda item: -item[1])))[0]
                rows.append(Row(f"{other}: why {answer}?", shown, self._explained(entered, key)))
        except Exception as error:  # the first row is shown all the same
            self._say(f"{other}: {error}", wrong=True)
        return rows

    def _row(self, title: str, shown: Tensor, entered: Tensor, name: str, key: Any, truth: str | None) -> Row:
        seen = self._look(entered, name, key)
        wanted = self.levels.value if not name else tuple(seen.maps)
        maps = {level: maps[0] for level, maps in seen.maps.items() if level in wanted}
        probabilities = seen.logits[0].softmax(0).tolist()
        names = self._classes if len(self._classes) == len(probabilities) else map(str, range(len(probabilities)))
        return Row(title, shown, maps, dict(zip(names, probabilities, strict=True)), truth)

    def _look(self, entered: Tensor, name: str, key: Any) -> AttentionOutput:
        return self._kept((key, name), lambda: attend(self.models[name], entered[None]))

    def _explained(self, entered: Tensor, key: Any) -> dict[str, Tensor]:
        method = self.compare.value
        return self._kept((key, "", method), lambda: {method: explain(self.models[""], entered[None], method)[0]})

    def _kept(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Computes once for each of the last images."""
        if key not in self._seen:
            if len(self._seen) >= _KEPT:
                self._seen.pop(next(iter(self._seen)))
            self._seen[key] = compute()
        return self._seen[key]

    def _probabilities(self) -> Tensor:
        """Of all images, (N, classes); computed when first asked for."""
        if self._predictions is None:
            model = self.models[""]
            if self._split is not None:
                parts = [seen.logits.float().cpu() for _, seen in attend_batches(model, self._split)]
            else:
                parts = [self._look(_entered(image), "", number).logits for number, image in enumerate(self._pictures)]
            self._predictions = torch.cat(parts).softmax(1)
        return self._predictions

    def _levels(self) -> list[str]:
        probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        return list(attend(self.models[""], probe).maps)

    def _methods(self) -> list[str]:
        return [method for method in METHODS if method not in ("attention", "cam")]

    # --- showing it

    def png(self) -> bytes:
        """The picture as it is now, PNG."""
        return bytes(self.picture.value)

    def display(self) -> None:
        """Shows the panel in a notebook, with the picture for pages without a kernel; elsewhere does nothing."""
        ipython = sys.modules.get("IPython")
        if ipython is None or ipython.get_ipython() is None:
            return
        if "google.colab" in sys.modules:  # Colab shows a picture rather than a widget where it has both
            ipython.display.display(self.widget)
            return
        bundle = {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2, "version_minor": 0, "model_id": self.widget.model_id
            },
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": "the explorer: a picture, its attention maps, and the five most probable classes",
        }  # fmt: skip
        alt = "The explorer: a picture, its attention maps, and the five most probable classes"
        ipython.display.display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


def uploaded(value: Any) -> tuple[str, bytes | None]:
    """Name and content of the file in a `FileUpload`: of ipywidgets 7 (a dict) and 8 (a tuple of dicts)."""
    if isinstance(value, Mapping):
        entries = [(name, entry["content"]) for name, entry in value.items()]
    else:
        entries = [(entry["name"], entry["content"]) for entry in value or ()]
    if not entries:
        return "", None
    name, content = entries[-1]
    return name, bytes(content)


def _entered(picture: Tensor) -> Tensor:
    """What the network reads of an image: as it is, but from 32 to 224 pixels on its shorter side."""
    shorter = min(picture.shape[1:])
    return picture if LEAST <= shorter <= READ else at_resolution(picture, min(max(shorter, LEAST), READ))


def _model(model: Any) -> ImageClassifier:
    model = model.model if isinstance(model, Run) else model
    if not isinstance(model, ImageClassifier):
        raise TypeError(
            f"a run or a model of ltpa is needed, not {type(model).__name__}; maps of any other model can be shown "
            "with ltpa.show(images, maps={...})"
        )
    return model
