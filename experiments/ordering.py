"""A check of float drift: by theory neither the order of a cluster's codes nor that of the clusters matters."""

from iar_study.study import Arm, Study


def ordered(name: str, description: str, within: str, between: str) -> Arm:
    order = {"clustering.within": within, "clustering.between": between}
    return Arm(name, description, {"clustering.strategy": "balanced", "loss.cluster_weight": 1.0} | order)


ORDERS = {
    "chain": "a chain of nearest neighbours, as in the released code",
    "spectral": "the smoothest order, by the Fiedler vector",
    "path": "a short path, by 2-opt",
}

study = Study(
    name="ordering",
    question="How far do trainings drift apart by rounding alone? By theory no order of codes or clusters matters.",
    claim="The released code chains the codes of a cluster; the loss sees which cluster a code is in, and no order.",
    baseline="none",
    arms=(
        ordered("none", "IAR, codes and clusters as they come", "none", "none"),
        *(ordered(f"within-{order}", f"codes of a cluster: {text}", order, "none") for order, text in ORDERS.items()),
        *(ordered(f"between-{order}", f"clusters: {text}", "none", order) for order, text in ORDERS.items()),
    ),
)
