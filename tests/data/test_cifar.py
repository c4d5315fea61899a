"""CIFAR and SVHN fetched from a local server that misbehaves in every way known from the field."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import struct
import sys
import tarfile
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

from ltpa import TrainConfig, data_for, load_data
from ltpa.data import cifar, download
from ltpa.data.cifar import CIFAR, SVHN, Cifar
from ltpa.data.download import DownloadError, RemoteFile, fetch, only_process

FOLDER, ARCHIVE, PARQUET = "cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar10-test.parquet"
PAGE = b"<!doctype html><html><body>Please log in</body></html>"
PIXELS = np.random.default_rng(1).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
LABELS = [number % 10 for number in range(60)]
BATCHES = {
    name: pickle.dumps({"data": PIXELS[part].reshape(20, -1), "labels": LABELS[part]}, protocol=2)
    for name, part in (("data_batch_1", slice(20)), ("data_batch_2", slice(20, 40)), ("test_batch", slice(40, 60)))
}


def md5_of(data):
    return hashlib.md5(data).hexdigest()


def tar_of(*members):
    """A .tar.gz of (name, content) and of ready-made TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):  # a mere header, as addfile refuses one that lies
                tar.fileobj.write(member.tobuf())
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def parquet_of(labels):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pictures = []
    for pixels in PIXELS[40:]:
        buffer = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"img": pictures, "label": labels}), buffer)
    return buffer.getvalue()


DATA = tar_of(*((f"{FOLDER}/{name}", content) for name, content in BATCHES.items()))
HALF = len(DATA) // 2


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how the server behaves."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        if "/api/" in self.path:  # newer versions of huggingface_hub ask this and that beside the file
            return self.head(404, 0)
        self.server.log.append(kind)
        with contextlib.suppress(ConnectionError):
            getattr(self, kind)()

    def do_HEAD(self):
        kind = self.path.split("/")[1]
        with contextlib.suppress(ConnectionError):
            if not kind.startswith("hub"):
                return getattr(self, kind)()
            digest = "0" * 64 if kind == "hub_of_another_hash" else hashlib.sha256(self.server.parquet).hexdigest()
            self.head(200, len(self.server.parquet), X_Repo_Commit="c" * 40, X_Linked_Etag=f'"{digest}"', ETag='"e"')

    def log_message(self, *_):
        pass

    def head(self, status=200, length=None, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, data, status=200, length=None):
        self.head(status, len(data) if length is None else length)
        self.wfile.write(data)

    def good(self):
        self.send(DATA)

    def leisurely(self):
        time.sleep(0.3)
        self.send(DATA)

    def unsized(self):
        self.head()
        self.wfile.write(DATA)

    def moved(self):
        self.head(302, 0, Location=f"/good/{ARCHIVE}")

    def hub(self):
        self.send(self.server.parquet)

    def hub_of_another_hash(self):
        self.send(self.server.parquet)

    def hub_of_other_content(self):
        self.send(bytes(len(self.server.parquet)))

    def forbidden(self):
        self.head(403, 0)

    def missing(self):
        self.head(404, 0)

    def broken(self):
        self.head(500, 0)

    def page(self):
        self.send(PAGE)

    def short(self):
        self.send(DATA[:HALF], length=len(DATA))

    def lying(self):
        self.head()
        self.wfile.write(DATA[:HALF])

    def wrong(self):
        self.send(bytes(len(DATA)))

    def endless(self):
        self.head()
        while not self.server.stop.is_set():
            self.wfile.write(bytes(1 << 16))

    def silent(self):
        self.server.stop.wait(20)

    def stalled(self):
        self.send(DATA[:HALF], length=len(DATA))
        self.wfile.flush()
        self.server.stop.wait(20)

    def slow(self):
        self.head(200, len(DATA))
        for position in range(0, len(DATA), 100):
            self.wfile.write(DATA[position : position + 100])
            if self.server.stop.wait(0.05):
                break

    def dripping(self):
        """Never quiet for long, and never done with its headers."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Patience: ")
        while not self.server.stop.wait(0.05):
            self.wfile.write(b"x")

    def circling(self):
        self.head(302, 0, Location=self.path)

    def reset(self):
        self.send(DATA[:HALF], length=len(DATA))
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.log, self.stop, self.parquet = [], threading.Event(), b""

    def handle_error(self, *_):
        pass

    def url(self, kind):
        return f"http://127.0.0.1:{self.server_port}/{kind}/{ARCHIVE}"


@pytest.fixture
def server(monkeypatch):
    for name in ("LTPA_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "MIN_SPEED", 20_000.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def get(server, tmp_path):
    """Fetches the test archive from mirrors of the given kinds; one that holds :// is taken as it is."""

    def get(*kinds):
        urls = tuple(kind if "://" in kind else server.url(kind) for kind in kinds)
        with only_process(tmp_path, ARCHIVE):
            return fetch(RemoteFile(ARCHIVE, f"md5:{md5_of(DATA)}", len(DATA), urls), tmp_path)

    return get


@pytest.fixture
def source(monkeypatch, server):
    """Replaces CIFAR-10 by 60 images from the local server; the hub is a server that answers 404."""

    def use(*kinds, hub="missing", labels=LABELS[40:], archive=DATA):
        server.parquet = parquet_of(labels)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/{hub}")
        files = {name: md5_of(content) for name, content in BATCHES.items()}
        test = {"test_batch": files.pop("test_batch")}
        table: Cifar = dataclasses.replace(
            CIFAR["cifar10"],
            archive=RemoteFile(ARCHIVE, f"md5:{md5_of(archive)}", len(archive), tuple(map(server.url, kinds))),
            reader=SimpleNamespace(base_folder=FOLDER, train_list=files.items(), test_list=test.items()),
            parquet=dataclasses.replace(
                CIFAR["cifar10"].parquet,
                hash=f"sha256:{hashlib.sha256(server.parquet).hexdigest()}",
                size=len(server.parquet),
            ),
            test_images=20,
        )
        monkeypatch.setitem(CIFAR, "cifar10", table)

    return use


@pytest.fixture
def impatient(monkeypatch):
    """Shortens the window for servers that hang; for others a busy machine may take its time."""

    def shorten(kind):
        window = 0.7 if kind in ("silent", "stalled", "slow", "dripping", "circling") else 10.0
        for module in (download, cifar):
            monkeypatch.setattr(module, "WINDOW", window)

    return shorten


def with_mirrors(source, *urls):
    return dataclasses.replace(source, archive=dataclasses.replace(source.archive, urls=urls))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def check_test_split(split):
    assert np.array_equal(split.images, PIXELS[40:])
    assert split.labels.tolist() == LABELS[40:]


def test_the_folder_of_the_batches_may_be_named_itself(tmp_path, source):
    source("missing")
    (tmp_path / FOLDER).mkdir()
    for name, content in BATCHES.items():
        (tmp_path / FOLDER / name).write_bytes(content)
    for root in (tmp_path, tmp_path / FOLDER):
        (split,) = cifar.load_cifar("cifar10", root, ["test"], download=False)
        check_test_split(split)


# --- mirrors ----------------------------------------------------------------------------------------------------------


def test_a_good_mirror_is_quiet(get, server, tmp_path, capfd):
    assert get("good", "missing") == tmp_path / ARCHIVE
    assert (tmp_path / ARCHIVE).read_bytes() == DATA
    assert server.log == ["good"]
    assert names_in(tmp_path) == [ARCHIVE]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["unsized", "moved"])
def test_unusual_mirrors_that_are_right(get, kind):
    assert get(kind).read_bytes() == DATA


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("forbidden", "403"),
        ("missing", "404"),
        ("broken", "500"),
        ("page", "ended after 54 of"),
        ("short", f"ended after {HALF:,} of {len(DATA):,} bytes"),
        ("lying", f"ended after {HALF:,} of {len(DATA):,} bytes"),
        ("wrong", "other content .its MD5"),
        ("endless", "other content .its MD5"),
        ("reset", "reset"),
        ("circling", "302"),
        ("silent", "too slow: 0 bytes/s|timed out"),
        ("stalled", "too slow|timed out"),
        ("slow", "too slow: .*less than MIN_SPEED = 20,000"),
        ("dripping", "too slow: 0 bytes/s"),
        ("gopher://127.0.0.1/x", "gopher"),
        ("my-server/data://x", "unknown url type"),
        ("http://127.0.0.1:port/x", "nonnumeric port"),
        ("http://127.0.0.1:1/x", "refused"),
    ],
)
def test_a_bad_mirror_is_left_for_the_next(get, tmp_path, impatient, kind, reason):
    impatient(kind)
    began = time.monotonic()
    with pytest.raises(DownloadError, match=reason) as caught:
        get(kind)
    for way_out in ('dataset="shapes"', "LTPA_MIRROR", str(tmp_path), md5_of(DATA), kind):
        assert way_out in str(caught.value)
    assert names_in(tmp_path) == []
    assert get(kind, "good").read_bytes() == DATA
    assert time.monotonic() - began < 15  # some of these would hold on for 20 s or for ever


def test_ltpa_mirror_comes_first_and_is_not_the_end(get, server, monkeypatch):
    monkeypatch.setenv("LTPA_MIRROR", "my-server/data")
    assert get("good").read_bytes() == DATA
    get("good").unlink()
    monkeypatch.setenv("LTPA_MIRROR", server.url("good").removesuffix(ARCHIVE))
    assert get("missing").read_bytes() == DATA
    assert server.log == ["good", "good"]


def test_time_is_bounded(get, server, monkeypatch):
    monkeypatch.setattr(download, "MIN_SPEED", 0.0)
    monkeypatch.setattr(download, "GIVE_UP", 0.5)
    with pytest.raises(DownloadError, match=r"(?s)/slow/.*not finished, because.*/good/.*not finished, because"):
        get("slow", "good")


def test_the_bar_is_shown_for_long_downloads_only(get, capsys, monkeypatch):
    monkeypatch.setattr(download, "PROGRESS_AFTER", 0.0)
    get("good")
    out, err = capsys.readouterr()
    assert ARCHIVE in out
    assert err == ""


# --- what is there already, and the disk ------------------------------------------------------------------------------


def test_an_existing_file_needs_no_network_and_a_wrong_one_is_replaced(get, server, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(DATA)
    assert get("good") == tmp_path / ARCHIVE
    assert server.log == []
    (tmp_path / ARCHIVE).write_bytes(b"something else")
    with pytest.raises(DownloadError, match=f"{ARCHIVE} is there, but its content is wrong"):
        get("missing")
    assert get("good").read_bytes() == DATA


def test_too_little_space_is_said_before_the_download(get, server, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(len(DATA), 1, len(DATA) - 1))
    with pytest.raises(
        DownloadError, match=f"cannot write {ARCHIVE} into {tmp_path} .*No space left .* {len(DATA):,} bytes"
    ):
        get("good")
    assert server.log == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_stops_at_once(get, server, monkeypatch, tmp_path, code):
    class Disk(io.FileIO):
        def write(self, data):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(download, "open", Disk, raising=False)
    with pytest.raises(DownloadError, match=f"cannot write .* into {tmp_path} .*{os.strerror(code)}"):
        get("good", "unsized")
    assert server.log == ["good"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot write"), only_process(tmp_path / "file" / "data", ARCHIVE):
        pass


# --- several processes ------------------------------------------------------------------------------------------------


def run_process(function, *args):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork, so that the replaced table reaches the other process")
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_download_once(source, server, tmp_path):
    source("leisurely")
    processes = [run_process(load_data, "cifar10", tmp_path) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.log == ["leisurely"]
    assert names_in(tmp_path) == [FOLDER, ARCHIVE]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_download_leaves_no_lock(source, server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WINDOW", 20.0)
    source("stalled")
    process = run_process(load_data, "cifar10", tmp_path)
    until = time.monotonic() + 30
    while "stalled" not in server.log and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.join(60)
    source("good")
    check_test_split(load_data("cifar10", tmp_path).test)  # would wait if the killed process still held the lock


def test_waiting_for_another_process_ends(get, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "GIVE_UP", 0.2)
    with only_process(tmp_path, ARCHIVE), pytest.raises(DownloadError, match=f"{ARCHIVE}: another process"):
        get("good")
    monkeypatch.setattr(download, "GIVE_UP", 20)
    assert get("good").read_bytes() == DATA


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_does_not_stop_a_download(get, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert get("good").read_bytes() == DATA


# --- the archive ------------------------------------------------------------------------------------------------------


def test_cifar_is_unpacked_once_and_then_read_offline(source, server, tmp_path):
    source("good")
    root = tmp_path / "new" / "data"
    for _ in range(2):
        data = load_data("cifar10", str(root))
        assert np.array_equal(data.train.images, PIXELS[:40])
        assert data.train.labels.tolist() == LABELS[:40]
        check_test_split(data.test)
        assert data.classes[3] == "cat"
        (root / ARCHIVE).unlink(missing_ok=True)
    check_test_split(load_data("cifar10", root, download=False, test_only=True).test)
    assert server.log == ["good"]
    assert names_in(root) == [FOLDER]


def test_an_archive_put_there_by_hand_needs_no_network(source, server, tmp_path):
    source("missing", hub="hub")
    (tmp_path / ARCHIVE).write_bytes(DATA)
    check_test_split(load_data("cifar10", tmp_path, test_only=True).test)
    assert server.log == []


def test_a_damaged_batch_is_never_unpickled_but_replaced(source, server, tmp_path, monkeypatch):
    source("good")
    load_data("cifar10", tmp_path)
    (tmp_path / FOLDER / "data_batch_1").write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("was unpickled"))
        with pytest.raises(FileNotFoundError, match=r"cifar10 is not in .* or not complete; allow the download"):
            load_data("cifar10", tmp_path, download=False)
    assert len(load_data("cifar10", tmp_path).train) == 40
    assert server.log == ["good"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_unpack_is_not_believed(source, tmp_path):
    source("missing")
    (tmp_path / ARCHIVE).write_bytes(DATA)

    def die_half_way():
        def write_bytes(path, content):
            with open(path, "wb") as file:
                file.write(content[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes = write_bytes
        load_data("cifar10", tmp_path)

    process = run_process(die_half_way)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(load_data("cifar10", tmp_path).train) == 40


def test_no_space_to_unpack(source, tmp_path, monkeypatch):
    source("missing")
    (tmp_path / ARCHIVE).write_bytes(DATA)

    def refuse(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(DownloadError, match=f"cannot write .* into {tmp_path} .*No space left"):
        load_data("cifar10", tmp_path)


def special(kind, size=0):
    """The header of a member that says this of itself, with nothing behind it."""
    info = tarfile.TarInfo(f"{FOLDER}/test_batch")
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return info


HOSTILE = {
    "parent": tar_of(("../evil", b"x"), (f"{FOLDER}/../../evil", b"x"), (f"{FOLDER}/..\\..\\evil", b"x")),
    "absolute": tar_of(("/tmp/ltpa-evil", b"x"), ("elsewhere/evil", b"x")),
    "symbolic link": tar_of(special(tarfile.SYMTYPE)),
    "hard link": tar_of(special(tarfile.LNKTYPE)),
    "device": tar_of(special(tarfile.CHRTYPE), special(tarfile.FIFOTYPE)),
    "bomb": tar_of(special(tarfile.REGTYPE, size=10**12)),
    "negative": tar_of(special(tarfile.REGTYPE, size=-512)),
    "long name": tar_of(special(tarfile.GNUTYPE_LONGNAME, size=10**9)),
    "long header": tar_of(special(tarfile.XHDTYPE, size=10**9)),
    "half": DATA[:HALF],
    "page": PAGE,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_not_even_opened(source, tmp_path, monkeypatch, kind):
    source("missing")
    root = tmp_path / "data"
    root.mkdir()
    (root / ARCHIVE).write_bytes(HOSTILE[kind])
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(DownloadError, match="its content is wrong"):
        load_data("cifar10", root)
    assert names_in(tmp_path) == ["data"]
    assert names_in(root) == [ARCHIVE]


@pytest.mark.parametrize("kind", ["parent", "absolute", "symbolic link", "hard link", "device"])
def test_nothing_is_written_elsewhere_even_if_the_hash_were_right(source, tmp_path, kind):
    source("missing", archive=HOSTILE[kind])
    root = tmp_path / "data"
    root.mkdir()
    (root / ARCHIVE).write_bytes(HOSTILE[kind])
    with pytest.raises(DownloadError, match="did not unpack as it should"):
        load_data("cifar10", root)
    assert names_in(tmp_path) == ["data"]
    assert list((root / FOLDER).iterdir()) == []
    assert not Path("/tmp/ltpa-evil").exists()


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_the_test_images_alone_come_from_the_hub(source, server, tmp_path):
    source("good", hub="hub")
    for _ in range(2):
        data = load_data("cifar10", tmp_path, test_only=True)
        check_test_split(data.test)
        assert (len(data.train), data.train.shape) == (0, (0, 3, 32, 32))
        assert data.mean == pytest.approx((PIXELS[40:] / 255).mean((0, 2, 3)).tolist())
    assert server.log == ["hub"]
    assert names_in(tmp_path) == [PARQUET]
    check_test_split(load_data("cifar10", tmp_path, test_only=True, download=False).test)
    assert len(load_data("cifar10", tmp_path, test_only=True, test_limit=10).test) == 10
    config = TrainConfig(dataset="cifar10", data_dir=tmp_path)
    assert len(data_for(config, test_only=True).test) == 20
    assert len(load_data("cifar10", tmp_path).train) == 40  # which needs the archive
    assert len(data_for(dataclasses.replace(config, validation=0.5), test_only=True).train) == 20


@pytest.mark.parametrize(
    ("hub", "reason"),
    [
        ("hub_of_another_hash", "names another hash"),
        ("hub_of_other_content", "SHA256 is wrong"),
        ("missing", "404"),
        ("broken", "500"),
        ("silent", "too slow|timed out"),
        ("dripping", "too slow|timed out"),
        ("circling", "redirect|302|too slow"),  # some versions of huggingface_hub go round for ever
        ("offline", "refused|offline"),
    ],
)
def test_mirrors_take_the_place_of_a_hub_that_fails(source, server, tmp_path, impatient, monkeypatch, hub, reason):
    impatient(hub)
    source("good", hub=hub)
    if hub == "offline":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    began = time.monotonic()
    check_test_split(load_data("cifar10", tmp_path, test_only=True).test)
    assert time.monotonic() - began < 15
    shutil.rmtree(tmp_path)
    monkeypatch.setitem(CIFAR, "cifar10", with_mirrors(CIFAR["cifar10"], server.url("missing")))
    with pytest.raises(DownloadError, match=rf"(?s)404.*The hub was tried before:.*({reason})"):
        load_data("cifar10", tmp_path, test_only=True)


def test_a_hub_file_of_other_classes_is_refused(source, server, tmp_path):
    source("good", hub="hub", labels=[0] * 20)
    check_test_split(load_data("cifar10", tmp_path, test_only=True).test)
    assert server.log == ["hub", "good"]


@pytest.mark.parametrize("module", ["pyarrow", "huggingface_hub"])
def test_mirrors_take_the_place_of_a_missing_library(source, server, tmp_path, monkeypatch, module):
    source("good", hub="hub")
    monkeypatch.setitem(sys.modules, module, None)
    check_test_split(load_data("cifar10", tmp_path, test_only=True).test)
    assert server.log == ["good"]


def test_the_tables():
    for source, count in ((CIFAR["cifar10"], 10), (CIFAR["cifar100"], 100)):
        assert len(source.classes) == count
        assert list(source.classes) == sorted(set(source.classes))
        assert all(source.archive.name in url for url in source.archive.urls)
        assert source.archive.urls[-1].startswith("https://www.cs.toronto.edu")
        assert source.parquet.urls[0].startswith("https://huggingface.co/datasets/uoft-cs/cifar")
    assert CIFAR["cifar10"].archive.size == 170_498_071
    assert [len(CIFAR["cifar10"].batches(split)) for split in ("train", "test")] == [5, 1]
    for file in (*(s.archive for s in CIFAR.values()), *(s.parquet for s in CIFAR.values()), *SVHN.values()):
        kind, digest = file.hash.split(":")
        assert len(bytes.fromhex(digest)) == {"md5": 16, "sha256": 32}[kind]


# --- SVHN, and what is not there --------------------------------------------------------------------------------------


def test_svhn(server, tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    digits = np.arange(20) % 10 + 1  # in the files, 10 is the digit 0
    for split in ("train", "test"):
        scipy_io.savemat(tmp_path / SVHN[split].name, {"X": pixels, "y": digits[:, None].astype(np.uint8)})
        content = (tmp_path / SVHN[split].name).read_bytes()
        file = RemoteFile(SVHN[split].name, f"md5:{md5_of(content)}", len(content), (server.url("missing"),))
        monkeypatch.setitem(SVHN, split, file)
    data = load_data("svhn", tmp_path)
    for part in (data.train, data.test):
        assert part.labels.tolist() == [digit % 10 for digit in digits]
        assert np.array_equal(part.images, pixels.transpose(3, 2, 0, 1))
        assert part.images.is_contiguous()
    assert data.classes == tuple("0123456789")
    (tmp_path / SVHN["train"].name).unlink()
    assert len(load_data("svhn", tmp_path, test_only=True).test) == 20
    with pytest.raises(DownloadError, match="404"):
        load_data("svhn", tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match="'svhn' needs scipy"):
        load_data("svhn", tmp_path, download=False)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
@pytest.mark.parametrize("root", [".", "nowhere", "file", "nul\0l"])
def test_missing_and_not_to_be_downloaded(name, root, tmp_path, monkeypatch):
    if name == "svhn":
        pytest.importorskip("scipy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for test_only in (False, True):
        with pytest.raises(FileNotFoundError, match=f"{name} is not in .*allow the download"):
            load_data(name, root, download=False, test_only=test_only)
    assert names_in(tmp_path) == ["file"]


def test_limits_and_sizes(source, tmp_path):
    source("good")
    loaded = load_data("cifar10", tmp_path, train_limit=20, test_limit=10, image_size=64)
    assert loaded.train.labels.bincount().tolist() == [2] * 10
    assert loaded.test.images.shape == (10, 3, 64, 64)
    # Interpolated between the centers: in each direction 3/4 of the nearest pixel and 1/4 of the next.
    small = load_data("cifar10", tmp_path, train_limit=20, test_limit=10).train
    assert torch.equal(small.labels, loaded.train.labels)
    values = small.images[0].double()
    near, far = values[:, :-1], values[:, 1:]
    rows = torch.stack([0.75 * near + 0.25 * far, 0.25 * near + 0.75 * far], dim=2).flatten(1, 2)
    near, far = rows[:, :, :-1], rows[:, :, 1:]
    expected = torch.stack([0.75 * near + 0.25 * far, 0.25 * near + 0.75 * far], dim=3).flatten(2, 3)
    assert (loaded.train.images[0, :, 1:-1, 1:-1].double() - expected).abs().max() <= 0.5 + 1e-4
