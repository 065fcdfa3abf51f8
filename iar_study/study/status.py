"""How far the trials of a study are, told from their folders: also while another process runs them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from iar_study.errors import InputError
from iar_study.storage import read_json
from iar_study.study.workspace import Workspace, is_finished, is_running, read_manifest
from iar_study.training.journal import read_journal


@dataclass(frozen=True)
class Status:
    """How far one trial is: `step` of `steps`, whether it has ended, and whether a process is at work on it.

    `steps` is 0 before it was begun.
    """

    arm: str
    seed: int
    ended: bool
    step: int
    steps: int
    running: bool = False


def status_of(workspace: Workspace, study: str) -> list[Status]:
    """Return how far every trial is that the last run of `study` asked for.

    Raises `InputError` where the study was not run here.
    """
    found = []
    for trial in read_manifest(workspace, study)["trials"]:
        folder = workspace.trials / trial["hash"]
        step = steps = 0
        with suppress(InputError, OSError):  # what is being written this moment is read the next time
            if (folder / "trial.json").exists():
                steps = read_json(folder / "trial.json")["config"]["train.steps"]
                journal = read_journal(folder / "journal.jsonl")
                step = journal[-1]["step"] if journal else 0
        found.append(Status(trial["arm"], trial["seed"], is_finished(folder), step, steps, is_running(folder)))
    return found
