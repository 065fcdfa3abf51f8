"""Group the codes of a codebook: the named strategies that an ablation compares, behind one function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from iar_study import parts
from iar_study.codebook.assignment import constrained_assignment
from iar_study.codebook.balanced_kmeans import BalancedKMeans
from iar_study.codebook.kernels import TABLE64, int64, kernel
from iar_study.codebook.norms import squared_distances, unit_vectors, within_range
from iar_study.errors import InputError

Progress = Callable[[int, int, str], None]

GREEDY_ROUNDS = 100
"""After so many rounds the released code's clustering ends, whether it has converged or not."""

STRATEGIES = tuple(name for name in parts.names("clustering") if name != "none")
EQUAL_SIZES = frozenset(name for name in STRATEGIES if parts.has_trait("clustering", name, "equal sizes"))

LARGEST_PAIRWISE = 40_000
"""Codes whose distances to each other, 8 bytes a pair, still fit a laptop's memory (6.4 GB)."""


def cluster_codes(
    vectors: np.ndarray,
    strategy: str,
    n_clusters: int,
    seed: int = 0,
    metric: str = "cosine",
    progress: Progress | None = None,
) -> np.ndarray:
    """Assign every code to a cluster.

    Parameters
    ----------
    vectors : float array (N, d), the code embeddings.
    strategy : one of `STRATEGIES`, or a part of one's own, `FILE.py:NAME`, called with comparable points (N, d),
        n_clusters, seed and progress, which returns the labels (N,).
    n_clusters : number of clusters n; strategies of `EQUAL_SIZES` need it to divide N.
    metric : "cosine" compares directions alone, as LlamaGen's tokenizer looks codes up; "euclidean" as taming's does.
    progress : called with (rounds done, rounds at most, detail) by strategies that take long.

    Returns
    -------
    int64 array (N,), the cluster 0 ... n-1 of every code; no cluster is empty.

    Raises
    ------
    InputError : vectors that are not finite or not (N, d), an unknown strategy, n that does not fit N.
    """
    points = comparable(vectors, metric)
    cluster = parts.load("clustering", strategy)
    if not 1 <= n_clusters <= len(points):
        raise InputError(f"{n_clusters} clusters do not fit a codebook of {len(points)} codes")
    if strategy in EQUAL_SIZES and len(points) % n_clusters:
        unequal = ", ".join(sorted({*STRATEGIES} - EQUAL_SIZES))
        raise InputError(
            f"equal clusters: {n_clusters} does not divide the {len(points)} codes of the codebook; "
            f"choose a divisor, or a strategy with clusters of unequal size: {unequal}"
        )
    labels = np.asarray(cluster(points, n_clusters, seed, progress))
    if progress:
        progress(1, 1, "")
    if labels.shape != (len(points),) or not np.isin(labels, np.arange(n_clusters)).all():
        raise InputError(
            f"strategy {strategy!r} is to give each of {len(points)} codes a cluster 0 ... {n_clusters - 1}"
        )
    labels = labels.astype(np.int64)
    filled = len(np.unique(labels))
    if filled < n_clusters:
        raise InputError(
            f"strategy {strategy!r} leaves {n_clusters - filled} of {n_clusters} clusters empty, as where a codebook "
            f"has too many identical codes; take fewer clusters, or the strategy 'balanced'"
        )
    return labels


def comparable(vectors: np.ndarray, metric: str) -> np.ndarray:
    """Return the codes, float64 (N, d), such that the squared Euclidean distance compares them by `metric`.

    For "cosine", rows of length 1 (a zero row stays zero). For "euclidean", the codes themselves, or all of them over
    one power of two where squared distances would leave float64's range. Raises `InputError` for vectors that are not
    finite (N, d).
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise InputError(f"a codebook is a finite (N, d) array, not {vectors.shape} with NaN or infinite entries")
    if metric not in ("cosine", "euclidean"):
        raise InputError(f"unknown metric {metric!r}; known: cosine, euclidean")
    vectors = vectors.astype(np.float64)
    return within_range(vectors) if metric == "euclidean" else unit_vectors(vectors)


def _balanced(points: np.ndarray, n_clusters: int, seed: int, progress: Progress | None) -> np.ndarray:
    """Balanced k-means (PAPER 2): clusters of exactly N / n codes, least squared distance to their centroids."""
    # No tolerance: only at convergence is the assignment optimal for the clusters' own means.
    # One start, as in `_greedy` and `_plain`: more would be an advantage of this strategy alone.
    return BalancedKMeans(n_clusters, n_init=1, tol=0, random_state=seed, progress=progress).fit_predict(points)


def _greedy(points: np.ndarray, n_clusters: int, seed: int, progress: Progress | None) -> np.ndarray:
    """Balanced k-means as the paper's released code does it: sizes hold, the assignment is not optimal.

    It starts from random codes. In every round the codes, sorted by the distance to their nearest centroid, take their
    nearest cluster with room in turn.
    """
    size = len(points) // n_clusters
    centroids = points[np.random.default_rng(seed).choice(len(points), n_clusters, replace=False)]
    for done in range(1, GREEDY_ROUNDS + 1):
        distances = squared_distances(points, centroids)
        # Stable: identical codes tie, and only by their index are they served in the same order everywhere.
        order = np.argsort(distances.min(1), kind="stable")
        labels = _first_come_first_served(distances, order, size)
        new = points[np.argsort(labels, kind="stable")].reshape(n_clusters, size, -1).mean(1)
        if progress:
            progress(done, GREEDY_ROUNDS, f"squared shift {np.square(new - centroids).sum():.3g}")
        # Without a tolerance, as the released code ends.
        if np.array_equal(new, centroids):
            break
        centroids = new
    return labels


@kernel(int64[::1](TABLE64, int64[::1], int64))
def _first_come_first_served(distances: np.ndarray, order: np.ndarray, size: int) -> np.ndarray:
    """Put each code, in `order`, into its nearest cluster that has fewer than `size`; int64 (N,)."""
    labels = np.empty(len(order), np.int64)
    filled = np.zeros(distances.shape[1], np.int64)
    for i in order:
        best = -1
        for j in range(distances.shape[1]):
            if filled[j] < size and (best < 0 or distances[i, j] < distances[i, best]):
                best = j
        labels[i] = best
        filled[best] += 1
    return labels


def _plain(points: np.ndarray, n_clusters: int, seed: int, progress: Progress | None) -> np.ndarray:
    """k-means without the size constraint: clusters of unequal sizes."""
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=1, random_state=seed).fit_predict(points)


def _blocks(points: np.ndarray, n_clusters: int, seed: int, progress: Progress | None) -> np.ndarray:
    """Contiguous blocks of the original order: what the cluster loss sees without rearrangement."""
    return np.arange(len(points)) // (len(points) // n_clusters)


def _random(points: np.ndarray, n_clusters: int, seed: int, progress: Progress | None) -> np.ndarray:
    """Equal clusters drawn at random: the control for "any coarse target helps"."""
    return np.random.default_rng(seed).permutation(_blocks(points, n_clusters, seed, progress))


def _agglomerative(points: np.ndarray, n_clusters: int, seed: int, progress: Progress | None) -> np.ndarray:
    """Merge the two clusters whose codes are nearest to each other on average, until n are left; unequal sizes.

    Distances between instances in place of centroids, in the manner of DCPE (arXiv 2508.10719).
    """
    from sklearn.cluster import AgglomerativeClustering

    if len(points) > LARGEST_PAIRWISE:
        raise InputError(
            f"the agglomerative strategies keep a distance for every pair of codes, which for {len(points)} takes "
            f"{4e-9 * len(points) ** 2:.0f} GB; at most {LARGEST_PAIRWISE} codes, or the strategy 'balanced'"
        )
    if n_clusters == len(points):
        return np.arange(n_clusters)
    return AgglomerativeClustering(n_clusters, linkage="average", metric="sqeuclidean").fit_predict(points)


def _agglomerative_equal(points: np.ndarray, n_clusters: int, seed: int, progress: Progress | None) -> np.ndarray:
    """The agglomerative clusters brought to equal size at the least mean squared distance to their codes.

    The mean squared distance of x to the codes of a cluster is |x - centroid|^2 + the cluster's variance.
    """
    labels = _agglomerative(points, n_clusters, seed, progress)
    centroids = np.stack([points[labels == j].mean(0) for j in range(n_clusters)])
    variance = np.array([np.square(points[labels == j] - centroids[j]).sum(1).mean() for j in range(n_clusters)])
    size = len(points) // n_clusters
    return constrained_assignment(squared_distances(points, centroids) + variance, size, size).labels
