"""Predictions judged by clusters: against a loop over tokens, and the same whatever order the model's codes have."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from torchmetrics.functional.classification import multiclass_calibration_error

from iar_study.codebook import Rearrangement
from iar_study.config import PRESETS
from iar_study.evaluation.predictions import Judge, by_position, evaluate_predictions, prediction_metrics
from iar_study.generators.gpt import GPT
from iar_study.storage import Kept

CPU = torch.device("cpu")
CODEBOOK = np.random.default_rng(9).normal(size=(12, 3))


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
    found = prediction_metrics(Judge(clusters, Rearrangement.identity(12), CODEBOOK, CPU).sums(logits, targets), "val")
    label = clusters.labels
    nll, cluster_nll, right, cluster_right, wrong, lucky, far = 0.0, 0.0, 0, 0, 0, 0, 0.0
    for y, t in zip(logits.flatten(0, 1).softmax(-1).numpy(), targets.flatten().tolist(), strict=True):
        guess = int(y.argmax())
        nll -= np.log(y[t])
        cluster_nll -= np.log(y[label == label[t]].sum())
        right += guess == t
        cluster_right += label[guess] == label[t]
        wrong += guess != t
        lucky += guess != t and label[guess] == label[t]
        far += np.linalg.norm(CODEBOOK[guess] - CODEBOOK[t])
    assert found["val/token_nll"] == pytest.approx(nll / 20)
    assert found["val/cluster_nll"] == pytest.approx(cluster_nll / 20)
    assert found["val/within_cluster_nll"] == pytest.approx((nll - cluster_nll) / 20)
    assert found["val/code_distance_if_wrong"] == pytest.approx(far / max(wrong, 1) / pdist(CODEBOOK).mean())
    assert found["val/token_accuracy"] == pytest.approx(right / 20)
    assert found["val/cluster_accuracy"] == pytest.approx(cluster_right / 20)
    assert found["val/right_cluster_if_wrong"] == pytest.approx(lucky / max(wrong, 1))
    assert found["val/right_cluster_by_chance"] == pytest.approx(2 / 11)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_order_of_the_models_codes_does_not_matter(seed):
    clusters, logits, targets = random_problem(seed)
    trained = Rearrangement.from_labels(np.random.default_rng(seed + 1).permutation(12) % 5)
    plain = Judge(clusters, Rearrangement.identity(12), CODEBOOK, CPU).sums(logits, targets)
    moved = Judge(clusters, trained, CODEBOOK, CPU).sums(
        logits[..., torch.from_numpy(trained.order)], torch.from_numpy(trained.tokens(targets.numpy()))
    )
    torch.testing.assert_close(moved, plain)


def test_uniform_guesses_meet_chance():
    """A model that knows nothing puts wrong tokens into the right cluster as often as chance says."""
    rng = np.random.default_rng(0)
    clusters = Rearrangement.from_labels(np.repeat(np.arange(4), 16))
    logits = torch.from_numpy(rng.normal(size=(20_000, 64)))
    targets = torch.from_numpy(rng.integers(64, size=20_000))
    judge = Judge(clusters, Rearrangement.identity(64), np.eye(64), CPU)
    found = prediction_metrics(judge.sums(logits[:, None], targets[:, None]), "val")
    assert found["val/right_cluster_if_wrong"] == pytest.approx(found["val/right_cluster_by_chance"], abs=0.01)


def test_the_shares_of_the_processes_add_up_also_where_one_has_no_images():
    clusters, _, _ = random_problem(0)
    model = GPT(PRESETS["tiny"], vocab_size=12, n_classes=2, grid=2).eval()
    labels, tokens = torch.tensor([0, 1, 1]), torch.randint(12, (3, 4))
    whole = Rearrangement.identity(12)
    own, judge = torch.from_numpy(clusters.boundaries), Judge(clusters, whole, CODEBOOK, CPU)

    def measured(images, add_up):
        return evaluate_predictions(model, labels[images], tokens[images], own, judge, add_up, images_at_once=2)

    shares = [[], [], [], []]
    for rank, share in enumerate(shares):
        measured(slice(rank, 3, 4), lambda sums, share=share: share.append(sums) or sums + 1)
    everything = [sum(parts) for parts in zip(*shares, strict=True)]
    together, _ = measured(slice(0, 0), lambda _: everything.pop(0))
    alone, sums = measured(slice(None), lambda sums: sums)
    assert together == pytest.approx(alone)
    assert sums[:, 0].tolist() == [3] * 4


@pytest.mark.usefixtures("keeping_all")
def test_an_evaluation_that_is_cut_off_goes_on_to_the_same_bits(tmp_path):
    clusters, whole = random_problem(3)[0], Rearrangement.identity(12)
    torch.manual_seed(0)
    model = GPT(PRESETS["tiny"], 12, 2, 2).eval()
    labels, tokens = torch.arange(9) % 2, torch.randint(12, (9, 4))
    own, judge = torch.from_numpy(clusters.boundaries), Judge(clusters, whole, CODEBOOK, CPU)
    torch.nn.init.normal_(model.output.weight)
    seen = []

    class CutOff:
        def sums(self, logits, targets):
            seen.append(len(targets))
            if len(seen) == 3:
                raise KeyboardInterrupt
            return judge.sums(logits, targets)

    def evaluated(judge, kept=None):
        return evaluate_predictions(model, labels, tokens, own, judge, lambda sums: sums, 2, kept)

    metrics, sums = evaluated(judge)
    with pytest.raises(KeyboardInterrupt):
        evaluated(CutOff(), Kept(tmp_path / "kept.safetensors"))
    again, same = evaluated(CutOff(), Kept(tmp_path / "kept.safetensors"))
    assert seen == [2, 2, 2, 2, 2, 1]  # the third part twice, the others once
    assert again == metrics
    assert torch.equal(same, sums)


def test_positions_are_kept_apart():
    """The sums of a position are those of its tokens alone, and the whole is all positions together."""
    clusters, logits, targets = random_problem(3)
    judge = Judge(clusters, Rearrangement.identity(12), CODEBOOK, CPU)
    sums = judge.sums(logits, targets)
    places = by_position(sums)
    for place in range(4):
        alone = prediction_metrics(judge.sums(logits[:, place : place + 1], targets[:, place : place + 1]), "")
        assert {f"/{name}": values[place] for name, values in places.items()} == pytest.approx(alone)
    assert places["token_nll"].mean() == pytest.approx(prediction_metrics(sums, "val")["val/token_nll"])


@pytest.mark.parametrize(("sharpness", "error"), [(1.0, 0.0), (3.0, 0.3)])
def test_calibration_error_of_a_model_that_knows_its_odds_is_zero(sharpness, error):
    """Targets are drawn from the model's own probabilities: it is calibrated, until its logits are blown up."""
    rng = np.random.default_rng(0)
    clusters = Rearrangement.from_labels(np.repeat(np.arange(4), 2))
    logits = rng.normal(size=(50_000, 8)) * 1.5
    targets = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    judge = Judge(clusters, Rearrangement.identity(8), np.eye(8), CPU)
    sums = judge.sums(torch.from_numpy(sharpness * logits)[:, None], torch.from_numpy(targets)[:, None])
    assert prediction_metrics(sums, "val")["val/calibration_error"] == pytest.approx(error, abs=0.07 if error else 0.01)


def test_calibration_error_equals_that_of_torchmetrics():
    rng = np.random.default_rng(1)
    clusters = Rearrangement.from_labels(np.repeat(np.arange(4), 2))
    logits, targets = torch.from_numpy(rng.normal(size=(300, 5, 8))), torch.from_numpy(rng.integers(8, size=(300, 5)))
    judge = Judge(clusters, Rearrangement.identity(8), np.eye(8), CPU)
    found = prediction_metrics(judge.sums(logits, targets), "val")["val/calibration_error"]
    probabilities = logits.flatten(0, 1).softmax(-1)
    theirs = multiclass_calibration_error(probabilities, targets.flatten(), num_classes=8, n_bins=15, norm="l1")
    assert found == pytest.approx(float(theirs), abs=1e-6)


def test_a_model_of_nan_is_counted_not_refused():
    """The trainer tells of a training that diverged by its loss; the judge must not stop it first."""
    clusters, logits, targets = random_problem(0)
    judge = Judge(clusters, Rearrangement.identity(12), CODEBOOK, CPU)
    assert np.isnan(prediction_metrics(judge.sums(logits * np.nan, targets), "val")["val/token_nll"])
