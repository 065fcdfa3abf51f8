"""Do softer targets do what the cluster loss does, and when should the cluster loss weigh most?"""

from iar_study.study import Arm, Study

GREEDY = {"clustering.strategy": "greedy"}  # the paper's algorithm
IAR = {**GREEDY, "loss.cluster_weight": 1.0}
ON_NEAR = {"loss.smoothing": 0.1, "loss.smoothing_over": "similar"}
ON_CLUSTER = {"loss.smoothing": 0.1, "loss.smoothing_over": "cluster"}
GROWING = {**GREEDY, "loss.schedule": "linear", "loss.cluster_weight": 2.0}
FADING = {**GREEDY, "loss.schedule": "cosine", "loss.first_weight": 2.0}
COARSE = {**IAR, "clustering.between": "path", "loss.coarse_weight": 1.0}

study = Study(
    name="loss-variants",
    question="Do softer targets do what the cluster loss does, and does it matter when the cluster loss weighs most?",
    claim="The released code weighs the cluster loss alike throughout; the label smoothing it defines is never used.",
    baseline="baseline",
    arms=(
        Arm("baseline", "token loss alone"),
        Arm("smooth", "token loss, a tenth of each target on all codes", {"loss.smoothing": 0.1}),
        Arm("smooth-near", "token loss, a tenth of each target on the 12 most similar codes", ON_NEAR),
        Arm("smooth-cluster", "token loss, a tenth of each target on its cluster", GREEDY | ON_CLUSTER),
        Arm("iar", "IAR, lambda = 1 throughout", IAR),
        Arm("iar-smooth-cluster", "IAR, a tenth of each target on its cluster", {**IAR, **ON_CLUSTER}),
        Arm("iar-growing", "IAR, lambda from 0 to 2 in a line, on average 1", GROWING),
        Arm("iar-fading", "IAR, lambda from 2 to 0 in half a wave, on average 1", FADING),
        Arm("iar-late", "IAR, lambda 0 up to half-way, then 2, on average 1", {**GROWING, "loss.schedule": "step"}),
        Arm("iar-coarse", "IAR, and one more cluster loss over 4 clusters of clusters", COARSE),
    ),
)
