"""Softer targets and a changing weight of the cluster loss: what ablations put beside the fixed loss of IAR.

Label smoothing moves a share s of each target t to other codes, by a spread q(. | t):

    L = (1 - s) * L_TCE - s * sum_i q(i | t) * log p_i

The spread is uniform over all codes (plain label smoothing), over the target's own cluster, which leaves L_CCE as it
is, or over the codes most similar to the target.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from iar_study.generators.gpt import at_least_float32
from iar_study.losses.cluster_cross_entropy import (
    Reduction,
    check_codes,
    check_shapes,
    codes_and_mask,
    own_cluster,
    reduced,
)
from iar_study.tokenizers.vq import unit


class Spread(NamedTuple):
    """Where the smoothed share of target t goes: to `codes[t]`, int64 (N, k), in parts `shares[t]`, float (N, k)."""

    codes: Tensor
    shares: Tensor


def cluster_spread(boundaries: Tensor) -> Spread:
    """Spread evenly over the own cluster, for cluster boundaries, integers (n + 1,).

    >>> cluster_spread(torch.tensor([0, 1, 3])).shares
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    width = int(boundaries.diff().max())
    first, end = own_cluster(torch.arange(int(boundaries[-1]), device=boundaries.device), boundaries)
    codes = first[:, None] + torch.arange(width, device=boundaries.device)
    inside = codes < end[:, None]
    # A smaller cluster is filled up with its first code at share 0: `gather` wants an index that exists.
    return Spread(codes.where(inside, first[:, None]), inside / (end - first)[:, None])


def similarity_spread(codebook: Tensor, k: int = 12, temperature: float = 0.1, chunk: int = 1024) -> Spread:
    """Spread over the k most similar other codes, q(i | t) proportional to exp(cos(e_i, e_t) / temperature).

    Parameters
    ----------
    codebook : float (N, d), in the order that the tokens index.
    k : how many; 12 is the code distance up to which the paper finds a picture almost unchanged.
    chunk : rows of the N x N similarities held at a time.

    Raises
    ------
    ValueError : fewer than k other codes, or a temperature that is not positive.
    """
    if not 1 <= k < len(codebook) or temperature <= 0:
        raise ValueError(
            f"k = {k} must be from 1 to {len(codebook) - 1} and temperature = {temperature} must be positive"
        )
    rows = unit(at_least_float32(codebook.detach()), 1)
    codes, shares = [], []
    for start in range(0, len(rows), chunk):
        similarity = rows[start : start + chunk] @ rows.T
        similarity.diagonal(start).fill_(-torch.inf)
        nearest = similarity.topk(k)
        codes.append(nearest.indices)
        shares.append((nearest.values / temperature).softmax(1))
    return Spread(torch.cat(codes), torch.cat(shares))


def smoothed_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    smoothing: float,
    spread: Spread | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """Return L_TCE with the share `smoothing` of every target moved along `spread`; None spreads over all codes.

    Parameters
    ----------
    logits : float (..., N), any floating dtype; computed, and returned, in at least float32.
    targets : integers (...).
    reduction, ignore_index : as in `losses.token_and_cluster_cross_entropy`.

    Raises
    ------
    ValueError : smoothing outside [0, 1], or shapes that do not fit.
    """
    check_shapes(logits, targets, [])
    n_codes = logits.shape[-1]
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be from 0 to 1, got {smoothing}")
    if spread is not None and len(spread.codes) != n_codes:
        raise ValueError(f"a spread of {len(spread.codes)} targets does not fit logits over {n_codes} codes")
    codes, valid = codes_and_mask(targets, ignore_index)
    check_codes(codes, n_codes)
    log_p = at_least_float32(logits).reshape(targets.numel(), n_codes).log_softmax(1)
    token = log_p.gather(1, codes[:, None]).squeeze(1)
    moved = log_p.mean(1) if spread is None else (log_p.gather(1, spread.codes[codes]) * spread.shares[codes]).sum(1)
    return reduced(-((1 - smoothing) * token + smoothing * moved), valid, targets.shape, reduction)


def scheduled_weight(
    schedule: Literal["constant", "linear", "cosine", "step"], start: float, end: float, progress: float
) -> float:
    """Return the weight lambda when `progress`, from 0 to 1, of the training is done, on its way from start to end.

    "constant" is `end` throughout, "linear" a straight line, "cosine" half a wave, "step" a jump half-way.

    >>> [scheduled_weight(s, 0.0, 2.0, 0.25) for s in ("constant", "linear", "step")]
    [2.0, 0.5, 0.0]
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be from 0 to 1, got {progress}")
    ways = {"constant": 1.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}
    ways["step"] = float(progress >= 0.5)
    if schedule not in ways:
        raise ValueError(f"schedule must be one of {', '.join(ways)}, got {schedule!r}")
    return start + (end - start) * ways[schedule]
