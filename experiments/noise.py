"""What is a difference made of, where nothing that matters is changed?"""

from iar_study.study import Arm, Study

IAR = {"clustering.strategy": "greedy", "loss.cluster_weight": 1.0}

study = Study(
    name="noise",
    question="How far do results move where nothing that matters is changed, and what moves them?",
    claim="None of the paper's, which tells one training of each model: this is what its differences stand beside.",
    baseline="baseline",
    arms=(
        Arm("baseline", "original order, token loss alone"),
        Arm("sampling", "the same training, sampled with other noise", {"evaluation.noise": 1}),
        Arm("training", "the same initial weights; other order of images and other dropout", {"train.noise": 1}),
        Arm("tokenizer", "another tokenizer, and what follows from it", seeded={"tokenizer.seed": 1}),
        Arm("evaluator", "the same training and samples, another set of evaluators", seeded={"classifier.seed": 1}),
        Arm("iar", "the paper's IAR", IAR, beside="iar"),
        Arm(
            "clustering",
            "the paper's IAR, another draw of its clusters",
            IAR,
            seeded={"clustering.seed": 1},
            beside="iar",
        ),
    ),
)
