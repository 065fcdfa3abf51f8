"""The MLflow store: filled twice it holds every point once, and a broken one stops no training."""

import sqlite3
from pathlib import Path

import pytest

from iar_study.config import TrialConfig, flatten
from iar_study.errors import InputError
from iar_study.storage import write_json
from iar_study.study.stages import Shared
from iar_study.study.study import Arm, Profile, Study
from iar_study.study.tracking import Tracker, store_uri
from iar_study.study.trial import Trial
from iar_study.training.journal import Journal

STUDY = Study("mine", "Why?", "Because.", "a", (Arm("a", "first"), Arm("b", "second")))
PROFILE = Profile("tiny", "", TrialConfig(), (0,))


def make_trial() -> Trial:
    nothing = Path("none")
    data = {"name": "made up", "digest": "d" * 64}
    shared = Shared(data, *[nothing] * 6, digests={"data": data["digest"]})
    return Trial("a", 0, TrialConfig(), shared)


def begin(trial: Trial, folder: Path) -> Journal:
    """What `run_trial` leaves as soon as it has begun."""
    code, environment = {"commit": "c" * 40, "dirty": False}, {"python": "3"}
    about = {"data": trial.shared.data, "code": code, "environment": environment, "config": flatten(trial.config)}
    write_json(folder / "trial.json", about)
    return Journal(folder / "journal.jsonl")


def make_tracker(workspace) -> Tracker:
    return Tracker(workspace, STUDY, PROFILE, TrialConfig())


def test_a_journal_logged_twice_leaves_every_point_once(workspace):
    trial, folder = make_trial(), workspace.root / "trial"
    journal = begin(trial, folder)
    for step in range(1, 51):
        journal.write(step, {"train/loss": 1 / step, "val/token_nll": float(step)})
    first = make_tracker(workspace)
    first.sync(trial, folder)
    run_id = first.run_id(trial)
    journal.write(51, {"train/loss": 0.0})
    again = make_tracker(workspace)  # as after a kill: it does not know what was logged
    again.sync(trial, folder)
    again.sync(trial, folder)
    assert first.problem is again.problem is None
    assert again.run_id(trial) == run_id
    assert [p.step for p in again.client.get_metric_history(run_id, "train/loss")] == list(range(1, 52))
    assert len(again.client.get_metric_history(run_id, "val/token_nll")) == 50


def test_the_same_study_finds_its_parent_run_again(workspace):
    assert make_tracker(workspace).parent == make_tracker(workspace).parent


def test_the_store_lets_readers_and_the_writer_work_side_by_side(workspace):
    make_tracker(workspace)
    with sqlite3.connect(workspace.store) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_store_that_is_none_is_one_clear_error(workspace):
    workspace.store.write_text("no database at all, and longer than a header of one hundred bytes " * 3)
    with pytest.raises(InputError, match=r"cannot use the MLflow store sqlite:.*doctor"):
        make_tracker(workspace)


def test_a_store_that_breaks_later_is_remembered_not_raised(workspace):
    trial, folder = make_trial(), workspace.root / "trial"
    begin(trial, folder).write(1, {"train/loss": 1.0})
    tracker = make_tracker(workspace)
    with sqlite3.connect(workspace.store) as connection:
        connection.execute("DROP TABLE metrics")
    tracker.sync(trial, folder)
    assert tracker.problem is not None


def test_the_address_of_a_server_is_taken_from_the_environment(workspace, monkeypatch):
    assert store_uri(workspace) == f"sqlite:///{workspace.store}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store_uri(workspace) == "http://127.0.0.1:5000"
