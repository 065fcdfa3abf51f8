"""The cluster-oriented cross-entropy of IAR, at the cost of a plain cross-entropy.

With token logits y, target t and clusters B_j = [b_j, b_{j+1}) of the rearranged codes (PAPER 3):

    c_j = logsumexp(y[B_j])         L_TCE = logsumexp(y) - y[t]         L_CCE = logsumexp(c) - c[j(t)]

Since logsumexp(c) == logsumexp(y), both are one formula, in which B is the target's own cluster and a single code is a
cluster of one:

    L = logsumexp(y) - logsumexp(y[B])          dL/dy = softmax(y) - softmax(y[B]) on B

So any number of losses needs one softmax over the codes and a look at one cluster each. It is taken some rows at a
time: besides the logits only their gradient is ever held as a whole, and it is written once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from iar_study.generators.gpt import at_least_float32

Reduction = Literal["mean", "sum", "none"]


def token_and_cluster_cross_entropy(
    logits: Tensor, targets: Tensor, boundaries: Tensor, reduction: Reduction = "mean", ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Return (L_TCE, L_CCE) in nats: scalars, or shaped as `targets` with reduction "none".

    Parameters
    ----------
    logits : float (..., N), any floating dtype; computed, and returned, in at least float32.
    targets : integers (...), in the rearranged order.
    boundaries : integers (n + 1,), as in `codebook.Rearrangement`. Best on the CPU: looking at them stalls a GPU.
    reduction : "mean" is over the targets that count, and NaN when none does, as in `F.cross_entropy`.
    ignore_index : targets of this value do not count and get no gradient.

    Raises
    ------
    ValueError : what does not fit. On a GPU, where looking at targets would cost, one that is no code ends in a
        device-side assertion.
    """
    tce, cce = _losses(logits, targets, [boundaries], reduction, ignore_index)
    return tce, cce


def _losses(
    logits: Tensor, targets: Tensor, levels: Sequence[Tensor], reduction: Reduction, ignore_index: int
) -> Tensor:
    """Return the token loss and the loss of each level of clusters, stacked: float (1 + levels, ...)."""
    check_shapes(logits, targets, levels)
    codes, valid = codes_and_mask(targets, ignore_index)
    rows = logits.reshape(targets.numel(), logits.shape[-1])
    losses = _cluster_cross_entropy(rows, codes, list(levels))
    return reduced(losses, valid, targets.shape, reduction)


def check_shapes(inputs: Tensor, targets: Tensor, levels: Sequence[Tensor]) -> None:
    """Raise `ValueError` unless inputs are float (..., any), targets integers (...), levels integers (n + 1,) each."""
    if not inputs.is_floating_point() or not inputs.ndim:
        raise ValueError(f"expected floating point (..., codes or width), got {tuple(inputs.shape)} {inputs.dtype}")
    if targets.is_floating_point() or targets.shape != inputs.shape[:-1]:
        raise ValueError(
            f"targets {tuple(targets.shape)} {targets.dtype} do not fit: expected integers {tuple(inputs.shape[:-1])}"
        )
    for boundaries in levels:
        if boundaries.is_floating_point() or boundaries.ndim != 1 or len(boundaries) < 2:
            raise ValueError(
                f"boundaries {tuple(boundaries.shape)} {boundaries.dtype} do not fit: expected integers (n + 1,)"
            )


def codes_and_mask(targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the targets, int64 (R,), code 0 in the place of those that are ignored; and bool (R,): which count."""
    valid = (targets != ignore_index).flatten()
    return targets.flatten().long().where(valid, 0), valid


def check_codes(codes: Tensor, n_codes: int) -> None:
    """Raise `ValueError` for a target that is no code; on a GPU leave that to the look-up, which asserts it there."""
    if codes.device.type == "cpu" and len(codes):
        for code in torch.stack(codes.aminmax()).tolist():
            if not 0 <= code < n_codes:
                raise ValueError(f"target {code} is none of the codes 0 ... {n_codes - 1}")


def reduced(losses: Tensor, valid: Tensor, shape: Sequence[int], reduction: Reduction) -> Tensor:
    """Return losses (..., R) with their last dimension reduced over the rows that count, or laid out as `shape`."""
    # Not a product with the mask: NaN or infinity times 0 is NaN, and an ignored target would spoil the sum.
    losses = losses.where(valid, 0.0)
    if reduction == "mean":
        return losses.sum(-1) / valid.sum()
    if reduction == "sum":
        return losses.sum(-1)
    if reduction == "none":
        return losses.unflatten(-1, shape) if len(shape) else losses.squeeze(-1)
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def own_cluster(codes: Tensor, boundaries: Tensor) -> tuple[Tensor, Tensor]:
    """Return first and end, int64 (R,): the own cluster of `codes[r]` is [first[r], end[r])."""
    boundaries = boundaries.to(codes.device, torch.int64, non_blocking=True)
    cluster = torch.bucketize(codes, boundaries[1:], right=True)
    return boundaries[cluster], boundaries[cluster + 1]


class _Level(NamedTuple):
    """One level of clusters: the own cluster of row r is [first[r], end[r]), and `width` is the size of the largest."""

    first: Tensor
    end: Tensor
    width: int
    equal: bool

    def own(self, values: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the values of the own cluster's codes and these codes, (rows, width), of `values` (rows, N).

        A smaller cluster is filled up with its neighbours, at -inf.
        """
        first, end = self.first[rows, None], self.end[rows, None]
        start = first if self.equal else first.clamp(max=values.shape[1] - self.width)
        codes = start + torch.arange(self.width, device=values.device)
        own = at_least_float32(values.gather(1, codes))
        if not self.equal:
            own = own.masked_fill_((codes < first) | (codes >= end), -torch.inf)
        return own, codes


def _token_and_clusters(codes: Tensor, levels: Sequence[Tensor], n_codes: int) -> list[_Level]:
    """Return the level of single codes, whose loss is the token loss, and the levels of clusters, once they fit."""
    check_codes(codes, n_codes)
    seen = [_Level(codes, codes + 1, width=1, equal=True)]
    for boundaries in levels:
        edges, sizes = boundaries[[0, -1]], boundaries.diff().aminmax()
        # One transfer of four numbers: each look at a tensor on a GPU waits for all work before it.
        first, last, smallest, largest = torch.stack([*edges, *sizes]).tolist()
        if first != 0 or last != n_codes or smallest < 1:
            raise ValueError(
                f"cluster boundaries must rise from 0 to {n_codes}: "
                f"these go from {first} to {last}, the smallest cluster has {smallest} codes"
            )
        seen.append(_Level(*own_cluster(codes, boundaries), largest, smallest == largest))
    return seen


def _row_chunks(values: Tensor) -> Iterator[slice]:
    """Split the rows of values (R, N) into parts: small ones for a CPU's cache, few for the launches of a GPU.

    Smaller parts are no faster even on a CPU, and where others keep its cores busy its threads wait at every one.
    """
    elements = 2**22 if values.device.type == "cpu" else 2**26
    step = max(elements // values.shape[1], 1)
    return (slice(start, min(start + step, len(values))) for start in range(0, len(values), step))


def _write_losses(log_p: Tensor, levels: list[_Level], rows: slice, losses: Tensor) -> None:
    """Write the losses of some rows, which have the log-probabilities log_p (rows, N), into losses (levels, R)."""
    for loss, level in zip(losses, levels, strict=True):
        if level.width < log_p.shape[1]:  # a single cluster has no loss: what stands there is 0
            own, _ = level.own(log_p, rows)
            torch.neg(own.logsumexp(1), out=loss[rows])


# Operators of their own, so that `torch.compile` takes them as they are: on a CPU its own loops were slower.
@torch.library.custom_op("iar_study::cluster_cross_entropy", mutates_args=())
def _cluster_cross_entropy(logits: Tensor, codes: Tensor, boundaries: Sequence[Tensor]) -> Tensor:
    """Return the losses, float (1 + levels, R), of logits (R, N): logsumexp(y) - logsumexp(y[own cluster])."""
    levels = _token_and_clusters(codes, boundaries, logits.shape[1])
    dtype = torch.promote_types(logits.dtype, torch.float32)
    losses = logits.new_zeros(len(levels), len(logits), dtype=dtype)
    buffer = logits.new_empty(0, dtype=dtype)
    for rows in _row_chunks(logits):
        part = logits[rows]
        log_p = torch.log_softmax(part, 1, dtype=dtype, out=buffer.resize_(part.shape))
        _write_losses(log_p, levels, rows, losses)
    return losses


@torch.library.custom_op("iar_study::cluster_cross_entropy_backward", mutates_args=())
def _cluster_cross_entropy_backward(
    upstream: Tensor, logits: Tensor, codes: Tensor, boundaries: Sequence[Tensor]
) -> Tensor:
    """Return the gradient of the logits: softmax(y) - softmax(y[own cluster]) for each loss, times its `upstream`."""
    grad = torch.empty_like(logits)
    buffer = upstream.new_empty(0)
    levels = zip(_token_and_clusters(codes, boundaries, logits.shape[1]), upstream, strict=True)
    parts = [(level, factor) for level, factor in levels if level.width < logits.shape[1]]
    total = sum((factor for _, factor in parts), start=torch.zeros_like(upstream[0]))
    for rows in _row_chunks(logits):
        part = logits[rows]
        # Terms of a bf16 gradient cancel: they are added in float32 and rounded once.
        out = grad[rows] if grad.dtype == buffer.dtype else buffer.resize_(part.shape)
        p = torch.softmax(part, 1, dtype=buffer.dtype, out=out).mul_(total[rows, None])
        for level, factor in parts:
            own, codes_of_own = level.own(part, rows)
            # Each entry is added to once, so atomics cannot change the order of a sum: the same bits on a GPU.
            p.scatter_add_(1, codes_of_own, own.softmax(1).mul_(-factor[rows, None]))
        if p.dtype != grad.dtype:
            grad[rows] = p
    return grad


@_cluster_cross_entropy.register_fake
def _(logits: Tensor, codes: Tensor, boundaries: Sequence[Tensor]) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(1 + len(boundaries), len(logits), dtype=dtype)


@_cluster_cross_entropy_backward.register_fake
def _(upstream: Tensor, logits: Tensor, codes: Tensor, boundaries: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(logits)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Sequence[Tensor]], output: Tensor) -> None:
    logits, codes, boundaries = inputs
    ctx.save_for_backward(logits, codes, *boundaries)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, list[None]]:
    logits, codes, *boundaries = ctx.saved_tensors
    return _cluster_cross_entropy_backward(upstream, logits, codes, boundaries), None, [None] * len(boundaries)


_cluster_cross_entropy.register_autograd(_gradients, setup_context=_remember)
