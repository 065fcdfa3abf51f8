"""Do near codes look alike, and do those of one cluster?"""

from iar_study.study import Arm, Study

study = Study(
    name="code-distance",
    question="How far may a code be off before the picture changes, and do the codes of one cluster look alike?",
    claim="Replaced by a near code, each token decodes to almost the same picture; so do codes of one cluster.",
    kind="near-codes",
    baseline="random",
    arms=tuple(
        Arm(name, f"another code of the same cluster: {description}", {"clustering.strategy": name})
        for name, description in (
            ("random", "random clusters of equal size"),
            ("blocks", "contiguous blocks of the original order"),
            ("balanced", "balanced k-means, the best assignment"),
            ("greedy", "balanced k-means as in the released code"),
            ("plain", "plain k-means, unequal sizes"),
            ("agglomerative", "merged by the distances of their codes, unequal sizes"),
            ("agglomerative-equal", "the same, brought to equal sizes"),
        )
    ),
    # Another tokenizer for every seed: one codebook would say nothing about others.
    seeded=("seed", "tokenizer.seed", "clustering.seed"),
)
