"""The processes that `torchrun` started, by the environment variables in which it tells each its place."""

from __future__ import annotations

import os

from iar_study.config import TrialConfig
from iar_study.errors import InputError


def n_processes() -> int:
    """Return how many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Return the place of this process among them, 0 for the first."""
    return int(os.environ.get("RANK", "0"))


def check_parallel(config: TrialConfig, processes: int) -> None:
    """Raise `InputError` unless `processes` can share the parts of a batch out evenly at this precision."""
    batch, part = config.train.batch_size, config.train.micro_batch or config.train.batch_size
    if batch % part:
        raise InputError(f"train.micro_batch = {part} does not divide train.batch_size = {batch}")
    if batch // part % processes:
        raise InputError(
            f"{processes} processes cannot share the {batch // part} parts of a batch out evenly: "
            f"train.batch_size = {batch}, train.micro_batch = {part}; choose a smaller train.micro_batch"
        )
    if config.compute.precision == "float16" and config.parallel.strategy == "fsdp":
        raise InputError("float16 scales the loss, which sharded gradients do not support; choose bfloat16")
