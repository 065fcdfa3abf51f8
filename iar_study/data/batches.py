"""Which images a training step reads: a pure function of the step, so a resumed run needs no sampler state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Return the indices of training step `step` (0-based), int64 (batch_size,), each in [0, n).

    Every epoch is a fresh permutation of range(n) drawn from (seed, epoch). Batches run on across the border of two
    epochs, and `batch_size` may exceed `n`. Raises `ValueError` for n or batch_size below 1, or a negative step.

    >>> sorted(int(i) for step in range(3) for i in batch_indices(6, 2, step, seed=0))
    [0, 1, 2, 3, 4, 5]
    """
    if n < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"no batch of {batch_size} out of {n} images at step {step}")
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    return np.concatenate([_permutation(n, seed, e)[max(start - e * n, 0) : stop - e * n] for e in epochs])


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.setflags(write=False)  # shared by all later calls
    return order
