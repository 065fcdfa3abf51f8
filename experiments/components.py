"""Which ingredient of IAR helps: the order of the codes, any coarse target, or clusters of similar codes?"""

from iar_study.study import Arm, Study


def with_cluster_loss(name: str, description: str, strategy: str) -> Arm:
    return Arm(name, description, {"clustering.strategy": strategy, "loss.cluster_weight": 1.0})


study = Study(
    name="components",
    question="Which ingredient of IAR helps: the order of the codes, any coarse target, or clusters of similar codes?",
    claim="Rearranging the codebook and training with the cluster-oriented cross-entropy gives better images.",
    baseline="baseline",
    arms=(
        Arm("baseline", "original order, token loss alone"),
        Arm("rearranged", "order of balanced k-means, token loss alone", {"clustering.strategy": "balanced"}),
        with_cluster_loss("blocks", "cluster loss over contiguous blocks of the original order", "blocks"),
        with_cluster_loss("random", "cluster loss over random equal clusters", "random"),
        with_cluster_loss(
            "iar", "cluster loss over balanced k-means clusters, by the paper's greedy algorithm", "greedy"
        ),
        with_cluster_loss(
            "iar-exact", "the same with an exact assignment to the clusters: our improvement", "balanced"
        ),
    ),
)
