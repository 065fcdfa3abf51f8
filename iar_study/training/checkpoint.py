"""Checkpoints of a training: weights, optimizer and running sums in one safetensors file, written atomically.

No random state is kept: the randomness of a step is derived from (seed, step), see `training.gpt`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iar_study.errors import InputError
from iar_study.storage import load_arrays, save_arrays


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write weights and optimizer moments, and `state` (JSON) beside them."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    save_arrays(path, {name: tensor.cpu().numpy() for name, tensor in tensors.items()}, {"state": state})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restore model and optimizer in place and return `state`; None, with a word, when there is none to use."""
    if not path.exists():
        return None
    try:
        arrays, metadata = load_arrays(path)
    except InputError as error:
        print(f"{error}; starting this trial over", file=sys.stderr)
        return None
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return metadata["state"]
