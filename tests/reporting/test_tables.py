import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iar_study.evaluation.metrics import Metric
from iar_study.evidence.rules import percent
from iar_study.evidence.statistics import power
from iar_study.reporting import tables
from iar_study.reporting.report import write_report
from tests.reporting.made_up import values_of
from tests.reporting.pages import Page, rendered

FD, NLL = "fd/classifier@2k", "val/token_nll"
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def plain(text):
    return text.replace(MINUS, "-").replace(",", "")


def numbers(text):
    return [float(found) for found in re.findall(r"[-+]?[\d.]+", plain(text))]


def per_seed(results, metric):
    rows = results.final[results.final["metric"] == metric]
    return rows.pivot(index="seed", columns="arm", values="value")


def differences_of(results, metric, arm):
    wide = per_seed(results, metric)
    return (wide[arm] - wide[results.baseline]).to_numpy()


def with_differences(results, metric, differences):
    """Give arms these differences from the baseline, seed by seed."""
    final = results.final.copy()
    base = per_seed(results, metric)[results.baseline]
    for arm, values in differences.items():
        final.loc[(final["metric"] == metric) & (final["arm"] == arm), "value"] = (base + values).to_numpy()
    return replace(results, final=final)


def bare(results, **changed):
    """Drop what takes long to draw and is not looked at."""
    return replace(results, **{"samples": {}, "reconstructions": {}, "positions": {}} | changed)


def both_pages(results, folder):
    path = write_report(results, folder)
    return Page(path.read_text()), Page(rendered(path.with_suffix(".md")))


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0312, "0.031"),
        (0.000999999, "<0.001"),
        (0.001, "0.001"),
        (0.00149, "0.0015"),
        (0.0, "<0.001"),
        (1e-300, "<0.001"),
        (0.5, "0.5"),
        (0.996, "1"),
        (1.0, "1"),
        (math.nan, DASH),
        (math.inf, DASH),
        (np.float64(0.25), "0.25"),
    ],
)
def test_p_text(p, text):
    assert tables.p_text(p) == text


@pytest.mark.parametrize("p", [0.0496, 0.049999, 0.0494, 0.05, 0.050001, 0.0504])
def test_p_text_keeps_the_side_of_the_level_that_a_p_is_on(p):
    assert (float(tables.p_text(p)) < 0.05) == (p < 0.05)


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (1234567.891, 1, "", "1,234,567.9"),
        (-1234.4, 0, "", "-1,234"),
        (0.25, 3, "+", "+0.250"),
        (-0.25, 3, "+", "-0.250"),
        (0.0, 3, "+", "0.000"),
        (-0.0, 3, "", "0.000"),
        (-0.0004, 3, "+", "0.000"),
        (0.0004, 3, "+", "0.000"),
        (-0.0006, 3, "+", "-0.001"),
        (math.nan, 3, "+", DASH),
        (math.inf, 3, "", DASH),
        (-math.inf, 3, "", DASH),
    ],
)
def test_number(value, digits, sign, text):
    # With a true minus sign, never a hyphen.
    assert tables.number(value, digits, sign) == text.replace("-", MINUS)


@pytest.mark.parametrize(
    ("low", "high", "digits", "text", "taken"),
    [
        (-0.25, 0.5, 2, "[-0.25, +0.50]", 2),
        (0.004, 0.5, 2, "[+0.004, +0.500]", 3),
        (-0.5, -0.004, 2, "[-0.500, -0.004]", 3),
        (1e-6, 2e-6, 2, "[+0.000001, +0.000002]", 6),
        (1e-12, 1.0, 2, "[0.000000000, +1.000000000]", 9),
        (0.0, 0.5, 2, "[0.00, +0.50]", 2),
        (0.0, 0.0, 2, "[0.00, 0.00]", 2),
        (math.nan, math.nan, 2, f"[{DASH}, {DASH}]", 2),
    ],
)
def test_interval_text(low, high, digits, text, taken):
    assert tables.interval_text(low, high, digits, "+") == (text.replace("-", MINUS), taken)


ABOUT = Metric("a metric", "lower", 2, "")


def test_a_difference_takes_the_digits_of_its_interval():
    row = pd.Series({"pairs": 3, "difference": -0.3, "difference_low": -0.596, "difference_high": -0.004})
    assert tables.difference_text(row, ABOUT) == (f"{MINUS}0.300", f"[{MINUS}0.596, {MINUS}0.004]")
    in_percent = replace(ABOUT, relative=True)
    assert tables.difference_text(row, in_percent) == (f"{MINUS}25.9%", f"[{MINUS}44.9%, {MINUS}0.4%]")
    row["pairs"] = 1
    assert tables.difference_text(row, ABOUT) == (f"{MINUS}0.30", "")
    assert tables.difference_text(row, in_percent) == (f"{MINUS}25.9%", "")


def test_every_table_of_comparisons_has_its_metrics_and_all_arms(results):
    found = tables.comparison_tables(results)
    assert [table["title"] for table in found] == ["Samples", "Predictions on held-out images"]
    keys = [[entry["key"] for entry in table["compared"]] for table in found]
    families = ("fd", "fd_inf", "kd", "precision", "recall", "coverage", "class_agreement")
    assert keys[0] == [f"{family}/classifier@2k" for family in families]
    predictions = ("token_nll", "token_accuracy", "calibration_error", "cluster_nll", "within_cluster_nll")
    assert keys[1] == [f"val/{name}" for name in (*predictions, "cluster_accuracy", "code_distance_if_wrong")]
    assert all([row["arm"] for row in table["rows"]] == list(results.arms) for table in found)
    assert [entry["about"].label for entry in found[0]["compared"]][2] == "KD (classifier, 2k)"


def test_a_table_leaves_out_what_was_not_measured(results):
    kept = results.final[results.final["metric"].isin([FD, "precision/classifier@2k"])]
    (table,) = tables.comparison_tables(replace(results, final=kept))
    assert [entry["key"] for entry in table["compared"]] == [FD, "precision/classifier@2k"]


def test_a_cell_tells_mean_difference_p_and_finding(results):
    rows = tables.comparison_tables(results)[0]["rows"]
    baseline, iar = rows[0]["cells"][0], rows[-1]["cells"][0]
    wide = per_seed(results, FD)
    half = stats.t.ppf(0.975, 2) * stats.sem(wide["baseline"])
    assert numbers(baseline["mean"]) == pytest.approx([wide["baseline"].mean(), half], abs=5e-4)
    assert {key: baseline[key] for key in ("difference", "interval", "p", "finding", "note")} == {
        "difference": "",
        "interval": "",
        "p": "",
        "finding": "baseline",
        "note": "",
    }
    logs = np.log(wide["iar"] / wide["baseline"])
    own = stats.ttest_1samp(logs, 0).confidence_interval()
    assert numbers(iar["difference"]) == pytest.approx([100 * np.expm1(logs.mean())], abs=0.06)  # percent
    low, high = numbers(iar["interval"])
    assert low <= 100 * np.expm1(own.low) + 0.06  # the wider of two
    assert high >= 100 * np.expm1(own.high) - 0.06
    assert (iar["p"], iar["finding"]) == ("<0.001", "better")


def test_the_design_tells_all_pairs_and_what_could_be_seen(results):
    shown = tables.design_tables(results)
    assert [table["about"].label for table in shown] == ["FD (classifier, 2k)", "token NLL"]
    assert [table["seeds"] for table in shown] == [[0, 1, 2]] * 2
    table = shown[1]
    assert [row["arm"] for row in table["rows"]] == list(results.arms)[1:]
    close = {"abs": 0.51e-4}
    for row in table["rows"]:
        values = differences_of(results, NLL, row["arm"])
        assert numbers(row["difference"]) == pytest.approx([values.mean()], **close)
        assert [numbers(pair)[0] for pair in row["pairs"]] == pytest.approx(list(values), **close)
        without = [np.delete(values, i).mean() for i in range(3)]
        assert numbers(row["without_one"].replace(" to ", " ")) == pytest.approx([min(without), max(without)], **close)
        low, high = numbers(row["interval"])
        (seen,) = numbers(row["detectable"])
        spread = (high - low) / 2 / stats.t.ppf(0.975, 2) * 3**0.5  # at least as wide as by its own three pairs
        assert power(seen, max(values.std(ddof=1), spread), pairs=3) > 0.75
    assert [row["finding"] for row in table["rows"]][2:] == ["worse", "better"]


def test_the_design_stands_in_both_pages(results, tmp_path):
    designs = tables.design_tables(results)
    results = bare(results, curves=results.curves[:0])
    for page in both_pages(results, tmp_path):
        shown = page.under("What these seeds can and cannot show")
        assert len(shown) == 2
        for rows, design in zip(shown, designs, strict=True):
            seeds = ["seed 0", "seed 1", "seed 2"]
            columns = ["spread", "mean", "95%", "without one pair", "p", "could be seen from", "finding"]
            assert rows[0] == ["arm", *seeds, *columns]
            told = ("spread", "difference", "interval", "without_one", "p", "detectable", "finding")
            assert rows[1:] == [[row["arm"], *row["pairs"], *(row[key] for key in told)] for row in design["rows"]]
        assert "find in 80% of studies" in page.words


def test_the_pairs_of_many_seeds_stand_in_one_cell(build, tmp_path):
    results = build(seeds=tuple(range(12)), arms={"baseline": "", "iar": ""})
    design, *_ = tables.design_tables(results)
    logs = np.log(values_of(results, FD, "iar") / values_of(results, FD, "baseline"))
    (row,) = design["rows"]
    assert row["pairs"] == [percent(value) for value in logs]
    assert row["spread"] == percent(logs.std(ddof=1)).lstrip("+")
    for page in both_pages(bare(results, curves=results.curves[:0]), tmp_path):
        shown, *_ = page.under("What these seeds can and cannot show")
        assert shown[0][1:3] == ["pairs", "spread"]
        assert shown[1][1] == ", ".join(row["pairs"])


def test_the_design_leaves_out_what_has_no_pairs(build, results):
    assert tables.design_tables(build(seeds=(0,))) == []
    assert tables.design_tables(replace(results, final=results.final[results.final["arm"] != "baseline"])) == []
    final = results.final
    lost = final[
        ~((final["arm"] == "iar") & (final["seed"] > 0)) & (final["arm"] != "random") & (final["metric"] != FD)
    ]
    (table,) = tables.design_tables(replace(results, final=lost))
    assert [row["arm"] for row in table["rows"]] == ["rearranged", "blocks"]


def test_the_design_of_differences_without_spread_has_no_p(results):
    same = with_differences(results, NLL, {"rearranged": np.zeros(3), "blocks": np.full(3, 0.25)})
    rows = {row["arm"]: row for row in tables.design_tables(same)[1]["rows"]}
    assert rows["rearranged"]["finding"] == "equal"
    assert rows["blocks"]["finding"] == "undecided"
    for arm in ("rearranged", "blocks"):
        assert [rows[arm][key] for key in ("p", "detectable")] == [DASH] * 2


STEPS = (0, 100, 200)
CURVES = {
    "baseline": [(4, 3, 2)] * 3,
    "soon": [(4, 2, 1), (4, 1, 1), (4, 3, 1)],
    "late": [(4, 3, 2), (4, 3, 1), (4, 3, 2.5)],
    "never": [(4, 4, 4)] * 3,
}


def with_curves(build, curves=CURVES, metric=NLL, steps=STEPS):
    """Return results with these curves: arm -> seed -> value at each step."""
    results = build(arms=dict.fromkeys(CURVES, ""))
    rows = [
        (arm, seed, "", step, metric, float(value))
        for arm, seeds in curves.items()
        for seed, values in enumerate(seeds)
        for step, value in zip(steps, values, strict=True)
    ]
    return replace(results, curves=pd.DataFrame(rows, columns=results.curves.columns), tokens_per_step=50_000)


def test_time_to_target_is_told_in_tokens_and_only_where_all_seeds_reach_it(build):
    (table,) = tables.target_tables(with_curves(build))
    assert table["about"].label == "token NLL"
    assert table["points"] == 3
    rows = {row["arm"]: row for row in table["rows"]}
    assert list(rows) == list(CURVES)
    assert rows["baseline"] == {
        "arm": "baseline",
        "tokens": "10.00",
        "interval": "[10.00, 10.00]",
        "share": "100%",
        "reached": "3 of 3",
    }
    # Steps 100, 66.7 and 150 of 200.
    steps = np.array([100, 200 / 3, 150])
    interval = stats.t.interval(0.95, 2, steps.mean(), stats.sem(steps))
    assert rows["soon"]["tokens"] == "5.28"
    assert numbers(rows["soon"]["interval"]) == pytest.approx([bound * 0.05 for bound in interval], abs=0.006)
    assert (rows["soon"]["share"], rows["soon"]["reached"]) == ("53%", "3 of 3")
    for arm, reached in (("late", "2 of 3"), ("never", "0 of 3")):
        assert rows[arm] == {"arm": arm, "tokens": "not reached", "interval": "", "share": "", "reached": reached}


def test_time_to_target_stands_in_both_pages(build, tmp_path):
    results = bare(with_curves(build))
    (table,) = tables.target_tables(results)
    for page in both_pages(results, tmp_path):
        (rows,) = page.under("How much training until the baseline")
        assert rows[0][1:3] == ["million tokens", "95%, t"]
        assert rows[0][4] == "seeds that reach it"
        assert rows[1:] == [list(row.values()) for row in table["rows"]]
        assert rows[3][1:] == ["not reached", "", "", "2 of 3"]
        assert "On straight lines between 3 evaluations." in page.words


def test_time_to_target_of_a_metric_that_grows(build):
    accuracies = {arm: [tuple(-v for v in values) for values in seeds] for arm, seeds in CURVES.items()}
    results = with_curves(build, accuracies, metric=f"class_agreement/{FD.partition('/')[2]}")
    assert tables.target_tables(results) == []  # of the metrics of the conclusion alone
    results = with_curves(build, metric=FD)
    (table,) = tables.target_tables(results)
    assert (table["about"].label, [row["tokens"] for row in table["rows"]][:2]) == (
        "FD (classifier, 2k)",
        ["10.00", "5.28"],
    )


def test_time_to_target_needs_curves_of_a_training(build):
    whole = with_curves(build)
    once = replace(whole, curves=whole.curves[whole.curves["step"] == 200])
    for results in (once, replace(whole, curves=whole.curves[:0])):
        assert tables.target_tables(results) == []
    # The steps of near codes are ranks: no training, though there are curves.
    near = with_curves(build, metric="same_cluster/feature_distance")
    near = replace(near, final=near.final.replace({"metric": {FD: "same_cluster/feature_distance"}}), kind="near-codes")
    assert [key for _, key in tables.headline(near)] == ["same_cluster/feature_distance", None]
    assert tables.target_tables(near) == []


def test_time_to_target_of_one_seed_has_no_interval(build):
    one = {arm: seeds[:1] for arm, seeds in CURVES.items()}
    (table,) = tables.target_tables(with_curves(build, one))
    assert [row["interval"] for row in table["rows"]] == [""] * 4
    assert [row["tokens"] for row in table["rows"]] == ["10.00", "5.00", "10.00", "not reached"]


@pytest.mark.parametrize("gone", ["never", "baseline"])
def test_time_to_target_does_not_judge_what_was_not_run(build, gone):
    curves = {arm: seeds for arm, seeds in CURVES.items() if arm != gone}
    (table,) = tables.target_tables(with_curves(build, curves))
    rows = {row["arm"]: row for row in table["rows"]}
    assert rows[gone]["tokens"] != "not reached"


def test_time_to_target_has_no_target_where_the_baseline_diverged(build):
    results = with_curves(build)
    lost = (results.curves["arm"] == "baseline") & (results.curves["seed"] == 1) & (results.curves["step"] > 100)
    missing = pd.DataFrame([("baseline", 1, "diverged", 150)], columns=results.missing.columns)
    (table,) = tables.target_tables(replace(results, curves=results.curves[~lost], missing=missing))
    soon = table["rows"][1]
    # Seed 1 would reach 3, the value at step 100, at step 33.
    assert soon["tokens"] in (DASH, "not reached", "6.25")


MEMBERS = ("classifier-0a0a0a0a", "classifier-1b1b1b1b", "components-2c2c2c2c")


def by_a_set(results, tilt):
    """As if FD had been measured by three evaluators; `tilt`: arm -> log ratios that each adds, which sum to 0."""
    rows = results.final[results.final["metric"] == FD]
    others = [
        rows.assign(
            metric=f"fd/{name}@2k",
            value=rows["value"] * np.exp([tilt.get(arm, (0, 0, 0))[k] for arm in rows["arm"]]),
        )
        for k, name in enumerate(MEMBERS)
    ]
    whole = results.final.replace({"metric": {FD: "fd/set-3d3d3d3d@2k"}})
    curves = results.curves.replace({"metric": {FD: "fd/set-3d3d3d3d@2k"}})
    return replace(results, final=pd.concat([whole, *others], ignore_index=True), curves=curves)


def test_each_evaluators_fd_stands_in_one_table_alone_and_whether_all_agree(results, tmp_path):
    found = by_a_set(results, {"iar": (0.01, 0.0, -0.01)})
    page, text = both_pages(bare(found), tmp_path)
    (shown,), (other,) = (each.under("By evaluator") for each in (page, text))
    assert [[numbers(cell) for cell in row[1:]] for row in shown[1:]] == [
        [numbers(cell) for cell in row[1:]] for row in other[1:]
    ]
    assert shown[0] == ["evaluator", "rearranged", "blocks", "random", "iar"]
    assert [row[0] for row in shown[1:]] == ["set-3d3d3d3d", *MEMBERS]
    expected = [
        numbers(percent(np.log(per_seed(results, FD)["iar"] / per_seed(results, FD)["baseline"]).mean() + tilt))
        for tilt in (0, 0.01, 0, -0.01)
    ]
    assert [numbers(row[-1])[:1] for row in shown[1:]] == expected
    for each in (page, text):
        assert "All 3 evaluators agree on the direction of every difference." in each.words
        assert each.words.count("classifier-0a0a0a0a") == 1
    assert (tmp_path / found.study / "results.csv").read_text().count("fd/classifier-0a0a0a0a@2k") == 15


def test_evaluators_that_do_not_agree_are_told(results):
    found = tables.evaluator_table(by_a_set(results, {"iar": (0.5, 0.0, -0.5)}))
    assert found["agreement"] == ("The 3 evaluators do not agree on the direction of: iar (2 lower, 1 higher).")
    assert tables.evaluator_table(results) is None
    alone = replace(results, arms={"baseline": "alone"})
    assert tables.evaluator_table(by_a_set(alone, {})) is None
