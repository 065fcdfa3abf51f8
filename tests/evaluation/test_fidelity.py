"""What is measured on samples, against closed forms, other implementations and simulations with a known answer."""

import tracemalloc
from dataclasses import astuple

import numpy as np
import prdc
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from iar_study.errors import InputError
from iar_study.evaluation import fidelity
from iar_study.evaluation.fidelity import (
    Estimate,
    Gaussian,
    GaussianStatistics,
    Pairs,
    Reference,
    classification_score,
    density_coverage,
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_standard_error,
    kernel_distance,
    measure_fidelity,
    precision_recall,
)
from iar_study.evaluation.metrics import FIDELITY, SPATIAL
from iar_study.storage import load_arrays, save_arrays


def correlated(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def within(truth: float, estimates: list[Estimate]) -> float:
    """The share of intervals that hold the truth."""
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]))


# Estimates


@pytest.mark.parametrize("hits", [0, 1, 37, 99, 100])
def test_the_interval_of_a_share_is_wilsons(hits: int) -> None:
    wilson = scipy.stats.binomtest(hits, 100).proportion_ci(method="wilson")
    estimate = Estimate.share(np.arange(100) < hits)
    assert astuple(estimate) == pytest.approx((hits / 100, wilson.low, wilson.high), abs=1e-12)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high - estimate.low > 0.03


def test_the_interval_of_a_mean() -> None:
    values = np.array([1.0, 2, 4, 9])
    error = scipy.stats.sem(values)
    assert astuple(Estimate.mean(values)) == pytest.approx((4, 4 - 1.959964 * error, 4 + 1.959964 * error), rel=1e-6)


# Gaussians


def test_a_gaussian_has_the_mean_and_the_unbiased_covariance() -> None:
    x = correlated(np.random.default_rng(0), 300, 12)
    fitted = Gaussian.of(x)
    assert fitted.count == 300
    np.testing.assert_allclose(fitted.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(fitted.root.T @ fitted.root, np.cov(x, rowvar=False), rtol=1e-11)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 2600),  # the block that batches are copied to has 1,024 rows here
    width=st.integers(1, 6),
    far=st.sampled_from([0.0, 1e6]),
    cuts=st.lists(st.integers(0, 2600), max_size=8),
    single=st.booleans(),
)
def test_batches_give_the_bits_of_all_at_once_and_numpys_moments(
    n: int, width: int, far: float, cuts: list[int], single: bool
) -> None:
    x = correlated(np.random.default_rng(n), n, width) + far
    x = x.astype(np.float32 if single else np.float64)
    statistics = GaussianStatistics()
    for batch in np.split(x, sorted(min(cut, n) for cut in cuts)):  # some of them empty
        statistics.update(batch)
        if statistics.count > 1:
            statistics.gaussian()  # looking changes nothing
    batched, whole = statistics.gaussian(), Gaussian.of(x)
    assert np.array_equal(batched.mean, whole.mean)
    assert np.array_equal(batched.root, whole.root)
    wide = x.astype(np.float64)
    assert whole.root.shape[0] <= min(n, width)
    np.testing.assert_allclose(whole.mean, wide.mean(0), rtol=1e-12, atol=1e-12)
    covariance = np.cov(wide, rowvar=False).reshape(width, width)
    np.testing.assert_allclose(
        whole.root.T @ whole.root, covariance, rtol=1e-9, atol=1e-9 * np.abs(covariance).max() + 1e-12
    )


def test_features_that_drift_lose_no_digits() -> None:
    # The shift is the mean of the first block; later ones lie a thousand deviations away.
    x = np.random.default_rng(1).normal(size=(4000, 3)) + np.repeat([0, 1000], 2000)[:, None]
    fitted = Gaussian.of(x)
    np.testing.assert_allclose(fitted.root.T @ fitted.root, np.cov(x, rowvar=False), rtol=1e-12)


def test_no_more_than_a_block_is_held() -> None:
    batch = np.random.default_rng(2).normal(size=(500, 16))
    statistics = GaussianStatistics().update(batch)
    tracemalloc.start()
    for _ in range(100):
        statistics.update(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert statistics.count == 50_500
    assert peak < 10 * batch.nbytes


def test_published_moments_stand_for_the_features() -> None:
    rng = np.random.default_rng(3)
    a, b = correlated(rng, 200, 5), correlated(rng, 200, 5)
    moments = Gaussian.from_moments(a.mean(0), np.cov(a, rowvar=False), 200)
    assert (moments.count, moments.root.shape) == (200, (5, 5))
    assert frechet_distance(moments, b) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    rounded = Gaussian.from_moments(a.mean(0), np.cov(a[:4], rowvar=False).astype(np.float32), 200)  # singular
    assert frechet_distance(rounded, Gaussian(4, a.mean(0), Gaussian.of(a[:4]).root)) < 1e-3


@pytest.mark.parametrize(
    ("mean", "covariance", "count", "message"),
    [
        (np.zeros(2), np.eye(3), 9, "need"),
        (np.zeros((1, 2)), np.eye(2), 9, "need"),
        (np.zeros(2), np.eye(2), 1, "of 1 images"),
        (np.zeros(2), np.diag([1, np.nan]), 9, "NaN"),
        (np.zeros(2), np.diag([1, -0.1]), 9, "positive semi-definite"),
        (np.zeros(2), np.array([[1, 0.5], [0.2, 1]]), 9, "symmetric"),
    ],
)
def test_bad_moments(mean: np.ndarray, covariance: np.ndarray, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gaussian.from_moments(mean, covariance, count)


def test_statistics_of_too_few_or_unequal_batches() -> None:
    with pytest.raises(InputError, match="at least 2 images, got 0"):
        GaussianStatistics().gaussian()
    with pytest.raises(InputError, match="at least 2 images, got 1"):
        GaussianStatistics().update(np.zeros((1, 3))).gaussian()
    with pytest.raises(InputError, match="3 features with 4"):
        GaussianStatistics().update(np.zeros((5, 3))).update(np.zeros((5, 4)))


# Frechet distance


def test_equals_the_formula_with_scipys_matrix_root() -> None:
    rng = np.random.default_rng(0)
    a, b = correlated(rng, 300, 12), correlated(rng, 200, 12)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(Gaussian.of(a), b) == frechet_distance(a, Gaussian.of(b)) == frechet_distance(a, b)


def test_known_gaussians() -> None:
    # Diagonal covariances: the distance is the sum of (difference of means)^2 + (difference of deviations)^2.
    base = np.random.default_rng(1).normal(size=(500, 3))
    base = np.linalg.qr(base - base.mean(0))[0] * np.sqrt(499)  # exactly mean 0, covariance I
    a = base * [1, 2, 3] + [0, 0, 5]
    b = base * [2, 2, 1] + [1, 0, 3]
    assert frechet_distance(a, b) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4), rel=1e-12)


def test_symmetric_and_invariant_under_rotation_and_order() -> None:
    rng = np.random.default_rng(2)
    a, b = correlated(rng, 100, 8), correlated(rng, 150, 8)
    distance = frechet_distance(a, b)
    rotation = scipy.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert distance > 1
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(a[::-1] @ rotation, b @ rotation) == pytest.approx(distance, rel=1e-10)


@pytest.mark.parametrize("n", [5, 100])  # 5 rows of 8 features: singular covariance
def test_zero_for_identical_sets(n: int) -> None:
    a = correlated(np.random.default_rng(3), n, 8)
    assert 0 <= frechet_distance(a, a) < 1e-10


def test_singular_covariances() -> None:
    # A constant feature and a duplicated one add their own terms and break nothing.
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(400, 1)), rng.normal(2, 3, size=(300, 1))
    single = np.square(a.mean() - b.mean()) + np.square(a.std(ddof=1) - b.std(ddof=1))
    wide_a = np.hstack([a, a, np.full_like(a, 7)])
    wide_b = np.hstack([b, b, np.full_like(b, 10)])
    assert frechet_distance(wide_a, wide_b) == pytest.approx(2 * single + 9, rel=1e-9)


def test_float32_features_are_widened() -> None:
    # In float32 a spread of 1e-3 around 1000 would drown.
    rng = np.random.default_rng(5)
    a = (1000 + rng.normal(size=(200, 4))).astype(np.float32)
    b = (1000.5 + rng.normal(size=(200, 4))).astype(np.float32)
    assert frechet_distance(a, b) == frechet_distance(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "first features have shape"),
        (np.zeros((5, 3)), np.zeros(3), "second features have shape"),
        (np.zeros((5, 0)), np.zeros((5, 0)), "first features have shape"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "second features hold NaN"),
        (np.full((5, 3), np.inf), np.zeros((5, 3)), "first features hold NaN"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "3 features with 4"),
    ],
)
@pytest.mark.parametrize("measure", [frechet_distance, frechet_distance_at_infinity, frechet_standard_error])
def test_bad_features(measure, a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(a, b)


# Frechet distance at infinity, and the error of both


class Generator:
    """Draws samples of a known Gaussian, beside a known reference."""

    def __init__(self, width: int, away: float) -> None:
        self.rng = np.random.default_rng(width)
        root = self.rng.normal(size=(width, width)) / width**0.5
        self.reference = Gaussian(10**6, np.zeros(width), root)
        self.mean = away * self.rng.normal(size=width) / width**0.5
        self.root = root + away * self.rng.normal(size=(width, width)) / width**0.5
        self.distance = frechet_distance(self.reference, Gaussian(10**6, self.mean, self.root))

    def draw(self, n: int) -> np.ndarray:
        return self.rng.normal(size=(n, len(self.mean))) @ self.root + self.mean


@pytest.mark.parametrize("away", [0.0, 0.1, 0.3])
def test_extrapolation_removes_the_bias(away: float) -> None:
    generator = Generator(16, away)
    errors = []
    for _ in range(40):
        x = generator.draw(500)
        measured = (frechet_distance(generator.reference, x), frechet_distance_at_infinity(generator.reference, x))
        errors.append(np.array(measured) - generator.distance)
    (plain, extrapolated), chance = np.mean(errors, axis=0), np.std(errors, axis=0) / 40**0.5
    assert plain > 0.1  # visibly biased
    assert abs(extrapolated) < 0.1 * plain + 3 * chance[1]
    plain, extrapolated = np.sqrt(np.mean(np.square(errors), axis=0))
    assert extrapolated < 0.6 * plain


def test_extrapolation_scatters_less_than_from_random_subsets() -> None:
    generator = Generator(16, 0.1)
    ours, subsets = [], []
    for seed in range(40):
        x = generator.draw(500)
        ours.append(frechet_distance_at_infinity(generator.reference, x, seed))
        counts = np.linspace(50, 500, 15).astype(int)
        parts = (generator.rng.choice(x, count, replace=False) for count in counts)
        distances = [frechet_distance(generator.reference, part) for part in parts]
        subsets.append(np.polyfit(1 / counts, distances, 1)[1])
    assert np.var(ours) < 0.7 * np.var(subsets)


def test_extrapolation_of_two_points_is_a_line_through_them() -> None:
    # 20 samples of 4 features leave two counts: 20 samples, and the mean of both halves.
    x, reference = np.random.default_rng(6).normal(size=(20, 4)), Gaussian(9, np.zeros(4), 2 * np.eye(4))
    halves = np.array_split(np.random.default_rng(7).permutation(20), 2)
    half = np.mean([frechet_distance(reference, x[rows]) for rows in halves])
    expected = 2 * frechet_distance(reference, x) - half
    assert frechet_distance_at_infinity(reference, x, seed=7) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_at_infinity(reference, x, seed=8) != frechet_distance_at_infinity(reference, x, seed=7)


@pytest.mark.parametrize(("n", "levels"), [(4, 2), (40, 2), (49, 3), (1000, 5)])
def test_extrapolation_keeps_parts_of_twice_the_width(n: int, levels: int) -> None:
    seen = []
    x = np.random.default_rng(8).normal(size=(n, 8))
    frechet_distance_at_infinity(x, x, progress=lambda what, done, total, detail: seen.append((done, total)))
    assert seen == [(level, levels) for level in range(1, levels + 1)]


def test_extrapolation_needs_four_samples() -> None:
    with pytest.raises(InputError, match="at least 4 rows"):
        frechet_distance_at_infinity(np.zeros((9, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize("n", [60, 5000])  # one and two blocks of rows
def test_the_standard_error_is_the_bootstraps(n: int) -> None:
    # Far from 0, where a covariance about 0 would have no digits left.
    generator = Generator(3, 0.5)
    x, reference = generator.draw(n) + 1e6, Gaussian(10**6, np.full(3, 1e6), generator.reference.root)
    rng = np.random.default_rng(3)
    resampled = [frechet_distance(reference, x[rng.integers(n, size=n)]) for _ in range(200)]
    assert frechet_standard_error(reference, x, seed=3) == pytest.approx(np.std(resampled, ddof=1), rel=1e-6)


def test_fewer_resamples_of_wide_features() -> None:
    totals = set()
    for width in (512, 513):
        x = np.random.default_rng(9).normal(size=(6, width))
        reference = Gaussian(9, np.zeros(width), np.eye(1, width))  # a root of one row makes it fast
        frechet_standard_error(reference, x, progress=lambda what, done, total, detail: totals.add(total))
    assert totals == {200, 20}


@pytest.mark.parametrize("away", [0.0, 0.5])
def test_intervals_hold_the_mean_distance_and_the_one_at_infinity(away: float) -> None:
    generator = Generator(4, away)
    plain, at_infinity = [], []
    for _ in range(200):
        x = generator.draw(120)
        error = frechet_standard_error(generator.reference, x)
        plain.append(Estimate.around(frechet_distance(generator.reference, x), error))
        at_infinity.append(Estimate.around(frechet_distance_at_infinity(generator.reference, x), error))
    mean = np.mean([estimate.value for estimate in plain])
    assert mean > generator.distance
    assert within(mean, plain) > 0.92
    assert within(generator.distance, at_infinity) > 0.92
    # Where the sets differ the interval is not too wide either: 95% is what it says, 4 standard errors are 6%.
    width = np.mean([estimate.high - estimate.low for estimate in plain]) / (2 * 1.96)
    assert width < (1.3 if away else 2.0) * np.std([estimate.value for estimate in plain])


# Kernel distance


def cubic_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared MMD by its definition."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([[(p @ q / len(p) + 1) ** 3 for q in b] for p in a])

    within_x, within_y = (kernel(a, a)[~np.eye(len(a), dtype=bool)] for a in (x, y))
    return within_x.mean() + within_y.mean() - 2 * kernel(x, y).mean()


def test_kernel_distance_pair_by_pair_with_its_jackknife() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(0.3, size=(17, 3))
    estimate = kernel_distance(Pairs(y, x))
    without = np.array([cubic_mmd(np.delete(x, i, axis=0), y) for i in range(12)])
    error = np.sqrt(11 / 12 * np.square(without - without.mean()).sum())
    value = cubic_mmd(x, y)
    assert astuple(estimate) == pytest.approx((value, value - 1.959964 * error, value + 1.959964 * error), rel=1e-6)


def test_kernel_distance_equals_torchmetrics() -> None:
    rng = np.random.default_rng(1)
    x, y = np.abs(correlated(rng, 1100, 10)), np.abs(correlated(rng, 1100, 10))  # three tiles of 512
    real, fake = torch.from_numpy(y), torch.from_numpy(x)
    value = kernel_distance(Pairs(y, x)).value
    assert value == pytest.approx(float(poly_mmd(real, fake)), rel=1e-10)
    with pytest.warns(UserWarning, match="save all extracted features"):
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=1100)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert value == pytest.approx(float(metric.compute()[0]), rel=1e-10)


def test_kernel_distance_is_unbiased_and_its_interval_holds_the_mean() -> None:
    rng = np.random.default_rng(2)
    reference = Reference(rng.normal(size=(200, 4)))
    for shift in (0.0, 0.5):
        estimates = [kernel_distance(Pairs(reference, rng.normal(shift, size=(40, 4)))) for _ in range(300)]
        truth = kernel_distance(Pairs(reference, rng.normal(shift, size=(8000, 4)))).value
        values = np.array([estimate.value for estimate in estimates])
        assert values.mean() == pytest.approx(truth, abs=3.5 * values.std() / 300**0.5)
        assert within(truth, estimates) > 0.9
        assert np.mean([e.high - e.low for e in estimates]) < 1.5 * 2 * 1.96 * values.std()


# Precision, recall, density, coverage


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m"), [(700, 1100), (30, 60)])
def test_equals_prdc(kind: type, n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    x = (rng.normal(size=(n, 6)) * [1, 1, 1, 0.5, 0.5, 2]).astype(kind)
    y = rng.normal(size=(m, 6)).astype(kind)
    precision, recall = precision_recall(Pairs(y, x))
    density, coverage = density_coverage(Pairs(y, x))
    expected = prdc.compute_prdc(y, x, nearest_k=3)
    assert (precision.value, recall.value) == pytest.approx((expected["precision"], expected["recall"]), abs=1e-12)
    expected = prdc.compute_prdc(y, x, nearest_k=5)
    assert (density.value, coverage.value) == pytest.approx((expected["density"], expected["coverage"]), abs=1e-12)
    for estimate in (precision, recall, coverage):
        assert 0.1 < estimate.value < 1


def test_their_intervals() -> None:
    rng = np.random.default_rng(4)
    pairs = Pairs(rng.normal(size=(80, 3)), rng.normal(size=(50, 3)))
    precision, recall = precision_recall(pairs)
    density, coverage = density_coverage(pairs)
    for estimate, n in ((precision, 50), (recall, 80), (coverage, 80)):
        wilson = scipy.stats.binomtest(round(estimate.value * n), n).proportion_ci(method="wilson")
        assert (estimate.low, estimate.high) == pytest.approx((wilson.low, wilson.high))
    held_out = pairs.reference.features
    radii = np.sort(cdist(held_out, held_out), axis=1)[:, 5]  # the first is the image itself
    inside = cdist(pairs.samples.features, held_out) < radii
    each = inside.sum(axis=1) / 5
    assert density.value == pytest.approx(each.mean())
    assert density.high - density.low == pytest.approx(2 * 1.959964 * scipy.stats.sem(each), rel=1e-6)


def test_copies_lie_within_each_other() -> None:
    # Balls are closed, so modes of equal images hold their copies, however products are rounded, and nothing else.
    rng = np.random.default_rng(5)
    images, others = 100 * rng.normal(size=(2, 50, 300))
    reference = np.vstack([np.repeat(images, 6, axis=0), rng.normal(size=(400, 300))])
    copies = Pairs(reference, np.tile(images, (7, 1)))
    radii, _ = copies.reference.own_pairs()
    assert (radii[:300] == 0).all()
    assert (radii[300:] > 1).all()
    precision, recall = precision_recall(copies)
    _, coverage = density_coverage(copies)
    assert (precision.value, recall.value, coverage.value) == (1, 300 / 700, 300 / 700)
    precision, recall = precision_recall(Pairs(reference, np.repeat(others, 7, axis=0)))
    assert (precision.value, recall.value) == (0, 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(4, 20), m=st.integers(6, 20), width=st.integers(1, 4))
def test_bounds_and_symmetry(seed: int, n: int, m: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, width)), rng.normal(0.5, size=(m, width))
    there, back = Pairs(y, x), Pairs(x, y)
    assert kernel_distance(there).value == pytest.approx(kernel_distance(back).value, abs=1e-10)
    assert [e.value for e in precision_recall(there)] == [e.value for e in precision_recall(back)][::-1]
    density, coverage = density_coverage(there)
    assert 0 <= density.value <= m / 5
    assert (density.value == 0) == (coverage.value == 0)
    shuffled = Pairs(y[rng.permutation(m)], x[rng.permutation(n)])
    assert kernel_distance(shuffled).value == pytest.approx(kernel_distance(there).value, abs=1e-10)
    assert precision_recall(shuffled) == precision_recall(there)
    assert density_coverage(shuffled)[1] == coverage


# Score


def test_score_equals_its_definition_and_torchmetrics() -> None:
    logits = 3 * np.random.default_rng(0).normal(size=(400, 7))
    p = scipy.special.softmax(logits, axis=1)
    divergences = [sum(a * np.log(a / b) for a, b in zip(row, p.mean(0), strict=True)) for row in p]
    estimate = classification_score(p)
    assert estimate.value == pytest.approx(np.exp(np.mean(divergences)), rel=1e-12)
    assert np.log(estimate.high / estimate.value) == pytest.approx(1.959964 * scipy.stats.sem(divergences), rel=1e-6)
    with pytest.warns(UserWarning, match="save all extracted features"):
        metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.update(torch.from_numpy(logits))
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert estimate.value == pytest.approx(float(metric.compute()[0]), rel=1e-10)


def test_score_of_sure_and_of_blind_classifiers() -> None:
    assert classification_score(np.tile(np.eye(5), (3, 1))).value == pytest.approx(5)
    assert classification_score(np.full((9, 5), 0.2, dtype=np.float32)).value == pytest.approx(1)


def test_the_scores_interval_holds_the_mean_score() -> None:
    rng = np.random.default_rng(1)
    estimates = [classification_score(rng.dirichlet([0.3] * 4, size=300)) for _ in range(300)]
    assert 0.91 < within(np.mean([estimate.value for estimate in estimates]), estimates) < 0.99


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.full((1, 2), 0.5), "class probabilities have shape"),
        (np.full((4, 2), 0.6), "sum to 1"),
        (np.tile([1.5, -0.5], (4, 1)), "negative"),
        (np.full((4, 2), np.nan), "class probabilities hold NaN"),
    ],
)
def test_bad_probabilities(probabilities: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        classification_score(probabilities)


# All of it


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference and sample features, and class probabilities of the samples."""
    rng = np.random.default_rng(0)
    features = correlated(rng, 1200, 6).astype(np.float32)
    return features[:700], features[700:], rng.dirichlet([0.3] * 4, size=500).astype(np.float32)


def test_everything_is_measured_and_known_to_the_table_of_metrics(sets) -> None:
    reference, samples, probabilities = sets
    measured = measure_fidelity(Reference(reference), samples, probabilities, intervals=True)
    assert list(measured) == [name for name in FIDELITY if name not in ("class_agreement", "fd_codes", *SPATIAL)]
    for estimate in measured.values():
        assert estimate.low < estimate.value < estimate.high
    assert measured["fd"].value == frechet_distance(reference, samples)
    assert measured["fd_inf"].value == frechet_distance_at_infinity(reference, samples)
    assert measured["fd"] == Estimate.around(measured["fd"].value, frechet_standard_error(reference, samples))
    assert measured["score"] == classification_score(probabilities)
    pairs = Pairs(reference, samples)
    assert measured["kd"] == kernel_distance(pairs)
    assert (measured["precision"], measured["recall"]) == precision_recall(pairs)
    assert (measured["density"], measured["coverage"]) == density_coverage(pairs)
    assert "score" not in measure_fidelity(Reference(reference), samples, None, intervals=False)


def test_the_same_bits_again_and_without_intervals(sets) -> None:
    reference, samples, probabilities = sets
    first, again = (measure_fidelity(Reference(r), samples, probabilities, intervals=True) for r in (reference,) * 2)
    assert first == again
    plain = measure_fidelity(Reference(reference), samples, probabilities, intervals=False)
    assert [e.value for e in plain.values()] == [e.value for e in first.values()]
    assert all(np.isnan([e.low, e.high]).all() for e in plain.values())
    other = measure_fidelity(Reference(reference), samples, probabilities, intervals=True, seed=1)
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {"fd", "fd_inf"}
    assert first["fd"].value == other["fd"].value


def test_a_stored_reference_measures_the_same_and_computes_nothing_again(sets, tmp_path, monkeypatch) -> None:
    reference, samples, probabilities = sets
    kept = Reference(reference)
    for array in kept.arrays().values():
        assert array.flags.c_contiguous
    save_arrays(tmp_path / "reference.safetensors", kept.arrays())
    expected = measure_fidelity(kept, samples, probabilities, intervals=True)

    counts = []
    among = fidelity._among_themselves
    monkeypatch.setattr(fidelity, "_among_themselves", lambda x, *other: counts.append(len(x)) or among(x, *other))
    back = Reference.from_arrays(load_arrays(tmp_path / "reference.safetensors")[0])
    assert measure_fidelity(back, samples, probabilities, intervals=True) == expected
    assert counts == [500]  # the samples alone
    assert back.gaussian.count == 700
    for name, array in kept.arrays().items():
        assert array.dtype == back.arrays()[name].dtype
        assert np.array_equal(array, back.arrays()[name])


def test_a_stored_reference_must_be_whole(sets) -> None:
    arrays = Reference(sets[0]).arrays()
    del arrays["radii"]
    with pytest.raises(InputError, match="lacks radii"):
        Reference.from_arrays(arrays)


def test_another_gaussian_counts_for_frechet_distances_alone(sets) -> None:
    reference, samples, _ = sets
    training = Gaussian.from_moments(np.ones(6), np.eye(6), 50_000)
    plain = measure_fidelity(Reference(reference), samples, None, intervals=False)
    given = Reference(reference, gaussian=training)
    measured = measure_fidelity(given, samples, None, intervals=False)
    assert {name for name in plain if plain[name].value != measured[name].value} == {"fd", "fd_inf"}
    assert measured["fd"].value == frechet_distance(training, samples)
    assert Reference.from_arrays(given.arrays()).gaussian.count == 50_000
    with pytest.raises(InputError, match="5 features with 6"):
        Reference(reference, gaussian=Gaussian(9, np.zeros(5), np.eye(5)))


def test_progress_is_told_to_the_end(sets) -> None:
    reference, samples, probabilities = sets
    told: list[tuple[str, int, int]] = []
    measure_fidelity(
        Reference(reference),
        samples,
        probabilities,
        intervals=True,
        progress=lambda what, done, total, detail: told.append((what, done, total)),
    )
    assert [what for what, done, total in told if done == total] == [
        "Frechet distance at infinity",
        "interval of the Frechet distance",
        "pairs within a set",  # the reference
        "pairs within a set",  # the samples
        "pairs of sample and reference",
    ]


@pytest.mark.parametrize(
    ("n", "m", "message"),
    [
        (3, 9, "sample features have shape"),
        (9, 1, "reference features have shape"),
        (9, 5, "reference features have 5 rows"),
    ],
)
def test_too_few_images(n: int, m: int, message: str) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=message):
        measure_fidelity(Reference(rng.normal(size=(m, 2))), rng.normal(size=(n, 2)), None, intervals=False)


def test_too_few_neighbours() -> None:
    x = np.random.default_rng(0).normal(size=(9, 2))
    kernel_distance(Pairs(x[:2], x[:3]))  # enough for some
    with pytest.raises(InputError, match="reference features have 3 rows"):
        precision_recall(Pairs(x[:3], x))
    with pytest.raises(InputError, match="sample features have 3 rows"):
        precision_recall(Pairs(x, x[:3]))
    with pytest.raises(InputError, match="reference features have 5 rows"):
        density_coverage(Pairs(x[:5], x))


def test_sets_that_do_not_fit() -> None:
    x = np.random.default_rng(0).normal(size=(9, 2))
    with pytest.raises(InputError, match="2 features with 1"):
        measure_fidelity(Reference(x), x[:, :1], None, intervals=False)
    with pytest.raises(InputError, match="2 features with 1"):
        Pairs(x, x[:, :1])
    with pytest.raises(InputError, match="8 rows of class probabilities for 9 samples"):
        measure_fidelity(Reference(x), x, np.full((8, 2), 0.5), intervals=False)
    with pytest.raises(InputError, match="sample features hold NaN"):
        measure_fidelity(Reference(x), np.where(x > 0, np.nan, x), None, intervals=False)
    with pytest.raises(InputError, match="reference features hold NaN"):
        Reference(np.where(x > 0, np.inf, x))
