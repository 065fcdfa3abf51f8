"""What becomes of a plan when its study is run: what the manifest keeps of it, and in what a run departs from it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from iar_study.errors import InputError
from iar_study.study.study import PLANS, Plan, Study


def record(study: Study, experiments: Path) -> dict[str, Any] | None:
    """Return what a manifest keeps of a study's plan: its values, file and digest, and the commit that brought it.

    The digest and the commit are of the plan and of the profiles, which say how large its trainings are. The commit and
    its time are "" where the two are not committed as they are.
    """
    if study.plan is None:
        return None
    paths = [experiments / PLANS / f"{study.name}.py", experiments / "profiles.py"]
    names = [str(path.relative_to(experiments.parent)) for path in paths]
    if not paths[0].is_file():
        raise InputError(f"the plan of study {study.name!r} is not at {names[0]}; put it there")
    commit, _, committed = _git(experiments.parent, "log", "-1", "--format=%H %cI", "--", *names).partition(" ")
    if _git(experiments.parent, "status", "--porcelain", "--", *names):
        commit = committed = ""
    told = sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    known = {"file": names[0], "digest": told, "commit": commit, "committed": committed}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(study.plan).items()}
    return {**values, **known}


def _git(folder: Path, *words: str) -> str:
    """Return what git says, "" where there is none or no repository."""
    try:
        said = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


def plan_of(recorded: Mapping[str, Any]) -> Plan:
    """Return the plan that a manifest recorded."""
    of_json: dict[str, Any] = {}
    for key, value in recorded.items():
        of_json[key] = tuple(value) if isinstance(value, list) else value
    return Plan(**{field.name: of_json[field.name] for field in fields(Plan)})


def departures(
    recorded: Mapping[str, Any], profile: str, settings: Mapping[str, str], older: Sequence[str]
) -> list[str]:
    """Return in what a run is not the one that was planned; empty where it is.

    older : names of the trials that began before the plan was committed.
    """
    found = []
    if not recorded["commit"]:
        found.append(f"{recorded['file']} was not committed as it was run, with its profiles")
    if profile != recorded["profile"]:
        found.append(f"it was run at {profile}, the plan is for {recorded['profile']}")
    if settings:
        found.append("settings were changed: " + ", ".join(f"{key}={value}" for key, value in settings.items()))
    if older:
        more = f" and {len(older) - 3} more" if len(older) > 3 else ""
        found.append(f"older than the plan: {', '.join(older[:3])}{more}")
    return found
