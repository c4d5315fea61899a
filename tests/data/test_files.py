"""Images that stay in their files: the same as in memory, in everything but the memory that they need."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ltpa
from ltpa.data import files
from ltpa.data.files import FileSplit, read_images
from ltpa.data.memory import free_memory, memory_for_images
from ltpa.progress import messages
from ltpa.training.loader import Loader
from ltpa.training.run import fingerprint

ROOT = Path(__file__).parents[2]
LITTLE = 1e-9  # gigabytes


def write_images(folder, classes=("ant", "bee"), count=12, side=40):
    generator = np.random.default_rng(7)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (side, side + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def both(folder):
    """The same folder, in memory and in files."""
    return ltpa.load_data("folder", folder), ltpa.load_data("folder", folder, memory_gb=LITTLE)


def config(folder, path, **changes):
    settings = {"dataset": "folder", "data_dir": folder, "width": 1 / 32, "epochs": 2, "batch_size": 6, "device": "cpu"}
    return ltpa.TrainConfig(**{**settings, "learning_rate": 0.05, "precision": "fp32", "run_dir": path, **changes})


def test_both_answer_alike(both):
    memory, streamed = (data.train for data in both)
    assert (memory.in_files, streamed.in_files) == (False, True)
    assert (len(streamed), streamed.shape, streamed.dtype) == (len(memory), memory.shape, memory.dtype)
    assert torch.equal(streamed.images, memory.images)
    mask = torch.arange(len(memory)) % 3 == 1
    for index in (3, torch.tensor(2), slice(2, 7), slice(0), torch.tensor([5, 1, 1]), mask, slice(None)):
        assert torch.equal(streamed[index].images, memory[index].images)
        assert torch.equal(streamed[index].labels, memory[index].labels)
        assert not streamed[index].in_files
    part = streamed.part(slice(4, 9))
    assert part.in_files
    assert torch.equal(part[torch.tensor([2, 0])].images, memory.images[[6, 4]])
    assert torch.equal(part.labels, memory.labels[4:9])
    assert torch.equal(pickle.loads(pickle.dumps(part)).images, part.images)
    assert (repr(part), repr(memory[4:9])) == ("FileSplit(5 images (3, 32, 32))", "Split(5 images (3, 32, 32))")


def test_the_data_set_is_the_same(both):
    memory, streamed = both
    assert (memory.mean, memory.std, memory.classes) == (streamed.mean, streamed.std, streamed.classes)
    assert fingerprint(memory) == fingerprint(streamed)
    fresh = FileSplit(streamed.train.files, streamed.train.labels, 32)
    assert fresh.statistics() == memory.train.statistics()
    assert fresh.checksum(7) == memory.train.checksum(7)
    held = [ltpa.hold_out(data, 0.25) for data in both]
    assert held[1].train.in_files
    assert fingerprint(held[0]) == fingerprint(held[1])
    assert held[0].mean == held[1].mean


def test_the_choice_is_automatic_and_said(folder, both, monkeypatch):
    assert not any("stay in their files" in note for note in both[0].notes)
    assert sum("stay in their files" in note for note in both[1].notes) == 2
    # 19 training images take 58 kB, five for the test 15 kB: with 60 kB only the training images are left out.
    between = ltpa.load_data("folder", folder, memory_gb=60e-6)
    assert (between.train.in_files, between.test.in_files) == (True, False)
    (note,) = (note for note in between.notes if "stay" in note)
    assert note.startswith("the training images take 5.8e-05 GB as tensors, and images may take 6e-05 GB here")
    limited = ltpa.load_data("folder", folder, memory_gb=60e-6, train_limit=6)
    assert not limited.train.in_files
    monkeypatch.setattr("ltpa.data.memory.free_memory", lambda: 100_000)
    assert ltpa.load_data("folder", folder).train.in_files
    monkeypatch.setattr("ltpa.data.memory.free_memory", lambda: 200_000)
    assert not ltpa.load_data("folder", folder).train.in_files


def test_what_is_not_in_files_is_refused_if_it_does_not_fit():
    with pytest.raises(ValueError, match=r"600 images of 64x64 pixels take 0\.0074 GB, and images may take 0\.001 GB"):
        ltpa.load_data("shapes", image_size=64, train_limit=500, test_limit=100, memory_gb=0.001)


def test_batches_come_in_the_order_that_is_asked_for(both):
    memory, streamed = (data.train for data in both)
    parts = list(torch.randperm(len(memory), generator=torch.Generator().manual_seed(1)).split(4))
    state = torch.get_rng_state()
    batches = list(streamed.batches([*parts, slice(3)]))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, batches, memory.batches([*parts, slice(3)])))
    assert torch.equal(batches[0], memory.images[parts[0]])
    assert len(batches) == len(parts) + 1


@pytest.mark.parametrize("mode", ["none", "flip+shift"])
def test_a_loader_gives_the_same_batches_from_files(both, mode):
    parts = list(torch.randperm(len(both[0].train)).split(5))
    notes = []
    loaders = [Loader(data.train, torch.device("cpu"), mode, 3) for data in both]
    with messages(False, notes):
        for one, other in zip(*(loader.batches(2, parts) for loader in loaders), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            assert other[0].is_contiguous(memory_format=torch.channels_last)
    (note,) = notes
    assert "read from their files by" in note


def test_images_that_do_not_fit_on_a_gpu_are_picked_in_memory(both, monkeypatch):
    memory = both[0].train
    parts = list(torch.randperm(len(memory)).split(5))
    resident = list(Loader(memory, torch.device("cpu"), "flip+shift", 3).batches(1, parts))
    monkeypatch.setattr("ltpa.training.loader._fits", lambda *_: False)
    notes = []
    with messages(False, notes):
        picked = list(Loader(memory, torch.device("cpu"), "flip+shift", 3).batches(1, parts))
    for one, other in zip(resident, picked, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert notes == ["the training images do not fit on the GPU: they stay in the computer's memory"]


def test_a_run_is_the_same_bit_by_bit_and_goes_on_in_either_way(folder, tmp_path):
    runs = [
        ltpa.fit(config(folder, tmp_path / str(limit), memory_gb=limit), progress=False) for limit in (None, LITTLE)
    ]
    assert runs[0].config.identity() == runs[1].config.identity()
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for one, other in zip(*(run.history for run in runs), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    again = ltpa.fit(config(folder, tmp_path / "None", memory_gb=LITTLE), progress=False)
    assert again.complete


def test_models_look_at_files_as_at_tensors(both):
    torch.manual_seed(0)
    model = ltpa.create_model("vgg-att3-concat-dp", 2, width=1 / 32)
    memory, streamed = (data.train for data in both)
    seen = [ltpa.attend(model, images, "fp32", 4) for images in (memory.images, memory, streamed)]
    assert torch.equal(seen[0].logits, seen[2].logits)
    assert torch.equal(seen[0].logits, seen[1].logits)
    assert torch.equal(seen[0].maps["conv7"], seen[1].maps["conv7"])
    asked = [ltpa.attend(model, images, "fp32", 4, query=images[:1].images).logits for images in (memory, streamed)]
    assert torch.equal(*asked)
    assert ltpa.evaluate(model, both[0].test, "fp32") == ltpa.evaluate(model, both[1].test, "fp32")


def test_the_explorer_takes_files(both):
    torch.manual_seed(0)
    panel = ltpa.explore(ltpa.create_model("vgg-att3-concat-pc", 2, width=1 / 32), both[1])
    panel.which.value = panel.which.options[1]  # the least certain: looks at all images
    assert panel.chosen


def children():
    """Return the numbers of the processes that this one has started."""
    return set(subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout.split())


def test_no_thread_and_no_process_is_left(both):
    before, others = threading.active_count(), children()
    batches = both[1].train.batches(list(torch.arange(16).split(2)))
    next(batches)
    batches.close()
    assert len(children() - others) <= 1  # pgrep itself
    assert threading.active_count() <= before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_workers_of_a_killed_process_end_too(tmp_path):
    """Otherwise they would keep what they inherited: the lock of the run, the connections to other processes."""
    if not Path("/proc").is_dir():
        pytest.skip("processes are looked up in /proc")
    Image.fromarray(np.full((128, 128, 3), 90, dtype=np.uint8)).save(tmp_path / "one.png")
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def read():
        images = FileSplit([tmp_path / "one.png"] * 400, torch.zeros(400), 128)
        batches = images.batches(list(torch.arange(400).split(16)))
        next(batches)
        sender.send([process.pid for process in multiprocessing.active_children()])
        time.sleep(60)

    process = context.Process(target=read)
    process.start()
    workers = receiver.recv() if receiver.poll(30) else []
    assert workers
    assert all(map(is_running, workers))
    process.kill()
    process.join()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [number for number in workers if is_running(number)]
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert not left


def is_running(number):
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes() != b""  # it is empty for a zombie
    except OSError:
        return False


def test_file_caches_and_the_limits_of_control_groups_count(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    monkeypatch.setattr("ltpa.data.memory._control_groups", lambda: [tmp_path / "none", tmp_path])
    assert free_memory() == 100
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 400\nactive_file 150\n")
    assert free_memory() == 650
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 10**6


@pytest.mark.parametrize("value", [0, -1, "much", True, float("nan"), float("inf")])
def test_a_limit_that_is_none(value):
    with pytest.raises((ValueError, TypeError), match="memory_gb must be"):
        ltpa.TrainConfig(memory_gb=value)


def test_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch):
    assert 10**6 < free_memory() < 10**14
    monkeypatch.setattr("ltpa.data.memory.free_memory", lambda: 8000)
    assert memory_for_images(None) == 4000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_for_images(None) == 1000
    assert memory_for_images(2.0) == 500_000_000


MEASURE = r"""
import re, sys, torch
from pathlib import Path
from ltpa.training.loader import Loader
from ltpa.data.files import FileSplit
file, count = Path(sys.argv[1]), int(sys.argv[2])
images = FileSplit([file] * count, torch.zeros(count, dtype=torch.int64), 224)
images.scan()
def peak():  # MiB, of this process alone
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
torch.zeros(1)
loader = Loader(images, torch.device("cpu"), "flip+shift", 0)
seen = sum(len(batch) for batch, _ in loader.batches(0, list(torch.randperm(count).split(64))))
assert seen == count
print(peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    """8,000 images of 224x224 would take 1.2 GB; what is read ahead may take `LOADER_BYTES`, 268 MB."""
    Image.fromarray(np.full((224, 224, 3), 90, dtype=np.uint8)).save(tmp_path / "one.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    peaks = []
    for count in (256, 8000):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "one.png"), str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    assert 100 < peaks[0] < peaks[1] + 50, "the peak is that of the process"
    assert peaks[1] - peaks[0] < 350, peaks


def test_what_is_read_ahead_is_bounded(monkeypatch, both):
    taken = {}

    class Loader(torch.utils.data.DataLoader):
        def __init__(self, *args, **options):
            taken.update(options)
            super().__init__(*args, **options)

    monkeypatch.setattr(torch.utils.data, "DataLoader", Loader)
    images = both[1].train
    batch = 6 * 3 * 32 * 32
    for bound in (1, batch * 3, batch * 1000):
        monkeypatch.setattr(files, "LOADER_BYTES", bound)
        assert len(list(images.batches([torch.arange(6)] * 2))) == 2
        ahead = taken["num_workers"] * taken["prefetch_factor"]
        assert ahead == 1 or ahead * batch <= bound


def test_reading_into_memory_keeps_the_order(both):
    images, found = read_images(both[1].train.files, 32)
    assert torch.equal(images, both[0].train.images)
    assert len(found.digests) == len(images) == len(set(found.digests))
