"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks as small as these run fastest on one thread, and float32 sums then come out alike in every run."""
    torch.set_num_threads(1)
