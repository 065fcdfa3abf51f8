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
            Arm(name, description, {"clustering.strategy": strategy, "loss.cluster_weight": 1.0})
            for name, description, strategy in (
                ("iar", "balanced k-means by the paper's algorithm: equal sizes, a greedy assignment", "greedy"),
                ("iar-exact", "the same with an exact assignment: our improvement", "balanced"),
                ("plain", "plain k-means: unequal sizes", "plain"),
                ("agglomerative", "merged by the distances of their codes: unequal sizes", "agglomerative"),
                ("agglomerative-equal", "the same, brought to equal sizes", "agglomerative-equal"),
                ("random", "random clusters of equal size", "random"),
            )
        ),
    ),
)
