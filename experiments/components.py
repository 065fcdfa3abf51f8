"""Which ingredient of IAR helps: the order of the codes, any coarse target, or clusters of similar codes?"""

from iar_study.study import Arm, Study

CLUSTER_LOSS = {"loss.cluster_weight": 1.0}

study = Study(
    name="components",
    question="Which ingredient of IAR helps: a new order of the codes, any coarse target, or clusters of similar codes?",
    claim="Codebook rearrangement with the cluster-oriented cross-entropy generates better images than LlamaGen.",
    baseline="baseline",
    arms=(
        Arm("baseline", "original order, token loss alone"),
        Arm("rearranged", "codes rearranged by balanced k-means, token loss alone", {"clustering.strategy": "balanced"}),
        Arm("blocks", "cluster loss over contiguous blocks of the original order", {"clustering.strategy": "blocks", **CLUSTER_LOSS}),
        Arm("random", "cluster loss over random equal clusters", {"clustering.strategy": "random", **CLUSTER_LOSS}),
        Arm("iar", "cluster loss over balanced k-means clusters: the whole method", {"clustering.strategy": "balanced", **CLUSTER_LOSS}),
    ),
)  # fmt: skip
