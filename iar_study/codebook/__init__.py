"""Codebooks without a model: clustering their codes, rearranging them so that clusters are contiguous, judging both."""

from iar_study.codebook.assignment import Assignment, constrained_assignment
from iar_study.codebook.balanced_kmeans import BalancedKMeans
from iar_study.codebook.clustering import EQUAL_SIZES, STRATEGIES, cluster_codes
from iar_study.codebook.codebook import Codebook
from iar_study.codebook.ordering import ORDERINGS, order_vectors
from iar_study.codebook.rearrangement import Rearrangement

__all__ = [
    "EQUAL_SIZES",
    "ORDERINGS",
    "STRATEGIES",
    "Assignment",
    "BalancedKMeans",
    "Codebook",
    "Rearrangement",
    "cluster_codes",
    "constrained_assignment",
    "order_vectors",
]
