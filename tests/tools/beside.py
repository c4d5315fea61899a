"""Other programs on the same cores: run as a script, this file trains a small network on two threads without an end."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

_OURS = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")  # what `import ltpa` may have set: other programs lack it


def beside(count: int, start: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
    """The same steps while `count` other programs train; closing the iterator ends them."""

    def steps() -> Iterator[None]:
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(other_program())
            yield from start()

    return steps


@contextmanager
def other_program() -> Iterator[subprocess.Popen]:
    """A program that trains until the end of the `with` block; it has taken a step when the block begins."""
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    command = [sys.executable, __file__]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as program:
        try:
            assert program.stdout is not None
            if not program.stdout.readline():
                raise OSError("the other program ended before its first step")
            yield program
        finally:
            program.kill()


def train_without_end() -> None:
    """Train in float32 on 32x32 pixels, 64 a step."""
    torch.set_num_threads(2)
    blocks = [
        [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        for channels, width in ((3, 32), (32, 64), (64, 64))
    ]
    network = nn.Sequential(*(layer for block in blocks for layer in block), nn.Flatten(), nn.Linear(1024, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images, labels = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))
    for step in range(10**9):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        if not step:
            print("training", flush=True)


if __name__ == "__main__":
    train_without_end()
