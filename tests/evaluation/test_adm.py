"""What ADM's evaluator measures, beside a plain restatement of it and beside torch-fidelity, on the same features."""

import importlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from iar_study.errors import InputError
from iar_study.evaluation.feature_parts import FeatureParts, reference_of
from iar_study.evaluation.features import NetworkFeatures, Seen, extract_all
from iar_study.evaluation.fidelity import (
    Estimate,
    Gaussian,
    Pairs,
    Reference,
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_standard_error,
    measure_fidelity,
    precision_recall,
    score_of_parts,
)
from iar_study.evaluation.metrics import FIDELITY, metric_named
from iar_study.storage import load_arrays, save_arrays
from tests.forked import exit_code, start

FEATURES, SPATIAL_FEATURES, CLASSES = 24, 16, 12


def see(n: int, seed: int, away: float = 0.0) -> Seen:
    """What a made-up Inception sees: features of 0 or more, correlated, and the probabilities that follow from them."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(99)
    hidden = rng.normal(away, 1, size=(n, 8))
    mix, mix_s = world.normal(size=(8, FEATURES)), world.normal(size=(8, SPATIAL_FEATURES))
    features = np.abs(hidden @ mix + rng.normal(size=(n, FEATURES)))
    spatial = np.abs(hidden @ mix_s + rng.normal(size=(n, SPATIAL_FEATURES)))
    return Seen(*(x.astype(np.float32) for x in (features, softmax(logits(features)), spatial)))


def logits(features: np.ndarray) -> np.ndarray:
    return features @ np.random.default_rng(98).normal(0, 0.3, size=(FEATURES, CLASSES))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# guided-diffusion's evaluations/evaluator.py, as its formulas say it


def adm_frechet(x: np.ndarray, y: np.ndarray) -> float:
    (mu_1, sigma_1), (mu_2, sigma_2) = ((z.astype(float).mean(0), np.cov(z, rowvar=False)) for z in (x, y))
    root = scipy.linalg.sqrtm(sigma_1 @ sigma_2).real
    return (mu_1 - mu_2) @ (mu_1 - mu_2) + np.trace(sigma_1) + np.trace(sigma_2) - 2 * np.trace(root)


def adm_score(p: np.ndarray, size: int) -> float:
    scores = []
    for first in range(0, len(p), size):
        part = p[first : first + size].astype(float)
        kl = [sum(a * (np.log(a) - np.log(b)) for a, b in zip(row, part.mean(0), strict=True)) for row in part]
        scores.append(np.exp(np.mean(kl)))
    return float(np.mean(scores))


def adm_precision_recall(reference: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    def distance(u: np.ndarray, v: np.ndarray) -> float:
        return float(np.square(u.astype(float) - v.astype(float)).sum())

    def radii(x: np.ndarray) -> list[float]:
        return [sorted(distance(u, v) for v in x)[3] for u in x]  # the nearest is the image itself

    def share(x: np.ndarray, within: np.ndarray) -> float:
        balls = radii(within)
        return np.mean([any(distance(u, v) <= r for v, r in zip(within, balls, strict=True)) for u in x])

    return share(samples, reference), share(reference, samples)


@pytest.fixture(scope="module")
def sets() -> tuple[Seen, Seen]:
    """Of the reference and of samples."""
    return see(230, 0), see(200, 1, away=0.4)


@pytest.mark.parametrize("device", [None, "cpu"], ids=["numpy", "torch"])
def test_all_equals_a_restatement_of_adms_evaluator(sets, device) -> None:
    reference, samples = sets
    measured = measure_fidelity(reference_of(reference, "r.npz", device=device), *samples, intervals=False)
    precision, recall = adm_precision_recall(reference.features, samples.features)
    expected = {
        "fd": adm_frechet(samples.features, reference.features),
        "sfd": adm_frechet(samples.spatial, reference.spatial),
        "score10": adm_score(samples.probabilities, 20),
        "precision": precision,
        "recall": recall,
    }
    assert {family: measured[family].value for family in expected} == pytest.approx(expected, rel=1e-6)
    assert 0.1 < precision < 0.95
    assert 0.1 < recall < 0.95
    assert [*measured] == [family for family in FIDELITY if family in measured]
    assert measured["score10"].value != pytest.approx(measured["score"].value, rel=1e-3)


def of_torch_fidelity(name: str) -> Callable[..., dict[str, float]]:
    module = pytest.importorskip(f"torch_fidelity.metric_{name}", exc_type=ImportError)
    return getattr(module, {"fid": "fid_statistics_to_metric"}.get(name, f"{name}_features_to_metric"))


def test_frechet_distances_equal_torch_fidelitys(sets) -> None:
    measure = of_torch_fidelity("fid")
    fitted = importlib.import_module("torch_fidelity.metric_fid").fid_features_to_statistics
    for x, y in zip((sets[1].features, sets[1].spatial), (sets[0].features, sets[0].spatial), strict=True):
        moments = [fitted(torch.from_numpy(z.astype(float))) for z in (x, y)]
        found = measure(*moments, verbose=False)["frechet_inception_distance"]
        assert frechet_distance(y, x) == pytest.approx(found, rel=1e-6)


def test_the_score_of_ten_parts_equals_torch_fidelitys() -> None:
    measure = of_torch_fidelity("isc")
    for n in (200, 207):  # parts that are not of one size
        raw = logits(see(n, 2).features)
        found = measure(torch.from_numpy(raw), splits=10, shuffle=False)["inception_score_mean"]
        assert score_of_parts(softmax(raw).astype(np.float32)).value == pytest.approx(found, rel=1e-6)


def test_precision_and_recall_equal_torch_fidelitys(sets) -> None:
    measure = of_torch_fidelity("prc")
    reference, samples = (each.features for each in sets)
    found = measure(
        torch.from_numpy(samples.astype(float)),
        torch.from_numpy(reference.astype(float)),
        prc_neighborhood=3,
        prc_batch_size=10_000,
        save_cpu_ram=False,
        verbose=False,
    )
    precision, recall = precision_recall(Pairs(reference, samples))
    # torch-fidelity takes means of float32.
    assert (precision.value, recall.value) == pytest.approx((found["precision"], found["recall"]), rel=1e-6)


# Ten parts


@settings(max_examples=20, deadline=None)
@given(n=st.integers(20, 120), seed=st.integers(0, 1000))
def test_the_score_of_parts_depends_on_the_order_and_stays_between_1_and_the_classes(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.3] * 4, size=n)
    found = score_of_parts(p)
    assert 1 <= found.value <= 4
    assert found.low < found.value < found.high
    ends = [i * n // 10 for i in range(11)]
    within = np.concatenate([rng.permutation(p[a:b]) for a, b in pairwise(ends)])
    assert score_of_parts(within).value == pytest.approx(found.value, rel=1e-12)
    assert score_of_parts(p[p[:, 0].argsort()]).value != found.value


def test_the_interval_of_the_score_of_parts_holds_its_mean() -> None:
    rng = np.random.default_rng(1)
    estimates = [score_of_parts(rng.dirichlet([0.3] * 4, size=400)) for _ in range(300)]
    mean = np.mean([estimate.value for estimate in estimates])
    assert 0.91 < np.mean([estimate.low <= mean <= estimate.high for estimate in estimates]) < 0.99


def test_too_few_for_ten_parts(sets) -> None:
    reference, samples = sets
    few = Seen(*(None if x is None else x[:19] for x in samples))
    assert "score10" not in measure_fidelity(reference_of(reference, "r"), *few, intervals=False)
    with pytest.raises(InputError, match="needs 20 samples, got 19"):
        score_of_parts(few.probabilities)


# Spatial features


def test_spatial_features_are_measured_where_both_have_them(sets) -> None:
    reference, samples = sets
    plain = Reference(reference.features)
    assert not {"sfd", "score10"} & set(measure_fidelity(plain, *samples[:2], intervals=False))
    assert "sfd" not in measure_fidelity(plain, *samples, intervals=False)
    both = reference_of(reference, "r")
    assert "sfd" not in measure_fidelity(both, *samples[:2], intervals=False)
    found = measure_fidelity(both, *samples, intervals=True)["sfd"]
    error = frechet_standard_error(both.spatial, samples.spatial)
    assert found == Estimate.around(frechet_distance(both.spatial, samples.spatial), error)
    with pytest.raises(InputError, match="199 rows of spatial features for 200 samples"):
        measure_fidelity(both, *samples[:2], samples.spatial[1:], intervals=False)
    with pytest.raises(InputError, match="16 features with 15"):
        measure_fidelity(both, *samples[:2], samples.spatial[:, 1:], intervals=False)


def test_a_stored_reference_keeps_its_spatial_gaussian(sets, tmp_path) -> None:
    reference, samples = sets
    kept = reference_of(reference, "r")
    save_arrays(tmp_path / "r.safetensors", kept.arrays())
    back = Reference.from_arrays(load_arrays(tmp_path / "r.safetensors")[0])
    assert measure_fidelity(back, *samples, intervals=False) == pytest.approx(
        measure_fidelity(kept, *samples, intervals=False), nan_ok=True
    )
    assert Reference.from_arrays(Reference(reference.features).arrays()).spatial is None


@pytest.mark.parametrize(
    ("family", "label"),
    [
        ("fd", "FID-50k"),
        ("sfd", "sFID-50k"),
        ("score10", "score of ten parts (inception, 50k)"),
    ],
)
def test_names_of_the_literature_belong_to_one_setting(family: str, label: str) -> None:
    assert metric_named(f"{family}/inception@50k").label == label
    assert "50k" not in metric_named(f"{family}/inception@10k").label
    assert "FID" not in metric_named(f"{family}/other@50k").label


# The reference


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.astype(float).mean(0), np.cov(x, rowvar=False)


def test_moments_that_came_with_a_reference_stand_for_its_pictures(sets) -> None:
    reference, samples = sets
    larger = see(900, 5)
    found = reference_of(reference, "r", moments(larger.features), moments(larger.spatial))
    measured = measure_fidelity(found, *samples, intervals=False)
    assert measured["fd"].value == pytest.approx(adm_frechet(samples.features, larger.features), rel=1e-6)
    assert measured["sfd"].value == pytest.approx(adm_frechet(samples.spatial, larger.spatial), rel=1e-6)
    of_pictures = measure_fidelity(reference_of(reference, "r"), *samples, intervals=False)
    assert measured["precision"] == pytest.approx(of_pictures["precision"], nan_ok=True)
    assert measured["fd"].value != of_pictures["fd"].value
    assert reference_of(reference, "r", moments(larger.features)).spatial is None, "of other pictures than the first"


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("statistics", lambda mu, sigma: (mu[1:], sigma[1:, 1:]), "r.npz: mu is of 23 features, the extractor has 24"),
        (
            "spatial_statistics",
            lambda mu, sigma: (mu[1:], sigma),
            "r.npz: mu_s is of 15 features, the extr",
        ),
        ("statistics", lambda mu, sigma: (mu, -sigma), "r.npz: mu and its covariance: the covariance is not symmetric"),
        ("statistics", lambda mu, sigma: (mu * np.nan, sigma), "r.npz: mu and its covariance: .* NaN"),
    ],
)
def test_moments_that_do_not_fit_are_one_line(sets, which, change, message) -> None:
    of = {"statistics": sets[0].features, "spatial_statistics": sets[0].spatial}[which]
    with pytest.raises(InputError, match=message) as raised:
        reference_of(sets[0], "r.npz", **{which: change(*moments(of))})
    assert "\n" not in str(raised.value)


# Parts


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), workers=st.integers(1, 4))
def test_parts_measure_the_same_whoever_made_them(sets, tmp_path_factory, seed: int, workers: int) -> None:
    reference, samples = sets
    ends = [0, 50, 100, 150, 200]
    shared, rng = np.random.default_rng(seed).integers(workers, size=4), np.random.default_rng(seed)
    parts = FeatureParts(tmp_path_factory.mktemp("parts"))
    for worker in rng.permutation(workers):
        for part in np.flatnonzero(shared == worker):
            assert not parts.has(part)
            parts.save(part, Seen(*(None if x is None else x[ends[part] : ends[part + 1]] for x in samples)))
    joined = parts.joined(range(4))
    for array, expected in zip(joined, samples, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == np.float32
    held = reference_of(reference, "r")
    assert {k: v.value for k, v in measure_fidelity(held, *joined, intervals=False).items()} == {
        k: v.value for k, v in measure_fidelity(held, *samples, intervals=False).items()
    }


class Network(nn.Module):
    """As torch-fidelity's Inception, small: features, logits, and a block that has spatial features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.fc = nn.Conv2d(3, 32, 3, stride=2), nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.block(x.float() / 128 - 1).relu().mean((2, 3))
        return features, self.fc(features)


PICTURES = np.random.default_rng(0).integers(0, 256, (240, 9, 9, 3), np.uint8)


def look_at(folder: Path, numbers: list[int]) -> None:
    """Save the features of parts of 60 pictures."""
    extractor = NetworkFeatures("inception", Network(), "small", "cpu", "block")
    for part in numbers:
        pictures = PICTURES[60 * part : 60 * (part + 1)]
        batches = (pictures[first : first + extractor.batch] for first in range(0, 60, extractor.batch))
        FeatureParts(folder).save(part, extract_all(extractor, batches, 60))


def test_two_processes_find_what_one_does(tmp_path) -> None:
    look_at(tmp_path / "one", [0, 1, 2, 3])
    processes = [start(look_at, tmp_path / "two", numbers) for numbers in ([3, 0], [2, 1])]
    assert exit_code(processes) == 0
    one, two = (FeatureParts(tmp_path / name).joined(range(4)) for name in ("one", "two"))
    held = reference_of(Seen(*(each[:90] for each in one)), "r")
    found, expected = (measure_fidelity(held, *seen, intervals=False) for seen in (two, one))
    assert {"sfd", "score10"} <= expected.keys()
    for family, estimate in expected.items():
        assert found[family].value == pytest.approx(estimate.value, rel=1e-9, abs=1e-9)


def test_what_is_wrong_with_parts_is_one_line(sets, tmp_path) -> None:
    parts = FeatureParts(tmp_path / "features")
    parts.save(0, sets[0])
    with pytest.raises(InputError, match=r"features lacks 000001.safetensors, 000002.safetensors; run again"):
        parts.joined(range(3))
    parts.save(1, Seen(sets[1].features))
    with pytest.raises(InputError, match=r"000001.safetensors has other arrays than .*000000.safetensors; delete"):
        parts.joined(range(2))
    parts.save(1, Seen(*(array[:, 1:] for array in sets[1])))
    with pytest.raises(InputError, match="do not go together"):
        parts.joined(range(2))
    parts.path(1).write_bytes(parts.path(1).read_bytes()[:-9])
    with pytest.raises(InputError, match=r"000001.safetensors is damaged") as raised:
        parts.joined(range(2))
    assert "\n" not in str(raised.value)
    parts.save(1, Seen(sets[1].features[:7]))
    parts.save(0, Seen(sets[0].features))
    assert parts.joined([0, 1]).features.shape == (237, FEATURES)
    assert parts.joined([0, 1]).spatial is None


# On a device


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(25, 60), m=st.integers(7, 60), single=st.booleans())
def test_torch_measures_what_numpy_does(seed: int, n: int, m: int, single: bool) -> None:
    reference, samples = see(m, seed), see(n, seed + 1, away=0.3)
    kind = np.float32 if single else np.float64
    features, held = samples.features.astype(kind), reference.features.astype(kind)
    given = (features, samples.probabilities, samples.spatial)
    plain, placed = (
        measure_fidelity(
            Reference(held, spatial=Gaussian.of(reference.spatial), device=device), *given, intervals=True, seed=seed
        )
        for device in (None, "cpu")
    )
    assert [*plain] == [*placed]
    for family in plain:
        assert placed[family].value == pytest.approx(plain[family].value, rel=1e-9, abs=1e-9)
        # Of fewer images than features a root is taken of what is 0 but for rounding.
        for end in ("low", "high"):
            assert getattr(placed[family], end) == pytest.approx(getattr(plain[family], end), rel=1e-6, abs=1e-6)


def test_torch_takes_tiles_as_numpy_does(monkeypatch) -> None:
    monkeypatch.setattr("iar_study.evaluation.fidelity.DEVICE_TILE", 7)
    x, y = see(60, 0).features, see(45, 1).features
    x[:5] = y[:5]  # equal images, at distance 0
    plain, placed = (Pairs(Reference(y, device=device), x) for device in (None, "cpu"))
    for ours, theirs in zip(plain.samples.own_pairs(), placed.samples.own_pairs(), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9)
        assert theirs.dtype == ours.dtype
    for name in ("similarity", "precise", "recalled", "balls", "covered"):
        ours, theirs = getattr(plain, name), getattr(placed, name)
        np.testing.assert_allclose(theirs, ours, rtol=1e-9)
        assert theirs.dtype == ours.dtype
        assert isinstance(theirs, np.ndarray)


def test_singular_roots_on_a_device() -> None:
    x, y = see(12, 0).features, see(15, 1).features  # fewer images than features
    assert frechet_distance(x, y, "cpu") == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(x, x, "cpu") == pytest.approx(0, abs=1e-9)
    at = [frechet_distance_at_infinity(x, y, device=device) for device in (None, "cpu")]
    assert at[0] == pytest.approx(at[1], rel=1e-9)
