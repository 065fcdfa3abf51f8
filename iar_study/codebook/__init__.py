"""Codebooks without torch: clustering their codes and rearranging them so that clusters are contiguous."""

from iar_study.codebook.assignment import Assignment, constrained_assignment
from iar_study.codebook.balanced_kmeans import BalancedKMeans
from iar_study.codebook.clustering import STRATEGIES, cluster_codes
from iar_study.codebook.rearrangement import Rearrangement

__all__ = ["Assignment", "BalancedKMeans", "constrained_assignment", "STRATEGIES", "Rearrangement", "cluster_codes"]
