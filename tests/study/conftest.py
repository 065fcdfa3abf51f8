"""A workspace of its own for a test: the registry of this repository, and nothing that was run before."""

import shutil
from pathlib import Path

import pytest

from iar_study.study.workspace import Workspace

ROOT = Path(__file__).parents[2]


def make_workspace(folder: Path) -> Workspace:
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    return Workspace(folder)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return make_workspace(tmp_path)
