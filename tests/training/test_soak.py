"""A long run takes no more memory and no more files than a short one."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

from ltpa import fit, viz
from tests.tools.crash import tiny_config, tiny_data

EPOCHS, SETTLED = 300, 60
BOUND = 24 * 2**20  # bytes that the process may grow by, from epoch 60 to epoch 300


def resident():
    """Bytes in memory, and open files, of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_three_hundred_epochs_do_not_grow(tmp_path):
    """With snapshots and a checkpoint an epoch, and the learning curve drawn now and then."""
    seen = {}

    def look(run):
        if len(run.history) % 20 == 0:
            viz.to_png(viz.learning_curve(run.history, EPOCHS))
        if len(run.history) in (SETTLED, EPOCHS):
            seen[len(run.history)] = resident()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = fit(
            tiny_config(tmp_path / "run", epochs=EPOCHS, snapshots=2), tiny_data(), callbacks=[look], progress=False
        )
    finally:
        torch.set_num_threads(threads)
    assert len(run.history) == EPOCHS
    for epoch, (memory, files) in seen.items():
        print(f"epoch {epoch}: {memory / 2**20:.1f} MiB, {files} open files")
    assert seen[EPOCHS][0] - seen[SETTLED][0] < BOUND
    assert seen[EPOCHS][1] <= seen[SETTLED][1]
    assert not list((run.path / "checkpoints").glob("*"))
