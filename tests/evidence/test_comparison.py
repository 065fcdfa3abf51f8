"""Two stores side by side: the same to the bit or not, the same science or not, and never a test of the same trials."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.errors import InputError
from iar_study.evidence.claims import Claim, Past
from iar_study.evidence.comparison import (
    AGREE,
    DIFFER,
    SAME_TRIALS,
    TOO_FEW,
    Stores,
    compare,
    compare_arms,
    compare_stores,
    relative_difference,
)
from iar_study.evidence.results import Results
from iar_study.evidence.rules import Better
from iar_study.pipeline.workspace import Workspace
from iar_study.storage import write_json
from tests.reporting.conftest import make_results

METRICS = ("fd", "val/token_nll")
NLL = "val/token_nll"
ARMS = {"baseline": "", "arm, with [odd] % name\N{EM DASH}\N{GREEK SMALL LETTER LAMDA}": ""}
ODD = list(ARMS)[1]
TWO_ARMS = make_results(ARMS)
PAST = Past("2026-11-27", after_data=True)
BETTER = Claim("better", "It is better.", "ours", "effect", "components", Better("iar", "fd"), PAST, "nothing")


def made(differences, seeds, store="", baseline=3.0) -> Results:
    """Results of two arms in one metric, which differ by so much in each seed; other trials in each `store`."""
    rows = []
    for seed, difference in zip(seeds, differences, strict=True):
        for arm, value in (("baseline", baseline), (ODD, baseline + difference)):
            rows.append((arm, seed, f"{store} {arm} {seed}", "", NLL, value))
    return replace(TWO_ARMS, final=pd.DataFrame(rows, columns=TWO_ARMS.final.columns))


def with_records(results: Results, **changed) -> Results:
    """Give every trial what it would say of itself."""
    said = {
        "config": {"train.lr": 0.005, "compute.threads": 1},
        "inputs": {"tokenizer": "c956"},
        "data": {"digest": "4280"},
        "code": {"commit": "5783f51b48", "dirty": False},
        "environment": {"torch": "2.13.0"},
    }
    said = {part: values | changed.get(part, {}) for part, values in said.items()}
    trials = results.final.drop_duplicates("trial")[["arm", "seed", "trial"]].to_dict("records")
    return replace(
        results, trials=[{**trial, **said, "config": said["config"] | {"seed": trial["seed"]}} for trial in trials]
    )


def with_other_hashes(results: Results) -> Results:
    return replace(results, final=results.final.assign(trial="other " + results.final["trial"]))


def finding(a: Results, b: Results) -> str:
    return compare_arms(a, b, NLL).set_index("arm").loc[ODD, "finding"]


def test_a_store_beside_itself_is_the_same_in_everything():
    results = with_records(make_results())
    found = compare(results, results, METRICS, [BETTER])
    assert not len(found.asked)
    assert not len(found.recorded)
    assert len(found.trials) == 15
    assert not found.trials[["differing", "largest"]].to_numpy().any()
    assert set(found.arms["finding"]) == {"baseline", SAME_TRIALS}
    assert found.arms["gap"].isna().all()
    assert found.verdicts["agreement"].tolist() == ["same"]
    assert not found.disagreements
    assert not found.unmatched


def test_what_was_asked_and_recorded_otherwise_is_named():
    a = with_records(make_results())
    arms = {"baseline": "", "iar": "", "new": ""}
    b = replace(make_results(arms, (0, 1)), profile="smoke", settings={"train.lr": "0.004"})
    b = with_records(
        b,
        config={"train.lr": 0.004, "train.new": None},
        inputs={"tokenizer": "a123"},
        data={"digest": "9999"},
        code={"dirty": True},
        environment={"torch": "2.12.0"},
    )
    found = compare(a, b, METRICS)
    assert found.asked.set_index("name").T.to_dict("list") == {
        "profile": ["quick", "smoke"],
        "arms of one alone": ["rearranged, blocks, random", "new"],
        "seeds": ["0, 1, 2", "0, 1"],
        "--set train.lr": ["", "0.004"],
    }
    assert set(found.recorded["arms"]) == {"baseline, iar"}
    assert found.recorded.set_index(["what", "name"])[["a", "b"]].T.to_dict("list") == {
        ("setting", "train.lr"): ["0.005", "0.004"],
        ("setting", "train.new"): ["absent", "None"],
        ("input", "tokenizer"): ["c956", "a123"],
        ("input", "data"): ["4280", "9999"],
        ("code", "commit"): ["5783f51b48", "5783f51b48 with uncommitted changes"],
        ("environment", "torch"): ["2.13.0", "2.12.0"],
    }


def test_seeds_that_are_not_the_same_are_no_other_setting():
    a, b = (with_records(make_results(seeds=seeds)) for seeds in ((0, 1), (2, 3, 4)))
    assert not len(compare(a, b, METRICS).recorded)


def test_what_differs_in_some_arms_or_trials_alone_says_in_which():
    a, b = (with_records(make_results()) for _ in range(2))
    b.trials[4] = {**b.trials[4], "environment": {"torch": "2.12.0"}}
    (row,) = compare(a, b, METRICS).recorded.to_dict("records")
    assert row == {
        "what": "environment",
        "name": "torch",
        "a": "2.13.0",
        "b": "2.13.0, 2.12.0",
        "arms": b.trials[4]["arm"],
    }


@pytest.mark.parametrize(
    ("changed", "apart"),
    [
        ({}, ""),
        ({"environment": {"torch": "2.12.0"}}, "environment"),
        ({"code": {"commit": "f356518"}}, "code"),
        ({"code": {"dirty": True}, "environment": {"machine": "arm64"}}, "code, environment"),
    ],
)
def test_a_value_that_is_not_the_same_to_the_bit_is_found(changed, apart):
    a = with_records(make_results())
    b = with_records(make_results(), **changed)
    last, other = b.final.index[-1], b.final.index[0]
    b.final.loc[last, "value"] = np.nextafter(b.final.loc[last, "value"], 1)  # one bit
    b.final.loc[other, "value"] *= 1 + 1e-6
    trials = compare(a, b, METRICS).trials
    broken = trials[trials["differing"] > 0].set_index("trial")
    assert broken["differing"].to_dict() == {b.final.loc[other, "trial"]: 1, b.final.loc[last, "trial"]: 1}
    first = broken.loc[b.final.loc[other, "trial"]]
    assert first["largest"] == pytest.approx(1e-6, rel=1e-5)
    assert (first["metric"], first["arm"], first["seed"]) == ("fd/classifier@2k", "baseline", 0)
    assert first["values"] == 16
    assert set(trials["apart"]) == {apart}
    assert compare(a, b, METRICS).disagreements == {"trial": 2}


def test_a_trial_that_diverged_in_one_store_differs_and_one_that_did_in_both_does_not():
    a, b = make_results(), make_results()
    lost = a.final["trial"] == a.final["trial"].iloc[-1]
    b.final.loc[lost, "value"] = np.nan
    trials = compare(a, b, METRICS).trials
    assert trials["differing"].tolist() == [0] * 14 + [16]
    assert trials["largest"].max() == np.inf
    # Where every trial of a store diverged, fewer metrics are known to be lost.
    shorter = replace(b, final=b.final[~lost | (b.final["metric"] == NLL)])
    assert not compare(b, shorter, METRICS).trials["differing"].any()


def test_an_arm_of_two_names_is_one_trial():
    a = make_results()
    twin = a.final[a.final["arm"] == "iar"].assign(arm="twin")
    a = replace(a, arms={**a.arms, "twin": ""}, final=pd.concat([a.final, twin], ignore_index=True))
    assert len(compare(a, a, METRICS).trials) == 15


def test_findings_of_arms():
    few, noisy, seeds = [0.1, 0.2, 0.3], [0.12, 0.19, 0.33], [0, 1, 2]
    a = made(few, seeds, "A")
    assert finding(a, made(noisy, [3, 4, 5], "B")) == AGREE
    assert finding(a, made([2.1, 2.2, 2.3], seeds, "B")) == DIFFER
    assert finding(a, made([0.2], [3], "B")) == TOO_FEW
    assert finding(a, made([], [], "B")) == TOO_FEW
    assert finding(a, made(few, seeds, "B")) == "equal"
    assert finding(made([0.1], [0], "A"), made([0.1], [0], "B")) == "equal"
    assert finding(made([0.0] * 3, seeds, "A"), made([0.0] * 2, [7, 8], "B")) == "equal"
    assert finding(made([0.0] * 3, seeds, "A"), made([0.5] * 2, [7, 8], "B")) == "undecided"
    assert finding(a, made([0.1, np.nan, 0.3], [3, 4, 5], "B")) == "undecided"
    assert finding(a, made([0.1, np.inf, 0.3], [3, 4, 5], "B")) == "undecided"


def test_trials_that_both_have_are_not_tested():
    both = made([0.1, 0.2, 0.3], [0, 1, 2])
    more = made([0.1, 0.2, 0.3, 9.0, 9.1], [0, 1, 2, 3, 4])
    assert finding(both, more) == finding(more, both) == SAME_TRIALS
    other = made([0.1, 0.2, 0.3, 0.12, 0.22], [0, 1, 2, 5, 6])
    row = compare_arms(more, other, NLL).set_index("arm").loc[ODD]
    assert (row["shared"], row["a_pairs"], row["b_pairs"]) == (3, 5, 5)
    # Of what they do not share alone.
    assert row["gap"] == pytest.approx(0.17 - 9.05)
    assert row["finding"] == DIFFER
    # The same hash with other values is not the same trial.
    assert finding(both, made([0.11, 0.19, 0.31], [0, 1, 2])) == AGREE


def test_another_baseline_is_not_compared():
    a, b = make_results(), replace(make_results(), beside={"iar": "random"})
    found = compare_arms(a, b, NLL).set_index("arm")["finding"]
    assert found["iar"] == "other baseline"
    assert found["blocks"] == SAME_TRIALS


def test_findings_are_corrected_for_the_number_of_arms():
    a, b = make_results(seeds=(0, 1, 2)), with_other_hashes(make_results(seeds=(0, 1, 2)))
    rng = np.random.default_rng(0)
    for results in (a, b):
        results.final["value"] += 0.1 * rng.normal(size=len(results.final))
    table = compare_arms(a, b, NLL)
    tested = table["p"].notna()
    assert tested.sum() == 4
    assert (table["p_holm"][tested] >= table["p"][tested]).all()
    assert ((table["finding"] == DIFFER) == (table["p_holm"] < 0.05)).all()


def test_another_metric_is_named_and_not_compared():
    a, b = make_results(), make_results()
    b.final["metric"] = b.final["metric"].str.replace("@2k", "@10k")
    found = compare(a, b, (*METRICS, "score"))
    assert found.unmatched == {"fd": ("fd/classifier@2k", "fd/classifier@10k"), "score": (None, None)}
    assert set(found.arms["metric"]) == {NLL}


def test_verdicts_disagree_only_where_they_are_opposite():
    a, b = make_results(), with_other_hashes(make_results())
    assert compare(a, b, METRICS, [BETTER]).verdicts.loc[0, ["a", "b"]].tolist() == ["better"] * 2
    one_seed = replace(b, final=b.final[b.final["seed"] == 0])
    found = compare(a, one_seed, METRICS, [BETTER])
    assert found.verdicts.loc[0, ["a", "b", "agreement"]].tolist() == ["better", "undecided", "differ"]
    assert not found.disagreements
    iar = (b.final["arm"] == "iar") & (b.final["metric"] == "fd/classifier@2k")
    b.final.loc[iar, "value"] += 30 + 0.1 * b.final.loc[iar, "seed"]
    found = compare(a, b, METRICS, [BETTER])
    assert found.verdicts.loc[0, "agreement"] == "opposite"
    assert found.disagreements == {"arm": 1, "verdict": 1}


values = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
samples = st.lists(values, min_size=0, max_size=4)


@settings(max_examples=40, deadline=None)
@given(samples, samples, st.integers(0, 3), st.booleans())
def test_swapping_the_stores_turns_the_gap_around_and_nothing_else(x, y, later, same_store):
    a = made(x, range(len(x)), "A")
    b = made(y, range(later, later + len(y)), "A" if same_store else "B")
    there, back = (compare(*both, [NLL]) for both in ((a, b), (b, a)))
    assert there.trials[["trial", "differing", "largest"]].equals(
        back.trials.set_index("trial").loc[there.trials["trial"]].reset_index()[["trial", "differing", "largest"]]
    )
    assert there.disagreements == back.disagreements
    if not len(there.arms):
        assert not len(back.arms)
        return
    one, other = (found.arms.set_index("arm") for found in (there, back))
    assert one["finding"].equals(other["finding"])
    for name, turned in (("gap", "gap"), ("gap_low", "gap_high"), ("gap_high", "gap_low")):
        np.testing.assert_allclose(one[name].astype(float), -other[turned].astype(float), atol=1e-9)
    np.testing.assert_allclose(one["p_holm"].astype(float), other["p_holm"].astype(float), rtol=1e-6)
    assert one["a_mean"].equals(other["b_mean"].rename("a_mean"))


@settings(max_examples=20, deadline=None)
@given(samples.filter(len))
def test_a_store_agrees_with_itself_whatever_its_values(x):
    results = made(x, range(len(x)))
    found = compare(results, results, [NLL])
    assert not found.disagreements
    assert found.arms["finding"].tolist() == ["baseline", SAME_TRIALS]


@given(st.floats(), st.floats())
def test_the_relative_difference_is_0_for_the_same_bits_alone_and_has_no_direction(x, y):
    found = float(relative_difference(x, y))
    assert found == relative_difference(y, x)
    assert (found == 0) == (x == y or (np.isnan(x) and np.isnan(y)))
    assert 0 <= found <= 2 or found == np.inf


def store(folder, *studies) -> Workspace:
    for study in studies:
        write_json(folder / "runs" / "studies" / f"{study}.json", {})
    return Workspace(folder)


def test_studies_of_one_store_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "iar_study.evidence.comparison.load_results", lambda _, study: with_other_hashes(make_results(study=study))
    )
    a, b = store(tmp_path / "a", "components", "mine"), store(tmp_path / "b", "components", "your study", "z")
    found = compare_stores(a, b, [], {"training": METRICS})
    assert [comparison.study for comparison in found.both] == ["components"]
    assert (found.only_a, found.only_b) == (["mine"], ["your study", "z"])
    assert found.agree
    assert compare_stores(a, b, [], {"training": METRICS}, "components").only_a == []
    with pytest.raises(InputError, match="study 'mine' is not in B; of those in both, known: components"):
        compare_stores(a, b, [], {"training": METRICS}, "mine")
    with pytest.raises(InputError, match="'componets' is not in A and B; of those in both, did you mean 'components'"):
        compare_stores(a, b, [], {"training": METRICS}, "componets")
    with pytest.raises(InputError, match="A has components, mine and B has nothing"):
        compare_stores(a, store(tmp_path / "c"), [], {"training": METRICS})


def test_a_study_that_cannot_be_read_does_not_hide_the_others(tmp_path, monkeypatch):
    def load(workspace, study):
        if study == "old" and workspace.root.name == "b":
            raise InputError("was run here by an older version")
        return make_results(study=study)

    monkeypatch.setattr("iar_study.evidence.comparison.load_results", load)
    a, b = (store(tmp_path / name, "components", "old") for name in ("a", "b"))
    found = compare_stores(a, b, [], {"training": METRICS})
    assert found.unread == {"old": "in B: was run here by an older version"}
    with pytest.raises(InputError, match="in B: was run here by an older version"):
        compare_stores(a, b, [], {"training": METRICS}, "old")


def test_stores_agree_where_all_studies_do():
    a, b = make_results(), make_results()
    b.final.loc[0, "value"] += 1
    fine, broken = (compare(*both, METRICS) for both in ((a, a), (a, b)))
    assert Stores([fine, fine]).agree
    assert not Stores([fine, broken]).agree
