"""One thread for torch in every test: the same bits on every machine, and tests side by side do not slow each other."""

import pytest
import torch

from iar_study import storage


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def keeping_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a computation has so far is kept at every chance, and not about once a second."""
    monkeypatch.setattr(storage, "EVERY_S", 0.0)
    monkeypatch.setattr(storage, "SHARE", 0)
