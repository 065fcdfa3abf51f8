"""How good sets of images are, measured in features that somebody else extracted.

Everything is computed in float64, from feature arrays (n, F). Memory stays bounded at 50,000 images of 2,048 features:
Gaussians are accumulated over blocks of rows, and pairs of images are visited tile by tile. What a set needs of itself
is computed once (`Reference`), so that many sets of samples can be measured against one. Given a `device`, pairs of
images, triangles and roots of matrices are computed there with torch, in float64 too, and equal up to rounding; without
one with NumPy.

An interval tells how a value varies over other samples of the same generator, the reference held fixed; that of recall
and of coverage, which are means over the reference, how it varies over other references, the samples held fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.special import rel_entr
from scipy.stats import norm

from iar_study.errors import InputError

Progress = Callable[[str, int, int, str], None]
"""Called with (what, done, total, detail)."""

NEIGHBOURS = (3, 5)
"""k of precision and recall (arXiv 1904.06991), and k of density and coverage (arXiv 2002.09797)."""

TILE = 512
"""Rows of a set that meet rows of another at a time: a tile of 2 MiB stays in a core's cache."""

DEVICE_TILE = 4096
"""The same with torch: a tile of 128 MiB keeps a GPU busy."""

SCORED_PARTS = 10
"""Parts of the samples whose scores the customary inception score is the mean of; ADM's have 5,000 samples each."""

EXTRAPOLATED = 5
"""Most parts that samples are split into to extrapolate the Frechet distance."""

SPATIAL = "spatial_"
"""Begins the names of the arrays that are kept of a Gaussian of spatial features."""

Z = float(norm.ppf(0.975))
"""Standard errors from the middle of a 95% interval to its ends."""


@dataclass(frozen=True)
class Estimate:
    """A measured value and its 95% interval; the bounds are NaN where no interval was asked for."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @classmethod
    def around(cls, value: float, error: float) -> Estimate:
        """Return value -+ 1.96 standard errors."""
        return cls(float(value), float(value - Z * error), float(value + Z * error))

    @classmethod
    def mean(cls, values: np.ndarray) -> Estimate:
        """Return the mean of independent values (n,), n >= 2; its standard error is sd / sqrt(n)."""
        return cls.around(values.mean(), values.std(ddof=1) / len(values) ** 0.5)

    @classmethod
    def share(cls, hits: np.ndarray) -> Estimate:
        """Return the share of true values in bool (n,) with Wilson's interval, which has a width at 0 and 1 too."""
        n, p = len(hits), float(hits.mean())
        middle, half = p + Z**2 / (2 * n), Z * (p * (1 - p) / n + (Z / (2 * n)) ** 2) ** 0.5
        low, high = (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)
        return cls(p, min(low, p), max(high, p))  # rounding may put the end of a share of exactly 0 or 1 beyond it


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian fitted to features.

    Parameters
    ----------
    count : images it was fitted to.
    mean : float64 (F,).
    root : float64 (r, F), r at most F and count; root^T root is the unbiased covariance, which may be singular.
    """

    count: int
    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, which: str = "given features", device: str | None = None) -> Gaussian:
        """Fit to float (n, F), n >= 2. Raises `InputError`, which calls them `which`, if they are not."""
        return GaussianStatistics(device).update(_checked(features, which)).gaussian()

    @classmethod
    def from_moments(cls, mean: np.ndarray, covariance: np.ndarray, count: int) -> Gaussian:
        """Take over published moments, such as `mu` and `sigma` of the ADM evaluator's reference files.

        Parameters
        ----------
        mean, covariance : float (F,) and (F, F); symmetric and positive semi-definite, up to rounding.
        count : images they were computed from, 2 or more.

        Raises
        ------
        InputError : the shapes do not fit, a value is not finite, or it is no covariance.
        """
        mean, covariance = np.array(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
        if mean.ndim != 1 or len(mean) == 0 or covariance.shape != 2 * mean.shape or count < 2:
            raise InputError(
                f"mean {mean.shape}, covariance {covariance.shape} of {count} images: need (F,), (F, F), 2 or more"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise InputError("the mean or the covariance holds NaN or infinite values")
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        rounding = 1e-5 * np.abs(values).max()  # statistics kept in float32 miss symmetry and 0 by some 1e-7
        if np.abs(covariance - covariance.T).max() > rounding or values.min() < -rounding:
            raise InputError("the covariance is not symmetric and positive semi-definite")
        return cls(int(count), mean, np.sqrt(np.maximum(values, 0))[:, None] * np.ascontiguousarray(vectors.T))


class GaussianStatistics:
    """Accumulate a Gaussian over batches of features; it has the same bits however they were batched.

    Of [1, x - c], the features x beside a column of ones, it keeps the triangle of a QR factorisation,
    [[+-sqrt(n), *], [0, root of the centred scatter]]: no matrix that may be singular is squared. The shift c is the
    mean of the first rows, so that features far from 0 lose no digits. Memory: the triangle, and a block of
    max(1024, 2F) rows that batches are copied to; when it is full, the triangle takes it in.
    """

    def __init__(self, device: str | None = None) -> None:
        self.count, self.device = 0, device
        self._block = np.empty((0, 0))
        self._filled = 0
        self._shift: np.ndarray | None = None
        self._triangle: np.ndarray | None = None

    def update(self, features: np.ndarray) -> GaussianStatistics:
        """Take in float (b, F), b >= 0, and return self; raises `InputError` for other shapes, widths, NaN or inf."""
        x = _checked(features, "new features", least=0)
        if self._block.size == 0:
            self._block = np.empty((max(1024, 2 * x.shape[1]), x.shape[1]))
        _same_width(self._block.shape[1], x.shape[1])
        self.count += len(x)
        while len(x):
            part = x[: len(self._block) - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            x = x[len(part) :]
            if self._filled == len(self._block):
                self._shift, self._triangle = self._folded()
                self._filled = 0
        return self

    def gaussian(self) -> Gaussian:
        """Return the Gaussian of all features so far; raises `InputError` when there are fewer than 2."""
        if self.count < 2:
            raise InputError(f"a Gaussian needs the features of at least 2 images, got {self.count}")
        shift, triangle = self._folded()
        mean = shift + triangle[0, 1:] / triangle[0, 0]
        return Gaussian(self.count, mean, triangle[1:, 1:] / np.sqrt(self.count - 1))

    def _folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the shift, and the triangle that has taken in the block's rows."""
        rows = self._block[: self._filled]
        shift = rows.mean(axis=0) if self._shift is None else self._shift
        stacked = np.hstack([np.ones((len(rows), 1)), rows - shift])
        if self._triangle is not None:
            stacked = np.vstack([self._triangle, stacked])
        if self.device is not None:
            return shift, _back(torch.linalg.qr(_placed(stacked, self.device), mode="r").R)
        return shift, np.asarray(np.linalg.qr(stacked, mode="r"))  # an array already, which numpy's types do not know


def frechet_distance(a: Gaussian | np.ndarray, b: Gaussian | np.ndarray, device: str | None = None) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) in float64, 0 or more, in squared feature units.

    Parameters
    ----------
    a, b : Gaussians, or features, float (n_a, F) and (n_b, F), at least 2 rows each; mu and S are their mean and
        unbiased covariance, as in FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6). Covariances may be singular.

    Raises
    ------
    InputError : the shapes do not fit, there are fewer than 2 rows, or a value is NaN or infinite.
    """
    a, b = _gaussian(a, "first features", device), _gaussian(b, "second features", device)
    _same_width(len(a.mean), len(b.mean))
    # With S = R^T R, tr (S_a S_b)^(1/2) is the sum of the singular values of R_a R_b^T: no root of a matrix that may
    # be singular, no complex numbers.
    if device is None:
        cross = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    else:
        cross = float(torch.linalg.svdvals(_placed(a.root, device) @ _placed(b.root, device).T).sum())
    # The trace of S = R^T R is the sum of all entries of R squared.
    distance = np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum() - 2 * cross
    return max(float(distance), 0.0)  # rounding may leave -1e-13 for equal sets


def frechet_distance_at_infinity(
    reference: Gaussian | np.ndarray,
    features: np.ndarray,
    seed: int = 0,
    progress: Progress | None = None,
    device: str | None = None,
) -> float:
    """Return the Frechet distance extrapolated linearly in 1/n to infinitely many samples (arXiv 1911.07023).

    FD of n samples is too large by about c / n. It is measured on all samples, on both halves of them, on the thirds
    and so on to the fifths, or as long as parts keep 2F samples; a line in 1/n is fitted to the means by least squares.
    As disjoint parts use every sample at every count, what is peculiar to these samples moves all points alike and
    tilts no line: about half the variance of the paper's random subsets, and less bias, as the counts stay larger. At
    least halves are taken, so below 4F samples some bias stays; that of the reference, taken as it is, stays always.

    Parameters
    ----------
    reference : a Gaussian, or features, float (m, F).
    features : float (n, F) of the samples, n >= 4.
    seed : of the shuffling before the split.

    Returns
    -------
    Squared feature units; by chance below 0 where the true distance is near 0.

    Raises
    ------
    InputError : as `frechet_distance`.
    """
    reference, x = _gaussian(reference, "first features", device), _checked(features, "second features", least=4)
    order = np.random.default_rng(seed).permutation(len(x))
    levels = min(max(len(x) // (2 * x.shape[1]), 2), EXTRAPOLATED, len(x) // 2)
    inverse_counts, distances = [], []
    for level in range(1, levels + 1):
        parts = np.array_split(order, level)
        inverse_counts.append(np.mean([1 / len(part) for part in parts]))
        fitted = (Gaussian.of(x[part], device=device) for part in parts)
        distances.append(np.mean([frechet_distance(reference, part, device) for part in fitted]))
        if progress:
            progress("Frechet distance at infinity", level, levels, f"{level} times {len(parts[-1])} samples")
    return float(np.polynomial.Polynomial.fit(inverse_counts, distances, 1)(0))


def frechet_standard_error(
    reference: Gaussian | np.ndarray,
    features: np.ndarray,
    seed: int = 0,
    progress: Progress | None = None,
    device: str | None = None,
) -> float:
    """Return the bootstrap's standard error of the Frechet distance over resampled samples, the reference fixed.

    200 resamples, or 20 of features wider than 512. Parameters and errors are those of `frechet_distance_at_infinity`.
    """
    # An interval is the measured value -+ 1.96 of these, not the bootstrap's percentiles. A resample has fewer distinct
    # samples, so its FD is larger than the measured one by FD's own bias once more: percentiles of wide features may
    # not even hold the measured value. FD at infinity takes the same error: extrapolation removes the bias, and leaves
    # what is peculiar to these samples nearly as it is.
    reference, x = _gaussian(reference, "first features", device), _checked(features, "second features")
    _same_width(len(reference.mean), x.shape[1])
    n, width = x.shape
    rng = np.random.default_rng(seed)
    centre = x.mean(axis=0, dtype=np.float64)
    seen, middle, mean, root = (_placed(array, device) for array in (x, centre, reference.mean, reference.root))
    # Each takes an eigendecomposition, F^3 operations: 200 know the error to 5 %, 20 of wide features to 16 %.
    distances = np.empty(200 if width <= 512 else 20)
    for i in range(len(distances)):
        weights = _placed(np.bincount(rng.integers(n, size=n), minlength=n), device)
        first, second = _placed(np.zeros(width), device), _placed(np.zeros((width, width)), device)
        for rows in _tiles(n, 8 * TILE):
            centred = seen[rows] - middle
            weighted = centred * weights[rows, None]
            first += weighted.sum(axis=0)
            second += weighted.T @ centred
        covariance = (second - first[:, None] * first / n) / (n - 1)
        # Squaring is harmless here: a singular value off by 1e-8 of the largest is nothing to a standard error.
        eigenvalues = np.linalg.eigvalsh if device is None else torch.linalg.eigvalsh
        squares = _back(eigenvalues(root @ covariance @ root.T))
        offset = _back(middle + first / n - mean)
        cross = np.sqrt(np.maximum(squares, 0)).sum()
        distances[i] = np.square(offset).sum() + float(covariance.trace()) - 2 * cross  # tr S_a is the same in all
        if progress:
            progress("interval of the Frechet distance", i + 1, len(distances), f"{n} samples")
    return float(distances.std(ddof=1))


class Reference:
    """Images to measure samples against: their features, and what these tell alone, computed when first asked for.

    Parameters
    ----------
    features : float32 or float64 (n, F), n >= 2; kept as they are.
    gaussian : stands for the features in Frechet distances; by default their own. It may be that of a whole training
        set, of which these are a part.
    spatial : the Gaussian of spatial features; None where there are none.
    device : one of torch's, on which samples are measured against it; None: by NumPy.

    Raises
    ------
    InputError : features of another shape, with NaN or infinite values, or of another width than the Gaussian.
    """

    def __init__(
        self,
        features: np.ndarray,
        gaussian: Gaussian | None = None,
        spatial: Gaussian | None = None,
        device: str | None = None,
    ) -> None:
        self.features = np.ascontiguousarray(_checked(features, "reference features"))
        self.spatial, self.device = spatial, device
        self._own: tuple[np.ndarray, np.ndarray] | None = None
        if gaussian is not None:
            _same_width(len(gaussian.mean), self.features.shape[1])
            self.gaussian = gaussian

    @cached_property
    def gaussian(self) -> Gaussian:
        """The Gaussian that Frechet distances are measured from."""
        return Gaussian.of(self.features, "reference features", self.device)

    def own_pairs(self, progress: Progress | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (radii, similarity), computed in the first call.

        radii : float64 (n, 2), each image's squared distances to its 3rd and 5th nearest other; inf with too few.
        similarity : float64 (n,), its mean cubic kernel with all others.
        """
        if self._own is None:
            self._own = _among_themselves(self.features, progress, self.device)
        return self._own

    def arrays(self, progress: Progress | None = None) -> dict[str, np.ndarray]:
        """Return everything as contiguous arrays, for `from_arrays`."""
        radii, similarity = self.own_pairs(progress)
        fitted = _as_arrays(self.gaussian) | (_as_arrays(self.spatial, SPATIAL) if self.spatial else {})
        return {"features": self.features, **fitted, "radii": radii, "similarity": similarity}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], device: str | None = None) -> Reference:
        """Return the reference that gave these arrays, to the bit; raises `InputError` where one is missing."""
        missing = {"features", "count", "mean", "root", "radii", "similarity"} - set(arrays)
        if missing:
            raise InputError(f"a stored reference lacks {', '.join(sorted(missing))}; make it again")
        spatial = _from_arrays(arrays, SPATIAL) if f"{SPATIAL}count" in arrays else None
        reference = cls(arrays["features"], _from_arrays(arrays), spatial, device)
        reference._own = arrays["radii"], arrays["similarity"]
        return reference


class Pairs:
    """All pairs of a sample and a reference image: visited once, for all that is measured on them.

    Parameters
    ----------
    reference : m images, or their features, float (m, F), m >= 2.
    features : float (n, F) of the samples, n >= 3.

    Raises
    ------
    InputError : the shapes do not fit, there are too few rows, or a value is NaN or infinite.
    """

    def __init__(
        self, reference: Reference | np.ndarray, features: np.ndarray, progress: Progress | None = None
    ) -> None:
        self.reference = reference if isinstance(reference, Reference) else Reference(reference)
        # What samples tell of themselves is what a reference tells of itself.
        device = self.reference.device
        self.samples = Reference(_checked(features, "sample features", least=3), device=device)
        x, y = self.samples.features, self.reference.features
        _same_width(y.shape[1], x.shape[1])
        radii = self.reference.own_pairs(progress)[0].T
        own = _placed(self.samples.own_pairs(progress)[0][:, :1], device)
        small, large, x, y = (_placed(array, device) for array in (*radii, x, y))
        n, m = len(x), len(y)
        empty = (np.zeros(n), np.zeros(n, bool), np.zeros(m, bool), np.zeros(n, int), np.zeros(m, bool))
        similarity, precise, recalled, balls, covered = (_placed(array, device) for array in empty)
        for rows in _tiles(n, _tile(device)):
            for columns in _tiles(m, _tile(device)):
                kernel, distances = _kernel_and_distances(x[rows], y[columns])
                similarity[rows] += kernel.sum(axis=1)
                precise[rows] |= (distances <= small[columns]).any(axis=1)
                recalled[columns] |= (distances <= own[rows]).any(axis=0)
                inside = distances <= large[columns]
                balls[rows] += inside.sum(axis=1)
                covered[columns] |= inside.any(axis=0)
            if progress:
                progress("pairs of sample and reference", rows.stop, n, f"{n} by {m} images")
        self.similarity = _back(similarity) / m  # mean cubic kernel of a sample with the reference
        self.precise = _back(precise)  # whether the sample lies in a ball of the reference
        self.recalled = _back(recalled)  # whether the reference image lies in a ball of the samples
        self.balls = _back(balls)  # larger balls of the reference that the sample lies in
        self.covered = _back(covered)  # whether a sample lies in the larger ball of the reference image


def kernel_distance(pairs: Pairs) -> Estimate:
    """Return the unbiased squared MMD of all samples with the kernel (x.y / F + 1)^3, as KID (arXiv 1801.01401).

    KID takes the mean over random subsets; all pairs give the same in the mean, with less variance. Equal distributions
    have 0 in the mean, so a value may be negative.
    """
    n = len(pairs.similarity)
    own, others = pairs.samples.own_pairs()[1], pairs.reference.own_pairs()[1]
    value = own.mean() - 2 * pairs.similarity.mean() + others.mean()
    # The interval is the jackknife's: exact to first order, and rather too wide than too narrow where both sets are
    # alike (Efron and Stein 1981). With a = pairs.similarity, MMD^2 is the mean of k_ij - a_i - a_j over i != j, and
    # a constant. With h_i the mean over the pairs of sample i, leaving i out moves it by 2 (mean(h) - h_i) / (n - 2).
    h = own - pairs.similarity * (n - 2) / (n - 1)
    moves = 2 * (h.mean() - h) / (n - 2)
    return Estimate.around(value, ((n - 1) / n * np.square(moves).sum()) ** 0.5)


def precision_recall(pairs: Pairs) -> tuple[Estimate, Estimate]:
    """Return improved precision and recall (arXiv 1904.06991): the share of one set within the other's manifold.

    A set's manifold is the union of balls around its images, each reaching to the 3rd nearest other one; ADM's
    evaluator and torch-fidelity define them so too. ADM's computes squared distances in float16, where none overflows,
    and here they are of float64: on features of Inception's size that moves either by about 0.001. Raises `InputError`
    when a set has fewer than 4.
    """
    _enough(len(pairs.covered), NEIGHBOURS[0], "reference features")
    _enough(len(pairs.balls), NEIGHBOURS[0], "sample features")
    return Estimate.share(pairs.precise), Estimate.share(pairs.recalled)


def density_coverage(pairs: Pairs) -> tuple[Estimate, Estimate]:
    """Return density and coverage (arXiv 2002.09797), in balls around the reference to the 5th nearest other image.

    Density is the mean number of balls that a sample lies in, over 5; coverage the share of balls that hold a sample.
    Raises `InputError` when the reference has fewer than 6 images.
    """
    _enough(len(pairs.covered), NEIGHBOURS[1], "reference features")
    return Estimate.mean(pairs.balls / NEIGHBOURS[1]), Estimate.share(pairs.covered)


def perfect_coverage(n: int, m: int) -> float:
    """Return the mean coverage of n samples of the very distribution that m reference images are of (2002.09797).

    >>> round(perfect_coverage(10_000, 10_000), 3), round(perfect_coverage(200, 10_000), 3)
    (0.969, 0.094)
    """
    left = np.arange(1, NEIGHBOURS[1] + 1)
    return float(1 - np.prod((m - left) / (n + m - left)))


def classification_score(probabilities: np.ndarray) -> Estimate:
    """Return exp(mean over samples x of KL(p(y|x), p(y))), the inception score (arXiv 1606.03498), from 1 to K.

    Parameters
    ----------
    probabilities : float (n, K), n >= 2; rows sum to 1. p(y) is the mean of all rows: the customary mean over 10 parts
        is the score of a tenth of the samples, `score_of_parts`.

    Raises
    ------
    InputError : other shapes, or rows that are no probabilities.
    """
    p = _checked(probabilities, "class probabilities").astype(np.float64)
    if (p < 0).any() or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise InputError("the class probabilities are negative or do not sum to 1 in every row")
    # That p(y) is estimated from the same samples adds nothing to first order: it is where the mean KL is least.
    logarithm = Estimate.mean(rel_entr(p, p.mean(axis=0)).sum(axis=1))
    return Estimate(*(float(np.exp(bound)) for bound in (logarithm.value, logarithm.low, logarithm.high)))


def score_of_parts(probabilities: np.ndarray) -> Estimate:
    """Return the mean `classification_score` of ten parts of the samples, in their order: the inception score as it is
    published, of parts of 5,000 at 50,000 samples (ADM's evaluator) and of tenths at any count (torch-fidelity).

    Smaller parts have lower scores: compare equal counts. Raises `InputError` as `classification_score`, and for fewer
    than 20 samples.
    """
    n = len(probabilities)
    if n < 2 * SCORED_PARTS:
        raise InputError(f"the score of {SCORED_PARTS} parts needs {2 * SCORED_PARTS} samples, got {n}")
    ends = [i * n // SCORED_PARTS for i in range(SCORED_PARTS + 1)]
    scores = [classification_score(probabilities[a:b]) for a, b in pairwise(ends)]
    # Each part tells how its own logarithm varies, over many samples; the spread of ten values would tell less.
    errors = np.array([each.value * np.log(each.high / each.low) / (2 * Z) for each in scores])
    return Estimate.around(
        float(np.mean([each.value for each in scores])), float(np.linalg.norm(errors)) / SCORED_PARTS
    )


def measure_fidelity(
    reference: Reference,
    features: np.ndarray,
    probabilities: np.ndarray | None,
    spatial: np.ndarray | None = None,
    *,
    intervals: bool,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Estimate]:
    """Measure samples against a reference in every way; the same inputs give the same bits.

    Parameters
    ----------
    reference : at least 6 images.
    features : float (n, F) of the samples, n >= 4, by the reference's extractor.
    probabilities : float (n, K), its class probabilities of the samples; None: no score.
    spatial : float (n, S), spatial features of the samples; None: neither sfd nor score10, which belong to Inception.
    intervals : whether to tell 95% intervals. The Frechet distance's takes most of the time.
    seed : of the extrapolation's shuffling and of the bootstrap.
    progress : called during the longer parts.

    Returns
    -------
    fd, sfd (where samples and reference have spatial features), fd_inf, kd, score (with probabilities), score10 (with
    spatial features too, of 20 samples or more), precision, recall, density, coverage, in this order; see
    `metrics.FIDELITY`.

    Raises
    ------
    InputError : the shapes do not fit, there are too few rows, or a value is NaN, infinite or no probability.
    """
    x = _checked(features, "sample features", least=NEIGHBOURS[0] + 1)
    _same_width(reference.features.shape[1], x.shape[1])
    _enough(len(reference.features), NEIGHBOURS[1], "reference features")
    for given, what in ((probabilities, "class probabilities"), (spatial, "spatial features")):
        if given is not None and len(given) != len(x):
            raise InputError(f"there are {len(given)} rows of {what} for {len(x)} samples")
    score = {} if probabilities is None else {"score": classification_score(probabilities)}
    if probabilities is not None and spatial is not None and len(x) >= 2 * SCORED_PARTS:
        score["score10"] = score_of_parts(probabilities)

    def error(of: Gaussian, features: np.ndarray) -> float:
        return frechet_standard_error(of, features, seed, progress, device) if intervals else 0.0

    device = reference.device
    fd = frechet_distance(reference.gaussian, x, device)
    fd_inf = frechet_distance_at_infinity(reference.gaussian, x, seed, progress, device)
    deviation = error(reference.gaussian, x)
    measured = {"fd": Estimate.around(fd, deviation)}
    if reference.spatial is not None and spatial is not None:
        sfd = frechet_distance(reference.spatial, spatial, device)
        measured["sfd"] = Estimate.around(sfd, error(reference.spatial, spatial))
    measured["fd_inf"] = Estimate.around(fd_inf, deviation)
    pairs = Pairs(reference, x, progress)
    measured |= {"kd": kernel_distance(pairs)} | score
    measured["precision"], measured["recall"] = precision_recall(pairs)
    measured["density"], measured["coverage"] = density_coverage(pairs)
    return measured if intervals else {name: Estimate(estimate.value) for name, estimate in measured.items()}


def _among_themselves(
    features: np.ndarray, progress: Progress | None, device: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return radii and similarity of `Reference.own_pairs`; two tiles meet once, for both."""
    n, most = len(features), max(NEIGHBOURS)
    found = (features, np.full((n, most), np.inf), np.zeros(n))
    x, nearest, similarity = (_placed(array, device) for array in found)
    tiles = list(_tiles(n, _tile(device)))
    for i, rows in enumerate(tiles):
        for columns in tiles[i:]:
            kernel, distances = _kernel_and_distances(x[rows], x[columns])
            if rows == columns:
                itself = np.arange(len(kernel))
                kernel[itself, itself], distances[itself, itself] = 0, np.inf
            else:
                similarity[columns] += kernel.sum(axis=0)
                nearest[columns] = _smallest(nearest[columns], distances.T)
            similarity[rows] += kernel.sum(axis=1)
            nearest[rows] = _smallest(nearest[rows], distances)
        if progress:
            progress("pairs within a set", rows.stop, n, f"{n} images")
    nearest = np.sort(_back(nearest), axis=1)
    return np.stack([nearest[:, k - 1] for k in NEIGHBOURS], axis=1), _back(similarity) / (n - 1)


def _kernel_and_distances(x: Any, y: Any) -> tuple[Any, Any]:
    """Return the cubic kernel and the squared distance of every row of x and every row of y, float64.

    x, y : float (b, F) and (c, F), both arrays or both tensors; so are the results, (b, c).
    """
    x, y = (rows.double() if isinstance(rows, torch.Tensor) else rows.astype(np.float64) for rows in (x, y))
    products = x @ y.T
    # In place from here on: another tile would push these out of the cache.
    kernel = products / x.shape[1]
    kernel += 1
    kernel *= kernel * kernel
    # Norms are shrunk by a hair, so that equal images are at distance 0 whichever way their products are rounded.
    distances = products
    distances *= -2
    distances += (1 - 1e-12) * (x * x).sum(axis=1)[:, None]
    distances += (1 - 1e-12) * (y * y).sum(axis=1)
    return kernel, distances.clip(0)


def _smallest(kept: Any, distances: Any) -> Any:
    """Return the smallest values of both in each row, as many as were kept, in no order."""
    k = kept.shape[1]
    if isinstance(kept, torch.Tensor):
        return torch.hstack([kept, distances]).topk(k, largest=False).values
    return np.partition(np.hstack([kept, distances]), k - 1, axis=1)[:, :k]


def _placed(x: np.ndarray, device: str | None) -> Any:
    """Return the array as it is, or as a tensor on the device."""
    return x if device is None else torch.tensor(x, device=device)


def _back(x: Any) -> np.ndarray:
    """Return what was an array, or a tensor, as an array."""
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x


def _tile(device: str | None) -> int:
    return TILE if device is None else DEVICE_TILE


def _tiles(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _gaussian(given: Gaussian | np.ndarray, which: str, device: str | None) -> Gaussian:
    return given if isinstance(given, Gaussian) else Gaussian.of(given, which, device)


def _as_arrays(fitted: Gaussian, prefix: str = "") -> dict[str, np.ndarray]:
    arrays = {"count": np.array([fitted.count]), "mean": fitted.mean, "root": fitted.root}
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _from_arrays(arrays: Mapping[str, np.ndarray], prefix: str = "") -> Gaussian:
    return Gaussian(int(arrays[f"{prefix}count"][0]), arrays[f"{prefix}mean"], arrays[f"{prefix}root"])


def _checked(features: np.ndarray, which: str, least: int = 2) -> np.ndarray:
    """Return features as a float32 or float64 array, or raise the `InputError` that says what is wrong with them."""
    x = np.asarray(features)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    if x.ndim != 2 or len(x) < least or x.shape[1] == 0:
        raise InputError(f"the {which} have shape {x.shape}: need (n, F) with at least {least} rows")
    if not np.isfinite(x).all():
        raise InputError(f"the {which} hold NaN or infinite values")
    return x


def _same_width(one: int, other: int) -> None:
    if one != other:
        raise InputError(f"cannot compare {one} features with {other}; use one extractor for both sets")


def _enough(n: int, k: int, which: str) -> None:
    if n <= k:
        raise InputError(f"the {which} have {n} rows: the {k} nearest others need at least {k + 1}")
