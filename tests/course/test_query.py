"""Queries, how far they steer, and training with them: against loops, and against models that obey or ignore."""

import math
import sys
from collections import OrderedDict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

import ltpa
from ltpa import Run, Split, TrainConfig, create_model
from ltpa.course import query, query_training
from ltpa.course.query import Steering
from ltpa.course.query_scenes import draw_queries, side_by_side
from ltpa.data.samples import PHOTOGRAPHS, photographs
from ltpa.metrics.statistics import CONTRADICTED, SUPPORTED, UNDECIDED
from ltpa.models.classifier import AttentionOutput
from ltpa.models.networks import ImageClassifier

CLASSES = ("a", "b", "c", "d")


def bank_of(labels, side=32):
    """Images that show their class as red, and their number as green."""
    images = torch.zeros(len(labels), 3, side, side, dtype=torch.uint8)
    images[:, 0] = (60 * torch.tensor(labels)[:, None, None]).byte()
    images[:, 1] = torch.arange(len(labels))[:, None, None].byte()
    return Split(images, torch.tensor(labels))


def colored_scenes(n=24, seed=0):
    """Two squares, whose red is that of `bank_of`, on blue."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(n)])
    images, masks = torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.zeros(n, 2, 32, 32, dtype=torch.bool)
    images[:, 2] = 200
    for i in range(n):
        for k, (y, x) in enumerate(((2 + i % 5, 3), (20, 16 + i % 7))):
            masks[i, k, y : y + 8, x : x + 8] = True
            images[i, 0][masks[i, k]] = 60 * int(labels[i, k])
            images[i, 2][masks[i, k]] = 0
    return Split(images, labels, masks)


@cache
def shapes(n=6):
    scenes = ltpa.load_data("shapes", train_limit=1, test_limit=n, objects=2).test
    return scenes, ltpa.load_data("shapes", train_limit=1, test_limit=100).test


@cache
def build(name, normalizer="softmax"):
    """A random model whose batch norms have seen shapes, with weights large enough for maps that prefer something."""
    torch.manual_seed(0)
    model = create_model(name, 10, width=1 / 16, normalizer=normalizer, dropout=False).train()
    images = shapes()[1].images[:32].float() / 255
    with torch.no_grad():
        for _ in range(20):
            model(images)
    return model.eval()


class Obedient(ImageClassifier):
    """Its scores are high where the scene has the red of the query and no blue; `sign` -1 looks elsewhere instead."""

    def __init__(self, sign=1.0):
        super().__init__()
        self.sign = sign

    def compute(self, images, *, query=None):
        g = (images if query is None else query)[:, 0].mean((1, 2))
        scores = -self.sign * 40 * (images[:, 0] - g[:, None, None]).abs() - 100 * (images[:, 2] > 0.5)
        maps = scores.flatten(1).softmax(1).view_as(scores)
        red = (maps * images[:, 0]).sum((1, 2)) * 255 / 60
        logits = -(red[:, None] - torch.arange(4)).abs()
        return AttentionOutput(logits, OrderedDict(level=maps), OrderedDict(level=scores), g[:, None])


# --- queries


def test_queries_show_what_they_ask_for():
    scenes, bank = colored_scenes(200), bank_of([0, 1, 2, 3] * 8 + [3, 3])
    queries = draw_queries(scenes, bank, seed=1)
    assert queries.images.shape == (3, 200, 3, 32, 32)
    assert torch.equal(queries.images[:, :, 0, 0, 0], (60 * queries.labels).byte()), "the class of each query"
    assert torch.equal(queries.labels[:2], scenes.labels.T)
    assert not (queries.labels[2, :, None] == scenes.labels).any(), "the absent class is not in the scene"
    assert set(queries.labels[2].tolist()) == {0, 1, 2, 3}
    numbers = queries.images[:, :, 1, 0, 0].unique()
    assert len(numbers) == 34, "every image of the bank is drawn now and then"
    again, other = draw_queries(scenes, bank, seed=1), draw_queries(scenes, bank, seed=2)
    assert torch.equal(again.images, queries.images)
    assert not torch.equal(other.images, queries.images)


@pytest.mark.parametrize(
    ("scenes", "bank", "words"),
    [
        (Split(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)), bank_of([0, 1, 2]), "scenes of two"),
        (replace(colored_scenes(), masks=None), bank_of([0, 1, 2, 3]), "scenes of two objects"),
        (colored_scenes()[:0], bank_of([0, 1, 2, 3]), "scenes of two objects"),
        (colored_scenes(), bank_of([0, 1, 2]), "every class that is in the scenes"),
        (colored_scenes()[:1], bank_of(colored_scenes().labels[0].tolist()), "three classes at least"),
    ],
)
def test_queries_that_cannot_be_asked(scenes, bank, words):
    with pytest.raises(ValueError, match=words):
        draw_queries(scenes, bank)


def test_sheet_shows_scene_and_queries_in_one_size():
    scenes, bank = side_by_side(bank_of([0, 1, 2, 3] * 3), 5), bank_of([0, 1, 2, 3])
    queries = draw_queries(scenes, bank)
    images, titles = queries.sheet(torch.tensor([4, 0]), CLASSES)
    assert images.shape == (8, 3, 32, 64)
    assert torch.equal(images[0], scenes.images[4])
    assert torch.equal(images[6, :, :, 16:48], queries.images[1, 0])
    assert (images[5:, :, :, :16] == 255).all()
    one, two = (CLASSES[label] for label in scenes.labels[4])
    assert titles[:3] == [f"{one} and {two}", f"query: {one} (1st)", f"query: {two} (2nd)"]
    assert titles[3] == f"query: {CLASSES[queries.labels[2, 4]]} (absent)"


def test_side_by_side():
    bank = bank_of([0, 1, 2, 3] * 5)
    scenes = side_by_side(bank, 60, seed=3)
    assert scenes.images.shape == (60, 3, 32, 64)
    for k, half in enumerate((slice(0, 32), slice(32, 64))):
        assert torch.equal(bank.images[scenes.images[:, 1, 0, half.start].long()], scenes.images[..., half])
        assert torch.equal(scenes.images[:, 0, 0, half.start], (60 * scenes.labels[:, k]).byte())
        assert scenes.masks[:, k, :, half].all()
    assert (scenes.masks.sum(1) == 1).all(), "the halves are all there is, and do not overlap"
    assert (scenes.labels[:, 0] != scenes.labels[:, 1]).all()
    assert len(scenes.images[:, 1, 0, [0, 32]].unique()) == 20
    with pytest.raises(ValueError, match="two classes"):
        side_by_side(bank_of([1, 1]), 3)


# --- steering


@pytest.mark.parametrize(("name", "normalizer"), [("vgg-att2-concat-dp", "softmax"), ("vgg-att3-indep-add", "sigmoid")])
def test_steering_is_a_loop_over_scenes(name, normalizer):
    model, (scenes, bank) = build(name, normalizer), shapes(3)
    queries = draw_queries(scenes, bank)
    found = query.steer(model, queries, "fp32")
    scores, shares = {}, {}
    for level in found:
        for i in range(3):
            for q in range(3):
                with torch.no_grad():
                    seen = model.attend(
                        scenes.images[i : i + 1].float() / 255, query=queries.images[q, i : i + 1].float() / 255
                    )
                scores[q] = seen.scores[level][0]
                scaled = torch.nn.functional.interpolate(seen.maps[level][None], (32, 32), mode="bilinear")[0, 0]
                for k in range(2):
                    on = [scaled[y, x].item() for y, x in scenes.masks[i, k].nonzero().tolist()]
                    shares[q, k] = math.fsum(on) / math.fsum(scaled.flatten().tolist())
            stride = 32 // scores[0].shape[0]

            def highest(q, k, i=i, scores=scores, stride=stride):
                return max(scores[q][y // stride, x // stride].item() for y, x in scenes.masks[i, k].nonzero().tolist())

            hits = [
                0.5 if highest(q, 0) == highest(q, 1) else float((highest(q, q)) > highest(q, 1 - q)) for q in (0, 1)
            ]
            expected = {
                "queried": (shares[0, 0] + shares[1, 1]) / 2,
                "other": (shares[0, 1] + shares[1, 0]) / 2,
                "absent": (shares[2, 0] + shares[2, 1]) / 2,
                "swing": ((shares[0, 0] - shares[1, 0]) + (shares[1, 1] - shares[0, 1])) / 2,
                "follows": sum(hits) / 2,
                "agreement": stats.spearmanr(scores[0].flatten(), scores[1].flatten()).statistic,
            }
            assert list(found[level]) == list(expected)
            for key, value in expected.items():
                assert found[level][key][i].item() == pytest.approx(value, abs=2e-4 if key == "agreement" else 1e-5), (
                    key
                )
    assert any(values["swing"].abs().max() > 1e-4 for values in found.values()), "the query must matter"


@pytest.mark.filterwarnings("ignore:the query changes nothing")
def test_pc_cannot_be_steered():
    scenes, bank = shapes(20)
    queries = draw_queries(scenes, bank)
    for level, values in query.steer(build("vgg-att3-concat-pc"), queries).items():
        assert (values["swing"] == 0).all(), level
        assert (values["follows"] == 0.5).all()
        assert torch.allclose(values["agreement"], torch.ones(20), atol=1e-6)
        assert torch.allclose(values["queried"], values["absent"], atol=1e-6)
    gates = query.steer(build("vgg-att3-concat-pc", "sigmoid"), queries)
    for values in gates.values():
        assert (values["follows"] == 0.5).all(), "the order cannot change"
        assert values["agreement"].min() > 0.999
    assert max(values["swing"].abs().max() for values in gates.values()) > 1e-6, "the share may, by the strength alone"


def test_a_model_that_obeys_and_one_that_looks_elsewhere():
    scenes = colored_scenes()
    queries = draw_queries(scenes, bank_of([0, 1, 2, 3] * 3))
    good, bad = (query.steer(Obedient(sign), queries, "fp32")["level"] for sign in (1.0, -1.0))
    assert (good["follows"] == 1).all()
    assert good["swing"].min() > 0.8
    assert (bad["follows"] == 0).all()
    assert bad["swing"].max() < -0.8
    assert (good["agreement"] < 1).all()
    given = query.answers(Obedient(), queries, "fp32")
    assert (given["queried"], given["other"]) == (1.0, 0.0)
    assert given["absent"] < 0.2, "two objects that attract alike may look like a third"
    assert query.answers(Obedient(-1.0), queries, "fp32")["other"] > 0.9


def test_a_leak_shows_in_the_answers():
    class Reader(Obedient):
        def compute(self, images, *, query=None):
            seen = super().compute(images, query=query)
            return replace(seen, logits=-(seen.global_feature * 255 / 60 - torch.arange(4)).abs())

    queries = draw_queries(colored_scenes(), bank_of([0, 1, 2, 3] * 3))
    assert query.answers(Reader(), queries, "fp32") == {"queried": 1.0, "other": 0.0, "absent": 1.0}


def test_geometry_of_the_global_feature():
    labels = [0, 1, 2, 3] * 10
    bank = bank_of([label for label in labels for _ in (0, 1)])
    known = query.geometry(Obedient(), bank, "fp32")
    assert known["nearest_mean"] == 1, "its g is the class"
    assert known["cosine"] == pytest.approx(1 / 2, abs=1e-6), "three means on one ray, that of class 0 is zero"

    class Fixed(Obedient):
        def compute(self, images, *, query=None):
            angle = images[:, 0, 0, 0] * 255 / 60
            g = torch.stack([angle.cos(), angle.sin(), images[:, 1, 0, 0]], dim=1)
            return replace(super().compute(images), global_feature=g)

    known = query.geometry(Fixed(), bank, "fp32")
    means = {}
    for c in range(4):
        of = [i / 255 for i in range(0, 80, 2) if bank.labels[i] == c]
        means[c] = (math.cos(c), math.sin(c), math.fsum(of) / len(of))
    cosines = [
        math.fsum(x * y for x, y in zip(means[a], means[b], strict=True))
        / math.hypot(*means[a])
        / math.hypot(*means[b])
        for a in means
        for b in means
        if a != b
    ]
    assert known["cosine"] == pytest.approx(math.fsum(cosines) / 12, abs=1e-5)
    with pytest.raises(ValueError, match="computes no global feature"):
        query.geometry(build("vgg-att-concat-pc"), shapes()[1])


# --- conclusions


def measured(follows, n=400):
    """A level that follows the query in a part of the cases."""
    hits = (torch.arange(n) < follows * n).float()
    zero = torch.zeros(n)
    return {"queried": hits, "other": zero, "absent": zero, "swing": hits, "follows": hits, "agreement": zero}


def seeds_of(levels, seeds=3):
    """The same levels by seed, but for one scene less and one more that follows, in the first and the last seed."""
    by_seed = {seed: {level: dict(values) for level, values in levels.items()} for seed in range(seeds)}
    for seed, change in ((0, -1), (seeds - 1, 0)) if seeds > 1 else ():
        for values in by_seed[seed].values():
            for key in ("follows", "swing"):
                end = int((values[key] > 0).sum())
                if 0 < end < len(values[key]):
                    values[key] = values[key].index_fill(0, torch.tensor(end + change), 1.0 + change)
    return by_seed


def steering_of(comparisons=None, seeds=3, **levels_by_model):
    """Models that were measured with nearly the same outcome with every seed."""
    models = {name.replace("_", "-"): seeds_of(levels, seeds) for name, levels in levels_by_model.items()}
    return Steering(models, comparisons or sum(map(len, levels_by_model.values())))


def test_the_verdict_of_table_and_sentence_is_that_of_the_whole_interval():
    models = {
        "m-dp": {"conv10": measured(0.5), "conv13": measured(0.7)},
        "m-add sigmoid": {"conv10": measured(0.6), "conv13": measured(0.4)},
        "m-pc": {"conv13": measured(0.9)},
    }
    steering = Steering({name: seeds_of(of) for name, of in models.items()}, 5)
    effects = {effect.model: effect for effect in steering.effects("little")}
    verdicts = [CONTRADICTED, SUPPORTED, UNDECIDED, CONTRADICTED, SUPPORTED]
    assert [effect.verdict for effect in effects.values()] == verdicts
    assert {(e.margin, e.seeds, e.interval.n, e.budget) for e in effects.values()} == {(0.1, 3, 400, "little")}
    assert effects["m-dp at conv13"].interval.mean == pytest.approx(0.2)
    text = steering.conclusion()
    assert f'more than 60 % of the cases": {SUPPORTED}' in text
    assert f"{SUPPORTED} at m-dp at conv13; {UNDECIDED} at 1 and {CONTRADICTED} at 2 of 4 levels" in text
    assert "of 4 levels, 2 lie above that and 1 below" in text
    follows = steering.table().loc[("m-dp", "conv13"), "follows, % [95 %]"]
    assert f"The highest is m-dp at conv13: {follows} %" in text

    def outcome(*names):
        return steering.select(*names).conclusion().splitlines()[0].rpartition(": ")[2]

    assert outcome("m-add sigmoid") == f"{UNDECIDED}."
    assert steering_of(m_dp={"conv10": measured(0.4)}).conclusion().count(CONTRADICTED) == 2
    assert UNDECIDED in steering_of(m_dp={"conv10": measured(0.7, 10)}).conclusion()
    assert steering.select("m-pc").conclusion().startswith("Nothing can be concluded"), "a control"


def test_seeds_that_differ_leave_it_open_and_too_few_decide_nothing():
    follows = [0.66, 0.7, 0.8]
    of = {"m-dp": {seed: {"conv13": measured(value)} for seed, value in enumerate(follows)}}
    interval = Steering(of, 2).intervals["m-dp", "conv13"]["follows"]
    low, high = stats.t.interval(1 - 0.05 / 2, 2, loc=np.mean(follows), scale=stats.sem(follows))
    assert (interval.low, interval.high) == pytest.approx((low, min(1, high)))
    assert Steering(of, 2).effects()[0].verdict == UNDECIDED
    equal = Steering({"m-dp": {seed: {"conv13": measured(0.7)} for seed in range(3)}}, 1)
    assert equal.effects()[0].verdict == UNDECIDED, "equal seeds show no spread"
    one = steering_of(seeds=1, m_dp={"conv13": measured(0.9)})
    assert [(e.verdict, e.seeds) for e in one.effects()] == [(UNDECIDED, 1)]
    assert one.intervals["m-dp", "conv13"]["follows"].known, "over scenes"
    assert "Fewer than 3 seeds" in one.conclusion()


def test_every_scene_can_be_read_back_from_the_table():
    row = steering_of(m_dp={"conv13": measured(0.75, 8) | {"follows": torch.tensor([0, 0.25, 0.5, 0.75, 1, 1, 1, 0])}})
    row = row.frame().iloc[2]
    assert (row["model"], row["seed"], row["level"], row["follows_by_scene"]) == ("m-dp", 2, "conv13", "01234440")
    assert row["follows"] == pytest.approx(4.5 / 8)


def test_intervals_widen_with_the_number_of_comparisons():
    one, many = (steering_of(n, m_dp={"conv10": measured(0.5)}).intervals["m-dp", "conv10"]["follows"] for n in (1, 12))
    assert many.low < one.low < 0.5 < one.high < many.high
    exact = 1.96 * math.sqrt(0.25 / 400)
    assert one.high - one.low == pytest.approx(2 * exact, rel=0.1)


def test_tables():
    steering = steering_of(m_dp={"conv10": measured(0.25), "conv13": measured(0.75)}, m_pc={"conv13": measured(0.0)})
    table = steering.table()
    assert list(table.index) == [("m-dp", "conv10"), ("m-dp", "conv13"), ("m-pc", "conv13")]
    row = table.loc[("m-dp", "conv13")]
    assert (row["on queried, %"], row["on other, %"]) == ("75.0", "0.0")
    assert row["swing, points [95 %]"].startswith("+75.0 [")
    assert table.loc[("m-pc", "conv13"), "swing, points [95 %]"] == "+0.0", "seeds without spread give no interval"
    assert query.typical(steering.models["m-dp"][0], 1)[0] == "conv13"
    masks = torch.zeros(1, 2, 10, 10, dtype=torch.bool)
    masks[0, 0, 0, :3] = masks[0, 1, 5, :2] = True
    assert list(steering.objects_table(masks).loc["m-dp"]) == ["conv13", "5", "75", "+75.0"]
    queries = draw_queries(colored_scenes(), bank_of([0, 1, 2, 3] * 3))
    assert list(query.answers_table({"good": {0: Obedient(), 1: Obedient(-1.0)}}, queries).iloc[0, :2]) == [50, 50]
    networks = {"pc": {0: build("vgg-att-concat-pc")}, "good": {0: Obedient()}}
    table = query.geometry_table(networks, bank_of([0, 1, 2, 3] * 10))
    assert list(table.index) == ["good"], "the other has no global feature"


def test_typical_scenes_go_from_best_to_worst():
    values = measured(0.5, 9)
    values["swing"] = torch.tensor([3.0, 1, 2, 9, 5, 4, 8, 7, 6])
    level, chosen = query.typical({"low": measured(0.1, 9), "high": values}, 3)
    assert level == "high"
    assert values["swing"][chosen].tolist() == [9, 5, 1]
    assert query.typical({"high": values}, 1)[1].tolist() == [3]


def test_figures():
    models = {"conv10": measured(0.4), "conv13": measured(0.8)}
    figure = steering_of(m_dp=models, m_pc={"conv13": measured(0.5)}).figure()
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["m-dp", "m-pc"]
    points = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert points == pytest.approx([40, 80, 50])
    assert "%" in left.get_xlabel()
    assert "points" in right.get_xlabel()
    with pytest.raises(ValueError, match="nothing to draw"):
        steering_of().figure()

    queries = draw_queries(colored_scenes(), bank_of([0, 1, 2, 3]))
    figure = query.query_figure(Obedient(), queries, torch.tensor([5, 0]), "level", CLASSES)
    titles = [axes.get_title() for axes in figure.axes]
    heads = [title.replace("\n", " ") for title in titles]
    assert [head for head in heads if head.startswith(("own", "query"))] == [
        f"{word} 32x32" for word in ("own g", "query: 1st", "query: 2nd", "query: absent")
    ]
    first, second = (CLASSES[label] for label in queries.scenes.labels[5])
    assert titles[0] == f"1st {first}\n2nd {second}"


# --- training with queries


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = TrainConfig(
        model="vgg-att2-concat-dp", dataset="shapes", width=1 / 16, precision="fp32", device="cpu", learning_rate=0.05
    )
    return Run(config, CLASSES, build(config.model), tmp_path_factory.mktemp("run"))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_learning_leaves_the_run_alone_and_repeats_exactly(run, monkeypatch):
    monkeypatch.setattr(query_training, "BATCH", 16)
    scenes, bank = shapes(60)
    before, state = weights(run.model), torch.random.get_rng_state()
    same = query_training.learn_to_ask(run, scenes, bank, 0, progress=False)
    one, two = (query_training.learn_to_ask(run, scenes, bank, 2, progress=False) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    after = weights(run.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[name], value) for name, value in weights(same).items())
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in weights(one).items())
    changed = [name for name, parameter in one.named_parameters() if not torch.equal(before[name], parameter)]
    assert "global_branch.fc.weight" in changed, "the branch that asks learns too"
    assert len(changed) == len(list(one.parameters()))
    assert not one.training


def test_learning_lowers_the_loss_of_the_queried_object(run, monkeypatch):
    """The answer for the queried object becomes likelier, on few scenes that it sees again and again."""
    monkeypatch.setattr(query_training, "BATCH", 16)
    scenes, bank = shapes(8)
    queries = draw_queries(scenes, bank, 5)

    def loss(model):
        seen = [ltpa.attend(model, scenes.images, "fp32", query=query).logits for query in queries.images[:2]]
        return sum(torch.nn.functional.cross_entropy(s, q) for s, q in zip(seen, queries.labels, strict=False)).item()

    taught = query_training.learn_to_ask(run, scenes, bank, 40, progress=False)
    assert loss(taught) < loss(run.model) - 0.5


def test_a_map_without_g_cannot_learn_to_be_asked(run):
    scenes, bank = shapes()
    deaf = replace(run, config=replace(run.config, model="vgg-att-concat-pc"), model=build("vgg-att-concat-pc"))
    with pytest.raises(ValueError, match="cannot learn from queries"):
        query_training.learn_to_ask(deaf, scenes, bank, 1)
    with pytest.raises(ValueError, match="scenes of two objects"):
        query_training.learn_to_ask(run, bank, bank, 1, progress=False)


# --- parameters and real pictures


def test_the_runs_are_those_of_the_quick_parameters():
    cells = query.QueryConfig().grid().grid()
    assert [cell.variant for cell in cells] == list(query.QueryConfig().models)
    for cell in cells:
        model, _, normalizer = cell.variant.partition(" ")
        plain = TrainConfig(**ltpa.QUICK, model=model, normalizer=normalizer or "softmax", seed=0)
        assert cell.config == plain
        assert cell.config.path == plain.path
    small = query.QueryConfig(models=["vgg-att-concat-dp"], epochs=1, train_limit=9, seed=4, seeds=[0, 2]).grid()
    assert [(c.config.epochs, c.config.train_limit, c.config.seed) for c in small.grid()] == [(1, 9, 0), (1, 9, 2)]


def test_photographs(monkeypatch):
    split, names = photographs(48)
    assert split.images.shape == (4, 3, 48, 48)
    assert split.images.dtype == torch.uint8
    assert names == tuple(PHOTOGRAPHS)
    assert all(image.float().std() > 20 for image in split.images)
    assert not torch.equal(split.images[:, 0], split.images[:, 2]), "they are in color"
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install 'ltpa\[notebooks\]'"):
        photographs()


def test_real_queries_from_a_run_or_from_photographs(run, tmp_path, monkeypatch):
    used, queries, classes = query.real_queries(query.QueryConfig(examples=3), run)
    assert used is run
    assert queries.scenes.images.shape == (3, 3, 64, 128)
    assert classes == tuple(PHOTOGRAPHS)
    for k, half in enumerate((slice(0, 64), slice(64, 128))):
        assert torch.equal(queries.images[k], queries.scenes.images[..., half]), "each asks for itself"

    monkeypatch.chdir(tmp_path)
    tiny = {"dataset": "shapes", "width": 1 / 32, "train_limit": 60, "test_limit": 40, "epochs": 1, "batch_size": 30}
    other = ltpa.fit(TrainConfig(model="vgg-att-concat-dp", **tiny), progress=False)
    config = query.QueryConfig(run=str(other.path), scenes=7)
    used, queries, classes = query.real_queries(config, run)
    assert used.path == other.path
    assert classes == other.classes
    assert queries.scenes.images.shape == (7, 3, 32, 64)
    test = ltpa.data_for(other.config).test.images
    halves = queries.scenes.images[..., :32].flatten(1)
    assert (halves[:, None] == test[::2].flatten(1)).all(2).any(1).all()
    asks = queries.images.flatten(0, 1).flatten(1)
    assert (asks[:, None] == test[1::2].flatten(1)).all(2).any(1).all(), "asked with other images than those shown"
    assert used.config.model == "vgg-att-concat-dp"
