"""Does IAR help whatever the number of codes?"""

from iar_study.study import Arm, Study

SIZES = {
    "": ("the profile's codes", 1),
    "-quarter": ("a quarter of the profile's codes", 0.25),
    "-half": ("half of the profile's codes", 0.5),
    "-double": ("twice the profile's codes", 2),
}
"""Each has a tokenizer of its own, so that losses of two sizes cannot be compared; pictures can."""

# The number of clusters stays the profile's: the coarse decision is among as many, of more codes or fewer.
METHODS = {
    "baseline": ("token loss alone", {}),
    "iar": ("IAR", {"clustering.strategy": "balanced", "loss.cluster_weight": 1.0}),
}

study = Study(
    name="codebook-size",
    question="Does IAR help whatever the number of codes, the number of clusters being the same?",
    claim="A codebook holds codes so similar that the wrong one is nearly right; the larger it is, the more of them.",
    baseline="baseline",
    arms=tuple(
        Arm(method + size, f"{text}, {of_size}", settings, {"tokenizer.codebook_size": factor})
        for method, (text, settings) in METHODS.items()
        for size, (of_size, factor) in SIZES.items()
    ),
)
