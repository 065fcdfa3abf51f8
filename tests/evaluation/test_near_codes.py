import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.image import structural_similarity_index_measure

from iar_study.codebook import Codebook, Rearrangement
from iar_study.errors import InputError
from iar_study.evaluation import near_codes
from iar_study.evaluation.near_codes import (
    LARGEST_PSNR,
    compare_pictures,
    measure_near_codes,
    nearest_codes,
    paper_rank,
    random_other_codes,
    ranks,
)
from iar_study.storage import Kept

SIZE, SIDE, PIXELS = 64, 4, 3


def line(values):
    return Codebook(np.array(values, np.float32)[:, None], "euclidean")


LEVELS = line(np.arange(SIZE))
"""Codes on a line, which `decode` turns into levels of grey."""


def decode(tokens):
    """A picture of 4 x 4 tokens, each of them 3 x 3 pixels as bright as the code's index is high."""
    grid = (tokens * (255 // (SIZE - 1))).astype(np.uint8).reshape(-1, SIDE, SIDE, 1)
    return grid.repeat(PIXELS, axis=1).repeat(PIXELS, axis=2)


def look(pictures):
    """The pixels themselves are the features; the label says which half is brighter."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    left, right = np.array_split(flat, 2, axis=1)
    return [flat], [(left.mean(1) > right.mean(1)).astype(np.int64)]


def draw(n=40):
    """Tokens; of another seed than the measurement's, or the random codes would not be independent of them."""
    return np.random.default_rng(7).integers(0, SIZE, (n, SIDE**2)).astype(np.int32)


def by_labels(labels):
    return Rearrangement.from_labels(np.asarray(labels))


BLOCKS = by_labels(np.arange(SIZE) // 8)


@pytest.mark.parametrize("n_codes", [2, 3, 10, 512, 16_384])
def test_ranks_rise_from_the_nearest_to_the_farthest_and_hold_the_papers(n_codes):
    measured = ranks(n_codes)
    assert list(measured) == sorted(set(measured))
    assert measured[0] == 1
    assert measured[-1] == n_codes - 1
    assert paper_rank(n_codes) in measured


def test_one_code_has_no_neighbours():
    assert ranks(1) == ()


def test_nearest_codes_on_a_line():
    near = nearest_codes(line([0, 1, 3, 7]), range(1, 4))
    assert near.dtype == np.int32
    assert near.tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]
    assert nearest_codes(line([0, 1, 3, 7]), [3, 1]).tolist() == [[3, 1], [3, 0], [3, 1], [0, 2]]


def test_of_equally_near_codes_the_first_comes_first():
    assert nearest_codes(line([5, 4, 6, 5]), [1, 2, 3]).tolist() == [[3, 1, 2], [0, 3, 2], [0, 3, 1], [0, 1, 2]]


def test_near_is_what_the_look_up_compares_by():
    vectors = np.array([[1, 0], [100, 1], [1, 1], [0, 1]], np.float32)
    assert nearest_codes(Codebook(vectors, "cosine"), [1])[:, 0].tolist() == [1, 0, 1, 2]
    assert nearest_codes(Codebook(vectors, "euclidean"), [1])[:, 0].tolist() == [2, 2, 0, 2]


@given(
    vectors=arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(1, 3)), elements=st.integers(-3, 3)),
    lookup=st.sampled_from(["cosine", "euclidean"]),
)
def test_nearest_codes_are_those_of_a_full_sort(vectors, lookup):
    codebook = Codebook(vectors, lookup)
    size = len(vectors)
    near = nearest_codes(codebook, range(1, size))
    assert (np.sort(near, axis=1) == [[j for j in range(size) if j != i] for i in range(size)]).all()
    points = codebook.points
    for i, row in enumerate(near):
        distances = ((points - points[i]) ** 2).sum(1)
        others = np.delete(np.arange(size), i)
        np.testing.assert_array_equal(row, others[distances[others].argsort(kind="stable")])


def test_nearest_codes_do_not_depend_on_how_they_are_parted(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    codebook = Codebook(np.concatenate([vectors, vectors]))
    whole = nearest_codes(codebook, range(1, 100))
    monkeypatch.setattr(near_codes, "BLOCK", 300)
    np.testing.assert_array_equal(nearest_codes(codebook, range(1, 100)), whole)
    assert (whole[:50, 0] == np.arange(50, 100)).all()


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_a_rank_that_does_not_exist(rank):
    with pytest.raises(InputError, match=r"the 4 codes have 1 \.\.\. 3"):
        nearest_codes(line([0, 1, 3, 7]), [1, rank])


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_another_code_of_the_cluster(labels, seed):
    labels = np.unique(labels, return_inverse=True)[1]
    tokens = np.random.default_rng(seed).integers(0, len(labels), (5, 4))
    others = random_other_codes(tokens, by_labels(labels), np.random.default_rng(seed))
    np.testing.assert_array_equal(labels[others], labels[tokens])
    alone = np.bincount(labels)[labels[tokens]] == 1
    np.testing.assert_array_equal(others == tokens, alone)


def test_every_other_code_of_the_cluster_is_equally_likely():
    labels = np.array([0, 1, 0, 1, 0, 0])
    tokens = np.full((60_000,), 2)
    others = random_other_codes(tokens, by_labels(labels), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(others, minlength=6) / 60_000, [1 / 3, 0, 0, 0, 1 / 3, 1 / 3], atol=0.01)


@pytest.mark.parametrize("shape", [(6, 28, 28, 1), (3, 8, 8, 1), (2, 70, 150, 3), (2, 4, 6, 3), (2, 1, 1, 1)])
def test_pictures_that_are_the_same(shape):
    for pictures in (np.random.default_rng(0).integers(0, 256, shape, np.uint8), np.full(shape, 201, np.uint8)):
        found = compare_pictures(pictures, pictures.copy())
        assert found == {"psnr": LARGEST_PSNR, "ssim": pytest.approx(1, abs=1e-9)}


def test_psnr_is_of_the_mean_error_over_all_pictures():
    true = np.full((4, 8, 8, 1), 100, np.uint8)
    changed = true.copy()
    changed[0] += 20  # a mean squared error of 400 / 4
    found = compare_pictures(changed, true)
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 100))
    luminance = (2 * 100 * 120 + 2.55**2) / (100**2 + 120**2 + 2.55**2)
    assert found["ssim"] == pytest.approx((3 + luminance) / 4)


@pytest.mark.parametrize("shape", [(6, 28, 28, 1), (2, 33, 21, 3), (2, 8, 8, 1), (2, 5, 6, 3)])
def test_similarity_equals_torchmetrics(shape):
    rng = np.random.default_rng(0)
    true = rng.integers(0, 256, shape, np.uint8)
    true[0] = 7  # a patch of one grey has no variance
    changed = np.clip(true + rng.normal(0, 40, shape), 0, 255).astype(np.uint8)
    ours, theirs = (torch.from_numpy(each.astype(np.float64)).permute(0, 3, 1, 2) for each in (changed, true))
    side = min(near_codes.WINDOW, *shape[1:3])
    expected = structural_similarity_index_measure(
        ours, theirs, gaussian_kernel=False, kernel_size=side - 1 + side % 2, data_range=255.0
    )
    assert compare_pictures(changed, true)["ssim"] == pytest.approx(float(expected), abs=1e-9)


def test_comparison_does_not_depend_on_how_it_is_parted(monkeypatch):
    ours, theirs = np.random.default_rng(0).integers(0, 256, (2, 9, 12, 12, 3), np.uint8)
    whole = compare_pictures(ours, theirs)
    monkeypatch.setattr(near_codes, "COMPARED_AT_ONCE", 1000)
    assert compare_pictures(ours, theirs) == pytest.approx(whole)


def measured(tokens, decode, *others, **named):
    """Measure where the tokenizer is without error: the originals are the pictures of the true tokens."""
    try:
        originals = decode(tokens)
    except IndexError:  # tokens that are no codes: to be refused
        originals = np.zeros((len(tokens), 1, 1, 1), np.uint8)
    return measure_near_codes(tokens, originals, decode, *others, **named)


def test_pictures_change_more_the_farther_the_code():
    found = measured(draw(), decode, LEVELS, BLOCKS, look, seed=0)
    assert tuple(found.curve) == ranks(SIZE)
    for metric, direction in {"psnr": -1, "ssim": -1, "class_agreement": -1, "feature_distance": 1}.items():
        values = np.array([point[metric] for point in found.curve.values()]) * direction
        if metric == "class_agreement":
            assert values[0] < values[-1]
        else:
            assert (np.diff(values) > 0).all(), metric
    near = found.curve[1]
    assert near["psnr"] == pytest.approx(20 * np.log10(255 / 4))  # the neighbour is one step of 4 levels away
    for metric in ("psnr", "ssim", "class_agreement"):
        assert near[metric] > found.same_cluster[metric] > found.random_code[metric]
    assert near["feature_distance"] < found.same_cluster["feature_distance"] < found.random_code["feature_distance"]
    assert found.random_code["feature_distance"] == pytest.approx(1, abs=0.15)  # as far as another picture


def test_several_who_look_count_alike():
    def half(pictures):
        return [pictures[:, :, : SIDE * PIXELS // 2].reshape(len(pictures), -1) / 255], [np.zeros(len(pictures))]

    def both(pictures):
        (one, other) = look(pictures), half(pictures)
        return one[0] + other[0], one[1] + other[1]

    of_one, of_other, of_both = (
        measured(draw(), decode, LEVELS, BLOCKS, each, seed=0).random_code for each in (look, half, both)
    )
    assert of_one["feature_distance"] != of_other["feature_distance"]
    assert of_other["class_agreement"] == 1 > of_one["class_agreement"]
    for name in ("feature_distance", "class_agreement"):
        assert of_both[name] == pytest.approx((of_one[name] + of_other[name]) / 2)


def test_duplicate_codes_change_nothing():
    pairs = line(np.arange(SIZE) // 2)
    found = measured(draw(), lambda tokens: decode(tokens // 2), pairs, BLOCKS, look, seed=0)
    same = {"psnr": LARGEST_PSNR, "ssim": pytest.approx(1), "feature_distance": 0.0, "class_agreement": 1.0}
    assert found.curve[1] == same
    assert found.curve[2]["psnr"] < LARGEST_PSNR


def test_a_random_cluster_is_no_better_than_any_code():
    labels = np.random.default_rng(1).permutation(SIZE) // 8
    found = measured(draw(200), decode, LEVELS, by_labels(labels), look, seed=0)
    for metric, tolerance in {"psnr": 0.8, "ssim": 0.06, "feature_distance": 0.1, "class_agreement": 0.12}.items():
        assert found.same_cluster[metric] == pytest.approx(found.random_code[metric], abs=tolerance)


def test_clusters_of_one_code_keep_it():
    alone = by_labels(np.arange(SIZE))
    found = measured(draw(), decode, LEVELS, alone, look, seed=0)
    assert found.same_cluster["psnr"] == LARGEST_PSNR


def test_the_seed_alone_draws_and_the_clusters_leave_the_other_ways_as_they_are():
    measure = lambda arranged, seed: measured(draw(), decode, LEVELS, arranged, look, seed=seed)  # noqa: E731
    first, again, other_seed = measure(BLOCKS, 3), measure(BLOCKS, 3), measure(BLOCKS, 4)
    assert (first.curve, first.same_cluster, first.random_code) == (again.curve, again.same_cluster, again.random_code)
    np.testing.assert_array_equal(first.pictures, again.pictures)
    assert other_seed.curve == first.curve
    assert other_seed.same_cluster != first.same_cluster
    assert other_seed.random_code != first.random_code
    elsewhere = measure(by_labels(np.arange(SIZE) % 8), 3)
    assert (elsewhere.curve, elsewhere.random_code) == (first.curve, first.random_code)
    assert elsewhere.same_cluster != first.same_cluster


def test_pictures_are_in_labelled_columns_and_ranks_are_told_as_they_are_measured():
    tokens, calls = draw(), []
    found = measured(tokens, decode, LEVELS, BLOCKS, look, seed=0, measured=lambda *call: calls.append(call))
    assert found.columns == (
        *("true tokens", "rank 1", "rank 2", "rank 4", "rank 16", "rank 32", "rank 63"),
        *("same cluster", "random code"),
    )
    assert found.pictures.shape == (8, 9, 12, 12, 1)
    assert found.pictures.dtype == np.uint8
    near = nearest_codes(LEVELS, [16])[:, 0]
    np.testing.assert_array_equal(found.pictures[:, 0], decode(tokens[:8]))
    np.testing.assert_array_equal(found.pictures[:, 4], decode(near[tokens[:8]]))
    assert calls == list(found.curve.items())
    assert [rank for rank, _ in calls] == list(ranks(SIZE))


def test_the_least_that_can_be_measured():
    pair = by_labels([0, 0])
    found = measured(np.array([[0] * 16, [1] * 16]), decode, line([0, 1]), pair, look, seed=0)
    assert found.columns == ("true tokens", "rank 1", "same cluster", "random code")
    assert found.curve[1] == found.same_cluster == found.random_code
    assert found.curve[1]["feature_distance"] == 1  # each has become the other


def test_pictures_that_are_all_alike_are_no_measure_of_distance():
    tokens = np.zeros((3, 16), np.int64)
    found = measured(tokens, decode, LEVELS, BLOCKS, look, seed=0)
    assert np.isnan(found.curve[1]["feature_distance"])
    assert np.isfinite(found.curve[1]["psnr"])


@pytest.mark.parametrize(
    ("tokens", "codebook", "arranged", "message"),
    [
        (draw() + SIZE, LEVELS, BLOCKS, "the codebook has 64 codes"),
        (draw().astype(float), LEVELS, BLOCKS, "whole numbers"),
        (draw()[:1], LEVELS, BLOCKS, "two pictures"),
        (draw()[0], LEVELS, BLOCKS, "two pictures"),
        (np.zeros((2, 16), int), line([0]), by_labels([0]), "two codes are the least"),
        (draw(), LEVELS, by_labels([0, 0]), "the clusters are of 2 codes, the codebook has 64"),
    ],
)
def test_what_does_not_belong_together(tokens, codebook, arranged, message):
    with pytest.raises(InputError, match=message):
        measured(tokens, decode, codebook, arranged, look, seed=0)


@pytest.mark.usefixtures("keeping_all")
def test_a_measurement_that_is_cut_off_goes_on_to_the_same_bits(tmp_path):
    decoded = []

    def cut_off(tokens):
        decoded.append(len(tokens))
        if len(decoded) == 6:
            raise KeyboardInterrupt
        return decode(tokens)

    tokens, ranks_told = draw(), []
    originals = decode(tokens)
    whole = measure_near_codes(tokens, originals, decode, LEVELS, BLOCKS, look, 0)
    kept = Kept(tmp_path / "kept.safetensors")
    with pytest.raises(KeyboardInterrupt):
        measure_near_codes(tokens, originals, cut_off, LEVELS, BLOCKS, look, 0, kept=kept)

    def told(rank, metrics):
        ranks_told.append((rank, metrics))

    given = {"measured": told, "kept": Kept(kept.path)}
    again = measure_near_codes(tokens, originals, cut_off, LEVELS, BLOCKS, look, 0, **given)
    ways = len(ranks(SIZE)) + 2
    assert len(decoded) == 6 + 1 + ways - 4  # the true pictures, and the ways that were not yet known
    assert again.curve == whole.curve
    assert (again.same_cluster, again.random_code) == (whole.same_cluster, whole.random_code)
    assert ranks_told == list(whole.curve.items())
    np.testing.assert_array_equal(again.pictures, whole.pictures)
