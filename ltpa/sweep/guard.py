"""A process that ends a worker's kernels when the worker is gone, however it died; run as a script, without ltpa.

    python guard.py MARK

Its standard input is a pipe that the worker holds open. When that ends, every process with LTPA_SWEEP_WORKER=MARK in
its environment is interrupted, and killed five seconds later.
"""

import os
import signal
import sys
import time

import psutil

VARIABLE = "LTPA_SWEEP_WORKER"
GRACE = 5.0  # seconds


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that were started with this mark."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(VARIABLE) == mark:
                processes.append(process)
        except (psutil.Error, OSError):
            continue
    return processes


def end(mark: str) -> None:
    """Interrupt the processes with this mark, and kill those that are left after some seconds."""
    until = time.monotonic() + GRACE
    for process in marked(mark):
        try:
            process.send_signal(signal.SIGINT)
        except psutil.Error:
            continue
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end(sys.argv[1])
