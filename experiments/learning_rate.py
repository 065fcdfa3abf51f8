"""Is the learning rate right for the baseline, and for IAR?"""

from iar_study.study import Arm, Study

RATES = {"-quarter": 0.25, "-half": 0.5, "": 1, "-double": 2, "-fourfold": 4}
"""Ends of names -> times the profile's learning rate."""


def paced(method: str, description: str, weight: float, end: str) -> Arm:
    strategy = "greedy" if weight else "none"  # the paper's algorithm
    settings = {"clustering.strategy": strategy, "loss.cluster_weight": weight}
    scale = {} if RATES[end] == 1 else {"train.lr": RATES[end]}
    description = f"{description}, learning rate times {RATES[end]:g}"
    return Arm(method + end, description, settings, scale, beside="baseline" + end, series=method)


study = Study(
    name="learning-rate",
    question="Is IAR better at every learning rate, or only where one of the two was tuned?",
    claim="IAR gives better images; the rate was tuned for the baseline, and IAR is tried with the same rates.",
    baseline="baseline",
    factor="train.lr",
    arms=tuple(
        paced(*method, end=end)
        for method in (("baseline", "token loss alone", 0.0), ("iar", "IAR", 1.0))
        for end in RATES
    ),
)
