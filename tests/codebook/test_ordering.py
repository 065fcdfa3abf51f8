"""Orders of vectors: permutations, short paths, the released code's chain, and bad input."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.codebook import ORDERINGS, order_vectors
from iar_study.errors import InputError


def length(vectors, order):
    return np.linalg.norm(np.diff(vectors[order], axis=0), axis=1).sum()


@settings(deadline=None)  # the first call compiles
@given(st.sampled_from(sorted(ORDERINGS)), st.integers(1, 30), st.integers(0, 99), st.booleans())
def test_every_order_is_a_permutation_and_the_same_each_time(ordering, count, seed, identical):
    vectors = np.random.default_rng(seed).normal(size=(count, 2))
    if identical:
        vectors[: count // 2 + 1] = 1.0
    order = order_vectors(vectors, ordering)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    np.testing.assert_array_equal(order, order_vectors(vectors.copy(), ordering))


@pytest.mark.parametrize("ordering", ["chain", "spectral", "path"])
def test_similar_vectors_come_together(ordering):
    vectors = np.random.default_rng(0).normal(size=(200, 2))
    assert length(vectors, order_vectors(vectors, ordering)) < 0.75 * length(vectors, np.arange(200))


@pytest.mark.parametrize("ordering", ["spectral", "path"])
def test_points_on_a_line_come_in_their_order(ordering):
    where = np.random.default_rng(0).permutation(20).astype(float)
    steps = np.diff(where[order_vectors(where[:, None], ordering)])
    assert (steps == steps[0]).all()


def test_a_path_is_near_the_shortest_and_never_longer_than_the_chain():
    for seed in range(10):
        vectors = np.random.default_rng(seed).normal(size=(7, 2))
        shortest = min(length(vectors, list(order)) for order in itertools.permutations(range(7)))
        path = length(vectors, order_vectors(vectors, "path"))
        assert shortest - 1e-12 <= path <= length(vectors, order_vectors(vectors, "chain"))
        assert path <= 1.2 * shortest


def test_the_chain_grows_from_the_middle_to_the_left_and_to_the_right_in_turn():
    vectors = np.random.default_rng(1).normal(size=(12, 2))
    distance = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
    chain = [int(np.linalg.norm(vectors - vectors.mean(0), axis=1).argmin())]
    for step in range(11):
        end = chain[0] if step % 2 == 0 else chain[-1]
        nearest = min(set(range(12)) - set(chain), key=lambda i: distance[end, i])
        chain = [nearest, *chain] if step % 2 == 0 else [*chain, nearest]
    np.testing.assert_array_equal(order_vectors(vectors, "chain"), chain)


def test_bad_input_is_named(monkeypatch):
    with pytest.raises(InputError, match="did you mean 'chain'"):
        order_vectors(np.zeros((2, 2)), "chian")
    monkeypatch.setattr("iar_study.codebook.ordering.LARGEST_SPECTRAL", 3)
    with pytest.raises(InputError, match="at most 3"):
        order_vectors(np.zeros((4, 2)), "spectral")
