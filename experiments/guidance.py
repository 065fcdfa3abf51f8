"""Does IAR win at every guidance scale, or at the baseline's favourite one alone?"""

from iar_study.study import Arm, Study

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)


def sampled(name: str, description: str, weight: float, scale: float) -> Arm:
    strategy = "greedy" if weight else "none"  # the paper's algorithm
    settings = {"clustering.strategy": strategy, "loss.cluster_weight": weight, "evaluation.guidance": scale}
    beside = f"baseline, s={scale:g}"
    return Arm(f"{name}, s={scale:g}", f"{description}, guidance {scale:g}", settings, beside=beside, series=name)


study = Study(
    name="guidance",
    question="Is IAR better at every scale of classifier-free guidance, or only where one of the two was tuned?",
    claim="IAR gives better images; guidance is tuned for neither, so each scale is compared with the same scale.",
    kind="sampling",
    baseline="baseline, s=2",
    factor="evaluation.guidance",
    arms=tuple(
        sampled(*method, scale=scale)
        for method in (("baseline", "token loss alone", 0.0), ("iar", "IAR", 1.0))
        for scale in SCALES
    ),
)
