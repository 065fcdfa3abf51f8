"""The token and cluster cross-entropy (the paper's L_TCE and L_CCE), and variants of it. Only tensors come in."""

from iar_study.losses.cluster_cross_entropy import token_and_cluster_cross_entropy
from iar_study.losses.smoothing import smoothed_cross_entropy

__all__ = [
    "smoothed_cross_entropy",
    "token_and_cluster_cross_entropy",
]
