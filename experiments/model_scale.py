"""Does IAR help at every size of the model?"""

from iar_study.study import Arm, Study


def sized(name: str, description: str, factor: float, weight: float) -> Arm:
    strategy = "greedy" if weight else "none"  # the paper's algorithm
    # As many heads more or less as width, so that a head keeps its size.
    scale = {} if factor == 1 else {"model.width": factor, "model.heads": factor}
    settings = {"clustering.strategy": strategy, "loss.cluster_weight": weight}
    return Arm(name, description, settings, scale, name.replace("iar", "baseline"), name.partition("-")[0])


study = Study(
    name="model-scale",
    question="Does IAR help at every size of the model, and is a larger model better with it?",
    claim="IAR enhances training efficiency and performance from 100M to 1.4B and adheres to the scaling law.",
    baseline="baseline",
    factor="model.width",
    arms=(
        sized("baseline-half", "token loss alone, half the width", 0.5, 0.0),
        sized("baseline", "token loss alone, the profile's width", 1, 0.0),
        sized("baseline-double", "token loss alone, twice the width", 2, 0.0),
        sized("iar-half", "IAR, half the width", 0.5, 1.0),
        sized("iar", "IAR, the profile's width", 1, 1.0),
        sized("iar-double", "IAR, twice the width", 2, 1.0),
    ),
)
