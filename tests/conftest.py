"""What all tests share."""

import os

import pytest
import torch

# Tests never reach for a hub; read when the hub's client is imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks as small as these run fastest on one thread, and float32 sums then come out alike in every run."""
    torch.set_num_threads(1)
