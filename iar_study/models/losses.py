"""The cluster-oriented cross-entropy of IAR.

With token logits y, target t and clusters B_j = [b_j, b_{j+1}) of the rearranged codes (PAPER 3):

    c_j = logsumexp(y[B_j])         L_TCE = logsumexp(y) - y[t]         L_CCE = logsumexp(c) - c[j(t)]

As logsumexp(c) = logsumexp(y), one pass over the logits gives both losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iar_study.models.gpt import at_least_float32


def cluster_of_token(boundaries: Tensor) -> Tensor:
    """Return the cluster of every token, int64 (N,), for boundaries int64 (n + 1,)."""
    sizes = boundaries.diff()
    return torch.repeat_interleave(torch.arange(len(sizes), device=boundaries.device), sizes)


def cluster_logits(logits: Tensor, boundaries: Tensor) -> Tensor:
    """Return c_j = logsumexp of the logits of cluster j: float (..., N) -> (..., n)."""
    sizes = boundaries.diff()
    if int(sizes.min()) == int(sizes.max()):
        return logits.unflatten(-1, (len(sizes), -1)).logsumexp(-1)
    label = cluster_of_token(boundaries).expand(logits.shape)
    shape = (*logits.shape[:-1], len(sizes))
    # Each cluster's own maximum is taken out, so that a cluster far below the best one keeps its digits.
    top = logits.new_full(shape, -torch.inf).scatter_reduce(-1, label, logits.detach(), "amax")
    shifted = (logits - top.gather(-1, label)).exp()
    return logits.new_zeros(shape).scatter_add(-1, label, shifted).log() + top


def token_and_cluster_cross_entropy(logits: Tensor, targets: Tensor, boundaries: Tensor) -> tuple[Tensor, Tensor]:
    """Return (L_TCE, L_CCE), each averaged over all targets, in nats.

    Parameters
    ----------
    logits : float (..., N), any floating dtype; computed in at least float32.
    targets : int64 (...), in the rearranged order.
    boundaries : int64 (n + 1,), as in `codebook.Rearrangement`.

    Raises
    ------
    ValueError : shapes or boundaries that do not fit.
    """
    if targets.shape != logits.shape[:-1] or int(boundaries[-1]) != logits.shape[-1]:
        raise ValueError(
            f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)} and boundaries ending at "
            f"{int(boundaries[-1])} do not fit together"
        )
    logits = at_least_float32(logits)
    by_cluster = cluster_logits(logits, boundaries)
    normaliser = by_cluster.logsumexp(-1)
    token = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    cluster = by_cluster.gather(-1, cluster_of_token(boundaries)[targets].unsqueeze(-1)).squeeze(-1)
    return (normaliser - token).mean(), (normaliser - cluster).mean()
