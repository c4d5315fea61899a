"""Training on a frozen and on a fine-tuned backbone: a small one of timm, whose weights are drawn, not downloaded."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from ltpa import Dataset, Split, TrainConfig, create_model, fit, load_run
from ltpa.data.augment import augmented_batch
from ltpa.inference import evaluate_images
from ltpa.models import timm_backbones
from ltpa.training.choices import chosen
from ltpa.training.features import FeatureLoader, FrozenNetwork
from ltpa.training.optim import SLOW, make_optimizer

pytest.importorskip("timm")
MODEL = "test_efficientnet-att2-concat-add"


def colored(count, seed, size=64):
    """Squares of two colors with noise: easy to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 3, size, size), generator=generator)
    images[torch.arange(count), labels] += 100
    return Split(images.to(torch.uint8), labels)


@pytest.fixture(autouse=True)
def weights(monkeypatch):
    """Weights drawn from a fixed seed stand for pretrained ones."""
    load = timm_backbones._load

    def drawn(name, indices, pretrained):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return load(name, indices, False)

    monkeypatch.setattr(timm_backbones, "_load", drawn)


@pytest.fixture
def data():
    return Dataset("folder", ("red", "green"), colored(22, 0), colored(12, 1), (0.5,) * 3, (0.2,) * 3)


def settings(path, **more):
    values = {"model": MODEL, "pretrained": True, "dataset": "folder", "epochs": 3, "batch_size": 8}
    return TrainConfig(**{**values, "precision": "fp32", "device": "cpu", "run_dir": str(path), **more})


class Stop(Exception):
    """Raised by a callback."""


@pytest.mark.parametrize("options", [{"freeze": True}, {"freeze": True, "memory_gb": 1e-3}, {"freeze": False}])
def test_resume_is_exact(options, data, tmp_path):
    whole = fit(settings(tmp_path / "whole", **options), data, progress=False)

    def stop(run):
        if len(run.history) == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(settings(tmp_path / "cut", **options), data, callbacks=[stop], progress=False)
    again = fit(settings(tmp_path / "cut", **options), data, progress=False)
    for other in (again, load_run(tmp_path / "whole", "cpu")):
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    assert [row["train_loss"] for row in again.history] == [row["train_loss"] for row in whole.history]
    trained = create_model(MODEL, 2, pretrained=True).trunk.state_dict()
    same = [torch.equal(value, trained[name]) for name, value in whole.model.trunk.state_dict().items()]
    assert all(same) == options["freeze"]
    scores = evaluate_images(whole.model, data.test, "fp32").scores
    assert whole.history[-1]["test_loss"] == pytest.approx(scores["loss"], rel=1e-5)


def test_cached_features_are_those_of_the_backbone(data):
    model = create_model(MODEL, 2)
    model.trunk.freeze()
    network = FrozenNetwork(model, 64)
    options = {"network": network, "dtype": torch.float32, "views": 3}
    row = 4 * network.length
    cached, partly, never = (
        FeatureLoader(data.train, torch.device("cpu"), "crop+flip", 3, room=room, **options)
        for room in (10**9, 30 * row, 0)
    )
    assert (cached.kept, partly.kept, never.kept) == (66, 30, 0)
    index = torch.tensor([3, 17, 5])
    model.eval()
    for epoch in (0, 1, 2, 4, 1):
        mode = "none" if epoch % 3 == 0 else "crop+flip"
        images = augmented_batch(data.train.images, index, mode, 3, epoch % 3).float() / 255
        features = cached.of(index, epoch)
        for other in (partly, never, cached):
            assert torch.equal(features, other.of(index, epoch))
        with torch.no_grad():
            torch.testing.assert_close(network(features), model(images))


def test_the_cache_computes_each_view_once(data, monkeypatch):
    model = create_model(MODEL, 2)
    model.trunk.freeze()
    network = FrozenNetwork(model, 64)
    loader = FeatureLoader(data.train, torch.device("cpu"), "none", 0, network=network, dtype=torch.float32, room=10**9)
    parts = [torch.arange(11), torch.arange(11, 22)]
    first = [features for features, _ in loader.batches(0, parts)]
    monkeypatch.setattr(network, "packed", None)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, loader.batches(7, parts), strict=True))


def test_a_pretrained_backbone_learns_slowly():
    model = create_model(MODEL, 2)
    groups = make_optimizer(
        model, optimizer="adamw", learning_rate=1.0, weight_decay=0.1, slow=model.trunk.parameters()
    ).param_groups
    backbone = {id(p) for p in model.trunk.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (SLOW if id(parameter) in backbone else 1)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_choices(data):
    assert TrainConfig(model="resnet50-att3-concat-add").side == 224
    assert TrainConfig().side == 32
    config = TrainConfig(model=MODEL, pretrained=True, freeze=True, dataset="folder")
    values = dataclasses.asdict(chosen(config, data))
    assert values["image_size"] == 64, "the size of the data that are given"
    assert (values["optimizer"], values["progressive_resizing"]) == ("adamw", False)
    assert None not in [values[name] for name in ("epochs", "batch_size", "learning_rate")]
    assert chosen(chosen(config, data), data) == chosen(config, data)
    assert chosen(config, data).path == config.path
    paper = chosen(TrainConfig())
    assert (paper.image_size, paper.epochs, paper.batch_size, paper.optimizer) == (32, 10, 512, "muon")
    assert chosen(dataclasses.replace(config, epochs=2, batch_size=4), data).epochs == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "vgg", "pretrained": True}, "model='vgg' has none"),
        ({"model": "vgg", "freeze": True}, "such as tf_efficientnet_lite0-att3-concat-add"),
        ({"model": MODEL, "freeze": True}, "random without pretrained=True"),
    ],
)
def test_contradictions(options, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**options)


def test_crops_are_those_of_the_sample(data):
    """The same in every batch, other ones in every epoch, within the picture's colors, and no other draw changes."""
    index = torch.tensor([4, 9, 2])
    state = torch.get_rng_state()
    batch = augmented_batch(data.train.images, index, "crop+flip", 1, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert batch.shape == (3, 3, 64, 64)
    assert batch.dtype == torch.uint8
    alone = augmented_batch(data.train.images[2:3], index[2:], "crop+flip", 1, 2, torch.tensor([0]))
    assert torch.equal(batch[2:], alone)
    assert not torch.equal(batch, augmented_batch(data.train.images, index, "crop+flip", 1, 3))


def test_a_folder_and_nothing_else_set(tmp_path, capsys):
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("red", "green")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number, image in enumerate(colored(2 * count, label).images[label::2]):
                Image.fromarray(image.permute(1, 2, 0).numpy().astype(np.uint8)).save(folder / f"{number}.png")
    options = {"data_dir": str(tmp_path / "photos"), "epochs": None, "batch_size": None, "minutes": 0.01}
    run = fit(settings(tmp_path / "run", freeze=True, **options))
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "chosen: image_size=160" in text
    assert run.config.image_size == 160
    assert load_run(run.path).config.identity() == run.config.identity()
