"""The pictures in docs that the shipped weights make: run it again when the weights change."""

import argparse
from pathlib import Path

import torch

from ltpa import attend, load_pretrained
from ltpa.data.sources import read_pictures
from ltpa.data.tree import Folder
from ltpa.viz import attention_figure, captions, to_png
from ltpa.viz.explorer import Explorer

DRAWN = ("frog", "bird", "truck", "automobile")
EXPLORED = "deer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tests.tools pictures`."""
    parser.add_argument("data_dir", type=Path, help="a folder with CIFAR-10's test images in test/<class>/")
    parser.add_argument("--number", type=int, default=4, help="which picture of each class, from 0 (default: 4)")
    parser.add_argument("--folder", type=Path, default=Path("docs/images"), help="to write to (default: docs/images)")


def main(arguments: argparse.Namespace) -> None:
    """Write maps_cifar10.png and explorer.png."""
    files = {
        name: Folder(arguments.data_dir.expanduser() / "test" / name).images[arguments.number]
        for name in (*DRAWN, EXPLORED)
    }
    model = load_pretrained()
    images = torch.stack(read_pictures([files[name] for name in DRAWN]))
    output = attend(model, images)
    labels = torch.tensor([model.classes.index(name) for name in DRAWN])
    figure = attention_figure(images, output.maps, titles=captions(output.logits, model.classes, labels))
    (arguments.folder / "maps_cifar10.png").write_bytes(to_png(figure))
    panel = Explorer(model, [files[EXPLORED]])
    panel.compare.value = "gradcam"
    (arguments.folder / "explorer.png").write_bytes(panel.png())
