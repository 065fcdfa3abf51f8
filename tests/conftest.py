"""One thread for torch in every test: the same bits on every machine, and tests side by side do not slow each other."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
