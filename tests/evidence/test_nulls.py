"""Simulated studies whose truth is known: how often the rules answer wrongly, and how often rightly.

Run with `-s` to see the rates. What is simulated goes through the rules themselves, on frames as a study has them.
"""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iar_study.evidence.results import Results
from iar_study.evidence.rules import Above, AmongBest, Better, BetterOverAll, InLessTime, InShorterTraining
from iar_study.evidence.statistics import MARGIN, Effect, SharedSpread

STUDIES = 500
FD, SHARE, CHANCE = "fd/classifier@2k", "val/right_cluster_if_wrong", "val/right_cluster_by_chance"
SPREAD = 0.09
"""Standard deviation of the log of a ratio of one pair: that of the committed runs of the exact assignment."""


def study_of(values, metric=FD, curves=None, **more):
    """Return results with nothing but the values, arm -> (seeds,), of one metric and, metric={arm: values}, of more."""
    rows = [
        (arm, seed, key, float(value))
        for key, arms in {metric: values, **more}.items()
        for arm, of_seeds in arms.items()
        for seed, value in enumerate(of_seeds)
    ]
    final = pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"])
    missing = pd.DataFrame([], columns=["arm", "seed", "status", "step"])
    curves = pd.DataFrame([], columns=["arm", "seed", "step", "metric", "value"]) if curves is None else curves
    first, *_ = values
    return Results("null", "", "", first, dict.fromkeys(values, ""), "smoke", {}, final, curves, missing)


def simulated(rng, effects, pairs, spreads=None):
    """Return arm -> FD (pairs,): one seed does the same to all arms; an arm has its effect, a log ratio, and noise."""
    seed = 0.2 * rng.normal(size=pairs)
    return {
        arm: 1.6 * np.exp(seed + effect + (spreads or {}).get(arm, SPREAD / 2**0.5) * rng.normal(size=pairs))
        for arm, effect in effects.items()
    }


def findings(effects, pairs, spreads=None, studies=STUDIES):
    """Return the share of studies with each finding on `iar`: what `compare_with_baseline` does, without its frames."""
    rng = np.random.default_rng([pairs, *str(effects).encode()])
    found = []
    for _ in range(studies):
        values = simulated(rng, effects, pairs, spreads)
        differences = {arm: np.log(of / values["baseline"]) for arm, of in values.items() if arm != "baseline"}
        effect = Effect.of(differences["iar"], SharedSpread.of(differences.values()), level=1.0)
        found.append(effect.finding("lower", math.log1p(MARGIN)))
    return {finding: found.count(finding) / studies for finding in set(found)}


def rates(rule, effects, pairs, studies):
    """The same of a rule, on frames as a study has them."""
    rng = np.random.default_rng([pairs, *str(effects).encode()])
    answers = [rule.judge(study_of(simulated(rng, effects, pairs))).answer for _ in range(studies)]
    return {answer: answers.count(answer) / studies for answer in set(answers)}


def most(studies, rate=0.05):
    """What a true rate stays below in 99.5% of simulations."""
    return rate + 2.6 * (rate * (1 - rate) / studies) ** 0.5


def test_the_frames_say_what_the_arrays_say():
    for effects in (NOTHING, TWICE):
        assert rates(Better("iar", "fd"), effects, 5, 20) == findings(effects, 5, studies=20)


NOTHING = {"baseline": 0.0, "iar": 0.0, "random": 0.0, "blocks": 0.0}
TWICE = {**NOTHING, "iar": 2 * math.log1p(-MARGIN)}
UNEQUAL = {"random": 0.2, "blocks": 0.01}


@pytest.mark.parametrize("pairs", [3, 5, 60])
@pytest.mark.parametrize("spreads", [None, UNEQUAL], ids=["alike", "unequal"])
def test_nothing_is_called_better_or_worse_in_at_most_5_percent(pairs, spreads):
    found = findings(NOTHING, pairs, spreads)
    print(pairs, found)
    assert found.get("better", 0) + found.get("worse", 0) < most(STUDIES)


def test_an_arm_beyond_the_margin_is_called_equivalent_in_at_most_5_percent():
    for pairs in (5, 60):
        found = findings({**NOTHING, "iar": math.log1p(MARGIN)}, pairs)
        assert found.get("equivalent", 0) < most(STUDIES)


def test_twice_the_margin_is_found_by_60_pairs():
    found = findings(TWICE, 60)
    print(found)
    assert found["better"] > 0.8
    assert "worse" not in found


def test_nothing_is_found_to_be_nothing_that_matters_by_enough_pairs():
    assert findings(NOTHING, 200)["equivalent"] > 0.8


SIZES = ("-half", "", "-double")
OVER = BetterOverAll(tuple((f"iar{end}", f"baseline{end}") for end in SIZES), "fd")


def over_sizes(effect):
    return {f"{method}{end}": effect * (method == "iar") for method in ("baseline", "iar") for end in SIZES}


@pytest.mark.parametrize("pairs", [3, 5, 60])
def test_several_conditions_together_find_nothing_where_there_is_nothing(pairs):
    found = rates(OVER, over_sizes(0.0), pairs, 40)
    assert found.get("better", 0) + found.get("worse", 0) < most(40)


def test_several_conditions_together_find_twice_the_margin():
    assert rates(OVER, over_sizes(2 * math.log1p(-MARGIN)), 60, 20)["better"] > 0.8


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("seeds", "conditions"), [(3, 3), (5, 5), (60, 3)])
def test_what_a_seed_does_to_all_conditions_counts(common, seeds, conditions):
    """Five guidance scales of the same trainings are no five experiments: the spread between them is too little."""
    rng = np.random.default_rng([seeds, conditions, int(10 * common)])
    wrong, by_conditions_alone = 0, 0
    for _ in range(1000):
        noise = rng.normal(size=(seeds, conditions)) * (1 - 0.9 * common) ** 0.5
        values = noise + (0.9 * common) ** 0.5 * rng.normal(size=(seeds, 1))
        wrong += Effect.pooled(pd.DataFrame(values)).p < 0.05
        by_conditions_alone += Effect.of(values.mean(axis=0)).p < 0.05
    print(seeds, conditions, common, wrong / 1000, by_conditions_alone / 1000)
    assert wrong / 1000 < 0.08
    if common == 1.0:
        assert by_conditions_alone / 1000 > 0.2


AMONG = AmongBest("iar", "fd", among=("baseline", "random", "blocks"))


def test_the_best_arm_is_out_in_at_most_5_percent():
    found = rates(AMONG, {"baseline": 0.0, "random": 0.05, "blocks": 0.0, "iar": 0.0}, 5, 100)
    assert found.get("not the best", 0) < most(100)
    found = rates(AMONG, {"baseline": 0.3, "random": 0.3, "blocks": 0.3, "iar": 0.0}, 10, 20)
    assert found["the best"] > 0.8


def trained(rng, pairs, share, effect):
    """Return results of undecayed trainings: FD falls as 1 + 3 exp(-4 t); IAR is there after `share` of the time."""
    rows = []
    for seed in range(pairs):
        level = 0.2 * rng.normal()
        for arm, pace in (("baseline", 1.0), ("iar", 1 / share)):
            for point in range(1, 13):
                t = point / 12
                fd = (1 + 3 * np.exp(-4 * t * pace)) * np.exp(level + SPREAD / 2**0.5 * rng.normal())
                rows.append((arm, seed, point * 100, FD, fd * (np.exp(effect) if arm == "iar" else 1)))
    curves = pd.DataFrame(rows, columns=["arm", "seed", "step", "metric", "value"])
    last = {arm: of["value"] for arm, of in curves[curves["step"] == 1200].groupby("arm")}
    return study_of({arm: last[arm].tolist() for arm in ("baseline", "iar")}, curves=curves)


IN_TIME = InLessTime("iar", "fd", than="baseline", share=0.58)


def test_the_same_quality_in_less_time_is_found_where_it_is_true():
    rng = np.random.default_rng(0)
    found = [IN_TIME.judge(trained(rng, 120, share=0.58, effect=0.0)).answer for _ in range(20)]
    assert found.count("as good") / 20 > 0.8
    found = [IN_TIME.judge(trained(rng, 120, share=1.0, effect=0.05)).answer for _ in range(20)]
    assert found.count("worse") / 20 > 0.8


def test_just_the_margin_worse_is_called_as_good_in_at_most_5_percent():
    rule = InShorterTraining("iar-half", "fd", than="baseline", flat="baseline-half")
    effects = {"baseline": 0.0, "baseline-half": 0.0, "iar-half": math.log1p(MARGIN)}
    for pairs in (5, 60):
        found = rates(rule, effects, pairs, 100)
        assert found.get("as good", 0) < most(100)
    found = rates(rule, {"baseline": 0.0, "baseline-half": 0.0, "iar-half": -0.02}, 60, 20)
    assert found["as good"] > 0.8
    found = rates(rule, {"baseline": 0.0, "baseline-half": 0.5, "iar-half": 0.0}, 60, 10)
    assert found["cannot be asked"] == 1


@pytest.mark.parametrize("seeds", [3, 5])
def test_above_is_wrong_in_at_most_5_percent(seeds):
    rng = np.random.default_rng(seeds)
    answers = []
    for _ in range(300):
        share, chance = 0.5 + 0.1 * rng.normal(size=(2, seeds))
        found = study_of({"baseline": share}, SHARE, **{CHANCE: {"baseline": chance}})
        answers.append(Above(SHARE, CHANCE).judge(found).answer)
    assert answers.count("holds") / 300 < most(300, 0.025)
    assert answers.count("fails") / 300 < most(300, 0.025)


NOISE = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, shape),
}


@pytest.mark.parametrize("kind", NOISE)
def test_the_wider_of_two_spreads_keeps_its_level_where_each_alone_does_not(kind):
    """Of 3 to 60 pairs, equal and unequal arms: own spread and the wider of two keep 5%, the shared one alone fails."""
    rng = np.random.default_rng(list(kind.encode()))
    shared_alone = []
    for pairs in (3, 5, 15, 60):
        for spreads in ([1, 1, 1, 1, 1], [1, 1, 1, 1, 3], [0.5, 0.7, 1, 1.4, 2]):  # the last arm is looked at
            wrong = alone = 0
            for _ in range(STUDIES):
                noise = NOISE[kind](rng, (5, pairs)) * np.array(spreads)[:, None]
                differences = noise[1:] - noise[:1]
                shared = SharedSpread.of(differences)
                effect = Effect.of(differences[-1], shared, level=1.0)
                wrong += effect.p < 0.05
                error, freedom = effect.errors[1]
                alone += abs(effect.mean / error) > stats.t.ppf(0.975, freedom)
            assert wrong / STUDIES < most(STUDIES), (pairs, spreads)
            shared_alone.append(alone / STUDIES)
    print(kind, "shared alone", max(shared_alone))
    assert max(shared_alone) > most(STUDIES)


def test_the_power_table():
    """Chance to call a true change, by pairs: what a study of so many can and cannot show. Printed with `-s`."""
    print("pairs  " + "  ".join(f"{change:+.0%}" for change in (-0.02, -0.044, -0.06, -0.1)))
    table = {}
    for pairs in (5, 15, 60):
        for change in (-0.02, -0.044, -0.06, -0.1):
            effects = {**NOTHING, "iar": math.log1p(change)}
            table[pairs, change] = findings(effects, pairs).get("better", 0)
        print(f"{pairs:5}  " + "  ".join(f"{table[pairs, change]:.2f}" for change in (-0.02, -0.044, -0.06, -0.1)))
    assert table[60, -0.1] > table[5, -0.1] > table[5, -0.02]
