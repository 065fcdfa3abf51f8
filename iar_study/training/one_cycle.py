"""The loop of the two short trainings, of the tokenizer and of the classifier: kept on the way, to the bit.

Both take AdamW and a one-cycle learning rate on one CPU, and draw from torch's own random state, which is kept with the
weights: a training that was killed goes on from its newest checkpoint as if nothing had been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from iar_study.config import ClassifierConfig, TokenizerConfig
from iar_study.errors import InputError
from iar_study.training.checkpoint import Checkpoints, CheckpointTensors

REPORT_EVERY = 20
"""Steps between two calls of `progress`."""

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, detail)."""


def train_one_cycle(
    what: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor],
    config: TokenizerConfig | ClassifierConfig,
    *,
    rise: float,
    after: Callable[[int], None] = lambda done: None,
    more: Mapping[str, Tensor] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train `model` in place.

    Parameters
    ----------
    what : is trained, for messages; its learning rate is the setting WHAT.lr.
    loss_of : 0-based step -> the loss, to be minimised.
    config : tells steps and rate; checkpoints of another one are refused.
    rise : share of the steps in which the rate rises; it then falls to nearly 0.
    after : called with the number of steps done, once the step is taken.
    more : tensors that the functions change in place, beside the model's.
    folder : keeps checkpoints, and is the caller's to remove; without it, nothing is kept.

    Raises
    ------
    InputError : the loss is no longer finite.
    """
    steps = config.steps
    schedule = OneCycleLR(optimizer, config.lr, total_steps=steps, pct_start=rise, cycle_momentum=False)
    checkpoints = Checkpoints(folder, asdict(config)) if folder else None
    found = checkpoints.newest() if checkpoints else None
    first = _restore(*found, model, optimizer, schedule, more or {}) if found else 0
    for step in range(first, steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        done = step + 1
        after(done)
        if done % REPORT_EVERY == 0 or done == steps:
            if not math.isfinite(float(loss.detach())):
                raise InputError(f"the {what}'s loss is not finite at step {done}; lower {what}.lr")
            if progress:
                progress(done, steps, f"loss {float(loss.detach()):.4f}")
        if checkpoints and checkpoints.due.now():
            tensors = _tensors(model, optimizer, more or {})
            checkpoints.save(done, tensors, {"step": done, "schedule": schedule.state_dict()})


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer, more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all that the next step depends on, by name."""
    found = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, parameter in enumerate(model.parameters()):
        found |= {f"optimizer.{index}.{key}": value for key, value in optimizer.state[parameter].items()}
    found |= {f"more.{name}": tensor for name, tensor in more.items()}
    return {name: tensor.contiguous() for name, tensor in found.items()} | {"random": torch.get_rng_state()}


@torch.no_grad()
def _restore(
    path: Path,
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: OneCycleLR,
    more: Mapping[str, Tensor],
) -> int:
    """Put everything back in its place; return the number of steps done."""
    tensors = CheckpointTensors(path)
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[f"model.{name}"])
    for name, tensor in more.items():
        tensor.copy_(tensors[f"more.{name}"])
    for index, parameter in enumerate(model.parameters()):
        start = f"optimizer.{index}."
        kept = [name for name in tensors.names if name.startswith(start)]
        optimizer.state[parameter] = {name.removeprefix(start): tensors[name] for name in kept}
    schedule.load_state_dict(dict(state["schedule"]))
    # The schedule restores its own counters alone; the next step reads the rate from the optimizer.
    for group, rate in zip(optimizer.param_groups, state["schedule"]["_last_lr"], strict=True):
        group["lr"] = rate
    torch.set_rng_state(tensors["random"])
    return int(state["step"])
