"""A workspace of its own for a test: the registry of this repository, and nothing that was run before."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from iar_study.config import TokenizerConfig
from iar_study.data.encoding import extract_codes
from iar_study.models.patch_vq import PatchVQ
from iar_study.storage import save_arrays
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


def encode_digits(folder: Path) -> dict[str, str]:
    """Encode the digits, each and its mirror image, and return the settings of a `smoke` study on these codes."""
    torch.manual_seed(0)
    config = TokenizerConfig(codebook_size=64, channels=8, patch=2)
    tokenizer = PatchVQ(config, 1).eval()
    arrays = {name: tensor.numpy() for name, tensor in tokenizer.state_dict().items()}
    save_arrays(folder / "tokenizer.safetensors", arrays, {"config": asdict(config), "channels": 1})
    extract_codes("digits", tokenizer, folder / "codes", augmentation="flip", batch=500)
    return {"data.name": f"codes:{folder / 'codes'}", "tokenizer.checkpoint": str(folder / "tokenizer.safetensors")}
