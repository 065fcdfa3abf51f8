import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from iar_study.errors import InputError
from iar_study.study.statistics import compare_with_baseline, mean_interval, paired_differences

NLL, ACCURACY = "val/token_nll", "val/token_accuracy"
FLIPPED = {"better": "worse", "worse": "better"}


def tidy(metric=NLL, **arms):
    """Return the tidy frame of arm=[value of seed 0, of seed 1, ...]; None: no such trial."""
    rows = [(arm, seed, metric, v) for arm, vs in arms.items() for seed, v in enumerate(vs) if v is not None]
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"])


def compare(metric=NLL, **arms):
    return compare_with_baseline(tidy(metric, **arms), metric, "base", list(arms))


def test_mean_interval_is_students():
    values = np.random.default_rng(0).normal(3, 2, 7)
    low, high = stats.t.interval(0.9, 6, values.mean(), stats.sem(values))
    found = mean_interval(values, confidence=0.9)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((values.mean(), low, high, 7))


def test_mean_interval_by_hand():
    found = mean_interval([1.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 12.7062047, 2 + 12.7062047))


def test_mean_interval_of_little():
    one, none = mean_interval([4.0, np.nan]), mean_interval([])
    assert (one.mean, one.n) == (4, 1)
    assert np.isnan([one.low, one.high, none.mean, none.low]).all()
    assert none.n == 0


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_mean_interval_refuses_percent(confidence):
    with pytest.raises(InputError, match="between 0 and 1"):
        mean_interval([1, 2], confidence)


def test_paired_interval_is_that_of_scipy():
    rng = np.random.default_rng(1)
    base, arm = rng.normal(size=(2, 6))
    row = compare(base=base, arm=arm).loc["arm"]
    interval = stats.ttest_rel(arm, base).confidence_interval(0.95)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert row["difference"] == pytest.approx((arm - base).mean())
    assert row["mean"] == pytest.approx(arm.mean())


@pytest.mark.parametrize(("metric", "finding"), [(NLL, "better"), (ACCURACY, "worse"), ("train/loss", "no direction")])
def test_direction_is_the_metrics(metric, finding):
    table = compare(metric, base=[3.0, 3.5, 4.0], arm=[2.0, 2.51, 2.99])
    assert table["finding"].tolist() == ["baseline", finding]


def test_pairing_uses_shared_seeds_alone():
    row = compare(base=[1.0, 2.0, 3.0, None], arm=[None, 1.5, 2.4, 100.0]).loc["arm"]
    assert (row["n"], row["pairs"]) == (3, 2)
    assert row["difference"] == pytest.approx(-0.55)


def test_pairing_is_by_seed_not_by_order_of_rows():
    frame = tidy(base=[1.0, 5.0, 9.0], arm=[0.9, 4.89, 8.9])
    table = compare_with_baseline(frame.sample(frac=1, random_state=3), NLL, "base", ["base", "arm"])
    pd.testing.assert_frame_equal(table, compare_with_baseline(frame, NLL, "base", ["base", "arm"]))
    assert table.loc["arm", "finding"] == "better"


def test_one_seed_is_inconclusive():
    row = compare(base=[9.0], arm=[1.0]).loc["arm"]
    assert (row["finding"], row["difference"]) == ("inconclusive", -8)
    assert np.isnan(row["difference_low"])


@pytest.mark.parametrize("shift", [0, -0.1])
def test_differences_without_spread_are_inconclusive(shift):
    base = [0.3, 0.7, 1.1]
    row = compare(base=base, arm=[value + shift for value in base]).loc["arm"]
    assert row["finding"] == "inconclusive"
    assert row["difference"] == pytest.approx(shift)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_diverged_trial_keeps_its_arm_from_being_called_better(broken):
    table = compare(base=[3.0, 3.1, 3.2], arm=[1.0, 1.11, broken], other=[1.0, 1.11, 1.22])
    assert table.loc["arm", ["n", "not_finite", "pairs", "finding"]].tolist() == [2, 1, 2, "inconclusive"]
    assert table.loc["other", "finding"] == "better"
    of_baseline = compare(base=[3.0, 3.1, broken], arm=[1.0, 1.11, 1.2])
    assert of_baseline.loc["arm", "finding"] == "inconclusive"


def test_missing_arms_are_shown():
    table = compare_with_baseline(tidy(base=[1.0, 2.0]), NLL, "base", ["base", "absent"])
    assert table.loc["absent", ["n", "pairs", "finding"]].tolist() == [0, 0, "inconclusive"]
    table = compare_with_baseline(tidy(arm=[1.0, 2.0]), NLL, "base", ["base", "arm"])
    assert table["finding"].tolist() == ["baseline", "inconclusive"]
    assert compare_with_baseline(tidy(base=[]), NLL, "base", ["base"])["n"].tolist() == [0]


@pytest.mark.parametrize(
    ("metric", "baseline", "message"),
    [("val/token_nl", "base", "did you mean 'val/token_nll'"), (NLL, "bas", "did you mean 'base'")],
)
def test_unknown_names(metric, baseline, message):
    with pytest.raises(InputError, match=message):
        compare_with_baseline(tidy(base=[1.0]), metric, baseline, ["base"])


def test_a_trial_twice_is_refused():
    frame = pd.concat([tidy(base=[1.0, 2.0])] * 2)
    with pytest.raises(InputError, match="arm 'base', seed 0 has more than one value"):
        compare_with_baseline(frame, NLL, "base", ["base"])


def test_paired_differences():
    frame = paired_differences(tidy(base=[1.0, 2.0, 3.0], arm=[2.0, 4.0, None]), NLL, "base", ["arm"])
    assert frame["arm"].tolist()[:2] == [1, 2]
    assert np.isnan(frame["arm"][2])


whole_numbers = st.lists(st.tuples(*[st.integers(-1000, 1000)] * 2), min_size=2, max_size=6)


@settings(max_examples=30, deadline=None)
@given(whole_numbers, st.integers(-1000, 1000))
def test_a_shift_of_both_changes_nothing(pairs, shift):
    base, arm = np.array(pairs, dtype=float).T
    before, after = compare(base=base, arm=arm).loc["arm"], compare(base=base + shift, arm=arm + shift).loc["arm"]
    assert after["finding"] == before["finding"]
    assert after["difference_low"] == pytest.approx(before["difference_low"])


@settings(max_examples=30, deadline=None)
@given(whole_numbers)
def test_the_other_sign_is_the_other_finding(pairs):
    base, arm = np.array(pairs, dtype=float).T
    finding = compare(base=base, arm=arm).loc["arm", "finding"]
    assert compare(base=-base, arm=-arm).loc["arm", "finding"] == FLIPPED.get(finding, finding)
    assert compare(base=arm, arm=base).loc["arm", "finding"] == FLIPPED.get(finding, finding)
    assert compare(ACCURACY, base=base, arm=arm).loc["arm", "finding"] == FLIPPED.get(finding, finding)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_false_findings_are_as_rare_as_promised(seeds):
    """Arms that do not differ from the baseline: 5% are called better or worse, half of them each."""
    noise = np.random.default_rng(7).normal(size=(2000, seeds))
    arms = {f"a{i}": row for i, row in enumerate(noise)}
    found = compare(base=np.zeros(seeds), **arms)["finding"].value_counts()
    assert 0.035 < (found["better"] + found["worse"]) / 2000 < 0.065
    assert 0.3 < found["better"] / (found["better"] + found["worse"]) < 0.7
