"""Orders of vectors in which neighbours are similar: for the codes inside a cluster, and for the clusters.

The paper wants an order of the codes with short steps, a shortest Hamiltonian path; clustering only says which codes
belong together. The cluster loss does not see the order inside a cluster, so these matter to analysis, to an ablation
of the order, and to anything else that takes near indices for near codes.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from iar_study import parts
from iar_study.codebook.kernels import TABLE64, int64, kernel, part, void
from iar_study.codebook.norms import squared_distances, within_range
from iar_study.errors import InputError

ORDERINGS = parts.names("order")

LARGEST_SPECTRAL = 8192
"""Vectors whose similarity matrix is still decomposed in a minute or two."""


def order_vectors(vectors: np.ndarray, ordering: str) -> np.ndarray:
    """Return an order of `vectors`, float (m, d), as int64 (m,): `order[new] = old`.

    ordering : one of `ORDERINGS`, or a part of one's own, `FILE.py:NAME`. Raises `InputError` for an unknown one, or
    one that returns no order.
    """
    order = np.asarray(parts.load("order", ordering)(within_range(np.ascontiguousarray(vectors, dtype=np.float64))))
    if order.shape != (len(vectors),) or not np.array_equal(np.sort(order), np.arange(len(vectors))):
        raise InputError(f"order {ordering!r} is to return each of 0 ... {len(vectors) - 1} once")
    return order.astype(np.int64)


def _none(vectors: np.ndarray) -> np.ndarray:
    """The order they have."""
    return np.arange(len(vectors))


def _chain(vectors: np.ndarray) -> np.ndarray:
    """A chain of nearest neighbours from the middle outwards, as in the paper's released code."""
    return _grow_chain(vectors, int(np.square(vectors - vectors.mean(0)).sum(1).argmin()))


def _spectral(vectors: np.ndarray) -> np.ndarray:
    """Sort by the Fiedler vector of a Gaussian similarity graph: the smoothest order in the least-squares sense."""
    if len(vectors) < 3:
        return np.arange(len(vectors))
    if len(vectors) > LARGEST_SPECTRAL:
        raise InputError(f"spectral order of {len(vectors)} vectors takes too long; at most {LARGEST_SPECTRAL}")
    distances = squared_distances(vectors)
    # Of vectors that are all the same the kernel's width, below, would be 0.
    if not distances.any():
        return np.arange(len(vectors))
    # The mean as the kernel's width: the order then does not depend on the scale of the vectors.
    similarity = np.exp(-distances / distances.mean())
    laplacian = np.diag(similarity.sum(1)) - similarity
    fiedler = eigh(laplacian, subset_by_index=[1, 1])[1][:, 0]
    return np.argsort(fiedler * np.sign(fiedler[np.abs(fiedler).argmax()]), kind="stable")  # a sign of its own


def _path(vectors: np.ndarray) -> np.ndarray:
    """A short path through all: the chain, improved by 2-opt until no reversal of a stretch shortens it."""
    order = _chain(vectors)
    _two_opt(vectors, order)
    return order


@part
def _distance(vectors: np.ndarray, i: int, j: int) -> float:
    total = 0.0
    for k in range(vectors.shape[1]):
        total += (vectors[i, k] - vectors[j, k]) ** 2
    return np.sqrt(total)


@kernel(int64[::1](TABLE64, int64))
def _grow_chain(vectors: np.ndarray, middle: int) -> np.ndarray:
    """Append the nearest vector that is left to the left end, then to the right end, in turn."""
    m = len(vectors)
    placed = np.zeros(m, np.bool_)
    placed[middle] = True
    chain = np.empty(2 * m + 1, np.int64)
    left = right = m
    chain[m] = middle
    for step in range(m - 1):
        end = chain[left] if step % 2 == 0 else chain[right]
        best, shortest = -1, np.inf
        for i in range(m):
            if not placed[i]:
                d = _distance(vectors, end, i)
                if best < 0 or d < shortest:
                    best, shortest = i, d
        placed[best] = True
        if step % 2 == 0:
            left -= 1
            chain[left] = best
        else:
            right += 1
            chain[right] = best
    return chain[left : right + 1].copy()


@kernel(void(TABLE64, int64[::1]))
def _two_opt(vectors: np.ndarray, order: np.ndarray) -> None:
    """Reverse stretches of the path `order` in place for as long as that shortens it."""
    m = len(order)
    improved = True
    while improved:
        improved = False
        for i in range(m - 1):
            for j in range(i + 1, m):
                before = after = 0.0
                if i > 0:
                    before += _distance(vectors, order[i - 1], order[i])
                    after += _distance(vectors, order[i - 1], order[j])
                if j < m - 1:
                    before += _distance(vectors, order[j], order[j + 1])
                    after += _distance(vectors, order[i], order[j + 1])
                # By more than rounding, or two paths of equal length could replace each other for ever.
                if after < before - 1e-12 * (before + after):
                    order[i : j + 1] = order[i : j + 1][::-1].copy()
                    improved = True
