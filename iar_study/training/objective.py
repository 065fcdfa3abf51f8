"""What a training minimises: the loss of IAR, or one of the variants that ablations put beside it.

    L = token_weight * L_token + lambda * L_CCE + coarse_weight * L_coarse

L_token is L_TCE, with some label smoothing or none; lambda is the cluster weight of the step; L_coarse is the cluster
loss over clusters of clusters. Whatever is minimised, L_TCE and L_CCE themselves are told as well.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from iar_study.codebook import Rearrangement
from iar_study.config import SIMILAR, LossConfig, TrialConfig, check_loss
from iar_study.evaluation.predictions import Judge
from iar_study.generators.gpt import GPT
from iar_study.losses.cluster_cross_entropy import token_and_cluster_cross_entropy
from iar_study.losses.smoothing import (
    Spread,
    cluster_spread,
    scheduled_weight,
    similarity_spread,
    smoothed_cross_entropy,
)


class Objective(nn.Module):
    """The model with its losses: what is spread over devices, and computed in the chosen precision.

    Parameters
    ----------
    codebook : float (N, d), the codes in their original order, for smoothing over similar ones.
    device : of the logits.

    Raises `InputError` as `check_loss` does.
    """

    def __init__(
        self, model: GPT, config: LossConfig, arranged: Rearrangement, codebook: np.ndarray, device: torch.device
    ) -> None:
        super().__init__()
        n_clusters = len(arranged.boundaries) - 1
        check_loss(config, n_clusters, len(arranged.permutation))
        self.model, self.config = model, config
        # No buffers. The boundaries stay on the CPU: there the loss can look at them at no cost.
        self.boundaries = torch.from_numpy(arranged.boundaries)
        self.coarse = self.boundaries[:: max(n_clusters // config.coarse_clusters, 1)].contiguous()
        self.spread = _spread(config, self.boundaries, arranged.rows(codebook), device)

    def forward(
        self, labels: Tensor, tokens: Tensor, judge: Judge | None, cluster_weight: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the loss to minimise, what to tell of it, and with a `judge` its sums.

        Told are (L_TCE, L_CCE), and the loss as a third where it is no sum of the two with fixed weights. Of labels
        (B,), tokens (B, T), and the weight of L_CCE in this step.
        """
        config = self.config
        logits = self.model(labels, tokens[:, :-1])
        tce, cce = token_and_cluster_cross_entropy(logits, tokens, self.boundaries)
        token = smoothed_cross_entropy(logits, tokens, config.smoothing, self.spread) if config.smoothing else tce
        loss = config.token_weight * token + cluster_weight * cce
        if config.coarse_weight:
            loss = loss + config.coarse_weight * token_and_cluster_cross_entropy(logits, tokens, self.coarse)[1]
        is_sum = config.schedule == "constant" and not config.smoothing and not config.coarse_weight
        told = torch.stack([tce, cce] if is_sum else [tce, cce, loss]).detach()
        return loss, told, judge.sums(logits.detach(), tokens) if judge else None


def cluster_weight(config: TrialConfig, step: int) -> float:
    """Return the weight lambda of the cluster loss in 0-based `step`.

    >>> from iar_study.config import TrainConfig
    >>> config = TrialConfig(loss=LossConfig(2.0, schedule="linear"), train=TrainConfig(steps=5))
    >>> [cluster_weight(config, step) for step in range(5)]
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    loss = config.loss
    if loss.schedule == "constant":
        return loss.cluster_weight
    progress = step / max(config.train.steps - 1, 1)
    return scheduled_weight(loss.schedule, loss.first_weight, loss.cluster_weight, progress)


def mean_loss(config: LossConfig, told: list[float]) -> float:
    """Return the mean of the loss over some steps, from the means of what `Objective` told of them."""
    return told[2] if len(told) > 2 else config.token_weight * told[0] + config.cluster_weight * told[1]


def _spread(config: LossConfig, boundaries: Tensor, codebook: np.ndarray, device: torch.device) -> Spread | None:
    """Return where smoothing moves each target, on `device`; None stands for all codes alike."""
    if not config.smoothing or config.smoothing_over == "all":
        return None
    if config.smoothing_over == "cluster":
        spread = cluster_spread(boundaries)
    else:
        spread = similarity_spread(torch.from_numpy(codebook), SIMILAR)
    return Spread(*(part.to(device) for part in spread))
