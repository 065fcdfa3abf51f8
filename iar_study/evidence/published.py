"""What the paper and others have published: figures whose source was checked, and what in them does not agree.

Nothing here enters a comparison: all of it is ImageNet 256x256 and FID, so it stands on a page of its own, apart from
what we measured. A figure that is None, or not here, was not published or its source was not checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

PAPER = "Improving Autoregressive Visual Generation with Cluster-Oriented Token Prediction (CVPR 2025)"
PAPER_URL = "https://arxiv.org/abs/2501.00880"
CODE_URL = "https://github.com/sjtuplayer/IAR"
LLAMAGEN_URL = "https://github.com/FoundationVision/LlamaGen"


@dataclass(frozen=True)
class Trained:
    """One model of Table 2, as the paper evaluates it; FID: lower is better."""

    method: str
    size: str
    tokens: str
    epochs: int
    fid: float
    inception_score: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Gain:
    """IAR beside LlamaGen, of one size, at the same number of tokens and epochs."""

    llamagen: Trained
    iar: Trained

    @property
    def fid(self) -> float:
        """By how much IAR's FID is lower."""
        return self.llamagen.fid - self.iar.fid

    @property
    def percent(self) -> float:
        """The same, in percent of LlamaGen's FID."""
        return 100 * self.fid / self.llamagen.fid


@dataclass(frozen=True)
class Own:
    """One model of 300 epochs, as LlamaGen's authors evaluate it."""

    size: str
    tokens: str
    guidance: float
    fid: float
    inception_score: float
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Deviation:
    """What the released code does, beside what the paper says; "": it says nothing that could be read."""

    point: str
    paper: str
    code: str


@dataclass(frozen=True)
class Reproduction:
    """What someone else got with the baseline's code or weights, told in an issue of LlamaGen's repository."""

    what: str
    published: str
    reported: str
    issue: int

    @property
    def url(self) -> str:
        return f"{LLAMAGEN_URL}/issues/{self.issue}"


TABLE_2: tuple[Trained, ...] = (
    Trained("LlamaGen", "B", "16x16", 50, 7.22, 178.3, 0.86, 0.38),
    Trained("LlamaGen", "B", "16x16", 300, 5.46, 193.6, 0.84, 0.46),
    Trained("LlamaGen", "L", "16x16", 50, 4.20, 200.0, 0.82, 0.51),
    Trained("LlamaGen", "L", "16x16", 300, 3.80, 248.3, 0.83, 0.52),
    Trained("LlamaGen", "XL", "16x16", 50, 3.39, 227.1, 0.81, 0.54),
    Trained("LlamaGen", "XXL", "16x16", 50, 3.09, 253.6, 0.83, 0.53),
    Trained("IAR", "B", "16x16", 50, 6.90, 179.2, 0.86, 0.40),
    Trained("IAR", "B", "16x16", 300, 5.14, 202.0, 0.85, 0.45),
    Trained("IAR", "L", "16x16", 50, 4.10, 207.1, 0.82, 0.51),
    Trained("IAR", "L", "16x16", 300, 3.40, 271.3, 0.84, 0.51),
    Trained("IAR", "XL", "16x16", 50, 3.36, 228.9, 0.82, 0.54),
    Trained("IAR", "XXL", "16x16", 50, 3.01, 257.4, 0.83, 0.53),
    Trained("LlamaGen", "B", "24x24", 50, 8.31, 154.7, 0.84, 0.38),
    Trained("LlamaGen", "B", "24x24", 300, 6.09, 182.5, 0.84, 0.42),
    Trained("LlamaGen", "L", "24x24", 50, 4.61, 191.4, 0.82, 0.50),
    Trained("LlamaGen", "L", "24x24", 300, 3.29, 227.8, 0.82, 0.53),
    Trained("LlamaGen", "XL", "24x24", 50, 3.24, 245.7, 0.83, 0.53),
    Trained("LlamaGen", "XL", "24x24", 300, 2.63, 244.1, 0.81, 0.58),
    Trained("LlamaGen", "XXL", "24x24", 50, 2.89, 236.2, 0.80, 0.56),
    Trained("LlamaGen", "XXL", "24x24", 300, 2.34, 253.9, 0.81, 0.60),
    Trained("IAR", "B", "24x24", 50, 7.80, 153.3, 0.84, 0.39),
    Trained("IAR", "B", "24x24", 300, 5.77, 192.5, 0.85, 0.42),
    Trained("IAR", "L", "24x24", 50, 4.35, 197.2, 0.81, 0.51),
    Trained("IAR", "L", "24x24", 300, 3.18, 234.8, 0.82, 0.53),
    Trained("IAR", "XL", "24x24", 50, 3.15, 228.8, 0.81, 0.54),
    Trained("IAR", "XL", "24x24", 300, 2.52, 248.1, 0.82, 0.58),
    Trained("IAR", "XXL", "24x24", 50, 2.87, 249.9, 0.82, 0.56),
    Trained("IAR", "XXL", "24x24", 300, 2.19, 265.6, 0.81, 0.58),
)
"""All models of the paper's Table 2; XL and XXL were not trained for 300 epochs at 16x16 tokens."""

FIGURE_3A: dict[str, tuple[tuple[float, float, float], ...]] = {
    "B": ((1.0, 29.7, 44), (1.5, 10.7, 104), (1.75, 7.43, 135), (2.0, 6.09, 165), (2.25, 5.74, 193), (2.5, 6.2, 213)),
    "L": ((1.0, 20.6, 63), (1.5, 4.42, 179), (1.75, 3.18, 235), (2.0, 3.53, 279), (2.25, 4.42, 311), (2.5, 5.64, 340)),
}
"""Size -> guidance scale, FID and IS of IAR at 24x24 tokens after 300 epochs."""

FIGURE_3C: dict[int, tuple[float, float]] = {50: (8.66, 7.80), 100: (7.25, 6.77), 200: (6.54, 5.86), 300: (6.09, 5.75)}
"""Epoch -> FID of LlamaGen-B and of IAR-B at 24x24 tokens."""

LLAMAGEN: tuple[Own, ...] = (
    Own("B", "16x16", 2.0, 5.46, 193.61, 0.83, 0.45),
    Own("L", "24x24", 2.0, 3.07, 256.06, 0.83, 0.52),
    Own("XL", "24x24", 1.75, 2.62, 244.08, 0.80, 0.57),
    Own("XXL", "24x24", 1.75, 2.34, 253.90, 0.80, 0.59),
    Own("3B", "24x24", 1.65, 2.18, 263.33, None, None),
)
"""LlamaGen's README and the Table 6 of its paper."""


def gains(table: Iterable[Trained] = TABLE_2) -> list[Gain]:
    """Return every pair of LlamaGen and IAR that is of one size, one number of tokens and one number of epochs."""
    table = list(table)
    iar = {(each.size, each.tokens, each.epochs): each for each in table if each.method == "IAR"}
    others = [each for each in table if each.method == "LlamaGen"]
    pairs = [(each, iar.get((each.size, each.tokens, each.epochs))) for each in others]
    return [Gain(llamagen, other) for llamagen, other in pairs if other]


def gain_of(size: str, tokens: str, epochs: int) -> Gain:
    """Return the pair of this size, number of tokens and number of epochs."""
    return next(g for g in gains() if (g.iar.size, g.iar.tokens, g.iar.epochs) == (size, tokens, epochs))


def share_to_reach() -> float:
    """Return the share of its training after which IAR, by Figure 3c, has LlamaGen's last FID: on straight lines."""
    last = max(FIGURE_3C)
    wanted = FIGURE_3C[last][0]
    for first, then in pairwise(sorted(FIGURE_3C)):
        before, after = FIGURE_3C[first][1], FIGURE_3C[then][1]
        if before > wanted >= after:
            return (first + (then - first) * (before - wanted) / (before - after)) / last
    raise ValueError("Figure 3c never reaches LlamaGen's last FID")


_GAINS = gains()
_FIDS = [gain.fid for gain in _GAINS]
_PERCENT = [gain.percent for gain in _GAINS]
MEAN_PERCENT = mean(_PERCENT)
RANGE = f"{min(_FIDS):.2f} to {max(_FIDS):.2f}"
RANGE_PERCENT = f"{min(_PERCENT):.1f} to {max(_PERCENT):.1f}%"

CONCLUSION = (
    f"In all {len(_GAINS)} pairs of one size, with equal tokens and equal epochs, the paper's FID of IAR is lower than "
    f"that of LlamaGen: by {RANGE}, which is {RANGE_PERCENT} of LlamaGen's, {MEAN_PERCENT:.1f}% on average."
)

NOTE = (
    "These gains are smaller than what separates two evaluations of the same weights: 5.46 and 6.13 for B, 3.80 and "
    "6.23 (at an IS of 288) for L, both at 16x16 tokens. Arms can be compared only within one evaluator, one reference "
    "and one set of seeds, never with a quoted figure."
)

CLAIMS: tuple[str, ...] = (
    "even if the model predicts the wrong token index, there is a high probability the predicted token is located in "
    "the correct cluster",
    "our method consistently enhances the model training efficiency and performance from 100M to 1.4B, reducing the "
    "training time by half while achieving the same FID",
    "our approach can be applied to various LLM-based visual generation models and adheres to the scaling law",
)
"""In the abstract's own words."""

DISAGREEMENTS: tuple[str, ...] = (
    "Table 1 mixes resolutions: B is of 16x16 tokens, L to XXL are of 24x24. A gain must be taken at equal tokens. For "
    "L after 300 epochs it is 0.40 at 16x16 and 0.11 at 24x24.",
    "LlamaGen's authors have 3.07 for L at 24x24 tokens, at guidance 2.0. The paper has 3.29 for the same baseline, "
    "with another IS, at another guidance. IAR's best is 3.18, at guidance 1.75. Best against best, IAR-L is not "
    "better, as far as two evaluators can be compared; at guidance 2.0 it has 3.53.",
    "The abstract says that the training time is halved. Figure 3c says 42%, and that between single checkpoints: see "
    "below.",
    "Values of one model differ. LlamaGen-B at 24x24 after 50 epochs has 8.66 in Figure 3c and 8.31 in Table 2. IAR's "
    "point there has the IS of Table 2's row for 16x16 tokens. IAR-XXL has three values: 2.19 with IS 278.9 in Table "
    "1, 2.19 with IS 265.6 in Table 2, and 2.28 in Figure 3b.",
    "Not all measures gain. After 300 epochs recall is lower with IAR for B and L at 16x16 tokens and for XXL at "
    "24x24. After 50 epochs at 24x24 the IS is lower for B and XL.",
    "At 16x16 tokens XL and XXL were trained for 50 epochs alone. Table 2 tells nothing of them after that.",
)
"""What in the paper does not agree with itself or with LlamaGen's own figures, or what a reader may take for more."""

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "does it run?",
        "",
        "Not as released. train_c2i.py passes log_steps to a forward that has no such parameter: a TypeError. Without "
        'the word "flip" in the path of the codes, all ten crops are joined to one sequence.',
    ),
    Deviation(
        "text to image",
        '"various LLM-based visual generation models"',
        "It cannot be trained with this code: valid, the padding of captions, was taken out of forward. No table, "
        "figure or page that could be read names any generator but class-conditional LlamaGen.",
    ),
    Deviation(
        "clustered vectors",
        "code embeddings",
        "L2-normalised embeddings; the tokenizer VQ-16 looks codes up by cosine",
    ),
    Deviation(
        "assignment", "greedy, Algorithm 1", "the same; it stops when centroids do not change, or after 100 rounds"
    ),
    Deviation(
        "order inside a cluster",
        "any",
        "a chain of nearest neighbours, grown from the code nearest to the centroid, to the left and the right in turn",
    ),
    Deviation(
        "mapping",
        "a permutation",
        "found again by comparing embeddings (squared distance below 1e-6), so that duplicate codes break it",
    ),
    Deviation("sizes", "n is swept", "option cluster_size = m, by default 128: n = 128 at N = 16,384"),
    Deviation(
        "loss",
        "L_TCE + lambda L_CCE",
        "the same; --lambda-cce is 1 by default; the logit of a cluster is logsumexp(alpha y) / alpha with alpha = 1. "
        "A criterion with label smoothing (0.1) is defined and never used.",
    ),
    Deviation("epochs", "50, 300", "range(start, epochs + 1): 301; the file 050.pt is written after 51"),
    Deviation(
        "command in its README",
        "",
        "training at 384 pixels; samples of B at 384 pixels with guidance 2.25, resized to 256",
    ),
)
"""The released code (sjtuplayer/IAR, commit a46074a, beside LlamaGen ce98ec4) where it adds to the paper or differs."""

REPRODUCTIONS: tuple[Reproduction, ...] = (
    Reproduction("B 16x16, released weights, guidance 2.0", "5.46", "6.13, at the same IS of 193.6", 48),
    Reproduction("L 16x16, released weights, guidance 2.0", "3.80", "6.23, at IS 288", 48),
    Reproduction("XL 24x24, released weights", "2.62", "3.68", 53),
    Reproduction("L 24x24, released weights", "3.07", "6.84", 86),
    Reproduction("L / 1B 16x16, trained for 50 epochs", "4.22 / 3.09", "4.62 / 4.13", 46),
    Reproduction("B 16x16, trained from scratch", "8.69, at 50 epochs, guidance 1.75", "20.95", 89),
    Reproduction("VQ-16 reconstruction", "2.19", "4.28, another reference batch; PSNR and SSIM equal", 34),
)
