"""Which images a training step reads, in which augmentation: a pure function of (seed, step).

So a resumed run needs no sampler state, and the number of processes and of loading workers cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from iar_study.codebook import Rearrangement
from iar_study.data.codes import Codes


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


# Few are kept: ImageNet's takes 10 MB, and a batch seldom touches more than two epochs.
@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.setflags(write=False)  # shared by all later calls
    return order


class TokenBatches(Dataset[tuple[Tensor, Tensor]]):
    """The batch of every training step: tokens, int64 (images, T), in rearranged order, and labels, int64 (images,).

    Parameters
    ----------
    codes : the tokens in their original order; of each image one augmentation is drawn from (seed, step).
    share : the images of a batch that this process trains on.
    """

    def __init__(
        self, codes: Codes, rearrangement: Rearrangement, batch_size: int, seed: int, share: slice = slice(None)
    ) -> None:
        self.codes, self.rearrangement = codes, rearrangement
        self.batch_size, self.seed, self.share = batch_size, seed, share

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        images, augmentations, _ = self.codes.train_tokens.shape
        rows = batch_indices(images, self.batch_size, step, self.seed)[self.share]
        drawn: np.ndarray | int = 0
        if augmentations > 1:
            # A stream of its own: (seed, step) alone seeds the training's noise, (seed, epoch) the order of the images.
            stream = np.random.default_rng([self.seed, step, 1])
            drawn = stream.integers(augmentations, size=self.batch_size)[self.share]
        tokens = self.rearrangement.tokens(self.codes.train_tokens[rows, drawn])
        return torch.from_numpy(tokens).long(), torch.from_numpy(self.codes.train_labels[rows])

    def from_step(self, start: int, stop: int, workers: int = 0, pin: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of steps start ... stop - 1; with `workers`, other processes read them ahead."""
        steps = range(start, stop)
        if not workers:
            return map(self.__getitem__, steps)
        # By fork: any other way would send them a copy of all the codes.
        loader = DataLoader(
            self, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin, multiprocessing_context="fork"
        )
        return iter(loader)
