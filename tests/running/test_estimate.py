"""How long a study takes: counted by hand, from trials that were run here, and from nothing but an assumption."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iar_study.config import TrialConfig, flatten, with_settings
from iar_study.generators import cost
from iar_study.pipeline.workspace import Workspace
from iar_study.running import estimate as estimates
from iar_study.running.estimate import (
    ASSUMED,
    SLOWEST,
    STARTING,
    Estimate,
    estimate,
    from_first_steps,
    operations,
    training_rate,
)
from iar_study.study.study import Arm, Profile, Study, load_profile, load_profiles, load_studies
from tests.workspaces import ROOT

SMOKE = load_profile(ROOT / "experiments", "smoke")
BEST, WORST = ASSUMED["cpu"][0]


@pytest.fixture(autouse=True)
def _two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_slots", lambda config: 2)


def study(*arms: dict[str, Any], **others: Any) -> Study:
    named = tuple(Arm(str(index), "", settings) for index, settings in enumerate(arms))
    return Study("study", "?", "!", "0", named, **others)


def in_seconds(found: Estimate) -> list[float]:
    return [3600 * hours for hours in found.hours]


def finished(workspace: Workspace, name: str, seconds: float, **settings: Any) -> TrialConfig:
    """Leave a trial that took so long."""
    config = with_settings(SMOKE.config, settings)
    folder = workspace.trials / name
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps({"config": flatten(config)}))
    (folder / "result.json").write_text("{}")
    steps = config.train.steps
    points = [(steps // 2, 0.0, {"speed/tokens_per_second": 1.0}), (steps, 500 * seconds, {})]
    lines = [json.dumps({"step": step, "time_ms": at, "metrics": metrics}) for step, at, metrics in points]
    (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return config


def test_operations_are_training_evaluation_and_sampling() -> None:
    config, tokens = SMOKE.config, 16
    shapes = (config.model, 64, tokens)
    expected = 60 * 32 * cost.training_flops(*shapes) + 3 * 300 * cost.forward_flops(*shapes)
    assert sum(operations(config)) == expected + 3 * 200 * cost.sampling_flops(*shapes, guided=True)


def test_without_a_trial_here_the_speed_is_assumed_and_said(workspace: Workspace) -> None:
    [found], total = estimate([study({}, {"loss.cluster_weight": 1.0}, {"loss.cluster_weight": 1.0})], SMOKE, workspace)
    assert found == total
    assert (found.trials, found.measured, found.side_by_side) == (4, 0, 2)  # two arms are one, two seeds
    assert found.assumed == "15 to 60 GFLOP/s a trial"
    times = [4 * (STARTING + sum(operations(SMOKE.config)) / rate) / 2 for rate in (BEST, WORST)]
    assert in_seconds(found) == pytest.approx(times)


def test_what_a_trial_only_measured_tells_no_speed(workspace: Workspace) -> None:
    """It copies the points of a training that was there, in no time."""
    for name, ended in (("along", 10_000.0), ("later", -1.0)):
        finished(workspace, name, 10.0)
        record = workspace.trials / name / "trial.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"training": f"of {name}"}))
        journal = workspace.trainings / f"of {name}" / "journal.jsonl"
        journal.parent.mkdir(parents=True)
        journal.write_text(json.dumps({"step": 60, "time_ms": ended, "metrics": {}}) + "\n")
    [found], _ = estimate([study({})], SMOKE, workspace)
    assert found.measured == 1


def test_trials_of_the_same_size_tell_the_speed(workspace: Workspace) -> None:
    for name, seconds in (("a", 10.0), ("b", 12.0), ("c", 500.0)):  # the last was interrupted for a while
        finished(workspace, name, seconds)
    finished(workspace, "wider", 1.0, **{"model.width": 64})
    longer = {"train.steps": 120}
    found, other = estimate([study({}), study({"model.width": 128})], SMOKE, workspace)[0]
    assert (found.measured, found.assumed) == (3, "")
    assert in_seconds(found) == pytest.approx([2 * (STARTING + 10) / 2, 2 * (STARTING + 12) / 2])
    assert (other.measured, other.assumed) == (0, "15 to 60 GFLOP/s a trial")
    [twice], _ = estimate([study(longer)], SMOKE, workspace)
    ratio = sum(operations(with_settings(SMOKE.config, longer))) / sum(operations(SMOKE.config))
    assert in_seconds(twice) == pytest.approx([2 * (STARTING + 10 * ratio) / 2, 2 * (STARTING + 12 * ratio) / 2])


def test_what_cannot_be_read_is_left_out(workspace: Workspace) -> None:
    finished(workspace, "a", 10.0)
    for name, file, content in (
        ("b", "trial.json", "{"),
        ("c", "trial.json", json.dumps({"config": {"of.old": 1}})),
        ("d", "journal.jsonl", '{"step": 60, "time_ms": 1, "metrics": {}}\n{"st'),
        ("e", "journal.jsonl", ""),
    ):
        finished(workspace, name, 1.0)
        (workspace.trials / name / file).write_text(content)
    assert estimate([study({})], SMOKE, workspace)[1].measured == 1


def test_equal_trials_of_studies_count_once_in_all(workspace: Workspace) -> None:
    each, total = estimate([study({}, {"train.lr": 0.1}), study({}, {"train.lr": 0.2})], SMOKE, workspace)
    assert [found.trials for found in each] == [4, 4]
    assert total.trials == 6
    assert total.hours == pytest.approx([sum(found.hours[end] for found in each) * 6 / 8 for end in (0, 1)])


def test_ways_to_sample_share_a_training_and_near_codes_take_none(workspace: Workspace) -> None:
    ways = study({"evaluation.guidance": 1.0}, {"evaluation.guidance": 3.0}, kind="sampling")
    near = study({}, {"clustering.seed": 1}, kind="near-codes")
    (sampling, nothing), _ = estimate([ways, near], SMOKE, workspace)
    assert sampling.trials == 2 * (1 + 2)
    assert (nothing.trials, nothing.hours) == (2 * 1, (0, 0))  # without clusters, a seed of theirs changes nothing
    alone = estimate([study({})], SMOKE, workspace)[1].hours
    assert all(less < more < 3 * less for less, more in zip(alone, sampling.hours, strict=True))


def test_every_profile_and_study_of_the_registry_has_an_estimate(workspace: Workspace) -> None:
    every = load_studies(workspace.experiments).values()
    studies = [study for study in every if not study.plan]
    assert estimate([study for study in every if study.plan], SMOKE, workspace)[1].trials == 6 * 15  # the first look
    for profile in load_profiles(workspace.experiments).values():
        each, total = estimate(studies, profile, workspace)
        assert all(
            found.trials and (found.hours[0] or study.kind == "near-codes")
            for found, study in zip(each, studies, strict=True)
        )
        assert max(found.trials for found in each) <= total.trials <= sum(found.trials for found in each)


def test_a_gpu_takes_one_trial_at_a_time(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    monkeypatch.undo()
    config = replace(SMOKE.config, compute=replace(SMOKE.config.compute, device="cuda"))
    found = estimate([study({})], Profile("p", "", config, (0, 1)), Workspace(Path(workspace.root)))[1]
    assert (found.side_by_side, found.assumed) == (1, "20 to 40% of an H100's peak")


def test_the_first_steps_tell_a_range() -> None:
    config, tokens = SMOKE.config, 16
    training = 60 * 32 * cost.training_flops(config.model, 64, tokens)
    rate = training_rate(config, tokens_per_second=60 * 32 * tokens / 10.0)  # all steps in 10 seconds
    assert rate == pytest.approx(training / 10)
    later = 10 * (sum(operations(config)) / training - 1)
    times = from_first_steps([config] * 4, rate, side_by_side=2)
    assert [3600 * hours for hours in times] == pytest.approx(
        [2 * (STARTING + 10 + later), 2 * (STARTING + 10 + SLOWEST * later)]
    )
    assert from_first_steps([config], rate, side_by_side=8)[0] == pytest.approx(times[0] / 2)
