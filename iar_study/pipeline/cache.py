"""What the content-addressed folders hold: who made what, who uses it, and what no study uses any more.

A study uses what its manifest in runs/studies names: its trials, and all that these were made from. What else lies in
runs/cache, runs/trainings and runs/trials was left by earlier runs, and `prune` removes it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iar_study.errors import InputError, listed
from iar_study.pipeline.carried_over import training_of
from iar_study.pipeline.workspace import PICTURES_OF, Workspace, read_record, trials_told
from iar_study.storage import load_metadata, locked, read_json

LEFTOVER = "leftover"
"""Kind of what a process that was killed left half-written, or half-removed."""

KINDS = (
    *("tokenizer", "codes", "use", "evaluators", "clustering", "reference", "exactness", "codebook", "features"),
    *("pictures", "training", "trial", LEFTOVER),
)
"""Of what lies there, in the order that it is listed in; `features` are those of `iar-study evaluate`, `pictures` what
`import` has of a reference."""

OLD = 24 * 3600
"""Seconds from which on a temporary file is a leftover; before, a process may still be writing it."""

INPUTS = {"rearrangement": "clustering", "judging": "clustering"}
"""What a trial calls an input -> its kind in the cache, where the two differ."""

CODEBOOK = "codebook"
"""What a report shows of a study's codebook."""

LOCK = "lock"
"""In the cache, held by who makes products; in a trial's folder, by who runs it."""

REMOVED = ".removed"
"""How the name of a trial ends that is being removed."""


@dataclass(frozen=True)
class Product:
    """A file of the cache, or the folder of a trial.

    Attributes
    ----------
    about : the metadata of a product; what trial.json says of a trial.
    trials : hashes of the trials that are known to use a product.
    studies : names of the studies that use it.
    """

    kind: str
    path: Path
    bytes: int
    modified: float
    """Seconds since 1970."""
    about: dict[str, Any] = field(default_factory=dict)
    trials: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class _Use:
    """What one study uses."""

    study: str
    trials: frozenset[str]
    """And trainings."""
    files: frozenset[str]
    """Names of files in the cache."""
    by_name: bool
    """Whether these are all of them; in an older manifest they are not, and its trials tell by content."""

    def needs(self, path: Path, users: Sequence[str], by_name: bool) -> bool:
        """Whether the study needs a product that these trials were made from, or from one of the same content.

        by_name : whether a manifest would name it.
        """
        return path.name in self.files or (not (by_name and self.by_name) and not self.trials.isdisjoint(users))


def list_cache(workspace: Workspace) -> list[Product]:
    """Return all products and trials, by kind and then by age, the oldest first.

    Raises `InputError` for a manifest that is damaged: what its study uses is then not known.
    """
    trials = {path.name: _about(path / "trial.json") for path in _visible(workspace.trials) if path.is_dir()}
    inputs = {name: _inputs(about) for name, about in trials.items()}
    uses = [_use(path, trials) for path in sorted(workspace.studies.glob("*.json"))]
    made = [("trial", workspace.trials / name, about) for name, about in trials.items()]
    made += [("training", path, _about(path / "training.json")) for path in _visible(workspace.trainings)]
    found = [
        _product(kind, path, about, (), [use.study for use in uses if path.name in use.trials])
        for kind, path, about in made
    ]
    for folder in (workspace.cache, workspace.trainings, workspace.trials):
        found += [_product(LEFTOVER, path, {}, (), ()) for path in folder.glob(".*") if _is_leftover(path)]
    for path in _visible(workspace.cache):
        if path.name == LOCK:
            continue
        kind, about = path.name.partition("-")[0], _about_product(path)
        content: set[tuple[str, Any]] = {(kind, about.get("digest"))}
        if kind == CODEBOOK:  # made after the trials, from the same as they
            content = _inputs(about.get(CODEBOOK, {}))
        users = [name for name, made_from in inputs.items() if content and content <= made_from]
        studies = [use.study for use in uses if use.needs(path, users, by_name=kind != CODEBOOK)]
        found.append(_product(kind, path, about, users, studies))
    order = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(found, key=lambda each: (order.get(each.kind, len(order)), each.kind, each.modified, each.name))


def find_product(products: Sequence[Product], name: str) -> Product:
    """Return the one whose name begins so, or the part of its name after the kind; a path will do too.

    Raises `InputError` unless it is one.
    """
    wanted = Path(name).name
    found = [each for each in products if wanted and each.name.startswith((wanted, f"{each.kind}-{wanted}"))]
    if len(found) != 1:
        shown = listed(each.name for each in found or products)
        raise InputError(f"{name!r} begins the name of {len(found)} products and trials, not of one; there: {shown}")
    return found[0]


def unused(products: Iterable[Product]) -> list[Product]:
    """Return what no study uses."""
    return [each for each in products if not each.studies]


def prune(workspace: Workspace) -> list[Product]:
    """Remove what no study uses, and return it.

    Raises `InputError` while a run prepares what its trials share: it has no manifest yet that names them.
    """
    if not unused(list_cache(workspace)):
        return []
    workspace.cache.mkdir(parents=True, exist_ok=True)
    with locked(workspace.cache / LOCK, workspace.cache):
        # Listed anew: before the lock was taken, a run may have come to use some of it.
        return [product for product in unused(list_cache(workspace)) if _remove(product)]


def _remove(product: Product) -> bool:
    """Remove it, unless it is a trial that a process is at work on, for a run that has been followed by another."""
    if not product.path.is_dir():
        product.path.unlink(missing_ok=True)
        return True
    away = product.path
    if product.kind in ("training", "trial"):
        try:
            with FileLock(product.path / LOCK, timeout=0):
                # Out of the way first, so that a kill leaves no trial that is half there.
                away = product.path.rename(product.path.with_name(f".{product.name}{REMOVED}"))
        except Timeout:
            return False
    shutil.rmtree(away)
    return True


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def _is_leftover(path: Path) -> bool:
    unfinished = path.suffix in (".tmp", ".progress")
    return path.suffix == REMOVED or (unfinished and time.time() - path.stat().st_mtime > OLD)


def _product(kind: str, path: Path, about: dict[str, Any], trials: Sequence[str], studies: Sequence[str]) -> Product:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    size, modified = 0, 0.0
    for file in files:
        with suppress(FileNotFoundError):  # a trial that goes on replaces its checkpoints
            stat = file.stat()
            size += stat.st_size if file.is_file() else 0
            modified = max(modified, stat.st_mtime)
    return Product(kind, path, size, modified, about, tuple(trials), tuple(studies))


def _about_product(path: Path) -> dict[str, Any]:
    try:
        return load_metadata(path)
    except InputError as error:  # a folder of features, or a damaged file
        return {} if path.is_dir() else {"damaged": str(error)}


def _about(record: Path) -> dict[str, Any]:
    """Return what a trial's or a training's record tells."""
    try:
        if not record.exists():
            return {}
        return read_record(record.parent) if record.name == "trial.json" else read_json(record)
    except InputError as error:
        return {"damaged": str(error)}


def _inputs(about: dict[str, Any]) -> set[tuple[str, str]]:
    """Return (kind, digest of the content) of what a trial was made from."""
    return {(INPUTS.get(name, name), digest) for name, digest in about.get("inputs", {}).items()}


def _use(manifest: Path, records: Mapping[str, dict[str, Any]]) -> _Use:
    about = read_json(manifest)
    trials = {*(trial["hash"] for trial in trials_told(about)), *about.get("trainings", ()), *about.get("bases", ())}
    if "trainings" not in about:  # of before trainings had folders of their own
        trials |= {training_of(records[name]) for name in trials if "inputs" in records.get(name, {})}
    files = {*about.get("products", ()), about.get("reference"), f"{PICTURES_OF}{about.get('reference')}"} - {None}
    return _Use(about["study"], frozenset(trials), frozenset(files), "products" in about)
