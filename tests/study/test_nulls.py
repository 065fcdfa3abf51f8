"""Simulated studies whose truth is known: how often the rules of findings and of claims are wrong, and how often right.

Most studies are simulated as arrays, by the functions that `compare_with_baseline` is made of; some go through the
frame, to show that both say the same. Run with `-s` to see the rates.
"""

import numpy as np
import pandas as pd
import pytest

from iar_study.study.claims import Above, AsGoodAs, Best, Better, BetterInEvery
from iar_study.study.results import Results
from iar_study.study.statistics import (
    bootstrap_interval,
    called,
    compare_with_baseline,
    holm,
    mean_interval,
    paired_p,
    power,
)

STUDIES = 4000
MOST = 0.05 + 2.6 * (0.05 * 0.95 / STUDIES) ** 0.5
"""What a true rate of 5% stays below in 99.5% of simulations."""
METRIC, BY_CHANCE = "val/right_cluster_if_wrong", "val/right_cluster_by_chance"
ARMS = ("base", "a", "b", "c", "d")
NOISE = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, size=shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
}

of_every_kind = pytest.mark.parametrize("kind", NOISE)
of_seeds = pytest.mark.parametrize("seeds", [3, 5])


def simulate(kind, seeds, studies=STUDIES, effect=0.0):
    """Return (studies, arms, seeds): one process for all arms beside what a seed does to all of them, and the effect.

    `effect` is added to arm `a`, in standard deviations of the paired difference (normal noise: sqrt(2) of an arm's).
    """
    rng = np.random.default_rng([seeds, *kind.encode()])
    values = NOISE[kind](rng, (studies, len(ARMS), seeds)) + 3 * rng.normal(size=(studies, 1, seeds))
    values[:, 1] += effect * 2**0.5
    return values


def findings(differences, *, family=True):
    """Return +1 where a mean difference (..., arms, seeds) is called above 0, -1 below, else 0: by the rule."""
    p = paired_p(differences)
    return called(holm(p) if family else p, *bootstrap_interval(differences)) * np.sign(differences.mean(axis=-1))


def framed(values, metric=METRIC):
    """Return one study's (arms, seeds) as a tidy frame; there, more is better."""
    rows = [(arm, seed, metric, v) for arm, vs in zip(ARMS, values, strict=False) for seed, v in enumerate(vs)]
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"])


def study_of(values, **more):
    """Return results with nothing but the values (arms, seeds) and, metric=(arms, seeds), more of them."""
    final = pd.concat([framed(values), *(framed(v, key) for key, v in more.items())])
    missing = pd.DataFrame([], columns=["arm", "seed", "status", "step"])
    arms = dict.fromkeys(ARMS, "")
    return Results("null", "", "", "base", arms, "smoke", {}, final, pd.DataFrame(), missing)


@of_seeds
@of_every_kind
def test_the_array_says_what_the_frame_says(kind, seeds):
    values = simulate(kind, seeds, studies=40, effect=2.0)
    said = {1.0: "better", -1.0: "worse", 0.0: "inconclusive"}
    expected = [[said[found] for found in row] for row in findings(values[:, 1:] - values[:, :1])]
    found = [compare_with_baseline(framed(study), METRIC, "base", ARMS)["finding"].tolist()[1:] for study in values]
    assert found == expected
    assert {"better", "inconclusive"} <= {finding for row in found for finding in row}


@of_seeds
@of_every_kind
def test_a_study_of_equals_has_a_finding_in_one_of_twenty(kind, seeds):
    values = simulate(kind, seeds)
    differences = values[:, 1:] - values[:, :1]
    any_arm = (findings(differences) != 0).any(axis=1).mean()
    one_arm = findings(differences[:, :1])
    better, either = (one_arm > 0).mean(), (one_arm != 0).mean()
    print(
        f"\n{kind}, {seeds} seeds: any of 4 arms {any_arm:.3f}; one arm alone: better {better:.3f}, either {either:.3f}"
    )
    assert any_arm <= MOST
    assert better <= 0.05
    assert either <= MOST


@pytest.mark.parametrize("effect", [1, 2])
@of_seeds
def test_the_power_is_what_power_says(seeds, effect):
    """At effects of 1 and 2 standard deviations of the paired difference."""
    values = simulate("normal", seeds, effect=effect)
    differences = values[:, 1:] - values[:, :1]
    alone, of_four = (findings(differences[:, :1])[:, 0] > 0).mean(), (findings(differences)[:, 0] > 0).mean()
    expected = power(effect, 1, seeds)
    print(
        f"\n{effect} sd, {seeds} seeds: one arm {alone:.3f} (power says {expected:.3f}), one of four arms {of_four:.3f}"
    )
    assert alone == pytest.approx(expected, abs=0.03)
    assert of_four < alone


def pairs(values, *which):
    """Return each pair's finding by itself, (studies, pairs): +1 where the first arm is better than the second."""
    differences = np.stack([values[:, ARMS.index(x)] - values[:, ARMS.index(y)] for x, y in which], axis=1)
    return findings(differences, family=False), findings(differences)


def judged_all_better(values, *which):
    alone, corrected = pairs(values, *which)
    return (alone > 0).all(axis=1) * 1 - (corrected < 0).any(axis=1)


RULES = {
    "better": (Better("a", METRIC), lambda v: findings(v[:, 1:] - v[:, :1])[:, 0]),
    "better than another": (Better("a", METRIC, than="b"), lambda v: pairs(v, ("a", "b"))[0][:, 0]),
    "as good": (AsGoodAs("a", METRIC, than="b"), lambda v: pairs(v, ("a", "b"))[0][:, 0]),
    "better in every": (
        BetterInEvery((("a", "b"), ("c", "d")), METRIC),
        lambda v: judged_all_better(v, ("a", "b"), ("c", "d")),
    ),
    "best": (
        Best("a", METRIC, among=("b", "c", "d")),
        lambda v: judged_all_better(v, ("a", "b"), ("a", "c"), ("a", "d")),
    ),
    "above a number": (Above(METRIC, 0.0, "a"), lambda v: findings(v[:, 1:2], family=False)[:, 0]),
    # The metric beside it is here what the baseline has: another draw of the same trial.
    "above a metric": (Above(METRIC, BY_CHANCE, "a"), lambda v: findings(v[:, 1:2] - v[:, :1], family=False)[:, 0]),
}
NEARLY_TRUE = {"better": [0, 0, 9, 9, 9], "better in every": [0, 0, 0, 9, 0], "best": [0, 0, 0, -9, -9]}
"""What the arms differ by, in hundreds of deviations, so that all that the claim says holds but for one comparison."""


@of_seeds
@of_every_kind
@pytest.mark.parametrize(
    ("name", "nearly"), [*((name, False) for name in RULES), *((name, True) for name in NEARLY_TRUE)]
)
def test_an_untrue_claim_is_supported_in_one_of_twenty(name, nearly, kind, seeds):
    answer = RULES[name][1]
    values = simulate(kind, seeds)
    if name == "above a number":
        values = NOISE[kind](np.random.default_rng(seeds), values.shape)
    if nearly:
        values += 100 * np.array(NEARLY_TRUE[name])[:, None]
    answers = answer(values)
    supported, contradicted = (answers > 0).mean(), (answers < 0).mean()
    of = f"{name}{', all but one comparison true' if nearly else ''}, {kind}, {seeds} seeds"
    print(f"\n{of}: supported {supported:.3f}, contradicted {contradicted:.3f}")
    assert supported <= 0.05
    # A fixed number is the one case in which the noise of a difference is not symmetric: see `Above`.
    assert contradicted <= (0.13 if (name, kind) == ("above a number", "skewed") else MOST)


@pytest.mark.parametrize("name", RULES)
def test_the_array_says_what_a_claim_says(name):
    rule, answer = RULES[name]
    strong = np.array([0.0, 4.0, 0.0, -4.0, 0.0])[:, None] + simulate("normal", 3, studies=8)
    values = np.concatenate([strong, -strong, simulate("normal", 3, studies=4)])
    said = {1.0: "supported", -1.0: "contradicted", 0.0: "inconclusive"}
    expected = [said[found] for found in answer(values)]
    assert expected == [rule.judge(study_of(v, **{BY_CHANCE: np.tile(v[0], (2, 1))}))[0] for v in values]


def test_skewed_noise_beside_a_number_is_the_known_weak_point():
    """With a tail to the left a number is called exceeded too often: the docstring of `Above` gives this rate."""
    values = -NOISE["skewed"](np.random.default_rng(0), (STUDIES, 3))
    supported = (findings(values[:, None], family=False) > 0).mean()
    print(f"\nabove a number, tail to the left, 3 seeds: supported {supported:.3f}")
    assert supported == pytest.approx(0.11, abs=0.015)


def test_an_interval_misses_the_truth_in_one_of_twenty():
    missed = [
        not i.low <= 0 <= i.high for i in map(mean_interval, NOISE["normal"](np.random.default_rng(0), (2000, 3)))
    ]
    assert np.mean(missed) == pytest.approx(0.05, abs=0.013)
