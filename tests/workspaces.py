"""Workspaces for tests: the registry of this repository, and nothing that was run before."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from iar_study.config import TokenizerConfig
from iar_study.data.encoding import extract_codes
from iar_study.evaluation.metrics import FIDELITY, SPATIAL, extractor_in
from iar_study.pipeline.workspace import Workspace
from iar_study.storage import save_arrays
from iar_study.tokenizers.patch_vq import PatchVQ

ROOT = Path(__file__).parents[1]

MEMBERS = ["classifier"] * 5 + ["components"]

BY_A_SET: dict[str, list[str]] = {
    **{family: ["classifier"] for family in FIDELITY if family not in SPATIAL},
    **{"fd": [*MEMBERS, "set"], "fd_codes": ["set"], "class_agreement": ["set"]},
}
"""Family -> which kinds of evaluators measure it on samples, where these are all of a set."""


def evaluators_in(keys: Iterable[str], count: int) -> dict[str, list[str]]:
    """Return the same of the keys of metrics; all that are of samples are of so many."""
    found: dict[str, list[str]] = {}
    for key in keys:
        if extractor := extractor_in(key):
            assert key.endswith(f"@{count}"), key
            assert re.fullmatch("[a-z]+(-[0-9a-f]{8})?", extractor), key  # several sets go by one name
            found.setdefault(key.partition("/")[0], []).append(extractor.partition("-")[0])
    return {family: sorted(kinds) for family, kinds in found.items()}


def make_workspace(folder: Path) -> Workspace:
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    return Workspace(folder)


def encode_digits(folder: Path) -> dict[str, str]:
    """Encode the digits, each and its mirror image, and return the settings of a `smoke` study on these codes."""
    torch.manual_seed(0)
    config = TokenizerConfig(codebook_size=64, channels=8, patch=2)
    tokenizer = PatchVQ(config, 1).eval()
    arrays = {name: tensor.numpy() for name, tensor in tokenizer.state_dict().items()}
    save_arrays(folder / "tokenizer.safetensors", arrays, {"config": asdict(config), "channels": 1})
    extract_codes("digits", tokenizer, folder / "codes", augmentation="flip", batch=500)
    return {"data.name": f"codes:{folder / 'codes'}", "tokenizer.checkpoint": str(folder / "tokenizer.safetensors")}
