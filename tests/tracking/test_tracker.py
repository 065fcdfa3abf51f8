"""The MLflow store: filled twice it holds every point once, and a broken one neither stops nor delays anything."""

import json
import math
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.cli import cli as mlflow_command
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from iar_study.cli import main
from iar_study.config import TrialConfig, flatten
from iar_study.errors import InputError
from iar_study.pipeline.workspace import Workspace
from iar_study.storage import read_json, write_json
from iar_study.study.study import Arm, Profile, Study
from iar_study.tracking.store import check_store, store_uri
from iar_study.tracking.tracker import Key, Recorder, Tracker
from iar_study.training.journal import Journal
from tests.workspaces import make_workspace

STUDY = Study("mine", "Why?", "Because.", "a", (Arm("a", "first"), Arm("b", "second")))
PROFILE = Profile("tiny", "", TrialConfig(), (0,))
TRIAL = Key("a", 0, "f" * 16)
OTHER = Key("b", 0, "e" * 16)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A store with its tables, which take MLflow seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        MlflowClient(f"sqlite:///{folder}/mlflow.db").get_experiment_by_name("none")
    return folder / "mlflow.db"


@pytest.fixture
def workspace(tmp_path, monkeypatch, empty_store) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return make_workspace(tmp_path)


def begin(workspace: Workspace, trial: Key = TRIAL) -> Journal:
    """What `run_trial` leaves as soon as it has begun."""
    about = {
        "data": {"name": "made up", "digest": "d" * 64},
        "code": {"commit": "c" * 40, "dirty": False},
        "environment": {"python": "3"},
        "config": flatten(TrialConfig()),
    }
    write_json(workspace.trials / trial.hash / "trial.json", about)
    return Journal(workspace.trials / trial.hash / "journal.jsonl")


def write(journal: Journal, *steps: int) -> None:
    for step in steps:
        journal.write(step, {"train/loss": 1 / step, "fd/classifier@100": float(step)})


def write_long(journal: Journal, last: int) -> None:
    """The same up to step `last`, without a sync to the disk at each."""
    points = ({"step": n, "time_ms": 10**12 + n, "metrics": {"train/loss": 1 / n, "fd": n}} for n in range(1, last + 1))
    journal.path.write_text("".join(json.dumps(point) + "\n" for point in points))


def diverge(workspace: Workspace, step: int, trial: Key = TRIAL) -> None:
    """What a trial leaves last that diverged."""
    write_json(workspace.trials / trial.hash / "result.json", {"status": "diverged", "step": step, "metrics": {}})


def end(workspace: Workspace, step: int, trial: Key = TRIAL) -> None:
    """What a finished trial leaves last; what is final stands in the journal too, and one more here."""
    metrics = {"fd/classifier@100": float(step), "val/token_nll": 2.0, "extra": 1.0}
    write_json(workspace.trials / trial.hash / "result.json", {"status": "finished", "step": step, "metrics": metrics})


def write_manifest(workspace: Workspace, *trials: Key, **changes) -> None:
    """What `run_study` leaves, as far as it is needed here."""
    told = [{"arm": trial.arm, "seed": trial.seed, "hash": trial.hash, "run_id": ""} for trial in trials]
    manifest = {
        "study": STUDY.name,
        "question": STUDY.question,
        "claim": STUDY.claim,
        "baseline": STUDY.baseline,
        "factor": "",
        "page": "",
        "arms": [
            {"name": arm.name, "description": arm.description, "beside": STUDY.beside(arm), "series": arm.series}
            for arm in STUDY.arms
        ],
        "profile": PROFILE.name,
        "config": json.loads(json.dumps(flatten(TrialConfig()))),
        "settings": {},
        "trials": told,
    }
    write_json(workspace.studies / f"{STUDY.name}.json", manifest | changes)


def make_tracker(workspace: Workspace) -> Tracker:
    return Tracker(workspace, STUDY, PROFILE.name, flatten(TrialConfig()))


def make_recorder(workspace: Workspace) -> Recorder:
    return Recorder(workspace, STUDY, PROFILE, TrialConfig())


def client(workspace: Workspace) -> MlflowClient:
    return MlflowClient(store_uri(workspace))


def runs(workspace: Workspace, kind: str = "trial"):
    store = client(workspace)
    experiment = store.get_experiment_by_name(STUDY.name)
    return store.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")


def steps(workspace: Workspace, metric: str = "train/loss", trial: Key = TRIAL) -> list[int]:
    (run,) = (run for run in runs(workspace) if run.data.tags["trial"] == trial.hash)
    return [point.step for point in client(workspace).get_metric_history(run.info.run_id, metric)]


def test_a_journal_logged_twice_leaves_every_point_once(workspace):
    journal = begin(workspace)
    write(journal, *range(1, 51))
    first = make_tracker(workspace)
    first.sync(TRIAL)
    write(journal, 51)
    again = make_tracker(workspace)  # as after a kill: the store alone knows what was logged
    again.sync(TRIAL)
    again.sync(TRIAL)
    assert again.run_id(TRIAL) == first.run_id(TRIAL)
    assert (first.runs, first.points) == (1, 100)
    assert (again.runs, again.points) == (0, 2)
    assert steps(workspace) == list(range(1, 52))
    assert steps(workspace, "fd/classifier:100") == list(range(1, 52))


def test_a_batch_that_is_sent_twice_is_kept_once(workspace):
    """As when the store took it but its answer was lost: the one who sends it again does not know."""
    write_long(begin(workspace), 1000)
    one, other = make_tracker(workspace), make_tracker(workspace)
    one.sync(TRIAL)
    stale = other._started(TRIAL)
    stale.steps = {"train/loss": 500}
    other.sync(TRIAL)
    assert other.points == 1000
    assert steps(workspace) == list(range(1, 1001))


def test_a_batch_that_another_process_logs_at_the_same_moment_is_kept_once(workspace, monkeypatch):
    """MLflow rolls back and looks what is there; here the other one logs its points between the look and the insert."""
    write_long(begin(workspace), 6)
    one, other = make_tracker(workspace), make_tracker(workspace)
    logged, stale = one._started(TRIAL), other._started(TRIAL)
    points = [Metric("train/loss", float(n), 10**12 + n, n) for n in range(1, 7)]
    one._log_metrics(logged, [points[:3]])
    insert, left = SqlAlchemyStore._update_latest_metrics_if_necessary, [points[3:]]

    def slow(store, found, session):
        if len(found) == 3 and left:
            session.rollback()
            one._log_metrics(logged, [left.pop()])
            session.add_all(found)
        insert(store, found, session)

    monkeypatch.setattr(SqlAlchemyStore, "_update_latest_metrics_if_necessary", slow)
    other._log_metrics(stale, [points])
    assert not left
    assert steps(workspace) == [1, 2, 3, 4, 5, 6]


def test_a_process_killed_between_two_batches_leaves_no_gap(workspace, monkeypatch):
    write_long(begin(workspace), 1200)
    tracker = make_tracker(workspace)
    send, sent = tracker.client.log_batch, []

    def dies_at_the_second(run_id, **batch):
        if "metrics" in batch:
            sent.append(len(batch["metrics"]))
            if len(sent) == 2:
                raise KeyboardInterrupt
        send(run_id, **batch)

    monkeypatch.setattr(tracker.client, "log_batch", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        tracker.sync(TRIAL)
    assert 0 < len(steps(workspace)) < 1200
    make_tracker(workspace).sync(TRIAL)
    assert steps(workspace) == steps(workspace, "fd") == list(range(1, 1201))


def test_a_run_whose_maker_was_killed_is_described_by_the_next(workspace, monkeypatch):
    write(begin(workspace), 1)
    tracker = make_tracker(workspace)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tracker.client, "log_inputs", killed)
    with pytest.raises(KeyboardInterrupt):
        tracker.sync(TRIAL)
    make_tracker(workspace).sync(TRIAL)
    (run,) = runs(workspace)
    assert run.data.params["arm"] == "a"
    assert run.data.params["train.lr"] == "0.005"
    assert len(run.inputs.dataset_inputs) == 1


def test_a_finished_trial_is_logged_whole_and_its_final_figures_once(workspace):
    write(begin(workspace), 1, 2, 3)
    end(workspace, 3)
    tracker = make_tracker(workspace)
    tracker.finish(TRIAL)
    tracker.finish(TRIAL)
    (run,) = runs(workspace)
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "finished")
    assert run.data.metrics == {"train/loss": 1 / 3, "fd/classifier:100": 3, "extra": 1}
    assert steps(workspace, "fd/classifier:100") == [1, 2, 3]  # not a fourth time, from the result
    assert [file.path for file in client(workspace).list_artifacts(run.info.run_id)] == ["trial.json"]


def test_a_journal_begun_anew_doubles_nothing(workspace):
    """A trial that lost its journal repeats its steps to the same bits, at other times."""
    journal = begin(workspace)
    write(journal, 1, 2, 3)
    tracker = make_tracker(workspace)
    tracker.sync(TRIAL)
    journal.path.unlink()
    time.sleep(0.002)
    write(Journal(journal.path), 1, 2)
    tracker.sync(TRIAL)
    write(Journal(journal.path), 3, 4)
    tracker.sync(TRIAL)
    assert steps(workspace) == [1, 2, 3, 4]


def test_a_torn_last_line_is_logged_when_it_is_whole(workspace):
    journal = begin(workspace)
    write(journal, 1, 2)
    line = journal.path.read_text().splitlines(keepends=True)[-1]
    tracker = make_tracker(workspace)
    with open(journal.path, "a") as file:
        file.write(line.replace('"step": 2', '"step": 3')[:20])
    tracker.sync(TRIAL)
    assert steps(workspace) == [1, 2]
    write(Journal(journal.path), 3, 4)
    tracker.sync(TRIAL)
    assert steps(workspace) == [1, 2, 3, 4]


def test_the_same_study_finds_its_parent_run_again(workspace):
    assert make_tracker(workspace).parent == make_tracker(workspace).parent


def test_a_person_finds_their_way(workspace):
    write(begin(workspace), 1)
    make_tracker(workspace).sync(TRIAL)
    (parent,), (child,) = runs(workspace, "study"), runs(workspace)
    assert parent.info.run_name == "mine (tiny)"
    assert child.info.run_name == "a, seed 0"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    told = {"study": "mine", "profile": "tiny", "arm": "a", "seed": "0", "trial": TRIAL.hash, "status": "running"}
    assert told.items() <= child.data.tags.items()
    assert "- `b`: second" in parent.data.tags["mlflow.note.content"]
    assert parent.data.params["train.lr"] == "0.005"
    assert "by the tag `arm`" in client(workspace).get_experiment_by_name("mine").tags["mlflow.note.content"]


def test_the_store_lets_readers_and_the_writer_work_side_by_side(workspace):
    make_tracker(workspace)
    with sqlite3.connect(workspace.store) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_recorder_logs_as_it_goes_and_closes_the_study(workspace):
    recorder = make_recorder(workspace)
    assert recorder.run_id(TRIAL) == ""
    journal = begin(workspace)
    write(journal, 1, 2)
    recorder.saw(TRIAL)
    write(begin(workspace, OTHER), 1)
    recorder.ended(OTHER)  # failed: it left no result
    write(journal, 3)
    end(workspace, 3)
    recorder.ended(TRIAL)
    recorder.saw(TRIAL)  # a last look at the journal
    assert recorder.close(60, [workspace.experiments / "claims.py"]) is None
    found = {run.data.tags["trial"]: run for run in runs(workspace)}
    assert recorder.run_id(TRIAL) == found[TRIAL.hash].info.run_id
    assert [found[key.hash].info.status for key in (TRIAL, OTHER)] == ["FINISHED", "FAILED"]
    assert steps(workspace) == [1, 2, 3]
    (parent,) = runs(workspace, "study")
    assert parent.info.status == "FAILED"  # as one of its trials
    assert [file.path for file in client(workspace).list_artifacts(parent.info.run_id)] == ["claims.py"]


def test_a_stopped_trial_is_shown_as_stopped_and_goes_on(workspace):
    journal = begin(workspace)
    write(journal, 1)
    recorder = make_recorder(workspace)
    recorder.saw(TRIAL)
    assert recorder.close(60) is None
    assert [run.info.status for run in runs(workspace) + runs(workspace, "study")] == ["KILLED", "KILLED"]
    again = make_recorder(workspace)
    write(journal, 2)
    again.saw(TRIAL)
    while steps(workspace) != [1, 2] or runs(workspace)[0].info.status != "RUNNING":
        time.sleep(0.02)
    end(workspace, 2)
    again.ended(TRIAL)
    assert again.close(60) is None
    assert [run.info.status for run in runs(workspace) + runs(workspace, "study")] == ["FINISHED", "FINISHED"]


def test_a_recorder_neither_raises_nor_waits_for_a_store_that_breaks(workspace):
    write(begin(workspace), 1)
    with sqlite3.connect(workspace.store) as connection:
        connection.execute("ALTER TABLE metrics RENAME COLUMN value TO gone")
    begun = time.monotonic()
    recorder = make_recorder(workspace)
    recorder.saw(TRIAL)
    assert recorder.run_id(TRIAL) == ""
    assert time.monotonic() - begun < 0.5
    assert recorder.close(3) == "table metrics has no column named value"
    assert time.monotonic() - begun < 4
    with sqlite3.connect(workspace.store) as connection:
        connection.execute("ALTER TABLE metrics RENAME COLUMN gone TO value")
    again = make_recorder(workspace)
    again.saw(TRIAL)
    assert again.close(60) is None
    assert steps(workspace) == [1]


def test_one_trial_that_cannot_be_logged_does_not_keep_the_others_waiting(workspace):
    write(begin(workspace, OTHER), 1)
    (workspace.trials / OTHER.hash / "trial.json").write_text("{")
    write(begin(workspace), 1)
    end(workspace, 1)
    recorder = make_recorder(workspace)
    recorder.saw(OTHER)
    recorder.ended(TRIAL)
    assert "is not valid JSON" in recorder.close(3)
    assert [run.info.status for run in runs(workspace)] == ["FINISHED"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///tmp/mlruns", "store of plain files is not supported; use http"),
        ("./mlruns", "store of plain files"),
        ("htp://localhost:5000", "no store is called htp:, did you mean 'http'"),
        ("postgres://u@h/db", "did you mean 'postgresql'"),
        ("http://", "it names no server"),
        ("http://localhost:port", "it names no server"),
        ("sqlite://", "it names no database"),
        ("postgresql://u:secret@h", r"u:\*\*\*@h: it names no database"),
        ("postgresql+none://u@h/db", "none"),
        ("mssql+pyodbc://u@h/db", "its driver pyodbc is not installed; pip install pyodbc"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(workspace, monkeypatch, uri, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=said):
        make_recorder(workspace)


@pytest.mark.parametrize("uri", ["https://user:pass@host/path", "sqlite:///a.db", "databricks"])
def test_an_address_that_may_be_one_is_taken(workspace, uri):
    check_store(uri)


def test_a_file_that_is_no_database_is_refused_at_once(workspace):
    workspace.store.write_text("no database at all, and longer than a header of one hundred bytes " * 3)
    with pytest.raises(InputError, match=r"cannot use the MLflow store sqlite:.*no database"):
        make_recorder(workspace)


def test_the_address_of_a_server_is_taken_from_the_environment(workspace, monkeypatch):
    assert store_uri(workspace) == f"sqlite:///{workspace.store}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store_uri(workspace) == "http://127.0.0.1:5000"


def test_sync_fills_in_what_is_missing_and_says_how_much(workspace, capsys):
    write(begin(workspace), 1, 2)
    end(workspace, 2)
    write(begin(workspace, OTHER), 1)
    write_manifest(workspace, TRIAL, OTHER)
    assert main(["sync"]) == 0
    assert capsys.readouterr().out == "mine: 2 trials and 7 points added to MLflow\n"
    found = {run.data.tags["trial"]: run.info.run_id for run in runs(workspace)}
    manifest = read_json(workspace.studies / "mine.json")
    assert [trial["run_id"] for trial in manifest["trials"]] == [found[TRIAL.hash], found[OTHER.hash]]
    assert main(["sync", "mine"]) == 0
    assert capsys.readouterr().out == "mine: 0 trials and 0 points added to MLflow\n"
    assert make_tracker(workspace).parent == runs(workspace)[0].data.tags["mlflow.parentRunId"]


def test_sync_fills_in_what_a_store_missed_that_was_down(workspace, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    write(begin(workspace), 1, 2)
    recorder = make_recorder(workspace)
    recorder.saw(TRIAL)
    assert "Connection refused" in recorder.close(5)  # it waits as long, and a busy machine needs some of it to connect
    write_manifest(workspace, TRIAL)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(["sync"]) == 0
    assert capsys.readouterr().out == "mine: 1 trials and 4 points added to MLflow\n"
    assert steps(workspace) == [1, 2]


def test_sync_says_of_what_was_killed_that_it_is_stopped(workspace):
    earlier = Key("a", 1, "d" * 16)  # of a run with another seed, which another has followed
    elsewhere = Key("b", 1, "c" * 16)  # of another workspace, on the same store
    tracker = make_tracker(workspace)
    for key in (TRIAL, OTHER, earlier, elsewhere):
        write(begin(workspace, key), 1)
        tracker.sync(key)
    shutil.rmtree(workspace.trials / elsewhere.hash)
    write_manifest(workspace, TRIAL, OTHER)

    def statuses() -> dict[str, str]:
        shown = runs(workspace) + runs(workspace, "study")
        return {run.data.tags.get("trial", "study"): run.info.status for run in shown}

    assert set(statuses().values()) == {"RUNNING"}
    with FileLock(workspace.trials / OTHER.hash / "lock"):  # a process is at work on it
        assert main(["sync"]) == 0
        killed = {TRIAL.hash: "KILLED", earlier.hash: "KILLED"}
        at_work = {OTHER.hash: "RUNNING", elsewhere.hash: "RUNNING", "study": "RUNNING"}
        assert statuses() == killed | at_work
    assert main(["sync"]) == 0
    assert statuses() == killed | at_work | {OTHER.hash: "KILLED"}  # of the study, something runs elsewhere
    client(workspace).set_terminated(tracker.run_id(elsewhere))
    assert main(["sync"]) == 0
    assert statuses()["study"] == "KILLED"
    assert {run.data.tags["status"] for run in runs(workspace) if run.info.status == "KILLED"} == {"stopped"}
    tracker = make_tracker(workspace)  # the next run
    write(begin(workspace, earlier), 2)
    tracker.sync(earlier)
    assert (statuses()[earlier.hash], statuses()["study"]) == ("RUNNING", "RUNNING")


def test_a_trial_that_another_runner_has_is_not_stopped_with_this_one(workspace):
    write(begin(workspace), 1)
    recorder = make_recorder(workspace)
    recorder.saw(TRIAL)
    with FileLock(workspace.trials / TRIAL.hash / "lock"):
        assert recorder.close(60) is None
    assert [run.info.status for run in runs(workspace)] == ["RUNNING"]


def test_sync_reads_a_manifest_that_lacks_the_config(workspace):
    write(begin(workspace), 1)
    parent = make_tracker(workspace).parent
    write_manifest(workspace, TRIAL)
    manifest = read_json(workspace.studies / "mine.json")
    del manifest["config"]
    write_json(workspace.studies / "mine.json", manifest)
    assert main(["sync"]) == 0
    assert runs(workspace)[0].data.tags["mlflow.parentRunId"] == parent


def test_sync_says_in_one_line_that_the_store_cannot_be_reached(workspace, monkeypatch, capsys):
    write_manifest(workspace, TRIAL)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["sync"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("iar-study: cannot use the MLflow store http://127.0.0.1:9: ")
    assert said.count("\n") == 1


def test_sync_passes_over_a_deleted_experiment_and_tells_what_brings_it_back(workspace, capsys):
    write(begin(workspace), 1, 2)
    end(workspace, 2)
    write_manifest(workspace, TRIAL)
    assert main(["sync"]) == 0
    of_mine = client(workspace).get_experiment_by_name("mine").experiment_id
    client(workspace).delete_experiment(of_mine)
    write_json(workspace.studies / "other.json", read_json(workspace.studies / "mine.json") | {"study": "other"})
    capsys.readouterr()
    assert main(["sync"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("other: 1 trials and ")
    (line,) = told.err.splitlines()
    assert line.startswith("iar-study: experiment 'mine' was deleted in MLflow; bring it back: ")
    assignment, *command = line.partition("back: ")[2].split()
    assert assignment == f"MLFLOW_TRACKING_URI={store_uri(workspace)}"
    runner = CliRunner(env=dict([assignment.split("=", 1)]))
    assert runner.invoke(mlflow_command, command[1:]).exit_code == 0
    assert main(["sync"]) == 0
    assert steps(workspace) == [1, 2]


def test_a_recorder_tells_of_a_deleted_experiment_at_its_end(workspace):
    make_tracker(workspace)
    client(workspace).delete_experiment(client(workspace).get_experiment_by_name("mine").experiment_id)
    recorder = make_recorder(workspace)
    recorder.saw(TRIAL)
    assert "experiment 'mine' was deleted in MLflow" in recorder.close(5)


def test_sync_names_the_studies_that_there_are(workspace, capsys):
    write_manifest(workspace, TRIAL)
    assert main(["sync", "mien"]) == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err


def test_mlflow_takes_our_values_of_its_own_settings_unless_the_user_gives_some(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    begun = time.monotonic()
    with pytest.raises(MlflowException):
        make_tracker(workspace)
    assert time.monotonic() - begun < 2  # MLflow's own pauses add up to minutes


def test_sync_of_a_study_that_an_older_version_ran_says_so(workspace, capsys):
    write_json(workspace.studies / "mine.json", {"study": "mine", "arms": [["a", "first"]], "trials": []})
    assert main(["sync"]) == 2
    assert "study 'mine' was run here by an older version; `iar-study run mine` runs it anew" in capsys.readouterr().err


def test_a_trial_that_diverged_is_no_finished_run(workspace, capsys):
    write(begin(workspace), 1)
    end(workspace, 1)
    write(begin(workspace, OTHER), 1)
    diverge(workspace, 2, OTHER)
    tracker = make_tracker(workspace)
    for key in (TRIAL, OTHER):
        tracker.finish(key)
    client(workspace).set_terminated(tracker.run_id(OTHER), "FINISHED")  # as an older version did
    write_manifest(workspace, TRIAL, OTHER)
    for _ in range(2):
        assert main(["sync"]) == 0
        assert capsys.readouterr().out == "mine: 0 trials and 0 points added to MLflow\n"
        found = {run.data.tags["trial"]: (run.info.status, run.data.tags["status"]) for run in runs(workspace)}
        assert found == {TRIAL.hash: ("FINISHED", "finished"), OTHER.hash: ("FAILED", "diverged")}
        assert [run.info.status for run in runs(workspace, "study")] == ["FAILED"]


def test_values_that_are_not_finite_are_logged_once(workspace, capsys):
    journal = begin(workspace)
    journal.write(1, {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.0})
    journal.write(2, {"a": float("nan"), "b": 2.0, "c": 3.0, "d": float("inf")})
    write_manifest(workspace, TRIAL)
    for points in (8, 0):
        assert main(["sync"]) == 0
        assert f"and {points} points added" in capsys.readouterr().out
    (run,) = runs(workspace)
    (first, last) = client(workspace).get_metric_history(run.info.run_id, "a")
    assert math.isnan(first.value)
    assert math.isnan(last.value)
    assert [point.value for point in client(workspace).get_metric_history(run.info.run_id, "b")][1] == 2.0


def test_a_clock_that_jumps_back_loses_and_doubles_no_point(workspace):
    """A resumed training may write an earlier time for a later step; the latest value is that of the last step."""
    begin(workspace)
    times = {1: 10**12, 2: 10**12 + 5, 3: 10**12 - 10**9, 4: 10**12 - 10**9 + 5}
    points = ({"step": step, "time_ms": at, "metrics": {"fd": 10.0 - step}} for step, at in times.items())
    path = workspace.trials / TRIAL.hash / "journal.jsonl"
    path.write_text("".join(json.dumps(point) + "\n" for point in points))
    for _ in range(2):
        make_tracker(workspace).sync(TRIAL)
    assert sorted(steps(workspace, "fd")) == [1, 2, 3, 4]
    (run,) = runs(workspace)
    assert run.data.metrics["fd"] == 6.0


def test_a_parameter_longer_than_the_store_allows_is_shortened_or_told(workspace):
    """MLflow refuses parameters of more than 6,000 characters."""
    begin(workspace)
    path = workspace.trials / TRIAL.hash / "trial.json"
    about = read_json(path)
    long = "folder:" + "x" * 10_000
    write_json(path, {**about, "config": {**about["config"], "data.name": long}})
    end(workspace, 1)
    make_tracker(workspace).finish(TRIAL)
    (run,) = runs(workspace)
    assert run.info.status == "FINISHED"
    assert long.startswith(run.data.params["data.name"].rstrip(".\N{HORIZONTAL ELLIPSIS}"))


@pytest.mark.parametrize("name", ["größer \N{GREEK SMALL LETTER LAMDA}", "n" * 250, "50% of #1 'x' \"y\""])
def test_a_study_of_any_name_that_can_name_a_file_is_tracked(workspace, name):
    study = Study(name, "Why?", "Because.", "a", STUDY.arms)
    write(begin(workspace), 1)
    tracker = Tracker(workspace, study, PROFILE.name, flatten(TrialConfig()))
    tracker.sync(TRIAL)
    again = Tracker(workspace, study, PROFILE.name, flatten(TrialConfig()))
    assert again.experiment == tracker.experiment
    store = client(workspace)
    assert store.get_experiment(tracker.experiment).name == name
    kinds = [run.data.tags["kind"] for run in store.search_runs([tracker.experiment])]
    assert sorted(kinds) == ["study", "trial"]


@pytest.mark.parametrize("revision", ["0123456789ab", "451aebb31d03"], ids=["newer", "the oldest"])
def test_a_store_of_another_version_of_mlflow_is_told_in_one_line_and_stays_as_it_is(workspace, revision):
    """No training is lost by it: `sync` fills in the store once it is brought up to date."""
    with closing(sqlite3.connect(workspace.store)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    write(begin(workspace), 1)
    recorder = make_recorder(workspace)
    recorder.saw(TRIAL)
    problem = recorder.close(3)
    assert f"found version {revision}" in problem
    assert "mlflow db upgrade" in problem
    assert "\n" not in problem
    with closing(sqlite3.connect(workspace.store)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]
