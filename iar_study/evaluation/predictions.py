"""How well a GPT predicts the next token and its cluster, judged by one set of clusters for every arm.

All is counted token by token and kept apart by position in the image, as sums: they add up over batches and over
processes, and every figure is a quotient of two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iar_study.codebook import Rearrangement
from iar_study.generators.gpt import GPT
from iar_study.losses.cluster_cross_entropy import token_and_cluster_cross_entropy
from iar_study.storage import Kept

BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. (arXiv 1706.04599)."""

COUNTED = ("tokens", "token_nll", "right", "cluster_nll", "cluster_right", "right_if_wrong", "chance", "distance")
"""Columns of the sums; after them, for each bin, come tokens, probability of the predicted code, and right ones."""

CODES_AT_ONCE = 1024


class Judge:
    """Balanced clusters that judge the predictions of a model whose codes are in another, rearranged order.

    Parameters
    ----------
    clusters : the judging clusters (of the original codes).
    trained : the order of the codes in the model that is judged.
    codebook : float (N, d), the original codes as they are looked up by Euclidean distance.
    """

    def __init__(
        self, clusters: Rearrangement, trained: Rearrangement, codebook: np.ndarray, device: torch.device
    ) -> None:
        self.boundaries = torch.from_numpy(clusters.boundaries).to(device)
        # The model's code `new` is the original code `order[new]`.
        self.label = torch.from_numpy(clusters.labels[trained.order]).to(device)
        to_judge = clusters.permutation[trained.order]
        self.translation = torch.from_numpy(to_judge).to(device)
        self.columns = torch.from_numpy(np.argsort(to_judge)).to(device)
        vectors = torch.from_numpy(codebook).to(device, torch.float32)
        # In the original order, so that the unit is the same to the bit for every arm.
        self.codebook = vectors[torch.from_numpy(trained.order).to(device)] / _mean_distance(vectors)

    def sums(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return float64 (T, len(COUNTED) + 3 * BINS), on the CPU: sums over all but the position in the image.

        logits : (..., T, N); targets : int64 (..., T), both in the model's order of codes.
        """
        tce, cce = token_and_cluster_cross_entropy(
            logits[..., self.columns], self.translation[targets], self.boundaries, reduction="none"
        )
        probability, predicted = logits.softmax(-1, dtype=tce.dtype).max(-1)
        right = predicted == targets
        cluster = self.label[targets]
        cluster_right = self.label[predicted] == cluster
        chance = (self.boundaries.diff()[cluster] - 1) / (logits.shape[-1] - 1)
        distance = (self.codebook[predicted] - self.codebook[targets]).norm(dim=-1)  # 0 where right
        one = torch.ones_like(tce)
        counted = [one, tce, right, cce, cluster_right, cluster_right & ~right, chance * ~right, distance]
        # A training that diverges has NaN here; it is told by its loss.
        in_bin = F.one_hot((probability.nan_to_num() * BINS).long().clamp(max=BINS - 1), BINS)
        calibration = in_bin[..., None] * _stack([one, probability, right])[..., None, :]
        values = torch.cat([_stack(counted), calibration.flatten(-2)], -1)
        return values.reshape(-1, *values.shape[-2:]).sum(0).cpu()


def _stack(values: list[Tensor]) -> Tensor:
    return torch.stack([value.double() for value in values], -1)


def _mean_distance(vectors: Tensor) -> Tensor:
    """Return the mean Euclidean distance between two different codes; 1 where all are the same."""
    n = len(vectors)
    total = sum(torch.cdist(rows.double(), vectors.double()).sum() for rows in vectors.split(CODES_AT_ONCE))
    mean = torch.as_tensor(total / (n * (n - 1)))
    return torch.where(mean > 0, mean, 1.0).float()


def prediction_metrics(sums: Tensor, prefix: str) -> dict[str, float]:
    """Turn `Judge.sums` (added over batches) into the metrics `prefix/...`."""
    whole = sums.sum(0)
    of = dict(zip(COUNTED, whole.tolist(), strict=False))
    # |mean probability - share of right ones| of a bin, weighted by its tokens: the counts cancel.
    _, probability, right = whole[len(COUNTED) :].view(BINS, 3).unbind(1)
    wrong = max(of["tokens"] - of["right"], 1)
    return {
        f"{prefix}/token_nll": of["token_nll"] / of["tokens"],
        f"{prefix}/token_accuracy": of["right"] / of["tokens"],
        f"{prefix}/calibration_error": float((probability - right).abs().sum()) / of["tokens"],
        f"{prefix}/cluster_nll": of["cluster_nll"] / of["tokens"],
        f"{prefix}/within_cluster_nll": (of["token_nll"] - of["cluster_nll"]) / of["tokens"],
        f"{prefix}/cluster_accuracy": of["cluster_right"] / of["tokens"],
        f"{prefix}/right_cluster_if_wrong": of["right_if_wrong"] / wrong,
        f"{prefix}/right_cluster_by_chance": of["chance"] / wrong,
        f"{prefix}/code_distance_if_wrong": of["distance"] / wrong,
    }


def by_position(sums: Tensor) -> dict[str, np.ndarray]:
    """Return metric (as in `prediction_metrics`, without prefix) -> float64 (T,), one value per position."""
    each = [prediction_metrics(position[None], "") for position in sums]
    return {name.removeprefix("/"): np.array([metrics[name] for metrics in each]) for name in each[0]}


@torch.inference_mode()
def evaluate_predictions(
    model: GPT,
    labels: Tensor,
    tokens: Tensor,
    own: Tensor,
    judge: Judge,
    total: Callable[[Tensor], Tensor],
    images_at_once: int,
    kept: Kept | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Return the `val/*` metrics on held-out images, and the judge's sums, (T, ...), that they come from.

    Parameters
    ----------
    model : in evaluation mode.
    labels, tokens : int64 (n,) and (n, T), in the model's order: the images that this process evaluates.
    own : int64, the arm's own cluster boundaries.
    total : adds a tensor up over the processes.
    kept : the sums over the images so far.
    """
    sums = torch.zeros(tokens.shape[1], len(COUNTED) + 3 * BINS, dtype=torch.float64)
    own_nll = torch.zeros((), dtype=torch.float64)
    before = kept.arrays() if kept else {}
    done = 0
    if before:
        sums, own_nll = torch.from_numpy(before["sums"]), torch.tensor(before["own_nll"].item(), dtype=torch.float64)
        done = before["done"].item()
    parts = zip(labels.split(images_at_once), tokens.split(images_at_once), strict=True)
    for part, (label, target) in enumerate(parts):
        if part < done or not len(label):  # of fewer images than processes, some get none
            continue
        logits = model(label, target[:, :-1])
        sums += judge.sums(logits, target)
        own_nll += token_and_cluster_cross_entropy(logits, target, own)[1].to("cpu", torch.float64) * target.numel()
        if kept:
            arrays = {"sums": sums.numpy(), "own_nll": own_nll.numpy(), "done": np.array(part + 1)}
            kept.offer(partial(dict, arrays))
    sums, own_nll = total(sums), total(own_nll)
    return prediction_metrics(sums, "val") | {"val/own_cluster_nll": float(own_nll / sums[:, 0].sum())}, sums
