"""The Frechet distance against closed forms and scipy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from iar_study.errors import InputError
from iar_study.evaluation.fidelity import frechet_distance


def correlated(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def test_equals_the_formula_with_scipys_matrix_root() -> None:
    rng = np.random.default_rng(0)
    a, b = correlated(rng, 300, 12), correlated(rng, 200, 12)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


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
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "second features hold NaN"),
        (np.full((5, 3), np.inf), np.zeros((5, 3)), "first features hold NaN"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "3 features with 4"),
    ],
)
def test_bad_features(a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        frechet_distance(a, b)
