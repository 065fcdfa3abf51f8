"""Arms of the registry, trained for a few steps: where theory says what they do, they do it."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from iar_study.codebook import Codebook, Rearrangement
from iar_study.config import ClusteringConfig, TrialConfig, with_settings
from iar_study.data.codes import Codes
from iar_study.pipeline.making import make_clustering
from iar_study.study.study import arm_config, load_profile, load_study
from iar_study.training.train_gpt import original_order
from tests.training import small
from tests.training.small import curves, make_codes
from tests.workspaces import ROOT

SMALL = {
    "model": "tiny",
    "model.layers": 1,
    "model.width": 16,
    "train.steps": 8,
    "train.log_every": 2,
    "train.warmup_steps": 2,
    "train.kept": 2,
    "evaluation.images": 40,
}


def config_of(study: str, arm: str) -> TrialConfig:
    found = load_study(ROOT / "experiments", study)
    smoke = with_settings(load_profile(ROOT / "experiments", "smoke").config, SMALL)
    return arm_config(found, found.arm(arm), smoke, 0)


@cache
def codes_of(n_codes: int) -> Codes:
    """Tokens below 16 and their neighbours, of a codebook of n_codes."""
    codebook = Codebook(np.random.default_rng(n_codes).normal(size=(n_codes, 8)).astype(np.float32))
    return replace(make_codes(), codebook=codebook)


def clusters(config: ClusteringConfig, codes: Codes, folder: Path) -> Rearrangement:
    make_clustering(folder / "clustering.safetensors", codes.codebook, config, lambda *at: None)
    return Rearrangement.load(folder / "clustering.safetensors")


def train(study: str, arm: str, folder: Path) -> tuple[dict[int, dict[str, float]], torch.nn.Module]:
    """Return step -> metrics, and the model in the original order of the codes."""
    config = config_of(study, arm)
    codes = codes_of(config.tokenizer.codebook_size)
    own = clusters(config.clustering, codes, folder)
    judging = clusters(ClusteringConfig("balanced", config.evaluation.clusters), codes, folder)
    place = folder / study / arm.replace("/", " of ")
    model = small.train(config, codes, own, place, judging=judging)
    return dict(curves(place)), original_order(model, own)


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_one_cluster_is_the_baseline_to_the_bit(tmp_path):
    (ours, a), (baseline, b) = (train("cluster-count", arm, tmp_path) for arm in ("n=1", "baseline"))
    assert ours == baseline
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_a_cluster_for_every_code_is_the_token_loss_twice(tmp_path):
    (ours, _), (baseline, _) = (train("cluster-count", arm, tmp_path) for arm in ("n=N", "baseline"))
    for point in ours.values():
        assert point["train/own_cluster_nll"] == pytest.approx(point["train/token_nll"], rel=1e-6)
        assert point["train/loss"] == pytest.approx(2 * point["train/token_nll"], rel=1e-6)
    # The first step sees the same losses, and a gradient twice as large; AdamW hardly notices.
    assert ours[8]["val/token_nll"] == pytest.approx(baseline[8]["val/token_nll"], rel=1e-2)


def test_the_cluster_loss_alone_leaves_the_codes_of_a_cluster_equally_likely(tmp_path):
    points, _ = train("loss-weight", "cluster-only", tmp_path)
    assert points[8]["val/within_cluster_nll"] == pytest.approx(math.log(64 / 8), rel=1e-5)
    assert points[8]["val/cluster_nll"] < points[4]["val/cluster_nll"] < math.log(8)
    assert points[8]["train/loss"] == pytest.approx(points[8]["train/own_cluster_nll"])


def test_no_loss_sees_the_order(tmp_path, in_float64):
    """In float64 only the order of sums differs: the null control of the study `ordering`."""
    arms = [arm.name for arm in load_study(ROOT / "experiments", "ordering").arms]
    found = {arm: train("ordering", arm, tmp_path) for arm in arms}
    points, model = found.pop("none")
    for arm, (others, other) in found.items():
        for step, point in points.items():
            # Among codes that are equally likely, never seen so early, the predicted one is the first in the order.
            for key in point.keys() - {"val/code_distance_if_wrong"}:
                assert others[step][key] == pytest.approx(point[key], rel=1e-9, abs=1e-9), (arm, step, key)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-7, atol=1e-9, msg=f"{arm}: {name}")


def test_orders_are_orders_of_the_same_clusters(tmp_path):
    study, codes = load_study(ROOT / "experiments", "ordering"), codes_of(64)
    arranged = {arm.name: clusters(config_of("ordering", arm.name).clustering, codes, tmp_path) for arm in study.arms}
    assert len({each.permutation.tobytes() for each in arranged.values()}) == len(arranged)
    (plain, *others) = arranged.values()
    members = {frozenset(np.flatnonzero(plain.labels == j)) for j in range(8)}
    for each in others:
        assert {frozenset(np.flatnonzero(each.labels == j)) for j in range(8)} == members
        np.testing.assert_array_equal(each.boundaries, plain.boundaries)
