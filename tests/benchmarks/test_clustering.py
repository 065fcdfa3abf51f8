"""What exact balanced clustering costs, side by side with named peers in one run."""

import subprocess
import sys
import timeit
from functools import partial
from pathlib import Path

import numpy as np
import ot
import pandas as pd
import pytest
from k_means_constrained import KMeansConstrained
from k_means_constrained.k_means_constrained_ import minimum_cost_flow_problem_graph, solve_min_cost_flow_graph
from matplotlib.figure import Figure
from sklearn.cluster import KMeans

from iar_study.codebook import BalancedKMeans, cluster_codes, constrained_assignment
from iar_study.codebook.analysis import assignment_gap

pytestmark = pytest.mark.bench


def codes(count: int, dim: int, dtype=np.float64) -> np.ndarray:
    """Vectors of length 1 in all directions: what a codebook that is looked up by cosine comes to."""
    vectors = np.random.default_rng(0).normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)


def squared_distances(count: int, clusters: int, dim: int = 8, dtype=np.float64) -> np.ndarray:
    """Costs of an assignment of codes to centroids drawn from them."""
    vectors = codes(count, dim, dtype)
    centroids = vectors[np.random.default_rng(1).choice(count, clusters, replace=False)]
    cost = np.empty((count, clusters), dtype)
    for part in np.array_split(np.arange(count), -(-count // 2**14)):
        cost[part] = np.maximum(2 - 2 * vectors[part] @ centroids.T, 0)
    return cost


def moved(cost: np.ndarray) -> np.ndarray:
    """The costs after the centroids have moved a little, as in the next round of k-means."""
    return cost + np.random.default_rng(2).normal(scale=0.003, size=cost.shape[1]).astype(cost.dtype)


def compile_kernels() -> None:
    """Call everything once on little, so that no figure has numba's compilation in it."""
    for dtype in (np.float32, np.float64):
        cost = squared_distances(1000, 10, dtype=dtype)
        constrained_assignment(cost, 100, 100)
        BalancedKMeans(5, n_init=1).fit(codes(100, 3, dtype))
    cluster_codes(codes(64, 3), "greedy", 4)


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    compile_kernels()


@pytest.mark.parametrize("solver", ["iar_study_cold", "iar_study_warm", "k_means_constrained", "pot_emd"])
def test_one_assignment(benchmark, solver):
    benchmark.group = "one assignment, 16,384 codes to 128 equal clusters"
    cost = squared_distances(16_384, 128)
    if solver == "iar_study_cold":
        benchmark.pedantic(constrained_assignment, (cost, 128, 128), rounds=10, warmup_rounds=2)
    elif solver == "iar_study_warm":
        prices = constrained_assignment(cost, 128, 128).prices
        benchmark.pedantic(constrained_assignment, (moved(cost), 128, 128, prices), rounds=20, warmup_rounds=2)
    elif solver == "k_means_constrained":
        names = np.empty((len(cost), 1)), np.empty((128, 1))  # only their lengths are looked at

        def assign():
            edges, costs, capacities, supplies, clusters, points = minimum_cost_flow_problem_graph(
                *names, np.sqrt(cost), 128, 128
            )
            return solve_min_cost_flow_graph(edges, costs, capacities, supplies, clusters, points)

        benchmark.pedantic(assign, rounds=3, warmup_rounds=1)
    else:
        weights = np.full(len(cost), 1 / len(cost)), np.full(128, 1 / 128)
        benchmark.pedantic(ot.emd, (*weights, cost), {"numItermax": 10**7}, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("method", ["iar_study", "k_means_constrained", "sklearn_unconstrained", "greedy_as_released"])
def test_clustering_to_convergence(benchmark, method, capsys):
    benchmark.group = "k-means to convergence, 16,384 x 8, 128 clusters"
    vectors = codes(16_384, 8)
    start = vectors[np.random.default_rng(3).choice(len(vectors), 128, replace=False)]

    def run():
        if method == "greedy_as_released":
            return cluster_codes(vectors, "greedy", 128)
        if method == "sklearn_unconstrained":
            return KMeans(128, init=start, n_init=1).fit_predict(vectors)
        made = BalancedKMeans if method == "iar_study" else KMeansConstrained
        return made(128, size_min=128, size_max=128, init=start.copy(), n_init=1).fit_predict(vectors)

    labels = benchmark.pedantic(run, rounds=1 if method == "k_means_constrained" else 3)
    inertia, gap = assignment_gap(vectors, labels)
    benchmark.extra_info.update(inertia=inertia, gap=gap)
    with capsys.disabled():
        print(f"\n{method}: inertia {inertia:.1f}, gap {gap:.2e}, sizes {np.bincount(labels).min()}", flush=True)


def test_23000_points_in_10_clusters(benchmark):
    """Issue 47 of k-means-constrained: about 15 minutes, with these bounds."""
    benchmark.group = "k-means to convergence, 23,000 x 50, 10 clusters of 1,150 to 4,600"
    points = np.random.default_rng(0).normal(size=(23_000, 50))
    model = BalancedKMeans(10, size_min=1150, size_max=4600, n_init=1, random_state=0)
    benchmark.pedantic(model.fit, (points,), rounds=3)


CLOUDS = """
points = np.empty((1_000_000, 150), np.float32)
centres = rng.normal(size=(30, 150))
for part in np.array_split(np.arange(len(points)), 50):
    points[part] = rng.normal(size=(len(part), 150)) + SPREAD * centres[rng.integers(0, 30, len(part))]
work = lambda: BalancedKMeans(50, n_init=1, random_state=0).fit(points).n_iter_
"""
LARGE = {
    "1,000,000 x 150 (30 clouds) in 50 clusters, to convergence": CLOUDS.replace("SPREAD", "1.0"),
    "1,000,000 x 150 (nearly one cloud: the slowest case) in 50 clusters, at most 300 rounds": CLOUDS.replace(
        "SPREAD", "0.3"
    ),
    "20 rounds, 262,144 x 8 in 1,024 clusters": """
points = rng.normal(size=(262_144, 8)).astype(np.float32)
work = lambda: BalancedKMeans(1024, n_init=1, max_iter=20, tol=0, metric="cosine", random_state=0).fit(points).n_iter_
""",
    "one cold assignment, 262,144 x 1,024": """
cost = squared_distances(262_144, 1024, dtype=np.float32)
work = lambda: constrained_assignment(cost, 256, 256).relative_gap
""",
}


@pytest.mark.parametrize("name", LARGE)
def test_large(benchmark, name, capsys):
    """In a process of its own, so that the peak of its memory, data included, is its own."""
    benchmark.group = "large"
    script = (
        "import resource, time, numpy as np\n"
        "from tests.benchmarks.test_clustering import *\n"
        "compile_kernels()\n"
        "rng = np.random.default_rng(0)\n" + LARGE[name] + "started = time.perf_counter(); told = work()\n"
        "print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, told)"
    )

    def run() -> list[str]:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return done.stdout.split()[-3:]

    seconds, peak, told = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(seconds=float(seconds), peak_gib=float(peak), told=told)
    with capsys.disabled():
        print(f"\n{name}: {float(seconds):.1f} s, peak {float(peak):.2f} GiB ({told} rounds or gap)", flush=True)


SCALES = {
    "points": [(2**k, 128) for k in range(12, 19)],
    "clusters": [(2**16, 2**k) for k in range(4, 11)],
}
FOLDER = Path("reports/benchmarks")


def test_how_time_grows(benchmark, capsys):
    """Times cold and warm assignments; the figure and its data go to reports/benchmarks."""
    benchmark.group = "how the time of an assignment grows"
    rows = []

    def run():
        for varied, scales in SCALES.items():
            for count, clusters in scales:
                cost, size = squared_distances(count, clusters, dtype=np.float32), count // clusters
                prices = constrained_assignment(cost, size, size).prices
                cold = partial(constrained_assignment, cost, size, size)
                warm = partial(constrained_assignment, moved(cost), size, size, prices)
                for start, work in (("cold", cold), ("warm", warm)):
                    seconds = min(timeit.repeat(work, number=1, repeat=3))
                    rows.append((varied, {"points": count, "clusters": clusters}[varied], start, seconds))

    benchmark.pedantic(run, rounds=1)
    table = pd.DataFrame(rows, columns=["varied", "size", "start", "seconds"])
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    for axes, (varied, of_one) in zip(figure.subplots(1, 2, sharey=True), table.groupby("varied"), strict=True):
        for start, measured in of_one.groupby("start"):
            exponent = np.polyfit(np.log(measured["size"]), np.log(measured["seconds"]), 1)[0]
            axes.loglog(measured["size"], measured["seconds"], "o-", label=f"{start}: exponent {exponent:.2f}")
            with capsys.disabled():
                print(f"\nseconds ~ {varied}^{exponent:.2f} ({start})", flush=True)
        fixed = {"points": "128 clusters", "clusters": "65,536 points"}[varied]
        axes.set(title=f"{fixed}, {varied} varied", xlabel=varied)
        axes.set_xscale("log", base=2)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds, best of 3")
    FOLDER.mkdir(parents=True, exist_ok=True)
    table.to_csv(FOLDER / "assignment.csv", index=False)
    figure.savefig(FOLDER / "assignment.png")
