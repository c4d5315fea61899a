"""The picture, the parameters and the figures of notebook 00."""

import numpy as np
import pytest
import torch

from ltpa.course import scratch
from ltpa.data.shapes import CLASSES, draw_shapes


@pytest.mark.parametrize("seed", [0, 3])
def test_the_picture_is_that_whose_objects_and_ground_differ_most_in_hue(seed):
    images, labels, masks = (part.numpy() for part in draw_shapes(256, 64, seed, objects=2))
    distances = []
    for image, two in zip(images.astype(float), masks, strict=True):
        hues = []
        for mask in (*two, ~two.any(0)):
            red, green, blue = (channel[mask].mean() / 255 for channel in image)
            gray = (red + green + blue) / 3
            hues.append(np.array([red - gray, green - gray, blue - gray]))
        distances.append(min(np.linalg.norm(hues[a] - hues[b]) for a, b in ((0, 1), (0, 2), (1, 2))))
    chosen = int(np.argmax(distances))
    picture, found, names = scratch.two_objects(seed)
    assert np.array_equal((picture * 255).round().numpy(), images[chosen])
    assert np.array_equal(found.numpy(), masks[chosen])
    assert names == tuple(CLASSES[label] for label in labels[chosen])


def test_values_are_drawn_on_one_scale_that_the_bar_shows():
    low, high = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[4.0, 5.0], [6.0, 7.0]])
    figure = scratch.values_figure({"low": low, "high": high}, "score", picture=torch.rand(3, 8, 8))
    first, *panels, bar = figure.axes
    assert first.get_title() == "the picture"
    assert [panel.get_title() for panel in panels] == ["low", "high"]
    assert [panel.images[0].get_clim() for panel in panels] == [(0, 7), (0, 7)]
    assert np.array_equal(panels[1].images[0].get_array(), high.numpy())
    assert bar.get_ylabel() == "score"
    assert bar.get_ylim() == (0, 7)
    shares = scratch.values_figure({"weights": low / 6}, "weight", top=1.0)
    assert shares.axes[0].images[0].get_clim() == (0, 1)


def test_eight_panels_are_two_rows_of_four_and_empty_places_stay_empty():
    figure = scratch.values_figure({str(i): torch.rand(4, 4) for i in range(7)}, "value", picture=torch.rand(3, 8, 8))
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 4)
    five = scratch.values_figure({str(i): torch.rand(4, 4) for i in range(5)}, "value")
    assert [panel.axison for panel in five.axes[:8]] == [True] * 5 + [False] * 3


def test_vectors_share_their_axis_and_their_places_are_framed():
    vectors = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([-1.0, 0.5, 0.0])}
    places = {"a": (0, 0), "b": (3, 1)}  # row, column
    figure = scratch.vectors_figure(vectors, ["x", "y", "z"], picture=torch.rand(3, 16, 16), places=places, positions=4)
    picture, a, b = figure.axes
    assert [bar.get_width() for bar in b.patches] == [-1.0, 0.5, 0.0]
    assert a.get_xlim() == b.get_xlim()
    assert a.get_xlim()[0] < -1 < 3 < a.get_xlim()[1]
    assert [label.get_text() for label in a.get_yticklabels()] == ["x", "y", "z"]
    assert a.get_ylim()[0] > a.get_ylim()[1], "the first channel is on top"
    frames = {patch.get_edgecolor(): patch.get_xy() for patch in picture.patches}
    assert frames[a.patches[0].get_facecolor()] == (-0.5, -0.5)
    assert frames[b.patches[0].get_facecolor()] == (3.5, 11.5)  # x from the column, y from the row
    assert len(picture.lines) == 2 * 3


@pytest.mark.parametrize("shape", [(16, 16), (256,), (1, 16, 16), (1, 1, 256)])
def test_an_accepted_map_has_any_kind_and_shape(shape):
    values = torch.arange(256.0)
    for kind in (values.view(shape), values.view(shape).numpy(), values.view(shape).tolist()):
        assert torch.equal(scratch.grid(kind), values.view(16, 16))
    assert not scratch.grid(values.requires_grad_()).requires_grad
