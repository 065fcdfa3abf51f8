"""Constrained assignment: the optimum of independent solvers, bounds held, the gap told truly, bad input named."""

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from iar_study.codebook import constrained_assignment
from iar_study.errors import InputError


def least_cost(cost, lower, upper) -> float:
    """The optimum by linear programming (its vertices are integral: the constraint matrix is totally unimodular)."""
    points, n = cost.shape
    each_point = np.kron(np.eye(points), np.ones(n))
    each_cluster = np.kron(np.ones(points), np.eye(n))
    solved = linprog(
        cost.ravel(),
        A_eq=each_point,
        b_eq=np.ones(points),
        A_ub=np.vstack([each_cluster, -each_cluster]),
        b_ub=np.concatenate([upper, -lower]),
        bounds=(0, None),
    )
    return solved.fun


def check(cost, lower, upper, solved):
    """What holds of every answer, whoever checks it."""
    points, n = cost.shape
    lower, upper = np.broadcast_to(lower, n), np.minimum(np.broadcast_to(upper, n), points)
    sizes = np.bincount(solved.labels, minlength=n)
    assert ((lower <= sizes) & (sizes <= upper)).all()
    total = cost[np.arange(points), solved.labels].sum(dtype=np.float64)
    assert solved.cost == pytest.approx(total, rel=1e-12, abs=1e-12)
    p = solved.prices
    bound = (cost + p).min(1).sum(dtype=np.float64) - np.maximum(upper * p, lower * p).sum()
    scale = np.abs(cost).sum(dtype=np.float64) + points * np.abs(p).max()
    assert solved.gap == pytest.approx(total - bound, abs=1e-13 * scale)
    assert 0 <= solved.gap <= 1e-9 * max(abs(total), 1e-3 * scale)


@st.composite
def instances(draw):
    """Costs (with ties, duplicate points, duplicate clusters, any scale) and bounds that can be met."""
    points, n = draw(st.integers(1, 14)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["real", "ties", "zeros", "duplicates", "negative", "huge", "tiny"]))
    cost = rng.random((points, n))
    if kind == "ties":
        cost = rng.integers(0, 3, (points, n)).astype(float)
    elif kind == "zeros":
        cost = np.zeros((points, n))
    elif kind == "duplicates":
        cost = cost[rng.integers(0, points, points)][:, rng.integers(0, n, n)]
    elif kind == "negative":
        cost -= 0.5
    elif kind in ("huge", "tiny"):
        cost = cost * (1e12 if kind == "huge" else 1e-12)
    sizes = rng.multinomial(points, np.full(n, 1 / n))  # a feasible point that the bounds enclose
    lower = np.maximum(sizes - rng.integers(0, 3, n), 0)
    upper = sizes + rng.integers(0, 3, n)
    return cost, lower, upper


@settings(max_examples=300, deadline=None)
@given(instances())
def test_the_cost_is_the_optimum_of_linear_programming(instance):
    cost, lower, upper = instance
    solved = constrained_assignment(cost, lower, upper)
    check(cost, lower, upper, solved)
    scale = np.abs(cost).max()
    if scale:  # the peer's tolerances are absolute, so it is given costs of about 1
        assert solved.cost / scale == pytest.approx(least_cost(cost / scale, lower, upper), rel=1e-7, abs=1e-7)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_equal_sizes_agree_with_the_linear_assignment_of_places(n, size, ties, seed):
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 4, (n * size, n)).astype(float) if ties else rng.normal(size=(n * size, n))
    solved = constrained_assignment(cost, size, size)
    check(cost, size, size, solved)
    places = np.repeat(cost, size, axis=1)
    assert solved.cost == pytest.approx(places[linear_sum_assignment(places)].sum(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("points", "n"), [(2000, 50), (1200, 7), (3000, 3), (700, 350)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_optimal_transport_finds_no_cheaper_one(points, n, dtype):
    rng = np.random.default_rng(points)
    cost = ((rng.normal(size=(points, 1, 3)) - rng.normal(size=(1, n, 3))) ** 2).sum(-1).astype(dtype)
    lower, upper = points // n, -(-points // n)
    sizes = np.full(n, lower)
    sizes[: points % n] += 1
    solved = constrained_assignment(cost, sizes, sizes)
    check(cost, sizes, sizes, solved)
    plan = ot.emd(np.ones(points), sizes.astype(float), cost.astype(float), numItermax=10**7)
    assert solved.cost == pytest.approx((plan * cost).sum(), rel=1e-9)
    free = constrained_assignment(cost, lower, upper)
    check(cost, lower, upper, free)
    assert free.cost <= solved.cost * (1 + 1e-12)


@settings(max_examples=50, deadline=None)
@given(instances(), st.integers(0, 2**32 - 1))
def test_any_prices_to_start_from_lead_to_the_same_cost(instance, seed):
    cost, lower, upper = instance
    cold = constrained_assignment(cost, lower, upper)
    rng = np.random.default_rng(seed)
    for prices in (cold.prices, rng.normal(size=cost.shape[1]), 1e6 * rng.normal(size=cost.shape[1])):
        warm = constrained_assignment(cost, lower, upper, prices=prices)
        check(cost, lower, upper, warm)
        reached = np.abs(cost).max() + np.abs(prices).max() * 1e-6
        assert warm.cost == pytest.approx(cold.cost, rel=1e-9, abs=1e-9 * reached)


def test_its_own_prices_give_the_same_labels_at_once():
    cost = np.random.default_rng(1).random((4000, 20))
    cold = constrained_assignment(cost, 200, 200)
    warm = constrained_assignment(cost, 200, 200, prices=cold.prices)
    np.testing.assert_array_equal(warm.labels, cold.labels)


@pytest.mark.parametrize("identical", [0.5, 0.98])
def test_many_identical_points_and_outliers_are_no_trouble(identical):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6400, 4))
    points[: int(identical * 6400)] = 1.0
    points[-10:] *= 1e3
    centres = points[rng.choice(6400, 64, replace=False)]
    cost = ((points[:, None] - centres) ** 2).sum(-1)
    check(cost, 100, 100, constrained_assignment(cost, 100, 100))
    check(cost, 0, 150, constrained_assignment(cost, 0, 150))


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5), (40, 40), (41, 40), (3000, 2)])
def test_odd_shapes(shape):
    points, n = shape
    cost = np.random.default_rng(0).random(shape)
    lower, upper = points // n, -(-points // n)
    check(cost, lower, upper, constrained_assignment(cost, lower, upper))


@pytest.mark.parametrize("n_jobs", [1, 5, -1])
def test_the_result_does_not_depend_on_the_layout_or_the_number_of_threads(n_jobs):
    cost = np.random.default_rng(2).random((80_000, 16)).astype(np.float32)
    expected = constrained_assignment(cost, 5000, 5000)
    read_only = cost.copy()
    read_only.setflags(write=False)
    for same in (np.asfortranarray(cost), cost[::-1][::-1], read_only):
        solved = constrained_assignment(same, 5000, 5000, n_jobs=n_jobs)
        np.testing.assert_array_equal(solved.labels, expected.labels)
        np.testing.assert_array_equal(solved.prices, expected.prices)


def test_whole_numbers_and_lists_are_costs_too():
    assert constrained_assignment([[1, 2], [1, 3]], 1, 1).cost == 3.0


@pytest.mark.parametrize(
    ("cost", "lower", "upper", "message"),
    [
        ([[1.0, np.nan], [0.0, 0.0]], 1, 1, "row 0 has a NaN"),
        ([[1.0, 0.0], [np.inf, 0.0]], 1, 1, "row 1 has a NaN, an infinite"),
        (np.zeros((0, 3)), 0, 1, "not empty"),
        (np.zeros(3), 0, 1, "matrix"),
        (np.zeros((4, 2)), 3, 4, "cannot be made of 4 points"),
        (np.zeros((4, 2)), 0, 1, "4 points do not fit into 2 clusters of at most 2"),
        (np.zeros((4, 2)), 3, 2, "size_min 3 exceeds size_max 2"),
        (np.zeros((4, 2)), [0, 3], [4, 2], r"size_min 3 exceeds size_max 2 \(cluster 1\)"),
        (np.zeros((4, 2)), -1, 4, "negative"),
        (np.zeros((4, 2)), 1.5, 4, "whole numbers"),
        (np.zeros((4, 2)), [1, 1, 1], 4, "one for each of the 2 clusters"),
    ],
)
def test_bad_input_is_named(cost, lower, upper, message):
    with pytest.raises(InputError, match=message):
        constrained_assignment(cost, lower, upper)


@pytest.mark.parametrize("prices", [[0, np.nan], [0, 0, 0], 0.0])
def test_prices_are_one_finite_number_for_each_cluster(prices):
    with pytest.raises(InputError, match="prices must be 2 finite numbers"):
        constrained_assignment(np.zeros((2, 2)), 1, 1, prices=prices)
