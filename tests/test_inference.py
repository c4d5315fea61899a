"""Devices, precisions, batches and measures: against loops, and against the model on all images at once."""

import math
import platform
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from ltpa import Split, attend, evaluate
from ltpa.inference import attend_batches, autocast, choose_device, choose_precision, evaluate_images, to_float
from ltpa.maps import entropy
from ltpa.metrics import relative
from ltpa.models.classifier import AttentionOutput, ImageClassifier
from tests.models.helpers import byte_pictures
from tests.models.helpers import warmed as build

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CLASSES = 4


def pictures(n=7, side=32):
    return byte_pictures(n, side, side)


def labels(n=7):
    return torch.arange(n) % CLASSES


# --- devices


def test_auto_is_the_gpu_where_there_is_one_and_the_cpu_is_the_cpu(monkeypatch):
    assert choose_device("cpu") == choose_device(CPU) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == GPU


def test_a_gpu_that_is_not_there_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=r"0 CUDA GPUs.*T4 GPU.*device='auto'"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda") == GPU
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="1 CUDA GPU;"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no Apple GPU"):
        choose_device("mps")


def test_a_device_that_no_machine_has_is_a_value_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("gpu", "", "cuda:x", "cuda:-1", "cuda:", "meta"):
        with pytest.raises(ValueError, match="device="):
            choose_device(name)


# --- precision


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_on_a_gpu_goes_by_its_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert choose_precision("auto", GPU) is expected
    assert choose_precision("fp16", GPU) is torch.float16
    assert choose_precision("bf16", GPU) is torch.bfloat16
    assert choose_precision("fp32", GPU) is torch.float32


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu sse avx2 avx512f avx512_bf16 amx_tile", torch.bfloat16),
        ("flags : fpu avx512f amx_bf16", torch.bfloat16),
        ("flags : fpu sse avx2 avx512f avx512_vnni", torch.float32),
        ("", torch.float32),
    ],
)
def test_auto_on_a_cpu_goes_by_its_instructions(monkeypatch, flags, expected):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "read_text", lambda path: {"/proc/cpuinfo": flags}[str(path)])
    assert choose_precision("auto", CPU) is expected


def test_auto_on_other_systems_is_fp32(monkeypatch):
    def unreadable(path):
        raise OSError("no such file")

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert choose_precision("auto", CPU) is torch.float32
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert choose_precision("auto", CPU) is torch.float32
    assert choose_precision("auto", torch.device("mps")) is torch.float32


def test_fp16_on_a_cpu_and_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match=r"fp16.*needs a GPU.*'auto', 'bf16' or 'fp32'"):
        choose_precision("fp16", CPU)
    with pytest.raises(ValueError, match="did you mean 'fp32'"):
        choose_precision("fp23", CPU)
    assert choose_precision("bf16", CPU) is torch.bfloat16
    assert choose_precision("fp32", CPU) is torch.float32


def test_autocast_computes_in_the_precision_and_not_at_all_for_fp32():
    a = torch.ones(2, 2)
    with autocast(CPU, torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert (a @ a).dtype == torch.float32


def test_to_float():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(every), every.float() / 255)
    floats = torch.rand(3)
    assert to_float(floats) is floats


# --- attend


def assert_alike(output, expected, tolerance):
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(output.logits, expected.logits, **close)
    for name in ("maps", "scores", "descriptors"):
        values, expected_values = getattr(output, name), getattr(expected, name)
        assert list(values) == list(expected_values)
        for level in expected_values:
            torch.testing.assert_close(values[level], expected_values[level], **close)
    assert (output.global_feature is None) == (expected.global_feature is None)
    if expected.global_feature is not None:
        torch.testing.assert_close(output.global_feature, expected.global_feature, **close)


@pytest.mark.parametrize("name", ["vgg-late", "vgg-att3-concat-pc", "vgg-att2-concat-add"])
def test_batches_give_what_the_model_gives_for_all_images_at_once(name):
    model, images = build(name), pictures()
    with torch.no_grad():
        expected = model.attend(images.float() / 255)
    for batch_size in (1, 3, 7, 500):
        output = attend(model, images, "fp32", batch_size)
        assert output.logits.std() > 1e-3
        assert_alike(output, expected, 1e-6)
        for value in (output.logits, *output.maps.values(), *output.scores.values()):
            assert value.dtype == torch.float32
            assert value.device == CPU
            assert not value.requires_grad
            assert not value.is_inference()


def test_floats_of_any_kind_and_uint8_are_seen_alike():
    model, images = build(), pictures()
    expected = attend(model, images, "fp32")
    assert_alike(attend(model, images.float() / 255, "fp32"), expected, 0)
    assert_alike(attend(model, images.double() / 255, "fp32"), expected, 1e-5)
    part = pictures(8)[::2]
    assert_alike(attend(model, part, "fp32"), attend(model, part.clone(), "fp32"), 0)


def test_other_sizes_and_a_float64_model():
    model = build().double()
    images = pictures(2, 40)
    with torch.no_grad():
        expected = model.attend(images.double() / 255)
    output = attend(model, images, "fp32")
    assert output.maps["conv7"].shape == (2, 40, 40)
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.logits, expected.logits.float(), atol=1e-6, rtol=1e-6)


def test_bf16_is_near_and_its_results_are_float32():
    model, images = build(), pictures()
    exact, rough = attend(model, images, "fp32"), attend(model, images, "bf16")
    assert rough.logits.dtype == torch.float32
    assert not torch.equal(exact.logits, rough.logits)
    torch.testing.assert_close(rough.logits, exact.logits, atol=0.1, rtol=0.1)
    for level in exact.maps:
        torch.testing.assert_close(rough.maps[level].sum((1, 2)), torch.ones(7), atol=1e-5, rtol=0)


def test_batches_are_disjoint_and_in_order_and_leave_autocast_and_gradients_to_the_caller():
    model, images, found = build(), pictures(), []
    for part, output in attend_batches(model, images, "bf16", 3):
        found.append((part.start, part.stop, len(output.logits)))
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    assert found == [(0, 3, 3), (3, 6, 3), (6, 7, 1)]


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_model_is_left_as_it_was():
    model, images = build(), pictures()
    split = Split(images, labels())
    model.train()
    model.trunk.conv3.eval()
    modes = [module.training for module in model.modules()]
    before = state_of(model)
    attend(model, images, "fp32", 4)
    evaluate(model, split, "fp32", 4)
    next(attend_batches(model, images, "fp32", 4))
    for part, _ in attend_batches(model, images, "fp32", 4):
        assert part.start == 0
        break
    with pytest.raises(ValueError, match="at least 32x32"):
        attend(model, images[..., :20], "fp32")
    assert [module.training for module in model.modules()] == modes
    after = state_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_results_can_be_used_in_training():
    model = build()
    weight = torch.ones(CLASSES, requires_grad=True)
    (attend(model, pictures(), "fp32").logits * weight).sum().backward()
    assert weight.grad.shape == (CLASSES,)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.zeros(0, 3, 32, 32), ValueError, "no images"),
        (torch.zeros(3, 32, 32), ValueError, r"\(N, 3, H, W\)"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), ValueError, r"\(N, 3, H, W\)"),
        (torch.zeros(2, 1, 32, 32), ValueError, r"\(N, 3, H, W\)"),
        (torch.zeros(2, 3, 31, 32), ValueError, "at least 32x32"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), TypeError, "float tensor"),
        (torch.zeros(2, 3, 32, 32).numpy(), TypeError, "must be a tensor"),
        ([], TypeError, "must be a tensor"),
    ],
)
def test_images_that_no_model_can_read(images, error, words):
    with pytest.raises(error, match=words):
        attend(build(), images, "fp32")


# --- attend with a query


NUMBERS = [(7, 7), (7, 1), (1, 7), (1, 1)]  # images, queries


@pytest.mark.parametrize("name", ["vgg-att3-concat-dp", "vgg-att3-concat-pc"])
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.filterwarnings("ignore:the query changes nothing")
def test_batches_with_a_query_give_what_the_model_gives_at_once(name, numbers):
    model, images, query = build(name), pictures(9)[: numbers[0]], pictures(8, 40)[: numbers[1]]
    with torch.no_grad():
        expected = model.attend(images.float() / 255, query=query.float() / 255)
    for batch_size in (1, 3, 500):
        assert_alike(attend(model, images, "fp32", batch_size, query=query), expected, 1e-5)
        parts = [part for part, _ in attend_batches(model, images, "fp32", batch_size, query=query)]
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(max(numbers)))
    assert_alike(attend(model, images, "fp32", query=query.double() / 255), expected, 1e-5)


def test_precision_holds_for_the_query_too():
    model, images, query = build(), pictures(), pictures(8)[:7]
    exact = attend(model, images, "fp32", query=query)
    own = attend(model, images, "fp32")
    rough = attend(model, images, "bf16", query=query)
    assert rough.logits.dtype == rough.global_feature.dtype == torch.float32
    assert not torch.equal(exact.global_feature, rough.global_feature)
    error = (rough.global_feature - exact.global_feature).abs().mean()
    assert error < 0.1 * (own.global_feature - exact.global_feature).abs().mean(), "nearer than another image's"


def test_no_batch_is_larger_than_asked_for(monkeypatch):
    """So memory is bounded, whichever of the two is many."""
    model = build()
    shapes = []
    inner = model.compute
    monkeypatch.setattr(model, "compute", lambda x, query: shapes.append((len(x), len(query))) or inner(x, query=query))
    for images, queries in NUMBERS[:3]:
        attend(model, pictures(9)[:images], "fp32", 3, query=pictures(8)[:queries])
    assert shapes == [(3, 3), (3, 3), (1, 1), (3, 1), (3, 1), (1, 1), (1, 3), (1, 3), (1, 1)]


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        (torch.zeros(3, 3, 32, 32), ValueError, "7 images and 3 queries"),
        (torch.zeros(1, 4, 32, 32), ValueError, r"query must have the shape \(N, 3, H, W\)"),
        (torch.tensor(3), TypeError, "query must be a float tensor"),
        ("deer", TypeError, "query must be a tensor"),
    ],
)
def test_queries_that_no_model_can_read(query, error, words):
    with pytest.raises(error, match=words):
        attend(build(), pictures(), "fp32", query=query)


def test_a_batch_size_below_one_and_fp16_on_the_cpu_are_refused():
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            attend(build(), pictures(), "fp32", batch_size)
    with pytest.raises(ValueError, match="needs a GPU"):
        attend(build(), pictures(), "fp16")


# --- evaluate


def slow_entropy(weights):
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    return -math.fsum(p * math.log(p) for p in shares if p > 0) / math.log(len(shares))


@pytest.mark.parametrize(("normalizer", "batch_size"), [("softmax", 2), ("sigmoid", 500)])
def test_evaluate_is_a_loop_over_images(normalizer, batch_size):
    model, images, truth = build(normalizer=normalizer), pictures(), labels()
    found = evaluate(model, Split(images, truth), "fp32", batch_size)
    of_images = evaluate_images(model, Split(images, truth), "fp32", batch_size)
    assert found == of_images.scores
    assert torch.equal(of_images.predictions == truth, of_images.correct)
    correct, losses = 0, []
    entropies = {level: [] for level in ("conv7", "conv10", "conv13")}
    for image, label in zip(images, truth.tolist(), strict=True):
        with torch.no_grad():
            output = model.attend(image[None].float() / 255)
        values = output.logits[0].tolist()
        correct += max(range(CLASSES), key=values.__getitem__) == label
        losses.append(math.log(math.fsum(math.exp(value) for value in values)) - values[label])
        for level, maps in output.maps.items():
            entropies[level].append(slow_entropy(maps.flatten().tolist()))
            shares, positions = of_images.strongest[level]
            assert shares[len(losses) - 1].item() == pytest.approx((maps.max() / maps.sum()).item(), rel=1e-5)
            assert positions == maps[0].numel()
    assert list(found) == ["accuracy", "loss", "entropy_conv7", "entropy_conv10", "entropy_conv13"]
    assert found["accuracy"] == correct / 7
    assert found["loss"] == pytest.approx(math.fsum(losses) / 7, rel=1e-6)
    for level, values in entropies.items():
        assert found[f"entropy_{level}"] == pytest.approx(math.fsum(values) / 7, rel=1e-6)
        assert 0 < found[f"entropy_{level}"] <= 1 + 1e-6


def test_evaluate_knows_right_from_wrong():
    model, images = build(dropout=False), pictures()
    guesses = attend(model, images, "fp32").logits.argmax(1)
    assert evaluate(model, Split(images, guesses), "fp32")["accuracy"] == 1
    assert evaluate(model, Split(images, (guesses + 1) % CLASSES), "fp32")["accuracy"] == 0
    one = evaluate(model, Split(images[:1], guesses[:1]), "fp32")
    assert one["accuracy"] == 1
    assert math.isfinite(one["loss"])
    assert list(evaluate(build("vgg"), Split(images, guesses), "fp32")) == ["accuracy", "loss"]


class Masks(ImageClassifier):
    """Its maps are the first channel, so that some can be without any weight."""

    def compute(self, images, *, query=None):
        maps = OrderedDict(level=images[:, 0])
        return AttentionOutput(images.new_zeros(len(images), CLASSES), maps, maps, None)


@pytest.mark.parametrize("batch_size", [1, 500])
def test_maps_without_any_weight_do_not_count(batch_size):
    images = pictures().float() / 255
    images[[0, 1, 4]] = 0
    found = evaluate(Masks(), Split(images, labels()), "fp32", batch_size)
    expected = [slow_entropy(images[i, 0].flatten().tolist()) for i in (2, 3, 5, 6)]
    assert found["entropy_level"] == pytest.approx(math.fsum(expected) / 4, rel=1e-6)
    assert found["loss"] == pytest.approx(math.log(CLASSES), rel=1e-6)
    assert found["accuracy"] == 2 / 7
    nothing = evaluate(Masks(), Split(torch.zeros_like(images), labels()), "fp32", batch_size)
    assert math.isnan(nothing["entropy_level"])


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (Split(pictures(0), labels(0)), "no images"),
        (Split(pictures(), labels(6)), "one label an image"),
        (Split(pictures(), torch.zeros(7, 2, dtype=torch.int64)), "one label an image"),
        (Split(pictures(), labels() + 1), r"0 \.\.\. 3"),
        (Split(pictures(), labels() - 1), r"0 \.\.\. 3"),
    ],
)
def test_splits_that_cannot_be_evaluated(split, words):
    with pytest.raises(ValueError, match=words):
        evaluate(build(), split, "fp32")


# --- measures


def test_entropy_is_one_for_uniform_and_zero_for_one_position():
    uniform = torch.full((2, 4, 6), 0.3)
    torch.testing.assert_close(entropy(uniform), torch.ones(2), atol=1e-6, rtol=0)
    one_hot = torch.zeros(3, 5, 5)
    one_hot[torch.arange(3), torch.arange(3), 4 - torch.arange(3)] = torch.tensor([1.0, 0.2, 7.0])
    assert torch.equal(entropy(one_hot), torch.zeros(3))
    half = torch.zeros(1, 4, 4)
    half[0, :2, :2] = 1
    torch.testing.assert_close(entropy(half), torch.tensor([0.5]), atol=1e-6, rtol=0)
    torch.testing.assert_close(entropy(5 * half.double()), torch.tensor([0.5]).double(), atol=1e-14, rtol=0)
    assert entropy(half.bfloat16()).dtype == torch.float32
    assert entropy(torch.zeros(1, 2, 2)).isnan().all()


def test_relative_weights():
    maps = torch.rand(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = relative(maps)
    for one, expected in zip(found, maps, strict=True):
        mean = math.fsum(expected.flatten().tolist()) / 15
        torch.testing.assert_close(one, expected / mean, atol=1e-14, rtol=0)
    torch.testing.assert_close(relative(torch.full((1, 2, 2), 0.25)), torch.ones(1, 2, 2), atol=0, rtol=0)
