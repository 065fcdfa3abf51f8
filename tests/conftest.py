"""One thread for torch in every test: the same bits everywhere, and tests side by side do not slow each other."""

from pathlib import Path

import pytest
import torch

from iar_study import storage
from iar_study.evaluation.metrics import BUILT_IN, FIDELITY
from iar_study.pipeline.workspace import Workspace
from tests.workspaces import make_workspace


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_metrics_are_forgotten():
    """What a test's own part of the kind metric is called is known in its process alone, and until the test ends."""
    yield
    for family in [family for family in FIDELITY if family not in BUILT_IN]:
        del FIDELITY[family]


@pytest.fixture
def keeping_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a computation has so far is kept at every chance, and not about once a second."""
    monkeypatch.setattr(storage, "EVERY_S", 0.0)
    monkeypatch.setattr(storage, "SHARE", 0)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return make_workspace(tmp_path)
