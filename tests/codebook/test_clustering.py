"""Clustering strategies: sizes, determinism, quality against an independent baseline, and bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.codebook import EQUAL_SIZES, STRATEGIES, cluster_codes
from iar_study.errors import InputError


def codebook(size: int = 64, dim: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, dim)).astype(np.float32)


def within_cluster_distance(vectors: np.ndarray, labels: np.ndarray) -> float:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return sum(((unit[labels == j] - unit[labels == j].mean(0)) ** 2).sum() for j in np.unique(labels))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n_clusters", [1, 4, 16, 64])
def test_every_code_is_in_a_cluster_and_no_cluster_is_empty(strategy, n_clusters):
    labels = cluster_codes(codebook(), strategy, n_clusters)
    sizes = np.bincount(labels, minlength=n_clusters)
    assert sizes.sum() == 64
    assert (sizes > 0).all()
    if strategy in EQUAL_SIZES:
        assert (sizes == 64 // n_clusters).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_clusters(strategy):
    np.testing.assert_array_equal(cluster_codes(codebook(), strategy, 8, 3), cluster_codes(codebook(), strategy, 8, 3))


def test_random_clusters_depend_on_the_seed():
    assert (cluster_codes(codebook(), "random", 8, 0) != cluster_codes(codebook(), "random", 8, 1)).any()


def test_balanced_clusters_are_tighter_than_blocks_and_random_ones():
    vectors = codebook()
    distance = {name: within_cluster_distance(vectors, cluster_codes(vectors, name, 8)) for name in STRATEGIES}
    assert distance["balanced"] < 0.8 * min(distance["blocks"], distance["random"])
    assert distance["plain"] <= distance["balanced"] * 1.1  # no size constraint to pay for
    assert distance["balanced"] <= distance["greedy"]
    assert distance["agglomerative-equal"] < 0.9 * distance["random"]


def greedy_by_the_book(unit, n_clusters, seed):
    """The released code's clustering as PAPER describes it, in plain loops."""
    size = len(unit) // n_clusters
    centroids = unit[np.random.default_rng(seed).choice(len(unit), n_clusters, replace=False)]
    for _ in range(100):
        distances = ((unit[:, None] - centroids) ** 2).sum(-1)
        labels, room = [None] * len(unit), [size] * n_clusters
        for i in sorted(range(len(unit)), key=lambda i: min(distances[i])):
            for j in sorted(range(n_clusters), key=lambda j: distances[i][j]):
                if room[j]:
                    labels[i] = j
                    room[j] -= 1
                    break
        new = np.stack([unit[np.array(labels) == j].mean(0) for j in range(n_clusters)])
        if np.abs(new - centroids).max() < 1e-12:
            break
        centroids = new
    return labels


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_is_the_released_codes_clustering(seed):
    vectors = codebook(96).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_array_equal(cluster_codes(vectors, "greedy", 8, seed), greedy_by_the_book(unit, 8, seed))


def test_agglomerative_merges_the_clusters_nearest_on_average():
    vectors = codebook(40).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = [[i] for i in range(40)]
    distance = ((unit[:, None] - unit) ** 2).sum(-1)
    while len(groups) > 5:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
        a, b = min(pairs, key=lambda pair: distance[np.ix_(groups[pair[0]], groups[pair[1]])].mean())
        groups[b] += groups.pop(a)
    labels = cluster_codes(vectors, "agglomerative", 5)
    assert {frozenset(np.flatnonzero(labels == j)) for j in range(5)} == {frozenset(group) for group in groups}


def test_euclidean_tells_lengths_apart_and_cosine_does_not():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(16, 3)), 100 * rng.normal(size=(16, 3))])
    short = np.arange(32) < 16
    by_length = cluster_codes(vectors, "plain", 2, metric="euclidean")
    assert len(np.unique(by_length[short])) == 1
    assert len(np.unique(cluster_codes(vectors, "plain", 2)[short])) == 2


def test_zero_and_identical_codes_are_clustered_like_any_other():
    vectors = codebook()
    vectors[:20] = 0
    vectors[20:40] = vectors[40]
    for strategy in EQUAL_SIZES:
        assert (np.bincount(cluster_codes(vectors, strategy, 8)) == 8).all()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_too_many_identical_codes_for_plain_k_means_are_an_error():
    with pytest.raises(InputError, match="'plain' leaves 3 of 4 clusters empty"):
        cluster_codes(np.ones((16, 2)), "plain", 4)


def test_pairwise_distances_that_fit_no_memory_are_refused(monkeypatch):
    monkeypatch.setattr("iar_study.codebook.clustering.LARGEST_PAIRWISE", 50)
    with pytest.raises(InputError, match="every pair of codes"):
        cluster_codes(codebook(), "agglomerative", 4)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100))
def test_only_the_direction_of_a_vector_counts(scale):
    vectors = codebook(32)
    np.testing.assert_array_equal(
        cluster_codes(vectors, "balanced", 4), cluster_codes(vectors * np.float32(scale), "balanced", 4)
    )


@pytest.mark.parametrize(
    ("vectors", "strategy", "n_clusters", "message"),
    [
        (np.full((8, 2), np.nan), "balanced", 2, "finite"),
        (np.ones(8), "balanced", 2, "finite"),
        (np.ones((8, 2)), "ballanced", 2, "did you mean 'balanced'"),
        (np.ones((0, 2)), "balanced", 2, "finite"),
        (np.ones((8, 2)), "balanced", 3, "3 does not divide the 8 codes"),
        (np.ones((8, 2)), "balanced", 9, "9 clusters do not fit"),
        (np.ones((8, 2)), "balanced", 0, "0 clusters do not fit"),
    ],
)
def test_bad_input_is_named(vectors, strategy, n_clusters, message):
    with pytest.raises(InputError, match=message):
        cluster_codes(vectors, strategy, n_clusters)
