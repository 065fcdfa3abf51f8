"""Lengths of vectors, also of those too large or small to be squared, and distances.

Vectors are scaled by a power of two before they are squared, which is exact: for all that can be squared as they are,
the results are those of the plain formula, to the bit.
"""

from __future__ import annotations

import numpy as np


def power_of_two(vectors: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the power of two just above the largest magnitude, along `axis` or of all (the axes stay); 1 for zeros.

    Of subnormal or the largest numbers, one near to it: it and its inverse are numbers of the vectors' type.
    """
    largest = np.maximum(vectors.max(axis, keepdims=True, initial=0), -vectors.min(axis, keepdims=True, initial=0))
    # At 3/4 of the exponents the inverse is still a normal number, and what remains after division can be squared.
    most = np.finfo(vectors.dtype).maxexp * 3 // 4
    return np.ldexp(vectors.dtype.type(1), np.clip(np.frexp(largest)[1], -most, most))


def row_norms(vectors: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm of every row, (N,)."""
    scale = power_of_two(vectors, 1)
    return np.linalg.norm(vectors / scale, axis=1) * scale[:, 0]


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return the rows at length 1; a zero row stays zero."""
    scaled = vectors / power_of_two(vectors, 1)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(norms > 0, norms, 1)


def within_range(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors as they are, or divided by `power_of_two` where sums of squared distances leave their type."""
    # A third of the exponents: a square takes two thirds, and one is left for sums over dimensions and points.
    scale, limit = power_of_two(vectors), np.ldexp(1.0, np.finfo(vectors.dtype).maxexp // 3)
    return vectors if 1 / limit < scale < limit else vectors / scale


def squared_distances(rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Return the squared Euclidean distances of rows (N, d) to `columns` (n, d), or to each other, (N, n)."""
    from sklearn.metrics.pairwise import euclidean_distances  # with all that scikit-learn measures, as long as NumPy

    return euclidean_distances(rows, columns, squared=True)
