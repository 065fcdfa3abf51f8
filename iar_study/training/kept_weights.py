"""Where a training keeps weights, known without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def weights_file(folder: Path, step: int) -> Path:
    """Return where a training keeps the weights that it had after so many steps."""
    return folder / f"weights-{step:09d}.safetensors"


def lacking(folder: Path, steps: Iterable[int]) -> list[int]:
    """Return of these steps those whose weights are not there."""
    return [step for step in steps if not weights_file(folder, step).exists()]
