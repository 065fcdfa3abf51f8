"""Group the codes of a codebook: the named strategies that an ablation compares, behind one function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from k_means_constrained import KMeansConstrained
from sklearn.cluster import KMeans

from iar_study.errors import InputError


def cluster_codes(vectors: np.ndarray, strategy: str, n_clusters: int, seed: int = 0) -> np.ndarray:
    """Assign every code to a cluster.

    Parameters
    ----------
    vectors : float array (N, d), the code embeddings; compared by cosine, as the tokenizer looks codes up.
    strategy : a key of `STRATEGIES`.
    n_clusters : number of clusters n; strategies with equal clusters need it to divide N.

    Returns
    -------
    int64 array (N,), the cluster 0 ... n-1 of every code; no cluster is empty.

    Raises
    ------
    InputError : vectors that are not finite or not (N, d), an unknown strategy, n that does not fit N.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise InputError(f"a codebook is a finite (N, d) array, not {vectors.shape} with NaN or infinite entries")
    if strategy not in STRATEGIES:
        raise InputError(f"unknown clustering strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    if not 1 <= n_clusters <= len(vectors):
        raise InputError(f"{n_clusters} clusters do not fit a codebook of {len(vectors)} codes")
    if strategy != "plain" and len(vectors) % n_clusters:
        raise InputError(
            f"equal clusters: {n_clusters} does not divide the {len(vectors)} codes of the codebook; "
            f"choose a divisor for clustering.n_clusters, or the strategy 'plain'"
        )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, np.finfo(vectors.dtype).tiny)
    return STRATEGIES[strategy](unit, n_clusters, seed).astype(np.int64)


def _balanced(unit: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Balanced k-means (PAPER 2): clusters of exactly N / n codes, least squared distance to their centroids."""
    size = len(unit) // n_clusters
    model = KMeansConstrained(n_clusters, size_min=size, size_max=size, n_init=1, random_state=seed)
    return model.fit_predict(unit.astype(np.float64))


def _plain(unit: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """k-means without the size constraint: clusters of unequal sizes."""
    return KMeans(n_clusters, n_init=1, random_state=seed).fit_predict(unit.astype(np.float64))


def _blocks(unit: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Contiguous blocks of the original order: what the cluster loss sees without rearrangement."""
    return np.arange(len(unit)) // (len(unit) // n_clusters)


def _random(unit: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Equal clusters drawn at random: the control for "any coarse target helps"."""
    return np.random.default_rng(seed).permutation(_blocks(unit, n_clusters, seed))


STRATEGIES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "balanced": _balanced,
    "plain": _plain,
    "blocks": _blocks,
    "random": _random,
}
"""Name -> function of (unit vectors (N, d), n_clusters, seed) that returns labels (N,)."""
