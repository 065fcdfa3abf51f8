"""How many clusters are best?"""

from iar_study.study import Arm, Study

IAR = {"clustering.strategy": "balanced", "loss.cluster_weight": 1.0}
COUNTS = {
    1: "one cluster, whose loss is 0: by theory the baseline again",
    **{n: f"IAR with {n} clusters" for n in (2, 8, 32, 64)},
}

study = Study(
    name="cluster-count",
    question="How many clusters are best, between one (no cluster loss) and one per code (the token loss twice)?",
    claim="A number of clusters in between works best; the released code takes clusters of 128 codes.",
    baseline="baseline",
    arms=(
        Arm("baseline", "original order, token loss alone"),
        *(Arm(f"n={n}", description, IAR | {"clustering.n_clusters": n}) for n, description in COUNTS.items()),
        Arm("n=N/4", "IAR with clusters of 4 codes", IAR, {"clustering.n_clusters": (0.25, "tokenizer.codebook_size")}),
        Arm(
            "n=N",
            "a cluster for every code: by theory the token loss twice",
            IAR | {"clustering.strategy": "blocks"},  # clusters of one code are the same by any strategy
            {"clustering.n_clusters": (1, "tokenizer.codebook_size")},
        ),
    ),
)
