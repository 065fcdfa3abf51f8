"""How heavy should the cluster loss weigh?"""

from iar_study.study import Arm, Study

BALANCED = {"clustering.strategy": "balanced"}

study = Study(
    name="loss-weight",
    question="Which weight lambda of the cluster loss is best, and what does it do without the token loss?",
    claim="Adding the cluster-oriented cross-entropy helps; the released code takes lambda = 1.",
    baseline="lambda=0",
    arms=(
        Arm("lambda=0", "balanced clusters, token loss alone", BALANCED),
        *(
            Arm(
                f"lambda={w:g}",
                f"balanced clusters, cluster loss times {w:g}",
                BALANCED | {"loss.cluster_weight": w},
            )
            for w in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
        ),
        Arm(
            "cluster-only",
            "cluster loss alone: by theory the codes of a cluster stay equally likely",
            BALANCED | {"loss.cluster_weight": 1.0, "loss.token_weight": 0.0},
        ),
    ),
)
