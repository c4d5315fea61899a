"""A network to share: a folder with its weights, its configuration and a model card; also on the Hugging Face hub."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from .._version import __version__
from ..errors import counted

if TYPE_CHECKING:
    from .classifier import ImageClassifier

WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")
CARD_TEXT = """---
library_name: ltpa
pipeline_tag: image-classification
tags: [attention, learn-to-pay-attention, image-classification]
---

# {name}

An image classifier with attention maps (Jetley et al., ICLR 2018), {parameters:,} parameters, made with \
[ltpa](https://pypi.org/project/ltpa/) {version}.

```python
import ltpa

model = ltpa.load_pretrained("FOLDER or owner/name")
ltpa.show("photo.jpg", model)
```

## Classes

{classes}.

## Training and accuracy

{training}

## Limits

- It answers every picture with one of its classes, even if none fits or the picture is unlike those it was trained \
on, and often with confidence.
- Pictures are values in [0, 1], at least 32x32 pixels{pixels}.
- An attention map shows what the classifier reads with more weight. It is not proof of a cause: measure it before \
you rely on it.
"""


def save_model(model: "ImageClassifier", folder: str | Path) -> Path:
    """Write weights, configuration and model card into a folder, new or with an earlier model."""
    folder = Path(folder).expanduser()
    strangers = {path.name for path in folder.iterdir()} - {*FILES} if folder.is_dir() else set()
    if strangers and not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds other files ({min(strangers)}, ...); name a new or an empty folder")
    if not model.options:
        raise ValueError("only networks made by ltpa.create_model can be saved, because only these can be rebuilt")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "library_name": "ltpa",
        "ltpa": __version__,
        "create_model": model.options,
        "classes": None if model.classes is None else list(model.classes),
        "facts": model.facts,
    }
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(model), encoding="utf-8")
    return folder


def push_model(model: "ImageClassifier", repository: str, private: bool, token: str | None) -> str:
    """Upload the folder of `save_model` to the hub, as "owner/name"; return its address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload the network"))


def model_card(model: "ImageClassifier") -> str:
    """Return a model card in Markdown: what the network is, what it was trained on, how good it is, its limits."""
    facts: dict[str, Any] = model.facts
    classes = list(model.classes or [])
    names = ", ".join(classes[:100]) + (", ..." if len(classes) > 100 else "")
    pixels = f"; it was trained on {facts['image_size']}x{facts['image_size']}" if "image_size" in facts else ""
    return CARD_TEXT.format(
        name=model.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        version=__version__,
        classes=f"{counted(len(classes), 'class', 'classes')}: {names}" if classes else "Their names are not known",
        training="\n".join(_training(facts) or ["Not recorded."]),
        pixels=pixels,
    )


def _training(facts: dict[str, Any]) -> list[str]:
    lines = []
    if "dataset" in facts:
        lines.append(f"- Data: {facts['dataset']}" + _images(facts, "train_images", "for training") + ".")
    if "epochs" in facts:
        lines.append(f"- {counted(facts['epochs'], 'epoch')}, seed {facts.get('seed', 'unknown')}.")
    if "accuracy" in facts:
        kind = "held-out training" if facts.get("validation") else "test"
        lines.append(f"- Accuracy on the {kind} images: {facts['accuracy']:.1%}{_images(facts, 'test_images', '')}.")
    return lines


def _images(facts: dict[str, Any], key: str, purpose: str) -> str:
    return f" ({facts[key]:,} images{' ' + purpose if purpose else ''})" if key in facts else ""
