"""The names of what is measured: one key per metric, as it stands in journals, MLflow and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A measured quantity: how it is shown, which direction is better (None: neither), and what it says."""

    label: str
    better: Literal["lower", "higher"] | None
    digits: int
    meaning: str


METRICS: dict[str, Metric] = {
    "samples/fd_classifier": Metric(
        "FD (classifier)",
        "lower",
        2,
        "Frechet distance between samples and held-out images in the features of a classifier trained on the same "
        "data set. Not FID: other features, other counts.",
    ),
    "samples/class_agreement": Metric(
        "class agreement", "higher", 3, "share of samples that the classifier puts in the class that was asked for"
    ),
    "val/token_nll": Metric("token NLL", "lower", 4, "L_TCE on held-out images, nats per token"),
    "val/token_accuracy": Metric("token accuracy", "higher", 4, "share of tokens whose most probable code is right"),
    "val/cluster_nll": Metric(
        "cluster NLL",
        "lower",
        4,
        "L_CCE on held-out images, nats per token, over the same balanced clusters for every arm",
    ),
    "val/cluster_accuracy": Metric(
        "cluster accuracy", "higher", 4, "share of tokens whose most probable code lies in the right balanced cluster"
    ),
    "val/right_cluster_if_wrong": Metric(
        "right cluster if token wrong",
        "higher",
        4,
        "among wrong tokens, the share whose predicted code lies in the right balanced cluster",
    ),
    "val/right_cluster_by_chance": Metric(
        "the same by chance",
        None,
        4,
        "what that share would be if a wrong token were any other code with equal chance",
    ),
    "val/own_cluster_nll": Metric(
        "own cluster NLL", None, 4, "L_CCE over the clusters the arm trained with; not comparable between arms"
    ),
    "train/loss": Metric("training loss", None, 4, "L_TCE + lambda * L_CCE, mean since the last point"),
    "train/token_nll": Metric("training token NLL", "lower", 4, "L_TCE, mean since the last point"),
    "train/token_accuracy": Metric("training token accuracy", "higher", 4, "as on held-out images, of the last batch"),
    "train/own_cluster_nll": Metric(
        "training own cluster NLL", None, 4, "L_CCE over the arm's own clusters, mean since the last point"
    ),
    "train/cluster_nll": Metric("training cluster NLL", "lower", 4, "as on held-out images, of the last batch"),
    "train/cluster_accuracy": Metric(
        "training cluster accuracy", "higher", 4, "as on held-out images, of the last batch"
    ),
    "train/right_cluster_if_wrong": Metric(
        "training right cluster if token wrong", "higher", 4, "as on held-out images, of the last batch"
    ),
    "train/right_cluster_by_chance": Metric("the same by chance, training", None, 4, "as on held-out images"),
    "train/grad_norm": Metric("gradient norm", None, 3, "before clipping"),
    "train/lr": Metric("learning rate", None, 6, ""),
    "speed/tokens_per_second": Metric("tokens per second", "higher", 0, "training throughput of this trial alone"),
    "speed/data_wait_share": Metric("share of time waiting for data", "lower", 4, "of the time of training steps"),
    "speed/peak_memory_gb": Metric("peak memory", "lower", 2, "GB of the GPU, or of the whole process on a CPU"),
    "speed/hours_left": Metric("hours left", None, 2, "estimated, evaluations included"),
}
"""Keys as they appear everywhere; `val/*` and `samples/*` at the last step are a trial's final figures."""
