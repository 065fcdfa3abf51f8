"""The cluster-oriented cross-entropy of IAR.

With token logits y, target t and clusters B_j = [b_j, b_{j+1}) of the rearranged codes (PAPER 3):

    c_j = logsumexp(y[B_j])         L_TCE = logsumexp(y) - y[t]         L_CCE = logsumexp(c) - c[j(t)]

With p = softmax(y) this is L_TCE = -log p[t] and L_CCE = -log sum of p over t's own cluster, so one log-softmax and a
look at a single cluster give both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iar_study.models.gpt import at_least_float32


def cluster_of_token(boundaries: Tensor) -> Tensor:
    """Return the cluster of every token, int64 (N,), for boundaries int64 (n + 1,)."""
    sizes = boundaries.diff()
    return torch.repeat_interleave(torch.arange(len(sizes), device=boundaries.device), sizes)


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
    log_p = logits.log_softmax(-1)
    token = log_p.gather(-1, targets.unsqueeze(-1))
    sizes = boundaries.diff()
    size = int(sizes[0])
    if bool((sizes == size).all()):
        own = (targets // size)[..., None, None].expand(*targets.shape, 1, size)
        cluster = log_p.unflatten(-1, (len(sizes), size)).gather(-2, own).logsumexp(-1)
    else:
        label = cluster_of_token(boundaries)
        outside = label != label[targets].unsqueeze(-1)
        cluster = log_p.masked_fill(outside, -torch.inf).logsumexp(-1)
    return -token.mean(), -cluster.mean()
