"""Train the page's small networks: `python docs/demo/make_networks.py [pc] [dp] [asked]`, about two minutes each.

All are networks of notebook 05, trained on pictures of one drawn object: `pc`, whose map no query can move; `dp`, whose
map a query moves, but hardly to the object that it shows; `asked`, the same `dp` trained further on scenes of two
objects with a query. Each becomes a folder of docs/demo/networks, with its kernels in float16; what the page says about
it is measured with the stored weights. Runs are kept in build/demo_runs, and one that is complete is used again.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import ltpa
from ltpa.course import query
from ltpa.models.classifier import ImageClassifier

HERE = Path(__file__).resolve().parent
RUNS = HERE.parents[1] / "build" / "demo_runs"
NAMES = ("pc", "dp", "asked")
STEPS = 300  # of the training with queries, by Muon: with SGD it does not learn on these pictures
SCENES = 500  # to measure on


def main() -> None:
    """Train, measure and store the networks that the command line names."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or NAMES:
        store(name, train(name))


def train(name: str) -> ImageClassifier:
    """Train a network, or take it from its run."""
    single = ltpa.load_data("shapes")
    kind = "dp" if name == "asked" else name
    config = ltpa.TrainConfig(
        model=f"vgg-att3-concat-{kind}",
        width=0.125,
        dataset="shapes",
        epochs=5,
        batch_size=64,
        device="cpu",
        run_dir=str(RUNS / kind),
    )
    run = ltpa.fit(config, single)
    if name != "asked":
        return run.model
    scenes = ltpa.load_data("shapes", objects=2).train
    return query.learn_to_ask(run, scenes, single.train, STEPS)


def store(name: str, model: ImageClassifier) -> None:
    """Round the kernels of a network to float16, measure it, and write its folder."""
    single, pairs = (ltpa.load_data("shapes", train_limit=20, objects=objects) for objects in (1, 2))
    model.classes = single.classes
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    queries = query.draw_queries(pairs.test[:SCENES], single.test)
    follows = {level: measures["follows"].mean().item() for level, measures in query.steer(model, queries).items()}
    model.facts = {
        "scenes": SCENES,
        "follows": {level: round(share, 3) for level, share in follows.items()},
        "answers": query.answers(model, queries),
        "accuracy": ltpa.evaluate(model, single.test)["accuracy"],
    }
    print(name, model.facts)
    folder = model.save_pretrained(HERE / "networks" / name)
    (folder / "README.md").unlink()
    path = folder / "model.safetensors"
    save_file({key: value.half() if value.ndim > 1 else value for key, value in load_file(path).items()}, path)


if __name__ == "__main__":
    main()
