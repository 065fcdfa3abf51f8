"""Where a study keeps its files: the folder that holds `experiments/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iar_study.errors import InputError


@dataclass(frozen=True)
class Workspace:
    """The folders below one root.

    runs/cache       products shared by trials (tokenizer, codes, classifier, clusterings), named by content
    runs/trials      one folder per trial, named by its hash
    runs/studies     which trials the last run of a study asked for
    mlflow.db        the tracking store; its pictures and files lie in mlartifacts
    """

    root: Path
    frozen: bool = False
    """Whether nothing is to be made: a stage that is not in the cache then raises `stages.NotMade`."""

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """Return the workspace at `start` (default: the current folder) or above it."""
        start = (start or Path.cwd()).resolve()
        for folder in (start, *start.parents):
            if (folder / "experiments" / "profiles.py").is_file():
                return cls(folder)
        raise InputError(f"no experiments/ folder in {start} or above; change into a clone of iar_study")

    @property
    def experiments(self) -> Path:
        return self.root / "experiments"

    @property
    def cache(self) -> Path:
        return self.root / "runs" / "cache"

    @property
    def trials(self) -> Path:
        return self.root / "runs" / "trials"

    @property
    def studies(self) -> Path:
        return self.root / "runs" / "studies"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def store(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "mlartifacts"


def is_finished(folder: Path) -> bool:
    """Has the trial of this folder ended, in a result or in divergence?"""
    return (folder / "result.json").exists()
