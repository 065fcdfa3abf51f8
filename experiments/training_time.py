"""Does IAR reach the baseline's quality in less training?"""

from iar_study.study import Arm, Study

# As the paper's figure has it: one training whose rate never falls, looked at again and again on the way.
UNDECAYED = {"train.decay": "constant", "train.kept": 12, "evaluation.sampled_times": 12}
METHODS = {"baseline": ("token loss alone", "none", 0.0), "iar": ("IAR", "greedy", 1.0)}
LENGTHS = {"": ("all", 1), "-half": ("half", 0.5), "-quarter": ("a quarter", 0.25)}


def trained(method: str, end: str) -> Arm:
    text, strategy, weight = METHODS[method]
    settings = {"clustering.strategy": strategy, "loss.cluster_weight": weight}
    if end == "-undecayed":
        description = f"{text}, at a constant learning rate"
        return Arm(method + end, description, settings | UNDECAYED, beside="baseline" + end, series=method + end)
    words, share = LENGTHS[end]
    # Warm-up and decay shrink with the training: each arm is a finished training of its length.
    scale = {} if share == 1 else {"train.steps": share, "train.warmup_steps": share}
    return Arm(method + end, f"{text}, {words} of the training", settings, scale, series=method)


study = Study(
    name="training-time",
    question="Does IAR reach the baseline's quality in less training?",
    claim="IAR reduces the training time by half while achieving the same FID.",
    baseline="baseline",
    factor="train.steps",
    arms=tuple(trained(method, end) for method in METHODS for end in (*LENGTHS, "-undecayed")),
)
