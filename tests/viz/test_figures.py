import io
import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from ltpa import viz
from ltpa.viz.overlay import color_bar, overlay, places_by_share
from ltpa.viz.style import COLORS, STRENGTH
from ltpa.viz.words import model_in_words

LEVELS = {"conv7": 32, "conv10": 16, "conv13": 8}


def some_images(count=2, height=32, width=32):
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def some_maps(count=2):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.softmax(torch.randn(count, side * side, generator=generator), 1).view(count, side, side)
        for name, side in LEVELS.items()
    }


def bar_of(figure):
    return figure.axes[-1]


def panels(figure, columns=3):
    """Axes of image and maps, a list per row; the color bar comes after them."""
    across = columns + 1
    return [figure.axes[i : i + across] for i in range(0, len(figure.axes) - 1, across)]


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def places_of(axes, size):
    """The places on the color scale that a map (h, w) over a picture is drawn at, from its colors."""
    pixels = np.asarray(axes.images[0].get_array()).astype(float)
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(size, pixels.shape, strict=False))
    pixels = pixels[rows.astype(int)][:, columns.astype(int)]
    table = plt.get_cmap(COLORS[0])(np.arange(256))[:, :3] * 255
    chroma = (pixels - pixels.mean(2, keepdims=True)) / STRENGTH
    table = table - table.mean(1, keepdims=True)
    return np.abs(chroma[:, :, None] - table).sum(3).argmin(2) / 255


def decoded(figure, dpi=100):
    with Image.open(io.BytesIO(viz.to_png(figure, dpi))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def box_of(axes, pixels):
    """Left, top, width and height of axes in pixels of the rendered figure."""
    place = axes.get_position()
    height, width = pixels.shape[:2]
    return place.x0 * width, (1 - place.y1) * height, place.width * width, place.height * height


@pytest.mark.parametrize("count", [1, 3])
def test_a_row_per_image_and_a_column_per_level(count):
    titles = [f"cat {i} % | truth: dog" for i in range(count)]
    figure = viz.attention_figure(some_images(count), some_maps(count), titles=titles)
    assert isinstance(figure, Figure)
    rows = panels(figure)
    assert len(rows) == count
    assert [axes.get_title() for axes in rows[0][1:]] == ["conv7 32x32", "conv10 16x16", "conv13 8x8"]
    assert [row[0].get_title() for row in rows] == [f"cat {i} %\ntruth: dog" for i in range(count)]
    for row in rows:
        assert [len(axes.images) for axes in row] == [1, 1, 1, 1]
    height, width, _ = decoded(figure).shape
    assert (width, height) == pytest.approx(figure.get_size_inches() * 100, abs=1)
    assert 0.9 < width / 1000 < 1.1


def test_text_is_large_enough_for_a_lecture():
    figure = viz.attention_figure(some_images(), some_maps(), titles=["cat", "dog"])
    viz.to_png(figure)
    for axes in figure.axes:
        labels = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
        assert all(label.get_fontsize() >= 13 for label in labels if label.get_text())


def test_long_titles_do_not_run_into_the_next_column():
    titles = ["automobile 100 % | truth: automobile, seen from behind", "$5 and $6"]
    figure = viz.attention_figure(some_images(), some_maps(), titles=titles)
    viz.to_png(figure)
    for row in panels(figure):
        assert row[0].title.get_window_extent().x1 < row[1].get_window_extent().x0
    assert panels(figure)[1][0].get_title() == "$5 and $6"


def test_one_logarithmic_scale_for_all_maps_and_its_bar():
    maps = some_maps()
    figure = viz.attention_figure(some_images(), maps)
    bar = bar_of(figure)
    assert bar.get_ylabel() == "times the even share"
    highest = max(float((m / m.mean((1, 2), keepdim=True)).max()) for m in maps.values())
    assert bar.get_ylim() == (-2, math.ceil(math.log2(highest)))
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert labels == ["≤ 1/4", "1/2", "1", "2", "4", "8", "16", "32"][: len(labels)]
    assert list(bar.get_yticks()) == [*range(-2, len(labels) - 2)]
    for number, row in enumerate(panels(figure)):
        for axes, level in zip(row[1:], maps.values(), strict=True):
            expected = np.log2(4 * (level[number] / level[number].mean()).clamp(0.25).numpy()) / (bar.get_ylim()[1] + 2)
            assert np.abs(places_of(axes, level[number].shape) - expected).max() < 0.05


def test_weights_are_drawn_relative_to_the_even_share():
    level = torch.tensor([[0.4, 0.1, 0.05], [0.3, 0.15, 0.0]])[None]
    for factor in (1, 0.001):  # gates need not sum to 1
        figure = viz.attention_figure(some_images(1), {"conv13": level * factor}, scale=4)
        expected = np.log2(4 * np.array([[2.4, 0.6, 0.3], [1.8, 0.9, 0.25]])) / 4
        np.testing.assert_allclose(places_of(panels(figure, 1)[0][1], (2, 3)), expected, atol=0.02)


def test_every_image_gets_its_own_map():
    images, maps = some_images(3), some_maps(3)
    figure = viz.attention_figure(images, maps)
    for i, row in enumerate(panels(figure)):
        np.testing.assert_array_equal(row[0].images[0].get_array(), images[i].permute(1, 2, 0).numpy())
        for axes, level in zip(row[1:], maps.values(), strict=True):
            assert places_of(axes, level[i].shape).argmax() == level[i].argmax()


def test_the_picture_stays_visible_under_every_map_and_colors_are_those_of_the_bar():
    picture = some_images(1)[0].permute(1, 2, 0).numpy()
    brightness = np.asarray(Image.fromarray(picture).convert("L")).astype(float)
    for share in (0.0, 0.3, 1.0):  # of the place on the scale; 0 is everything up to a quarter of the even share
        drawn = overlay(picture, np.full((4, 4), share))
        light = np.asarray(Image.fromarray(drawn).convert("L")).astype(float)
        assert np.corrcoef(light.flatten(), brightness.flatten())[0, 1] > 0.99
        assert np.ptp(light) > 0.35 * np.ptp(brightness)
    nothing = torch.zeros(8, 8)
    nothing[0, 0] = 1
    drawn = overlay(picture, places_by_share(nothing))[4:, 4:]
    light = np.asarray(Image.fromarray(drawn).convert("L")).astype(float)
    assert np.corrcoef(light.flatten(), brightness[4:, 4:].flatten())[0, 1] > 0.99
    for colors in COLORS:
        bar = color_bar(256, 256, colors).astype(int)
        gray = np.full((1, 1, 3), 80, np.uint8)
        for place in (0, 100, 255):
            assert (bar[255 - 80, place] == overlay(gray, np.array([[place / 255]]), colors)[0, 0]).all()


def test_scale_covers_4_to_32_and_can_be_set():
    uniform, collapsed = torch.ones(1, 32, 32), torch.zeros(1, 32, 32)
    collapsed[0, 3, 4] = 1
    barely_8 = torch.zeros(1, 4, 6)
    barely_8[0, 0, :3] = torch.tensor([1, 1, 1 + 1e-6])
    cases = [(uniform, None, 4), (barely_8, None, 8), (collapsed, None, 32), (collapsed, 1024, 1024), (uniform, 10, 10)]
    for level, scale, upper in cases:
        figure = viz.attention_figure(some_images(1), {"conv7": level}, scale=scale)
        assert bar_of(figure).get_ylim() == (-2, pytest.approx(math.log2(upper)))
        last = bar_of(figure).get_yticklabels()[-1].get_text()
        assert last.startswith("≥") == (level is collapsed and scale is None)
        viz.to_png(figure)


def test_entropy_under_every_map():
    collapsed = torch.zeros(16, 16)
    collapsed[2, 3] = 1
    quarter = torch.zeros(16, 16)
    quarter[:8, :8] = 1
    maps = torch.stack([torch.full((16, 16), 1 / 256), collapsed, quarter])
    figure = viz.attention_figure(some_images(3), {"conv10": maps})
    assert [row[1].get_xlabel() for row in panels(figure, 1)] == ["entropy 1.00", "entropy 0.00", "entropy 0.75"]


@pytest.mark.parametrize(
    ("height", "width", "h", "w", "row", "column"), [(32, 48, 4, 6, 1, 4), (64, 32, 64, 32, 50, 7)]
)
def test_a_hot_position_lies_over_its_pixels(height, width, h, w, row, column):
    level = torch.zeros(1, h, w)
    level[0, row, column] = 1
    flat = torch.full((1, 3, height, width), 0.5)
    figure = viz.attention_figure(flat, {"conv13": level})
    pixels = decoded(figure)
    left, top, wide, high = box_of(panels(figure, 1)[0][1], pixels)
    assert wide / high == pytest.approx(width / height, rel=0.02)
    yellow = (pixels[..., 0] > 180) & (pixels[..., 1] > 180) & (pixels[..., 2] < 100)
    yellow[:, round(left + wide) :] = False  # the color bar
    y, x = np.nonzero(yellow)
    assert (y.mean() + 0.5 - top) / high == pytest.approx((row + 0.5) / h, abs=0.01)
    assert (x.mean() + 0.5 - left) / wide == pytest.approx((column + 0.5) / w, abs=0.01)
    assert len(y) == pytest.approx(wide * high / (h * w), rel=0.5)


def test_image_is_shown_as_it_is_and_over_the_map():
    images = torch.zeros(1, 3, 32, 48, dtype=torch.uint8)
    images[0, 0, 5, 40] = 255
    for given in (images, images / 255):
        axes = panels(viz.attention_figure(given, {"conv13": torch.ones(1, 8, 12)}), 1)[0]
        shown = np.asarray(axes[0].images[0].get_array())
        assert shown.shape == (32, 48, 3)
        assert np.argwhere(shown).tolist() == [[5, 40, 0]]
        assert shown[5, 40, 0] == 255
        over = axes[1].images[0]
        assert over.get_extent() == [*axes[0].images[0].get_extent()]
        light = np.asarray(over.get_array()).astype(int).sum(2)
        y, x = np.unravel_index(light.argmax(), light.shape)
        assert (y * 32 // light.shape[0], x * 48 // light.shape[1]) == (5, 40)


def test_outline_runs_along_the_edges_of_the_mask():
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 0:2, 5:9] = True
    figure = viz.attention_figure(some_images(), some_maps(), masks=masks)
    for axes in panels(figure)[0]:
        points = np.concatenate(axes.collections[-1].get_segments())
        assert points.min(axis=0).tolist() == [4.5, -0.5]
        assert points.max(axis=0).tolist() == [8.5, 1.5]
        assert len(points) == 2 * (2 * 4 + 2 * 2)
    assert all(len(axes.collections[-1].get_segments()) == 0 for axes in panels(figure)[1])
    viz.to_png(figure)


def test_a_map_without_any_weight_says_so_and_leaves_the_others_alone():
    maps = some_maps(3)
    whole = viz.attention_figure(some_images(3), {"conv13": maps["conv13"]}, scale=16)
    maps["conv7"][2] = 0
    figure = viz.attention_figure(some_images(3), maps, scale=16)
    rows = panels(figure)
    axes = rows[2][1]
    assert texts_of(axes) == ["all zero"]
    assert axes.patches[0].get_hatch()
    assert not axes.images
    assert axes.get_xlabel() == "entropy –"
    assert sum(len(axes.images) for row in rows for axes in row[1:]) == 8
    for row, alone in zip(rows, panels(whole, 1), strict=True):
        np.testing.assert_allclose(places_of(row[3], (8, 8)), places_of(alone[1], (8, 8)), atol=0.01)
        assert row[3].get_xlabel() == alone[1].get_xlabel()
    empty = viz.attention_figure(some_images(), {"conv7": torch.zeros(2, 32, 32)})
    assert bar_of(empty).get_ylabel() == "times the even share"
    viz.to_png(figure)


@pytest.mark.parametrize("count", [1, 5])
def test_models_without_attention_get_images_and_titles(count):
    masks = torch.ones(count, 32, 32, dtype=torch.bool)
    figure = viz.attention_figure(some_images(count), {}, titles=[f"image {i}" for i in range(count)], masks=masks)
    used = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in used] == [f"image {i}" for i in range(count)]
    assert len([axes for axes in figure.axes if axes.axison]) == count
    viz.to_png(figure)


def test_maps_of_a_model_with_gradients_and_in_half_precision():
    maps = {"conv13": some_maps()["conv13"].half().requires_grad_()}
    figure = viz.attention_figure(some_images().float() / 255, maps)
    assert bar_of(figure).get_ylabel() == "times the even share"
    assert not plt.get_fignums(), "a figure of pyplot would be displayed twice"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": some_images()[0]}, r"\(N, 3, H, W\)"),
        ({"images": some_images()[:0]}, "N from 1 up"),
        ({"images": some_images().long()}, "uint8"),
        ({"images": some_images().float()}, r"be in \[0, 1\]"),
        ({"maps": {"conv7": torch.ones(3, 8, 8)}}, r"conv7.*N = 2.*\(3, 8, 8\)"),
        ({"maps": {"conv7": torch.ones(2, 1, 8, 8)}}, r"conv7.*\(N, h, w\).*\(2, 1, 8, 8\)"),
        ({"maps": {"conv7": -torch.ones(2, 8, 8)}}, "scores"),
        (
            {"maps": {"conv7": torch.full((2, 8, 8), math.nan)}},
            "maps of conv7 8x8 have NaN or infinite values in 2 of 2",
        ),
        ({"maps": {"conv7": [torch.ones(4, 4), torch.full((8, 8), math.inf)]}}, "in 1 of 2 maps, first in 1"),
        ({"titles": ["one"]}, "2 texts"),
        ({"masks": torch.ones(2, 16, 16, dtype=torch.bool)}, r"\(2, 32, 32\).*\(2, 16, 16\)"),
        ({"masks": torch.ones(2, 32, 32)}, "bool"),
        ({"scale": 1}, "above 1"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"images": some_images(), "maps": some_maps(), **change}
    with pytest.raises(ValueError, match=message):
        viz.attention_figure(**arguments)


@pytest.mark.parametrize(("epochs", "shown"), [([10, 0, 5], [0, 5, 10]), (range(0, 101), [0, 25, 50, 75, 100])])
def test_snapshots_show_the_first_the_last_and_some_between(epochs, shown):
    snapshots = {epoch: {"conv10": torch.full((1, 16, 16), 1.0 + epoch), "conv7": None} for epoch in epochs}
    figure = viz.snapshot_figure(some_images(1), snapshots, "conv10")
    (row,) = panels(figure, len(shown))
    assert [axes.get_title() for axes in row] == ["", *(f"epoch {epoch}" for epoch in shown)]
    assert {axes.get_xlabel() for axes in row[1:]} == {"entropy 1.00"}
    assert figure.get_suptitle() == "conv10 16x16"
    assert bar_of(figure).get_ylabel() == "times the even share"
    viz.to_png(figure)


def test_snapshots_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="no snapshots"):
        viz.snapshot_figure(some_images(), {}, "conv10")
    with pytest.raises(ValueError, match=r"unknown level 'conv11' at epoch 2.*conv10"):
        viz.snapshot_figure(some_images(), {2: some_maps()}, "conv11")
    with pytest.raises(ValueError, match=r"epoch 2.*N = 3"):
        viz.snapshot_figure(some_images(3), {2: some_maps()}, "conv10")


def some_history(count):
    return [
        {"epoch": i, "train_loss": 2 / i, "train_accuracy": 1 - 0.5 / i, "test_accuracy": 0.9 - 0.5 / i, "seconds": 3.0}
        for i in range(1, count + 1)
    ]


def test_learning_curve_draws_loss_and_percent():
    figure = viz.learning_curve(some_history(4), epochs=10)
    loss, accuracy = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2], [2, 1], [3, pytest.approx(2 / 3)], [4, 0.5]]
    assert accuracy.lines[1].get_ydata() == pytest.approx([40, 65, 73.33333, 77.5])
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["training 87.5 %", "test 77.5 %"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training 0.500"]
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy (%)")
    for axes in (loss, accuracy):
        assert axes.get_xlabel() == "epoch"
        assert axes.get_xlim() == (0.5, 10.5)


@pytest.mark.parametrize(("count", "epochs"), [(0, None), (0, 5), (1, 1), (200, 300)])
def test_learning_curve_of_any_length(count, epochs):
    figure = viz.learning_curve(some_history(count), epochs)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < 1 <= (epochs or max(count, 1)) < high
        assert axes.get_xlabel() == "epoch"
        assert (axes.get_legend() is None) == (count == 0)
    viz.to_png(figure)


def test_learning_curve_leaves_out_what_is_missing_or_not_finite():
    history = [
        {"epoch": 1, "train_loss": 2.0, "test_accuracy": 0.5},
        {"epoch": 2, "train_loss": math.nan, "test_accuracy": math.nan},
        {"epoch": 3, "train_loss": math.inf, "test_accuracy": 0.7},
        {"epoch": 4},
    ]
    loss, accuracy = viz.learning_curve(history).axes
    assert loss.lines[0].get_xdata().tolist() == [1]
    assert loss.get_legend().get_texts()[0].get_text() == "training 2.000 (epoch 1)"
    (test,) = accuracy.lines
    assert test.get_xdata().tolist() == [1, 3]
    assert test.get_label() == "test 70.0 % (epoch 3)"


def test_png_has_the_size_of_the_figure():
    figure = Figure(figsize=(3, 2))
    assert decoded(figure).shape == (200, 300, 3)
    assert decoded(figure, dpi=50).shape == (100, 150, 3)


def test_outside_ipython_nothing_happens(capfd):
    live = viz.LivePlot(lambda _: pytest.fail("nobody would see it"), "a curve")
    assert live.update([]) is None
    assert viz.display(viz.learning_curve([]), "a curve") is None
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.fixture
def shell(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    yield InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    InteractiveShell.clear_instance()


def test_show_hands_over_picture_and_alternative_text(shell):
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        assert viz.display(Figure(figsize=(1, 1)), "two deer") is None
    assert (captured.stdout, captured.stderr) == ("", "")
    (output,) = captured.outputs
    assert "image/png" in output.data
    assert output.metadata["image/png"] == {"alt": "two deer"}


def test_live_plot_is_displayed_once_and_then_updated_in_place(shell):
    from IPython.utils.capture import capture_output

    drawn = []
    live = viz.LivePlot(lambda value: drawn.append(value) or viz.learning_curve(value, 3), "the curve")
    with capture_output() as captured:
        for count in range(3):
            assert live.update(some_history(count)) is None
    assert [len(history) for history in drawn] == [0, 1, 2]
    assert [bool(output.update) for output in captured.outputs] == [False, True, True]
    assert len({output.transient["display_id"] for output in captured.outputs}) == 1
    assert len({bytes(output.data["image/png"], "ascii") for output in captured.outputs}) == 3
    assert all(output.metadata["image/png"] == {"alt": "the curve"} for output in captured.outputs)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vgg-att3-concat-pc", "attention pc, 3 levels"),
        ("vgg-att3-concat-uniform sgd", "equal weights, 3 levels, sgd"),
        ("vgg-att-indep-dp sigmoid", "attention dp, separate, sigmoid"),
        ("rn164-att2-concat-add: g_s", "ResNet-164, attention add, 2 levels, descriptors"),
        ("vgg-late", "no attention"),
        ("vgg: g", "plain VGG, global feature"),
        ("vgg-att1-concat-pc, with queries", "attention pc, 1 level, with queries"),
        ("conv10", "conv10"),
        ("blurred noise", "blurred noise"),
    ],
)
def test_models_are_named_in_words(name, words):
    assert model_in_words(name) == words
