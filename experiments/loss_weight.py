"""How heavy should the cluster loss weigh?"""

from iar_study.study import Arm, Study

BALANCED = {"clustering.strategy": "balanced"}
ALONE = BALANCED | {"loss.cluster_weight": 1.0, "loss.token_weight": 0.0}


def weighed(weight: float) -> Arm:
    description = (
        f"balanced clusters, cluster loss times {weight:g}" if weight else "balanced clusters, token loss alone"
    )
    return Arm(f"lambda={weight:g}", description, BALANCED | {"loss.cluster_weight": weight}, series="iar")


study = Study(
    name="loss-weight",
    question="Which weight lambda of the cluster loss is best, and what does it do without the token loss?",
    claim="Adding the cluster-oriented cross-entropy helps; the released code takes lambda = 1.",
    baseline="lambda=0",
    factor="loss.cluster_weight",
    arms=(
        *(weighed(weight) for weight in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
        Arm("cluster-only", "cluster loss alone: by theory the codes of a cluster stay equally likely", ALONE),
    ),
)
