"""What an order and a clustering of a codebook are worth, as DataFrames.

All functions take points as `Codebook.points` gives them: (N, d), compared by squared Euclidean distance, of length 1
where the look-up is by cosine. Nothing is special to images: a language model's embedding table, whose order says
nothing about similarity, makes the contrast that the paper draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iar_study.codebook.assignment import constrained_assignment
from iar_study.codebook.clustering import STRATEGIES, cluster_codes, comparable
from iar_study.codebook.codebook import Codebook
from iar_study.codebook.kernels import TABLE64, float64, kernel
from iar_study.codebook.norms import power_of_two, row_norms, squared_distances
from iar_study.codebook.rearrangement import Rearrangement
from iar_study.errors import InputError
from iar_study.storage import load_arrays

SAMPLE = 4096
"""Codes (evenly spaced over the indices) whose neighbours are looked for, if there are more."""

BLOCK = 2**24
"""Distances that are held at a time: 128 MB."""

LARGEST_TREE = 5e10
"""Codes squared times dimensions up to which the minimum spanning tree is computed: about half a minute."""


def summary(codebook: Codebook, use: np.ndarray | None = None) -> pd.Series:
    """Return what one wants to know of a codebook first, by name; `use` as `Codebook.use` returns it."""
    points, vectors = codebook.points, codebook.vectors
    norms = row_norms(vectors.astype(np.float64))
    identical = codebook.duplicates()
    original = Rearrangement.identity(len(points))
    facts: dict[str, object] = {
        "codes": len(vectors),
        "dimensions": vectors.shape[1],
        "look-up": codebook.lookup,
        "digest": codebook.digest,
        **_divided(codebook),
        "norm, smallest": norms.min(),
        "norm, median": np.median(norms),
        "norm, largest": norms.max(),
        "zero codes": int((norms == 0).sum()),
        "identical codes": sum(map(len, identical)),
        "groups of identical codes": len(identical),
        "similarity of two codes, mean": mean_similarity(points, original)[0],
        "similarity to the nearest code, median": _nearest_similarity(points),
    }
    neighbours = neighbour_agreement(points, original, [8])
    if len(neighbours):
        facts["8 nearest by index among the 8 in space"] = neighbours["agreement"][0]
        facts["the same in a random order"] = neighbours["chance"][0]
    lengths = path_lengths(points, {"this": original}).set_index("order")["of_random"]
    facts["path through the codes, of a random order's"] = lengths["this"]
    if "spanning tree" in lengths:
        facts["lower bound of any order's (spanning tree)"] = lengths["spanning tree"]
    if use is not None:
        share = use[use > 0] / max(use.sum(), 1)
        facts["tokens"] = int(use.sum())
        facts["dead codes (no token)"] = int((use == 0).sum())
        facts["perplexity of the tokens"] = float(np.exp(-np.sum(share * np.log(share))))
    return pd.Series(facts, name="value", dtype=object)


def _divided(codebook: Codebook) -> dict[str, float]:
    """Say by what codes too large or small to be squared were divided (see `comparable`); nothing of others."""
    if codebook.lookup == "cosine" or np.array_equal(codebook.points, codebook.vectors):
        return {}
    return {"inertia is of the codes divided by": power_of_two(codebook.vectors).item()}


def _nearest_similarity(points: np.ndarray) -> float:
    """Return the median over codes (or `SAMPLE` of them) of the cosine similarity to the most similar other code."""
    if len(points) == 1:
        return np.nan
    unit = comparable(points, "cosine")
    sample = _sample(len(points))
    best = []
    for part in np.array_split(sample, -(-len(sample) * len(points) // BLOCK)):
        products = unit[part] @ unit.T
        products[np.arange(len(part)), part] = -np.inf
        best.append(products.max(1))
    return float(np.median(np.concatenate(best)))


def _sample(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, SAMPLE)).astype(int))


def similarity(points: np.ndarray, arranged: Rearrangement) -> pd.DataFrame:
    """Return the mean cosine similarity of the codes of every two clusters, (n, n); within one, of distinct codes.

    The mean over all pairs follows from the sums s_j of the unit vectors of each cluster: s_j . s_k / (m_j m_k), and
    (s_j . s_j - m_j) / (m_j (m_j - 1)) within. NaN for a cluster of one code.
    """
    sums, own, sizes = _unit_sums(points, arranged)
    pairs = np.outer(sizes, sizes).astype(np.float64)
    products = sums @ sums.T
    within = sizes * (sizes - 1.0)
    np.fill_diagonal(pairs, within)
    # Not the sizes: a zero code has no direction, and its similarity to itself is 0.
    products[np.diag_indices(len(sizes))] -= own
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(products / pairs).rename_axis(index="cluster", columns="other")


def clusters(points: np.ndarray, arranged: Rearrangement, use: np.ndarray | None = None) -> pd.DataFrame:
    """Return a row for every cluster.

    Columns: first (its first new index), size, inertia (sum of squared distances to the centroid),
    within_similarity, nearest_similarity (to the most similar other cluster) and, with `use` (int (N,), how often each
    code occurs, by its old index), used_codes, tokens and token_share.
    """
    between = similarity(points, arranged).to_numpy()
    within = np.diag(between).copy()
    others = np.where(np.eye(len(within), dtype=bool), -np.inf, between)
    table = pd.DataFrame(
        {
            "first": arranged.boundaries[:-1],
            "size": np.diff(arranged.boundaries),
            "inertia": _inertia(points, arranged.labels),
            "within_similarity": within,
            "nearest_similarity": others.max(1) if len(within) > 1 else np.nan,
        }
    )
    if use is not None:
        table["used_codes"] = np.bincount(arranged.labels[use > 0], minlength=len(table))
        table["tokens"] = np.bincount(arranged.labels, weights=use, minlength=len(table)).astype(np.int64)
        table["token_share"] = table["tokens"] / max(use.sum(), 1)
    return table.rename_axis("cluster")


def neighbour_agreement(
    points: np.ndarray, arranged: Rearrangement, ks: Iterable[int] = (2, 8, 32, 128)
) -> pd.DataFrame:
    """Return, for every k below N, which share of the k nearest codes by index are among the k nearest in space.

    Columns: k, agreement (mean over the codes, or over `SAMPLE` of them) and chance (k / (N - 1), a random order's).
    """
    size = len(points)
    ks = sorted({k for k in ks if 0 < k < size})
    if not ks:
        return pd.DataFrame({"k": [], "agreement": [], "chance": []})
    ordered = arranged.rows(points)  # from here on codes are called by their new index
    sample = _sample(size)
    shares = np.zeros(len(ks))
    for part in np.array_split(sample, -(-len(sample) * size // BLOCK)):
        distances = squared_distances(ordered[part], ordered)
        distances[np.arange(len(part)), part] = np.inf
        nearest = np.argpartition(distances, ks[-1] - 1, axis=1)[:, : ks[-1]]
        by_distance = np.take_along_axis(distances, nearest, 1).argsort(1, kind="stable")
        nearest = np.take_along_axis(nearest, by_distance, 1)
        for column, k in enumerate(ks):
            # The k nearest by index are a window of k + 1 around the code, pushed inwards at both ends.
            first = np.clip(part - k // 2, 0, size - 1 - k)[:, None]
            shares[column] += ((nearest[:, :k] >= first) & (nearest[:, :k] <= first + k)).sum() / k
    return pd.DataFrame({"k": ks, "agreement": shares / len(sample), "chance": [k / (size - 1) for k in ks]})


def path_lengths(points: np.ndarray, arrangements: Mapping[str, Rearrangement], *, tree: bool = True) -> pd.DataFrame:
    """Return how long the path through all codes is in each order, beside a random order and the lower bound.

    Columns: order, length (sum of the distances of successive codes) and of_random (its share of a random order's,
    the mean of 20). With `tree`, the row "spanning tree" is the minimum spanning tree, which no path undercuts; it is
    left out for more and wider codes than `LARGEST_TREE` says.
    """
    rng = np.random.default_rng(0)
    random = np.mean([_path_length(points[rng.permutation(len(points))]) for _ in range(20)])
    lengths = {name: _path_length(arranged.rows(points)) for name, arranged in arrangements.items()}
    lengths["random order"] = float(random)
    if tree and len(points) ** 2 * points.shape[1] <= LARGEST_TREE:
        lengths["spanning tree"] = _spanning_tree(np.ascontiguousarray(points, dtype=np.float64))
    table = pd.DataFrame({"order": list(lengths), "length": list(lengths.values())})
    table["of_random"] = table["length"] / random if random else np.nan
    return table


def assignment_gap(points: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the inertia of clusters and by which share of it a better assignment would cost less.

    Better: to the same centroids with the same sizes; 0 but for rounding where the assignment is exact and converged.
    """
    sizes = np.bincount(labels)
    inertia = float(_inertia(points, labels).sum())
    best = constrained_assignment(squared_distances(points, _centroids(points, labels)), sizes, sizes)
    return inertia, max(inertia - best.cost, 0.0) / inertia if inertia else 0.0


def compare_strategies(
    points: np.ndarray,
    n_clusters: int,
    strategies: Iterable[str] = tuple(STRATEGIES),
    *,
    seed: int = 0,
    within: str = "chain",
    between: str = "chain",
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Return a row for every strategy at the same number of clusters.

    Columns: strategy, smallest, largest (cluster sizes), inertia, gap (see `assignment_gap`), within_similarity (mean
    over pairs of distinct codes of a cluster), between_similarity, neighbours (`neighbour_agreement` at k = 8), path
    (`path_lengths`, of a random order's) and seconds of the clustering. Codes inside a cluster and clusters are put in
    the orders `within` and `between`, but for `blocks`, which stands for the original order.
    """
    rows = []
    strategies = list(strategies)
    for done, strategy in enumerate(strategies):
        if progress:
            progress(done, len(strategies), strategy)
        started = time.perf_counter()
        labels = cluster_codes(points, strategy, n_clusters, seed, "euclidean")
        seconds = time.perf_counter() - started
        original = strategy == "blocks"
        arranged = Rearrangement.from_labels(
            labels, points, within="none" if original else within, between="none" if original else between
        )
        rows.append(_describe(points, arranged) | {"seconds": seconds})
    if progress:
        progress(len(strategies), len(strategies), "")
    return pd.DataFrame(rows, index=pd.Index(strategies, name="strategy")).reset_index()


def rearrange(
    codebook: Codebook,
    strategy: str,
    n_clusters: int,
    *,
    seed: int = 0,
    within: str = "none",
    between: str = "none",
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Rearrangement, dict[str, Any]]:
    """Cluster a codebook and make the clusters contiguous; return the rearrangement and what it was made of.

    The facts: source, digest and look-up rule of the codebook, the settings, `seconds` of the clustering, and what
    `judge` says. Raises `InputError` as `cluster_codes` and `Rearrangement.from_labels` do.
    """
    started = time.perf_counter()
    labels = cluster_codes(codebook.vectors, strategy, n_clusters, seed, codebook.lookup, progress)
    seconds = time.perf_counter() - started
    points = codebook.points
    arranged = Rearrangement.from_labels(labels, points, within=within, between=between)
    made_of = {
        "codebook": codebook.source,
        "digest": codebook.digest,
        "look-up": codebook.lookup,
        "strategy": strategy,
        "clusters": n_clusters,
        "seed": seed,
        "order within": within,
        "order between": between,
    }
    return arranged, made_of | _divided(codebook) | _describe(points, arranged) | {"seconds": seconds}


def judge(codebook: Codebook, arranged: Rearrangement, use: np.ndarray | None = None) -> pd.Series:
    """Return what a rearrangement is worth, in `compare_strategies`' words; `use` as `Codebook.use` returns it."""
    if len(arranged.permutation) != len(codebook.vectors):
        raise InputError(
            f"the rearrangement is of {len(arranged.permutation)} codes, the codebook has {len(codebook.vectors)}"
        )
    facts: dict[str, Any] = {"clusters": len(arranged.boundaries) - 1} | _divided(codebook)
    facts |= _describe(codebook.points, arranged)
    if use is not None:
        share = clusters(codebook.points, arranged, use)["token_share"]
        facts |= {"token share, smallest": share.min(), "token share, largest": share.max()}
    return pd.Series(facts, name="value", dtype=object)


def load_tokens(path: Path) -> np.ndarray:
    """Read tokens, integers of any shape: a `.npy` file, memory-mapped, or a study's codes (`.safetensors`)."""
    if path.suffix == ".safetensors":
        arrays = load_arrays(path)[0]
        if "train_tokens" not in arrays:
            raise InputError(f"{path} holds no tokens; of a study, runs/cache/codes-*.safetensors does")
        return arrays["train_tokens"]
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"no tokens in {path} ({error}); a .npy file of whole numbers is wanted") from error
    if not isinstance(tokens, np.ndarray):
        raise InputError(f"{path} holds several arrays; a .npy file of whole numbers is wanted")
    return tokens


def _describe(points: np.ndarray, arranged: Rearrangement) -> dict[str, Any]:
    sizes = np.diff(arranged.boundaries)
    inertia, gap = assignment_gap(points, arranged.labels)
    within, between = mean_similarity(points, arranged)
    neighbours = neighbour_agreement(points, arranged, [8])["agreement"]
    path = path_lengths(points, {"this": arranged}, tree=False)["of_random"]
    return {
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "inertia": inertia,
        "gap": gap,
        "within_similarity": within,
        "between_similarity": between,
        "neighbours": float(neighbours.iloc[0]) if len(neighbours) else np.nan,
        "path": float(path.iloc[0]),
    }


def mean_similarity(points: np.ndarray, arranged: Rearrangement) -> tuple[float, float]:
    """Return the mean cosine similarity over all pairs of codes of the same cluster, and of different clusters."""
    sums, own, sizes = _unit_sums(points, arranged)
    within, within_pairs = np.square(sums).sum() - own.sum(), (sizes * (sizes - 1.0)).sum()
    total = sums.sum(0)
    between, between_pairs = total @ total - np.square(sums).sum(), sizes.sum() ** 2.0 - np.square(sizes).sum()
    return (
        float(within / within_pairs) if within_pairs else np.nan,
        float(between / between_pairs) if between_pairs else np.nan,
    )


def _unit_sums(points: np.ndarray, arranged: Rearrangement) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for every cluster the sum of its unit vectors (n, d), of their squared lengths (n,), and its size (n,)."""
    unit = arranged.rows(comparable(points, "cosine"))
    first = arranged.boundaries[:-1]
    return np.add.reduceat(unit, first), np.add.reduceat(np.square(unit).sum(1), first), np.diff(arranged.boundaries)


def _centroids(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    return np.add.reduceat(points[order], np.cumsum(sizes) - sizes) / sizes[:, None]


def _inertia(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return every cluster's sum of squared distances to its centroid, (n,)."""
    return np.bincount(labels, np.square(points - _centroids(points, labels)[labels]).sum(1))


def _path_length(ordered: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(ordered, axis=0), axis=1).sum())


@kernel(float64(TABLE64))
def _spanning_tree(points: np.ndarray) -> float:
    """Return the length of the minimum spanning tree of all points, by Prim's algorithm without a list of edges."""
    size = len(points)
    left = np.arange(1, size)
    distance = np.full(size, np.inf)
    last, total = 0, 0.0
    for count in range(size - 1, 0, -1):
        best = 0
        for k in range(count):
            i = left[k]
            d = 0.0
            for c in range(points.shape[1]):
                d += (points[last, c] - points[i, c]) ** 2
            distance[i] = min(distance[i], d)
            if distance[i] < distance[left[best]]:
                best = k
        last = left[best]
        total += np.sqrt(distance[last])
        left[best] = left[count - 1]
    return total
