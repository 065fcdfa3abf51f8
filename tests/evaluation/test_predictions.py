"""Predictions judged by clusters: against a loop over tokens, and the same whatever order the model's codes have."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.codebook import Rearrangement
from iar_study.config import PRESETS
from iar_study.evaluation.predictions import Judge, evaluate_predictions, prediction_metrics
from iar_study.models.gpt import GPT

CPU = torch.device("cpu")


def random_problem(seed: int):
    rng = np.random.default_rng(seed)
    clusters = Rearrangement.from_labels(rng.permutation([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]))
    logits = torch.from_numpy(rng.normal(size=(5, 4, 12)))
    targets = torch.from_numpy(rng.integers(12, size=(5, 4)))
    return clusters, logits, targets


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_equals_a_loop_over_tokens(seed):
    clusters, logits, targets = random_problem(seed)
    found = prediction_metrics(Judge(clusters, Rearrangement.identity(12), CPU).sums(logits, targets), "val")
    label = clusters.labels
    nll, cluster_nll, right, cluster_right, wrong, lucky = 0.0, 0.0, 0, 0, 0, 0
    for y, t in zip(logits.flatten(0, 1).softmax(-1).numpy(), targets.flatten().tolist(), strict=True):
        guess = int(y.argmax())
        nll -= np.log(y[t])
        cluster_nll -= np.log(y[label == label[t]].sum())
        right += guess == t
        cluster_right += label[guess] == label[t]
        wrong += guess != t
        lucky += guess != t and label[guess] == label[t]
    assert found["val/token_nll"] == pytest.approx(nll / 20)
    assert found["val/cluster_nll"] == pytest.approx(cluster_nll / 20)
    assert found["val/token_accuracy"] == pytest.approx(right / 20)
    assert found["val/cluster_accuracy"] == pytest.approx(cluster_right / 20)
    assert found["val/right_cluster_if_wrong"] == pytest.approx(lucky / max(wrong, 1))
    assert found["val/right_cluster_by_chance"] == pytest.approx(2 / 11)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_order_of_the_models_codes_does_not_matter(seed):
    clusters, logits, targets = random_problem(seed)
    trained = Rearrangement.from_labels(np.random.default_rng(seed + 1).permutation(12) % 5)
    plain = Judge(clusters, Rearrangement.identity(12), CPU).sums(logits, targets)
    moved = Judge(clusters, trained, CPU).sums(
        logits[..., torch.from_numpy(trained.order)], torch.from_numpy(trained.tokens(targets.numpy()))
    )
    torch.testing.assert_close(moved, plain)


def test_uniform_guesses_meet_chance():
    """A model that knows nothing puts wrong tokens into the right cluster as often as chance says."""
    rng = np.random.default_rng(0)
    clusters = Rearrangement.from_labels(np.repeat(np.arange(4), 16))
    logits = torch.from_numpy(rng.normal(size=(20_000, 64)))
    targets = torch.from_numpy(rng.integers(64, size=20_000))
    found = prediction_metrics(Judge(clusters, Rearrangement.identity(64), CPU).sums(logits, targets), "val")
    assert found["val/right_cluster_if_wrong"] == pytest.approx(found["val/right_cluster_by_chance"], abs=0.01)


def test_the_shares_of_the_processes_add_up_also_where_one_has_no_images():
    clusters, _, _ = random_problem(0)
    model = GPT(PRESETS["tiny"], vocab_size=12, n_classes=2, grid=2).eval()
    labels, tokens = torch.tensor([0, 1, 1]), torch.randint(12, (3, 4))
    whole = Rearrangement.identity(12)
    own, judge = torch.from_numpy(clusters.boundaries), Judge(clusters, whole, CPU)
    parts = []

    def total(sums):
        parts.append(sums)
        return torch.stack(parts).sum(0)

    def measured(images, add_up):
        return evaluate_predictions(model, labels[images], tokens[images], own, judge, add_up, images_at_once=2)

    for rank in range(4):
        found = measured(slice(rank, 3, 4), total)
    assert found == pytest.approx(measured(slice(None), lambda sums: sums))
