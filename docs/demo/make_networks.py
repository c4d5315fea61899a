"""Train the page's three small networks: `python docs/demo/make_networks.py`, about six minutes on one core.

All are the networks of notebook 05, trained on pictures of one drawn object: `pc`, whose map no query can move; `dp`,
whose map a query moves, but hardly to the object that it shows; `asked`, the same `dp` trained further on scenes of two
objects with a query. Each becomes a folder of docs/demo/networks, with its kernels in float16; the facts that the page
tells about a network are measured with the stored weights.
"""

import tempfile
from pathlib import Path

import torch

import ltpa
from ltpa.course import query
from ltpa.data.dataset import Dataset
from ltpa.models.classifier import ImageClassifier

HERE = Path(__file__).resolve().parent
STEPS = 600  # of training with queries
SCENES = 500  # to measure on
SETTINGS = {"width": 0.125, "dataset": "shapes", "epochs": 5, "batch_size": 64, "seed": 0, "device": "cpu"}


def main() -> None:
    """Train, measure and store the three networks."""
    torch.set_num_threads(1)
    single = ltpa.load_data("shapes")
    scenes = ltpa.load_data("shapes", objects=2)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            kind: ltpa.fit(
                ltpa.TrainConfig(model=f"vgg-att3-concat-{kind}", run_dir=f"{folder}/{kind}", **SETTINGS), single
            )
            for kind in ("pc", "dp")
        }
        networks = {kind: run.model for kind, run in runs.items()}
        networks["asked"] = query.learn_to_ask(runs["dp"], scenes.train, single.train, STEPS)
    for name, model in networks.items():
        store(name, model, single, scenes)


def store(name: str, model: ImageClassifier, single: Dataset, scenes: Dataset) -> None:
    """Round the kernels of a network to float16, measure it, and write its folder."""
    model.classes = single.classes
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    queries = query.draw_queries(scenes.test[:SCENES], single.test)
    follows = {level: measures["follows"].mean().item() for level, measures in query.steer(model, queries).items()}
    model.facts = {
        **model.facts,
        "follows": {level: round(share, 3) for level, share in follows.items()},
        "answers": query.answers(model, queries),
        "single": ltpa.evaluate(model, single.test),
    }
    print(name, model.facts)
    folder = model.save_pretrained(HERE / "networks" / name)
    (folder / "README.md").unlink()


if __name__ == "__main__":
    main()
