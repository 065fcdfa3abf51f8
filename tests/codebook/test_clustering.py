"""Clustering strategies: sizes, determinism, quality against an independent baseline, and bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.codebook import STRATEGIES, cluster_codes
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
    if strategy != "plain":
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
        (np.ones((8, 2)), "ballanced", 2, "unknown clustering strategy"),
        (np.ones((8, 2)), "balanced", 3, "3 does not divide the 8 codes"),
        (np.ones((8, 2)), "balanced", 9, "9 clusters do not fit"),
        (np.ones((8, 2)), "balanced", 0, "0 clusters do not fit"),
    ],
)
def test_bad_input_is_named(vectors, strategy, n_clusters, message):
    with pytest.raises(InputError, match=message):
        cluster_codes(vectors, strategy, n_clusters)
