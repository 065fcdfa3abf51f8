"""Does IAR help whatever the number of codes?"""

from iar_study.study import Arm, Study

SIZES = {
    "": ("the profile's codes", 1),
    "-quarter": ("a quarter of the profile's codes", 0.25),
    "-half": ("half of the profile's codes", 0.5),
    "-double": ("twice the profile's codes", 2),
}


def sized(method: str, description: str, settings: dict, size: str) -> Arm:
    # A tokenizer of its own for each size, so that each is compared with the baseline of its size; the number of
    # clusters stays the profile's: the coarse decision is among as many, of more codes or fewer.
    text, factor = SIZES[size]
    scale = {"tokenizer.codebook_size": factor}
    return Arm(method + size, f"{description}, {text}", settings, scale, beside="baseline" + size, series=method)


study = Study(
    name="codebook-size",
    question="Does IAR help whatever the number of codes, the number of clusters being the same?",
    claim="A codebook holds codes so similar that the wrong one is nearly right; the larger it is, the more of them.",
    baseline="baseline",
    factor="tokenizer.codebook_size",
    arms=tuple(sized("baseline", "token loss alone", {}, size) for size in SIZES)
    + tuple(sized("iar", "IAR", {"clustering.strategy": "greedy", "loss.cluster_weight": 1.0}, s) for s in SIZES),
)
