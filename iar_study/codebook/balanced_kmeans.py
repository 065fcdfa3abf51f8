"""Balanced k-means: Lloyd's algorithm with an exact, size-constrained assignment in every round.

A scikit-learn estimator with the parameters and attributes of `KMeansConstrained` (package k-means-constrained), which
minimises rounded distances; here it is squared distances, k-means' own objective, and each round starts from the
prices of the one before, so it costs little more than a round of plain k-means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.extmath import row_norms
from sklearn.utils.validation import check_is_fitted, validate_data

from iar_study.codebook.assignment import Assignment, constrained_assignment
from iar_study.codebook.kernels import TABLE32, TABLE64, float64, int32, kernel
from iar_study.codebook.norms import power_of_two, within_range


class BalancedKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means whose clusters all have between `size_min` and `size_max` points.

    Parameters
    ----------
    n_clusters : number of clusters n.
    size_min, size_max : bounds on the clusters' sizes; by default floor(N / n) and ceil(N / n), as equal as can be.
        A fit leaves no cluster empty, as k-means: `size_min=0` is the same as 1 there.
    metric : "euclidean", or "cosine" for the same on rows scaled to length 1.
    init : "k-means++", "random" (points drawn at random), centres (n, d), or a function of (X, n_clusters,
        random_state) that returns centres.
    n_init : runs from different starts, of which the one with the least inertia is kept; 1 for given centres.
    max_iter : rounds of one run at most.
    tol : a run ends when the centres' squared shift falls below tol times the mean variance of the features, or when
        the inertia falls no more.
    verbose : print a line for every round.
    random_state : int, RandomState or None.
    copy_x : False centres X in place, puts it back at the end, and loses its last bits by that.
    n_jobs : threads of an assignment, as in `constrained_assignment`.
    progress : called after every round with (rounds done, rounds at most, what the round gave).

    Attributes
    ----------
    cluster_centers_ : (n, d), the means of the clusters (of the scaled rows, for "cosine").
    labels_ : int32 (N,).
    inertia_ : float, the sum of squared distances of the points to their centres.
    relative_gap_ : float, by which share of the inertia the last assignment could be from optimal: rounding error.
    n_iter_ : int, rounds of the best run.

    >>> X = np.array([[0.0], [1.0], [2.0], [9.0]])
    >>> BalancedKMeans(2, random_state=0).fit(X).cluster_centers_.ravel().tolist()
    [0.5, 5.5]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        size_min: int | None = None,
        size_max: int | None = None,
        metric: str = "euclidean",
        init: str | ArrayLike | Callable[..., Any] = "k-means++",
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
        copy_x: bool = True,
        n_jobs: int | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.size_min = size_min
        self.size_max = size_max
        self.metric = metric
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.n_jobs = n_jobs
        self.progress = progress

    def fit(self, X: ArrayLike, y: Any = None) -> BalancedKMeans:
        """Cluster X, float (N, d); float32 stays float32.

        Raises
        ------
        ValueError : X that is not a finite matrix of at least n rows, or whose squared distances leave the range of its
            type; bounds that do not fit, bad parameters.
        """
        rows = self._rows(X, reset=True)
        self._check_parameters(rows)
        if within_range(rows) is not rows:
            by = power_of_two(rows).item()
            raise ValueError(f"X's squared distances leave the range of {rows.dtype}; divide X by {by:.0e} first")
        lower, upper = self._bounds(len(rows), self.size_min, self.size_max)
        if upper > len(rows):
            raise ValueError(f"size_max={upper} is more than the {len(rows)} points")
        lower = max(lower, 1)
        random_state = check_random_state(self.random_state)
        mean = rows.mean(0, dtype=np.float64).astype(rows.dtype)
        in_place = not self.copy_x and rows.flags.writeable
        rows = np.subtract(rows, mean, out=rows if in_place else None)  # small numbers lose less in distances
        threshold = self.tol * float(rows.var(0, dtype=np.float64).mean())
        given = not isinstance(self.init, str) and not callable(self.init)
        runs = 1 if given else self.n_init
        best = None
        try:
            for run in range(runs):
                centers = self._start(rows, mean, random_state)
                found = self._run(rows, centers, lower, upper, threshold, (run, runs))
                if best is None or found[0] < best[0]:
                    best = found
        finally:
            if in_place:
                rows += mean
        assert best is not None
        self.inertia_, self.labels_, centers, self.n_iter_, self.relative_gap_ = best
        self.cluster_centers_ = centers + mean
        self._n_features_out = self.n_clusters
        return self

    def predict(self, X: ArrayLike, size_min: int | str | None = "init", size_max: int | str | None = "init") -> Any:
        """Return the labels, int32 (M,), of the best assignment of X, float (M, d), to the fitted centres.

        size_min, size_max : bounds for this X; "init" takes what the estimator was made with, None sets no bound.
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        lower, upper = self._bounds(
            len(rows),
            self.size_min if size_min == "init" else size_min or 0,
            self.size_max if size_max == "init" else len(rows) if size_max is None else size_max,
        )
        return self._assign(rows, self.cluster_centers_, lower, upper).labels

    def fit_predict(self, X: ArrayLike, y: Any = None) -> Any:
        """Fit, and return `labels_`."""
        return self.fit(X).labels_

    def transform(self, X: ArrayLike) -> Any:
        """Return the distances of X, float (M, d), to the centres, float (M, n)."""
        from sklearn.metrics.pairwise import euclidean_distances

        check_is_fitted(self)
        return euclidean_distances(self._rows(X, reset=False), self.cluster_centers_)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return minus the sum of squared distances of X, float (M, d), to the nearest centres, whatever the sizes."""
        return -float(np.square(self.transform(X).min(1), dtype=np.float64).sum())

    def _rows(self, X: ArrayLike, reset: bool) -> Any:
        """Check X and, for the cosine metric, scale its rows to length 1."""
        rows: Any = validate_data(self, X, dtype=[np.float64, np.float32], order="C", reset=reset)
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric must be 'euclidean' or 'cosine', not {self.metric!r}")
        return _at_length_one(rows) if self.metric == "cosine" else rows

    def _check_parameters(self, X: np.ndarray) -> None:
        if self.n_clusters < 1:
            raise ValueError(f"n_clusters={self.n_clusters} must be at least 1")
        if len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} should be >= n_clusters={self.n_clusters}")
        if self.n_init <= 0:
            raise ValueError(f"Invalid number of initializations. n_init={self.n_init} must be bigger than zero.")
        if self.max_iter <= 0:
            raise ValueError(f"Number of iterations should be a positive number, got {self.max_iter} instead")
        if isinstance(self.init, str) and self.init not in ("k-means++", "random"):
            raise ValueError(f"init must be 'k-means++', 'random', centres or a function, not {self.init!r}")

    def _bounds(self, points: int, size_min: Any, size_max: Any) -> tuple[int, int]:
        """Return the bounds for `points` points, None being the default; refuse what no assignment can meet."""
        lower = points // self.n_clusters if size_min is None else size_min
        upper = -(-points // self.n_clusters) if size_max is None else size_max
        # One bound alone moves the other's default out of its way.
        lower = min(lower, upper) if size_min is None else lower
        upper = max(lower, upper) if size_max is None else upper
        if not 0 <= lower <= upper:
            raise ValueError(f"size_min={lower} must be at least 0 and at most size_max={upper}")
        n = self.n_clusters
        if not lower * n <= points <= upper * n:
            raise ValueError(
                f"{points} points do not fit into {n} clusters of {lower} to {upper} points, which hold {lower * n} to "
                f"{upper * n} in all; give another size_min or size_max (to predict, None for no bound)"
            )
        return lower, upper

    def _start(self, X: np.ndarray, mean: np.ndarray, random_state: np.random.RandomState) -> np.ndarray:
        """Return starting centres (n, d) of the centred X."""
        from sklearn.cluster import kmeans_plusplus

        n = self.n_clusters
        if isinstance(self.init, str):
            if self.init == "random":
                return X[random_state.permutation(len(X))[:n]]
            return kmeans_plusplus(X, n, x_squared_norms=row_norms(X, squared=True), random_state=random_state)[0]
        given = self.init(X + mean, n, random_state) if callable(self.init) else self.init
        centers = check_array(given, dtype=X.dtype, copy=True)
        if centers.shape != (n, X.shape[1]):
            raise ValueError(f"the initial centres are of shape {centers.shape}, not {(n, X.shape[1])}")
        return (_at_length_one(centers) if self.metric == "cosine" else centers) - mean

    def _run(
        self, X: np.ndarray, centers: np.ndarray, lower: int, upper: int, threshold: float, run: tuple[int, int]
    ) -> tuple[float, np.ndarray, np.ndarray, int, float]:
        """Run Lloyd's algorithm once; return inertia, labels, centres, rounds and the relative gap."""
        buffer = np.empty((len(X), len(centers)), X.dtype)
        norms = float(row_norms(X, squared=True).sum(dtype=np.float64))
        solved: Assignment | None = None
        inertia = np.inf
        for n_iter in range(1, self.max_iter + 1):
            solved = self._assign(X, centers, lower, upper, solved.prices if solved else None, buffer)
            new = _means(X, solved.labels, centers)
            shift = float(np.square(new - centers, dtype=np.float64).sum())
            before, inertia = inertia, solved.cost + norms
            self._tell(run, n_iter, inertia, shift)
            # Exact rounds never raise the inertia, so one that leaves it (but for rounding) has converged.
            if shift == 0 or inertia >= before - 1e-12 * abs(before):
                break
            centers = new
            if shift <= threshold or n_iter == self.max_iter:  # labels that match the last centres
                solved = self._assign(X, centers, lower, upper, solved.prices, buffer)
                break
        assert solved is not None
        # From differences: the expanded squares of the costs lose digits where a point is close to its centre.
        inertia = _inertia(X, solved.labels, centers)
        return inertia, solved.labels, centers, n_iter, solved.gap / inertia if inertia else 0.0

    def _assign(
        self,
        X: np.ndarray,
        centers: np.ndarray,
        lower: int,
        upper: int,
        prices: np.ndarray | None = None,
        buffer: np.ndarray | None = None,
    ) -> Assignment:
        """Assign by squared distance, less the points' squared norms, which move no point to another cluster."""
        # The factor is on the centres: on the product it would be one more pass over all costs.
        cost = np.dot(X, -2 * centers.T, out=buffer)
        cost += row_norms(centers, squared=True).astype(X.dtype)
        return constrained_assignment(cost, lower, upper, prices, n_jobs=self.n_jobs)

    def _tell(self, run: tuple[int, int], n_iter: int, inertia: float, shift: float) -> None:
        text = f"round {n_iter}, inertia {inertia:.6g}, squared shift {shift:.3g}"
        if run[1] > 1:
            text = f"run {run[0] + 1} of {run[1]}, {text}"
        if self.verbose:
            print(text, flush=True)
        if self.progress:
            self.progress(run[0] * self.max_iter + n_iter, run[1] * self.max_iter, text)


def _at_length_one(X: np.ndarray) -> Any:
    """Scale the rows to length 1; a zero row stays zero."""
    # As `norms.unit_vectors`, but by scikit-learn's sums, whose last bits are others and in every clustering so far.
    scaled = X / power_of_two(X, 1)
    norms = row_norms(scaled)[:, None]
    return scaled / np.where(norms > 0, norms, 1)


def _means(X: np.ndarray, labels: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the clusters' means, summed in float64; an empty cluster keeps its centre."""
    counts = np.bincount(labels, minlength=len(centers))
    sums = _sums(X, labels, np.zeros(centers.shape))
    means = (sums / np.maximum(counts, 1)[:, None]).astype(X.dtype)
    return np.where(counts[:, None] > 0, means, centers)


@kernel(*(float64[:, ::1](table, int32[::1], float64[:, ::1]) for table in (TABLE32, TABLE64)))
def _sums(X: np.ndarray, labels: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Add every row of X to its cluster's row of `sums`, float64, in order: the same bits on any machine."""
    for i in range(len(X)):
        for k in range(X.shape[1]):
            sums[labels[i], k] += X[i, k]
    return sums


@kernel(*(float64(table, int32[::1], table) for table in (TABLE32, TABLE64)))
def _inertia(X: np.ndarray, labels: np.ndarray, centers: np.ndarray) -> float:
    """Return the sum of squared distances of the rows of X to their centres."""
    total = 0.0
    for i in range(len(X)):
        for k in range(X.shape[1]):
            total += np.float64(X[i, k] - centers[labels[i], k]) ** 2
    return total
