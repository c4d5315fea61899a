"""Build the page of the explorer without a kernel: `python docs/demo/build.py [FOLDER]`, default build/docs/demo.

Without npm, which brings the runtime for the browser, a line says that the page is left out. The networks become ONNX
files, which takes a minute; files of weights that have not changed are kept in build/onnx.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import ltpa
from ltpa.course import query
from ltpa.data.images import crop_square
from ltpa.export import export_onnx
from ltpa.models.classifier import ImageClassifier
from ltpa.pretrained import pretrained_facts
from ltpa.viz.style import COLORS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNTIME = "ort-wasm-simd-threaded.wasm"
STATIC = ("index.html", "style.css", "js")
EXPLORE = {"cifar10-small": "photographs (CIFAR-10)", "shapes-small": "drawn shapes"}
NOTES = [
    "A map shows what the classifier reads with more weight. That need not be why it answers so: cover a place, and "
    "see whether the answer changes. Both networks score positions with the paper's parametrized compatibility (pc) "
    "and softmax.",
    "A photo is cropped to its middle square and scaled. The networks were trained at 32 x 32 pixels; with more their "
    "maps are finer, but how good their answers are was not measured.",
]
ASKING = {  # networks of docs/demo/networks -> title, and what to expect
    "pc": (
        "pc with softmax: cannot move",
        "The query's part of the score is the same at every position, and softmax cancels it.",
    ),
    "dp": ("dp as trained", "It saw one object in each picture, so nothing made its g tell one class from another."),
    "asked": (
        "dp that learned to be asked",
        "The same network, trained further on scenes of two objects with a query.",
    ),
}
SCENES = 6
MISSING = "<!doctype html><title>Not built</title><p>This page was left out: it needs npm, see CONTRIBUTING.md.</p>\n"
FIRST = ("cat", "cifar10-small", 32)  # shown before a network is loaded


def build(folder: Path) -> None:
    """Write the page into a folder; without npm, a page that says what is missing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not bring_runtime():
        (folder / "index.html").write_text(MISSING, encoding="utf-8")
        return
    for name in STATIC:
        copy = shutil.copytree if (HERE / name).is_dir() else shutil.copy
        copy(HERE / name, folder / name)
    runtime_bytes = copy_runtime(folder / "vendor")
    networks = load_networks()
    (folder / "networks").mkdir()
    (folder / "pictures").mkdir()
    scenes, level = draw_scenes(folder, networks["asked"])
    pictures = copy_photographs(folder) + draw_pictures(folder)
    data = {
        "colors": {name: color_table(name) for name in COLORS},
        "runtimeBytes": runtime_bytes,
        "networks": {name: describe(folder, name, network) for name, network in networks.items()},
        "explore": list(EXPLORE),
        "asking": [{"network": name, "title": title, "words": words} for name, (title, words) in ASKING.items()],
        "askLevel": level,
        "pictures": pictures,
        "first": first_answer(folder, networks[FIRST[1]]),
    }
    for name, content in (("data", data), ("scenes", scenes)):
        (folder / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"the explorer without a kernel: {folder / 'index.html'}, {megabytes:.1f} MB in all")


def load_networks() -> dict[str, ImageClassifier]:
    """Return the networks of the page: those that come with ltpa, and its own."""
    networks = {name: ltpa.load_pretrained(name, device="cpu") for name in EXPLORE}
    return networks | {name: ltpa.load_pretrained(HERE / "networks" / name, device="cpu") for name in ASKING}


def bring_runtime() -> bool:
    """Install what package-lock.json names, unless it is there; return whether it is."""
    if (HERE / "node_modules" / "onnxruntime-web").is_dir():
        return True
    npm = shutil.which("npm")
    if npm is None:
        print("skipped: docs/demo, the explorer without a kernel; it needs npm (nodejs.org) for its runtime")
        return False
    result = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=HERE, text=True, capture_output=True
    )
    if result.returncode:
        print(f"skipped: docs/demo, the explorer without a kernel; npm ci failed:\n{result.stderr[-2000:]}")
    return result.returncode == 0


def copy_runtime(folder: Path) -> int:
    """Copy the smallest build of the runtime, for the CPU alone; return the bytes of its program."""
    source = HERE / "node_modules" / "onnxruntime-web"
    folder.mkdir()
    for name in ("ort.wasm.min.mjs", RUNTIME.replace(".wasm", ".mjs"), RUNTIME):
        shutil.copy(source / "dist" / name, folder / name)
    version = json.loads((source / "package.json").read_text("utf-8"))["version"]
    notice = f"ONNX Runtime Web {version}, https://github.com/microsoft/onnxruntime\n\n{MIT}"
    (folder / "LICENSE.txt").write_text(notice, encoding="utf-8")
    return (folder / RUNTIME).stat().st_size


def describe(folder: Path, name: str, network: ImageClassifier) -> dict[str, Any]:
    """Write a network's ONNX file; return what the page says about the network."""
    asking, kept = name in ASKING, onnx_path(name, network)
    attention: Any = network.attention
    if not kept.is_file():
        write_onnx(kept, network, asking)
    shutil.copy(kept, folder / "networks" / kept.name)
    facts: dict[str, Any] = {
        "file": f"networks/{kept.name}",  # its name changes with the weights, so no browser keeps old ones
        "bytes": kept.stat().st_size,
        "classes": list(network.classes or ()),
        "levels": list(attention),
    }
    if asking:
        return {**facts, "facts": {key: network.facts[key] for key in ("follows", "scenes", "answers")}}
    packed = pretrained_facts(name)
    return {
        **facts,
        "label": EXPLORE[name],
        "accuracy": packed["figures"]["accuracy"]["mean"],
        "trained": f"It was trained on {packed['data']['train']:,} pictures: {packed['data']['description']}.",
        "notes": NOTES,
    }


def onnx_path(name: str, network: ImageClassifier) -> Path:
    """Return where the ONNX file of these weights is kept, whether it is there or not."""
    digest = hashlib.sha256((ROOT / "ltpa" / "export.py").read_bytes())
    for key, value in network.state_dict().items():
        digest.update(key.encode() + value.cpu().numpy().tobytes())
    return ROOT / "build" / "onnx" / f"{name}-{digest.hexdigest()[:16]}.onnx"


def write_onnx(path: Path, network: ImageClassifier, asking: bool) -> None:
    """Write the ONNX file of a network: for pictures of any size, or for scenes of 32 pixels and queries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(f"new-{path.name}")
    size, takes_query = (32, network.uses_global_feature) if asking else (None, False)
    export_onnx(network, half_written, image_size=size, query=takes_query, half=True)
    half_written.replace(path)


def copy_photographs(folder: Path) -> list[dict[str, Any]]:
    """Copy the photographs; return their entries."""
    entries = json.loads((HERE / "photos" / "sources.json").read_text("utf-8"))
    for entry in entries:
        entry |= {"kind": "photo", "network": "cifar10-small", "file": f"pictures/{entry['id']}.jpg"}
        shutil.copy(HERE / "photos" / f"{entry['id']}.jpg", folder / entry["file"])
    return entries


def draw_pictures(folder: Path) -> list[dict[str, Any]]:
    """Draw one test picture of each class; return their entries."""
    data = ltpa.load_data("shapes", train_limit=20, test_limit=100)
    entries = []
    for label, name in enumerate(data.classes):
        number = int((data.test.labels == label).nonzero()[0])
        entry = {"id": name, "name": name, "alt": f"A drawn {name}", "truth": name, "kind": "drawn"}
        entry |= {"network": "shapes-small", "file": f"pictures/{name}.png"}
        save(data.test.images[number], folder / entry["file"])
        entries.append(entry)
    return entries


def draw_scenes(folder: Path, network: ImageClassifier) -> tuple[list[dict[str, Any]], str]:
    """Draw test scenes and their queries, chosen as notebook 05 does; return their entries and the level to look at.

    Of 500 scenes, six are taken from the largest swing of the network's map to the smallest.
    """
    single, pairs = (ltpa.load_data("shapes", train_limit=20, objects=objects) for objects in (1, 2))
    queries = query.draw_queries(pairs.test[: network.facts["scenes"]], single.test)
    level, chosen = query.typical(query.steer(network, queries), SCENES)
    entries = []
    for rank, number in enumerate(chosen.tolist()):
        scene = queries.scenes[number]
        names = [single.classes[label] for label in queries.labels[:, number].tolist()]
        file = f"pictures/scene-{rank}.png"
        save(scene.images, folder / file)
        asking = []
        for kind, name in enumerate(names):
            asking.append(
                {
                    "id": str(kind),
                    "name": name,
                    "caption": name if kind < 2 else f"{name}: not there",
                    "object": kind if kind < 2 else None,
                }
            )
            asking[-1]["file"] = f"pictures/scene-{rank}-query-{kind}.png"
            save(queries.images[kind, number], folder / asking[-1]["file"])
        masks = queries.masks[number]
        entries.append(
            {
                "id": str(rank),
                "name": f"{names[0]} and {names[1]}",
                "caption": f"{names[0]}, {names[1]}",
                "file": file,
                "objects": names[:2],
                "masks": ["".join(map(str, mask.flatten().int().tolist())) for mask in masks],
                "area": masks.any(0).double().mean().item(),
                "queries": asking,
                "why": f"Scene {rank + 1} of {SCENES}, which go from the one where the query moves the third map most "
                f"to the one where it moves it least, of {len(queries.scenes)}.",
            }
        )
    return entries, level


def first_answer(folder: Path, network: ImageClassifier) -> dict[str, Any]:
    """Return the answer for the picture that the page begins with, so that it need not load a network first."""
    picture, name, size = FIRST
    with Image.open(folder / "pictures" / f"{picture}.jpg") as image:
        pixels = torch.from_numpy(np.array(crop_square(image.convert("RGB"), size))).permute(2, 0, 1)[None]
    output = ltpa.attend(network, pixels, "fp32")
    maps = {
        level: {
            "height": weights.shape[1],
            "width": weights.shape[2],
            "values": [float(f"{w:.4g}") for w in weights.flatten().tolist()],
        }
        for level, weights in output.maps.items()
    }
    return {"picture": picture, "network": name, "size": size, "logits": output.logits[0].tolist(), "maps": maps}


def color_table(name: str) -> str:
    """Return 256 colors as one string of hexadecimal digits."""
    return (matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes().hex()


def save(image: Tensor, path: Path) -> None:
    """Save a picture (3, H, W) as PNG."""
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path, optimize=True)


MIT = """MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs" / "demo")
