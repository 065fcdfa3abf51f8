from itertools import product
from math import log

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from iar_study.errors import InputError
from iar_study.evidence.statistics import (
    COMPARISON_COLUMNS,
    Effect,
    SharedSpread,
    compare_with_baseline,
    holm,
    leave_one_out,
    mean_interval,
    paired_differences,
    power,
    time_to_target,
)

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
    low, high = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    found = mean_interval(values)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((values.mean(), low, high, 7))


def test_mean_interval_by_hand():
    found = mean_interval([1.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 12.7062047, 2 + 12.7062047))


def test_mean_interval_of_little():
    one, none = mean_interval([4.0, np.nan]), mean_interval([])
    assert (one.mean, one.n) == (4, 1)
    assert np.isnan([one.low, one.high, none.mean, none.low]).all()
    assert none.n == 0


def test_paired_interval_is_that_of_scipy():
    rng = np.random.default_rng(1)
    base, arm = rng.normal(size=(2, 6))
    row = compare(base=base, arm=arm).loc["arm"]
    interval = stats.ttest_rel(arm, base).confidence_interval(0.95)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert row["difference"] == pytest.approx((arm - base).mean())
    assert row["mean"] == pytest.approx(arm.mean())
    assert row["p"] == pytest.approx(stats.ttest_rel(arm, base).pvalue)


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


def test_one_seed_is_undecided():
    row = compare(base=[9.0], arm=[1.0]).loc["arm"]
    assert (row["finding"], row["difference"]) == ("undecided", -8)
    assert np.isnan(row["difference_low"])


def test_differences_without_spread_are_undecided():
    base = [0.3, 0.7, 1.1]
    row = compare(base=base, arm=[value - 0.1 for value in base]).loc["arm"]
    assert row["finding"] == "undecided"
    assert row["difference"] == pytest.approx(-0.1)
    assert row[["p", "detectable"]].isna().all()


@pytest.mark.parametrize(
    ("base", "arm", "finding"),
    [
        ([0.3, 0.7, 1.1], [0.3, 0.7, 1.1], "equal"),
        ([0.3], [0.3], "equal"),
        ([0.3, 0.7], [0.1 + 0.2, 0.7], "equal"),  # rounding
        ([0.3, 0.7], [0.3 + 1e-9, 0.7], "undecided"),
        ([0.0, 0.0], [0.0, 1e-300], "undecided"),
        ([0.3, 0.7], [0.3, None], "undecided"),  # a lost seed
        ([0.3, None], [0.3, 0.7], "undecided"),
        ([0.3, 0.7], [0.3, np.nan], "undecided"),
        ([0.3, np.nan], [0.3, np.nan], "undecided"),
        ([None], [None], "undecided"),
    ],
)
def test_the_same_numbers_are_equal(base, arm, finding):
    assert compare(base=base, arm=arm).loc["arm", "finding"] == finding


def test_a_table_has_all_columns_and_the_order_of_arms():
    table = compare(base=[1.0, 2.0], b=[1.0, 3.0], a=[2.0, 2.5])
    assert tuple(table.columns) == COMPARISON_COLUMNS
    assert table.index.tolist() == ["base", "b", "a"]
    assert table.loc["base", ["difference", "p", "least", "detectable"]].isna().all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_diverged_trial_keeps_its_arm_from_being_called_better(broken):
    table = compare(base=[3.0, 3.1, 3.2], arm=[1.0, 1.11, broken], other=[1.0, 1.11, 1.22])
    assert table.loc["arm", ["n", "not_finite", "pairs", "finding"]].tolist() == [2, 1, 2, "undecided"]
    assert table.loc["other", "finding"] == "better"
    of_baseline = compare(base=[3.0, 3.1, broken], arm=[1.0, 1.11, 1.2])
    assert of_baseline.loc["arm", "finding"] == "undecided"


def test_missing_arms_are_shown():
    table = compare_with_baseline(tidy(base=[1.0, 2.0]), NLL, "base", ["base", "absent"])
    assert table.loc["absent", ["n", "pairs", "finding"]].tolist() == [0, 0, "undecided"]
    table = compare_with_baseline(tidy(arm=[1.0, 2.0]), NLL, "base", ["base", "arm"])
    assert table["finding"].tolist() == ["baseline", "undecided"]
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


def test_holm_is_the_closed_test_of_bonferroni():
    """Adjusted p: the largest Bonferroni p among all subfamilies that hold the hypothesis."""
    for p in np.random.default_rng(5).uniform(0, 0.3, (20, 4)):
        subfamilies = [np.array(held, dtype=bool) for held in product([0, 1], repeat=4) if any(held)]
        closed = [max(min(1, held.sum() * p[held].min()) for held in subfamilies if held[i]) for i in range(4)]
        assert holm(p) == pytest.approx(closed)


def test_holm_leaves_out_what_was_not_tested():
    p = np.array([[np.nan, 0.02, 0.01], [np.nan, np.nan, np.nan], [0.9, 0.8, 0.7]])
    assert holm(p) == pytest.approx(np.array([[np.nan, 0.02, 0.02], [np.nan] * 3, [1, 1, 1]]), nan_ok=True)


@pytest.mark.parametrize(("pairs", "difference"), [(2, 8.0), (3, 2.0), (5, 1.0), (10, 0.5)])
def test_power_is_the_share_that_is_found(pairs, difference):
    differences = np.random.default_rng(8).normal(-difference * 3, 3, (20_000, pairs))
    found = (stats.ttest_1samp(differences, 0, axis=-1).pvalue < 0.05).mean()
    assert power(difference * 3, 3, pairs) == pytest.approx(found, abs=0.015)
    assert power(-difference * 3, 3, pairs) == pytest.approx(power(difference, 1, pairs))


def test_power_at_the_ends():
    assert power(0, 1, 5) == pytest.approx(0.05)
    assert power(100, 1, 1) == 0
    with pytest.raises(InputError, match="above 0"):
        power(1, 0, 5)


def test_the_detectable_difference_is_found_in_four_of_five_studies():
    base, arm = np.random.default_rng(9).normal(size=(2, 4))
    row = compare(base=base, arm=arm).loc["arm"]
    assert power(row["detectable"], (arm - base).std(ddof=1), 4) == pytest.approx(0.8)


FD = "fd/classifier@2k"


def test_fd_is_compared_by_the_logs_of_ratios():
    base, arm = np.array([2.0, 3.0, 5.0]), np.array([1.8, 2.9, 4.2])
    row = compare(FD, base=base, arm=arm).loc["arm"]
    interval = stats.ttest_rel(np.log(arm), np.log(base)).confidence_interval(0.95)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert row["difference"] == pytest.approx(np.log(arm / base).mean())
    assert row["mean"] == pytest.approx(arm.mean())
    assert compare(FD, base=100 * base, arm=100 * arm).loc["arm", "difference"] == pytest.approx(row["difference"])
    assert compare(FD, base=base, arm=[0.0, 2.9, 4.2]).loc["arm", ["not_finite", "finding"]].tolist() == [
        1,
        "undecided",
    ]


@pytest.mark.parametrize(
    ("ratios", "finding"),
    [
        ([0.95, 0.90, 0.92, 0.93], "better"),
        ([1.10, 1.15, 1.12, 1.09], "worse"),
        ([1.001, 0.999, 1.002, 0.998], "equivalent"),
        ([0.985, 0.987, 0.984, 0.986], "equivalent"),  # other than 0, and too little to matter
        ([0.8, 1.2, 0.9, 1.1], "undecided"),
        ([0.975, 0.965, 0.97, 0.969], "better"),  # about 3%: beyond the margin or not cannot be told
    ],
)
def test_the_four_answers(ratios, finding):
    base = np.array([2.0, 2.1, 1.9, 2.2])
    assert compare(FD, base=base, arm=base * ratios).loc["arm", "finding"] == finding


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=8), st.floats(0.01, 0.2))
def test_equivalence_is_two_one_sided_tests_of_scipy(logs, margin):
    sample = np.array(logs)
    effect = Effect.of(sample, level=1.0)
    if not effect.errors:
        assert effect.finding("lower", margin) == "undecided"
        return
    above = stats.ttest_1samp(sample, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(sample, margin, alternative="less").pvalue
    other = stats.ttest_1samp(sample, 0).pvalue
    if min(abs(max(above, below) - 0.05), abs(other - 0.05)) < 1e-9:
        return
    expected = "equivalent" if max(above, below) < 0.05 else "undecided"
    if expected == "undecided" and other < 0.05:
        expected = "better" if sample.mean() < 0 else "worse"
    assert effect.finding("lower", margin) == expected


def test_a_spread_that_is_shared_widens_and_never_narrows():
    """An arm whose seeds agree by luck is not called on that luck; a noisy one keeps its own spread."""
    rng = np.random.default_rng(0)
    base = np.array([3.0, 3.1, 3.2, 3.3])
    lucky, noisy = base + np.array([0.101, 0.1, 0.099, 0.1]), base + np.array([0.9, -0.7, 0.8, -0.6])
    others = {f"a{i}": base + rng.normal(0, 0.3, 4) for i in range(4)}
    alone, among = compare(base=base, lucky=lucky), compare(base=base, lucky=lucky, **others)
    assert among.loc["lucky", "p"] > alone.loc["lucky", "p"]
    width = [table.loc["lucky", "difference_high"] - table.loc["lucky", "difference"] for table in (alone, among)]
    assert width[1] > width[0]
    alone, among = compare(base=base, noisy=noisy), compare(base=base, noisy=noisy, **others)
    assert among.loc["noisy", "difference_low"] <= alone.loc["noisy", "difference_low"] + 1e-12


def test_the_shared_spread_is_smyths():
    """The prior of limma's fitFDist for one number of degrees of freedom, solved here by bisection of its equations."""
    from scipy.special import digamma, polygamma

    variances, freedom = np.array([0.02, 0.5, 0.11, 1.7, 0.06]), 4
    samples = [np.array([-1, 1, -1, 1, 0.0]) * variance**0.5 for variance in variances]  # each of just that variance
    z = np.log(variances)
    e = z - digamma(freedom / 2) + np.log(freedom / 2)
    wanted = e.var(ddof=1) - polygamma(1, freedom / 2)
    low, high = 1e-6, 1e6
    for _ in range(200):
        half = (low * high) ** 0.5
        low, high = (half, high) if polygamma(1, half) > wanted else (low, half)
    found = SharedSpread.of(samples)
    assert found.freedom == pytest.approx(2 * half, rel=1e-6)
    assert found.variance == pytest.approx(np.exp(e.mean() + digamma(half) - np.log(half)), rel=1e-6)
    moderated, free = found.moderated(0.02, freedom)
    assert moderated == pytest.approx((2 * half * found.variance + 4 * 0.02) / (2 * half + 4))
    assert free == pytest.approx(min(2 * half + 4, 20))


def test_spreads_that_are_alike_are_one():
    sample = np.array([0.0, 1.0, 2.0])
    found = SharedSpread.of([sample, sample + 3, 1.01 * sample])
    assert np.isinf(found.freedom)
    assert found.moderated(5.0, 2) == (found.variance, 6.0)
    assert SharedSpread.of([sample]) is None
    assert SharedSpread.of([sample, np.ones(3), np.array([1.0])]) is None


def test_several_conditions_by_hand():
    """Two conditions, two seeds: means 0.1 and 0.3, of seeds 0.1 and 0.3; by the formula for the variance of both."""
    frame = pd.DataFrame({"one": [0.0, 0.2], "two": [0.2, 0.4]})
    effect = Effect.pooled(frame)
    assert effect.mean == pytest.approx(0.2)
    part = 0.02 / 2  # the variance of (0.1, 0.3) is 0.02, over 2; that of seeds as much
    ((error, freedom),) = effect.errors
    assert error == pytest.approx((2 * part) ** 0.5)
    assert freedom == pytest.approx((2 * part) ** 2 / (2 * part**2))
    low, high = effect.interval()
    half = stats.t.ppf(0.975, freedom) * error
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half))
    assert effect.pairs == 4


def test_of_one_condition_or_one_seed_no_interval_is_told():
    assert Effect.pooled(pd.DataFrame({"one": [0.1, 0.2]})).errors == ()
    assert Effect.pooled(pd.DataFrame({"one": [0.1], "two": [0.2]})).errors == ()
    assert Effect.pooled(pd.DataFrame({"one": [0.1, np.nan], "two": [np.nan, 0.2]})).mean == pytest.approx(0.15)
    assert np.isnan(Effect.pooled(pd.DataFrame()).mean)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_leave_one_out_is_every_mean_without_one(values):
    means = [np.mean(values[:i] + values[i + 1 :]) for i in range(len(values))]
    assert leave_one_out(values) == pytest.approx((min(means), max(means)), abs=1e-9)


def test_what_the_margin_is_in_logs():
    base = np.array([2.0, 2.1, 1.9])
    row = compare_with_baseline(tidy(FD, base=base, arm=1.02 * base + [1e-4, 0, 0]), FD, "base", ["base", "arm"], 0.01)
    assert row.loc["arm", "finding"] == "worse"  # 2% is beyond 1%
    assert row.loc["arm", "difference"] == pytest.approx(log(1.02), abs=1e-3)


def curve(metric=NLL, **arms):
    """Return the tidy frame of arm=[values of seed 0 at steps 0, 100, ..., those of seed 1, ...]."""
    rows = [
        (arm, seed, "hash", 100 * i, metric, value)
        for arm, curves in arms.items()
        for seed, values in enumerate(curves)
        for i, value in enumerate(values)
    ]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "trial", "step", "metric", "value"])
    return frame.sample(frac=1, random_state=0)  # the order of rows must not matter


def test_time_to_target_by_hand():
    frame = curve(base=[[9, 5, 4, 3], [8, 5, 4, 2]], fast=[[9, 4, 2, 1], [9, 2, 1, 1]], slow=[[9, 6, 5, 4]] * 2)
    table = time_to_target(frame, NLL, "base", ["base", "fast", "slow"])
    assert table.loc["fast", ["n", "reached", "mean", "share"]].tolist() == [2, 2, 125, pytest.approx(125 / 300)]
    interval = mean_interval([150, 100])
    assert table.loc["fast", ["low", "high"]].tolist() == pytest.approx([interval.low, interval.high])
    assert table.loc["base", ["n", "reached", "mean", "share"]].tolist() == [2, 2, 300, 1]
    assert table.loc["slow", ["n", "reached"]].tolist() == [2, 0]
    assert table.loc["slow", ["mean", "low", "high", "share"]].isna().all()


def test_time_to_target_goes_up_where_more_is_better():
    table = time_to_target(curve(ACCURACY, base=[[0, 1, 2]], arm=[[0, 4, 4]]), ACCURACY, "base", ["arm"])
    assert table.loc["arm", "mean"] == 50
    assert np.isnan(table.loc["arm", "low"])


def test_time_to_target_of_a_seed_that_never_reaches_it_is_censored():
    table = time_to_target(curve(base=[[9, 3], [9, 3]], arm=[[9, 1], [9, 4]]), NLL, "base", ["arm", "absent"])
    assert table.loc["arm", ["n", "reached"]].tolist() == [2, 1]
    assert np.isnan(table.loc["arm", "mean"])
    assert table.loc["absent", ["n", "reached"]].tolist() == [0, 0]


def test_time_to_target_of_noisy_and_broken_curves():
    frame = curve(base=[[9, 5, 4]] * 4, arm=[[9, 4, 6], [9, np.nan, 4], [9, np.nan, np.nan], [3, 9, 9]])
    assert time_to_target(frame, NLL, "base", ["arm"]).loc["arm", ["n", "reached"]].tolist() == [4, 3]
    only = frame[frame["seed"].isin([0, 3])]
    assert time_to_target(only, NLL, "base", ["arm"]).loc["arm", "mean"] == (100 + 0) / 2  # the first crossing
    table = time_to_target(curve(base=[[9, np.nan]], arm=[[9, 1]]), NLL, "base", ["arm"])
    assert table.loc["arm", ["n", "reached"]].tolist() == [1, 0]


@pytest.mark.parametrize(("metric", "message"), [("val/token_nl", "did you mean"), ("train/loss", "no target")])
def test_time_to_target_needs_a_metric_with_a_direction(metric, message):
    with pytest.raises(InputError, match=message):
        time_to_target(curve(base=[[1]]), metric, "base", ["base"])
