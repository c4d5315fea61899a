"""Downloads from one mirror after the other; a file counts only when its hash is right."""

import errno
import os
import queue
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import filelock
import pooch
from tqdm import tqdm

from ..progress import bar_file

WINDOW = 7.0  # seconds; a mirror slower than MIN_SPEED over a window is given up for the next
MIN_SPEED = 100_000.0  # bytes per second; lower it on a slow line
GIVE_UP = 1800.0  # seconds after which a download ends, whatever the mirrors do
PROGRESS_AFTER = 2.0  # seconds that a download must last to show a progress bar

Check = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file to download."""

    name: str  # in the data folder
    hash: str  # "md5:..." or "sha256:..."
    size: int  # bytes
    urls: tuple[str, ...]  # mirrors, the best first

    def is_in(self, folder: Path) -> bool:
        """Return whether the folder holds the file with the right content."""
        path, (kind, digest) = folder / self.name, self.hash.split(":")
        return os.path.isfile(path) and pooch.file_hash(str(path), alg=kind) == digest


class DownloadError(OSError):
    """Data could not be downloaded, stored or unpacked; the message says why and what to do."""


class _MirrorError(Exception):
    """One mirror failed: try the next."""


@contextmanager
def only_process(folder: Path, name: str) -> Iterator[None]:
    """Create the folder and lock `name` in it for one process at a time; turn disk errors into a DownloadError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f".{name}.lock", timeout=GIVE_UP)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            message = f"{folder / name}: another process has worked on it for {GIVE_UP:.0f} s; end it first"
            raise DownloadError(message) from error
        except (OSError, NotImplementedError):
            pass  # some network drives have no locks; the hash still guards the result
        try:
            yield
        finally:
            lock.release()
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot write {name} into {folder} ({error}): make room or choose another one") from error


def fetch(file: RemoteFile, folder: Path, check: Check | None = None) -> Path:
    """Return the path of a file in `folder`, downloading it if needed; call this within `only_process`.

    The environment variable LTPA_MIRROR is the address of a folder to try first. `check` is called with each address
    before the download; if it raises, the next mirror is tried.
    """
    path = folder / file.name
    if file.is_in(folder):
        return path
    if shutil.disk_usage(folder).free < file.size:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for its {file.size:,} bytes")
    pooch.get_logger().setLevel("WARNING")
    mirror, until = os.environ.get("LTPA_MIRROR"), time.monotonic() + GIVE_UP
    failures = ""
    for url in (*([f"{mirror.rstrip('/')}/{file.name}"] if mirror else []), *file.urls):
        download = partial(_download, size=file.size, until=until, check=check)
        try:
            return Path(pooch.retrieve(url, file.hash, fname=file.name, path=folder, downloader=download))
        except _MirrorError as error:
            failures += f"  {url}: {error}\n"
        except ValueError:  # pooch raises it for a wrong hash
            failures += f"  {url}: sent other content (its {file.hash.split(':')[0].upper()} is wrong)\n"
    wrong = f" ({path} is there, but its content is wrong)" if path.exists() else ""
    raise DownloadError(
        f"{file.name} could not be downloaded{wrong}. Tried:\n{failures}Ways out: try again later; or put the file "
        f"({file.hash}) into {folder} by hand; or set the environment variable LTPA_MIRROR to the address of a folder "
        'that has it; or use dataset="shapes", which needs no network.'
    )


def _download(url: str, path: str, _: object, *, size: int, until: float, check: Check | None) -> None:
    """Download a file for pooch; a thread receives it, so that a server that hangs or trickles is given up in time."""
    blocks: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_receive, args=(url, blocks, stop, check), daemon=True).start()
    name, options = Path(url.split("?")[0]).name, {"unit": "B", "unit_scale": True, "mininterval": 0.5}
    done, done_before, due = 0, 0, time.monotonic() + WINDOW
    try:
        with (
            tqdm(desc=name, total=size, delay=PROGRESS_AFTER, file=bar_file(), **options) as bar,
            open(path, "wb") as target,
        ):
            while done < size:
                if (now := time.monotonic()) > until:
                    raise _MirrorError(f"not finished, because {GIVE_UP:.0f} s are over")
                if now > due:
                    if (speed := (done - done_before) / WINDOW) < MIN_SPEED:
                        progress = f"{speed:,.0f} bytes/s after {done:,} of {size:,} bytes"
                        raise _MirrorError(f"too slow: {progress}, less than MIN_SPEED = {MIN_SPEED:,.0f}")
                    done_before, due = done, now + WINDOW
                try:
                    block = blocks.get(timeout=max(0.0, min(due, until) - now) + 0.01)
                except queue.Empty:
                    continue
                if isinstance(block, Exception):
                    raise _MirrorError(str(block) or type(block).__name__) from block
                if not block:
                    raise _MirrorError(f"ended after {done:,} of {size:,} bytes")
                target.write(block)
                done += len(block)
                bar.update(len(block))
    finally:
        stop.set()


def _receive(url: str, blocks: queue.SimpleQueue, stop: threading.Event, check: Check | None) -> None:
    """Queue the blocks that the server sends, then b"" or the error."""
    try:
        if check is not None:
            check(url)
        request = urllib.request.Request(url, headers={"User-Agent": "ltpa"})
        with urllib.request.urlopen(request, timeout=WINDOW) as response:
            while not stop.is_set() and (block := response.read1(1 << 18)):
                blocks.put(block)
        blocks.put(b"")
    except Exception as error:
        blocks.put(error)
