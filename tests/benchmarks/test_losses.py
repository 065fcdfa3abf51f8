"""What the cluster loss costs: forward and backward of 1,024 targets over 16,384 codes, side by side in one run."""

import pytest
import torch
import torch.nn.functional as F

from iar_study.models.losses import token_and_cluster_cross_entropy

TARGETS, CODES, CLUSTERS = 1024, 16384, 128


def plain_cross_entropy(logits, targets, boundaries):
    return F.cross_entropy(logits, targets)


def three_passes(logits, targets, boundaries):
    """The form of the paper's formulas: cross-entropy over tokens, and again over the clusters' logsumexp."""
    clusters = torch.logsumexp(logits.view(len(logits), CLUSTERS, -1), -1)
    return F.cross_entropy(logits, targets) + F.cross_entropy(clusters, targets // (CODES // CLUSTERS))


def ours(logits, targets, boundaries):
    tce, cce = token_and_cluster_cross_entropy(logits, targets, boundaries)
    return tce + cce


@pytest.mark.bench
@pytest.mark.parametrize("loss", [plain_cross_entropy, three_passes, ours], ids=lambda loss: loss.__name__)
def test_loss_forward_and_backward(benchmark, loss):
    torch.manual_seed(0)
    logits = torch.randn(TARGETS, CODES, requires_grad=True)
    targets = torch.randint(CODES, (TARGETS,))
    boundaries = torch.arange(0, CODES + 1, CODES // CLUSTERS)

    def step():
        logits.grad = None
        loss(logits, targets, boundaries).backward()

    benchmark.group = "loss forward and backward, float32, 1,024 x 16,384, n = 128"
    benchmark.pedantic(step, rounds=8, warmup_rounds=2)
