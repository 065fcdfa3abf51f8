"""The training loop: repeatable and resumable to the bit, equivariant under permutation, and it learns."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from iar_study.codebook import Rearrangement
from iar_study.config import LossConfig, TrainConfig, training_identity, with_settings
from iar_study.errors import InputError
from iar_study.evaluation.metrics import METRICS
from iar_study.generators.sampling import generate
from iar_study.storage import load_arrays
from iar_study.training.journal import read_journal
from iar_study.training.kept_weights import weights_file
from iar_study.training.progress import Diverged
from iar_study.training.train_gpt import initial_model, learning_rate, noise_seed, original_order, train_gpt
from tests.training.small import curves, train

CLUSTERS = Rearrangement.from_labels(np.random.default_rng(1).permutation(16) % 4)
WHOLE = Rearrangement.identity(16)


def assert_same_bits(a, b):
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_two_runs_of_the_same_trial_give_the_same_bits(codes, config, tmp_path):
    config = replace(config, loss=LossConfig(1.0))
    models = [train(config, codes, CLUSTERS, tmp_path / name) for name in ("a", "b")]
    assert_same_bits(*models)
    assert curves(tmp_path / "a") == curves(tmp_path / "b")


def test_another_seed_gives_another_model(codes, config, tmp_path):
    a = train(config, codes, WHOLE, tmp_path / "a")
    b = train(replace(config, seed=1), codes, WHOLE, tmp_path / "b")
    assert not torch.equal(a.output.weight, b.output.weight)


def test_it_learns(codes, config, tmp_path):
    train(with_settings(config, {"train.steps": 150}), codes, WHOLE, tmp_path)
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
        baseline = train(config, codes, WHOLE, tmp_path / "baseline")
        rearranged = train(config, codes, CLUSTERS, tmp_path / "rearranged")
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


def test_other_noise_begins_with_the_same_weights_and_reads_the_images_in_another_order(codes, config, tmp_path):
    config = with_settings(config, {"train.batch_size": 4, "train.micro_batch": 4, "model.dropout": 0.0})
    other = with_settings(config, {"train.noise": 1})
    assert_same_bits(initial_model(config, codes, WHOLE), initial_model(other, codes, WHOLE))
    a, b = (train(each, codes, WHOLE, tmp_path / str(each.train.noise)) for each in (config, other))
    assert not torch.equal(a.output.weight, b.output.weight)
    seeds = [noise_seed(seed, draw) for seed in range(50) for draw in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[::4] == list(range(50))


def test_how_often_it_logs_and_saves_changes_no_weight_nor_stops_it_from_going_on(codes, config, tmp_path):
    plain = train(config, codes, WHOLE, tmp_path / "plain")
    paced = with_settings(config, {"train.log_every": 3, "train.checkpoint_every": 4})
    assert training_identity(paced) == training_identity(config)
    train(paced, codes, WHOLE, tmp_path / "paced")
    for last in sorted((tmp_path / "paced" / "checkpoints").glob("*000040.*")):
        last.unlink()
    assert_same_bits(train(config, codes, WHOLE, tmp_path / "paced"), plain)


def test_the_cluster_loss_changes_the_training(codes, config, tmp_path):
    a = train(config, codes, CLUSTERS, tmp_path / "a")
    b = train(replace(config, loss=LossConfig(1.0)), codes, CLUSTERS, tmp_path / "b")
    assert not torch.equal(a.output.weight, b.output.weight)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_named_and_the_training_ends_in_the_same_bits(damaged, codes, config, tmp_path, capsys):
    """From the checkpoint before, or from the start when that is damaged too."""
    undisturbed = train(config, codes, WHOLE, tmp_path)
    before = curves(tmp_path)
    for checkpoint in sorted(tmp_path.glob("checkpoints/*.safetensors"))[-damaged:]:
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    again = train(config, codes, WHOLE, tmp_path)
    assert capsys.readouterr().err.count("is damaged:") == damaged
    assert_same_bits(undisturbed, again)
    assert curves(tmp_path) == before


def test_a_checkpoint_of_other_settings_is_refused(codes, config, tmp_path):
    train(config, codes, WHOLE, tmp_path)
    changed = with_settings(config, {"train.lr": 0.5, "model.width": 32})
    with pytest.raises(InputError, match=r"model\.width = 16, now 32; train\.lr = 0\.01, now 0\.5"):
        train(changed, codes, WHOLE, tmp_path)


def test_the_moving_average_is_that_of_the_weights_after_every_step(codes, config, tmp_path):
    """Independently, from a training without it whose weights are seen after each of its steps."""
    steps, decay = 12, 0.8
    config = with_settings(config, {"train.steps": steps, "train.kept": steps, "train.decay": "constant"})
    seen = []

    def see(step, told, model):
        seen.append([p.double() for p in model.parameters()])

    plain = with_settings(config, {"train.ema": 0.0})
    train_gpt(plain, codes, WHOLE, tmp_path / "plain", see)
    assert len(seen) == steps
    average = [p.double() for p in initial_model(config, codes, WHOLE).parameters()]
    for step, weights in enumerate(seen, start=1):
        short = min(decay, (1 + step) / (10 + step))
        average = [short * a + (1 - short) * w for a, w in zip(average, weights, strict=True)]
    found = train(with_settings(config, {"train.ema": decay}), codes, WHOLE, tmp_path / "ema")
    for parameter, expected in zip(found.parameters(), average, strict=True):
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)


def test_weights_are_kept_at_the_ends_of_equal_parts_as_they_are_followed(codes, config, tmp_path):
    seen = {}
    config = with_settings(config, {"train.steps": 42, "train.kept": 4, "train.ema": 0.9})

    def follow(step, told, model):
        assert told["train/token_nll"] > 0
        if model is not None:
            assert not model.training
            seen[step] = model

    last = train_gpt(config, codes, WHOLE, tmp_path, follow)
    assert list(seen) == [10, 21, 31, 42]
    for step, model in seen.items():
        kept, _ = load_arrays(weights_file(tmp_path, step))
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(kept[name], tensor.numpy())
    assert_same_bits(last, seen[42])


def without_dropout(config):
    return with_settings(config, {"model.dropout": 0.0})


@pytest.mark.parametrize("size", [1, 4, 16])
def test_gradients_of_parts_add_up_to_those_of_the_batch(size, codes, config, tmp_path):
    config = without_dropout(config)
    train(config, codes, CLUSTERS, tmp_path / "whole")
    train(with_settings(config, {"train.micro_batch": size}), codes, CLUSTERS, tmp_path / "parts")
    for (step, a), (_, b) in zip(curves(tmp_path / "whole"), curves(tmp_path / "parts"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6), step


@pytest.mark.parametrize("setting", ["parallel.activation_checkpointing", "compute.compile"])
def test_how_a_block_is_computed_changes_nothing_beyond_rounding(setting, codes, config, tmp_path):
    if setting == "compute.compile" and not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler")
    if setting == "compute.compile" and " " in torch.__file__:
        pytest.skip("torch's compiler cannot link in such a folder, which `stages.check` tells")
    config = with_settings(without_dropout(config), {"train.steps": 10})
    train(config, codes, CLUSTERS, tmp_path / "plain")
    train(with_settings(config, {setting: True}), codes, CLUSTERS, tmp_path / "other")
    for (step, a), (_, b) in zip(curves(tmp_path / "plain"), curves(tmp_path / "other"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5), step


def test_what_is_computed_again_in_the_backward_pass_draws_the_same_dropout(codes, config, tmp_path):
    again = with_settings(config, {"parallel.activation_checkpointing": True})
    models = [train(c, codes, CLUSTERS, tmp_path / str(i)) for i, c in enumerate((config, again))]
    assert_same_bits(*models)


def test_it_tells_how_fast_it_is(codes, config, tmp_path):
    train(config, codes, WHOLE, tmp_path)
    points = [point["metrics"] for point in read_journal(tmp_path / "journal.jsonl")]
    assert {name for point in points for name in point if name.startswith("speed/")} == {
        name for name in METRICS if name.startswith("speed/")
    }
    assert all(0 <= point["speed/data_wait_share"] < 1 for point in points)
    assert points[-1]["speed/hours_left"] == 0
    assert all(0.05 < point["speed/peak_memory_gb"] < 100 for point in points)


def test_divergence_stops_the_training_says_when_and_keeps_the_curve(codes, config, tmp_path):
    config = with_settings(config, {"train.lr": 1e38, "train.warmup_steps": 0, "train.log_every": 1})
    with pytest.raises(Diverged) as stopped:
        train(config, codes, WHOLE, tmp_path)
    assert 1 < stopped.value.step <= 40
    assert [step for step, _ in curves(tmp_path)] == list(range(1, stopped.value.step))
    with pytest.raises(Diverged) as again:  # the step is told exactly, also where losses are looked at now and then
        train(with_settings(config, {"train.log_every": 40}), codes, WHOLE, tmp_path / "seldom")
    assert again.value.step == stopped.value.step


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_too(precision, codes, config, tmp_path):
    config = with_settings(config, {"compute.precision": precision, "train.steps": 10})
    model = train(config, codes, CLUSTERS, tmp_path)
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
