"""How far apart two sets of images are: the Frechet distance between Gaussians fitted to their features."""

from __future__ import annotations

import numpy as np

from iar_study.errors import InputError


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) in float64, 0 or more, in squared feature units.

    Parameters
    ----------
    features_a, features_b : float (n_a, F) and (n_b, F), at least 2 rows each; mu and S are their mean and unbiased
        covariance, as in FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6). Covariances may be singular.

    Raises
    ------
    InputError : the shapes do not fit, there are fewer than 2 rows, or a value is NaN or infinite.
    """
    mean_a, root_a = _gaussian(features_a, "first")
    mean_b, root_b = _gaussian(features_b, "second")
    if mean_a.shape != mean_b.shape:
        raise InputError(f"cannot compare {len(mean_a)} features with {len(mean_b)}; use one classifier for both sets")
    # With S = R^T R, tr (S_a S_b)^(1/2) is the sum of the singular values of R_a R_b^T: no root of a matrix that may
    # be singular, no complex numbers.
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross
    return max(float(distance), 0.0)  # rounding may leave -1e-13 for equal sets


def _gaussian(features: np.ndarray, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (F,) and a root R (min(n, F), F) of the covariance R^T R, float64."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"the {which} features have shape {x.shape}: need (n, F) with at least 2 rows")
    if not np.isfinite(x).all():
        raise InputError(f"the {which} features hold NaN or infinite values")
    mean = x.mean(axis=0)
    return mean, np.linalg.qr((x - mean) / np.sqrt(len(x) - 1)).R
