"""Does IAR reach the baseline's quality in half the training?"""

from iar_study.study import Arm, Study


def trained(name: str, description: str, share: float, weight: float) -> Arm:
    strategy = "balanced" if weight else "none"
    # Warm-up and decay shrink with the training: each arm is a finished training of its length.
    scale = {} if share == 1 else {"train.steps": share, "train.warmup_steps": share}
    settings = {"clustering.strategy": strategy, "loss.cluster_weight": weight}
    return Arm(name, description, settings, scale, series=name.partition("-")[0])


study = Study(
    name="training-time",
    question="Does IAR reach the baseline's quality in half the training?",
    claim="IAR reduces the training time by half while achieving the same FID.",
    baseline="baseline",
    factor="train.steps",
    arms=(
        trained("baseline", "token loss alone, all of the training", 1, 0.0),
        trained("baseline-half", "token loss alone, half of the training", 0.5, 0.0),
        trained("baseline-quarter", "token loss alone, a quarter of the training", 0.25, 0.0),
        trained("iar", "IAR, all of the training", 1, 1.0),
        trained("iar-half", "IAR, half of the training", 0.5, 1.0),
        trained("iar-quarter", "IAR, a quarter of the training", 0.25, 1.0),
    ),
)
