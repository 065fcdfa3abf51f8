"""Analysis of a codebook: every figure against a plain computation of what it is said to be."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from iar_study.codebook import STRATEGIES, Codebook, Rearrangement, cluster_codes
from iar_study.codebook.analysis import (
    assignment_gap,
    clusters,
    compare_strategies,
    judge,
    load_tokens,
    mean_similarity,
    neighbour_agreement,
    path_lengths,
    rearrange,
    similarity,
    summary,
)
from iar_study.errors import InputError
from iar_study.storage import save_arrays


def example(seed: int = 0, size: int = 30, n: int = 4):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(n), rng.integers(0, n, size - n)]))
    return rng.normal(size=(size, 3)), labels, Rearrangement.from_labels(labels)


def cosines(points, labels, a, b):
    """The cosine similarities of all pairs of distinct codes of the clusters a and b."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    members = itertools.product(np.flatnonzero(labels == a), np.flatnonzero(labels == b))
    return [unit[i] @ unit[j] for i, j in members if i != j]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99))
def test_similarity_is_the_mean_cosine_of_all_pairs(seed):
    points, labels, arranged = example(seed)
    table = similarity(points, arranged)
    for a, b in itertools.product(range(4), repeat=2):
        pairs = cosines(points, labels, a, b)
        assert table.loc[a, b] == pytest.approx(np.mean(pairs)) if pairs else np.isnan(table.loc[a, b])
    within = [c for j in range(4) for c in cosines(points, labels, j, j)]
    between = [c for a, b in itertools.permutations(range(4), 2) for c in cosines(points, labels, a, b)]
    assert mean_similarity(points, arranged) == pytest.approx((np.mean(within), np.mean(between)))


def test_clusters_tell_sizes_inertia_and_use():
    points, labels, arranged = example()
    use = np.random.default_rng(1).integers(0, 3, 30)
    table = clusters(points, arranged, use)
    for j, row in table.iterrows():
        members = points[labels == j]
        assert row["size"] == len(members)
        assert row["inertia"] == pytest.approx(((members - members.mean(0)) ** 2).sum())
        assert row["tokens"] == use[labels == j].sum()
        assert row["used_codes"] == (use[labels == j] > 0).sum()
        assert row["nearest_similarity"] == pytest.approx(
            max(np.mean(cosines(points, labels, j, k)) for k in range(4) if k != j)
        )
    assert table["token_share"].sum() == pytest.approx(1)
    assert "tokens" not in clusters(points, arranged)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.integers(5, 40))
def test_neighbour_agreement_counts_shared_neighbours(seed, size):
    points, _, arranged = example(seed, size)
    ordered = points[arranged.order]
    distance = cdist(ordered, ordered)
    np.fill_diagonal(distance, np.inf)
    table = neighbour_agreement(points, arranged, [1, 2, 4])
    assert table["k"].tolist() == [1, 2, 4]
    for k, agreement, chance in table.itertuples(index=False):
        shared = 0
        for t in range(size):
            first = min(max(t - k // 2, 0), size - 1 - k)
            by_index = set(range(first, first + k + 1)) - {t}
            shared += len(by_index & set(np.argsort(distance[t])[:k].tolist()))
        assert agreement == pytest.approx(shared / (k * size))
        assert chance == pytest.approx(k / (size - 1))


def test_points_on_a_line_agree_fully_in_their_order_and_by_chance_in_a_random_one():
    where = np.random.default_rng(0).permutation(500)
    points = np.stack([where, where], 1).astype(float) ** 1.0001  # no ties
    in_order = Rearrangement(where, np.array([0, 500]))
    assert neighbour_agreement(points, in_order, [2])["agreement"][0] > 0.99
    as_it_is = neighbour_agreement(points, Rearrangement.identity(500), [8])
    assert as_it_is["agreement"][0] == pytest.approx(as_it_is["chance"][0], rel=0.5)


def test_few_codes_have_no_neighbours_to_agree():
    assert neighbour_agreement(np.zeros((1, 2)), Rearrangement.identity(1)).empty


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.integers(4, 40))
def test_no_path_is_shorter_than_the_spanning_tree(seed, size):
    points, _, arranged = example(seed, size)
    table = path_lengths(points, {"this": arranged}).set_index("order")
    tree = minimum_spanning_tree(cdist(points, points)).sum()
    assert table.loc["spanning tree", "length"] == pytest.approx(tree)
    steps = np.linalg.norm(np.diff(points[arranged.order], axis=0), axis=1)
    assert table.loc["this", "length"] == pytest.approx(steps.sum())
    assert tree <= table.loc["this", "length"] + 1e-12
    mean_step = cdist(points, points).sum() / (size * (size - 1))
    assert table.loc["random order", "length"] == pytest.approx((size - 1) * mean_step, rel=0.25)


def test_the_gap_is_what_a_better_assignment_saves():
    points, labels, _ = example(2)
    inertia, gap = assignment_gap(points, labels)
    centroids = np.stack([points[labels == j].mean(0) for j in range(4)])
    assert inertia == pytest.approx(((points - centroids[labels]) ** 2).sum())
    assert 0 < gap < 1
    assert (
        assignment_gap(points, cluster_codes(np.tile(points, (4, 1)), "balanced", 4, metric="euclidean")[:30])[1] >= 0
    )
    assert assignment_gap(points[:28], cluster_codes(points[:28], "balanced", 4, metric="euclidean"))[1] < 1e-9


def test_strategies_are_compared_on_the_same_codes():
    points = Codebook(np.random.default_rng(0).normal(size=(128, 4))).points
    table = compare_strategies(points, 8).set_index("strategy")
    assert list(table.index) == list(STRATEGIES)
    assert table.loc["balanced", "within_similarity"] > table.loc["random", "within_similarity"]
    assert table.loc["balanced", "neighbours"] > 3 * table.loc["blocks", "neighbours"]
    assert table.loc["balanced", "path"] < table.loc["blocks", "path"]
    assert table.loc["balanced", "gap"] < 1e-9 < table.loc["random", "gap"]
    assert (table["seconds"] > 0).all()


def test_rearrange_and_judge_tell_the_same():
    codebook = Codebook(np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    arranged, facts = rearrange(codebook, "balanced", 8, within="chain")
    judged = judge(codebook, arranged, np.ones(64, int))
    for name in ("inertia", "gap", "within_similarity", "neighbours", "path"):
        assert judged[name] == facts[name]
    assert facts["digest"] == codebook.digest
    assert judged["token share, smallest"] == pytest.approx(1 / 8)
    with pytest.raises(InputError, match="is of 64 codes, the codebook has 32"):
        judge(Codebook(codebook.vectors[:32]), arranged)


def test_a_single_code_is_similar_to_no_other():
    facts = summary(Codebook(np.ones((1, 3))))
    assert facts["codes"] == 1
    assert np.isnan(facts["similarity to the nearest code, median"])


def test_the_summary_tells_zero_identical_and_dead_codes():
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    vectors[3] = 0
    vectors[5] = vectors[9]
    codebook = Codebook(vectors)
    facts = summary(codebook, codebook.use(np.array([0, 0, 1, 1])))
    assert facts["zero codes"] == 1
    assert facts["identical codes"] == 2
    assert facts["dead codes (no token)"] == 38
    assert facts["perplexity of the tokens"] == pytest.approx(2)
    unit = codebook.points
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    assert facts["similarity to the nearest code, median"] == pytest.approx(np.median(cosine.max(1)))
    assert "tokens" not in summary(codebook)


@pytest.mark.parametrize("content", [None, b"", b"noise"])
def test_tokens_that_cannot_be_read_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokens.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"tokens\.npy"):
        load_tokens(tmp_path / "tokens.npy")


def test_tokens_are_read_from_arrays_and_from_a_studys_codes(tmp_path):
    tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.save(tmp_path / "tokens.npy", tokens)
    save_arrays(tmp_path / "codes.safetensors", {"train_tokens": tokens, "codebook": np.zeros((6, 2))})
    save_arrays(tmp_path / "other.safetensors", {"codebook": np.zeros((6, 2))})
    for file in ("tokens.npy", "codes.safetensors"):
        np.testing.assert_array_equal(load_tokens(tmp_path / file), tokens)
    with pytest.raises(InputError, match="holds no tokens"):
        load_tokens(tmp_path / "other.safetensors")
