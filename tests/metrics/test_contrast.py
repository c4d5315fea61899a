"""Two objects in a scene: maps that tell them apart, and maps that cannot."""

import pytest
import torch
from torch import nn

from ltpa import Split, attend, explain
from ltpa.data.shapes import draw_shapes
from ltpa.metrics import class_contrast
from tests.metrics.helpers import some_maps

COUNT = 40


class FirstObject(nn.Module):
    """A model that names the first object of every second scene, and of the others a class that is not there."""

    def __init__(self, labels):
        super().__init__()
        names = labels[:, 0].where(torch.arange(len(labels)) % 2 == 0, 10)
        self.register_buffer("logits", torch.nn.functional.one_hot(names, 11).float())

    def forward(self, images):
        return self.logits[: len(images)]


@pytest.fixture(scope="module")
def scenes():
    return Split(*draw_shapes(COUNT, seed=1, objects=2))


def test_maps_of_known_worth(scenes):
    rows = torch.arange(COUNT)

    def maps_of(images, classes):
        number = (scenes.labels == classes[:, None]).int().argmax(1)  # the object of the class
        return {
            "truth": scenes.masks[rows, number].float(),
            "swapped": scenes.masks[rows, 1 - number].float(),
            "both": scenes.masks.any(1).float(),
            "first": scenes.masks[:, 0].float(),
            "nothing": torch.zeros(COUNT, 4, 4),
            "noise": some_maps(COUNT, 8),
        }

    values = class_contrast(FirstObject(scenes.labels), scenes, maps_of)
    assert list(values) == ["truth", "swapped", "both", "first", "nothing", "noise"]
    named = rows % 2 == 0
    for name, share in (("truth", 1), ("swapped", 0), ("first", 0.5)):
        torch.testing.assert_close(values[name]["own"], torch.full((COUNT,), float(share)))
        torch.testing.assert_close(values[name]["right"], torch.full((COUNT,), float(share)))
    for name, share in (("truth", 1), ("swapped", 0), ("first", 1)):
        torch.testing.assert_close(values[name]["answer"][named], torch.full((COUNT // 2,), float(share)))
    # One map for both classes is right for one of them, whatever it looks like.
    for name in ("both", "noise"):
        torch.testing.assert_close(values[name]["own"], torch.full((COUNT,), 0.5))
        torch.testing.assert_close(values[name]["right"], torch.full((COUNT,), 0.5))
    areas = scenes.masks.flatten(2).sum(2)
    torch.testing.assert_close(values["both"]["answer"][named], (areas[:, 0] / areas.sum(1))[named])
    assert values["nothing"]["own"].isnan().all()
    assert (values["nothing"]["right"] == 0.5).all()
    assert all(v["answer"][~named].isnan().all() for v in values.values())


class ColorAt(nn.Module):
    """A model whose class k answers to the mean color of the part of the picture where the k-th object lies."""

    def __init__(self, masks):
        super().__init__()
        self.register_buffer("masks", masks.float())

    def forward(self, images):
        return torch.einsum("nchw,nkhw->nk", images, self.masks[: len(images)]) / 100


def test_gradients_tell_apart_what_the_model_tells_apart(scenes):
    pytest.importorskip("captum")
    few = Split(scenes.images[:6], torch.tensor([[0, 1]]).expand(6, 2), scenes.masks[:6])
    model = ColorAt(few.masks)
    values = class_contrast(model, few, lambda x, c: {"saliency": explain(model, x, "saliency", c)})["saliency"]
    torch.testing.assert_close(values["own"], torch.ones(6))
    torch.testing.assert_close(values["answer"], torch.ones(6))
    assert attend(model, few.images).logits.shape == (6, 2)


def test_scenes_of_one_object_are_refused():
    with pytest.raises(ValueError, match="scenes of two objects"):
        class_contrast(FirstObject(torch.zeros(3, 2).long()), Split(*draw_shapes(3)), lambda x, c: {})
