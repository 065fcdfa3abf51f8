"""The processes that `torchrun` started, by the environment variables in which it tells each its place."""

from __future__ import annotations

import os


def n_processes() -> int:
    """Return how many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Return the place of this process among them, 0 for the first."""
    return int(os.environ.get("RANK", "0"))
