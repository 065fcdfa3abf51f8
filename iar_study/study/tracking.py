"""What MLflow shows: a parent run per study, a nested run per trial. The only module that knows MLflow.

The store is filled from the trials' folders and can be filled again: a point is logged with the journal's own time,
and the store keeps one of equal points. So a store that fails in the middle of a study never stops a training; the
next run of the study fills in what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from iar_study.config import TrialConfig, flatten
from iar_study.errors import InputError
from iar_study.storage import digest, read_json
from iar_study.study.study import Profile, Study
from iar_study.study.trial import Trial
from iar_study.study.workspace import Workspace, is_finished
from iar_study.training.journal import read_journal

STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError)

BATCH = 1000
"""Most metrics that MLflow takes in one call."""

ARTIFACTS = ("samples.png", "codebook.safetensors", "predictions.safetensors", "replaced.safetensors", "trial.json")
"""Files of a trial's folder that its run shows."""


def store_uri(workspace: Workspace) -> str:
    """Return the tracking store: `MLFLOW_TRACKING_URI`, else SQLite in the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.store}"


class Tracker:
    """Writes the runs of one study.

    Raises `InputError` when the store cannot be opened. What fails later is kept in `problem`.
    """

    problem: str | None = None

    def __init__(self, workspace: Workspace, study: Study, profile: Profile, config: TrialConfig) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # no word about tables it creates
        uri = store_uri(workspace)
        self.study = study
        self._logged: dict[str, int] = {}
        try:
            self._open(uri, workspace, study, profile, config)
        except STORE_ERRORS as error:
            raise InputError(
                f"cannot use the MLflow store {uri}: {_first_line(error)}; try `iar-study doctor`"
            ) from error

    def _open(self, uri: str, workspace: Workspace, study: Study, profile: Profile, config: TrialConfig) -> None:
        self.client = MlflowClient(tracking_uri=uri)
        self.experiment = self._experiment(study, workspace, local=uri.startswith("sqlite"))
        if uri == f"sqlite:///{workspace.store}":
            # Readers (the UI) and the writer do not block each other.
            with sqlite3.connect(workspace.store) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        self.parent = self._parent(study, profile, config)
        children = self._search(f"tags.`mlflow.parentRunId` = '{self.parent}'")
        self._children: dict[tuple[str, str], Run] = {
            (run.data.tags["arm"], run.data.tags["trial"]): run for run in children
        }

    def _experiment(self, study: Study, workspace: Workspace, local: bool) -> str:
        found = self.client.get_experiment_by_name(study.name)
        if found:
            return found.experiment_id
        location = (workspace.artifacts / study.name).as_uri() if local else None
        experiment = self.client.create_experiment(study.name, artifact_location=location)
        self.client.set_experiment_tag(experiment, "mlflow.note.content", f"{study.question}\n\n> {study.claim}")
        # The web page then shows trainings first, not traces of agents.
        self.client.set_experiment_tag(experiment, "mlflow.experimentKind", "custom_model_development")
        return experiment

    def _search(self, query: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment], query, max_results=5000))

    def _parent(self, study: Study, profile: Profile, config: TrialConfig) -> str:
        base = digest(asdict(config))[:16]
        found = self._search(f"tags.kind = 'study' and tags.base = '{base}'")
        if found:
            return found[0].info.run_id
        tags = {"kind": "study", "study": study.name, "profile": profile.name, "base": base}
        tags["mlflow.note.content"] = study.question
        run = self.client.create_run(self.experiment, run_name=f"{study.name} ({profile.name})", tags=tags)
        self._log(run.info.run_id, params={k: v for k, v in flatten(config).items() if k != "seed"})
        return run.info.run_id

    def run_id(self, trial: Trial) -> str:
        """Return the id of the trial's run, "" when the store has none yet."""
        run = self._children.get((trial.arm, trial.hash))
        return run.info.run_id if run else ""

    def _started(self, trial: Trial, folder: Path) -> str:
        """Open the run of a trial that has begun, or find the one of an earlier time, and return its id."""
        if not self.run_id(trial):
            about = read_json(folder / "trial.json")
            data = about["data"]
            tags = {
                "kind": "trial",
                "study": self.study.name,
                "arm": trial.arm,
                "seed": str(trial.seed),
                "trial": trial.hash,
                "code_commit": about["code"]["commit"],
                "code_dirty": str(about["code"]["dirty"]).lower(),
                "data_digest": data["digest"],
                "mlflow.parentRunId": self.parent,
                "mlflow.source.name": "iar-study",
                "mlflow.note.content": self.study.arm(trial.arm).description,
                **{f"env.{name}": version for name, version in about["environment"].items()},
            }
            begun = int((folder / "trial.json").stat().st_mtime * 1000)
            name = f"{trial.arm}, seed {trial.seed}"
            run = self.client.create_run(self.experiment, start_time=begun, run_name=name, tags=tags)
            self._children[trial.arm, trial.hash] = run
            source = json.dumps({"name": data["name"], "digest": data["digest"]})
            dataset = Dataset(data["name"], data["digest"][:16], "local", source, profile=json.dumps(data))
            self.client.log_inputs(run.info.run_id, datasets=[DatasetInput(dataset, [])])
            self._log(run.info.run_id, params={**about["config"], "arm": trial.arm})
        return self.run_id(trial)

    def is_complete(self, trial: Trial) -> bool:
        """Does the store already hold all of this finished trial?"""
        run = self._children.get((trial.arm, trial.hash))
        return run is not None and run.info.status == "FINISHED"

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Keep a failure of the store in `problem` instead of letting it stop a training."""
        try:
            yield
        except STORE_ERRORS as error:
            self.problem = _first_line(error)

    def sync(self, trial: Trial, folder: Path) -> None:
        """Log what the trial's journal has gained since the last call."""
        with self._tolerant():
            self._sync(trial, folder)

    def _sync(self, trial: Trial, folder: Path) -> None:
        run_id = self._started(trial, folder)
        points = read_journal(folder / "journal.jsonl")
        new = points[self._logged.get(run_id, 0) :]
        metrics = (
            Metric(_name(name), value, point["time_ms"], point["step"])
            for point in new
            for name, value in point["metrics"].items()
        )
        self._log(run_id, metrics=metrics)
        self._logged[run_id] = len(points)

    def finish(self, trial: Trial, folder: Path) -> None:
        """Log the rest of a trial: final figures, pictures, codebook with clustering, environment; end its run."""
        with self._tolerant():
            self._finish(trial, folder)

    def _finish(self, trial: Trial, folder: Path) -> None:
        if not (folder / "trial.json").exists():
            return  # it failed before it began
        run_id = self._started(trial, folder)
        self._sync(trial, folder)
        if not is_finished(folder):
            self.client.set_terminated(run_id, "FAILED")
            return
        result = read_json(folder / "result.json")
        ended = int((folder / "result.json").stat().st_mtime * 1000)
        # What was validated stands in the journal, at this step.
        final = {name: value for name, value in result["metrics"].items() if not name.startswith("val/")}
        self._log(
            run_id,
            metrics=(Metric(_name(name), value, ended, result["step"]) for name, value in final.items()),
            tags={"status": result["status"]},
        )
        for name in ARTIFACTS:
            if (folder / name).exists():
                self.client.log_artifact(run_id, str(folder / name))
        self.client.set_terminated(run_id, "FINISHED", end_time=ended)

    def finish_study(self, files: Iterable[Path]) -> None:
        """Attach the study's own files to the parent run and end it."""
        with self._tolerant():
            for path in files:
                self.client.log_artifact(self.parent, str(path))
            self.client.set_terminated(self.parent, "FINISHED")

    def _log(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Iterable[Metric] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log in batches of the size that the store takes."""
        points = list(metrics)
        parameters = [Param(key, str(value)) for key, value in (params or {}).items()]
        labels = [RunTag(key, value) for key, value in (tags or {}).items()]
        if parameters or labels:
            self.client.log_batch(run_id, params=parameters, tags=labels)
        for first in range(0, len(points), BATCH):
            self.client.log_batch(run_id, metrics=points[first : first + BATCH])


def _name(metric: str) -> str:
    """Return the metric's name in MLflow, which takes no @: fd/classifier@2k is fd/classifier:2k there."""
    return metric.replace("@", ":")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
