"""Plans: what they draw, since when they stand, what a run departs in, and a run until it is decided."""

import json
import math
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from iar_study.cli import main
from iar_study.config import TrialConfig, flatten
from iar_study.errors import InputError
from iar_study.evidence.results import load_results
from iar_study.evidence.rules import Planned
from iar_study.reporting.report import write_report
from iar_study.running.runner import _since_when
from iar_study.study.plans import departures, plan_of, record
from iar_study.study.study import Arm, Plan, Study, arm_config, load_study
from tests.evidence.test_claims import results

PLAN = Plan("smoke", "iar", "fd", (3, 5), first_seed=0, draws=1)
RECORD = {
    **{name: getattr(PLAN, name) for name in ("profile", "arm", "metric", "looks", "margin", "first_seed", "draws")},
    "drawn": list(PLAN.drawn),
    "file": "experiments/plans/made-up.py",
    "digest": "d" * 64,
    "commit": "c" * 40,
    "committed": "2026-11-27T12:00:00+00:00",
}

BASE = [2.0] * 5
IAR = [2 * math.exp(change) for change in (-0.05, -0.15, -0.02, -0.12, -0.1)]
"""Of three pairs the mean is -0.073 with p 0.2, of five -0.088 with p 0.019."""

MINE = """
from iar_study.study import Arm, Plan, Study
study = Study(
    "mine", "Why?", "Because.", "a", (Arm("a", "first"), Arm("b", "second", {"train.lr": 0.1})),
    plan=Plan("smoke", "b", "fd", (2, 3), draws=2),
)
"""
SMALL = [
    *("tokenizer.steps=20", "classifier.steps=20", "train.steps=10", "train.warmup_steps=0", "train.log_every=10"),
    *("train.kept=1", "evaluation.images=60", "evaluation.samples=80", "evaluation.sampled_times=1"),
]


def plan_in(workspace, text=MINE):
    folder = workspace.experiments / "plans"
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


def git(workspace, *words):
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(workspace.root), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_pairs_share_their_draw_and_nothing_else():
    plan = Plan("full", "b", "fd", (6, 12), draws=3)
    study = Study("s", "?", ".", "a", (Arm("a", ""), Arm("b", "", {"train.lr": 0.1})), plan=plan)
    assert plan.seeds(4) == (1000, 1001, 1002, 1003)
    for seed in plan.seeds(12):
        a, b = (flatten(arm_config(study, arm, TrialConfig(), seed)) for arm in study.arms)
        assert {key for key in a if a[key] != b[key]} == {"train.lr"}
        assert a["seed"] == seed
        assert {a[key] for key in plan.drawn} == {1000 + (seed - 1000) % 3}


def test_a_plan_kept_from_its_first_run_survives_a_rewritten_history():
    later = RECORD | {"commit": "d" * 40, "committed": "2026-12-01T00:00:00+00:00"}
    assert _since_when(later, RECORD) == RECORD
    assert _since_when(later, RECORD | {"digest": "e" * 64}) == later
    assert _since_when(later, RECORD | {"commit": ""}) == later
    assert _since_when(later, None) == later
    assert _since_when(None, None) is None


def test_what_the_plan_draws_no_arm_sets():
    with pytest.raises(InputError, match=r"arm 'b' sets clustering\.seed, which the plan draws"):
        Study("s", "?", ".", "a", (Arm("a", ""), Arm("b", "", {"clustering.seed": 3})), plan=replace(PLAN, arm="b"))


def test_a_plan_compares_two_arms():
    with pytest.raises(InputError, match="compare 'a' with itself"):
        Study("s", "?", ".", "a", (Arm("a", ""),), plan=replace(PLAN, arm="a"))


@pytest.mark.parametrize(
    ("where", "text", "message"),
    [
        ("mine.py", MINE, "a study with a plan stands in plans/"),
        ("plans/other.py", MINE, "name the file mine.py"),
        (
            "plans/mine.py",
            "from iar_study.study import *\nstudy = Study('mine', '', '', 'a', (Arm('a', ''),))",
            "plans/",
        ),
    ],
)
def test_plans_stand_in_a_folder_of_their_own(workspace, where, text, message):
    path = workspace.experiments / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_study(workspace.experiments, "mine")


def test_the_record_tells_since_when_the_plan_stands_as_it_is(workspace):
    path = plan_in(workspace)
    study = load_study(workspace.experiments, "mine")
    assert plan_of(json.loads(json.dumps(record(study, workspace.experiments)))) == study.plan
    assert record(study, workspace.experiments)["commit"] == ""  # no repository
    git(workspace, "init", "-q")
    assert record(study, workspace.experiments)["commit"] == ""  # it is not in it
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "plan")
    first = record(study, workspace.experiments)
    profiles = workspace.experiments / "profiles.py"
    text = profiles.read_text()
    profiles.write_text(text + "\n")  # how large its trainings are is part of a plan
    assert record(study, workspace.experiments)["commit"] == ""
    profiles.write_text(text)
    assert (first["commit"], first["file"]) == (git(workspace, "rev-parse", "HEAD"), "experiments/plans/mine.py")
    git(workspace, "commit", "-qm", "more", "--allow-empty")
    assert record(study, workspace.experiments) == first
    path.write_text(MINE + "\n")
    changed = record(study, workspace.experiments)
    assert (changed["commit"], changed["committed"]) == ("", "")
    assert changed["digest"] != first["digest"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"profile": "quick"}, ["it was run at quick, the plan is for smoke"]),
        ({"settings": {"train.lr": "0.1"}}, ["settings were changed: train.lr=0.1"]),
        ({"older": ["iar, seed 1"]}, ["older than the plan: iar, seed 1"]),
        (
            {"recorded": RECORD | {"commit": ""}},
            ["experiments/plans/made-up.py was not committed as it was run, with its profiles"],
        ),
    ],
)
def test_what_departs_from_a_plan_is_told(changed, said):
    asked = {"recorded": RECORD, "profile": "smoke", "settings": {}, "older": []} | changed
    assert departures(**asked) == said


def test_the_rule_says_what_the_first_look_that_decides_has_found():
    found = Planned().judge(replace(results(base=BASE, iar=IAR), plan=RECORD))
    assert found.answer == "better"
    assert found.rows[-1].pairs.keys() == {"0", "1", "2", "3", "4"}
    assert [row.finding for row in found.rows] == ["undecided", "better"]
    assert "level 0.048" in found.evidence
    first = Planned().judge(replace(results(base=BASE[:4], iar=IAR[:4]), plan=RECORD))
    assert first.answer == "undecided"
    assert "the next look is at 5 pairs" in first.evidence


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plan": None}, "has no plan"),
        ({"departures": ("it was run at quick",)}, "not as planned: it was run at quick"),
        ({"plan": RECORD | {"arm": "small"}}, "'small' was not run"),
        ({"plan": RECORD | {"looks": [9, 12]}}, "the first look is at 9 pairs"),
        ({"plan": RECORD | {"metric": "kd"}}, "by ratios"),
    ],
)
def test_without_its_plan_followed_nothing_is_tested(changed, message):
    with pytest.raises(InputError, match=message):
        Planned().judge(replace(results(seeds=5, base=2.0, iar=1.6), **{"plan": RECORD} | changed))


def test_a_trial_that_diverged_leaves_a_plan_undecided():
    lost = [("iar", 4, "diverged", 3)]
    some = results(base=BASE, iar=[*IAR[:4], np.nan], missing=lost)
    found = Planned().judge(replace(some, plan=RECORD))
    assert (found.answer, "seed 4 of iar diverged" in found.evidence) == ("undecided", True)


def test_a_planned_study_is_run_look_by_look_until_it_is_decided(workspace, tmp_path, capsys):
    plan_in(workspace)
    git(workspace, "init", "-q")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "plan")
    run = ["run", "mine", "--executor", "here"]
    assert main([*run, "--until", "decided", "--set", *SMALL]) == 0
    told = capsys.readouterr().out
    assert "4 trials run" in told
    assert "look at 2 pairs: " in told
    found = load_results(workspace, "mine")
    assert set(found.final["seed"]) in ({1000, 1001}, {1000, 1001, 1002})
    assert len({trial["inputs"]["tokenizer"] for trial in found.trials}) == 2
    assert found.draws == {seed: 1000 + seed % 2 for seed in set(found.final["seed"])}
    assert [departure.partition(":")[0] for departure in found.departures] == ["settings were changed"]
    text = write_report(found, tmp_path / "pages").with_name("index.md").read_text()
    assert "## The plan" in text
    assert f"since commit {git(workspace, 'rev-parse', 'HEAD')[:10]}" in text
    assert "**No test of the plan: settings were changed" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["components", "--until", "decided"], "has no plan"),
        (["mine", "--until", "decided", "--seeds", "3"], "leave --seeds"),
        (["mine", "--until", "decided", "--arms", "a"], "add it to --arms"),
    ],
)
def test_until_is_for_plans_as_they_are(workspace, words, message, capsys):
    plan_in(workspace)
    assert main(["run", *words]) == 2
    assert message in capsys.readouterr().err
