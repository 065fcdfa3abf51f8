"""BalancedKMeans: scikit-learn's contract, k-means-constrained's interface, and no worse a clustering than its."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from k_means_constrained import KMeansConstrained
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

from iar_study.codebook import BalancedKMeans


@parametrize_with_checks(
    [BalancedKMeans(n_init=2, random_state=0), BalancedKMeans(3, metric="cosine", n_init=2, random_state=0)]
)
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def clouds(points: int = 600, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(points, 3)) + 4 * rng.normal(size=(7, 3))[rng.integers(0, 7, points)]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(1, 8), st.data())
def test_sizes_are_within_bounds_and_by_default_as_equal_as_can_be(points, n, data):
    n = min(n, points)
    X = np.random.default_rng(points).normal(size=(points, 2))
    sizes = np.bincount(BalancedKMeans(n, n_init=1, random_state=0).fit(X).labels_, minlength=n)
    assert sizes.min() == points // n
    assert sizes.max() == -(-points // n)
    lower = data.draw(st.integers(0, points // n))
    upper = data.draw(st.integers(-(-points // n), points))
    model = BalancedKMeans(n, size_min=lower, size_max=upper, n_init=1, random_state=0).fit(X)
    sizes = np.bincount(model.labels_, minlength=n)
    assert lower <= sizes.min()
    assert sizes.max() <= upper


def test_centres_are_means_and_inertia_is_the_squared_distance_to_them():
    X = clouds()
    model = BalancedKMeans(6, n_init=2, tol=0, random_state=0).fit(X)
    means = np.stack([X[model.labels_ == j].mean(0) for j in range(6)])
    np.testing.assert_allclose(model.cluster_centers_, means, atol=1e-10)
    assert model.inertia_ == pytest.approx(((X - means[model.labels_]) ** 2).sum(), rel=1e-12)
    assert 0 <= model.relative_gap_ < 1e-9


@pytest.mark.parametrize("points", ["clouds", "digits"])
def test_inertia_is_no_worse_than_that_of_k_means_constrained(points):
    """From the same ten starts; single runs end in other local optima, so the means are compared."""
    X = clouds() if points == "clouds" else load_digits().data[:500] / 16
    size = len(X) // 10
    ours, theirs = [], []
    for seed in range(10):
        start = X[np.random.default_rng(seed).choice(len(X), 10, replace=False)]
        ours.append(BalancedKMeans(10, size_min=size, size_max=size, init=start).fit(X).inertia_)
        labels = KMeansConstrained(10, size_min=size, size_max=size, init=start.copy(), n_init=1).fit(X).labels_
        centres = np.stack([X[labels == j].mean(0) for j in range(10)])
        theirs.append(((X - centres[labels]) ** 2).sum())
    assert np.mean(ours) <= np.mean(theirs)


def test_without_bounds_it_is_plain_k_means():
    X = clouds(seed=1)
    start = X[:5]
    ours = BalancedKMeans(5, size_min=0, size_max=len(X), init=start, tol=0).fit(X)
    theirs = KMeans(5, init=start, n_init=1, tol=0).fit(X)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_)
    assert ours.score(X) == pytest.approx(theirs.score(X))
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), atol=1e-6)


def test_a_start_far_from_all_points_leaves_no_cluster_empty():
    """As k-means-constrained's own test of it: centres that would draw no point are not lost, nor do they collapse."""
    X = np.array([[1.1, 1.1], [0.9, 1.1], [1.1, 0.9], [0.9, 1.1]])
    start = np.array([[1.0, 1.0], [5.0, 5.0], [-5.0, -5.0]])
    for bounds in ({}, {"size_min": 0}, {"size_min": 0, "size_max": 4}):
        model = BalancedKMeans(3, init=start, n_init=1, random_state=42, **bounds).fit(X)
        assert len(np.unique(model.labels_)) == 3
        distances = np.linalg.norm(model.cluster_centers_[:, None] - model.cluster_centers_, axis=-1)
        assert (distances[np.triu_indices(3, 1)] >= 0.1).all()


@pytest.mark.parametrize("X", [np.ones((12, 2)), np.array([[0.0], [0], [0], [1]]), np.repeat(np.eye(2), 6, 0)])
@pytest.mark.parametrize("size_min", [0, 1])
def test_identical_points_fill_as_many_clusters_as_there_are(X, size_min):
    model = BalancedKMeans(4, size_min=size_min, size_max=len(X), n_init=1, random_state=0).fit(X)
    assert np.bincount(model.labels_, minlength=4).min() >= 1


@pytest.mark.parametrize("points", [10, 399, 801])
def test_to_predict_more_or_fewer_points_than_fit_tells_bounds_and_what_to_do(points):
    X = clouds()
    model = BalancedKMeans(4, size_min=100, size_max=200, n_init=1, random_state=0).fit(X)
    X = np.resize(X, (points, X.shape[1]))
    with pytest.raises(ValueError, match=f"^{points} points .* 4 clusters of 100 to 200 points, which hold 400 to 800"):
        model.predict(X)
    assert len(model.predict(X, size_min=None, size_max=None)) == points
    with pytest.raises(ValueError, match="None for no bound"):
        model.predict(X)


def test_fewer_points_than_a_largest_size_can_be_predicted():
    model = BalancedKMeans(4, size_min=0, size_max=200, n_init=1, random_state=0).fit(clouds())
    np.testing.assert_array_equal(model.predict(clouds()[:10]), model.predict(clouds()[:10], size_max=None))


def test_cosine_is_the_same_on_rows_of_length_one():
    X = clouds()
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosine = BalancedKMeans(6, metric="cosine", n_init=2, random_state=0).fit(X)
    euclidean = BalancedKMeans(6, n_init=2, random_state=0).fit(unit)
    np.testing.assert_array_equal(cosine.labels_, euclidean.labels_)
    np.testing.assert_array_equal(cosine.predict(5 * X), euclidean.predict(unit))


def test_it_takes_what_k_means_constrained_takes():
    assert set(inspect.signature(KMeansConstrained).parameters) <= set(inspect.signature(BalancedKMeans).parameters)
    X = clouds()
    settings = {"n_clusters": 4, "size_min": 100, "size_max": 200, "n_init": 1, "random_state": 0, "n_jobs": 1}
    ours, peer = BalancedKMeans(**settings).fit(X), KMeansConstrained(**settings).fit(X)
    for name in ("cluster_centers_", "labels_", "inertia_", "n_iter_"):
        assert np.shape(getattr(ours, name)) == np.shape(getattr(peer, name))
    assert ours.labels_.dtype == peer.labels_.dtype
    for bounds in ((0, 300), (150, 150), (None, None), ("init", 200)):
        labels = ours.predict(X, size_min=bounds[0], size_max=bounds[1])
        sizes = np.bincount(labels, minlength=4)
        lower = {None: 0, "init": 100}.get(bounds[0], bounds[0])
        assert sizes.min() >= lower
        assert sizes.max() <= {None: 600}.get(bounds[1], bounds[1])


BAD = [
    {"size_min": 200, "size_max": 100},
    {"size_min": 500},
    {"size_max": 50},
    {"size_min": -1},
    {"size_max": 10_000},
    {"n_init": 0},
    {"max_iter": 0},
    {"n_clusters": 601},
    {"init": np.zeros((3, 3))},
]


@pytest.mark.parametrize("wrong", BAD, ids=lambda wrong: next(iter(wrong)))
def test_it_refuses_what_k_means_constrained_refuses(wrong):
    for estimator in (BalancedKMeans, KMeansConstrained):
        with pytest.raises(ValueError):
            estimator(**{"n_clusters": 4, "n_init": 1, **wrong}).fit(clouds())


@pytest.mark.parametrize("wrong", [{"n_clusters": 0}, {"metric": "manhattan"}, {"init": "kmeans"}])
def test_other_bad_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BalancedKMeans(**{"n_init": 1, **wrong}).fit(clouds())


@pytest.mark.parametrize("init", ["random", lambda X, n, random_state: X[:n]], ids=["random", "function"])
def test_other_starts(init):
    model = BalancedKMeans(6, init=init, n_init=1, random_state=0).fit(clouds())
    np.testing.assert_array_equal(np.bincount(model.labels_), [100] * 6)


def test_float32_stays_float32_and_far_from_the_origin_nothing_is_lost():
    X = clouds()
    near = BalancedKMeans(6, n_init=1, random_state=0).fit(X)
    far = BalancedKMeans(6, n_init=1, random_state=0).fit((X + 1000).astype(np.float32))
    assert far.cluster_centers_.dtype == np.float32
    assert far.inertia_ == pytest.approx(near.inertia_, rel=1e-3)


def test_the_same_seed_gives_the_same_bits_and_fit_leaves_its_input_alone():
    X = clouds()
    kept = X.copy()
    model = BalancedKMeans(6, n_init=3, random_state=5).fit(X)
    again = clone(model).fit(X)
    np.testing.assert_array_equal(model.cluster_centers_, again.cluster_centers_)
    np.testing.assert_array_equal(X, kept)


def test_without_a_copy_the_input_comes_back_but_for_rounding():
    X = clouds()
    kept, expected = X.copy(), BalancedKMeans(6, n_init=1, random_state=0).fit(X)
    model = BalancedKMeans(6, n_init=1, random_state=0, copy_x=False, n_jobs=2).fit(X)
    np.testing.assert_allclose(X, kept, atol=1e-14)
    np.testing.assert_array_equal(model.labels_, expected.labels_)
    with pytest.raises(ValueError, match="initial centres"):
        BalancedKMeans(6, init=np.zeros((2, 3)), copy_x=False).fit(X)
    np.testing.assert_allclose(X, kept, atol=1e-14)


def test_a_fit_tells_its_progress(capsys):
    told = []
    model = BalancedKMeans(6, n_init=2, random_state=0, verbose=True, progress=lambda *at: told.append(at))
    model.fit(clouds())
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][1] == 2 * 300
    assert "run 2 of 2, round 1, inertia" in capsys.readouterr().out
