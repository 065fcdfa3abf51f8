"""What a training minimises: the loss of IAR, one of the variants that ablations put beside it, or a loss of one's own.

A loss is called with logits, targets, the clusters' boundaries, the codebook and the weight lambda of the step, and
returns its terms by name: scalars, of which "loss" is minimised and all are told in the journal as `train/NAME`.
Whatever is minimised, L_TCE and L_CCE themselves are told as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from iar_study import parts
from iar_study.codebook import Rearrangement
from iar_study.config import SIMILAR, LossConfig, TrialConfig, check_loss
from iar_study.errors import InputError
from iar_study.generators.gpt import GPT
from iar_study.losses.cluster_cross_entropy import token_and_cluster_cross_entropy
from iar_study.losses.smoothing import (
    Spread,
    cluster_spread,
    scheduled_weight,
    similarity_spread,
    smoothed_cross_entropy,
)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Mapping[str, Tensor]]
"""Of logits (B, T, N), targets int64 (B, T), boundaries int64 (n + 1,) on the CPU, codebook (N, d), all in the arm's
order of codes, and lambda."""


class ClusterLoss:
    """The built-in loss, token_weight * L_token + lambda * L_CCE + coarse_weight * L_coarse.

    L_token is L_TCE, with some label smoothing or none; L_coarse is the cluster loss over clusters of clusters.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.spread: Spread | None = None

    def __call__(
        self, logits: Tensor, targets: Tensor, boundaries: Tensor, codebook: Tensor, weight: float
    ) -> dict[str, Tensor]:
        config = self.config
        tce, cce = token_and_cluster_cross_entropy(logits, targets, boundaries)
        token = tce
        if config.smoothing:
            if self.spread is None and config.smoothing_over != "all":
                self.spread = _spread(config, boundaries, codebook)
            token = smoothed_cross_entropy(logits, targets, config.smoothing, self.spread)
        loss = config.token_weight * token + weight * cce
        if config.coarse_weight:
            coarse = boundaries[:: max((len(boundaries) - 1) // config.coarse_clusters, 1)].contiguous()
            # A second pass, not one for all levels: that would sum the gradients in another order, to other bits.
            loss = loss + config.coarse_weight * token_and_cluster_cross_entropy(logits, targets, coarse)[1]
        return {"token_nll": tce, "own_cluster_nll": cce, "loss": loss}


class Objective(nn.Module):
    """The model with its loss: what is spread over devices, and computed in the chosen precision.

    Parameters
    ----------
    codebook : float (N, d), the codes in their original order.
    device : of the logits.

    Raises `InputError` as `check_loss` does, and for a loss of one's own that returns no terms.
    """

    def __init__(
        self, model: GPT, config: LossConfig, arranged: Rearrangement, codebook: np.ndarray, device: torch.device
    ) -> None:
        super().__init__()
        check_loss(config, len(arranged.boundaries) - 1, len(arranged.permutation))
        self.model, self.name = model, config.name
        self.loss: Loss = ClusterLoss(config) if config.name == "cluster" else parts.load("loss", config.name)
        # No buffers. The boundaries stay on the CPU: there the loss can look at them at no cost.
        self.boundaries = torch.from_numpy(arranged.boundaries)
        self.codebook = torch.from_numpy(arranged.rows(codebook)).to(device)

    def forward(self, labels: Tensor, tokens: Tensor, cluster_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise and all of its terms by name.

        Of labels (B,), tokens (B, T), and the weight of L_CCE in this step.
        """
        logits = self.model(labels, tokens[:, :-1])
        terms = self.loss(logits, tokens, self.boundaries, self.codebook, cluster_weight)
        if not isinstance(terms, Mapping) or "loss" not in terms:
            raise InputError(f'loss {self.name} is to return its terms by name, "loss" among them, not {type(terms)}')
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.numel() != 1:
                raise InputError(f"loss {self.name}: its term {name!r} is to be a tensor of one number")
        if torch.is_grad_enabled() and not terms["loss"].requires_grad:
            raise InputError(f"loss {self.name}: what it returns as 'loss' has no gradient")
        told = {name: term.detach().float() for name, term in terms.items()}
        if self.name != "cluster":  # whatever another loss calls so
            tce, cce = token_and_cluster_cross_entropy(logits.detach(), tokens, self.boundaries)
            told |= {"token_nll": tce, "own_cluster_nll": cce}
        return terms["loss"], told


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


def _spread(config: LossConfig, boundaries: Tensor, codebook: Tensor) -> Spread:
    """Return where smoothing moves each target, on the codebook's device."""
    # On the CPU: similarities have the same bits there for every device.
    clusters = config.smoothing_over == "cluster"
    spread = cluster_spread(boundaries) if clusters else similarity_spread(codebook.cpu(), SIMILAR)
    return Spread(*(part.to(codebook.device) for part in spread))
