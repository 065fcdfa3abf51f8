"""Assign points to clusters of bounded size at the least total cost: exact, with a certificate.

    minimise sum_i c[i, a(i)]   subject to   lower_j <= #{i : a(i) = j} <= upper_j

A price p_j on every cluster turns this into n numbers to find: at the right prices each point may take its cheapest
cluster, and the sizes come out right. For any prices,

    sum_i min_j (c_ij + p_j) - sum_j max(upper_j p_j, lower_j p_j)   <=   the cost of any feasible assignment,

so the difference, the dual gap, proves how far from optimal an assignment can be. Here it is rounding error.

How it is fast: prices found for a quarter of the points are nearly right for all, so a cold start climbs from a small
sample to the whole in steps of four. At each step one pass over the costs gives every point its cheapest cluster; the
few that are too many are moved by shortest paths on the graph of clusters (`augmenting_paths`), which is offered only
the points that are nearest to leaving. The next pass checks all costs again: what the offer lacked shows there, and is
mended in the same way with a wider offer. An assignment that passes is optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from numba import config
from numba.core.types import Tuple
from numpy.typing import ArrayLike

from iar_study.codebook.augmenting_paths import place_all
from iar_study.codebook.kernels import TABLE32, TABLE64, float64, int32, int64, kernel, part, void
from iar_study.errors import InputError

EPSILON = float(np.finfo(np.float64).eps)

PARTS = 16
"""Parts that a pass over all costs is cut into for the threads."""

SAMPLE = 4
"""A cold start grows its sample by this factor, from between 4 and 16 points per cluster."""

MISPLACED = 10
"""Given prices that leave more than one in so many points misplaced are forgotten: a cold start is faster then."""

NEAR = 32
"""Clusters that the first offer lists for a point."""


@dataclass(frozen=True)
class Assignment:
    """An optimal assignment and what proves it.

    Attributes
    ----------
    labels : int32 (N,), the cluster of every point.
    prices : float64 (n,), dual prices; pass them on to start warm when the costs have changed a little.
    cost : float, the total cost of the assignment.
    gap : float, cost minus the dual bound: no assignment within the bounds is cheaper by more than this.
    """

    labels: np.ndarray
    prices: np.ndarray
    cost: float
    gap: float

    @property
    def relative_gap(self) -> float:
        """gap / |cost|; 0 where both are 0."""
        return float(np.divide(self.gap, abs(self.cost))) if self.gap else 0.0


def constrained_assignment(
    cost: ArrayLike,
    size_min: ArrayLike,
    size_max: ArrayLike,
    prices: ArrayLike | None = None,
    *,
    n_jobs: int | None = None,
) -> Assignment:
    """Give every point a cluster such that the total cost is least and all cluster sizes lie within bounds.

    Parameters
    ----------
    cost : (N, n), finite; float32 and float64 are used as they are, anything else as float64. Sums and prices are
        float64 in any case.
    size_min, size_max : int or int (n,), bounds on the clusters' sizes.
    prices : float (n,), from the assignment of similar costs, to start from.
    n_jobs : threads, -1 for one per core; default: numba's number (NUMBA_NUM_THREADS). The result is the same.

    Raises
    ------
    InputError (a `ValueError`) : costs that are not a finite, non-empty matrix; bounds that no assignment meets.

    >>> cost = [[0, 9], [1, 9], [2, 3]]
    >>> solved = constrained_assignment(cost, size_min=1, size_max=2)
    >>> solved.labels.tolist(), solved.cost, solved.gap
    ([0, 0, 1], 4.0, 0.0)
    """
    matrix = np.asarray(cost)
    if matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float64)
    matrix = np.ascontiguousarray(matrix)
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(f"costs must be a matrix of points x clusters that is not empty, not of shape {matrix.shape}")
    points, n = matrix.shape
    lower, upper = _bounds(points, n, size_min, size_max)
    threads = config.NUMBA_NUM_THREADS if n_jobs is None else effective_n_jobs(n_jobs)  # type: ignore[attr-defined]
    with ThreadPoolExecutor(threads) as pool:
        each = pool.map if matrix.size > 2**20 else map  # below, threads cost more than they save
        ranges = _pass(each, points, lambda start, stop: (matrix[start:stop].min(), matrix[start:stop].max()))
        span = float(max(high for _, high in ranges)) - float(min(low for low, _ in ranges))
        if not np.isfinite([*ranges, (span, span)]).all():
            row = int(np.argmin(np.isfinite(matrix).all(1)))
            raise InputError(f"costs must be finite; row {row} has a NaN, an infinite or a far too large entry")
        solved = None
        if prices is not None:
            start = np.append(_starting_prices(prices, n, span, free=bool((lower < upper).any())), 0.0)
            solved = _solve(matrix, np.arange(points), lower, upper, start, each, patience=points // MISPLACED)
        labels, final, gap = solved or _solve_cold(matrix, lower, upper, each)
    total = matrix[np.arange(points), labels].sum(dtype=np.float64)
    return Assignment(labels, final[:n], float(total), gap)


def _bounds(points: int, n: int, size_min: ArrayLike, size_max: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds as int64 (n,) each, or say why no assignment can meet them."""
    bounds = []
    for name, given in (("size_min", size_min), ("size_max", size_max)):
        value = np.asarray(given)
        if value.ndim > 1 or value.shape not in ((), (1,), (n,)):
            raise InputError(f"{name} must be one number or one for each of the {n} clusters, not {value.shape}")
        if not np.issubdtype(value.dtype, np.integer):
            raise InputError(f"{name} must be whole numbers, not {value.dtype}")
        bounds.append(np.broadcast_to(value, n).astype(np.int64))
    lower, upper = bounds
    if lower.min() < 0:
        raise InputError(f"size_min must not be negative, got {lower.min()}")
    if (lower > upper).any():
        j = int(np.argmax(lower > upper))
        raise InputError(f"size_min {lower[j]} exceeds size_max {upper[j]} (cluster {j})")
    if lower.sum() > points:
        raise InputError(f"{n} clusters of at least {lower.sum()} points in all cannot be made of {points} points")
    if upper.sum() < points:
        raise InputError(f"{points} points do not fit into {n} clusters of at most {upper.sum()} points in all")
    return lower, np.minimum(upper, points)


def _starting_prices(prices: ArrayLike, n: int, span: float, free: bool) -> np.ndarray:
    """Return given prices made harmless: wild ones would only cost precision. `free` when some sizes may vary."""
    start = np.asarray(prices, np.float64)
    if start.shape != (n,) or not np.isfinite(start).all():
        raise InputError(f"prices must be {n} finite numbers, one for each cluster")
    # Where all sizes are fixed, a number added to all prices means nothing.
    return np.clip(start if free else start - start.mean(), -span, span)


Map = Callable[..., Iterable[Any]]


def _pass(each: Map, rows: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call work(*arguments, start, stop) for ranges that make up `rows`, on as many threads as `each` has."""
    cuts = np.linspace(0, rows, PARTS + 1).astype(int).tolist()
    return list(each(lambda part: work(*arguments, *part), [part for part in pairwise(cuts) if part[0] < part[1]]))


def _solve_cold(
    cost: np.ndarray, lower: np.ndarray, upper: np.ndarray, each: Map
) -> tuple[np.ndarray, np.ndarray, float]:
    """Solve from no prices, by way of ever larger samples; return labels, prices (the hub's last) and the dual gap."""
    points, n = cost.shape
    # A sample at random, as neighbouring rows may be alike; a fixed seed, so that equal costs give equal bits.
    order = np.random.default_rng(0).permutation(points)
    sizes = [points]
    while sizes[-1] >= 4 * SAMPLE * n:
        sizes.append(sizes[-1] // SAMPLE)
    prices, solved = np.zeros(n + 1), None
    for size in reversed(sizes):
        share = size / points
        # Bounds rounded outwards, so that every sample can meet its share of them.
        # Rows sorted, so that the labels of the last sample, all points, stand in the points' own order.
        solved = _solve(cost, np.sort(order[:size]), np.floor(lower * share), np.ceil(upper * share), prices, each)
        assert solved is not None  # without a patience it always is
        prices = solved[1]
    assert solved is not None
    return solved


def _solve(
    cost: np.ndarray,
    rows: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    prices: np.ndarray,
    each: Map,
    patience: int | None = None,
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Solve for the points `rows` from starting prices, the hub's last; return labels, prices and the dual gap.

    None when these prices leave more than `patience` points in clusters without room for them.
    The hub (see `augmenting_paths`) ends at price 0, as the dual bound above takes it to be.
    """
    n = cost.shape[1]
    lower, upper = lower.astype(np.int64), upper.astype(np.int64)
    prices = prices.copy()
    prices[np.abs(prices) <= 1e-12 * np.abs(prices).max()] = 0.0  # apart from the hub's by rounding alone
    labels, slack = np.full(len(rows), -1, np.int32), np.empty(len(rows))
    # Complementary slackness: at the optimum a cluster is full if its price is above 0, at its least size if below.
    used = np.where(prices[:n] > 0, upper, lower)
    widen, everything = 1, False
    while True:
        # Rounding alone moves no point away. It grows with each round, or points between equals could swing for ever.
        leeway = 16 * EPSILON * widen
        _pass(each, len(rows), _take_cheapest, cost, rows, prices, labels, slack, leeway)
        size = np.bincount(labels, minlength=n)
        # A cluster priced like the hub may fill any number of places between its bounds.
        used = np.where(prices[:n] == 0, np.clip(size, lower, upper), used)
        excess = np.append(size - used, used.sum() - len(rows))
        surplus = int(excess[excess > 0].sum())
        if not surplus:
            p = prices[:n]
            # Cost minus bound, term by term: the difference of the two large sums would be rounding alone.
            gap = np.maximum(-slack, 0).sum() + (np.maximum(upper * p, lower * p) - size * p).sum()
            return labels, prices, float(gap)
        if patience is not None and widen == 1 and surplus > patience:
            return None

        # Offer the points that are nearest to leaving: enough of them to move the surplus along several arcs.
        wanted = widen * (8 * surplus + 16 * n)
        if wanted < len(rows):
            loose = np.argpartition(slack, wanted - 1)[:wanted]
            loose.sort()
            reach = slack[loose].max()
        else:
            loose = np.arange(len(rows))
            reach = np.inf if everything else slack.max()
            everything = True
        offers = _pass(each, len(loose), _offer, cost, rows, labels, prices, loose, reach, NEAR * widen)
        counts, cluster, move_cost = (np.concatenate(arrays) for arrays in zip(*offers, strict=True))
        first = np.append(0, np.cumsum(counts))
        movable = labels[loose]
        enough = place_all(movable, first, cluster, move_cost, prices, used, lower, upper, excess)
        labels[loose] = movable
        prices -= prices[n]
        widen *= 2 if enough else 4


@kernel(
    *(
        void(table, int64[::1], float64[::1], int32[::1], float64[::1], float64, int64, int64)
        for table in (TABLE32, TABLE64)
    )
)
def _take_cheapest(
    cost: np.ndarray,
    rows: np.ndarray,
    prices: np.ndarray,
    labels: np.ndarray,
    slack: np.ndarray,
    leeway: float,
    start: int,
    stop: int,
) -> None:
    """Give each point its cheapest cluster, its own if that is cheapest but for `leeway`; -1 stands for no own.

    `slack` becomes what the next cheapest cluster costs more (below 0 by rounding alone). Among equals a point without
    a cluster takes the first one from its own number on, so that identical points spread out.
    """
    n = cost.shape[1]
    for k in range(start, stop):
        i, own = rows[k], labels[k]
        best, second, cheapest = np.inf, np.inf, -1
        for begin, end in ((i % n, n), (0, i % n)):
            for j in range(begin, end):
                value = cost[i, j] + prices[j]
                if value < second and j != own:
                    if value < best:
                        second, best, cheapest = best, value, j
                    else:
                        second = value
        if own >= 0:
            value = cost[i, own] + prices[own]
            scale = abs(cost[i, own]) + abs(prices[own])
            if cheapest < 0 or value <= best + leeway * (scale + abs(cost[i, cheapest]) + abs(prices[cheapest])):
                slack[k] = best - value
                continue
            second = min(second, value)
        labels[k] = cheapest
        slack[k] = second - best


@part
def _count(values: np.ndarray, limit: float) -> int:
    """Return how many values are at most `limit`."""
    count = 0
    for value in values:
        count += value <= limit
    return count


@kernel(
    *(
        Tuple([int64[::1], int32[::1], float64[::1]])(
            table, int64[::1], int32[::1], float64[::1], int64[::1], float64, int64, int64, int64
        )
        for table in (TABLE32, TABLE64)
    )
)
def _offer(
    cost: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    prices: np.ndarray,
    loose: np.ndarray,
    reach: float,
    most: int,
    start: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the clusters where each loose point could be for at most `reach` more: its own and up to `most` others.

    Returns counts int64 (stop - start,), clusters int32 and their costs float64, point by point. If there are more, the
    nearest are listed; among equals those from the point's own number on.
    """
    n = cost.shape[1]
    most = min(most, n - 1)
    counts = np.empty(stop - start, np.int64)
    cluster = np.empty((stop - start) * (most + 1), np.int32)
    move_cost = np.empty(len(cluster))
    value = np.empty(n)
    e = 0
    for q in range(start, stop):
        i, own = rows[loose[q]], labels[loose[q]]
        for j in range(n):
            value[j] = cost[i, j] + prices[j]
        sure, limit = value[own], min(value[own] + reach, value.max())
        value[own] = np.inf
        if _count(value, limit) <= most:
            sure = limit
        else:  # bisect for a value that at most `most` reach
            # 2^-40 of the reach is fine enough: what lies between the two ends then counts as equal, below.
            for _ in range(40):
                middle = sure + (limit - sure) / 2
                if _count(value, middle) > most:
                    limit = middle
                else:
                    sure = middle
            if _count(value, sure) > most:
                sure = -np.inf
        begin = e
        cluster[e], move_cost[e] = own, cost[i, own]
        e += 1
        for j in range(n):
            if value[j] <= sure:
                cluster[e], move_cost[e] = j, cost[i, j]
                e += 1
        for t in range(n):
            j = (i + t) % n
            if sure < value[j] <= limit and e - begin <= most:
                cluster[e], move_cost[e] = j, cost[i, j]
                e += 1
        counts[q - start] = e - begin
    return counts, cluster[:e], move_cost[:e]
