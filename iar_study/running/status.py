"""How far the trials of a study are, told from their folders: also while another process runs them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from iar_study.errors import InputError
from iar_study.pipeline.workspace import Workspace, ending, is_running, read_manifest, read_record
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
    diverged: bool = False
    running: bool = False


def counted(status: Sequence[Status]) -> str:
    """Say how many trials have ended, and of these diverged."""
    diverged = sum(trial.diverged for trial in status)
    of_these = f", {diverged} of them diverged" if diverged else ""
    return f"{sum(trial.ended for trial in status)} of {len(status)} trials have ended{of_these}"


def status_of(workspace: Workspace, study: str) -> list[Status]:
    """Return how far every trial is that the last run of `study` asked for.

    Raises `InputError` where the study was not run here.
    """
    found = []
    manifest = read_manifest(workspace, study)
    for trial in manifest["trials"]:
        folder = workspace.trials / trial["hash"]
        step, steps, ended = 0, 0, ""
        with suppress(InputError, OSError):  # what is being written this moment is read the next time
            if (folder / "trial.json").exists():
                config = read_record(folder)["config"]
                near = manifest["kind"] == "near-codes"  # its steps are ranks
                steps = config["tokenizer.codebook_size"] - 1 if near else config["train.steps"]
                journal = read_journal(folder / "journal.jsonl")
                step = journal[-1]["step"] if journal else 0
        running = is_running(folder)  # in this order: one that ends meanwhile has ended
        with suppress(InputError, OSError):
            ended = ending(folder)
        state = (ended != "", step, steps, ended == "diverged", running)
        found.append(Status(trial["arm"], trial["seed"], *state))
    return found
