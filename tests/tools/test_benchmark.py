"""The benchmark: its figures agree with each other, and what is timed is what the table says it is."""

import contextlib
import csv
import ctypes
import io
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms

from ltpa import TrainConfig, create_model
from ltpa.data.dataset import Split
from ltpa.inference import attend, choose_precision, evaluate_images, to_float
from ltpa.models.cost import gmac
from ltpa.training.optim import make_optimizer
from ltpa.training.trainer import train_step
from tests.tools import benchmark, loops
from tests.tools.__main__ import main
from tests.tools.benchmark import BARE, BESIDE, COMPILED, CONTROL, DATA, OURS, PLAIN, Settings, Variant
from tests.tools.beside import other_program
from tests.tools.loops import MEAN, STD, Measures, our_batches, our_loop, plain_loop, plain_parts, plain_step
from tests.tools.processes import Started
from tests.tools.roofline import bare_convolutions, convolutions, matrix_product

CPU = torch.device("cpu")
WIDTH, BATCH = 1 / 32, 4
CONFIG = TrainConfig(width=WIDTH, batch_size=BATCH, device="cpu", learning_rate=0.1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The command once, on few pictures and small matrices: what it printed, and the rows of its file."""
    path = tmp_path_factory.mktemp("benchmark") / "new" / "speed.csv"
    options = ["--width", WIDTH, "--batch-size", BATCH, "--steps", 1, "--repeats", 2, "--device", "cpu", "--csv", path]
    options.append("--beside")
    started = []

    @contextlib.contextmanager
    def program():
        started.append("one")
        yield

    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "matrix_product", lambda side, *where: matrix_product(side // 8, *where))
        patch.setattr("tests.tools.beside.other_program", program)
        patch.setattr(benchmark, "_DRAWN", 2**17)
        patch.setattr(benchmark, "_REPEATED", 2**18)
        assert main(["benchmark", *map(str, options)]) == 0
    assert len(started) == 2 * (1 + 2)
    with path.open(newline="", encoding="utf-8") as file:
        return printed.getvalue(), list(csv.DictReader(file))


def test_all_variants_are_timed(ran):
    _, rows = ran
    names = [row["variant"] for row in rows]
    fast = choose_precision("auto", CPU) != torch.float32
    assert names[:2] == [PLAIN, OURS]
    assert ("ours without bf16" in names) == fast
    left_out = ("channels_last", "resident images", "batched augmentation")
    assert {
        *(f"ours without {name}" for name in left_out),
        "ours with the dead branch",
        CONTROL,
        DATA,
        BARE,
        *BESIDE.values(),
    } < {*names}
    assert [row["precision"] for row in rows if "matrices" in row["variant"]] == (["bf16"] if fast else []) + ["fp32"]
    assert COMPILED not in names
    assert not any(row["failure"] or row["peak_gpu_gib"] for row in rows)
    assert {(row["width"], row["batch_size"], row["threads"]) for row in rows} == {
        (str(WIDTH), str(BATCH), str(torch.get_num_threads()))
    }


def test_figures_agree_with_each_other(ran):
    _, rows = ran
    speed = {row["variant"]: float(row["images_per_s"]) for row in rows if row["images_per_s"]}
    work = 6e-3 * gmac(create_model(CONFIG.model, 10, width=WIDTH))
    for row in rows:
        rate = float(row["images_per_s"] or 0)
        if row["images_per_s"]:
            assert float(row["best"]) >= rate * 0.999
            assert float(row["ms_per_step"]) * rate == pytest.approx(1000 * BATCH, rel=2e-3)
        for name in (PLAIN, OURS):
            if row[f"times_{name}"]:
                assert float(row[f"times_{name}"]) == pytest.approx(rate / speed[name], rel=2e-3, abs=1e-3)
        if row["tflops"] and rate:
            assert float(row["tflops"]) == pytest.approx(rate * work, rel=2e-3)
        if "2048" in row["variant"]:
            assert float(row["tflops"]) * float(row["ms_per_step"]) == pytest.approx(2 * 2.048**3, rel=2e-3)
    assert {row["variant"] for row in rows if row["tflops"]} == {row["variant"] for row in rows} - {CONTROL, DATA}


def test_the_file_holds_what_was_printed(ran):
    printed, rows = ran
    head, *lines = printed.split("\n\n")[1].splitlines()
    for line, row in zip(lines, rows, strict=True):
        for name in head.split():
            cell = row[name]
            assert (f"{float(cell):g}" if cell and name in benchmark.FIGURES else cell) in line
    assert f"{torch.get_num_threads()} threads" in printed
    assert torch.__version__ in printed


def test_sentences_say_what_the_rows_say(ran):
    printed, rows = ran
    found = {row["variant"]: row for row in rows}
    speed = {name: float(row["images_per_s"]) for name, row in found.items() if row["images_per_s"]}
    assert f"ours does {speed[OURS] / speed[PLAIN]:.2f} times the images of the plain loop" in printed
    assert f"ours reaches {speed[OURS] / speed[BARE]:.1%} of its bare convolutions" in printed
    assert f"a step takes {speed[CONTROL] / speed[OURS] - 1:+.1%} longer than that of vgg-late" in printed
    for name in BESIDE.values():
        assert f"{name}, a step takes {speed[OURS] / speed[name]:.2f} times as long" in printed
    share = float(found[DATA]["ms_per_step"]) / float(found[OURS]["ms_per_step"])
    assert f"{share:.2%}" in printed
    for name, row in found.items():
        if "matrices" in name:
            assert f"{float(found[OURS]['tflops']) / float(row['tflops']):.1%} of a {name} ({row['tflops']})" in printed


def networks(weight_decay):
    """Two equal networks in double precision, the plain one with its dead branch, and what trains them."""
    config = TrainConfig(width=WIDTH, learning_rate=0.1, weight_decay=weight_decay, device="cpu")
    torch.manual_seed(0)
    plain = create_model(
        config.model, 10, width=WIDTH, dropout=False, mean=(0, 0, 0), std=(1, 1, 1), faithful=True
    ).double()
    ours = create_model(config.model, 10, width=WIDTH, dropout=False, mean=MEAN, std=STD).double()
    weights = plain.state_dict()
    ours.load_state_dict(
        {name: weights[name] if name not in ("mean", "std") else value for name, value in ours.state_dict().items()}
    )
    return config, plain.train(), ours.train()


def both_step(config, plain, ours, steps):
    criterion, sgd = plain_parts(plain, config)
    our_sgd, scaler = (
        make_optimizer(ours, optimizer="sgd", learning_rate=0.1, weight_decay=config.weight_decay),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    for seed in range(steps):
        draw = torch.Generator().manual_seed(seed)
        batch = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=draw)
        labels = torch.randint(10, (6,), generator=draw)
        normalized = transforms.Normalize(MEAN, STD)(to_float(batch).double())
        loss = plain_step(plain, criterion, sgd, normalized, labels)
        found, _ = train_step(
            ours, our_sgd, scaler, batch, labels, factor=1.0, smoothing=config.label_smoothing, dtype=torch.float32
        )
        assert found.item() == pytest.approx(loss, rel=1e-9)


def test_the_plain_loop_learns_what_ours_learns():
    """Without weight decay, which the two give to different parameters, the weights stay the same step by step."""
    config, plain, ours = networks(weight_decay=0.0)
    before = {name: p.clone() for name, p in plain.named_parameters()}
    both_step(config, plain, ours, steps=3)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(theirs[name], parameter, rtol=0, atol=1e-9)
        torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=0, atol=1e-9)
    moved = {name for name in theirs if (theirs[name] - before[name]).abs().max() > 1e-7}
    assert {name.partition(".")[0] for name in moved} == {"trunk", "attention", "head"}, "the branch is dead"


def test_their_weight_decay_differs_only_in_norms_and_vectors():
    config, plain, ours = networks(weight_decay=0.01)
    before = {name: p.clone() for name, p in plain.named_parameters()}
    both_step(config, plain, ours, steps=1)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        decay = 0.1 * 1.9 * 0.01 * before[name] if parameter.ndim == 1 else 0  # rate, Nesterov's first step, decay
        torch.testing.assert_close(theirs[name], parameter - decay, rtol=0, atol=1e-9)


@pytest.fixture
def telling():
    """Images of one gray each, that of their label."""
    labels = torch.arange(40) % 10
    gray = (20 * labels).to(torch.uint8)
    return Split(gray[:, None, None, None].expand(-1, 3, 32, 32).contiguous(), labels)


@pytest.mark.parametrize(("resident", "batched"), [(True, True), (False, True), (False, False)])
def test_every_way_to_the_data_gives_images_with_their_labels(telling, resident, batched):
    measures = Measures(torch.float32, resident=resident, batched=batched)
    batches = our_batches(telling, 8, measures, CPU)()
    seen = set()
    for images, labels in (next(batches) for _ in range(3)):
        assert images.shape == (8, 3, 32, 32)
        assert images.dtype == torch.uint8
        assert torch.equal(images.long(), (20 * labels)[:, None, None, None].expand(-1, 3, 32, 32))
        seen |= {*labels.tolist()}
    batches.close()
    assert len(seen) > 4


def test_plain_images_are_normalized_and_have_their_labels(telling, monkeypatch):
    seen = []
    monkeypatch.setattr(loops, "plain_step", lambda model, criterion, sgd, *batch: seen.append((model, *batch)))
    steps = plain_loop(CONFIG, telling, 10)()
    next(steps)
    steps.close()
    ((model, images, labels),) = seen
    assert model.global_branch is not None
    assert model.mean.abs().max() == 0
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    expected = ((20 * labels / 255 - 0.5) / 0.25)[:, None].expand(-1, 3)
    torch.testing.assert_close(images[:, :, 16, 16], expected)


@pytest.mark.parametrize(
    ("left_out", "channels_last", "branch", "dtype"),
    [
        ({}, True, False, torch.bfloat16),
        ({"dtype": torch.float32}, True, False, torch.float32),
        ({"channels_last": False}, False, False, torch.bfloat16),
        ({"skips_dead_branch": False}, True, True, torch.bfloat16),
    ],
)
def test_a_measure_that_is_left_out_is_left_out(telling, monkeypatch, left_out, channels_last, branch, dtype):
    seen = []

    def step(network, sgd, scaler, batch, labels, **settings):
        seen.append((network, batch, settings))
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(loops, "train_step", step)
    next(our_loop(CONFIG, telling, 10, Measures(**{"dtype": torch.bfloat16, **left_out}))())
    ((network, batch, settings),) = seen
    assert settings == {"factor": 1.0, "smoothing": 0.1, "dtype": dtype}
    assert (network.global_branch is not None) == branch
    assert network.training
    for tensor in (batch, network.trunk.conv2[0].weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert tensor.is_contiguous() != channels_last


def test_another_program_trains_as_long_as_the_steps():
    with other_program() as program:
        assert program.poll() is None
    assert program.returncode is not None


class Calls(TorchDispatchMode):
    """Convolutions that torch computes: kind, shapes, stride, padding; of a backward which gradients but the bias's."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.convolution.default:
            x, weight, _, stride, padding = arguments[:5]
            self.found.append(("forward", tuple(x.shape), tuple(weight.shape), tuple(stride), tuple(padding)))
        if function is torch.ops.aten.convolution_backward.default:
            gradient, x, weight, _, stride, padding = arguments[:6]
            kind = ("backward", *arguments[10][:2], tuple(gradient.shape))
            self.found.append((*kind, tuple(x.shape), tuple(weight.shape), tuple(stride), tuple(padding)))
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("name", "size"), [("vgg-att3-concat-pc", 32), ("vgg-late", 64), ("resnet164-att2-concat-dp", 32)]
)
def test_the_bound_is_the_convolutions_of_a_training_step(name, size):
    model = create_model(name, 10, width=WIDTH).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layers = convolutions(model, size)
    assert model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with Calls() as trained:
        model(torch.rand(2, 3, size, size)).sum().backward()
    steps = bare_convolutions(layers, 2, CPU, torch.float32)()
    with Calls() as bare:
        next(steps)
    assert sorted(map(str, bare.found)) == sorted(map(str, trained.found))
    assert len(bare.found) == 2 * len(layers)


def turns(steps, ahead, name=OURS, error=None):
    """A variant of counted steps, two turns of it, and what happened."""
    log = []

    def start():
        try:
            while True:
                if error:
                    raise error
                log.append("step")
                yield
        finally:
            log.append("closed")

    variant = Variant(name, start, images=2, ahead=ahead)
    for _ in range(2):
        benchmark._turn(variant, Settings(steps=steps, seconds=60), CPU)
        log.append("turn")
    return variant, log


@pytest.mark.parametrize(("ahead", "untimed"), [(0, (1, 1)), (4, (4, 4))])
def test_steps_that_were_ready_are_not_timed_and_workers_end(ahead, untimed):
    variant, log = turns(3, ahead)
    assert log == [e for more in untimed for e in (*["step"] * (3 + more), "closed", "turn")]
    assert len(variant.rates) == len(variant.cpu) == 2


def test_a_failure_of_compile_is_a_row_and_any_other_an_error():
    variant, _ = turns(1, 0, COMPILED, RuntimeError("no\ncompiler"))
    assert variant.rates is None
    row = benchmark.row_of(variant, [variant], Settings(), CPU)
    assert row["failure"] == "failed: RuntimeError: no compiler"
    assert "images_per_s" not in row
    with pytest.raises(RuntimeError, match="compiler"):
        turns(1, 0, OURS, RuntimeError("no compiler"))


def test_too_large_a_batch_is_told_with_half_of_it(monkeypatch):
    def fail(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmark, "_variants", fail)
    with pytest.raises(ValueError, match=r"batch_size=48 .* does not fit into the memory of cpu; try 24"):
        benchmark.benchmark(Settings(batch_size=48, device="cpu"), show=False)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--modle", "vgg"], ["did you mean 'model'?"]),
        (["--width", "0", "--batch-size", "1"], ["width must be a number, above 0", "batch_size must be"]),
        (["--seconds", "nan", "--steps", "0"], ["seconds must be", "steps must be"]),
        (["--device", "cuda:77"], ["device='cuda:77': this machine has"]),
        (["--precision", "fp16", "--device", "cpu"], ["precision='fp16' needs a GPU"]),
        (["--csv", str(Path(__file__).parent)], ["is a folder; name a file in it"]),
        (["--csv", str(Path(__file__) / "speed.csv")], ["test_benchmark.py"]),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_timed(options, messages, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "benchmark", lambda settings: pytest.fail("it was timed"))
    assert main(["benchmark", *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert all(message in err for message in messages)
    assert err.count("\n") == len(messages)


def measure_memory():
    """Print by how many MiB two tests let this process grow, the second keeping all maps, and what the maps have."""
    allocator = ctypes.CDLL(None)
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: large blocks are given back at once
        allocator.mallopt(option, 2**16)
    model = create_model("vgg-att3-concat-pc", 10, width=1 / 64)

    def images(count):  # they take the memory of one
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(count, 3, 32, 32)

    def peak():
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    def test(count):
        return evaluate_images(model, Split(images(count), torch.zeros(count, dtype=torch.int64)), "fp32", 250)

    test(500)
    before = peak()
    assert len(test(4000).predictions) == 4000
    between = peak()
    kept = attend(model, images(4000), "fp32", 250)  # keeps the maps of all images: the memory of these is seen
    print(between - before, peak() - between, sum(maps.nbytes for maps in kept.maps.values()) / 2**20)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_memory_of_a_test_does_not_grow_with_the_images(tmp_path):
    ended = Started(tmp_path, measure_memory).end()
    assert ended.status == 0, ended.err
    grown, grown_where_kept, maps = map(float, ended.out.split())
    assert maps > 20, "what 4,000 images have in maps, in MiB"
    assert grown_where_kept > 12, "so much is seen where the maps are kept"
    assert grown < 8, "the maps of 3,500 images more would be 18 MiB, the images as numbers 41 MiB"
