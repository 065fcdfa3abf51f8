"""Does IAR reach the baseline's quality in half the training?"""

from iar_study.study import Arm, Study


def trained(name: str, description: str, share: float, weight: float) -> Arm:
    strategy = "greedy" if weight else "none"  # the paper's algorithm
    # Warm-up and decay shrink with the training: each arm is a finished training of its length.
    scale = {} if share == 1 else {"train.steps": share, "train.warmup_steps": share}
    settings = {"clustering.strategy": strategy, "loss.cluster_weight": weight}
    return Arm(name, description, settings, scale, series=name.partition("-")[0])


def undecayed(name: str, description: str, strategy: str, weight: float) -> Arm:
    # As the paper's figure has it: one training whose rate never falls, looked at again and again on the way.
    settings = {"clustering.strategy": strategy, "loss.cluster_weight": weight}
    settings |= {"train.decay": "constant", "evaluation.sampled_times": 12}
    return Arm(name, description, settings, beside="baseline-undecayed", series=name)


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
        undecayed("baseline-undecayed", "token loss alone, at a constant learning rate", "none", 0.0),
        undecayed("iar-undecayed", "IAR, at a constant learning rate", "greedy", 1.0),
    ),
)
