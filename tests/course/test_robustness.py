"""Attacks against an explicit gradient, signs of masking in networks that mask, effects against plain numbers."""

import contextlib
import copy
from collections import OrderedDict
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import ltpa
from ltpa.course import robustness
from ltpa.course.grid import Grid, Result
from ltpa.course.robustness import AttackConfig, Attacked
from ltpa.metrics.crossed import crossed_difference
from ltpa.metrics.statistics import CONTRADICTED, SUPPORTED, UNDECIDED
from ltpa.models.networks import AttentionOutput, ImageClassifier
from ltpa.viz import to_png
from tests.tools.tiny_grid import GRID

TINY = {**GRID, "images": 10, "epsilons": [1, 128], "epsilon": 1, "pgd_steps": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny grid, its data, and what it withstands."""
    with contextlib.chdir(tmp_path_factory.mktemp("attack")):
        config = AttackConfig(**TINY)
        robustness.train_missing(config)
        data = ltpa.data_for(config.grid()[0].config)
        grid = robustness.collect(config, data)
        return grid, config.sample(data), robustness.attack_grid(grid, config.sample(data))


def network(name="vgg-att3-concat-dp", seed=0):
    torch.manual_seed(seed)
    return ltpa.create_model(name, 10, width=1 / 32).eval()


def pictures(count=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8), torch.arange(count) % 10


def gradient(model, images, labels):
    """Of the summed cross-entropy with respect to the images, by plain autograd."""
    x = images.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(x), labels, reduction="sum")
    (found,) = torch.autograd.grad(loss, x)
    return found


# The attacks


@pytest.mark.parametrize("name", ["vgg-late", "vgg-att3-concat-dp"])
def test_fgsm_is_one_step_along_the_sign_of_the_gradient(name):
    model, (images, labels) = network(name), pictures()
    clean = images.float() / 255
    slope = gradient(model, clean, labels)
    expected = (clean + 3 / 255 * slope.sign()).clamp(0, 1)
    found = robustness.perturb(model, images, labels, 3)
    clear = slope.abs() > 1e-4 * slope.abs().max()  # where no rounding can turn the sign
    assert clear.double().mean() > 0.9
    assert torch.allclose(found[clear], expected[clear], atol=1e-7)
    assert ((found - clean).abs() <= 3 / 255 + 1e-7).all()
    assert (found.dtype, found.min() >= 0, found.max() <= 1) == (torch.float32, True, True)
    assert torch.equal(robustness.perturb(model, clean, labels, 3), found), "float images are the same images"


def test_pgd_is_many_such_steps_from_a_random_start():
    model, (images, labels) = network(), pictures()
    clean = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    radius, steps = 8 / 255, 4
    torch.manual_seed(5)
    x = (clean + torch.rand_like(clean) * 2 * radius - radius).clamp(0, 1)
    for _ in range(steps):
        x = x + 2.5 * radius / steps * gradient(model, x, labels).sign()
        x = torch.maximum(torch.minimum(x, clean + radius), clean - radius).clamp(0, 1)
    found = robustness.perturb(model, images, labels, 8, "PGD", steps=steps, seed=5)
    # A value near a step's sign change may end elsewhere.
    assert ((found - x).abs() < 1e-6).double().mean() > 0.99


@pytest.mark.parametrize("epsilon", [0.5, 255])
def test_pgd_stays_near_the_image_and_is_an_image(epsilon):
    model, (images, labels) = network(), pictures()
    found = robustness.perturb(model, images, labels, epsilon, "PGD", steps=3)
    assert (found - images.float() / 255).abs().max() <= epsilon / 255 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_seed_decides_and_nobody_elses_random_numbers_change():
    model, (images, labels) = network(), pictures()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (robustness.perturb(model, images, labels, 8, "PGD", 2, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", robustness.ATTACKS)
def test_the_model_and_the_images_stay_as_they_are(name):
    model, (images, labels) = network().train(), pictures()
    images = images.float() / 255
    before, kept = {key: value.clone() for key, value in model.state_dict().items()}, images.clone()
    robustness.perturb(model, images, labels, 8, name, 2)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(images, kept)
    assert not images.requires_grad


def test_the_loss_grows_and_pgd_makes_it_grow_more():
    model, (images, labels) = network(), pictures()
    losses = [torch.nn.functional.cross_entropy(model(images.float() / 255), labels).item()]
    for name in robustness.ATTACKS:
        found = robustness.perturb(model, images, labels, 4, name, 5)
        losses.append(torch.nn.functional.cross_entropy(model(found), labels).item())
    assert losses[0] < losses[1] < losses[2]


def test_a_sure_network_is_attacked_too():
    """Its loss is 0 in float32, and so would be the gradient."""
    model, (images, _) = network("vgg-late"), pictures()
    clean = images.float() / 255
    with torch.no_grad():
        model.head.classifiers[0].bias.zero_()
        first, second = model(clean).topk(2).values.T
        model.head.classifiers[0].weight *= 40 / (first - second).median()
        labels = model(clean).argmax(1)
        first, second = model(clean).topk(2).values.T
    sure = (first - second > 25) & (first - second < 60)
    assert sure.any()
    changed = robustness.perturb(model, images, labels, 4)
    slope = gradient(copy.deepcopy(model).double(), clean.double(), labels)[sure]
    expected = (clean[sure] + 4 / 255 * slope.sign()).clamp(0, 1).float()
    clear = slope.abs() > 1e-3 * slope.abs().amax((1, 2, 3), keepdim=True)
    assert clear.double().mean() > 0.5
    assert torch.allclose(changed[sure][clear], expected[clear], atol=1e-6)


def test_an_unknown_attack_is_named():
    with pytest.raises(ValueError, match=r"attack='fgsm'.*known: FGSM, PGD"):
        robustness.perturb(network(), *pictures(), 1, "fgsm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 2}, r"epsilon=2\.0 must be one of epsilons, \[1\.0, 128\.0\]"),
        ({"epsilon": 0}, "epsilon must be a number, above 0 and at most 255"),
        ({"epsilons": [1, 300]}, "epsilons must be a list, each a number, above 0 and at most 255"),
        ({"epsilons": [1, 1]}, "epsilons must be a list of one or more different values"),
        ({"images": 1, "pgd_steps": 0}, "(?s)images must be .* at least 2.*pgd_steps must be .* at least 1"),
        ({"baseline": "vgg"}, "baseline='vgg'"),
    ],
)
def test_bad_parameters_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        AttackConfig(**{**TINY, **changes})


# The grid under attack


def test_what_a_run_withstands_is_what_its_model_answers(trained):
    grid, split, found = trained
    assert [run.cell for run in found] == grid.config.grid()
    for run in found[:2]:
        model = run.result.run.model
        assert torch.equal(run.clean, model(split.images.float() / 255).argmax(1) == split.labels)
        assert set(run.white_box) == set(product(("FGSM", "PGD"), (1, 128)))
        for (name, epsilon), right in run.white_box.items():
            made = robustness.perturb(model, split.images, split.labels, epsilon, name, 2)
            assert torch.equal(right, model(made).argmax(1) == split.labels)


def test_transferred_images_are_those_of_the_right_network(trained):
    _, split, found = trained
    models = {(run.cell.variant, run.cell.seed): run.result.run.model for run in found}
    late, dp = TINY["models"]
    for run in (found[0], found[-1]):
        sources = {
            "other seed": (run.cell.variant, 1 - run.cell.seed),
            "other model": (dp if run.cell.variant == late else late, run.cell.seed),
        }
        assert set(run.transferred) == set(product(("FGSM", "PGD"), sources))
        for (name, source), right in run.transferred.items():
            made = robustness.perturb(models[sources[source]], split.images, split.labels, 1, name, 2)
            assert torch.equal(right, models[run.cell.variant, run.cell.seed](made).argmax(1) == split.labels)


def test_the_sample_is_balanced_and_always_the_same():
    config = AttackConfig(**{**TINY, "test_limit": 200, "images": 50})
    data = ltpa.load_data("shapes", train_limit=20, test_limit=200)
    split = config.sample(data)
    assert torch.bincount(split.labels).tolist() == [5] * 10
    assert torch.equal(split.images, config.sample(data).images)


# Gradient masking


class Brightness(ImageClassifier):
    """Tells dark from bright pictures by their mean; `blind` passes no gradient on."""

    def __init__(self, blind):
        super().__init__()
        self.blind = blind

    def compute(self, images, *, query=None):
        z = 40 * (images.mean((1, 2, 3)) - 0.5)
        z = z.detach() + 0 * z if self.blind else z
        return AttentionOutput(torch.stack([-z, z], 1), OrderedDict(), OrderedDict(), None)


def brightness_grid():
    """A blind network that looks robust beside one that sees; and pictures that a small change turns."""
    config = AttackConfig(
        models=["vgg-late", "vgg"], seeds=[0, 1, 2], images=60, epsilons=[4, 128], epsilon=4, pgd_steps=3, device="cpu"
    )
    grid = Grid(config)
    for cell in config.grid():
        run = ltpa.Run(cell.config, ("dark", "bright"), Brightness(cell.variant == "vgg").eval(), Path("nowhere"))
        grid.results.append(Result(cell, run, torch.ones(60, dtype=torch.bool)))
    labels = torch.arange(60) % 2
    level = torch.where(labels == 1, 130, 125)  # 0.5 lies between
    images = level.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).to(torch.uint8)
    return grid, ltpa.Split(images.contiguous(), labels)


def test_a_blind_network_is_found_out_and_nothing_is_decided():
    grid, split = brightness_grid()
    found = robustness.attack_grid(grid, split)
    late, blind = found[0], found[1]
    assert late.clean.all()
    assert not late.white_box["FGSM", 4].any()
    assert blind.white_box["FGSM", 4].all(), "it looks robust"
    checks = robustness.checks(grid, found)
    signs = {(check.name, check.variant) for check in checks if check.sign}
    assert {variant for _, variant in signs} == {"vgg"}
    assert {name for name, _ in signs} == {
        "FGSM at 4 against images of the other model",
        "PGD at 4 against images of the other model",
        "PGD at 128 against 0",
    }
    table = robustness.check_table(checks)
    assert list(table.index) == list(dict.fromkeys(check.name for check in checks))
    assert list(table["signs of masking"]).count("vgg") == 3
    comparisons = robustness.effects(grid, found, checks)
    assert {c.verdict for c in comparisons} == {UNDECIDED}
    assert comparisons[0].measure == "FGSM 4/255: still right, of images that both classify rightly"
    assert comparisons[0].interval.mean == 1
    text = " ".join(robustness.conclusion(comparisons, checks).split())
    assert "signs of gradient masking: vgg (nothing is decided about these)" in text


def made_up(right, images=200):
    """Runs that withstand such parts of the images, {variant: {(attack, epsilon) or "clean": [part by seed]}}."""
    config = AttackConfig(models=list(right), seeds=[0, 1, 2], epsilons=[1, 8], epsilon=1)
    grid, found = Grid(config), []
    for cell in config.grid():
        parts = {key: torch.arange(images) < round(of[cell.seed] * images) for key, of in right[cell.variant].items()}
        run = ltpa.Run(cell.config, tuple("abcdefghij"), None, Path("nowhere"))
        grid.results.append(Result(cell, run, parts["clean"]))
        found.append(Attacked(grid.results[-1], parts.pop("clean"), parts))
    return grid, found


def numbers(clean, fgsm, pgd):
    """The same with every seed but for a little."""
    return {
        key: [max(0, part - 0.005), part, part + 0.005 * (part > 0)]
        for key, part in {
            "clean": clean,
            **{("FGSM", 1): fgsm, ("FGSM", 8): 0.1},
            **{("PGD", 1): pgd, ("PGD", 8): 0.0},
        }.items()
    }


def test_pgd_that_is_weaker_than_fgsm_is_a_sign():
    grid, found = made_up({"vgg-late": numbers(0.9, 0.5, 0.4), "vgg": numbers(0.9, 0.5, 0.7)})
    checks = robustness.checks(grid, found)
    assert [(check.name, check.variant) for check in checks if check.sign] == [("PGD against FGSM at 1", "vgg")]
    (excess,) = (c.excess for c in checks if (c.name, c.variant) == ("PGD against FGSM at 1", "vgg-late"))
    assert excess.mean == pytest.approx(-0.1)
    assert excess.high < 0
    assert len(checks) == 2 * 3, "two epsilons and the unbounded attack for two models"
    grid, found = made_up({"vgg-late": {**numbers(0.9, 0.5, 0.4), ("PGD", 8): [0.03] * 3}})
    assert [c.name for c in robustness.checks(grid, found) if c.sign] == ["PGD at 8 against 0"], "3 % stay right"


def test_only_images_that_both_classify_rightly_count():
    """ "vgg" keeps the same half of its clean accuracy as "vgg-late", which is higher; "vgg-pan" keeps more."""
    grid, found = made_up(
        {"vgg-late": numbers(0.8, 0.4, 0.2), "vgg": numbers(0.4, 0.2, 0.1), "vgg-pan": numbers(0.8, 0.6, 0.4)}
    )
    comparisons = robustness.effects(grid, found, robustness.checks(grid, found))
    by_name = {(c.measure.partition(" ")[0], c.model): c for c in comparisons}
    assert list(by_name) == [(attack, name) for attack in robustness.ATTACKS for name in ("vgg", "vgg-pan")]
    for (attack, name), compared in by_name.items():
        runs = {
            which: [r for r in found if r.cell.variant == which] for which in (name, grid.config.baseline)
        }  # image by image
        rows = [i for i in range(200) if all(run.clean[i] for of in runs.values() for run in of)]
        kept = {w: np.mean([[bool(r.white_box[attack, 1][i]) for i in rows] for r in of]) for w, of in runs.items()}
        assert compared.interval.mean == pytest.approx(kept[name] - kept["vgg-late"])
        assert compared.interval.n == len(rows)
    assert by_name["FGSM", "vgg"].verdict == CONTRADICTED, "the baseline keeps all of these images"
    assert by_name["PGD", "vgg-pan"].verdict == SUPPORTED
    text = " ".join(robustness.conclusion(comparisons, []).split())
    assert "4 comparisons with vgg-late" in text
    assert "both classify rightly: better than vgg-late: vgg-pan (+25" in text
    nothing = made_up({"vgg-late": numbers(0.8, 0.4, 0.2), "vgg": {**numbers(0.4, 0.2, 0.1), "clean": [0, 0, 0]}})
    assert robustness.effects(*nothing, []) == [], "no image that both classify rightly"


def test_an_image_counts_only_if_it_stays_right_after_every_restart(trained):
    grid, split, _ = trained
    again = replace(grid, config=replace(grid.config, restarts=3), results=grid.results[:1])
    (run,) = robustness.attack_grid(again, split)
    model = grid.results[0].run.model
    answers = [
        model(robustness.perturb(model, split.images, split.labels, 1, "PGD", 2, seed)).argmax(1) for seed in range(3)
    ]
    assert torch.equal(run.white_box["PGD", 1], torch.stack([a == split.labels for a in answers]).all(0))


def test_intervals_are_corrected_for_all_effects_shown():
    right = {name: numbers(0.8, 0.5, 0.4) for name in ("vgg-late", "vgg", "vgg-pan")}
    for of in right.values():
        of["clean"] = [0.8, 0.8, 0.8]
    right["vgg"]["FGSM", 1] = [0.50, 0.55, 0.65]
    compared = robustness.effects(*made_up(right), [])[0]
    right = {
        name: [torch.arange(160) < round(200 * part) for part in right[name]["FGSM", 1]] for name in ("vgg", "vgg-late")
    }
    expected = crossed_difference(*(torch.stack(rows).double() for rows in right.values())).interval(4)
    assert (compared.interval.low, compared.interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_answers_can_be_read_back_from_the_table(trained):
    _, _, found = trained
    table = robustness.frame(found)
    assert len(table) == len(found) * 5, "no attack, and two attacks at two epsilons"
    row = table[(table["attack"] == "PGD") & (table["epsilon"] == 128)].iloc[-1]
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["correct"]), "uint8"))[: row["images"]]
    assert bits.astype(bool).tolist() == found[-1].white_box["PGD", 128].tolist()
    assert row["accuracy"] == pytest.approx(bits.mean())


def test_tables_and_figures(trained):
    grid, split, found = trained
    made = made_up({name: numbers(0.8, 0.5, 0.4) for name in TINY["models"]})
    comparisons = robustness.effects(*made, [])
    table = robustness.accuracy_table(grid, found)
    runs = [run for run in found if run.cell.variant == "vgg-late"]
    clean = np.mean([100 * run.clean.double().mean().item() for run in runs])
    assert table.loc[("PGD", "vgg-late"), "clean"] == pytest.approx(clean, abs=0.05)
    assert (table.shape, list(table)) == ((4, 3), ["clean", "1/255", "128/255"])

    figure = robustness.accuracy_figure(grid, found)
    points = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in points) == 2 * len(found) * 3
    drawn = sorted(y for line in points[:3] for y in line.get_ydata())
    expected = [r for run in runs for r in (run.clean, run.white_box["FGSM", 1], run.white_box["FGSM", 128])]
    assert drawn == pytest.approx(sorted(100 * r.double().mean().item() for r in expected))
    bars = robustness.effects_figure(comparisons)
    assert [axes.get_title().replace("\n", " ") for axes in bars.axes] == [c.measure for c in comparisons]
    late, attention = found[0].result.run, found[1].result.run
    examples, maps, images = (
        robustness.example_figure(late, split[:2], 8),
        robustness.maps_figure(attention, split[:2], 8),
        robustness.maps_figure(late, split[:2], 8),
    )
    assert len(examples.axes) == 8
    assert len(maps.axes) > len(images.axes)
    for made in (figure, bars, examples, maps):
        assert len(to_png(made)) > 8_000


def test_nothing_to_draw_or_to_conclude_is_named():
    grid = Grid(AttackConfig(**TINY))
    with pytest.raises(ValueError, match="no run to draw"):
        robustness.accuracy_figure(grid, [])
    comparisons = robustness.effects(grid, [], [])
    with pytest.raises(ValueError, match="no comparison to draw"):
        robustness.effects_figure(comparisons)
    assert "Nothing can be concluded" in robustness.conclusion(comparisons, [])
