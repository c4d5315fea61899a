"""The explorer: click through pictures, levels and models, or upload a photo, and see where the network looks.

It uses only the core widgets of ipywidgets 7.7 and 8, so Colab needs no custom widget manager. One picture is updated
in place, so nothing flickers. A line above it names a slow computation while it runs, and shows errors.
"""

import base64
import functools
import html
import math
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
from ..data.sources import Picture, at_resolution, read_named, read_pictures
from ..errors import counted
from ..inference import attend, attend_batches
from ..models.networks import AttentionOutput
from . import composer, style
from .composer import MAXIMUM, UNIFORM, Row, fit_for_display
from .figures import UNSURE
from .show import Model, class_names, known_classes, network_of, readable
from .words import METHOD_NAMES, model_in_words

IN_ORDER, UNCERTAIN, WRONG = "all, in order", "least certain first", "misclassified"
NOTHING = "no second row"
RESOLUTIONS = (32, 64, 96, 128, 224)
_PASSES = {"saliency": 3, "gradcam": 3, "integrated_gradients": 150, "occlusion": 130}  # as costly as forward passes
_SLOW = 0.4  # seconds; if it takes longer, the panel says what it computes
_CACHED = 200  # maps and pictures, enough for about fifty images
_ALT = "The explorer: a picture, its attention maps, and the five most probable classes"
# On a page made by nbconvert, the panel stays empty unless a script can be loaded. This picture appears there instead,
# and is hidden everywhere else.
_STILL = """<style>
.ltpa-still { display: none; }
body.jp-Notebook .jp-OutputArea:has(.jupyter-widgets):not(:has(.widget-subarea)) .ltpa-still,
body > main > #notebook .output:has(.output_widget_view):not(:has(.widget-subarea)) .ltpa-still { display: block; }
</style>
<div class="ltpa-still"><img alt="%s" src="data:image/png;base64,%s" style="max-width: 100%%"></div>"""


_LARGE = """<style>
.ltpa-explorer .widget-label, .ltpa-explorer .widget-readout, .ltpa-explorer select, .ltpa-explorer button,
.ltpa-explorer .widget-html-content, .ltpa-explorer label { font-size: 16px !important; color: black; opacity: 1; }
.ltpa-explorer .widget-html-content { line-height: 1.35; }
.ltpa-explorer button { color: black; }
</style>"""


def explore(
    model: Model,
    images: Dataset | Split | Picture | Sequence[Picture] | None = None,
    *,
    classes: Sequence[str] | None = None,
    others: Mapping[str, Model] | None = None,
    folder: str | Path = "runs/figures",
) -> "Explorer":
    """Show the explorer in a notebook and return it; `.png()` returns its picture, also outside a notebook.

    Args:
        model: a run, a model, or a name or folder for `ltpa.load_pretrained`.
        images: a data set (its test images), a split, or any pictures that `ltpa.show` takes, such as a folder; None
            waits for a photo. A label below 0 means that the image belongs to none of the classes.
        classes: class names, for models that know none.
        others: name -> what the second row can show, each like `model`.
        folder: where the save button writes PNG and PDF files.
    """
    explorer = Explorer(model, images, classes=classes, others=others, folder=folder)
    explorer.display()
    return explorer


class Explorer:
    """The panel that `explore` shows.

    Its controls are attributes (`which`, `position`, `levels["conv7"]`, ...), so that a program can set them. `chosen`
    holds the numbers of the images that `position` runs through; `widget` is the whole panel.
    """

    def __init__(
        self,
        model: Model,
        images: Dataset | Split | Picture | Sequence[Picture] | None = None,
        *,
        classes: Sequence[str] | None = None,
        others: Mapping[str, Model] | None = None,
        folder: str | Path = "runs/figures",
    ) -> None:
        if clash := {NOTHING, "", *METHODS} & set(others or {}):
            raise ValueError(f"others: {sorted(clash)[0]!r} cannot name a model; choose another name")
        self.models = {name: network_of(one) for name, one in {"": model, **(others or {})}.items()}
        self.folder = Path(folder)
        self._name = model_in_words(self.models[""].name or type(self.models[""]).__name__)
        self._photo: Tensor | None = None
        self._photo_name = ""
        self._shown: Any = None  # the last picture that was composed
        self._cache: dict[Any, Any] = {}
        self._pace = math.inf  # seconds of a forward pass for each pixel, the least that was measured
        of_data = self._take_images(images)
        self._classes = class_names(self.models[""], of_data if classes is None else classes, self._try_out())
        self.chosen = list(range(len(self._images)))
        self._build()
        self._update()

    def _take_images(self, images: Any) -> Sequence[str] | None:
        """Store images, labels and names; return the class names if the images have some."""
        self._labels: Tensor | None = None
        self._names: tuple[str, ...] = ()
        classes = images.classes if isinstance(images, Dataset) else None
        source: Any = images.test if isinstance(images, Dataset) else images
        if isinstance(source, Split):
            self._labels = source.labels if source.labels.ndim == 1 else None
        elif isinstance(source, Tensor) and source.ndim == 4:
            source = Split(source, torch.zeros(len(source), dtype=torch.int64))
        if isinstance(source, Split) and source.dtype != torch.uint8:
            source = source.images
        self._images: Split | list[Tensor] = source if isinstance(source, Split) else []
        if source is not None and not isinstance(source, Split):
            self._names, pictures = zip(*read_named(source), strict=True)
            self._images = list(pictures)
        return classes

    def _image(self, number: int) -> Tensor:
        image = self._images[number]
        return image.images if isinstance(image, Split) else image

    def _try_out(self) -> int:
        """Find the levels of the model; return how many classes it knows."""
        output = attend(self.models[""], torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        self._levels = list(output.maps)
        return output.logits.shape[1]

    # --- the widgets

    def _build(self) -> None:
        w, some = ipywidgets, bool(len(self._images))

        def wide(pixels: int) -> Any:
            return w.Layout(width=f"{pixels}px")

        def control(kind: Any, description: str, **options: Any) -> Any:
            return kind(description=description, style={"description_width": "80px"}, layout=wide(320), **options)

        def button(description: str, width: int, **options: Any) -> Any:
            return w.Button(description=description, layout=wide(width), **options)

        ways = [IN_ORDER, UNCERTAIN]
        if self._labels is not None:
            ways += [WRONG, *(f"class: {name}" for name in self._classes)]
        seconds = [(NOTHING, NOTHING), *((name, name) for name in self.models if name)]
        seconds += [(METHOD_NAMES[method], method) for method in METHODS if method not in ("attention", "cam")]
        self.which = control(w.Dropdown, "images", options=ways, disabled=not some)
        last = max(0, len(self.chosen) - 1)
        self.position = control(w.IntSlider, "number", min=0, max=last, disabled=not some)
        self.draw = button("at random", 120, disabled=not some)
        self.upload = w.FileUpload(accept="image/*", multiple=False, description="your photo", layout=wide(180))
        self.back = button("back to the images", 180, disabled=True)
        sides = [(f"{side} pixels", side) for side in RESOLUTIONS]
        self.resolution = control(w.Dropdown, "photo at", options=sides, value=96)
        self.levels = {
            level: w.Checkbox(value=True, description=level, indent=False, layout=wide(130)) for level in self._levels
        }
        self.strength = control(w.FloatSlider, "overlay", value=style.STRENGTH, min=0, max=1, step=0.05)
        self.colors = control(w.Dropdown, "colors", options=list(style.COLORS))
        self.scale = control(w.Dropdown, "scale", options=[UNIFORM, MAXIMUM])
        self.compare = control(w.Dropdown, "below", options=seconds)
        self.save = button("save as PNG and PDF", 200)
        self.message = w.HTML()
        self.picture = w.Image(format="png", layout=w.Layout(max_width="100%", align_self="flex-start"))
        heading = [w.HTML("maps of the levels")] if self.levels else []
        columns = [
            w.VBox([self.which, self.position, w.HBox([self.draw, self.upload]), w.HBox([self.back])]),
            w.VBox([*heading, *self.levels.values()], layout=w.Layout(margin="0 0 0 24px")),
            w.VBox([self.compare, self.resolution, self.strength, self.colors, self.scale, w.HBox([self.save])]),
        ]
        controls = w.HBox(columns, layout=w.Layout(flex_flow="row wrap"))
        self.widget = w.VBox([w.HTML(_LARGE), controls, self.message, self.picture, w.HTML(self._explanation())])
        self.widget.add_class("ltpa-explorer")
        self._connect()

    def _explanation(self) -> str:
        """Return what stands below the picture: the classes, and what an unsure answer means."""
        return html.escape(
            f"{known_classes(self._classes)} An answer under {100 * UNSURE:.0f} % is marked as unsure: the network "
            "finds the other classes together more probable. It cannot say that a picture shows none of its classes."
        )

    def _connect(self) -> None:
        update = self._guarded(self._update)
        controls = (self.strength, self.colors, self.scale, self.compare, self.resolution)
        for control in (*controls, *self.levels.values()):
            control.observe(update, "value")
        self.which.observe(self._guarded(self._choose), "value")
        self.position.observe(self._guarded(self._browse), "value")
        self.upload.observe(self._guarded(self._take_photo), "value")
        self.draw.on_click(self._guarded(self._at_random))
        self.back.on_click(self._guarded(self._browse))
        self.save.on_click(self._guarded(self._save))

    def _guarded(self, action: Callable[[], None]) -> Callable[[Any], None]:
        """Return an event handler that runs the action and shows its errors in the panel."""

        @functools.wraps(action)
        def answer(_: Any) -> None:
            self._say("")
            try:
                action()
                if "computing" in self.message.value:
                    self._say("")
            except Exception as error:  # the panel stays usable whatever happens
                self._say(str(error) or type(error).__name__, wrong=True)

        return answer

    def _say(self, text: str, wrong: bool = False) -> None:
        color = "#b00020" if wrong else "#1b5e20"
        self.message.value = f'<b style="color: {color}">{html.escape(text, quote=False)}</b>' if text else ""

    def _announce(self, work: str, pixels: float) -> None:
        """Name the work, if it takes long; `pixels` are those of all forward passes."""
        seconds = self._pace * pixels
        if _SLOW < seconds < math.inf:
            self._say(f"computing {work}, about {max(1, round(seconds))} s ...")

    # --- events

    def _choose(self) -> None:
        way = self.which.value
        labels = torch.empty(0) if self._labels is None else self._labels
        if way == IN_ORDER:
            chosen = list(range(len(self._images)))
        elif way.startswith("class: "):
            label = self._classes.index(way.removeprefix("class: "))
            chosen = (labels == label).nonzero().flatten().tolist()
        elif way == WRONG:
            wrong = (self._probabilities.argmax(1) != labels) & (labels >= 0)
            chosen = wrong.nonzero().flatten().tolist()
        else:
            chosen = self._probabilities.amax(1).argsort(stable=True).tolist()
        self.chosen = chosen
        self._photo = None
        moved = self.position.value != 0
        self.position.value = 0
        self.position.max = max(0, len(chosen) - 1)
        self._say(counted(len(chosen), "image") if chosen else f"no images: {way}", wrong=not chosen)
        if not moved:
            self._update()

    def _browse(self) -> None:
        self._photo = None
        self._update()

    def _at_random(self) -> None:
        self._photo = None
        if others := [number for number in range(len(self.chosen)) if number != self.position.value]:
            self.position.value = random.choice(others)
        else:
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
        self._cache = {key: value for key, value in self._cache.items() if not str(key[0]).startswith("photo")}
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
        self.back.disabled = self._photo is None or not len(self._images)
        self._shown = self._compose()
        self.picture.value = composer.to_png(self._shown)

    # --- what is shown

    def _compose(self) -> Any:
        rows = self._rows()
        return composer.compose(rows, colors=self.colors.value, strength=self.strength.value, scale=self.scale.value)

    def _rows(self) -> list[Row]:
        truth = None
        if (photo := self._photo) is not None:
            title, key = self._photo_name, f"photo {self.resolution.value}"
            shown = self._cached(("photo",), lambda: fit_for_display(photo))
            entered = self._cached((key,), lambda: at_resolution(photo, self.resolution.value))
        elif self.chosen:
            key = self.chosen[min(self.position.value, len(self.chosen) - 1)]
            picture = self._image(key)
            title = (self._names and self._names[key]) or f"image {key}"
            shown = self._cached((key, "shown"), lambda: fit_for_display(picture))
            entered = readable(picture)
            label = -1 if self._labels is None else int(self._labels[key])
            truth = self._classes[label] if label >= 0 else None
        else:
            title = f"no images: {self.which.value}" if len(self._images) else "upload a photo"
            return [Row(title, torch.full((3, 64, 64), 235, dtype=torch.uint8), {})]
        first = self._row(f"{title}: {self._name}", shown, entered, "", key, truth)
        size = entered.shape[1] * entered.shape[2]
        other = self.compare.value
        try:
            if other in self.models:
                return [first, self._row(other, shown, entered, other, key, truth)]
            if other != NOTHING:
                answer = max(first.probabilities, key=lambda name: first.probabilities[name])
                words = METHOD_NAMES[other]

                def explanation() -> Tensor:
                    self._announce(words, size * _PASSES[other])
                    return explain(self.models[""], entered[None], other)[0]

                maps = self._cached((key, "", other), explanation)
                return [first, Row(f"{words}: which parts support {answer}?", shown, {words: maps})]
        except Exception as error:  # the first row can still be shown
            self._say(f"{METHOD_NAMES.get(other, other)}: {error}", wrong=True)
        return [first]

    def _row(self, title: str, shown: Tensor, entered: Tensor, name: str, key: Any, truth: str | None) -> Row:
        output = self._attend(entered, name, key)
        boxes = {} if name else self.levels
        maps = {level: maps[0] for level, maps in output.maps.items() if level not in boxes or boxes[level].value}
        probabilities = output.logits[0].softmax(0).tolist()
        names = self._classes if len(self._classes) == len(probabilities) else map(str, range(len(probabilities)))
        return Row(title, shown, maps, dict(zip(names, probabilities, strict=True)), truth)

    def _attend(self, entered: Tensor, name: str, key: Any) -> AttentionOutput:
        pixels = entered.shape[1] * entered.shape[2]

        def output() -> AttentionOutput:
            self._announce("the maps", pixels)
            started = time.perf_counter()
            result = attend(self.models[name], entered[None])
            self._pace = min(self._pace, (time.perf_counter() - started) / pixels)
            return result

        return self._cached((key, name), output)

    def _cached(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._cache:
            if len(self._cache) >= _CACHED:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = compute()
        return self._cache[key]

    @functools.cached_property
    def _probabilities(self) -> Tensor:
        """Return the class probabilities of all images, (N, classes)."""
        pixels = readable(self._image(0)).shape[1:].numel()
        self._announce(f"the answers to {len(self._images)} images", len(self._images) * pixels)
        if isinstance(self._images, list):
            logits = [self._attend(readable(image), "", number).logits for number, image in enumerate(self._images)]
        else:
            logits = [output.logits.float().cpu() for _, output in attend_batches(self.models[""], self._images)]
        return torch.cat(logits).softmax(1)

    # --- display

    def png(self) -> bytes:
        """Return the current picture as PNG."""
        return bytes(self.picture.value)

    def display(self) -> None:
        """Show the panel in a notebook, with a still picture for pages without a kernel; elsewhere do nothing."""
        if not style.in_ipython():
            return
        from IPython.display import HTML, display

        picture = base64.b64encode(self.png()).decode()
        if "google.colab" in sys.modules:  # Colab prefers the picture if an output has a picture and a widget
            display(self.widget)
        else:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
            bundle = {"application/vnd.jupyter.widget-view+json": view, "image/png": picture, "text/plain": _ALT}
            display(bundle, raw=True, metadata={"image/png": {"alt": _ALT}})
        display(HTML(_STILL % (_ALT, picture)))


def uploaded(value: Any) -> tuple[str, bytes | None]:
    """Return name and content of an uploaded file; ipywidgets 7 gives a dict, 8 a tuple of dicts."""
    if isinstance(value, Mapping):
        entries = [(name, entry["content"]) for name, entry in value.items()]
    else:
        entries = [(entry["name"], entry["content"]) for entry in value or ()]
    if not entries:
        return "", None
    name, content = entries[-1]
    return name, bytes(content)
