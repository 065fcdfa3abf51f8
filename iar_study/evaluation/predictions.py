"""How well a GPT predicts the next token and its cluster, judged by one set of clusters for every arm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from iar_study.codebook import Rearrangement
from iar_study.models.gpt import GPT
from iar_study.models.losses import token_and_cluster_cross_entropy


class Judge:
    """Balanced clusters that judge the predictions of a model whose codes are in another, rearranged order.

    Parameters
    ----------
    clusters : the judging clusters (of the original codes).
    trained : the order of the codes in the model that is judged.
    """

    def __init__(self, clusters: Rearrangement, trained: Rearrangement, device: torch.device) -> None:
        self.boundaries = torch.from_numpy(clusters.boundaries).to(device)
        # The model's code `new` is the original code `order[new]`.
        self.label = torch.from_numpy(clusters.labels[trained.order]).to(device)
        to_judge = clusters.permutation[trained.order]
        self.translation = torch.from_numpy(to_judge).to(device)
        self.columns = torch.from_numpy(np.argsort(to_judge)).to(device)

    def sums(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return float64 (7,): tokens, token NLL, right, cluster NLL, cluster right, right cluster if wrong, chance.

        logits : (..., N); targets : int64 (...), both in the model's order of codes.
        """
        tce, cce = token_and_cluster_cross_entropy(
            logits[..., self.columns], self.translation[targets], self.boundaries
        )
        predicted = logits.argmax(-1)
        right = predicted == targets
        cluster = self.label[targets]
        cluster_right = self.label[predicted] == cluster
        chance = (self.boundaries.diff()[cluster] - 1) / (logits.shape[-1] - 1)
        count = targets.numel()
        values = [
            torch.tensor(count),
            tce * count,
            right.sum(),
            cce * count,
            cluster_right.sum(),
            (cluster_right & ~right).sum(),
            chance[~right].sum(),
        ]
        return torch.stack([value.to("cpu", torch.float64) for value in values])


def prediction_metrics(sums: Tensor, prefix: str) -> dict[str, float]:
    """Turn `Judge.sums` (added over batches) into the metrics `prefix/...`."""
    count, token_nll, right, cluster_nll, cluster_right, right_if_wrong, chance = sums.tolist()
    wrong = max(count - right, 1)
    return {
        f"{prefix}/token_nll": token_nll / count,
        f"{prefix}/token_accuracy": right / count,
        f"{prefix}/cluster_nll": cluster_nll / count,
        f"{prefix}/cluster_accuracy": cluster_right / count,
        f"{prefix}/right_cluster_if_wrong": right_if_wrong / wrong,
        f"{prefix}/right_cluster_by_chance": chance / wrong,
    }


@torch.inference_mode()
def evaluate_predictions(
    model: GPT,
    labels: Tensor,
    tokens: Tensor,
    own: Tensor,
    judge: Judge,
    total: Callable[[Tensor], Tensor],
    images_at_once: int,
) -> dict[str, float]:
    """Return the `val/*` metrics on held-out images.

    Parameters
    ----------
    model : in evaluation mode.
    labels, tokens : int64 (n,) and (n, T), in the model's order: the images that this process evaluates.
    own : int64, the arm's own cluster boundaries.
    total : adds a tensor up over the processes.
    """
    sums = torch.zeros(8, dtype=torch.float64)
    for label, target in zip(labels.split(images_at_once), tokens.split(images_at_once), strict=True):
        if not len(label):  # of fewer images than processes, some get none
            continue
        logits = model(label, target[:, :-1])
        own_nll = token_and_cluster_cross_entropy(logits, target, own)[1].to("cpu", torch.float64) * target.numel()
        sums += torch.cat([judge.sums(logits, target), own_nll[None]])
    sums = total(sums)
    return prediction_metrics(sums[:7], "val") | {"val/own_cluster_nll": float(sums[7] / sums[0])}
