"""Where a study keeps its files: the folder that holds `experiments/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iar_study.config import TrialConfig, flatten, with_settings
from iar_study.errors import InputError


@dataclass(frozen=True)
class Workspace:
    """The folders below one root.

    runs/cache       products shared by trials (tokenizer, codes, evaluators, clusterings), named by content
    runs/trainings   one folder per training, named by its hash: weights, and the samples drawn with them
    runs/trials      one folder per trial, named by its hash: what was measured of a training
    runs/studies     which trials the last run of a study asked for
    runs/again.json  names of what was made again since its makers' source changed
    runs/warnings.log  what libraries warned of
    mlflow.db        the tracking store; its pictures and files lie in mlartifacts
    """

    root: Path
    frozen: bool = False
    """Whether nothing is to be made: a stage that is not in the cache then raises `stages.NotMade`."""
    again: bool = False
    """Whether what another source of its makers made is made anew, under another name (see `makers`)."""

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
    def trainings(self) -> Path:
        return self.root / "runs" / "trainings"

    @property
    def studies(self) -> Path:
        return self.root / "runs" / "studies"

    def name(self, plain: str) -> str:
        """Return the name that a trial or product has now: its own, or the last that it was made again under."""
        return self._names().get(plain, plain)

    def rename(self, plain: str, name: str) -> None:
        """Remember under which name a trial or product is made again; called while no other run prepares."""
        from iar_study.storage import write_json

        write_json(self._made_again, {**self._names(), plain: name})

    def _names(self) -> dict[str, str]:
        from iar_study.storage import read_json

        return read_json(self._made_again) if self._made_again.exists() else {}

    @property
    def _made_again(self) -> Path:
        return self.root / "runs" / "again.json"

    @property
    def warnings(self) -> Path:
        """The log of what libraries warned of."""
        return self.root / "runs" / "warnings.log"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def example(self) -> Path:
        """The committed results of a real run, a file of `export`."""
        return self.root / "reports" / "example" / "results.tar.xz"

    @property
    def store(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "mlartifacts"


def studies_run(workspace: Workspace, study: str | None = None) -> list[str]:
    """Return the names of the studies that were run in a workspace, sorted; with `study`, that one alone.

    Raises `InputError` where none was, or not this one.
    """
    known = sorted(path.stem for path in workspace.studies.glob("*.json"))
    if study is not None and study not in known:
        hint = f"run here so far: {', '.join(known)}" if known else "no study was run here yet"
        raise InputError(f"no results of study {study!r}: `iar-study run {study}` makes them; {hint}")
    if not known:
        raise InputError("no study was run here yet; begin with `iar-study run components`")
    return known if study is None else [study]


def read_manifest(workspace: Workspace, study: str) -> dict[str, Any]:
    """Return what the last run of a study asked for: its arms, its trials, what these were made from.

    Raises `InputError` where it was not run here, or by an older version.
    """
    from iar_study.storage import read_json  # here: it imports NumPy, for which `list` does not wait

    studies_run(workspace, study)
    manifest = read_json(workspace.studies / f"{study}.json")
    if "factor" not in manifest:
        raise InputError(f"study {study!r} was run here by an older version; `iar-study run {study}` runs it anew")
    return manifest


def trials_told(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the trials that a manifest names, and after them what was measured of their trainings later."""
    return [*manifest["trials"], *manifest.get("measured", [])]


def studies_made(workspace: Workspace, studies: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """Return the folders of the trials, and the products, that the last runs of studies asked for."""
    manifests = [read_manifest(workspace, study) for study in studies]
    folders = [workspace.trials / trial["hash"] for each in manifests for trial in trials_told(each)]
    folders += [workspace.trainings / name for each in manifests for name in each.get("trainings", ())]
    return folders, [workspace.cache / name for manifest in manifests for name in manifest.get("products", ())]


def near_codes_trials(workspace: Workspace) -> list[Path]:
    """Return the folders of the finished trials that tell what near codes look like, of all studies run here."""
    from iar_study.storage import read_json

    manifests = [read_json(path) for path in sorted(workspace.studies.glob("*.json"))]
    hashes = [trial["hash"] for each in manifests if each.get("kind") == "near-codes" for trial in each["trials"]]
    return [folder for name in dict.fromkeys(hashes) if is_finished(folder := workspace.trials / name)]


def is_finished(folder: Path) -> bool:
    """Has the trial of this folder ended, in a result or in divergence?"""
    return (folder / "result.json").exists()


def ending(folder: Path) -> Literal["finished", "diverged", ""]:
    """Return how the trial of this folder has ended: "finished" or "diverged"; "" where it has not."""
    from iar_study.storage import read_json

    return read_json(folder / "result.json")["status"] if is_finished(folder) else ""


def read_record(folder: Path) -> dict[str, Any]:
    """Return what trial.json says of a trial; settings that are younger than it have their defaults in its config."""
    from iar_study.storage import read_json

    about = read_json(folder / "trial.json")
    # Weights were kept at the end alone, before there was a choice.
    config = {**flatten(TrialConfig()), "train.kept": 1, **about.get("config", {})}
    return {**about, "config": {key: config[key] for key in sorted(config)}}  # in the order that they are stored in


def config_of(record: Mapping[str, Any]) -> TrialConfig:
    """Return the config of a trial, as `read_record` tells it, without settings that there were before."""
    return with_settings(TrialConfig(), {key: record["config"][key] for key in flatten(TrialConfig())})


def is_running(folder: Path) -> bool:
    """Is a process at work on the trial of this folder right now?"""
    from iar_study.storage import is_locked

    return is_locked(folder / "lock")


PICTURES_OF = "pictures-of-"
"""How the name begins of a reference of which `import` has the pictures alone: no trial is to take it for whole."""


def pictures_of(reference: str, workspace: Workspace) -> Path | None:
    """Return the file that has the pictures of this product `reference`: itself, or what `import` has of it."""
    found = (workspace.cache / reference, workspace.cache / f"{PICTURES_OF}{reference}")
    return next((path for path in found if path.exists()), None)
