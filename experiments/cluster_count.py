"""How many clusters are best?"""

from iar_study.study import Arm, Study

COUNT, CODES = "clustering.n_clusters", "tokenizer.codebook_size"


def counted(name: str, description: str, count: dict | None = None, share: float = 0) -> Arm:
    # A cluster for every code is the same by any strategy.
    settings = {"clustering.strategy": "blocks" if share == 1 else "balanced", "loss.cluster_weight": 1.0}
    scale = {COUNT: (share, CODES)} if share else {}
    return Arm(name, description, settings | (count or {}), scale, series="iar")


study = Study(
    name="cluster-count",
    question="How many clusters are best, between one (no cluster loss) and one per code (the token loss twice)?",
    claim="A number of clusters in between works best; the released code takes clusters of 128 codes.",
    baseline="baseline",
    factor=COUNT,
    arms=(
        Arm("baseline", "original order, token loss alone"),
        counted("n=1", "one cluster, whose loss is 0: by theory the baseline again", {COUNT: 1}),
        *(counted(f"n={n}", f"IAR with {n} clusters", {COUNT: n}) for n in (2, 8, 32, 64)),
        counted("n=N/4", "IAR with clusters of 4 codes", share=0.25),
        counted("n=N", "a cluster for every code: by theory the token loss twice", share=1),
    ),
)
