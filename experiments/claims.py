"""What the paper claims, what else was asked, and what decides each here; every entry tells its past.

`since` is the day from which the rule stands as it is. Rules were written anew on 2026-11-27, when the committed
results were known: what they say of these is exploratory, whatever it is. A run with new seeds under a plan is a test.
"""

from iar_study.evidence.claims import Alternative, Claim, Past
from iar_study.evidence.rules import (
    Above,
    AmongBest,
    Better,
    BetterOverAll,
    Exact,
    InLessTime,
    InShorterTraining,
    NotTested,
    Planned,
    Rule,
)

ABSTRACT = "abstract, in its words"
SHORTENED = "abstract, shortened"
RENEWED = Past("2026-11-27", after_data=True)
FIRST = Past("2026-11-24", after_data=False)

WHERE_IT_HOLDS = (
    "Speaks of the data, tokenizer, model size and training of this study alone, in the features that the metric's "
    "name tells; it is FID only with Inception at 50,000 samples. The learning rate of full was chosen for the "
    "baseline's likelihood on the same held-out images; there is no third set. One evaluator, one tokenizer and one "
    "clustering of each kind for all seeds: what these vary by is in no interval."
)
EXACT = (
    " The arm is iar-exact: an exact assignment to equal clusters in place of the paper's greedy one. It is our "
    "improvement, and no test of the paper."
)

CONTROLS = tuple(
    Alternative(explanation, Better("iar", "fd", than=arm), Better(arm, "fd", than="baseline"))
    for arm, explanation in (
        ("random", "any coarse target does it, of similar codes or not"),
        ("blocks", "contiguous blocks of the tokenizer's own order do it"),
        ("rearranged", "the rearranged order does it by itself, with the token loss alone"),
    )
)


def over(method: str, ends: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return pairs of an arm of a method and the baseline, under each condition."""
    return tuple((f"{method}{end}", f"baseline{end}") for end in ends)


SIZES = ("-half", "", "-double")
LENGTHS = ("-quarter", "-half", "")
RATES = ("-quarter", "-half", "", "-double", "-fourfold")
SCALES = tuple(f", s={scale}" for scale in ("1", "1.5", "2", "3", "4"))


PAPERS, OURS = "the paper's own algorithm", "our exact assignment"
"""The methods that are answered for over all their conditions."""


def exact(name: str, study: str, rule: Rule, sentence: str, pooled: str = OURS) -> Claim:
    """Return the same question of our exact assignment, of which there are results."""
    limits = WHERE_IT_HOLDS + EXACT
    return Claim(name, sentence, "ours", "exploratory", study, rule, RENEWED, limits, pooled=pooled)


CLAIMS = [
    Claim(
        "the token loss does not depend on the order",
        "With the token loss alone the order of the codes cannot matter: a GPT whose vocabulary is permuted has the "
        "same loss and the same gradients.",
        "ours",
        "identity",
        "components",
        Exact("equivariance", 1e-9),
        FIRST,
        "Checked once, up to rounding in float64, of a tiny GPT with random weights: it is a check of the code, "
        "and of the algebra. Two trainings in float32 drift apart; see the arm rearranged.",
    ),
    Claim(
        "rearranged codes decode to the same images",
        "The tokenizer's codebook is reordered as the tokens are, so that decoding is unchanged.",
        "ours",
        "identity",
        "components",
        Exact("decoding", 0.0),
        FIRST,
        "The images that were decoded both ways, by the tokenizer of this study.",
    ),
    Claim(
        "near codes look alike",
        "Tokens that are replaced by a near code (up to about the 12th of 16,384) leave the image almost unchanged.",
        "the paper's observation, in our words",
        "observation",
        "code-distance",
        Above("near/ssim", 0.98),
        RENEWED,
        "The premise of the method. The paper gives no number: almost unchanged is here a structural similarity "
        "of 0.98 or more with the image of the true tokens. Two rules before this one had other yardsticks. The rank "
        "is 12 of 16,384 in proportion to the codebook: of 512 and of 1,024 codes it is the nearest one alone.",
    ),
    Claim(
        "near codes keep the class",
        "Tokens that are replaced by a near code (up to about the 12th of 16,384) leave the image almost unchanged.",
        "the paper's observation, in our words",
        "observation",
        "code-distance",
        Above("near/class_agreement", 0.98),
        RENEWED,
        "The premise of the method, by its second yardstick: at least 98% of the images stay in the class that "
        "the classifier sees in the image of the true tokens.",
    ),
    Claim(
        "codes of a cluster look alike",
        "Balanced k-means rearranges the visual codebook into clusters, ensuring high similarity among visual features "
        "within each cluster.",
        SHORTENED,
        "observation",
        "code-distance",
        Better("greedy", "same_cluster/feature_distance"),
        RENEWED,
        "Says that codes of a cluster are nearer in looks than codes of a random one, not that they are near: "
        "the paper gives no number for high. Any clustering by distance would pass.",
        alternatives=(
            Alternative(
                "codes that lie together in the original order look alike already",
                Better("greedy", "same_cluster/feature_distance", than="blocks"),
                Better("blocks", "same_cluster/feature_distance"),
            ),
        ),
    ),
    Claim(
        "wrong tokens in the right cluster more than by chance",
        "Even if the model predicts the wrong token index, there is a high probability the predicted token is located "
        "in the correct cluster.",
        SHORTENED,
        "observation",
        "components",
        Above("val/right_cluster_if_wrong", "val/right_cluster_by_chance", arm="iar"),
        RENEWED,
        "No model that learned anything could fail it: see the baseline. It asks of wrong tokens alone, and IAR "
        "is wrong more often; for all tokens see the two claims on the right cluster.",
        alternatives=(
            Alternative(
                "a baseline does it, without the cluster loss",
                Better("iar", "val/right_cluster_if_wrong"),
                Above("val/right_cluster_if_wrong", "val/right_cluster_by_chance"),
            ),
        ),
    ),
    Claim(
        "better images",
        "The cluster-oriented loss significantly enhances the generation quality.",
        SHORTENED,
        "effect",
        "components",
        Better("iar", "fd"),
        RENEWED,
        WHERE_IT_HOLDS + " One guidance scale and one learning rate for every arm.",
        alternatives=CONTROLS,
        pooled=PAPERS,
    ),
    Claim(
        "better images, as planned",
        "The cluster-oriented loss significantly enhances the generation quality.",
        SHORTENED,
        "effect",
        "confirm",
        Planned(),
        Past("2026-11-27", after_data=False),
        "Speaks of the data, model size and training of the plan alone, in the features of small classifiers. Its "
        "draws of tokenizer, classifier and clusterings are in the interval.",
        alternatives=CONTROLS[:1],
    ),
    Claim(
        "better images at every size",
        "Our method consistently enhances the model training efficiency and performance from 100M to 1.4B.",
        ABSTRACT,
        "effect",
        "model-scale",
        BetterOverAll(over("iar", SIZES), "fd"),
        RENEWED,
        WHERE_IT_HOLDS + " Three widths at one depth, one learning rate and one number of steps; from the smallest "
        "to the largest nine times the weights (quick: eleven), where the paper has fourteen.",
        pooled=PAPERS,
    ),
    Claim(
        "the same quality in less time",
        "Our method reduces the training time by half while achieving the same FID.",
        SHORTENED,
        "effect",
        "training-time",
        InLessTime("iar-undecayed", "fd", than="baseline-undecayed", share=0.58),
        RENEWED,
        WHERE_IT_HOLDS + " As the paper's figure asks it: along one training at a constant rate; its figure says "
        "42% less, not half. Time is counted in training steps.",
    ),
    Claim(
        "larger is better",
        "Our approach adheres to the scaling law.",
        SHORTENED,
        "effect",
        "model-scale",
        BetterOverAll((("iar", "iar-half"), ("iar-double", "iar")), "fd"),
        RENEWED,
        WHERE_IT_HOLDS + " That each larger model is better is what a scaling law implies, not the law; larger "
        "baselines may be better without IAR, too.",
    ),
    Claim(
        "applies to other generators",
        "Our approach can be applied to various LLM-based visual generation models.",
        SHORTENED,
        "effect",
        None,
        NotTested(
            "one generator is built here, LlamaGen's class-conditional GPT over one grid of tokens; no other "
            "architecture, order of tokens or condition was tried"
        ),
        FIRST,
        "Whatever is found of this one generator says nothing about others.",
    ),
    *(
        Claim(
            name,
            sentence,
            "ours",
            "exploratory",
            "confirm",
            Better(arm, "fd"),
            Past("2026-11-28", after_data=False),
            limits,
        )
        for name, sentence, arm, limits in (
            (
                "negative control: another order of images",
                "The baseline in another order of images gives other images, but not better or worse ones.",
                "noise",
                "Where it is better or worse, the plan's comparison is not to be trusted either.",
            ),
            (
                "positive control: eight times the weight",
                "IAR with eight times the weight gives worse images.",
                "lambda=8",
                "Where it is not worse, the measure does not see what it should. It tells nothing of small gains.",
            ),
        )
    ),
    exact(
        "better images, exact assignment",
        "components",
        Better("iar-exact", "fd"),
        "Equal clusters by the exact assignment give better images.",
    ),
    exact(
        "better images at every size, exact assignment",
        "model-scale",
        BetterOverAll(over("iar-exact", SIZES), "fd"),
        "Equal clusters by the exact assignment give better images, whatever the size of the model.",
    ),
    exact(
        "better images at every length, exact assignment",
        "training-time",
        BetterOverAll(over("iar-exact", LENGTHS), "fd"),
        "Equal clusters by the exact assignment give better images, whatever the length of the training.",
    ),
    exact(
        "better images at every learning rate, exact assignment",
        "learning-rate",
        BetterOverAll(over("iar-exact", RATES), "fd"),
        "Equal clusters by the exact assignment give better images, whatever the learning rate.",
    ),
    exact(
        "better images at every guidance scale, exact assignment",
        "guidance",
        BetterOverAll(over("iar-exact", SCALES), "fd"),
        "Equal clusters by the exact assignment give better images, whatever the scale of guidance. Five scales of the "
        "same trainings.",
        pooled="",
    ),
    exact(
        "half the training, exact assignment",
        "training-time",
        InShorterTraining("iar-exact-half", "fd", than="baseline", flat="baseline-half"),
        "Half of the training with equal clusters by the exact assignment is as good as the whole without. Each is a "
        "finished training with its own decay.",
        pooled="",
    ),
    exact(
        "the exact assignment is better than the paper's greedy one",
        "components",
        Better("iar-exact", "fd", than="iar"),
        "Clusters of equal size are better where codes are assigned to them exactly.",
        pooled="",
    ),
    Claim(
        "better images at every guidance scale",
        "The cluster-oriented loss enhances the generation quality, whatever the scale of classifier-free guidance.",
        "ours",
        "exploratory",
        "guidance",
        BetterOverAll(over("iar", SCALES), "fd"),
        RENEWED,
        WHERE_IT_HOLDS + " Five scales, the same for both, of the same trainings.",
    ),
    Claim(
        "better images at every learning rate",
        "The cluster-oriented loss enhances the generation quality, whatever the learning rate.",
        "ours",
        "exploratory",
        "learning-rate",
        BetterOverAll(over("iar", RATES), "fd"),
        RENEWED,
        WHERE_IT_HOLDS + " Five rates, the same for both.",
        pooled=PAPERS,
    ),
    Claim(
        "better token predictions",
        "IAR predicts the next token of held-out images better.",
        "ours",
        "exploratory",
        "components",
        Better("iar", "val/token_nll"),
        RENEWED,
        "The paper promises no better likelihood, and IAR's loss is not the token loss: images may be better "
        "without. It was asked after the data had shown the answer.",
    ),
    Claim(
        "more tokens in the right cluster",
        "With the cluster loss the most probable code lies in the right cluster more often, of all tokens.",
        "ours",
        "exploratory",
        "components",
        Better("iar", "val/cluster_accuracy"),
        RENEWED,
        "Every arm is judged by the same clusters, those of the exact assignment.",
    ),
    Claim(
        "a better likelihood of the cluster",
        "With the cluster loss the right cluster is more probable, of all tokens.",
        "ours",
        "exploratory",
        "components",
        Better("iar", "val/cluster_nll"),
        RENEWED,
        "Every arm is judged by the same clusters, those of the exact assignment.",
    ),
    Claim(
        "balanced clusters are better than plain ones",
        "The clusters should be of equal size: balanced k-means in place of plain k-means.",
        "ours",
        "exploratory",
        "balance",
        Better("iar", "fd", than="plain"),
        RENEWED,
        WHERE_IT_HOLDS + " One number of clusters. The cluster loss of unequal clusters is another loss, which "
        "could have another best weight.",
        alternatives=(
            Alternative(
                "equal sizes alone do it, of similar codes or not",
                Better("iar", "fd", than="random"),
                Better("random", "fd", than="plain"),
            ),
        ),
    ),
    Claim(
        "the released number of clusters is best",
        "As many clusters as codes in a cluster, n = m, are the best number.",
        "ours",
        "exploratory",
        "cluster-count",
        AmongBest("n=32", "fd", among=("n=1", "n=2", "n=8", "n=64", "n=N/4", "n=N")),
        RENEWED,
        WHERE_IT_HOLDS + " No table of the paper over n was found. The released code has n = 128 clusters of "
        "m = 128 codes, N = 16,384; what can be kept is n = m, and n = 32 is the nearest arm to it of 512 codes, and "
        "it itself of 1,024. With the exact assignment.",
    ),
    Claim(
        "lambda = 1 is best",
        "The cluster loss is best weighted as the token loss, lambda = 1.",
        "ours",
        "exploratory",
        "loss-weight",
        AmongBest(
            "lambda=1", "fd", among=("lambda=0", "lambda=0.25", "lambda=0.5", "lambda=2", "lambda=4", "lambda=8")
        ),
        RENEWED,
        WHERE_IT_HOLDS + " No table of the paper over lambda was found; 1 is the released code's default. With "
        "the exact assignment, and a learning rate that was not tuned for each.",
    ),
]
