"""Must the clusters be of equal size, and must they be clusters at all?"""

from iar_study.study import Arm, Study

study = Study(
    name="balance",
    question="Do clusters of equal size work better than the unequal ones of plain k-means, or than random ones?",
    claim="Balanced k-means is the right clustering for the cluster-oriented cross-entropy.",
    baseline="baseline",
    arms=(
        Arm("baseline", "original order, token loss alone"),
        *(
            Arm(name, description, {"clustering.strategy": name, "loss.cluster_weight": 1.0})
            for name, description in (
                ("balanced", "balanced k-means: equal sizes, the best assignment"),
                ("greedy", "balanced k-means as in the released code: equal sizes, a greedy assignment"),
                ("plain", "plain k-means: unequal sizes"),
                ("agglomerative", "merged by the distances of their codes: unequal sizes"),
                ("agglomerative-equal", "the same, brought to equal sizes"),
                ("random", "random clusters of equal size"),
            )
        ),
    ),
)
