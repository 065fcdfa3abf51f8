"""The observation that IAR is built on: does a picture stay as it is when its tokens are replaced by near codes?

Every token is replaced by its r-th nearest code, the picture is decoded again and compared with the picture of the true
tokens. Two controls say what the curve over r means: a random other code of the same cluster, which is all that a model
right about the cluster alone can promise, and a random other code, from which nothing can be promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import cdist

from iar_study.codebook import Codebook, Rearrangement
from iar_study.errors import InputError
from iar_study.evaluation.metrics import LIKENESS
from iar_study.storage import Kept

BLOCK = 2**22
"""Distances between codes that are held at a time: 32 MB, and as much again for their order."""

COMPARED_AT_ONCE = 2**16
"""Pixels of pictures that are compared at a time: larger parts fall out of the processor's cache."""

LARGEST_PSNR = 100.0
"""dB, for pictures that are the same: their PSNR is infinite, and no mean or figure survives that."""

WINDOW = 7
"""Side of SSIM's window, in pixels. The usual Gaussian one of 11 would be wider than a picture of digits."""

SHOWN_PICTURES, SHOWN_RANKS = 8, 6


@dataclass(frozen=True)
class NearCodes:
    """What became of the pictures whose tokens were replaced, beside the pictures of the true tokens.

    Attributes
    ----------
    curve : rank r -> metrics, where every token was replaced by its r-th nearest code.
    same_cluster : metrics, where every token was replaced by a random other code of its cluster.
    random_code : metrics, where every token was replaced by a random other code.
    tokenizer : metrics of the pictures of the true tokens beside the original images: the tokenizer's own error, a
        yardstick for what "almost unchanged" may mean.
    pictures : uint8 (k, columns, h, w, c), the first k <= 8 pictures in some of these ways.
    columns : what the columns of `pictures` are: "true tokens", "rank 1", ..., "same cluster", "random code".

    The metrics are `psnr`, `ssim`, `feature_distance` and `class_agreement`; see `compare_pictures`.
    """

    curve: dict[int, dict[str, float]]
    same_cluster: dict[str, float]
    random_code: dict[str, float]
    tokenizer: dict[str, float]
    pictures: np.ndarray
    columns: tuple[str, ...]


def paper_rank(n_codes: int) -> int:
    """Return the rank up to which the paper finds pictures almost unchanged: 12 of 16,384 codes, in proportion.

    >>> paper_rank(16_384), paper_rank(4096), paper_rank(512)
    (12, 3, 1)
    """
    return max(1, round(12 / 16_384 * n_codes))


def ranks(n_codes: int) -> tuple[int, ...]:
    """Return the ranks to measure at: powers of two, the paper's, and the farthest code.

    >>> ranks(512)
    (1, 2, 4, 8, 16, 32, 64, 128, 256, 511)
    """
    farthest = n_codes - 1
    powers = {2**power for power in range(farthest.bit_length())}
    return tuple(sorted({rank for rank in powers | {paper_rank(n_codes), farthest} if 0 < rank <= farthest}))


def nearest_codes(codebook: Codebook, ranks: Iterable[int]) -> np.ndarray:
    """Return each code's r-th nearest other code for every r of `ranks`, int32 (N, ranks).

    Near is what the codebook's look-up compares by; of equally near codes the one of the lower index comes first. A
    code is never among its own neighbours, but its duplicates are, as the nearest. The first k neighbours are those of
    `range(1, k + 1)`. Memory is bounded by `BLOCK` and the result.

    Raises
    ------
    InputError : a rank is not among 1, ..., N - 1.
    """
    points, columns = codebook.points, np.array(list(ranks), dtype=np.int64)
    size = len(points)
    if len(columns) and not 1 <= columns.min() <= columns.max() < size:
        raise InputError(f"ranks lie in {columns.min()} ... {columns.max()}; the {size} codes have 1 ... {size - 1}")
    nearest = np.empty((size, len(columns)), np.int32)
    for part in np.array_split(np.arange(size), -(-size * size // BLOCK)):
        # By differences, not by a matrix product: its rounding would tell duplicates apart.
        distances = cdist(points[part], points, "sqeuclidean")
        distances[np.arange(len(part)), part] = -1  # itself, as rank 0
        nearest[part] = distances.argsort(axis=1, kind="stable")[:, columns]
    return nearest


def random_other_codes(tokens: np.ndarray, arranged: Rearrangement, rng: np.random.Generator) -> np.ndarray:
    """Replace every token by a random other code of its cluster, each draw on its own; int64, of the tokens' shape.

    Tokens (integers of any shape) and result are in the codes' original order. A cluster of one code keeps it.
    """
    new = arranged.permutation[tokens]
    cluster = np.searchsorted(arranged.boundaries, new, side="right") - 1
    first, size = arranged.boundaries[cluster], np.diff(arranged.boundaries)[cluster]
    step = 1 + rng.integers(np.maximum(size - 1, 1))  # round the cluster, and never all the way
    return arranged.order[first + (new - first + step) % size]


def compare_pictures(pictures: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return `psnr` and `ssim` of pictures beside the true ones, both uint8 (n, h, w, c).

    `psnr` is that of the mean squared error over all pictures, in dB on the levels 0 ... 255 and at most
    `LARGEST_PSNR`: a mean of the pictures' own PSNRs would be ruled by the few that hardly change. `ssim` (Wang et al.
    2004) is the mean over pictures, by a uniform window of `WINDOW` pixels (in smaller pictures of the largest odd
    number that fits) with reflected borders; the channels count alike.
    """
    side = min(WINDOW, *true.shape[1:3])
    side -= 1 - side % 2
    batch = max(1, COMPARED_AT_ONCE // true[0].size)
    errors, similarities = [], []
    for first in range(0, len(true), batch):
        # In float64: a variance is a difference of squares here, and in float32 a grey patch is not quite like itself.
        ours, theirs = (each[first : first + batch].astype(np.float64) for each in (pictures, true))
        errors.append(np.square(ours - theirs).mean(axis=(1, 2, 3)))
        similarities.append(_similarity(ours, theirs, side).mean(axis=(1, 2, 3)))
    error = max(float(np.concatenate(errors).mean()) / 255**2, 10 ** (-LARGEST_PSNR / 10))
    return {"psnr": float(-10 * np.log10(error)), "ssim": float(np.concatenate(similarities).mean())}


def _similarity(a: np.ndarray, b: np.ndarray, side: int) -> np.ndarray:
    """Return SSIM at every pixel of float64 (n, h, w, c), from means, variances and covariance in its window."""
    in_window = partial(uniform_filter, size=(1, side, side, 1), mode="mirror")
    mean_a, mean_b = in_window(a), in_window(b)
    variances = in_window(a * a) - mean_a**2 + in_window(b * b) - mean_b**2
    covariance = in_window(a * b) - mean_a * mean_b
    luminance, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # what keeps the quotients apart from 0 / 0
    alike = (2 * mean_a * mean_b + luminance) / (mean_a**2 + mean_b**2 + luminance)
    return alike * (2 * covariance + contrast) / (variances + contrast)


def measure_near_codes(
    tokens: np.ndarray,
    originals: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
    codebook: Codebook,
    arranged: Rearrangement,
    look: Callable[[np.ndarray], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    seed: int,
    *,
    measured: Callable[[int, Mapping[str, float]], None] | None = None,
    kept: Kept | None = None,
) -> NearCodes:
    """Measure what replacing every token by a near code does to the decoded pictures, at the ranks of `ranks(N)`.

    The pictures of the true tokens are what all others are held against, not the original images: the tokenizer's own
    error is none of the replacement's. Beside `compare_pictures`, `feature_distance` is the mean distance between the
    features of a picture and of its true picture, where the mean distance between two different true pictures is 1
    (NaN if these are all alike), and `class_agreement` the share of pictures with the predicted label of their true
    picture: means over those who look. The result depends on the arguments alone; `random_code`, with one seed, not on
    `arranged`.

    Parameters
    ----------
    tokens : int (n, T), n >= 2, in the codebook's original order.
    originals : uint8 (n, h, w, c), the images that the tokens are of.
    decode : tokens (n, T) -> uint8 pictures (n, h, w, c); called for all pictures at once, which are then let go.
    codebook : of N >= 2 codes, whose look-up says what is near.
    arranged : the clusters of the codes.
    look : uint8 pictures (n, h, w, c) -> of each who sees features, float (n, d); of each who tells labels, int (n,).
    seed : of the random codes.
    measured : called with each rank and its metrics, as soon as they are known.
    kept : what is known so far of each way to replace tokens.

    Raises
    ------
    InputError : there are too few pictures or codes, or tokens, codebook and clusters do not belong together.
    """
    size = len(codebook.vectors)
    codebook.use(tokens)  # raises for tokens that are none of its codes
    if tokens.ndim != 2 or len(tokens) < 2 or size < 2:
        raise InputError(f"tokens {tokens.shape} of {size} codes: two pictures, (n, T), and two codes are the least")
    if len(arranged.permutation) != size:
        raise InputError(f"the clusters are of {len(arranged.permutation)} codes, the codebook has {size}")

    at_ranks, rng = ranks(size), np.random.default_rng(seed)
    near = nearest_codes(codebook, at_ranks)
    replaced = {f"rank {rank}": near[tokens, column] for column, rank in enumerate(at_ranks)}
    random_code = random_other_codes(tokens, Rearrangement.identity(size), rng)  # drawn first: whatever the clusters
    replaced |= {"same cluster": random_other_codes(tokens, arranged, rng), "random code": random_code}

    true = decode(tokens)
    features, labels = look(true)
    apart = [_mean_distance(each) for each in features]

    def measure(pictures: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        """Return metrics and the first pictures; as a function, so that the pictures are let go before the next."""
        found, predicted = look(pictures)
        moved = [float(np.linalg.norm(a - b, axis=1).mean()) for a, b in zip(found, features, strict=True)]
        same = [float((a == b).mean()) for a, b in zip(predicted, labels, strict=True)]
        metrics = compare_pictures(pictures, true) | {
            "feature_distance": float(np.mean([a / b if b else np.nan for a, b in zip(moved, apart, strict=True)])),
            "class_agreement": float(np.mean(same)),
        }
        return metrics, pictures[:SHOWN_PICTURES].copy()  # a view would hold them all

    so_far = kept.arrays() if kept else {}
    metrics: dict[str, dict[str, float]] = {}
    shown = {"true tokens": true[:SHOWN_PICTURES]}
    for way, others in replaced.items():
        if f"{way}: metrics" not in so_far:
            found, pictures = measure(decode(others))
            so_far |= {f"{way}: metrics": np.array([found[name] for name in LIKENESS]), f"{way}: pictures": pictures}
            if kept:
                kept.offer(partial(dict, so_far))
        metrics[way] = dict(zip(LIKENESS, so_far[f"{way}: metrics"].tolist(), strict=True))
        shown[way] = so_far[f"{way}: pictures"]
        if measured and len(metrics) <= len(at_ranks):
            measured(at_ranks[len(metrics) - 1], metrics[way])

    columns = ("true tokens", *(f"rank {rank}" for rank in _shown(at_ranks, size)), "same cluster", "random code")
    return NearCodes(
        curve={rank: metrics[f"rank {rank}"] for rank in at_ranks},
        same_cluster=metrics["same cluster"],
        random_code=metrics["random code"],
        tokenizer=measure(originals)[0],
        pictures=np.stack([shown[column] for column in columns], axis=1),
        columns=columns,
    )


def _shown(measured: Sequence[int], size: int) -> list[int]:
    """Return the ranks whose pictures are kept: some, evenly from the first to the last, and the paper's."""
    evenly = np.linspace(0, len(measured) - 1, min(SHOWN_RANKS, len(measured))).round().astype(int)
    return sorted({measured[i] for i in evenly} | {paper_rank(size)})


def _mean_distance(features: np.ndarray) -> float:
    """Return the mean distance between the features of two different pictures, over all pairs."""
    n = len(features)
    parts = np.array_split(features, -(-n * n // BLOCK))
    return float(sum(cdist(part, features).sum() for part in parts) / (n * (n - 1)))
