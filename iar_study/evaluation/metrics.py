"""The names of what is measured: one key per metric, as it stands in journals, MLflow and tables.

What is measured on samples is named `family/extractor@count`, such as `fd/set-3d9d715c@10k`: the features come from the
extractor, here a set of evaluators and the digest of their weights, and so many samples were drawn. Two such numbers
can be compared only where all three agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from iar_study.errors import InputError, nearest


@dataclass(frozen=True)
class Metric:
    """A measured quantity: how it is shown, which direction is better (None: neither), and what it says.

    `fewest`: samples from which on it means something, 0 where that is no question. `relative`: whether it is compared
    by ratios, in percent, as what is above 0 and has no unit that anybody knows.
    """

    label: str
    better: Literal["lower", "higher"] | None
    digits: int
    meaning: str
    fewest: int = 0
    relative: bool = False

    @property
    def direction(self) -> str:
        """ "lower is better", "higher is better", or "" where neither is."""
        return f"{self.better} is better" if self.better else ""

    @property
    def definition(self) -> str:
        """What it says and which direction is better, in sentences; "" where there is nothing to say."""
        parts = (self.meaning.removesuffix("."), self.direction.capitalize())
        return " ".join(f"{part}." for part in parts if part)


TOO_FEW = "\N{DAGGER}"
"""Marks what was measured on fewer samples than it needs."""

FIDELITY: dict[str, Metric] = {
    "fd": Metric(
        "FD",
        "lower",
        3,
        "Frechet distance between Gaussians fitted to the features of samples and of held-out images. "
        "It grows as samples get fewer: compare equal counts",
        relative=True,
    ),
    "fd_codes": Metric(
        "FD to reconstructions",
        "lower",
        3,
        "Frechet distance from the reconstructions of all held-out images in place of these: the tokenizer's own error "
        "is left out",
        relative=True,
    ),
    "sfd": Metric(
        "sFD",
        "lower",
        3,
        "Frechet distance between Gaussians fitted to spatial features of Inception, as sFID (arXiv 2103.03841)",
        relative=True,
    ),
    "fd_inf": Metric(
        "FD at infinity",
        "lower",
        3,
        "Frechet distance extrapolated to infinitely many samples (arXiv 1911.07023). By chance below 0 where the "
        "true distance is near 0",
    ),
    "kd": Metric("KD", "lower", 5, "kernel distance: unbiased squared MMD with the cubic kernel of KID (1801.01401)"),
    "score": Metric(
        "score", "higher", 3, "exp of the mean KL(p(class | sample), p(class)), as the inception score (1606.03498)"
    ),
    "score10": Metric(
        "score of ten parts",
        "higher",
        3,
        "mean score of ten parts of the samples, as the inception score is published. Smaller parts have lower scores: "
        "compare equal counts",
    ),
    "precision": Metric(
        "precision", "higher", 4, "share of samples within the manifold of held-out images, k = 3 (1904.06991)"
    ),
    "recall": Metric(
        "recall", "higher", 4, "share of held-out images within the manifold of the samples, k = 3 (1904.06991)"
    ),
    "density": Metric(
        "density", "higher", 4, "held-out neighbourhoods that a sample lies in, over k = 5; may exceed 1 (2002.09797)"
    ),
    "coverage": Metric(
        "coverage",
        "higher",
        4,
        "share of held-out images whose neighbourhood, k = 5, holds a sample (2002.09797). n perfect samples beside m "
        "images have 1 - (m / (n + m))^5 of them: compare equal counts",
    ),
    "class_agreement": Metric(
        "class agreement", "higher", 4, "share of samples that the classifier puts in the class that was asked for"
    ),
}
"""What is measured on samples; a key of a measurement is `family/extractor@count`."""

WIDTHS = {"classifier": 64, "components": 64, "set": 64, "inception": 2048, "dinov2": 1024}
"""Features of each extractor, of a set of each of its members."""

SPATIAL = ("sfd", "score10")
"""What is measured where the extractor has spatial features, as ADM's evaluator does; not by others."""

_NAMED_BY_DIGEST = re.compile(r"(set|classifier|components)-[0-9a-f]{8}")
"""A set of evaluators, and its members."""

FEWEST_A_FEATURE = {"fd": 4, "fd_codes": 4, "sfd": 4, "fd_inf": 4, "score": 5}
FEWEST = {
    "kd": 100,
    "precision": 100,
    "density": 100,
    "class_agreement": 100,
    "recall": 1000,
    "coverage": 1000,
    "score10": 50_000,
}
"""From how many samples on a metric means something, for each feature or at all.

FD of n perfect samples with F features that are alike is about (F / 4 + 1) / n of their whole variance: a sixteenth at
4F. That is also what two halves of 2F take, from which FD is extrapolated; of smaller ones the covariance is nearly
singular, and the line may end anywhere. The score's 5F are 10 samples for each of Inception's classes. Kernel distance,
precision, density and class agreement have no bias, only an interval that holds from a hundred on. Balls around samples
shrink as these get more: measured beside 5,000 images, recall of perfect samples is 0.82 at 100, 0.73 at 1,000 and 0.71
at 5,000, their coverage 0.10, 0.63 and 0.97. The score of ten parts is published of 50,000, and of fewer it is another.
"""

_PREDICTIONS: dict[str, Metric] = {
    "token_nll": Metric("token NLL", "lower", 4, "L_TCE on held-out images, nats per token"),
    "token_accuracy": Metric("token accuracy", "higher", 4, "share of tokens whose most probable code is right"),
    "calibration_error": Metric(
        "calibration error",
        "lower",
        4,
        "expected calibration error of the most probable code: mean gap between its probability and its being right, "
        "over 15 bins of probability",
    ),
    "cluster_nll": Metric(
        "cluster NLL",
        "lower",
        4,
        "L_CCE on held-out images, nats per token, over the same balanced clusters for every arm",
    ),
    "within_cluster_nll": Metric(
        "NLL within the cluster",
        "lower",
        4,
        "L_TCE - L_CCE, nats per token: the loss that is left when the right balanced cluster is told",
    ),
    "cluster_accuracy": Metric(
        "cluster accuracy", "higher", 4, "share of tokens whose most probable code lies in the right balanced cluster"
    ),
    "right_cluster_if_wrong": Metric(
        "right cluster if token wrong",
        "higher",
        4,
        "among wrong tokens, the share whose predicted code lies in the right balanced cluster",
    ),
    "right_cluster_by_chance": Metric(
        "the same by chance",
        None,
        4,
        "what that share would be if a wrong token were any other code with equal chance",
    ),
    "code_distance_if_wrong": Metric(
        "distance of wrong code",
        "lower",
        4,
        "among wrong tokens, the mean distance between predicted and true code, where the mean distance between two "
        "codes is 1",
    ),
}

METRICS: dict[str, Metric] = {
    **{f"val/{name}": metric for name, metric in _PREDICTIONS.items()},
    "val/own_cluster_nll": Metric(
        "own cluster NLL", None, 4, "L_CCE over the clusters the arm trained with; not comparable between arms"
    ),
    "train/loss": Metric(
        "training loss",
        None,
        4,
        "what is minimised: L_TCE + lambda * L_CCE or the arm's variant; mean since the last point",
    ),
    "train/token_nll": Metric("training token NLL", "lower", 4, "L_TCE, mean since the last point"),
    "train/own_cluster_nll": Metric(
        "training own cluster NLL", None, 4, "L_CCE over the arm's own clusters, mean since the last point"
    ),
    "train/grad_norm": Metric("gradient norm", None, 3, "before clipping"),
    "train/lr": Metric("learning rate", None, 6, ""),
    "speed/tokens_per_second": Metric("tokens per second", "higher", 0, "training throughput of this trial alone"),
    "speed/data_wait_share": Metric("share of time waiting for data", "lower", 4, "of the time of training steps"),
    "speed/peak_memory_gb": Metric("peak memory", "lower", 2, "GB of the GPU, or of the whole process on a CPU"),
    "speed/hours_left": Metric("hours left", None, 2, "estimated, evaluations included"),
}
"""Keys as they appear everywhere, beside those of `FIDELITY`."""

REPLACED: dict[str, str] = {
    "near": "every token replaced by its r-th nearest code",
    "same_cluster": "every token replaced by a random other code of its cluster",
    "random_code": "every token replaced by a random other code",
    "tokenizer": "no token replaced, beside the original image: the tokenizer's own error",
}
"""What is done to the tokens of a picture before it is looked at."""

LIKENESS: dict[str, Metric] = {
    "psnr": Metric(
        "PSNR", "higher", 2, "dB, of the mean squared error over all images, beside those of the true tokens"
    ),
    "ssim": Metric("SSIM", "higher", 4, "structural similarity with the image of the true tokens"),
    "feature_distance": Metric(
        "feature distance",
        "lower",
        4,
        "mean distance of the extractor's features from those of the image of the true tokens, where the mean "
        "distance between two such images is 1",
    ),
    "class_agreement": Metric(
        "class kept", "higher", 4, "share of images that the classifier puts in the same class as before"
    ),
}
"""How a picture of other codes is held against that of the true tokens."""

METRICS |= {
    f"{kind}/{name}": replace(
        metric, label=f"{metric.label}, {kind.replace('_', ' ')}", meaning=f"{text}: {metric.meaning}"
    )
    for kind, text in REPLACED.items()
    for name, metric in LIKENESS.items()
}

BUILT_IN = tuple(FIDELITY)


def declare(metrics: Mapping[str, Metric | Mapping[str, Any]]) -> None:
    """Make somebody's own metrics of samples known by family; what a trial's record tells of them will do."""
    for family, metric in metrics.items():
        FIDELITY[family] = metric if isinstance(metric, Metric) else Metric(**metric)


def fidelity_key(family: str, extractor: str, count: int) -> str:
    """Return the key of a measurement on `count` samples.

    >>> fidelity_key("fd", "set-3d9d715c", 10_000), fidelity_key("kd", "inception", 200)
    ('fd/set-3d9d715c@10k', 'kd/inception@200')
    """
    return f"{family}/{extractor}@{f'{count // 1000}k' if count % 1000 == 0 else count}"


def fewest_samples(family: str, extractor: str) -> int:
    """Return from how many samples on a metric means something; 0 for an extractor that is not known.

    >>> fewest_samples("fd", "inception"), fewest_samples("fd", "set-3d9d715c"), fewest_samples("recall", "dinov2")
    (8192, 256, 1000)
    """
    return FEWEST.get(family, 0) or FEWEST_A_FEATURE.get(family, 0) * WIDTHS.get(_kind(extractor), 0)


def _kind(extractor: str) -> str:
    """Return the name of an extractor without the digest of a set of evaluators, or of a member."""
    named = _NAMED_BY_DIGEST.fullmatch(extractor)
    return named[1] if named else extractor


def extractor_in(key: str) -> str:
    """Return the extractor that a key names; "" where it names none.

    >>> extractor_in("fd/set-3d9d715c@5k"), extractor_in("val/token_nll")
    ('set-3d9d715c', '')
    """
    return key.partition("/")[2].rpartition("@")[0]


def is_of_set(key: str) -> bool:
    """Whether a key is of a whole set of evaluators."""
    return _kind(extractor_in(key)) == "set"


def members_of(key: str, measured: Iterable[str]) -> list[str]:
    """Return the keys, sorted, of what each member of a set found by itself, of the FD that the whole set found.

    >>> members_of("fd/set-3d9d715c@5k", ["fd/components-0a1b2c3d@5k", "fd/components-0a1b2c3d@9"])
    ['fd/components-0a1b2c3d@5k']
    """
    if not is_of_set(key):
        return []
    family, count = key.partition("/")[0], key.rpartition("@")[2]
    beside = {other for other in measured if (other.partition("/")[0], other.rpartition("@")[2]) == (family, count)}
    return sorted(other for other in beside if _NAMED_BY_DIGEST.fullmatch(extractor_in(other)) and not is_of_set(other))


def without_digest(key: str) -> str | None:
    """Return a key without the digest in it, for where several sets measured the same; None of a member's own FD.

    >>> without_digest("fd/set-3d9d715c@5k"), without_digest("kd/classifier-3d9d715c@5k"), without_digest("train/loss")
    ('fd/set@5k', 'kd/classifier@5k', 'train/loss')
    >>> without_digest("fd/classifier-3d9d715c@5k")
    """
    named = extractor_in(key)
    if not _NAMED_BY_DIGEST.fullmatch(named):
        return key
    if key.startswith("fd/") and not is_of_set(key):
        return None
    return key.replace(named, _kind(named))


def metric_named(key: str, measured: Iterable[str] = ()) -> Metric:
    """Return the metric of this key, or raise an `InputError` that names the nearest one.

    One that is not known here, but is among those `measured`, as by another version, is shown by its key.

    One of fewer samples than it needs is marked.

    >>> [metric_named(f"fd/inception@{count}").label for count in ("50k", "10k", "200")]
    ['FID-50k', 'FD (inception, 10k)', 'FD (inception, 200) †']
    """
    family, _, rest = key.partition("/")
    extractor, at, count = rest.partition("@")
    if family in FIDELITY and at:
        found = FIDELITY[family]
        # The one setting that the literature calls by these names.
        published = {"fd": "FID-50k", "sfd": "sFID-50k"} if rest == "inception@50k" else {}
        label = published.get(family, f"{found.label} ({extractor}, {count})")
        of = "" if extractor == "inception" or family == "class_agreement" else " Not FID: other features."
        fewest, few = fewest_samples(family, extractor), ""
        if _number(count) < fewest:
            label, few = f"{label} {TOO_FEW}", f" {TOO_FEW} Too few samples: it means something from {fewest:,} on."
        seen = f"{extractor} features"
        if is_of_set(key):
            whose = "each pair's own set" if extractor == "set" else extractor
            seen = f"mean over the five classifiers of {whose}"
            if found.relative:
                seen = f"geometric mean over the members of {whose}, five classifiers and principal components"
        meaning = f"{found.meaning}; {count} samples, {seen}.{of}{few}"
        return replace(found, label=label, meaning=meaning, fewest=fewest)
    if key not in METRICS and key in set(measured):
        return Metric(key, None, 4, "")
    if key not in METRICS:
        raise InputError(f"unknown metric {key!r}; {nearest(key, [*METRICS, *FIDELITY])}")
    return METRICS[key]


def _number(count: str) -> float:
    """Return how many samples the end of a key says; what it cannot say is never too few."""
    digits = count.removesuffix("k")
    return int(digits) * (1000 if count.endswith("k") else 1) if digits.isdecimal() else float("inf")


def find_metric(name: str, measured: Iterable[str]) -> str | None:
    """Return the key among `measured` that `name` means: itself, or the one of the family (`fd`); None without any.

    Where a set of evaluators measured it, that is meant, and not what its members found by themselves.

    Raises `InputError` where a family was measured in several ways: which of them is meant must then be said.
    """
    keys = sorted(set(measured))
    if name in keys:
        return name
    found = [key for key in keys if key.partition("/")[0] == name and name in FIDELITY]
    found = [key for key in found if is_of_set(key)] or found
    if len(found) > 1:
        raise InputError(f"{name!r} was measured as {', '.join(found)}; name one of them")
    return found[0] if found else None


def is_final(key: str) -> bool:
    """Whether the value of this key at the last step is one of a trial's final figures."""
    return key.partition("/")[0] in {"val", *FIDELITY, *REPLACED}
