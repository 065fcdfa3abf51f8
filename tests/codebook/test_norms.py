"""Norms of numbers that cannot be squared, and that nothing changes for those that can."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from iar_study.codebook import STRATEGIES, BalancedKMeans, Codebook, cluster_codes, order_vectors
from iar_study.codebook.analysis import compare_strategies, rearrange, summary
from iar_study.codebook.norms import power_of_two, row_norms, unit_vectors, within_range

VECTORS = np.random.default_rng(0).normal(size=(24, 4))
SCALES = [2.0**664, 2.0**-664, 2.0**1020, 2.0**-1010]
"""About 1e200, 1e-200, and the largest and smallest that leave the bits of VECTORS as they are."""


@pytest.fixture(autouse=True)
def nothing_overflows():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([(np.float32, 32), (np.float64, 64)]))
def test_what_can_be_squared_keeps_its_bits(data, kind):
    dtype, width = kind
    largest, smallest = (2.0**50, 2.0**-50) if width == 32 else (2.0**400, 2.0**-100)
    numbers = st.floats(-largest, largest, width=width).filter(lambda x: x == 0 or abs(x) > smallest)
    vectors = data.draw(arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=numbers))
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_array_equal(row_norms(vectors), norms)
    np.testing.assert_array_equal(unit_vectors(vectors), vectors / np.where(norms > 0, norms, 1)[:, None])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_vectors_have_length_one_at_any_size(dtype):
    info = np.finfo(dtype)
    sizes = np.array([info.max / 2, info.max**0.75, 1, info.tiny**0.75, info.tiny], dtype)
    vectors = np.outer(sizes, [0.6, -0.8, 0]).astype(dtype)
    np.testing.assert_allclose(unit_vectors(vectors), [[0.6, -0.8, 0]] * 5, rtol=1e-6)
    np.testing.assert_allclose(row_norms(vectors) / sizes, 1, rtol=1e-6)
    subnormal = np.array([[info.smallest_subnormal, 0], [0, 0]], dtype)
    np.testing.assert_array_equal(unit_vectors(subnormal), [[1, 0], [0, 0]])


def test_a_power_of_two_is_divided_by_where_it_must_be():
    assert within_range(VECTORS) is VECTORS
    for vectors in (np.zeros((2, 2)), np.zeros((0, 2))):
        assert power_of_two(vectors).item() == 1
        assert within_range(vectors) is vectors
    for scale in SCALES:
        np.testing.assert_array_equal(within_range(VECTORS * scale) * power_of_two(VECTORS * scale), VECTORS * scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_codes_of_any_size_are_clustered_alike(scale, metric):
    for strategy in STRATEGIES:
        expected = cluster_codes(VECTORS, strategy, 4, metric=metric)
        np.testing.assert_array_equal(cluster_codes(VECTORS * scale, strategy, 4, metric=metric), expected, strategy)


def test_codes_of_very_different_lengths_are_compared_by_direction():
    lengths = np.resize([1e200, 1.0, 1e-200], (24, 1))
    np.testing.assert_allclose(Codebook(VECTORS * lengths).points, Codebook(VECTORS).points, rtol=1e-14)


@pytest.mark.parametrize("scale", SCALES[:2])
@pytest.mark.parametrize("lookup", ["cosine", "euclidean"])
def test_codes_of_any_size_are_judged_alike(scale, lookup):
    plain, scaled = Codebook(VECTORS, lookup), Codebook(VECTORS * scale, lookup)
    expected, found = summary(plain).to_dict(), summary(scaled).to_dict()
    for name in expected:
        factor = scale if name.startswith("norm") else 1
        if name != "digest":
            assert found[name] == (pytest.approx(expected[name] * factor, rel=1e-12) if factor != 1 else expected[name])
    divided = "inertia is of the codes divided by"
    assert (divided in found) == (lookup == "euclidean")
    arranged, facts = rearrange(scaled, "balanced", 4, within="path", between="spectral")
    wanted, wanted_facts = rearrange(plain, "balanced", 4, within="path", between="spectral")
    np.testing.assert_array_equal(arranged.permutation, wanted.permutation)
    assert facts["inertia"] * (facts.get(divided, scale) / scale) ** 2 == pytest.approx(wanted_facts["inertia"])
    assert divided not in wanted_facts
    shares = ["gap", "within_similarity", "neighbours", "path"]
    compared, wanted_table = (compare_strategies(of.points, 4)[shares] for of in (scaled, plain))
    np.testing.assert_allclose(compared, wanted_table, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("ordering", ["chain", "spectral", "path"])
def test_vectors_of_any_size_are_ordered_alike(scale, ordering):
    np.testing.assert_array_equal(order_vectors(VECTORS * scale, ordering), order_vectors(VECTORS, ordering))


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 2.0**100), (np.float32, 2.0**-30), (np.float64, 2.0**664)])
def test_the_estimator_takes_directions_of_any_size_and_refuses_distances_that_it_cannot_hold(dtype, scale):
    X = VECTORS.astype(dtype)
    plain = BalancedKMeans(4, metric="cosine", n_init=2, random_state=0).fit(X)
    scaled = BalancedKMeans(4, metric="cosine", n_init=2, random_state=0).fit(X * dtype(scale))
    np.testing.assert_array_equal(scaled.cluster_centers_, plain.cluster_centers_)
    np.testing.assert_array_equal(scaled.predict(X), plain.labels_)
    far = X * dtype(max(scale, 1 / scale) ** 2 if scale < 1 else scale)
    kept = far.copy()
    with pytest.raises(ValueError, match=rf"squared distances leave the range of {far.dtype}; divide X by \d"):
        BalancedKMeans(4, copy_x=False).fit(far)
    np.testing.assert_array_equal(far, kept)
