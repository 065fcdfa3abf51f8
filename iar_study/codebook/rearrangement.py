"""A new order of the codes in which every cluster is contiguous: the permutation and the cluster boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iar_study.errors import InputError


@dataclass(frozen=True)
class Rearrangement:
    """A permutation of the codes and the boundaries of the clusters in the new order.

    Attributes
    ----------
    permutation : int64 (N,), `permutation[old] = new`.
    boundaries : int64 (n + 1,), 0 = b_0 < b_1 < ... < b_n = N; cluster j holds the new indices [b_j, b_{j+1}).

    >>> r = Rearrangement.from_labels(np.array([1, 0, 1, 0]))
    >>> r.permutation, r.boundaries
    (array([2, 0, 3, 1]), array([0, 2, 4]))
    >>> r.rows(np.array([10, 11, 12, 13]))
    array([11, 13, 10, 12])
    """

    permutation: np.ndarray
    boundaries: np.ndarray

    def __post_init__(self) -> None:
        size = len(self.permutation)
        if not np.array_equal(np.sort(self.permutation), np.arange(size)):
            raise InputError(f"not a permutation of 0 ... {size - 1}")
        if self.boundaries[0] != 0 or self.boundaries[-1] != size or (np.diff(self.boundaries) <= 0).any():
            raise InputError(f"cluster boundaries must rise from 0 to {size}")

    @classmethod
    def from_labels(cls, labels: np.ndarray) -> Rearrangement:
        """Put cluster 0's codes first, then cluster 1's, ...; inside a cluster the old order is kept."""
        order = np.argsort(labels, kind="stable")  # order[new] = old
        permutation = np.empty_like(order)
        permutation[order] = np.arange(len(order))
        return cls(permutation, np.concatenate([[0], np.cumsum(np.bincount(labels))]))

    @classmethod
    def identity(cls, size: int) -> Rearrangement:
        """The original order, in one cluster: no rearrangement at all."""
        return cls(np.arange(size), np.array([0, size]))

    @property
    def order(self) -> np.ndarray:
        """The inverse permutation, int64 (N,): `order[new] = old`."""
        return np.argsort(self.permutation)

    @property
    def labels(self) -> np.ndarray:
        """The cluster of every code by its *old* index, int64 (N,)."""
        sizes = np.diff(self.boundaries)
        return np.repeat(np.arange(len(sizes)), sizes)[self.permutation]

    def tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Translate tokens (any shape) from the old order to the new."""
        return self.permutation[tokens].astype(tokens.dtype)

    def original_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Translate tokens (any shape) from the new order back to the old."""
        return self.order[tokens].astype(tokens.dtype)

    def rows(self, table: np.ndarray) -> np.ndarray:
        """Reorder the rows of a table indexed by code (codebook, embedding): row `new` is old row `order[new]`."""
        return table[self.order]
