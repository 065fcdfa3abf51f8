"""Two stores at a terminal: every disagreement is marked and counted, and what is not there is said."""

import io
from dataclasses import replace

import pandas as pd
import pytest

from iar_study.errors import InputError
from iar_study.evidence.claims import Claim, Past
from iar_study.evidence.comparison import Stores, compare
from iar_study.evidence.rules import Better
from iar_study.reporting.comparison_text import comparison_text, export_comparison
from iar_study.reporting.tables import HEADLINE

PAST = Past("2026-11-27", after_data=True)
BETTER = Claim("better images", "It is better.", "ours", "effect", "components", Better("iar", "fd"), PAST, "nothing")


def beside(a, b) -> Stores:
    return Stores([compare(a, b, HEADLINE["training"], [BETTER])])


def with_trials(results, torch="2.13.0", tokenizer="c956aad2fca9d9930d9aafe0e3fdca43"):
    said = {
        "config": {"train.lr": 0.005},
        "inputs": {"tokenizer": tokenizer},
        "data": {"digest": "4280"},
        "code": {"commit": "5783f51b4807f2ef9b56e1888d741ea4de7e5baa", "dirty": False},
        "environment": {"torch": torch},
    }
    trials = results.final.drop_duplicates("trial")[["arm", "seed", "trial"]].to_dict("records")
    return replace(results, trials=[{**trial, **said} for trial in trials])


def test_equal_stores_agree_and_nothing_is_marked(results):
    whole = with_trials(results)
    text = comparison_text(beside(whole, whole), "here", "there")
    lines = text.splitlines()
    assert lines[:4] == ["A  here", "B  there", "", "components"]
    assert lines[4] == "  asked: the same, at quick; ended: A 15 of 15 trials; B 15 of 15 trials"
    assert lines[5] == "  recorded: the same settings, inputs, code and environment"
    assert lines[6] == "  trials of the same hash: 15; final values the same to the bit in 15"
    assert text.count("the same trials") == 8
    assert not any(line.lstrip().startswith("!") for line in lines)
    assert lines[-1] == "A and B agree"


def test_means_and_differences_are_those_of_each_store(build):
    a, b = build(), build()
    b.final["trial"] = "b" + b.final["trial"]
    b.final.loc[b.final["arm"] == "iar", "value"] += 0.5 + 0.01 * b.final["seed"]
    found = beside(a, b)
    text = comparison_text(found, "a", "b")
    means = a.final.groupby(["metric", "arm"])["value"].mean(), b.final.groupby(["metric", "arm"])["value"].mean()
    for key, digits in (("fd/classifier@2k", 3), ("val/token_nll", 4)):
        for arm in a.arms:
            for of in means:
                assert f"{of[key, arm]:.{digits}f} [" in text
    line = next(line for line in text.splitlines() if line.startswith("      iar") and "! differ" in line)
    assert "better" in line
    assert "+1.4% [" in line
    assert text.count("0.0% equal") == 3
    assert text.splitlines()[-1].startswith("A and B do not agree: components (")


def test_every_disagreement_is_marked(build):
    a = with_trials(build())
    b = with_trials(build(), torch="2.12.0", tokenizer="a1" * 32)
    b.final.loc[b.final.index[-1], "value"] += 1e-9
    iar = (b.final["arm"] == "iar") & (b.final["metric"] == "fd/classifier@2k")
    b.final.loc[iar, "value"] += 30 + 0.1 * b.final.loc[iar, "seed"]
    b.missing.loc[0] = ["random", 7, "not finished", 20]
    b.settings["train.lr"] = "0.004"
    text = comparison_text(beside(a, b), "a", "b")
    for words in (
        "asked: not the same; ended: A 15 of 15 trials; B 15 of 16 trials",
        "seeds           A: 0, 1, 2  B: 0, 1, 2, 7",
        "--set train.lr  A: none     B: 0.004",
        "tokenizer  A: c956aad2fca9d993  B: a1a1a1a1a1a1a1a1",
        "torch      A: 2.13.0            B: 2.12.0",
        "trials of the same hash: 15; final values the same to the bit in 12, not in 3",
        "! 4 of their 48 values differ",
        ": fd/classifier@2k of iar, seed ",
        "3 trials ran in another environment",
    ):
        assert words in text
    verdict = next(line for line in text.splitlines() if line.startswith("    better images"))
    assert verdict.split() == ["better", "images", "better", "worse", "!"]
    assert text.splitlines()[-1] == "A and B do not agree: components (3 trials, 1 arm, 1 verdict)"


def test_what_is_not_there_is_said(build):
    a = build()
    b = build({"only this": "", "and, that": ""}, seeds=(0,))
    b.final["metric"] = b.final["metric"].str.replace("@2k", "@10k")
    b.final["trial"] = "b" + b.final["trial"]
    found = replace(beside(a, b), only_a=["mine"], only_b=["x", "your study"], unread={"old": "in B: it is damaged"})
    text = comparison_text(found, "a", "b")
    for words in (
        "only A        mine",
        "only B        x, your study",
        "not compared  old: in B: it is damaged",
        "only this, and, that",
        "trials of the same hash: none",
        "fd: not compared; A measured fd/classifier@2k, B measured fd/classifier@10k",
        "arms: none in both",
        "not tested",
    ):
        assert words in text


def test_of_stores_that_share_the_baseline_alone_the_means_are_compared(build):
    alone = build(arms={"baseline": "the token loss alone"})
    for a, b in ((alone, alone), (alone, build()), (build(), alone)):
        text = comparison_text(beside(a, b), "here", "there")
        assert "difference from baseline: no other arm is in both" in text
        assert "      baseline *" in text
        assert text.splitlines()[-1].startswith("A and B")


def test_one_seed_has_no_interval(build):
    a, b = build(seeds=(0,)), build(seeds=(1,))
    text = comparison_text(beside(a, b), "a", "b")
    assert text.count("too few seeds") == 8
    assert "nan" not in text


def test_arms_of_odd_names_are_shown_as_they_are(build):
    arms = {"a [b] % {c}": "", "\N{GREEK SMALL LETTER LAMDA} = 0,5": "", "x" * 60: ""}
    text = comparison_text(beside(build(arms), build(arms)), "a", "b")
    assert all(f"      {arm}" in text for arm in arms)


def test_the_table_is_written_to_the_last_bit(results, build, tmp_path, capsys):
    other = build(study="loss-weight", seeds=(3, 4))
    found = Stores([*beside(results, results).both, *beside(other, other).both])
    assert export_comparison(found, str(tmp_path / "new" / "arms.csv")) == 20
    table = pd.read_csv(tmp_path / "new" / "arms.csv")
    assert table.groupby("study", sort=False).size().to_dict() == {"components": 10, "loss-weight": 10}
    assert table["a_mean"].tolist() == [value for comparison in found.both for value in comparison.arms["a_mean"]]
    assert table["finding"].tolist()[:2] == ["baseline", "the same trials"]
    export_comparison(found, "-")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(capsys.readouterr().out)), table)


def test_a_file_that_cannot_be_written_is_one_line(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        export_comparison(beside(results, results), str(tmp_path / "file" / "arms.csv"))
