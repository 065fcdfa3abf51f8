"""The training loop: repeatable and resumable to the bit, equivariant under permutation, and it learns."""

import math
import multiprocessing
import signal
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from iar_study.codebook import Rearrangement
from iar_study.config import LossConfig, TrainConfig, with_settings
from iar_study.models.sampling import generate
from iar_study.training.gpt import Diverged, initial_model, learning_rate, original_order, train_gpt
from iar_study.training.journal import read_journal

CLUSTERS = Rearrangement.from_labels(np.random.default_rng(1).permutation(16) % 4)
WHOLE = Rearrangement.identity(16)


def curves(folder):
    """The journal without what a clock decides."""
    return [
        (point["step"], {k: v for k, v in point["metrics"].items() if k != "train/tokens_per_second"})
        for point in read_journal(folder / "journal.jsonl")
    ]


def assert_same_bits(a, b):
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_two_runs_of_the_same_trial_give_the_same_bits(codes, config, tmp_path):
    config = replace(config, loss=LossConfig(1.0))
    models = [train_gpt(config, codes, CLUSTERS, CLUSTERS, tmp_path / name) for name in ("a", "b")]
    assert_same_bits(*models)
    assert curves(tmp_path / "a") == curves(tmp_path / "b")


def test_another_seed_gives_another_model(codes, config, tmp_path):
    a = train_gpt(config, codes, WHOLE, CLUSTERS, tmp_path / "a")
    b = train_gpt(replace(config, seed=1), codes, WHOLE, CLUSTERS, tmp_path / "b")
    assert not torch.equal(a.output.weight, b.output.weight)


def test_it_learns(codes, config, tmp_path):
    train_gpt(with_settings(config, {"train.steps": 150}), codes, WHOLE, CLUSTERS, tmp_path)
    first, last = curves(tmp_path)[0][1], curves(tmp_path)[-1][1]
    assert first["train/token_nll"] > 0.8 * math.log(16)
    assert last["val/token_nll"] < 0.6 * math.log(16)
    # chain rule: the cluster's share of the loss is no more than the whole
    assert last["val/cluster_nll"] < last["val/token_nll"]
    assert last["val/cluster_accuracy"] >= last["val/token_accuracy"]


def test_rearrangement_alone_equals_the_baseline_loss_by_loss(codes, config, tmp_path):
    """With lambda = 0 the order of the codes cannot matter (PAPER 3); in float64 only the order of sums differs."""
    torch.set_default_dtype(torch.float64)
    try:
        baseline = train_gpt(config, codes, WHOLE, CLUSTERS, tmp_path / "baseline")
        rearranged = train_gpt(config, codes, CLUSTERS, CLUSTERS, tmp_path / "rearranged")
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.allclose(baseline.output.weight, rearranged.output.weight)
    original_order(rearranged, CLUSTERS)
    for name, tensor in baseline.state_dict().items():
        torch.testing.assert_close(rearranged.state_dict()[name], tensor, rtol=1e-8, atol=1e-10)
    own = "own_cluster_nll"  # the arms' own clusters differ by intention
    for (step, a), (_, b) in zip(curves(tmp_path / "baseline"), curves(tmp_path / "rearranged"), strict=True):
        for name in a:
            if own not in name:
                assert a[name] == pytest.approx(b[name], rel=1e-9, abs=1e-9), (step, name)
    labels = torch.arange(20) % 2
    samples = [
        generate(model.eval(), labels, cfg_scale=2.0, generator=torch.Generator().manual_seed(0))
        for model in (baseline, rearranged)
    ]
    assert torch.equal(*samples)


def test_arms_start_from_the_same_weights(codes, config):
    a = initial_model(config, codes, WHOLE)
    b = original_order(initial_model(config, codes, CLUSTERS), CLUSTERS)
    assert_same_bits(a, b)


def test_the_cluster_loss_changes_the_training(codes, config, tmp_path):
    a = train_gpt(config, codes, CLUSTERS, CLUSTERS, tmp_path / "a")
    b = train_gpt(replace(config, loss=LossConfig(1.0)), codes, CLUSTERS, CLUSTERS, tmp_path / "b")
    assert not torch.equal(a.output.weight, b.output.weight)


def test_killed_and_resumed_ends_in_the_same_bits(codes, config, tmp_path):
    config = with_settings(config, {"train.steps": 120})
    undisturbed = train_gpt(config, codes, CLUSTERS, CLUSTERS, tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("spawn").Process(
        target=train_gpt, args=(config, codes, CLUSTERS, CLUSTERS, folder)
    )
    process.start()
    while not (folder / "checkpoint.safetensors").exists():
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = curves(folder)
    assert before[-1][0] < 120
    resumed = train_gpt(config, codes, CLUSTERS, CLUSTERS, folder)
    assert_same_bits(undisturbed, resumed)
    assert curves(folder) == curves(tmp_path / "undisturbed")


def test_a_damaged_checkpoint_is_named_and_the_trial_starts_over(codes, config, tmp_path, capsys):
    undisturbed = train_gpt(config, codes, WHOLE, CLUSTERS, tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    again = train_gpt(config, codes, WHOLE, CLUSTERS, tmp_path)
    assert "damaged" in capsys.readouterr().err
    assert_same_bits(undisturbed, again)


def test_divergence_stops_the_training_and_says_when(codes, config, tmp_path):
    config = with_settings(config, {"train.lr": 1e38, "train.warmup_steps": 0})
    with pytest.raises(Diverged) as stopped:
        train_gpt(config, codes, WHOLE, CLUSTERS, tmp_path)
    assert 1 < stopped.value.step <= 40


def test_bfloat16_trains_too(codes, config, tmp_path):
    config = with_settings(config, {"compute.precision": "bfloat16", "train.steps": 10})
    model = train_gpt(config, codes, CLUSTERS, CLUSTERS, tmp_path)
    assert model.output.weight.dtype == torch.float32
    assert curves(tmp_path)[-1][1]["train/loss"] < math.log(16) + 0.1


def test_the_learning_rate_warms_up_and_decays():
    config = TrainConfig(steps=100, lr=1.0, warmup_steps=10)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.001
    assert learning_rate(replace(config, decay="constant"), 99) == 1.0
