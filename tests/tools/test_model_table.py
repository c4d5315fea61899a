"""What models cost: operations and parameters against counts by hand, the table and its place in docs/models.md."""

import re
from pathlib import Path

import pytest
import torch

from ltpa import create_model
from ltpa.models.cost import gmac, parameters
from ltpa.models.networks import PAPER_NAMES
from tests.tools.__main__ import main
from tests.tools.model_table import BEGIN, END, model_table, step_times, table_rows

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# in, out, side of the map: the convolutions of the late-pooling trunk, and of its global branch
TRUNK = [(3, 64, 32), (64, 64, 32), (64, 128, 32), (128, 128, 32), (128, 256, 32), (256, 256, 32), (256, 256, 32)]
TRUNK += [(256, 512, 16), (512, 512, 16), (512, 512, 16), (512, 512, 8), (512, 512, 8), (512, 512, 8)]
BRANCH = [(512, 512, 4), (512, 512, 2)]


def operations(layers):
    return sum(9 * a * b * side * side for a, b, side in layers)


def weights(layers):
    return sum(9 * a * b + b + 2 * b for a, b, _ in layers)  # kernel, bias, batch norm


def test_cost_of_the_flagship_by_hand():
    """With softmax, conv14, conv15 and fc are left out; level 1 is mapped after the sum, not on the map."""
    model = create_model("vgg-att3-concat-pc", 10)
    descriptors = 32 * 32 * 256 + 16 * 16 * 512 + 8 * 8 * 512 + 2 * 256 * 512
    assert gmac(model) == pytest.approx((operations(TRUNK) + descriptors + 3 * 512 * 10) / 1e9, rel=1e-9)
    assert parameters(model) == weights(TRUNK) + 256 * 512 + 3 * 512 + 3 * 2 * 512 + 3 * 512 * 10 + 10


def test_cost_of_the_control_by_hand():
    model = create_model("vgg-late", 10)
    rest = 512 * 512 + 512 * 10
    assert gmac(model) == pytest.approx((operations(TRUNK + BRANCH) + rest) / 1e9, rel=1e-9)
    assert parameters(model) == weights(TRUNK + BRANCH) + rest + 512 + 10


def test_figures_that_are_known():
    """PAPER: 3.74 GMAC to conv13, 3.79 with the global branch; 0.31 for plain VGG-16."""
    assert gmac(create_model("vgg-gap", 10)) == pytest.approx(3.74, abs=0.005)
    assert gmac(create_model("vgg-att3-concat-pc", 10, faithful=True)) == pytest.approx(3.79, abs=0.005)
    assert gmac(create_model("vgg", 10)) == pytest.approx(0.31, abs=0.005)


def test_operations_grow_with_the_picture_and_the_model_stays_as_it_was():
    model = create_model("vgg-gap", 10, width=1 / 16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert gmac(model, 64) == pytest.approx(4 * gmac(model, 32), rel=0.01)
    assert model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_rows_are_all_models_and_the_sigmoid_ones_that_have_other_parts():
    rows = table_rows()
    assert [name for name, normalizer in rows if normalizer == "softmax"] == [*PAPER_NAMES]
    for name in PAPER_NAMES:
        softmax, sigmoid = (parameters(create_model(name, 9, width=0.02, normalizer=n)) for n in ("softmax", "sigmoid"))
        assert ((name, "sigmoid") in rows) == (softmax != sigmoid), name


def test_step_times_are_relative_to_the_control():
    found = step_times([("vgg-late", "softmax"), ("vgg", "softmax")], width=0.125, batch_size=16, repeats=3)
    assert list(found) == [("vgg-late", "softmax"), ("vgg", "softmax")]
    assert 0.3 < found["vgg-late", "softmax"] < 3
    assert found["vgg", "softmax"] < found["vgg-late", "softmax"]


def test_the_table_of_the_page_is_what_the_command_gives():
    """Its times are measured; the rest is computed again for some of the models."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    head, rule, *rows = model_table("*-concat-pc").splitlines()
    assert table[0] == head + " step, vgg-late = 1 |"
    assert table[1] == rule + " --- |"
    without_times = [re.sub(r" [\d.]+ \|$", "", row) for row in table[2:]]
    assert set(rows) <= set(without_times)
    names = [f"`{name}`" + (", sigmoid" if normalizer == "sigmoid" else "") for name, normalizer in table_rows()]
    assert [row.split(" | ")[0].removeprefix("| ") for row in without_times] == names


def test_the_command_writes_between_the_marks(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main(["models", "vgg-att-*-dp", "--no-times", "--write", str(page)]) == 0
    assert page.read_text("utf-8") == f"before\n{BEGIN}\n\n{model_table('vgg-att-*-dp')}\n\n{END}\nafter\n"
    assert main(["models", "vgg", "--no-times"]) == 0
    assert capsys.readouterr().out.strip() == model_table("vgg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no model is called 'nothing'"),
        (["vgg", "--repeats", "0"], "--repeats at least 1"),
        (["vgg", "--batch-size", "1"], "--batch-size must be at least 2"),
        (["vgg", "--write", "nowhere.md"], "nowhere.md"),
        (["vgg", "--write", str(Path(__file__))], "lacks the marks"),
    ],
)
def test_what_the_command_cannot_do_is_said_in_a_line(arguments, message, capsys):
    assert main(["models", "--no-times", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
