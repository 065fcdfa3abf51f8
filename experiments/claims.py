"""What the paper claims, and what decides each claim here.

A decided verdict holds for the data, the sizes and the training of the profile that was run, and for no other.
"""

from iar_study.study.claims import Above, Alternative, AsGoodAs, Best, Better, BetterInEvery, Claim, Exact, NotTested

ABSTRACT = "abstract, in its words"
OURS = "in our words, after the abstract"
RELEASED = "in our words, after the released code's defaults"

WHERE_IT_HOLDS = (
    "Decides it for the data, tokenizer, model size and training of this study alone, in the features that the "
    "metric's name tells; it is FID only with Inception at 50,000 samples. The learning rate of full was chosen for "
    "the baseline's likelihood on the same held-out images; there is no third set."
)

ANY_COARSE = "any coarse target does it, of similar codes or not"
BLOCKS = "contiguous blocks of the tokenizer's own order do it"
ORDER = "the rearranged order does it by itself, with the token loss alone"
ONE_OF_EACH = " One clustering of each kind, whatever the seeds."


def controls(metric: str) -> tuple[Alternative, ...]:
    """The arms of `components` that lack an ingredient of IAR: each would explain a gain that it brings, too."""
    explained = (("random", ANY_COARSE), ("blocks", BLOCKS), ("rearranged", ORDER))
    return tuple(
        Alternative(explanation, Better(arm, metric), Better("iar", metric, than=arm)) for arm, explanation in explained
    )


CLAIMS = [
    Claim(
        "near codes look alike",
        "Tokens that are replaced by a near code (up to about the 12th of 16,384) leave the picture almost unchanged.",
        "the paper's observation, in our words",
        "code-distance",
        Above("near/ssim", "tokenizer/ssim"),
        "The paper gives no number: almost unchanged is here no more than the tokenizer itself changes an image, in "
        "structural similarity. The yardstick decides: the first rule here asked that 95% of the pictures keep their "
        "class, and by it the committed run on Fashion-MNIST would be contradicted, whose tokenizer alone keeps fewer, "
        "too. The rank is 12 of 16,384 in proportion to the codebook, so that of 512 codes, and of 1,024, it is the "
        "nearest one alone. Tokenizers that were trained here, one for each seed.",
    ),
    Claim(
        "codes of a cluster look alike",
        "Balanced k-means rearranges the visual codebook into clusters, ensuring high similarity among visual features "
        "within each cluster.",
        "abstract, shortened",
        "code-distance",
        Better("balanced", "same_cluster/feature_distance"),
        "Says that codes of a cluster are nearer in looks than codes of a random one, not that they are near: the "
        "paper gives no number for high.",
        (
            Alternative(
                "codes that lie together in the original order look alike already",
                Better("blocks", "same_cluster/feature_distance"),
                Better("balanced", "same_cluster/feature_distance", than="blocks"),
            ),
        ),
    ),
    Claim(
        "the token loss does not depend on the order",
        "With the token loss alone the order of the codes cannot matter: a GPT whose vocabulary is permuted has the "
        "same loss and the same gradients.",
        "a consequence of the method, in our words",
        "components",
        Exact("equivariance", 1e-9),
        "Checked once, up to rounding in float64, of a tiny GPT with random weights: two trainings in float32 drift "
        "apart. That they end equally good is not proved by it, and no rule can; see the arm rearranged beside the "
        "baseline.",
    ),
    Claim(
        "rearranged codes decode to the same pictures",
        "The tokenizer's codebook is reordered as the tokens are, so that decoding is unchanged.",
        "the paper's method, in our words",
        "components",
        Exact("decoding", 0.0),
        "The pictures that were decoded both ways, by the tokenizer of this study.",
    ),
    Claim(
        "wrong tokens in the right cluster more than by chance",
        "Even if the model predicts the wrong token index, there is a high probability the predicted token is located "
        "in the correct cluster.",
        ABSTRACT,
        "components",
        Above("val/right_cluster_if_wrong", "val/right_cluster_by_chance", arm="iar"),
        "More than chance, that is than a code drawn with equal odds, is not yet a high probability, for which the "
        "paper gives no number.",
        (
            Alternative(
                "a baseline that learned anything does it, without the cluster loss",
                Above("val/right_cluster_if_wrong", "val/right_cluster_by_chance"),
            ),
        ),
    ),
    Claim(
        "wrong tokens in the right cluster more than the baseline's",
        "The cluster-oriented loss ensures that a wrong token lies in the correct cluster.",
        OURS,
        "components",
        Better("iar", "val/right_cluster_if_wrong"),
        "Every arm is judged by the same balanced clusters, the ones that IAR was trained with: its home ground."
        + ONE_OF_EACH,
        (
            Alternative(
                "tokens that were right before are now wrong within their cluster, and of all tokens no more are in it",
                ruled_out_by=Better("iar", "val/cluster_accuracy"),
            ),
            *controls("val/right_cluster_if_wrong"),
        ),
    ),
    Claim(
        "better token predictions",
        "IAR predicts the next token of held-out images better.",
        "our reading of the title; the paper's measure is FID",
        "components",
        Better("iar", "val/token_nll"),
        "The paper promises no better likelihood, and IAR's loss is not the token loss: images may be better without.",
        controls("val/token_nll"),
    ),
    Claim(
        "better images",
        "The cluster-oriented loss significantly enhances the generation quality.",
        "abstract, shortened",
        "components",
        Better("iar", "fd"),
        WHERE_IT_HOLDS + " One guidance scale and one learning rate for every arm, not tuned for each; the studies "
        "guidance and learning-rate vary them." + ONE_OF_EACH,
        controls("fd"),
    ),
    Claim(
        "better images at every guidance scale",
        "The cluster-oriented loss enhances the generation quality, whatever the scale of classifier-free guidance.",
        OURS,
        "guidance",
        BetterInEvery(
            tuple((f"iar, s={scale}", f"baseline, s={scale}") for scale in ("1", "1.5", "2", "3", "4")), "fd"
        ),
        WHERE_IT_HOLDS + " Five scales, the same for both, of the same trainings.",
    ),
    Claim(
        "better images at every learning rate",
        "The cluster-oriented loss enhances the generation quality, whatever the learning rate.",
        OURS,
        "learning-rate",
        BetterInEvery(
            tuple((f"iar{end}", f"baseline{end}") for end in ("-quarter", "-half", "", "-double", "-fourfold")), "fd"
        ),
        WHERE_IT_HOLDS + " Five rates, the same for both.",
    ),
    Claim(
        "similar codes are what helps",
        "The gain comes from clusters of similar codes, not from any coarse target.",
        OURS,
        "components",
        BetterInEvery((("iar", "baseline"), ("iar", "random"), ("iar", "blocks")), "fd"),
        WHERE_IT_HOLDS
        + " The blocks of the original order may hold similar codes by the tokenizer's training."
        + ONE_OF_EACH,
    ),
    Claim(
        "balanced clusters are better than plain ones",
        "The clusters should be of equal size: balanced k-means in place of plain k-means.",
        "the paper's choice of clustering, in our words",
        "balance",
        Better("balanced", "fd", than="plain"),
        WHERE_IT_HOLDS + " One number of clusters. The cluster loss of unequal clusters is another loss, which could "
        "have another best weight." + ONE_OF_EACH,
        (
            Alternative(
                "equal sizes alone do it, of similar codes or not",
                Better("random", "fd", than="plain"),
                Better("balanced", "fd", than="random"),
            ),
        ),
    ),
    Claim(
        "the released number of clusters is best",
        "As many clusters as codes in a cluster, n = m, are the best number.",
        RELEASED,
        "cluster-count",
        Best("n=32", "fd", among=("n=1", "n=2", "n=8", "n=64", "n=N/4", "n=N")),
        WHERE_IT_HOLDS
        + " The released code has n = 128 clusters of m = 128 codes, N = 16,384. Of 512 codes the same n "
        "leaves 4 codes to a cluster and the same m makes 4 clusters; what can be kept is n = m, and n = 32 (m = 16) "
        "is the nearest arm to it. Of 1,024 codes it is n = m itself; of 16,384 (profile paper) no arm is.",
    ),
    Claim(
        "lambda = 1 is best",
        "The cluster loss is best weighted as the token loss, lambda = 1.",
        RELEASED,
        "loss-weight",
        Best("lambda=1", "fd", among=("lambda=0", "lambda=0.25", "lambda=0.5", "lambda=2", "lambda=4", "lambda=8")),
        WHERE_IT_HOLDS + " Of the weights that were tried; the learning rate was not tuned for each of them.",
    ),
    Claim(
        "half the training time",
        "Our method reduces the training time by half while achieving the same FID.",
        "abstract, shortened",
        "training-time",
        AsGoodAs("iar-half", "fd", than="baseline"),
        WHERE_IT_HOLDS
        + " Time is counted in training steps, each arm a finished training with its own decay. Without a "
        "margin, a quality that is truly the same stays inconclusive. Where the baseline's own half is worse than its "
        "whole, as the other explanation tells, it was not trained to its end: the verdict then says that half of this "
        "budget is not enough, and nothing of a baseline that had converged.",
        (
            Alternative(
                "half of the training is enough without IAR, too",
                AsGoodAs("baseline-half", "fd", than="baseline"),
                Better("iar-half", "fd", than="baseline-half"),
            ),
        ),
    ),
    Claim(
        "better at every length of training",
        "Our method consistently enhances the model training efficiency and performance.",
        "abstract, shortened",
        "training-time",
        BetterInEvery((("iar-quarter", "baseline-quarter"), ("iar-half", "baseline-half"), ("iar", "baseline")), "fd"),
        WHERE_IT_HOLDS + " Three lengths, each a finished training with its own decay.",
    ),
    Claim(
        "better at every size",
        "Our method consistently enhances the model training efficiency and performance from 100M to 1.4B.",
        ABSTRACT,
        "model-scale",
        BetterInEvery((("iar-half", "baseline-half"), ("iar", "baseline"), ("iar-double", "baseline-double")), "fd"),
        WHERE_IT_HOLDS
        + " Three widths at one depth, one learning rate and one number of steps; from the smallest to the "
        "largest nine times the weights (quick: eleven), where the paper has fourteen.",
    ),
    Claim(
        "larger is better",
        "Our approach adheres to the scaling law.",
        "abstract, shortened",
        "model-scale",
        BetterInEvery((("iar", "iar-half"), ("iar-double", "iar")), "fd"),
        WHERE_IT_HOLDS + " That each larger model is better is what a scaling law implies, not the law: three sizes at "
        "one number of steps cannot tell a power law from another falling curve.",
        (
            Alternative(
                "larger is better without IAR, too",
                BetterInEvery((("baseline", "baseline-half"), ("baseline-double", "baseline")), "fd"),
            ),
        ),
    ),
    Claim(
        "applies to other generators",
        "Our approach can be applied to various LLM-based visual generation models.",
        "abstract, shortened",
        None,
        NotTested(
            "one generator is built here, LlamaGen's class-conditional GPT over one grid of tokens; no other "
            "architecture, order of tokens or condition was tried"
        ),
        "Whatever is found of this one generator says nothing about others.",
    ),
]
