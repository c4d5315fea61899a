"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The networks of the tests are too small to share out between threads: waiting for one another costs more."""
    torch.set_num_threads(1)
