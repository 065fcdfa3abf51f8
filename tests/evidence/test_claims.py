"""Every rule gives every verdict that it can, bad input gives a reason, and the committed claims fit the registry."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iar_study.errors import InputError
from iar_study.evaluation.metrics import FIDELITY, metric_named
from iar_study.evidence.claims import Alternative, Claim, Past, counted, judge, judge_all, load_claims
from iar_study.evidence.results import Results
from iar_study.evidence.rules import (
    Above,
    AmongBest,
    Better,
    BetterOverAll,
    Exact,
    InLessTime,
    InShorterTraining,
    NotTested,
)
from iar_study.reporting.report import shown
from iar_study.storage import read_json
from iar_study.study.study import load_studies

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
EXAMPLE = EXPERIMENTS.parent / "reports" / "example"
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


PAST = Past("2026-11-27", after_data=True)


def claim(rule, name="a claim", study="made-up"):
    return Claim(name, "A sentence.", "a source", "effect", study, rule, PAST, "limits")


def verdict(rule, found):
    (only,) = judge([claim(rule)], found)
    assert only.claim == claim(rule)
    assert only.evidence
    return only.answer


SIZES = (("iar", "base"), ("rest", "small"))


@pytest.mark.parametrize(
    ("rule", "levels", "expected"),
    [
        (Better("iar", "fd"), {"base": 9, "iar": 5}, "better"),
        (Better("iar", "fd"), {"base": 5, "iar": 9}, "worse"),
        (Better("iar", "fd"), {"base": 5, "iar": 5}, "equivalent"),
        (Better("iar", "fd"), {"base": 5, "iar": [3.5, 5.0, 7.0]}, "undecided"),
        (Better("iar", "fd"), {"base": [5.0, 6.0, 7.0], "iar": [5.0, 6.0, 7.0]}, "equal"),
        (Better("iar", "fd", than="small"), {"base": 1, "small": 9, "iar": 5}, "better"),
        (Better("iar", "fd", than="small"), {"base": 9, "small": 1, "iar": 5}, "worse"),
        (Better("iar", SHARE), {"base": 0.2, "iar": 0.9}, "better"),
        (Better("iar", SHARE), {"base": 0.2, "iar": 0.2}, "undecided"),  # no margin is known of a share
        (BetterOverAll(SIZES, "fd"), {"base": 9, "iar": 5, "small": 9, "rest": 5}, "better"),
        (BetterOverAll(SIZES, "fd"), {"base": 5, "iar": 9, "small": 5, "rest": 9}, "worse"),
        (BetterOverAll(SIZES, "fd"), {"base": 9, "iar": 5, "small": 5, "rest": 9}, "undecided"),
        (AmongBest("iar", "fd", among=("base", "rest")), {"base": 9, "iar": 5, "rest": 7, "small": 1}, "the best"),
        (AmongBest("iar", "fd", among=("base", "rest")), {"base": 9, "iar": 5, "rest": 1}, "not the best"),
        (AmongBest("iar", "fd", among=("base", "rest")), {"base": 9, "iar": 5, "rest": 5}, "among the best"),
        (AmongBest("iar", "fd", among=("base", "rest")), {"base": 5, "iar": 5, "rest": 5}, "undecided"),
        (InShorterTraining("iar", "fd", "base", flat="small"), {"base": 5, "iar": 5, "small": 5}, "as good"),
        (InShorterTraining("iar", "fd", "base", flat="small"), {"base": 5, "iar": 9, "small": 5}, "worse"),
        (
            InShorterTraining("iar", "fd", "base", flat="small"),
            {"base": 5, "iar": [4.0, 5, 6], "small": 5},
            "undecided",
        ),
        (InShorterTraining("iar", "fd", "base", flat="small"), {"base": 5, "iar": 9, "small": 7}, "cannot be asked"),
        (Above(SHARE, 0.5, "iar"), {"base": 0, "iar": 0.9}, "holds"),
        (Above(SHARE, 0.5, "iar"), {"base": 0, "iar": 0.1}, "fails"),
        (Above(SHARE, 0.5, "iar"), {"base": 0, "iar": 0.5}, "undecided"),
        (Above(SHARE, 0.5), {"base": 0.9, "iar": 0.1}, "holds"),
        (Above(SHARE, 0.5), {"base": [0.9, 0.9, 0.9]}, "holds"),  # no seed changes it
        (Above(SHARE, 0.5), {"base": [0.1, 0.1, 0.1]}, "fails"),
        (Above(SHARE, 0.5), {"base": [0.5, 0.5, 0.5]}, "undecided"),
        (Above(SHARE, 0.5), {"base": [0.9, 0.9]}, "undecided"),
        (Above(FD, 7), {"base": 9.0}, "holds"),  # above is above, also where lower is better
    ],
)
def test_rules_from_levels(rule, levels, expected):
    metric = SHARE if rule.metric == SHARE else FD
    assert verdict(rule, results(metric, **levels)) == expected


@pytest.mark.parametrize(("chance", "expected"), [(0.1, "holds"), (2.0, "fails"), (0.9, "undecided")])
def test_above_another_metric_of_the_same_trials(chance, expected):
    levels = {"base": 0.9, "iar": 0.9}
    found = results(SHARE, **levels, chance={"iar": [chance + 0.02, chance - 0.04, chance]})
    assert verdict(Above(SHARE, CHANCE, "iar"), found) == expected
    reason = judge([claim(Above(SHARE, CHANCE, "iar"))], results(SHARE, **levels))[0]
    assert (reason.answer, reason.evidence) == ("not tested", f"{CHANCE} was not measured")


def on_the_way(**arms):
    """Return results with curves: arm=[values of seed 0 at steps 100, 200, ..., those of seed 1, ...]."""
    rows = [
        (arm, seed, "hash", 100 * (i + 1), FD, float(value))
        for arm, curves in arms.items()
        for seed, values in enumerate(curves)
        for i, value in enumerate(values)
    ]
    curves = pd.DataFrame(rows, columns=["arm", "seed", "trial", "step", "metric", "value"])
    return replace(results(**{arm: [values[-1] for values in of] for arm, of in arms.items()}), curves=curves)


def test_time_on_the_way_is_counted_on_straight_lines_of_logs():
    base = [[8, 6, 5, 4], [8.1, 6, 5, 4.02], [7.9, 6, 5, 3.98]]
    # After 58% of 400 steps, step 232: from 6 to a value whose line passes 4 there.
    rule = InLessTime("iar", "fd", than="base", share=0.58)
    wanted = np.exp((np.log(4.0) - 0.68 * np.log(6.0)) / 0.32)
    fast = [[8, 6, wanted * (1 + wiggle), 3] for wiggle in (0, 0.001, -0.001)]
    (judged,) = judge([claim(rule)], on_the_way(base=base, iar=fast))
    assert judged.answer == "as good"
    assert judged.rows[0].difference == pytest.approx(0, abs=0.002)
    assert judged.rows[0].pairs["0"] == pytest.approx(0, abs=1e-9)
    assert verdict(rule, on_the_way(base=base, iar=base)) == "worse"
    one = on_the_way(base=base[:1], iar=fast[:1])
    assert verdict(rule, one) == "undecided"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"decoding": 0.0}, "holds"),
        ({"decoding": 1e-12}, "fails"),
        ({"decoding": float("nan")}, "fails"),
        ({}, "not tested"),
    ],
)
def test_exact(facts, expected):
    assert verdict(Exact("decoding", 0.0), results(base=1.0, exact=facts)) == expected


def test_not_tested_says_why():
    (found,) = judge([claim(NotTested("nobody tried"))], results(base=1.0))
    assert (found.answer, found.evidence) == ("not tested", "nobody tried")


RULES = [
    Better("iar", "fd"),
    Better("iar", "fd", than="small"),
    BetterOverAll((("iar", "small"), ("iar", "base")), "fd"),
    AmongBest("iar", "fd", among=("base", "small")),
    InShorterTraining("iar", "fd", than="small", flat="base"),
    Above("fd", 1.0, "iar"),
]
of_every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
CLEAR = {"base": 9, "small": 9, "iar": 5}
YES = ("better", "the best", "as good", "holds")


@of_every_rule
def test_one_seed_is_undecided(rule):
    assert verdict(rule, results(**CLEAR)) in YES
    assert verdict(rule, results(seeds=1, **CLEAR)) == "undecided"
    assert verdict(rule, results(seeds=1, base=[5.0], small=[5.0], iar=[5.0])) in ("undecided", "equal")


@of_every_rule
def test_a_diverged_trial_is_undecided(rule):
    lost = CLEAR | {"iar": [5.0, 5.1, 5.2, float("nan")]}
    found = judge([claim(rule)], results(missing=[("iar", 3, "diverged", 40)], seeds=4, **lost))[0]
    assert found.answer == "undecided"
    assert "seed 3 of iar diverged" in found.evidence


@of_every_rule
def test_what_was_not_run_or_measured_is_not_tested(rule):
    arms = {arm: level for arm, level in CLEAR.items() if arm != "iar"}
    (found,) = judge([claim(rule)], results(**arms))
    assert (found.answer, found.evidence) == ("not tested", "arm 'iar' was not run")
    (found,) = judge([claim(rule)], results(SHARE, **CLEAR))
    assert (found.answer, found.evidence) == ("not tested", "fd was not measured")


@of_every_rule
def test_an_arm_without_a_finished_trial_is_undecided(rule):
    missing = [("iar", seed, "not finished", float("nan")) for seed in range(3)]
    (found,) = judge([claim(rule)], results(missing=missing, **(CLEAR | {"iar": []})))
    assert found.answer == "undecided"
    assert "seed 0 of iar not finished" in found.evidence


def test_a_family_measured_in_two_ways_is_not_guessed():
    one, other = results(**CLEAR), results("fd/inception@2k", **CLEAR)
    both = replace(one, final=pd.concat([one.final, other.final]))
    (found,) = judge([claim(Better("iar", "fd"))], both)
    assert found.answer == "not tested"
    assert "name one of them" in found.evidence
    assert verdict(Better("iar", FD), both) == "better"


def test_a_metric_without_direction_is_not_tested():
    (found,) = judge([claim(Better("iar", "val/own_cluster_nll"))], results("val/own_cluster_nll", **CLEAR))
    assert (found.answer, found.evidence) == (
        "not tested",
        "of own cluster NLL neither more nor less is better",
    )


def test_evidence_has_the_change_its_interval_its_pairs_and_the_finding():
    base, arm = np.array([9.0, 9.2, 9.4]), np.array([5.0, 5.3, 5.3])
    found = results(base=list(base), iar=list(arm))
    (told,) = judge([claim(Better("iar", "fd"))], found)
    logs = np.log(arm / base)
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    shown = [f"{100 * np.expm1(value):+.1f}%".replace("-", "\N{MINUS SIGN}") for value in (logs.mean(), low, high)]
    expected = f"iar / base, FD (classifier, 2k): {shown[0]} [{shown[1]}, {shown[2]}], 3 pairs: better"
    assert told.evidence == expected
    (row,) = told.rows
    assert row.pairs == {str(seed): pytest.approx(value) for seed, value in enumerate(logs)}
    without_one = [np.delete(logs, i).mean() for i in range(3)]
    assert (row.least, row.most) == pytest.approx((min(without_one), max(without_one)))
    (told,) = judge([claim(Above("fd", 8.0))], found)
    change = "FD (classifier, 2k) \N{MINUS SIGN} 8"
    assert told.evidence == f"{change}: +1.2 [+0.7032, +1.697], 3 pairs: holds"
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
    by_itself, against = Better("rest", "fd"), Better("iar", "fd", than="rest")
    asked = replace(claim(Better("iar", "fd")), alternatives=(Alternative("anything does it", against, by_itself),))
    (judged,) = judge([asked], results(**levels))
    assert judged.alternatives[0].startswith(f"anything does it: {said} (")
    assert judge_all([asked], [])[0].alternatives == ()


def test_controls_make_no_claim_harder():
    """The answer and its p are those of the one comparison; more arms of the same spread tell no less."""
    levels = {"base": [5.0, 5.1, 5.2, 5.3], "iar": [4.5, 4.7, 4.6, 4.9]}
    controls = {f"a{i}": [level + 0.1 * (i + seed) for seed, level in enumerate(levels["base"])] for i in range(20)}
    alone, among = (judge([claim(Better("iar", "fd"))], results(**arms))[0] for arms in (levels, levels | controls))
    assert alone.answer == among.answer == "better"


def test_what_no_chance_enters_is_told_without_model_training_and_seeds():
    found = replace(
        results(base=1.0, exact={"decoding": 0.0}), scale={"data set": "digits", "model": "GPT", "seeds": "0"}
    )
    exact, drawn = judge([claim(Exact("decoding", 0)), claim(Above("fd", 0.5))], found)
    assert (exact.scale, drawn.scale) == ("profile smoke; digits", "profile smoke; digits; GPT; seeds 0")


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


def test_holm_goes_over_the_claims_that_count():
    claims = [("a", "better", 0.02), ("b", "better", 0.04), ("c", "worse", 0.03), ("d", "equivalent", 0.6)]
    assert counted(claims) == {"a": "undecided", "b": "undecided", "c": "undecided", "d": "no gain of 3% or more"}
    assert counted(claims[:1]) == {"a": "supported"}
    assert counted([("a", "worse", 0.001)]) == {"a": "contradicted"}
    assert counted([("a", "cannot be asked", float("nan"))]) == {"a": "cannot be asked"}
    assert counted([]) == {}


def test_only_a_sentence_of_the_paper_whose_rule_stood_before_the_data_counts():
    made = replace(claim(Better("iar", "fd")), source="abstract", past=Past("2026-11-27", after_data=False))
    assert made.counts
    assert not replace(made, past=PAST).counts
    assert not replace(made, source="ours").counts
    assert not replace(made, kind="identity").counts
    assert not replace(made, kind="exploratory").counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "certainty"}, "its kind is 'certainty'; known: identity, observation"),
        ({"source": " "}, "lacks its sentence, its source or its limits"),
        ({"sentence": ""}, "lacks its sentence"),
        ({"limits": ""}, "lacks its sentence"),
        ({"past": "2026-11-27"}, "does not tell since when its rule stands"),
    ],
)
def test_a_claim_without_its_past_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(claim(Better("iar", "fd")), **change)


@pytest.mark.parametrize(("since", "after"), [("yesterday", True), (None, True), ("2026-11-27", None)])
def test_a_past_is_a_date_and_an_answer(since, after):
    with pytest.raises(InputError, match=r"give a date|say True or False"):
        Past(since, after)


def test_what_nobody_ran_is_no_exploration():
    asked = [claim(Better("iar", "fd")), replace(claim(Better("iar", "fd"), "ours"), kind="exploratory")]
    assert [told.claim.name for told in shown(judge(asked, results(base=1.0)))] == ["a claim"]
    assert len(shown(judge(asked, results(**CLEAR)))) == 2


def test_a_claim_is_judged_by_its_own_study():
    other = claim(Better("iar", "fd"), "other", study="elsewhere")
    assert judge([other], results(**CLEAR)) == []
    claims = [other, claim(Better("iar", "fd")), claim(NotTested("why"), "no study", study=None)]
    found = judge_all(claims, [results(**CLEAR)])
    assert [(v.claim, v.answer) for v in found] == list(
        zip(claims, ["not tested", "better", "not tested"], strict=True)
    )
    assert found[0].evidence == "study elsewhere was not run"


@pytest.mark.parametrize("rule", [*RULES, Exact("decoding", 1e-9), NotTested("why")], ids=lambda r: type(r).__name__)
def test_a_rule_says_itself_with_its_values(rule):
    text = rule.text()
    assert text.endswith(".")
    if not isinstance(rule, NotTested):
        for word in fields(rule):
            value = getattr(rule, word.name)
            assert not isinstance(value, str) or value in text


def test_claims_load_from_a_file(tmp_path):
    assert load_claims(tmp_path) == []
    head = "from iar_study.evidence.claims import Claim, Past\nfrom iar_study.evidence.rules import NotTested\n"
    one = "Claim('x', 'A.', 'paper', 'effect', None, NotTested('no'), Past('2026-11-27', True), 'None.')"
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
    # Of the exact assignment there are results, and no arm any more in most studies.
    path = EXAMPLE / claim.study / "trials.json"
    ran = {trial["arm"] for trial in read_json(path)["trials"]} if path.exists() else set()
    arms = {*(arm.name for arm in load_studies(EXPERIMENTS)[claim.study].arms), *ran}
    others = (rule for other in claim.alternatives for rule in (other.ruled_out_by, other.shown_by) if rule)
    for rule in (claim.rule, *others):
        names_what_there_is(rule, arms)


def names_what_there_is(rule, known):
    arms = [getattr(rule, name, None) for name in ("arm", "flat")]
    arms += [*getattr(rule, "among", ()), *sum(getattr(rule, "pairs", ()), ())]
    if not isinstance(rule, Above):
        arms.append(getattr(rule, "than", None))
    assert set(filter(None, arms)) <= known
    metrics = [getattr(rule, "metric", None), getattr(rule, "than", None) if isinstance(rule, Above) else None]
    for metric in metrics:
        assert not isinstance(metric, str) or metric in FIDELITY or metric_named(metric)
    if isinstance(rule, Exact):
        assert rule.fact in ("equivariance", "decoding")


def test_every_study_of_the_paper_has_a_claim():
    judged = {claim.study for claim in COMMITTED}
    assert {"components", "balance", "cluster-count", "loss-weight", "training-time", "model-scale"} < judged
