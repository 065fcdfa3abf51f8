"""Does the paper's IAR give better images here? Arms, seeds, looks and margin stand before any of its data."""

from iar_study.study import Arm, Plan, Study


def with_cluster_loss(name: str, description: str, strategy: str, weight: float = 1.0) -> Arm:
    return Arm(name, description, {"clustering.strategy": strategy, "loss.cluster_weight": weight})


study = Study(
    name="confirm",
    question="Does the paper's IAR give better images than the same training without it?",
    claim="The cluster-oriented loss significantly enhances the generation quality.",
    baseline="baseline",
    arms=(
        Arm("baseline", "original order, token loss alone"),
        with_cluster_loss("iar", "the paper's IAR: clusters by its greedy algorithm", "greedy"),
        with_cluster_loss("iar-exact", "our improvement: an exact assignment to the clusters", "balanced"),
        with_cluster_loss("random", "control: random clusters of equal size", "random"),
        with_cluster_loss("lambda=8", "positive control: IAR with eight times the weight", "greedy", 8.0),
        Arm("noise", "negative control: the baseline in another order of images", {"train.noise": 1}),
    ),
    plan=Plan("full", arm="iar", metric="fd", looks=(15, 30, 45, 60), margin=0.03, first_seed=1000, draws=6),
)
