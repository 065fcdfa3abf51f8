"""How many clusters are best?"""

from iar_study.study import Arm, Study

study = Study(
    name="cluster-count",
    question="How many clusters are best, between one (no cluster loss) and one per code (the token loss twice)?",
    claim="A number of clusters in between works best; the released code takes clusters of 128 codes.",
    baseline="baseline",
    arms=(
        Arm("baseline", "original order, token loss alone"),
        *(
            Arm(
                f"n={n}",
                f"IAR with {n} clusters",
                {"clustering.strategy": "balanced", "clustering.n_clusters": n, "loss.cluster_weight": 1.0},
            )
            for n in (2, 8, 32, 64)
        ),
    ),
)
