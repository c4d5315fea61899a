"""Notebook kernels that start at once: forks of a process that has imported what takes seconds. On Linux only.

    python forks.py SOCKET MODULE ARGUMENT ...

does what `python -m MODULE ARGUMENT ...` does. `command()` returns the beginning of it, and a kernel spec can name it.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# Not the modules of ltpa below the root: a notebook has to import what it uses.
PRELOADED = ("ltpa", "torchvision", "captum.attr", "sklearn.linear_model", "skimage.data", "scipy.io", "ipywidgets")
PRELOADED += ("IPython.display", "ipykernel.kernelapp", "matplotlib.figure", "papermill.cli", "pytest", "nbformat")


@functools.cache
def command(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """Start the process that forks, once; return the command that takes the place of `python -m`."""
    folder = tempfile.TemporaryDirectory(prefix="ltpa-forks-")
    own = [sys.executable, __file__, str(Path(folder.name, "socket"))]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, **dict(environment)}}
    server = subprocess.Popen(own, **options)
    assert server.stdout.readline() == b"ready\n"
    atexit.register(lambda: (server.stdin.close(), server.wait(), folder.cleanup()))
    return own


def serve(address: str) -> None:
    """Fork for every connection, until standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection = server.accept()[0]
            if os.fork() == 0:
                server.close()
                _become(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                    pass


def _become(connection: socket.socket) -> None:
    """Run the module that the other side names, with its files, folder and environment."""
    request, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
    wanted, parent = json.loads(request), os.getppid()
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    sys.argv[:] = wanted["arguments"]

    def follow() -> None:
        while os.getppid() == parent and not select.select([connection], [], [], 1)[0]:
            pass
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    status: object = 1
    try:
        runpy.run_module(wanted["arguments"][0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([status if isinstance(status, int) else int(status is not None)]))
        os._exit(0)


def ask(address: str, arguments: list[str]) -> int:
    """Have a module run in a fork, and return its exit status."""
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        return (connection.recv(1) or b"\x01")[0]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
