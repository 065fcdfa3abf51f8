"""How heavy should the cluster loss weigh?"""

from iar_study.study import Arm, Study

study = Study(
    name="loss-weight",
    question="Which weight lambda of the cluster loss is best?",
    claim="Adding the cluster-oriented cross-entropy helps; the released code takes lambda = 1.",
    baseline="lambda=0",
    arms=tuple(
        Arm(
            f"lambda={weight:g}",
            f"balanced clusters, cluster loss weighted {weight:g}" if weight else "balanced clusters, token loss alone",
            {"clustering.strategy": "balanced", "loss.cluster_weight": weight},
        )
        for weight in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    ),
)
