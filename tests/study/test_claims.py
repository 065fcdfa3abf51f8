"""Every rule gives every verdict that it can, bad input gives a reason, and the committed claims fit the registry."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iar_study.errors import InputError
from iar_study.evaluation.metrics import FIDELITY, metric_named
from iar_study.study.claims import (
    Above,
    Alternative,
    AsGoodAs,
    Best,
    Better,
    BetterInEvery,
    Claim,
    Exact,
    NotTested,
    judge,
    judge_all,
    load_claims,
)
from iar_study.study.results import Results
from iar_study.study.study import load_studies

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FD, SHARE, CHANCE = "fd/classifier@2k", "val/right_cluster_if_wrong", "val/right_cluster_by_chance"
NOISE = dict(zip(("base", "small", "iar", "rest"), np.random.default_rng(1).normal(0, 0.02, (4, 5)), strict=True))


def results(metric=FD, seeds=3, missing=(), exact=None, chance=None, study="made-up", **arms):
    """Return a study whose arms have the given levels beside noise, or the very values of a list; base is the first."""
    rows = [
        (arm, seed, key, value)
        for key, levels in {metric: arms, CHANCE: chance or {}}.items()
        for arm, level in levels.items()
        for seed, value in enumerate(level if isinstance(level, list) else level + NOISE[arm][:seeds])
    ]
    return Results(
        study=study,
        question="",
        claim="",
        baseline="base",
        arms=dict.fromkeys(arms, ""),
        profile="smoke",
        scale={},
        final=pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]),
        curves=pd.DataFrame([], columns=["arm", "seed", "trial", "step", "metric", "value"]),
        missing=pd.DataFrame(list(missing), columns=["arm", "seed", "status", "step"]),
        exact=exact or {},
    )


def claim(rule, name="a claim", study="made-up"):
    return Claim(name, "A sentence.", "a source", study, rule, "limits")


def verdict(rule, found):
    (only,) = judge([claim(rule)], found)
    assert only.claim == claim(rule)
    assert only.evidence
    return only.verdict


SIZES = (("iar", "base"), ("rest", "small"))


@pytest.mark.parametrize(
    ("rule", "levels", "expected"),
    [
        (Better("iar", "fd"), {"base": 9, "iar": 5}, "supported"),
        (Better("iar", "fd"), {"base": 5, "iar": 9}, "contradicted"),
        (Better("iar", "fd"), {"base": 5, "iar": 5}, "inconclusive"),
        (Better("iar", "fd"), {"base": [5.0, 6.0, 7.0], "iar": [5.0, 6.0, 7.0]}, "inconclusive"),
        (Better("iar", "fd", than="small"), {"base": 1, "small": 9, "iar": 5}, "supported"),
        (Better("iar", "fd", than="small"), {"base": 9, "small": 1, "iar": 5}, "contradicted"),
        (Better("iar", SHARE), {"base": 0.2, "iar": 0.9}, "supported"),
        (AsGoodAs("iar", "fd", than="base"), {"base": 9, "iar": 5}, "supported"),
        (AsGoodAs("iar", "fd", than="base"), {"base": [5.0, 6.0], "iar": [5.0, 6.0]}, "supported"),
        (AsGoodAs("iar", "fd", than="base"), {"base": 5, "iar": 9}, "contradicted"),
        (AsGoodAs("iar", "fd", than="base"), {"base": 5, "iar": 5}, "inconclusive"),
        (BetterInEvery(SIZES, "fd"), {"base": 9, "iar": 5, "small": 9, "rest": 5}, "supported"),
        (BetterInEvery(SIZES, "fd"), {"base": 9, "iar": 5, "small": 5, "rest": 9}, "contradicted"),
        (BetterInEvery(SIZES, "fd"), {"base": 9, "iar": 5, "small": 5, "rest": 5}, "inconclusive"),
        (Best("iar", "fd", among=("base", "rest")), {"base": 9, "iar": 5, "rest": 7, "small": 1}, "supported"),
        (Best("iar", "fd", among=("base", "rest")), {"base": 9, "iar": 5, "rest": 1}, "contradicted"),
        (Best("iar", "fd", among=("base", "rest")), {"base": 9, "iar": 5, "rest": 5}, "inconclusive"),
        (Above(SHARE, 0.5, "iar"), {"base": 0, "iar": 0.9}, "supported"),
        (Above(SHARE, 0.5, "iar"), {"base": 0, "iar": 0.1}, "contradicted"),
        (Above(SHARE, 0.5, "iar"), {"base": 0, "iar": 0.5}, "inconclusive"),
        (Above(SHARE, 0.5), {"base": 0.9, "iar": 0.1}, "supported"),
        (Above(SHARE, 0.5), {"base": [0.9, 0.9, 0.9]}, "supported"),  # no seed changes it
        (Above(SHARE, 0.5), {"base": [0.1, 0.1, 0.1]}, "contradicted"),
        (Above(SHARE, 0.5), {"base": [0.5, 0.5, 0.5]}, "inconclusive"),
        (Above(SHARE, 0.5), {"base": [0.9, 0.9]}, "inconclusive"),
        (Above(FD, 7), {"base": 9.0}, "supported"),  # above is above, also where lower is better
    ],
)
def test_rules_from_levels(rule, levels, expected):
    metric = SHARE if rule.metric == SHARE else FD
    assert verdict(rule, results(metric, **levels)) == expected


@pytest.mark.parametrize(("chance", "expected"), [(0.1, "supported"), (2.0, "contradicted"), (0.9, "inconclusive")])
def test_above_another_metric_of_the_same_trials(chance, expected):
    levels = {"base": 0.9, "iar": 0.9}
    found = results(SHARE, **levels, chance={"iar": [chance + 0.02, chance - 0.04, chance]})
    assert verdict(Above(SHARE, CHANCE, "iar"), found) == expected
    reason = judge([claim(Above(SHARE, CHANCE, "iar"))], results(SHARE, **levels))[0]
    assert (reason.verdict, reason.evidence) == ("not tested", f"{CHANCE} was not measured")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"decoding": 0.0}, "supported"),
        ({"decoding": 1e-12}, "contradicted"),
        ({"decoding": float("nan")}, "contradicted"),
        ({}, "not tested"),
    ],
)
def test_exact(facts, expected):
    assert verdict(Exact("decoding", 0.0), results(base=1.0, exact=facts)) == expected


def test_not_tested_says_why():
    (found,) = judge([claim(NotTested("nobody tried"))], results(base=1.0))
    assert (found.verdict, found.evidence) == ("not tested", "nobody tried")


RULES = [
    Better("iar", "fd"),
    Better("iar", "fd", than="small"),
    AsGoodAs("iar", "fd", than="small"),
    BetterInEvery((("iar", "small"), ("iar", "base")), "fd"),
    Best("iar", "fd", among=("base", "small")),
    Above("fd", 1.0, "iar"),
]
of_every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
CLEAR = {"base": 9, "small": 9, "iar": 5}


@of_every_rule
def test_one_seed_is_inconclusive(rule):
    assert verdict(rule, results(**CLEAR)) == "supported"
    assert verdict(rule, results(seeds=1, **CLEAR)) == "inconclusive"
    assert verdict(rule, results(seeds=1, base=[5.0], small=[5.0], iar=[5.0])) == "inconclusive"


@of_every_rule
def test_a_diverged_trial_is_inconclusive(rule):
    lost = CLEAR | {"iar": [5.0, 5.1, 5.2, float("nan")]}
    found = judge([claim(rule)], results(missing=[("iar", 3, "diverged", 40)], seeds=4, **lost))[0]
    assert found.verdict == "inconclusive"
    assert "seed 3 of iar diverged" in found.evidence


@of_every_rule
def test_what_was_not_run_or_measured_is_not_tested(rule):
    arms = {arm: level for arm, level in CLEAR.items() if arm != "iar"}
    (found,) = judge([claim(rule)], results(**arms))
    assert (found.verdict, found.evidence) == ("not tested", "arm 'iar' was not run")
    (found,) = judge([claim(rule)], results(SHARE, **CLEAR))
    assert (found.verdict, found.evidence) == ("not tested", "fd was not measured")


@of_every_rule
def test_an_arm_without_a_finished_trial_is_inconclusive(rule):
    missing = [("iar", seed, "not finished", float("nan")) for seed in range(3)]
    (found,) = judge([claim(rule)], results(missing=missing, **(CLEAR | {"iar": []})))
    assert found.verdict == "inconclusive"
    assert "no seed has a value to compare, seed 0 of iar not finished" in found.evidence


def test_a_family_measured_in_two_ways_is_not_guessed():
    one, other = results(**CLEAR), results("fd/inception@2k", **CLEAR)
    both = replace(one, final=pd.concat([one.final, other.final]))
    (found,) = judge([claim(Better("iar", "fd"))], both)
    assert found.verdict == "not tested"
    assert "name one of them" in found.evidence
    assert verdict(Better("iar", FD), both) == "supported"


def test_a_metric_without_direction_is_not_tested():
    (found,) = judge([claim(Better("iar", "val/own_cluster_nll"))], results("val/own_cluster_nll", **CLEAR))
    assert (found.verdict, found.evidence) == (
        "not tested",
        "of val/own_cluster_nll neither more nor less is better",
    )


def test_evidence_has_difference_interval_seeds_and_p():
    found = results(base=[9.0, 9.2, 9.4], iar=[5.0, 5.3, 5.3], rest=[9.1, 9.1, 9.3])
    (told,) = judge([claim(Better("iar", "fd"))], found)
    assert told.evidence == (
        "iar minus base in FD (classifier, 2k): \N{MINUS SIGN}4 [\N{MINUS SIGN}4.248, \N{MINUS SIGN}3.752], 3 seeds, "
        "p < 0.001 (<0.001 by Holm over 2 arms): better"
    )
    (told,) = judge([claim(Above("fd", 8.0))], found)
    assert told.evidence == "FD (classifier, 2k) minus 8, in base: +1.2 [+0.7032, +1.697], 3 seeds, p = 0.0091"
    (told,) = judge([claim(Exact("decoding", 0))], results(base=1.0, exact={"decoding": 0.0}))
    assert told.evidence == "decoding is off by 0; 0 is allowed"


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"base": 9, "iar": 5, "rest": 5}, "stands"),
        ({"base": 9, "iar": 5, "rest": 7}, "ruled out"),  # it helps, but does not explain all of it
        ({"base": 9, "iar": 5, "rest": 9}, "ruled out"),
        ({"base": 9, "iar": 5, "rest": [4.0, 7.0, 9.5]}, "not ruled out"),
        ({"base": 9, "iar": 5}, "not tested"),
        ({"base": 5, "iar": 5, "rest": 9}, "no effect to explain"),
        ({"base": 5, "iar": 9, "rest": 5}, "no effect to explain"),
    ],
)
def test_another_explanation_is_ruled_out_where_the_arm_does_better_than_its_control(levels, said):
    shown_by, ruled_out_by = Better("rest", "fd"), Better("iar", "fd", than="rest")
    asked = replace(claim(Better("iar", "fd")), alternatives=(Alternative("anything does it", shown_by, ruled_out_by),))
    found = results(**levels)
    judged, against, by_itself = judge([asked, claim(ruled_out_by, "2"), claim(shown_by, "3")], found)
    assert judged.alternatives == (f"anything does it: {said} ({against.evidence}; {by_itself.evidence})",)
    assert judge_all([asked], [])[0].alternatives == ()


@pytest.mark.parametrize(("rest", "said"), [(5, "stands"), (12, "ruled out"), (9, "not ruled out")])
def test_another_explanation_without_a_test_against_it_is_told_by_its_own(rest, said):
    asked = replace(claim(Better("iar", "fd")), alternatives=(Alternative("anything does it", Better("rest", "fd")),))
    (judged,) = judge([asked], results(base=9, iar=5, rest=rest))
    assert judged.alternatives[0].startswith(f"anything does it: {said} (")


def test_what_no_chance_enters_is_told_without_model_training_and_seeds():
    found = replace(
        results(base=1.0, exact={"decoding": 0.0}), scale={"data set": "digits", "model": "GPT", "seeds": "0"}
    )
    exact, drawn = judge([claim(Exact("decoding", 0)), claim(Above("fd", 0.5))], found)
    assert (exact.scale, drawn.scale) == ("profile smoke; digits", "profile smoke; digits; GPT; seeds 0")


def test_an_inconclusive_verdict_says_what_its_seeds_could_have_shown():
    """The smallest difference that a t test at 5% finds in 80% of studies, checked by drawing studies."""
    found = results(base=[9.0, 9.2, 9.4, 9.1, 9.3], iar=[9.1, 9.0, 9.5, 9.3, 9.1])
    ((verdict, told),) = [(v.verdict, v.evidence) for v in judge([claim(Better("iar", "fd"))], found)]
    seen = float(told.rpartition("could be seen from ")[2].rstrip(")"))
    spread = np.std([0.1, -0.2, 0.1, 0.2, -0.2], ddof=1)
    drawn = np.random.default_rng(0).normal(seen, spread, (20_000, 5))
    assert verdict == "inconclusive"
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert "could be seen" not in judge([claim(Better("iar", "fd"))], results(**CLEAR))[0].evidence


def test_a_verdict_says_at_which_scale_and_by_which_command():
    scale = {
        "data set": "folder:pictures",
        "tokenizer": "64 codes",
        "model": "GPT, 0.03 M weights: 2 layers",
        "training": "60 steps (0.1 M tokens), learning rate 0.01, cosine decay",
        "seeds": "0, 1",
    }
    found = replace(results(**CLEAR), scale=scale, command="iar-study run made-up")
    (judged,) = judge([claim(Better("iar", "fd"))], found)
    told = "profile smoke; folder:pictures; 64 codes; GPT, 0.03 M weights; 60 steps (0.1 M tokens); seeds 0, 1"
    assert (judged.scale, judged.command) == (told, "iar-study run made-up")


def test_holm_is_over_the_arms_of_the_study():
    """A difference that decides alone does not among many arms; a pair that is named stays one comparison."""
    base = [3.0, 3.5, 4.0]
    noise = {f"a{i}": list(3.5 + np.random.default_rng(i).normal(size=3)) for i in range(30)}
    found = results(base=base, iar=[2.0, 2.6, 2.9], **noise)
    assert verdict(Better("iar", "fd"), found) == "inconclusive"
    assert verdict(Better("iar", "fd", than="base"), found) == "supported"


def test_a_claim_is_judged_by_its_own_study():
    other = claim(Better("iar", "fd"), "other", study="elsewhere")
    assert judge([other], results(**CLEAR)) == []
    claims = [other, claim(Better("iar", "fd")), claim(NotTested("why"), "no study", study=None)]
    found = judge_all(claims, [results(**CLEAR)])
    assert [(v.claim, v.verdict) for v in found] == list(
        zip(claims, ["not tested", "supported", "not tested"], strict=True)
    )
    assert found[0].evidence == "study elsewhere was not run"


@pytest.mark.parametrize("rule", [*RULES, Exact("decoding", 1e-9), NotTested("why")], ids=lambda r: type(r).__name__)
def test_a_rule_says_itself_with_its_values(rule):
    text = rule.text()
    assert text.endswith(".")
    if not isinstance(rule, NotTested):
        assert {"Supported", "contradicted"} <= {word.strip(":;,.") for word in text.split()}
        for word in fields(rule):
            value = getattr(rule, word.name)
            assert not isinstance(value, str) or value in text


def test_claims_load_from_a_file(tmp_path):
    assert load_claims(tmp_path) == []
    head = "from iar_study.study.claims import Claim, NotTested\n"
    one = "Claim('x', 'A.', 'paper', None, NotTested('no'), '')"
    path = tmp_path / "claims.py"
    path.write_text(f"{head}CLAIMS = [{one}]\n")
    assert [found.name for found in load_claims(tmp_path)] == ["x"]
    path.write_text(f"{head}CLAIMS = [{one}, {one}]\n")
    with pytest.raises(InputError, match="a second claim called 'x'"):
        load_claims(tmp_path)
    for wrong in ("CLAIMS = ['a sentence']", "claims = []"):
        path.write_text(wrong)
        with pytest.raises(InputError, match="defines no `CLAIMS"):
            load_claims(tmp_path)


COMMITTED = load_claims(EXPERIMENTS)


@pytest.mark.parametrize("claim", COMMITTED, ids=lambda claim: claim.name)
def test_a_committed_claim_names_what_there_is(claim):
    assert claim.sentence.endswith(".")
    assert claim.limits.endswith(".")
    assert claim.source
    if claim.study is None:
        assert isinstance(claim.rule, NotTested)
        return
    study = load_studies(EXPERIMENTS)[claim.study]
    for rule in (claim.rule, *(rule for other in claim.alternatives for rule in other.rules)):
        names_what_there_is(rule, study)


def names_what_there_is(rule, study):
    arms = [getattr(rule, "arm", None), *getattr(rule, "among", ()), *sum(getattr(rule, "pairs", ()), ())]
    if not isinstance(rule, Above):
        arms.append(getattr(rule, "than", None))
    for arm in filter(None, arms):
        study.arm(arm)
    metrics = [getattr(rule, "metric", None), getattr(rule, "than", None) if isinstance(rule, Above) else None]
    for metric in metrics:
        assert not isinstance(metric, str) or metric in FIDELITY or metric_named(metric)
    if isinstance(rule, Exact):
        assert rule.fact in ("equivariance", "decoding")


def test_every_study_of_the_paper_has_a_claim():
    judged = {claim.study for claim in COMMITTED}
    assert {"components", "balance", "cluster-count", "loss-weight", "training-time", "model-scale"} < judged
