"""What others have published: figures whose source was checked, the abstract's claims, and reproduction attempts.

Nothing here enters a comparison: all of it is ImageNet 256x256 and FID, so a report shows it apart from what we
measured. A figure that is None was not published, or its source was not checked.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "Improving Autoregressive Visual Generation with Cluster-Oriented Token Prediction (CVPR 2025)"
PAPER_URL = "https://arxiv.org/abs/2501.00880"
LLAMAGEN_URL = "https://github.com/FoundationVision/LlamaGen"


@dataclass(frozen=True)
class Published:
    """One model on ImageNet 256x256, trained for 300 epochs; FID: lower is better."""

    model: str
    fid: float
    inception_score: float | None
    precision: float | None
    recall: float | None
    source: str


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


_README = "LlamaGen README"
_README_AND_TABLE = "FID: LlamaGen README; the rest as quoted by a later paper's table (MTAR)"
_TABLE = "as quoted by a later paper's table (MTAR)"

FIGURES: tuple[Published, ...] = (
    Published("LlamaGen-B 16x16", 5.46, 193.61, 0.84, 0.46, _README_AND_TABLE),
    Published("LlamaGen-L 16x16", 3.80, 248.28, 0.83, 0.52, _README_AND_TABLE),
    Published("LlamaGen-B 24x24", 6.09, None, None, None, _README),
    Published("LlamaGen-L 24x24", 3.07, None, None, None, _README),
    Published("LlamaGen-XL 24x24", 2.62, None, None, None, _README),
    Published("LlamaGen-XXL 24x24", 2.34, None, None, None, _README),
    Published("LlamaGen-3B 24x24", 2.18, None, None, None, _README),
    Published("IAR-B", 5.14, 202.0, 0.85, 0.45, _TABLE),
    Published("IAR-L", 3.18, 234.8, 0.82, 0.53, _TABLE),
)

CLAIMS: tuple[str, ...] = (
    "even if the model predicts the wrong token index, there is a high probability the predicted token is located in "
    "the correct cluster",
    "our method consistently enhances the model training efficiency and performance from 100M to 1.4B, reducing the "
    "training time by half while achieving the same FID",
    "our approach can be applied to various LLM-based visual generation models and adheres to the scaling law",
)
"""In the abstract's own words; it gives no number that could be checked."""

REPRODUCTIONS: tuple[Reproduction, ...] = (
    Reproduction("B 16x16, released weights, guidance 2.0", "5.46", "6.13, at the same IS of 193.6", 48),
    Reproduction("L 16x16, released weights, guidance 2.0", "3.80", "6.23, at IS 288", 48),
    Reproduction("XL 24x24, released weights", "2.62", "3.68", 53),
    Reproduction("L 24x24, released weights", "3.07", "6.84", 86),
    Reproduction("L / 1B 16x16, trained for 50 epochs", "4.22 / 3.09", "4.62 / 4.13", 46),
    Reproduction("B 16x16, trained from scratch", "8.69, at 50 epochs", "20.95", 89),
    Reproduction("VQ-16 reconstruction", "2.19", "4.28, another reference batch; PSNR and SSIM equal", 34),
)

NOTE = (
    "The gain claimed for B is 5.46 - 5.14 = 0.32 and for L 3.80 - 3.18 = 0.62: smaller than what separates two honest "
    "evaluations of the same weights (0.67 for B, 2.43 for L). Arms can be compared only within one evaluator, one "
    "reference and one set of seeds, never with a quoted figure."
)
