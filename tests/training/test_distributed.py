"""Several processes that train one model: against one process that does by hand what they should do together."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ltpa
from ltpa import create_model
from ltpa.__main__ import main
from ltpa.data.augment import augmented_batch
from ltpa.distributed import ALONE, Processes, launched
from ltpa.inference import choose_device
from ltpa.training.checkpoint import load_tensors
from ltpa.training.loader import epoch_batches
from tests.tools.ddp_worker import (
    CLASSES,
    IMAGES,
    tiny_config,
    tiny_data,
    train,
    train_after_refusals,
    train_as_users_do,
)
from tests.tools.processes import ROOT, run_together

PER_EPOCH = 5


def weights(folder):
    return load_tensors(Path(folder) / "weights.safetensors")[0]


def largest_difference(one, other, of=lambda name: True):
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one if of(name))


def complete(folder, function=train):
    ended = run_together(2, folder, function, folder / "run")
    assert [process.status for process in ended] == [0, 0], ended[0].err
    return ended


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of an undisturbed run of two processes, and how they ended."""
    folder = tmp_path_factory.mktemp("two")
    return folder / "run", complete(folder)


@pytest.fixture(scope="module")
def by_hand():
    """20 steps in plain formulas: batch norm over each half of the global batch, one step for both."""
    torch.set_default_dtype(torch.float64)
    try:
        config, data = tiny_config("unused"), tiny_data()
        torch.manual_seed(config.seed)
        start = {"width": config.width, "dropout": False, "mean": data.mean, "std": data.std}
        model = create_model(config.model, CLASSES, **start).train()
        parameters = list(model.parameters())
        velocity = [torch.zeros_like(p) for p in parameters]
        steps, rows = config.epochs * PER_EPOCH, []
        for epoch in range(config.epochs):
            losses, right = [], 0
            for number, index in enumerate(epoch_batches(IMAGES, config.batch_size, config.seed, epoch)):
                before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
                after, loss, gradients = [], 0.0, [torch.zeros_like(p) for p in parameters]
                for half in (index[:8], index[8:]):
                    for name, value in model.named_buffers():
                        if name in before:
                            value.copy_(before[name])
                    images = augmented_batch(data.train.images, half, "flip+shift", config.seed, epoch)
                    logits, truth = model(images.float() / 255), data.train.labels[half]
                    log = logits.log_softmax(1)
                    right += (logits.argmax(1) == truth).sum().item()
                    wanted = torch.full_like(log, config.label_smoothing / CLASSES)
                    wanted[torch.arange(8), truth] += 1 - config.label_smoothing
                    part = -(wanted * log).sum() / 16
                    for gradient, one in zip(gradients, torch.autograd.grad(part, parameters), strict=True):
                        gradient += one
                    loss += part.item()
                    after.append({name: value.clone() for name, value in model.named_buffers() if name in before})
                for name, value in model.named_buffers():
                    if name in before:
                        value.copy_((after[0][name] + after[1][name]) / 2)
                losses.append(loss)
                done = (epoch * PER_EPOCH + number + 1) / (steps + 1)
                rate = config.learning_rate * min(done / 0.25, (1 - done) / 0.75)
                with torch.no_grad():
                    for p, v, gradient in zip(parameters, velocity, gradients, strict=True):
                        step = gradient + (config.weight_decay * p if p.ndim > 1 else 0)
                        v.mul_(0.9).add_(step)
                        p -= rate * (step + 0.9 * v)
            rows.append((sum(losses) / PER_EPOCH, right / IMAGES))
        return model.state_dict(), rows
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_processes_are_one_with_batch_norm_over_the_halves(two, by_hand):
    found, expected = weights(two[0]), by_hand[0]
    assert all(value.dtype == torch.float64 for name, value in found.items() if "num_batches" not in name)
    assert largest_difference(found, expected, lambda name: "num_batches" not in name) < 1e-9


def test_training_moved_the_weights_far_more_than_that(by_hand):
    torch.manual_seed(5)
    torch.set_default_dtype(torch.float64)
    try:
        start = create_model("vgg-att3-concat-add", CLASSES, width=1 / 32).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert largest_difference(start, by_hand[0], lambda name: name.endswith("conv.weight") or "0.weight" in name) > 1e-2


def test_metrics_are_those_of_all_samples(two, by_hand):
    run = ltpa.load_run(two[0], "cpu")
    for row, (loss, accuracy) in zip(run.history, by_hand[1], strict=True):
        assert row["train_loss"] == pytest.approx(loss, rel=1e-9)
        assert row["train_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    scores = ltpa.evaluate(run.model.double(), tiny_data().test, "fp32")
    assert run.history[-1]["test_accuracy"] == scores["accuracy"]
    assert run.history[-1]["test_loss"] == pytest.approx(scores["loss"], rel=1e-6)
    assert run.history[-1]["entropy_conv7"] == pytest.approx(scores["entropy_conv7"], rel=1e-6)


def test_one_process_speaks_and_all_hold_the_same_weights(two):
    first, second = two[1]
    assert first.out.count("4 epochs on cpu") == 1
    assert first.out.splitlines()[-1] == second.out.strip()
    assert second.out.startswith("sum ")
    assert first.err.count("Warning") == second.err.count("Warning") == 0


def test_a_killed_process_ends_the_run_and_its_checkpoint_is_gone_on_from(two, tmp_path):
    survivor, killed = run_together(2, tmp_path, train, tmp_path / "run", signal.SIGKILL, 13)
    assert (survivor.status, killed.status) == (1, 128 + signal.SIGKILL)
    assert "another process of this training has ended" in survivor.err
    assert len(ltpa.load_run(tmp_path / "run", "cpu").history) == 2
    assert list((tmp_path / "run" / "checkpoints").glob("step-000000010-*"))
    assert "continuing" in complete(tmp_path)[0].out
    assert largest_difference(weights(tmp_path / "run"), weights(two[0])) < 1e-12


def test_a_signal_to_one_process_stops_all_after_the_same_step(two, tmp_path):
    stopped = run_together(2, tmp_path, train, tmp_path / "run", signal.SIGTERM, 12)
    assert all(process.status for process in stopped)
    assert "interrupted after step 13; saved" in stopped[0].out
    assert list((tmp_path / "run" / "checkpoints").glob("step-000000013-*"))
    complete(tmp_path)
    assert largest_difference(weights(tmp_path / "run"), weights(two[0])) < 1e-12


def test_muon_and_growing_pictures_go_on_after_an_interruption_as_in_one_go(tmp_path):
    first, second = complete(tmp_path, train_as_users_do)
    assert first.out.splitlines()[-1] == second.out.strip()
    whole = weights(tmp_path / "run")
    again = tmp_path / "again"
    again.mkdir()
    run_together(2, again, train_as_users_do, again / "run", signal.SIGTERM, 12)
    complete(again, train_as_users_do)
    assert largest_difference(weights(again / "run"), whole) < 1e-12


def test_what_cannot_be_trained_is_said_once_and_the_next_run_trains(two, tmp_path):
    first, second = complete(tmp_path, train_after_refusals)
    for words in (
        r"refused: processes 0 and 1 differ in crc32 \('\w{8}', '\w{8}'\); give all",
        "refused: batch_size=15 is divided among 2 processes, which needs a multiple of 2",
    ):
        assert len(re.findall(words, first.out)) == 1
    assert second.out.count("silent") == 2
    assert ltpa.load_run(tmp_path / "first", "cpu").complete
    assert largest_difference(weights(tmp_path / "run"), weights(two[0])) < 1e-12


def test_the_command_line_under_torchrun(tmp_path):
    """With torchrun itself; the tests above give their processes what it gives its workers."""
    settings = {"dataset": "shapes", "train-limit": 64, "test-limit": 20, "epochs": 1, "batch-size": 16, "width": 0.03}
    settings["run-dir"] = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--max-restarts", "0", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "ltpa", "train", *(f"--{name}={value}" for name, value in settings.items())],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 of 1 epoch") == done.stdout.count("run folder") == 1
    assert len(ltpa.load_run(tmp_path / "run", "cpu").history) == 1


def test_a_mistake_on_the_command_line_is_said_once(monkeypatch, capsys):
    for rank, lines in ((0, 1), (1, 0)):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert main(["train", "--epoch", "3"]) == 1
        assert capsys.readouterr().err.count("unknown parameter 'epoch'") == lines


# --- one process, as torchrun's variables describe it


def environment(monkeypatch, rank=0, count=1, local_rank=0, local_count=1):
    for name, value in {
        "RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": local_count,
        "MASTER_ADDR": "localhost",
    }.items():
        monkeypatch.setenv(name, str(value))


def test_without_torchrun_a_process_is_alone(monkeypatch):
    assert launched() == ALONE
    monkeypatch.setenv("RANK", "3")  # a stray variable of a cluster
    assert launched() == ALONE


@pytest.mark.parametrize(("rank", "count"), [(2, 2), (-1, 2), (0, 0), ("x", 2)])
def test_variables_that_do_not_fit_together(monkeypatch, rank, count):
    environment(monkeypatch, rank, count)
    with pytest.raises(ValueError, match="start with torchrun"):
        launched()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [0, 1, 15, 16])
def test_shares_have_no_repeats_and_no_gaps(count, size):
    index = torch.randperm(size)
    parts = [Processes(rank, count).share(index) for rank in range(count)]
    assert torch.equal(torch.cat(parts), index)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    slices = [Processes(rank, count).bounds(size) for rank in range(count)]
    assert [i for part in slices for i in range(size)[part]] == list(range(size))


def test_alone_everything_is_trivial():
    values = torch.tensor([1.5, 2.0], dtype=torch.float64)
    assert ALONE.gather("x") == ["x"]
    assert ALONE.largest(1.25, True) == (1.25, True)
    assert torch.equal(ALONE.total(values), values)
    assert ALONE.in_turn(int, "3") == ALONE.in_first(int, "3") == 3
    with pytest.raises(KeyError, match="as it is"):
        ALONE.together({}.__getitem__, "as it is")


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment(monkeypatch, rank=3, count=4, local_rank=1, local_count=2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="4 processes need one each: set device='auto'"):
        choose_device("cuda:0")
    environment(monkeypatch, rank=2, count=3, local_rank=2, local_count=3)
    with pytest.raises(ValueError, match=r"3 processes on this machine, and 2 GPUs: .*--nproc-per-node 2"):
        choose_device("auto")


def test_errors_are_sent_as_kinds_that_every_process_knows():
    from ltpa.data.cifar import DownloadError
    from ltpa.distributed import _portable

    plain = ValueError("as it is")
    assert _portable(plain) is plain
    assert _portable(None) is None
    sent = _portable(DownloadError("no mirror"))
    assert type(sent) in (OSError, ValueError, RuntimeError)
    assert str(sent) == "no mirror"
