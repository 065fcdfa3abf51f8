"""What MLflow shows: a parent run per study, a nested run per trial. The only module that knows MLflow.

The trials' journals are the record, and the store is filled from them: by a `Recorder` while a study runs, on a thread
of its own, so that a store that is down or slow neither stops nor delays a training; by `fill_in` afterwards. Both can
be killed at any moment and begun again. What is logged already is told by the store itself: the points of a run are
logged in the journal's order, each batch in one transaction, so the run's last step says where to go on. Where an
answer of the store was lost, a batch is sent twice; the points have the journal's own times, and the store keeps one
of equal points.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, LifecycleStage, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from iar_study.config import TrialConfig, flatten
from iar_study.errors import InputError, nearest
from iar_study.pipeline.workspace import Workspace, ending, is_finished, is_running, read_manifest
from iar_study.storage import digest, read_json, write_json
from iar_study.study.study import Arm, Profile, Study
from iar_study.tracking.store import DATABASES, SERVERS, check_store, shown, store_uri

STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError)

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow would wait 120 s for an answer and ask seven times more. It would also ask again for a run to be created
    # when the answer alone was lost, and so make two. The recorder tries again, and first looks what there is.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
}
"""What MLflow is told, unless the user has said otherwise."""

BATCH = 1000
"""Most metrics that MLflow takes in one call; of parameters it takes 100."""

CONFLICTS = 20
"""How often a batch is sent again, of whose points another process logged some at the same moment."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a failure is tried again; each pause is twice the one before."""

LOCK_PATIENCE = 60.0
"""Seconds to wait for another process that creates the store or a run in it."""

ADVISORY_LOCK = 0x1A2_57D7
"""Number of the lock, in a PostgreSQL database, that is held while its tables or a run are created."""

ENDED = {"finished": "FINISHED", "diverged": "FAILED"}
"""How a trial has ended -> MLflow's own status, which knows no divergence: a run without its metrics is no success."""

ARTIFACTS = ("samples.png", "predictions.safetensors", "replaced.safetensors", "trial.json")
"""Files of a trial's folder that its run shows."""

NOTE = """{question}

> {claim}

A run per study and, nested in it, one per trial. Group the runs by the tag `arm` to see each arm's mean over its seeds.
Where a metric's name has an @ in reports it has a : here."""


class StoreError(Exception):
    """The store cannot be reached or refuses what it is given; the message says which, and why, in one line."""


class Deleted(StoreError):
    """A study's experiment was deleted in MLflow, which keeps its name."""


class Named(Protocol):
    """What is known of a trial here; its folder is named by its hash."""

    @property
    def arm(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def hash(self) -> str: ...


@dataclass(frozen=True)
class Key:
    """A trial of a study. Two arms may be the same trial, by its hash, and have a run each."""

    arm: str
    seed: int
    hash: str

    @classmethod
    def of(cls, trial: Named) -> Key:
        return cls(trial.arm, trial.seed, trial.hash)


@contextmanager
def _alone(workspace: Workspace, uri: str) -> Iterator[None]:
    """Keep other processes from creating the store, or a run in it, at the same time.

    They are those on this store of SQLite or on this PostgreSQL database, and else those in this workspace. MLflow
    itself guards the creation of its tables only, and by a file in the temporary folder, which a batch system gives to
    every job anew.
    """
    url = make_url(uri) if uri.startswith(DATABASES) else None
    lock = workspace.root / "runs" / "mlflow.lock"
    if url is not None and url.get_backend_name() == "sqlite":
        lock = Path(f"{url.database}.lock").absolute()
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=LOCK_PATIENCE):
        if url is None or url.get_backend_name() != "postgresql":
            yield
            return
        # No pool: a connection that went back to one would stay open, and the lock with it.
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:  # the lock ends with the connection, also of a process that is killed
            connection.execute(text(f"SET lock_timeout = {int(LOCK_PATIENCE * 1000)}"))
            connection.execute(text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
            yield


def _make_sqlite(path: Path, artifacts: Path) -> None:
    """Make the tables of a new store; let readers (the UI) and the writer of any store not block each other.

    The tables take seconds, and a process may be killed in the middle of them: the file gets its name at the end.
    """
    made = path.with_name(f"{path.name}.new")
    fresh = not path.exists() or path.stat().st_size == 0
    if fresh:
        for leftover in path.parent.glob(f"{made.name}*"):
            leftover.unlink()
        SqlAlchemyStore(f"sqlite:///{made.absolute()}", artifacts.as_uri()).engine.dispose()
    with closing(sqlite3.connect(made if fresh else path, timeout=LOCK_PATIENCE)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # it stays with the file
    if fresh:
        os.replace(made, path)


@dataclass
class _Logged:
    """What the store holds of a trial."""

    id: str
    status: str
    label: str
    """Our own status, a tag."""
    steps: dict[str, int]
    """Metric -> the last step that is logged of it."""
    offset: int = 0
    """Bytes of the journal that are read."""

    @classmethod
    def of(cls, run: Run) -> _Logged:
        steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        return cls(run.info.run_id, run.info.status, run.data.tags.get("status", ""), steps)

    @property
    def step(self) -> int:
        """The last step of which all is logged, as the points of a step go in one batch."""
        return max(self.steps.values(), default=-1)


class Tracker:
    """Writes the runs of one study, at once, and raises what the store raises.

    After an error, make a new one: it learns from the store what is there.

    Parameters
    ----------
    profile : its name.
    config : the dotted keys that all arms begin with; None where they are not known any more.

    Attributes
    ----------
    runs, points : how many runs and values of metrics were added.
    """

    def __init__(
        self, workspace: Workspace, study: Study, profile: str, config: Mapping[str, Any] | None, *, opened: bool = True
    ) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # No word about tables that are created, no traceback of a store that is down: the caller says it in one line.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        self.workspace, self.study, self.profile = workspace, study, profile
        self.descriptions = {arm.name: arm.description for arm in study.arms}
        self.uri = store_uri(workspace)
        self.runs = self.points = 0
        self._trials: dict[Key, _Logged] = {}
        with _alone(workspace, self.uri):
            if self.uri.startswith("sqlite"):
                _make_sqlite(Path(str(make_url(self.uri).database)), workspace.artifacts)
            self.client = MlflowClient(tracking_uri=self.uri)
            self.experiment = self._experiment()
            self.parent = self._parent(config, opened)

    def _experiment(self) -> str:
        study = self.study
        found = self.client.get_experiment_by_name(study.name)
        if found and found.lifecycle_stage == LifecycleStage.DELETED:
            restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
            raise Deleted(
                f"experiment {study.name!r} was deleted in MLflow; bring it back: "
                f"MLFLOW_TRACKING_URI={shown(self.uri)} {restore}"
            )
        if found:
            return found.experiment_id
        # A server keeps files itself; a database leaves it to who writes into it.
        at_hand = not self.uri.startswith(SERVERS)
        location = (self.workspace.artifacts / study.name).as_uri() if at_hand else None
        tags = {
            "mlflow.note.content": NOTE.format(question=study.question, claim=study.claim),
            # The web page then shows trainings first, not traces of agents.
            "mlflow.experimentKind": "custom_model_development",
        }
        return self.client.create_experiment(study.name, artifact_location=location, tags=tags)

    @property
    def page(self) -> str:
        """Address of the page that the study's runs lie below, without user and password; "" without a server."""
        server = re.sub(r"(?<=://)[^/@]*@", "", self.uri).rstrip("/")
        return f"{server}/#/experiments/{self.experiment}/runs" if self.uri.startswith("http") else ""

    def _search(self, query: str) -> list[Run]:
        """Return the runs that match, the oldest first."""
        runs = self.client.search_runs([self.experiment], query, max_results=1000)
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _parent(self, config: Mapping[str, Any] | None, opened: bool) -> str:
        shared = None if config is None else {key: value for key, value in config.items() if key != "seed"}
        base = None if shared is None else digest(shared)[:16]
        at = f"tags.profile = '{self.profile}'" if base is None else f"tags.base = '{base}'"
        found = self._search(f"tags.kind = 'study' and {at}")
        if found:
            run = found[-1] if base is None else found[0]
            if opened and run.info.status != "RUNNING":
                self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            arms = "\n".join(f"- `{name}`: {text}" for name, text in self.descriptions.items())
            tags = {
                "kind": "study",
                "study": self.study.name,
                "profile": self.profile,
                "baseline": self.study.baseline,
                "base": base or "",
                "mlflow.source.name": "iar-study",
                "mlflow.note.content": f"{self.study.question}\n\n{arms}",
            }
            name = f"{self.study.name} ({self.profile})"
            run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        if shared and not run.data.params:
            self._describe(run.info.run_id, params=shared)
        return run.info.run_id

    def run_id(self, trial: Named) -> str:
        """Return the id of the trial's run, "" before it was looked for or made."""
        logged = self._trials.get(Key.of(trial))
        return logged.id if logged else ""

    def folder(self, trial: Named) -> Path:
        return self.workspace.trials / trial.hash

    def _found(self, trial: Named) -> Run | None:
        """Return the trial's run, where the store has one."""
        runs = self._search(f"tags.`mlflow.parentRunId` = '{self.parent}' and tags.trial = '{trial.hash}'")
        return next((run for run in runs if run.data.tags.get("arm") == trial.arm), None)

    def _started(self, trial: Named) -> _Logged | None:
        """Find the run of a trial, or make it; None before the trial has begun."""
        key = Key.of(trial)
        if key not in self._trials:
            run = self._found(trial)
            path = self.folder(trial) / "trial.json"
            if run is None and not path.exists():
                return None
            if run is None:
                with _alone(self.workspace, self.uri):
                    run = self._found(trial) or self._create(trial, path)
            # The arm is the last that is logged of a new run: without it, whoever made the run was killed.
            if "arm" not in run.data.params and path.exists():
                self._describe_trial(run.info.run_id, trial, read_json(path))
            self._trials[key] = _Logged.of(run)
        return self._trials[key]

    def _create(self, trial: Named, path: Path) -> Run:
        about = read_json(path)
        tags = {
            "kind": "trial",
            "study": self.study.name,
            "profile": self.profile,
            "arm": trial.arm,
            "seed": str(trial.seed),
            "trial": trial.hash,
            "training": about.get("training") or "",
            "status": "running",
            "code_commit": about["code"]["commit"],
            "code_dirty": str(about["code"]["dirty"]).lower(),
            "data_digest": about["data"]["digest"],
            "mlflow.parentRunId": self.parent,
            "mlflow.source.name": "iar-study",
            "mlflow.note.content": self.descriptions.get(trial.arm, ""),
            **{f"env.{name}": version for name, version in about["environment"].items()},
        }
        # The trial's own time: the store may be filled in days later.
        begun = int(path.stat().st_mtime * 1000)
        name = f"{trial.arm}, seed {trial.seed}"
        self.runs += 1
        return self.client.create_run(self.experiment, start_time=begun, run_name=name, tags=tags)

    def _describe_trial(self, run_id: str, trial: Named, about: dict[str, Any]) -> None:
        data = about["data"]
        source = json.dumps({"name": data["name"], "digest": data["digest"]})
        dataset = Dataset(data["name"], data["digest"][:16], "local", source, profile=json.dumps(data))
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, [])])
        self._describe(run_id, params={**about["config"], "arm": trial.arm})

    def sync(self, trial: Named) -> None:
        """Log what the trial's journal has gained."""
        logged = self._started(trial)
        if logged is None:
            return
        gained = self._log_journal(logged, self.folder(trial) / "journal.jsonl")
        if gained and logged.status != "RUNNING":
            self._set_status(logged, "RUNNING", "running")  # it is resumed

    def _log_journal(self, logged: _Logged, path: Path) -> bool:
        """Log the points that the store lacks; return whether there were any."""
        lines, end = _whole_lines(path, logged.offset)
        points = [point for point in map(json.loads, lines) if point["step"] > logged.step]
        self._log_metrics(logged, map(_metrics, points))
        logged.offset = end
        return bool(points)

    def finish(self, trial: Named) -> None:
        """Log the rest of a trial that has ended: final figures, pictures, codebook; end its run."""
        logged = self._started(trial)
        if logged is None or ENDED.get(logged.label) == logged.status:
            return  # it failed before it began, or all of it is there
        folder = self.folder(trial)
        self._log_journal(logged, folder / "journal.jsonl")
        if not is_finished(folder):
            self._set_status(logged, "FAILED", "failed")
            return
        result = read_json(folder / "result.json")
        ended = int((folder / "result.json").stat().st_mtime * 1000)
        # Most of it, or all, stands in the journal at this step; what was validated always does.
        rest = [
            Metric(_name(name), value, ended, result["step"])
            for name, value in result["metrics"].items()
            if not name.startswith("val/") and logged.steps.get(_name(name), -1) < result["step"]
        ]
        self._log_metrics(logged, [rest])
        trained = self.workspace.trainings / (read_json(folder / "trial.json").get("training") or "")
        for path in [*(folder / name for name in ARTIFACTS), trained / "codebook.safetensors"]:
            if path.exists():
                self.client.log_artifact(logged.id, str(path))
        self._set_status(logged, ENDED[result["status"]], result["status"], ended)

    def add(self, trial: Named, measured: Path) -> None:
        """Log what was measured later of the training of a trial that has ended, in a folder like its own."""
        logged, result = self._started(trial), measured / "result.json"
        if logged is None or not result.exists():
            return
        found, at = read_json(result), int(result.stat().st_mtime * 1000)
        new = {name: value for name, value in found["metrics"].items() if _name(name) not in logged.steps}
        self._log_metrics(logged, [[Metric(_name(name), value, at, found["step"]) for name, value in new.items()]])

    def stop(self, trial: Named) -> None:
        """Say of a trial that shows as running, and no process is at work on, that it was stopped and can go on."""
        logged, folder = self._started(trial), self.folder(trial)
        if logged is None or logged.status != "RUNNING":
            return
        self._log_journal(logged, folder / "journal.jsonl")
        # In this order: one that ends meanwhile is finished. What is not here may run elsewhere, on the same store.
        if not is_running(folder) and not is_finished(folder) and folder.exists():
            self._set_status(logged, "KILLED", "stopped")

    def running(self) -> list[Key]:
        """Return the trials that show as running, also of an earlier run of the study with other arms or seeds."""
        runs = self._search(f"tags.`mlflow.parentRunId` = '{self.parent}' and attributes.status = 'RUNNING'")
        return [Key(run.data.tags["arm"], int(run.data.tags["seed"]), run.data.tags["trial"]) for run in runs]

    def stop_study(self) -> None:
        """Say of the study, where it shows as running and none of its trials does, that it was stopped."""
        if self.client.get_run(self.parent).info.status == "RUNNING" and not self.running():
            self.close("KILLED")

    def outcome(self, trials: Iterable[Named]) -> str:
        """Return how a study ends whose trials have: FINISHED, or FAILED where one of them failed or diverged."""
        return "FINISHED" if all(ending(self.folder(trial)) == "finished" for trial in trials) else "FAILED"

    def close(self, status: str, files: Iterable[Path] = ()) -> None:
        """Attach the study's own files to the parent run and end it as FINISHED, FAILED or KILLED."""
        for path in files:
            self.client.log_artifact(self.parent, str(path))
        self.client.set_terminated(self.parent, status)

    def _set_status(self, logged: _Logged, status: str, label: str, ended: int | None = None) -> None:
        """Set MLflow's own status and, as it knows no divergence, ours as a tag."""
        self.client.set_tag(logged.id, "status", label)
        if status == "RUNNING":
            self.client.update_run(logged.id, status=status)
        else:
            self.client.set_terminated(logged.id, status, end_time=ended)
        logged.status, logged.label = status, label

    def _log_metrics(self, logged: _Logged, points: Iterable[list[Metric]]) -> None:
        """Log in batches of what MLflow takes, without cutting a point: see `_Logged.step`."""
        batch: list[Metric] = []

        def send() -> None:
            if batch:
                self._send(logged.id, batch)
                self.points += len(batch)
                logged.steps.update((metric.key, metric.step) for metric in batch)
                batch.clear()

        for point in points:
            if len(batch) + len(point) > BATCH:
                send()
            batch += point
        send()

    def _send(self, run_id: str, batch: list[Metric]) -> None:
        """Log a batch. MLflow leaves out what is there already, but not what comes while it looks: then once more."""
        for conflicts in range(CONFLICTS + 1):
            try:
                self.client.log_batch(run_id, metrics=batch)
                return
            except MlflowException as error:
                if conflicts == CONFLICTS or "unique constraint" not in str(error).lower():
                    raise

    def _describe(self, run_id: str, params: Mapping[str, Any]) -> None:
        given = [Param(key, str(value)) for key, value in params.items()]
        for first in range(0, len(given), BATCH // 10):
            self.client.log_batch(run_id, params=given[first : first + BATCH // 10])


class Recorder:
    """Fills the store from the trials' journals while a study runs, on a thread of its own.

    No method waits for the store but `close`, and none raises because of it: what fails is tried again, with growing
    pauses.

    Raises
    ------
    InputError : MLFLOW_TRACKING_URI can never be a store, such as one of files or of an unknown kind.
    """

    def __init__(self, workspace: Workspace, study: Study, profile: Profile, config: TrialConfig) -> None:
        check_store(store_uri(workspace))
        self._open = partial(Tracker, workspace, study, profile.name, flatten(config))
        self._tracker: Tracker | None = None
        self._ids: dict[Key, str] = {}
        self._files: Sequence[Path] = ()
        # What follows is touched under the condition's lock only.
        self._news = threading.Condition()
        self._todo: dict[Key, Callable[[Tracker, Key], None]] = {}  # first what waits the longest
        self._running: set[Key] = set()
        self._ended: set[Key] = set()
        self._problem: str | None = None
        self._closing = self._gone = False
        # A daemon: a call to a store that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def saw(self, trial: Named) -> None:
        """Note that the trial's journal has grown."""
        key = Key.of(trial)
        with self._news:
            if key not in self._ended:  # else this is the last look at its journal
                self._running.add(key)
            self._todo.setdefault(key, Tracker.sync)
            self._news.notify()

    def ended(self, trial: Named) -> None:
        """Note that the trial is finished or has failed: log the rest of it and end its run."""
        key = Key.of(trial)
        with self._news:
            self._ended.add(key)
            self._running.discard(key)
            self._todo[key] = Tracker.finish
            self._news.notify()

    def run_id(self, trial: Named) -> str:
        """Return the id of the trial's run, "" while it is not known."""
        return self._ids.get(Key.of(trial), "")

    @property
    def page(self) -> str:
        """Address of the page that the study's runs lie below, "" while it is not known or without a server."""
        return self._tracker.page if self._tracker else ""

    def close(self, patience_s: float = 30.0, files: Sequence[Path] = ()) -> str | None:
        """Wait so many seconds for what is left to be logged; return what is in the way, if anything.

        Trials that have not ended are shown as stopped. `files` are attached to the study's run.
        """
        with self._news:
            self._todo |= dict.fromkeys(self._running, Tracker.stop)
            self._files, self._closing = files, True
            self._news.notify()
        self._thread.join(patience_s)
        if not self._thread.is_alive():
            return None
        with self._news:
            self._gone = True  # the thread ends after the call that it is in
            self._news.notify()
            return self._problem or f"the store has not taken all of it within {patience_s:g} s"

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._news:
                self._news.wait_for(lambda: self._todo or self._closing)
                if self._gone:
                    return
                key = next(iter(self._todo), None)
                act = self._todo.pop(key) if key else None
            try:
                self._tracker = self._tracker or self._open()
                if key is None or act is None:
                    status = "KILLED" if self._running else self._tracker.outcome(self._ended)
                    self._tracker.close(status, self._files)
                    return
                act(self._tracker, key)
                self._ids[key] = self._tracker.run_id(key)
                pause = FIRST_PAUSE
                with self._news:
                    self._problem = self._problem if self._todo else None
            except Exception as error:  # whatever it is, no training shall end for it
                self._tracker = None
                with self._news:
                    self._problem = reason(error)
                    if key and act and self._todo.get(key, Tracker.sync) == Tracker.sync:
                        self._todo.pop(key, None)
                        self._todo[key] = act  # at the end: it must not keep the others waiting
                    hurried = self._news.wait_for(partial(self._hurried, self._closing), pause)
                pause = FIRST_PAUSE if hurried else min(2 * pause, LONGEST_PAUSE)

    def _hurried(self, was_closing: bool) -> bool:
        """Does someone wait since the pause began?"""
        return self._gone or self._closing > was_closing


@dataclass
class Filled:
    """What `fill_in` added to the store."""

    studies: list[str] = field(default_factory=list)
    runs: int = 0
    points: int = 0
    skipped: list[str] = field(default_factory=list)
    """What is in the way of studies that were left out."""


def fill_in(workspace: Workspace, study: str | None = None) -> Filled:
    """Log what the store lacks of the last run of `study` (default: of every study), from the trials' folders alone.

    What shows as running there, though its process was killed, is said to be stopped. The ids of the runs are written
    into the studies' manifests. A study whose experiment was deleted is left out, and told.

    Raises
    ------
    InputError : no such study was run here; MLFLOW_TRACKING_URI can never be a store.
    StoreError : the store cannot be reached.
    """
    uri = store_uri(workspace)
    check_store(uri)
    known = sorted(path.stem for path in workspace.studies.glob("*.json"))
    if study is not None and study not in known:
        hint = nearest(study, known) if known else "no study was run here yet"
        raise InputError(f"study {study!r} was not run here; {hint}")
    filled = Filled()
    for name in known if study is None else [study]:
        try:
            tracker = _fill_in_study(workspace, workspace.studies / f"{name}.json")
        except Deleted as error:
            filled.skipped.append(str(error))
            continue
        except STORE_ERRORS as error:
            raise StoreError(f"cannot use the MLflow store {shown(uri)}: {reason(error)}") from error
        filled.studies.append(name)
        filled.runs += tracker.runs
        filled.points += tracker.points
    return filled


def _fill_in_study(workspace: Workspace, path: Path) -> Tracker:
    manifest = read_manifest(workspace, path.stem)
    arms = tuple(Arm(arm["name"], arm["description"], beside=arm["beside"]) for arm in manifest["arms"])
    study = Study(manifest["study"], manifest["question"], manifest["claim"], manifest["baseline"], arms)
    tracker = Tracker(workspace, study, manifest["profile"], manifest.get("config"), opened=False)
    keys = [Key(trial["arm"], trial["seed"], trial["hash"]) for trial in manifest["trials"]]
    for key in dict.fromkeys([*keys, *tracker.running()]):
        if is_finished(tracker.folder(key)):
            tracker.finish(key)
        else:
            tracker.sync(key)
            tracker.stop(key)
    for each in manifest.get("measured", []):
        tracker.add(Key(each["arm"], each["seed"], each["trial"]), workspace.trials / each["hash"])
    if all(is_finished(tracker.folder(key)) for key in keys):
        tracker.close(tracker.outcome(keys))
    elif not any(is_running(tracker.folder(key)) for key in keys):
        tracker.stop_study()
    # A run of the study may have written it anew in the meantime: what it asked for stays.
    manifest = read_json(path)
    manifest["page"] = tracker.page or manifest.get("page", "")
    ids = {(key.arm, key.hash): tracker.run_id(key) for key in keys}
    for trial in manifest["trials"]:
        trial["run_id"] = ids.get((trial["arm"], trial["hash"])) or trial["run_id"]
    write_json(path, manifest)
    return tracker


def _whole_lines(path: Path, offset: int) -> tuple[list[bytes], int]:
    """Return the lines from `offset` on that are whole, and where they end. A file that has shrunk is a new one."""
    if not path.exists():
        return [], 0
    with open(path, "rb") as file:
        offset = offset if file.seek(0, os.SEEK_END) >= offset else 0
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    return whole.splitlines(), offset + len(whole + newline)


def _metrics(point: Mapping[str, Any]) -> list[Metric]:
    return [Metric(_name(name), value, point["time_ms"], point["step"]) for name, value in point["metrics"].items()]


def _name(metric: str) -> str:
    """Return the metric's name in MLflow, which takes no @: fd/classifier@2k is fd/classifier:2k there."""
    return metric.replace("@", ":")


def reason(error: BaseException) -> str:
    """Return in one line what went wrong: the innermost that MLflow wraps, such as [Errno 111] Connection refused."""
    while isinstance(error, STORE_ERRORS) and (inner := error.__cause__ or error.__context__):
        error = inner
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
