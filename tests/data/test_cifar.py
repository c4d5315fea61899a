"""The downloader against a local server that misbehaves in every way seen in the wild."""

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import struct
import tarfile
import threading
import time
from collections import namedtuple
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ltpa.data import cifar as download
from ltpa.data.cifar import Archive, DownloadError, fetch, fetch_cifar, fetch_svhn, unpack

HOME = "cifar-10-batches-py"
NAME = "cifar-10-python.tar.gz"
FILES = {"data_batch_1": random.Random(1).randbytes(120_000), "batches.meta": b"meta" * 100}
PAGE = b"<!doctype html><html><body>Please log in</body></html>"


def md5_of(data):
    return hashlib.md5(data).hexdigest()


def tar_of(*members):
    """A .tar.gz of (name, content) and of ready-made TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):  # A mere header, as addfile refuses one that lies.
                tar.fileobj.write(member.tobuf())
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


DATA = tar_of(*((f"{HOME}/{name}", content) for name, content in FILES.items()))
MD5, SIZE = md5_of(DATA), len(DATA)
HALF = SIZE // 2


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how the server behaves."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        asked = self.headers.get("Range")
        self.server.log.append((kind, asked))
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        with contextlib.suppress(ConnectionError):
            getattr(self, kind)(start)

    def log_message(self, *_):
        pass

    def head(self, status=200, length=None, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_from(self, start, data=DATA):
        """An honest answer's head; the body is up to the caller."""
        more = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.head(206 if start else 200, len(data) - start, **more)

    def good(self, start):
        self.send_from(start)
        self.wfile.write(DATA[start:])

    def leisurely(self, start):
        time.sleep(0.5)
        self.good(start)

    def unsized(self, _):
        self.head()
        self.wfile.write(DATA)

    def no_range(self, _):
        self.head(200, SIZE)
        self.wfile.write(DATA)

    def bad_range(self, start):
        self.head(206 if start else 200, SIZE, Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}")
        self.wfile.write(DATA)

    def unsatisfiable(self, start):
        if start:
            self.head(416, len(PAGE), Content_Type="text/html")
            self.wfile.write(PAGE)
        else:
            self.good(start)

    def missing(self, _):
        self.head(404, 0)

    def page(self, _):
        self.head(200, len(PAGE), Content_Type="text/html; charset=utf-8")
        self.wfile.write(PAGE)

    def disguised_page(self, _):
        self.head(200, len(PAGE), Content_Type="application/gzip")
        self.wfile.write(PAGE)

    def short(self, start):
        self.send_from(start)
        self.wfile.write(DATA[start:HALF])

    def lying(self, _):
        self.head()
        self.wfile.write(DATA[:HALF])

    def wrong(self, start):
        data = bytes(SIZE)
        self.send_from(start, data)
        self.wfile.write(data[start:])

    def stalled(self, start):
        self.send_from(start)
        self.wfile.write(DATA[start:HALF])
        self.wfile.flush()
        self.server.stop.wait(20)

    def slow(self, start):
        self.send_from(start)
        for position in range(start, SIZE, 100):
            self.wfile.write(DATA[position : position + 100])
            if self.server.stop.wait(0.05):
                break

    def dripping(self, _):
        """Never quiet for long, and never done with its headers."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Patience: ")
        while not self.server.stop.wait(0.05):
            self.wfile.write(b"x")

    def circling(self, _):
        self.head(302, 0, Location=self.path)

    def reset(self, start):
        self.send_from(start)
        self.wfile.write(DATA[start : (start + SIZE) // 2])
        self.wfile.flush()
        time.sleep(0.2)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def flaky(self, start):
        (self.good if start else self.reset)(start)

    def moved(self, _):
        self.head(302, 0, Location=f"/good/{NAME}")


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.log, self.stop = [], threading.Event()

    def handle_error(self, *_):
        pass

    def url(self, kind):
        return f"http://127.0.0.1:{self.server_port}/{kind}/{NAME}"

    @property
    def kinds(self):
        return [kind for kind, _ in self.log]


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quiet_and_quick(monkeypatch):
    for name in ("LTPA_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "TIMEOUT", 60.0)
    monkeypatch.setattr(download, "SPEED_WINDOW", 0.6)
    monkeypatch.setattr(download, "MIN_SPEED", 5_000.0)


@pytest.fixture
def get(server, tmp_path):
    """Fetches the test archive from mirrors of the given kinds; one that holds :// is taken as it is."""

    def get(*kinds, size=SIZE):
        urls = [kind if "://" in kind else server.url(kind) for kind in kinds]
        return fetch(NAME, urls, tmp_path, MD5, size)

    return get


@pytest.fixture
def archives(monkeypatch, server):
    """Replaces the table of archives by the test archive."""

    def use(*kinds):
        files = {name: md5_of(content) for name, content in FILES.items()}
        archive = Archive(NAME, tuple(map(server.url, kinds)), MD5, SIZE, HOME, files)
        monkeypatch.setattr(download, "ARCHIVES", {"cifar10": archive})

    return use


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# The mirrors


def test_good_mirror_is_quiet(get, server, tmp_path, capsys):
    path = get("good", "missing")
    assert path == tmp_path / NAME
    assert path.read_bytes() == DATA
    assert server.log == [("good", None)]
    assert leftovers(tmp_path) == [NAME]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("size", [SIZE, None])
def test_server_that_names_no_length(get, size):
    assert get("unsized", size=size).read_bytes() == DATA


def test_redirect_is_followed_and_keeps_the_range(get, server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(DATA[:1000])
    assert get("moved").read_bytes() == DATA
    assert server.log == [("moved", "bytes=1000-"), ("good", "bytes=1000-")]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "answered 404"),
        ("page", "sent a web page"),
        ("disguised_page", f"has a file of {len(PAGE)} bytes, not {SIZE:,}"),
        ("short", f"ended after {HALF:,} of {SIZE:,} bytes"),
        ("lying", f"ended after {HALF:,} of {SIZE:,} bytes"),
        ("wrong", "sent something else"),
        ("reset", r"broke off after [\d,]+ bytes"),
        ("circling", "answered 302"),
        ("gopher://127.0.0.1/x", "not an address"),
        ("http://127.0.0.1:port/x", "nonnumeric port"),
        ("http://127.0.0.1:{}/x", "refused"),
    ],
)
def test_bad_mirror_is_left_for_the_next(get, tmp_path, kind, reason):
    kind = kind.format(free_port())
    assert get(kind, "good").read_bytes() == DATA
    (tmp_path / NAME).unlink()
    with pytest.raises(DownloadError, match=reason):
        get(kind)
    assert not (tmp_path / NAME).exists()


def test_lying_mirror_without_known_size(get):
    with pytest.raises(DownloadError, match=f"sent something else .MD5 {md5_of(DATA[:HALF])}, not {MD5}"):
        get("lying", size=None)
    assert get("lying", "good", size=None).read_bytes() == DATA


def test_stalled_mirror_is_left_and_its_bytes_are_kept(get, server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 1.5)
    began = time.monotonic()
    assert get("stalled", "good").read_bytes() == DATA
    assert time.monotonic() - began < 15  # The server holds on for 20 s.
    assert server.log == [("stalled", None), ("good", f"bytes={HALF}-")]


def test_mirror_that_trickles_its_headers_is_left(get, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ANSWER", 1.0)
    began = time.monotonic()
    assert get("dripping", "good").read_bytes() == DATA
    assert 1 <= time.monotonic() - began < 15  # It would go on for ever.
    (tmp_path / NAME).unlink()
    with pytest.raises(DownloadError, match=r"dripping.*no answer in time"):
        get("dripping")


def test_slow_mirror_is_left_and_its_bytes_are_kept(get, server):
    began = time.monotonic()
    assert get("slow", "good").read_bytes() == DATA
    assert time.monotonic() - began < 30  # The slow one alone would take a minute.
    assert server.kinds == ["slow", "good"]
    assert int(server.log[1][1].removeprefix("bytes=").removesuffix("-")) >= 100


def test_only_slow_mirrors(get, tmp_path):
    with pytest.raises(DownloadError, match=r"too slow: [\d,]+ bytes/s, less than MIN_SPEED = 5,000") as caught:
        get("slow", "slow")
    kept = (tmp_path / f"{NAME}.part").stat().st_size
    assert kept > 100
    assert f"{kept:,} bytes are kept" in str(caught.value)
    assert get("good").read_bytes() == DATA


def test_all_fail_lists_each_and_names_the_ways_out(get, server, tmp_path):
    refused = f"http://127.0.0.1:{free_port()}/x"
    with pytest.raises(DownloadError) as caught:
        get("missing", "page", refused, "wrong")
    assert isinstance(caught.value, OSError)
    lines = str(caught.value).splitlines()
    assert [line.strip().split(": ")[0] for line in lines[1:5]] == [
        server.url("missing"),
        server.url("page"),
        refused,
        server.url("wrong"),
    ]
    for hint in ('dataset="shapes"', "LTPA_MIRROR", str(tmp_path), MD5):
        assert hint in lines[-1]
    assert server.kinds == ["missing", "page", "wrong"]
    assert leftovers(tmp_path) == []


def test_ltpa_mirror_comes_first(get, server, monkeypatch):
    monkeypatch.setenv("LTPA_MIRROR", server.url("good").removesuffix(NAME))
    assert get("missing").read_bytes() == DATA
    assert server.kinds == ["good"]


def test_broken_ltpa_mirror_is_not_the_end(get, server, monkeypatch):
    monkeypatch.setenv("LTPA_MIRROR", "my-server/data")
    assert get("good").read_bytes() == DATA
    with pytest.raises(DownloadError, match=f"my-server/data/{NAME}: not an address"):
        fetch(NAME, [], get("good").parent / "elsewhere", MD5)


def test_time_is_bounded(get, server, monkeypatch):
    monkeypatch.setattr(download, "MIN_SPEED", 0.0)
    monkeypatch.setattr(download, "GIVE_UP", 0.5)
    with pytest.raises(DownloadError, match=r"(?s)not finished, because.*not tried, because"):
        get("slow", "good")
    assert server.kinds == ["slow"]


# Going on from what came before


@pytest.mark.parametrize("kinds", [("reset", "good"), ("flaky",)])
def test_reset_is_resumed_and_no_byte_comes_twice(get, server, monkeypatch, kinds):
    received = []
    original = HTTPResponse.read1

    def read1(self, *args):
        data = original(self, *args)
        received.append(len(data))
        return data

    monkeypatch.setattr(HTTPResponse, "read1", read1)
    assert get(*kinds).read_bytes() == DATA
    first, second = server.log
    assert first == (kinds[0], None)
    assert second[0] == kinds[-1]
    assert 0 < int(second[1].removeprefix("bytes=").removesuffix("-")) < SIZE
    assert sum(received) == SIZE


@pytest.mark.parametrize("kind", ["no_range", "bad_range", "unsatisfiable"])
def test_server_that_cannot_resume_starts_over(get, server, tmp_path, kind):
    (tmp_path / f"{NAME}.part").write_bytes(DATA[:1000])
    assert get(kind).read_bytes() == DATA
    assert server.log[0] == (kind, "bytes=1000-")
    assert server.log[1:] == ([] if kind == "no_range" else [(kind, None)])


def test_stale_part_is_dropped_after_one_try(get, server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 1000)
    assert get("good").read_bytes() == DATA
    assert server.log == [("good", "bytes=1000-"), ("good", None)]


def test_stale_part_and_a_wrong_mirror(get, server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="sent something else"):
        get("wrong")
    assert server.log == [("wrong", "bytes=1000-"), ("wrong", None)]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("part", [b"x" * SIZE, DATA + b"x"])
def test_part_that_is_too_long_is_dropped(get, server, tmp_path, part):
    (tmp_path / f"{NAME}.part").write_bytes(part)
    assert get("good").read_bytes() == DATA
    assert server.log == [("good", None)]


def test_complete_part_needs_no_network(get, server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(DATA)
    assert get("good").read_bytes() == DATA
    assert server.log == []


# What is there already, and the disk


def test_existing_file_needs_neither_network_nor_writing(get, server, tmp_path, monkeypatch):
    (tmp_path / NAME).write_bytes(DATA)
    monkeypatch.setattr(Path, "mkdir", None)
    assert get("good") == tmp_path / NAME
    assert server.log == []
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_wrong_file_is_named_and_set_aside(get, tmp_path):
    for number, content in enumerate([b"first", b"second"]):
        (tmp_path / NAME).write_bytes(content)
        with pytest.warns(UserWarning, match=f"{NAME} is not what it should be .*{NAME}.bad{number or ''}"):
            assert get("good").read_bytes() == DATA
    assert (tmp_path / f"{NAME}.bad").read_bytes() == b"first"
    assert (tmp_path / f"{NAME}.bad1").read_bytes() == b"second"


def test_too_little_space_is_said_before_the_download(get, server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(SIZE, 1, SIZE - 1))
    with pytest.raises(
        DownloadError, match=f"No space left in {re.escape(str(tmp_path))} .*{NAME}: {SIZE:,} bytes; free: {SIZE - 1:,}"
    ):
        get("good")
    assert server.log == []
    (tmp_path / f"{NAME}.part").write_bytes(DATA[:1])
    assert get("good").read_bytes() == DATA


@pytest.fixture
def failing_open(monkeypatch):
    """Lets `open` for writing fail for names that end in `suffix`: at once, or once `limit` bytes are written."""

    def use(code, suffix, limit=None):
        def fake(path, mode):
            if "r" in mode or not str(path).endswith(suffix):
                return open(path, mode)
            if limit is None:
                raise OSError(code, os.strerror(code))
            return LimitedFile(path, mode)

        class LimitedFile(io.FileIO):
            def write(self, data):
                if self.tell() + len(data) > limit:
                    super().write(data[: limit - self.tell()])
                    raise OSError(code, os.strerror(code))
                return super().write(data)

        monkeypatch.setattr(download, "open", fake, raising=False)

    return use


def test_disk_that_fills_up_stops_at_once(get, server, tmp_path, failing_open):
    failing_open(errno.ENOSPC, ".part", limit=500)
    with pytest.raises(DownloadError, match=f"No space left in {re.escape(str(tmp_path))} .*{SIZE:,} bytes"):
        get("good", "unsized")
    assert server.kinds == ["good"]
    assert (tmp_path / f"{NAME}.part").read_bytes() == DATA[:500]


@pytest.mark.parametrize("suffix", [".lock", ".part"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_read_only_folder(get, tmp_path, failing_open, suffix, code):
    failing_open(code, suffix)
    with pytest.raises(
        DownloadError, match=rf"Cannot write into {re.escape(str(tmp_path))} .*{os.strerror(code)}.*Choose a folder"
    ):
        get("good")


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="Cannot write into"):
        fetch(NAME, [], tmp_path / "file" / "data", MD5)


def test_progress_bar_only_for_long_downloads(get, capsys, monkeypatch):
    monkeypatch.setattr(download, "PROGRESS_AFTER", 0.0)
    get("good")
    out, err = capsys.readouterr()
    assert NAME in out
    assert err == ""


# Several processes


def run_process(function, *args):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork, so that the replaced table reaches the other process")
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_download_once(archives, server, tmp_path):
    archives("leisurely")
    processes = [run_process(fetch_cifar, "cifar10", tmp_path) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.log == [("leisurely", None)]
    assert leftovers(tmp_path) == [HOME, NAME]
    assert {path.name: path.read_bytes() for path in (tmp_path / HOME).iterdir()} == FILES


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_download_leaves_bytes_but_no_lock(archives, server, tmp_path):
    archives("stalled")
    process = run_process(fetch_cifar, "cifar10", tmp_path)
    part = tmp_path / f"{NAME}.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 1000)
    process.kill()
    process.join(60)
    archives("good")
    fetch_cifar("cifar10", tmp_path)  # Would wait for GIVE_UP if the killed process still held the lock.
    kept = int(server.log[-1][1].removeprefix("bytes=").removesuffix("-"))
    assert server.kinds == ["stalled", "good"]
    assert 1000 < kept <= HALF


def test_waiting_for_another_process_ends(get, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "GIVE_UP", 0.3)
    with (
        download._sole_writer(tmp_path / NAME, SIZE),
        pytest.raises(DownloadError, match=f"{NAME}: another process has been at it"),
    ):
        get("good")
    assert get("good").read_bytes() == DATA


def test_file_system_without_locks_does_not_stop_a_download(get, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert get("good").read_bytes() == DATA


# CIFAR and SVHN


def test_fetch_cifar_unpacks_and_is_then_offline(archives, server, tmp_path):
    archives("good")
    root = tmp_path / "new" / "data"
    assert fetch_cifar("cifar10", str(root)) == root
    assert {path.name: path.read_bytes() for path in (root / HOME).iterdir()} == FILES
    (root / NAME).unlink()
    assert fetch_cifar("cifar10", root) == root
    assert server.kinds == ["good"]
    assert leftovers(root) == [HOME]


def test_hand_put_archive_needs_no_network(archives, server, tmp_path):
    archives("missing")
    (tmp_path / NAME).write_bytes(DATA)
    fetch_cifar("cifar10", tmp_path)
    assert server.log == []
    assert leftovers(tmp_path) == [HOME, NAME]


def test_damaged_folder_is_set_aside(archives, tmp_path):
    archives("good")
    fetch_cifar("cifar10", tmp_path)
    (tmp_path / HOME / "data_batch_1").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=f"kept as {HOME}.bad"):
        fetch_cifar("cifar10", tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / HOME).iterdir()} == FILES
    assert (tmp_path / f"{HOME}.bad" / "data_batch_1").read_bytes() == b"damaged"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_unpack_is_not_believed(archives, tmp_path):
    archives("missing")
    (tmp_path / NAME).write_bytes(DATA)

    def die_half_way():
        original = tarfile.TarFile.makefile

        def makefile(self, member, path):
            original(self, member, path)
            os.kill(os.getpid(), signal.SIGKILL)

        tarfile.TarFile.makefile = makefile
        fetch_cifar("cifar10", tmp_path)

    process = run_process(die_half_way)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert leftovers(tmp_path) == [f".{HOME}.unpacking", NAME]
    (tmp_path / f".{HOME}.unpacking" / HOME / "stale").write_text("from an older archive")
    fetch_cifar("cifar10", tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / HOME).iterdir()} == FILES
    assert leftovers(tmp_path) == [HOME, NAME]


def test_no_space_to_unpack(archives, tmp_path, monkeypatch):
    archives("good")
    (tmp_path / NAME).write_bytes(DATA)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(SIZE, 1, 1000))
    total = sum(map(len, FILES.values()))
    with pytest.raises(
        DownloadError, match=f"No space left in {re.escape(str(tmp_path))} .unpacking takes {total:,} bytes"
    ):
        fetch_cifar("cifar10", tmp_path)
    assert leftovers(tmp_path) == [NAME]


def test_fetch_svhn(server, tmp_path, monkeypatch):
    files = {split: Archive(f"{split}_32x32.mat", (server.url("good"),), MD5, SIZE) for split in ("train", "test")}
    monkeypatch.setattr(download, "ARCHIVES", {f"svhn-{split}": archive for split, archive in files.items()})
    assert fetch_svhn(tmp_path, splits=("test",)) == tmp_path
    assert leftovers(tmp_path) == ["test_32x32.mat"]
    fetch_svhn(tmp_path)
    assert (tmp_path / "train_32x32.mat").read_bytes() == DATA
    assert server.kinds == ["good", "good"]


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match=r"'mnist'.*allowed are 'cifar10', 'cifar100'"):
        fetch_cifar("mnist", tmp_path)
    with pytest.raises(ValueError, match="'extra'"):
        fetch_svhn(tmp_path, splits=("train", "extra"))
    assert leftovers(tmp_path) == []


def test_real_table():
    cifar10, cifar100 = download.ARCHIVES["cifar10"], download.ARCHIVES["cifar100"]
    assert (cifar10.md5, cifar10.size) == ("c58f30108f718f92721af3b95e74349a", 170_498_071)
    assert (cifar10.folder, len(cifar10.files)) == (HOME, 7)
    assert (cifar100.md5, cifar100.size) == ("eb9058c3a382ffc7106e4002c42a8d85", 169_001_437)
    assert set(cifar100.files) == {"train", "test", "meta"}
    for archive in download.ARCHIVES.values():
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in [archive.md5, *archive.files.values()])
        assert all(archive.filename in url for url in archive.urls)


# Hostile archives


def special(kind, size=0):
    """The header of a member that says this of itself, with nothing behind it."""
    info = tarfile.TarInfo(f"{HOME}/x")
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (tar_of(("../evil", b"x")), "not inside"),
        (tar_of((f"{HOME}/../../evil", b"x")), "not inside"),
        (tar_of((f"{HOME}/..\\..\\evil", b"x")), "not inside"),
        (tar_of(("/tmp/evil", b"x")), "not inside"),
        (tar_of(("elsewhere/evil", b"x")), "not inside"),
        (tar_of(special(tarfile.SYMTYPE)), "link or a device"),
        (tar_of(special(tarfile.LNKTYPE)), "link or a device"),
        (tar_of(special(tarfile.CHRTYPE)), "link or a device"),
        (tar_of(special(tarfile.FIFOTYPE)), "link or a device"),
        (tar_of((f"{HOME}/bomb", bytes(300_000))), "more than 200,000 bytes"),
        (tar_of(special(tarfile.REGTYPE, size=10**12)), "more than 200,000 bytes"),  # Reading on would find it damaged.
        (tar_of(special(tarfile.REGTYPE, size=-512)), "more than 200,000 bytes"),  # Python read such a header for ever.
        (tar_of(special(tarfile.GNUTYPE_LONGNAME, size=10**9)), "a header of more than"),  # It is read in one go.
        (tar_of(special(tarfile.XHDTYPE, size=10**9)), "a header of more than"),
        (tar_of(*((f"{HOME}/{number}", b"") for number in range(31))), "or 30 files"),
        (DATA[:HALF], "is damaged"),
        (PAGE, "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_hostile_archive_leaves_nothing(tmp_path, monkeypatch, archive, reason):
    monkeypatch.setattr(download, "MAX_MEMBERS", 30)
    root = tmp_path / "data"
    root.mkdir()
    (root / NAME).write_bytes(archive)
    with pytest.raises(DownloadError, match=reason):
        unpack(root / NAME, root / HOME, max_bytes=200_000)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("data"), Path("data") / NAME]


def test_unpack_does_not_replace(tmp_path):
    (tmp_path / NAME).write_bytes(DATA)
    assert unpack(tmp_path / NAME, tmp_path / HOME, max_bytes=10**6) == tmp_path / HOME
    with pytest.raises(DownloadError, match="exists already"):
        unpack(tmp_path / NAME, tmp_path / HOME, max_bytes=10**6)
