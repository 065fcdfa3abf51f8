"""What is minimised: IAR's loss to the bit where nothing else is asked for, and each variant as it is defined."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from iar_study.codebook import Rearrangement
from iar_study.config import LossConfig, TrainConfig, TrialConfig, with_settings
from iar_study.errors import InputError
from iar_study.losses.cluster_cross_entropy import token_and_cluster_cross_entropy
from iar_study.training import train_gpt as gpt
from iar_study.training.objective import SIMILAR, Objective, check_loss, cluster_weight
from iar_study.training.train_gpt import initial_model
from tests.training.small import CLUSTERS, VOCABULARY, curves, train

UNEQUAL = Rearrangement.from_labels(np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 0, 1, 2, 2]))

VARIANTS = {
    "cluster loss alone": LossConfig(1.0, token_weight=0.0),
    "token loss halved": LossConfig(1.0, token_weight=0.5),
    "smoothed over all": LossConfig(1.0, smoothing=0.2),
    "smoothed in the cluster": LossConfig(1.0, smoothing=0.2, smoothing_over="cluster"),
    "smoothed over similar": LossConfig(smoothing=0.2, smoothing_over="similar"),
    "two levels": LossConfig(1.0, coarse_weight=0.5, coarse_clusters=2),
    "linear": LossConfig(2.0, schedule="linear"),
    "cosine": LossConfig(0.0, schedule="cosine", first_weight=2.0),
    "step": LossConfig(2.0, schedule="step", first_weight=0.5),
    "all at once": LossConfig(
        2.0, 0.7, "linear", first_weight=0.5, smoothing=0.1, smoothing_over="cluster", coarse_weight=0.3
    ),
}
of_every_variant = pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS.keys())


class Plain(Objective):
    """L_TCE + lambda * L_CCE and nothing else, as the objective was before it had variants."""

    def forward(self, labels, tokens, cluster_weight):
        logits = self.model(labels, tokens[:, :-1])
        tce, cce = token_and_cluster_cross_entropy(logits, tokens, self.boundaries)
        loss = tce + cluster_weight * cce
        told = {"token_nll": tce.detach(), "own_cluster_nll": cce.detach(), "loss": loss.detach()}
        return loss, told


@pytest.mark.parametrize(
    "settings",
    [
        {"loss.cluster_weight": 0.0},
        {"loss.cluster_weight": 1.0},
        {"loss.cluster_weight": 0.3, "train.micro_batch": 4},
        {"loss.cluster_weight": 0.3, "compute.precision": "bfloat16"},
        {"loss.cluster_weight": 0.3, "compute.precision": "float16"},
    ],
    ids=lambda settings: " ".join(f"{key}={value}" for key, value in settings.items()),
)
def test_by_default_it_is_the_loss_of_iar_to_the_bit(settings, codes, config, tmp_path, monkeypatch):
    config = with_settings(config, settings)
    ours = train(config, codes, CLUSTERS, tmp_path / "ours")
    monkeypatch.setattr(gpt, "Objective", Plain)
    plain = train(config, codes, CLUSTERS, tmp_path / "plain")
    assert curves(tmp_path / "ours") == curves(tmp_path / "plain")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    for _, point in curves(tmp_path / "ours"):
        if "train/loss" in point:
            weight = config.loss.cluster_weight
            expected = point["train/token_nll"] + weight * point["train/own_cluster_nll"]
            assert point["train/loss"] == pytest.approx(expected, rel=1e-6)


def by_definition(logits, targets, loss, weight, arranged, codebook):
    """The loss from full target distributions and from probabilities of clusters, with nothing of the package."""
    n_codes, log_p = logits.shape[-1], logits.log_softmax(-1)
    cluster = torch.from_numpy(arranged.labels[arranged.order])
    if loss.smoothing_over == "all":
        q = torch.full((n_codes, n_codes), 1 / n_codes)
    elif loss.smoothing_over == "cluster":
        q = (cluster[:, None] == cluster).double()
    else:
        vectors = torch.from_numpy(codebook[arranged.order]).double()
        cosine = F.cosine_similarity(vectors[:, None], vectors, dim=-1).fill_diagonal_(-1e9)
        q = (cosine >= cosine.sort(descending=True).values[:, [11]]) * (cosine / 0.1).exp()
    q = q / q.sum(1, keepdim=True)
    q = (1 - loss.smoothing) * torch.eye(n_codes) + loss.smoothing * q
    total = loss.token_weight * -(q[targets] * log_p).sum(-1).mean()
    levels = [(weight, cluster), (loss.coarse_weight, cluster // (4 // loss.coarse_clusters))]
    for factor, label in levels:
        p = (log_p.exp()[..., None, :] * (label[:, None] == label)).sum(-1)  # of the cluster of each code
        total = total - factor * p.gather(-1, targets[..., None]).log().mean()
    return total


@pytest.mark.parametrize("arranged", [CLUSTERS, UNEQUAL], ids=["equal", "unequal"])
@of_every_variant
def test_a_variant_is_what_its_definition_says(loss, arranged, codes, config):
    config = with_settings(config, {"model.dropout": 0.0})
    model = initial_model(config, codes, arranged).double()
    torch.nn.init.normal_(model.output.weight)  # it starts at 0, where all is alike
    objective = Objective(model, loss, arranged, codes.codebook.vectors, torch.device("cpu"))
    labels = torch.from_numpy(codes.train_labels[:20])
    tokens = torch.from_numpy(arranged.tokens(codes.train_tokens[:20, 0])).long()
    found, told = objective(labels, tokens, 1.7)
    logits = model(labels, tokens[:, :-1])
    expected = by_definition(logits, tokens, loss, 1.7, arranged, codes.codebook.vectors)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # the shares of a spread are float32
    torch.testing.assert_close(
        torch.autograd.grad(found, model.output.weight)[0],
        torch.autograd.grad(expected, model.output.weight)[0],
        rtol=1e-6,
        atol=1e-8,
    )
    tce = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    cce = token_and_cluster_cross_entropy(logits, tokens, objective.boundaries)[1]
    for name, value in {"token_nll": tce, "own_cluster_nll": cce, "loss": found}.items():
        torch.testing.assert_close(told[name], value.float())
        assert not told[name].requires_grad


@of_every_variant
def test_what_is_told_is_what_is_minimised_and_what_is_measured_is_plain(loss, codes, config, tmp_path):
    config = with_settings(replace(config, loss=loss), {"train.log_every": 1, "train.steps": 12, "train.ema": 0.0})
    model = train(config, codes, CLUSTERS, tmp_path)
    points = curves(tmp_path)
    assert len(points) == 12
    if not loss.smoothing and not loss.coarse_weight:
        for step, point in points:
            weight = cluster_weight(config, step - 1)
            expected = loss.token_weight * point["train/token_nll"] + weight * point["train/own_cluster_nll"]
            assert point["train/loss"] == pytest.approx(expected, rel=1e-6)
    labels, tokens = torch.from_numpy(codes.test_labels), torch.from_numpy(CLUSTERS.tokens(codes.test_tokens)).long()
    with torch.no_grad():
        log_p = model(labels, tokens[:, :-1]).log_softmax(-1)
    last = points[-1][1]
    assert last["val/token_nll"] == pytest.approx(-float(log_p.gather(-1, tokens[..., None]).mean()), rel=1e-6)
    cluster = torch.from_numpy(CLUSTERS.labels[CLUSTERS.order])
    same = (cluster[tokens][..., None] == cluster).double()
    assert last["val/cluster_nll"] == pytest.approx(-float((log_p.exp() * same).sum(-1).log().mean()), rel=1e-5)


@of_every_variant
def test_it_goes_on_from_a_checkpoint_to_the_same_bits(loss, codes, config, tmp_path):
    """From step 32, two steps after a point of the journal and eight before the end."""
    config = with_settings(replace(config, loss=loss), {"train.checkpoint_every": 8})
    whole = train(config, codes, CLUSTERS, tmp_path)
    before = curves(tmp_path)
    max(tmp_path.glob("checkpoints/*.json")).unlink()
    again = train(config, codes, CLUSTERS, tmp_path)
    assert curves(tmp_path) == before
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@of_every_variant
def test_a_variant_is_another_training(loss, codes, config, tmp_path):
    config = with_settings(config, {"train.steps": 5})
    points = []
    for name, each in {"iar": LossConfig(loss.cluster_weight), "variant": loss}.items():
        train(replace(config, loss=each), codes, CLUSTERS, tmp_path / name)
        points.append(curves(tmp_path / name)[-1][1])
    assert points[0]["val/token_nll"] != points[1]["val/token_nll"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_the_variants_too(precision, codes, config, tmp_path):
    loss = LossConfig(1.0, schedule="linear", smoothing=0.1, smoothing_over="similar", coarse_weight=0.5)
    config = with_settings(replace(config, loss=loss), {"compute.precision": precision, "train.steps": 10})
    train(config, codes, CLUSTERS, tmp_path)
    last = curves(tmp_path)[-1][1]
    assert last["val/token_nll"] < math.log(VOCABULARY) + 0.1
    assert math.isfinite(last["train/loss"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2.0] * 5),
        ("linear", [1.0, 1.25, 1.5, 1.75, 2.0]),
        ("cosine", [1.0, 1.5 - math.sqrt(0.125), 1.5, 1.5 + math.sqrt(0.125), 2.0]),
        ("step", [1.0, 1.0, 2.0, 2.0, 2.0]),
    ],
)
def test_the_cluster_weight_goes_from_the_first_step_to_the_last(schedule, expected):
    config = TrialConfig(loss=LossConfig(2.0, schedule=schedule, first_weight=1.0), train=TrainConfig(steps=5))
    assert [cluster_weight(config, step) for step in range(5)] == pytest.approx(expected)
    assert cluster_weight(replace(config, train=TrainConfig(steps=1)), 0) == expected[0]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step"])
def test_schedules_that_end_in_opposite_places_weigh_the_same_on_average(schedule):
    """What lets `loss-variants` compare when the cluster loss weighs most, and not how much."""
    for first, last in ((0.0, 2.0), (2.0, 0.0)):
        loss = LossConfig(last, schedule=schedule, first_weight=first)
        config = TrialConfig(loss=loss, train=TrainConfig(steps=1000))
        assert np.mean([cluster_weight(config, step) for step in range(1000)]) == pytest.approx(1.0)


def test_up_to_a_step_of_the_weight_nothing_differs(codes, config, tmp_path):
    late = replace(config, loss=LossConfig(2.0, schedule="step"))
    for name, each in {"none": config, "late": late}.items():
        train(each, codes, CLUSTERS, tmp_path / name)
    for (step, a), (_, b) in zip(curves(tmp_path / "none"), curves(tmp_path / "late"), strict=True):
        of_loss = [key for key in a if key.endswith("/token_nll")]
        assert all((a[key] == b[key]) == (step <= 20) for key in of_loss), step


@pytest.mark.parametrize(
    ("loss", "n_clusters", "n_codes", "message"),
    [
        (LossConfig(coarse_weight=1.0, coarse_clusters=3), 8, 64, "= 3 does not divide the number of clusters, 8"),
        (LossConfig(coarse_weight=1.0, coarse_clusters=16), 8, 64, "does not divide"),
        (LossConfig(coarse_weight=1.0), 1, 64, "= 4 does not divide the number of clusters, 1"),
        (LossConfig(smoothing=0.1, smoothing_over="cluster"), 1, 64, "needs more than one cluster"),
        (LossConfig(smoothing=0.1, smoothing_over="similar"), 4, SIMILAR, "needs more than 12 codes, there are 12"),
    ],
)
def test_a_variant_that_does_not_fit_is_one_line(loss, n_clusters, n_codes, message):
    with pytest.raises(InputError, match=message) as error:
        check_loss(loss, n_clusters, n_codes)
    assert "\n" not in str(error.value)


def test_the_clusters_that_are_there_count(codes, config):
    model, loss = initial_model(config, codes, CLUSTERS), LossConfig(coarse_weight=1.0, coarse_clusters=3)
    with pytest.raises(InputError, match="the number of clusters, 4"):
        Objective(model, loss, CLUSTERS, codes.codebook.vectors, torch.device("cpu"))
