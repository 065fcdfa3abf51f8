"""Rearrangement: a permutation that makes clusters contiguous and can be undone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iar_study.codebook import Rearrangement
from iar_study.errors import InputError


@st.composite
def labelled(draw):
    """Cluster labels of 1 ... 40 codes in which no cluster is empty."""
    n_clusters = draw(st.integers(1, 8))
    rest = draw(st.lists(st.integers(0, n_clusters - 1), max_size=32))
    return np.array(draw(st.permutations([*range(n_clusters), *rest])))


@given(labelled())
def test_clusters_become_contiguous(labels):
    arranged = Rearrangement.from_labels(labels)
    in_new_order = labels[arranged.order]
    for j, (first, end) in enumerate(zip(arranged.boundaries[:-1], arranged.boundaries[1:], strict=True)):
        assert (in_new_order[first:end] == j).all()
    np.testing.assert_array_equal(arranged.labels, labels)


@given(labelled(), st.data())
def test_tokens_go_there_and_back(labels, data):
    arranged = Rearrangement.from_labels(labels)
    tokens = data.draw(arrays(np.int32, (3, 5), elements=st.integers(0, len(labels) - 1)))
    moved = arranged.tokens(tokens)
    assert moved.dtype == tokens.dtype
    np.testing.assert_array_equal(arranged.original_tokens(moved), tokens)


@given(labelled(), st.data())
def test_rearranged_tokens_find_their_rows_in_the_rearranged_table(labels, data):
    arranged = Rearrangement.from_labels(labels)
    table = data.draw(arrays(np.float32, (len(labels), 2), elements=st.floats(-1, 1, width=32)))
    tokens = np.arange(len(labels))
    np.testing.assert_array_equal(arranged.rows(table)[arranged.tokens(tokens)], table[tokens])


def test_identity_is_one_cluster_in_the_original_order():
    identity = Rearrangement.identity(5)
    np.testing.assert_array_equal(identity.permutation, np.arange(5))
    np.testing.assert_array_equal(identity.boundaries, [0, 5])


@pytest.mark.parametrize(
    ("permutation", "boundaries"),
    [([0, 0, 1], [0, 3]), ([0, 1, 2], [0, 2]), ([0, 1, 2], [0, 0, 3]), ([0, 1, 2], [1, 3])],
)
def test_what_is_no_rearrangement_is_refused(permutation, boundaries):
    with pytest.raises(InputError):
        Rearrangement(np.array(permutation), np.array(boundaries))
