"""What is installed, which device, data and store there are, and whether they fit."""

from __future__ import annotations

import platform
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from joblib import cpu_count
from packaging.requirements import Requirement

from iar_study.config import DataConfig
from iar_study.errors import InputError
from iar_study.evaluation.inception import INSTALL, has_torch_fidelity, inception_path
from iar_study.pipeline.workspace import Workspace

DISK_NEEDED = 2e9
"""Bytes that a study may want for caches, trials and the store."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    fits: bool
    text: str


def examine(data: str | None = None) -> list[Finding]:
    """Look at Python, packages, devices, data, workspace and store; `data` names a data set to look at as well.

    Nothing is fetched, decoded or written.
    """
    findings = [Finding("python", True, platform.python_version())]
    findings += [_package(Requirement(text)) for text in metadata.requires("iar-study") or [] if "extra ==" not in text]
    findings.append(_device())
    findings += [_data(name) for name in (["digits", data] if data else ["digits", "fashion-mnist"])]
    findings.append(_inception())
    findings += _workspace()
    return findings


def _package(wanted: Requirement) -> Finding:
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding(wanted.name, False, f"missing; wanted {wanted.specifier}: make install")
    fits = wanted.specifier.contains(found, prereleases=True)
    return Finding(wanted.name, fits, found if fits else f"{found}; wanted {wanted.specifier}: make install")


def _device() -> Finding:
    import torch

    cores = f"{cpu_count()} CPU cores ({torch.backends.cpu.get_cpu_capability()})"
    if torch.cuda.is_available():
        return Finding("device", True, f"{cores}, {torch.cuda.get_device_name()}: --set compute.device=cuda uses it")
    return Finding("device", True, f"{cores}, no GPU; as many trials at once as cores")


def _data(name: str) -> Finding:
    try:
        return Finding(f"data {name}", True, _codes(name) if name.startswith("codes:") else _images(name))
    except InputError as error:
        return Finding(f"data {name}", False, str(error))


def _images(name: str) -> str:
    from iar_study.data.images import absent, load_images

    if missing := absent(DataConfig(name)):
        return f"{missing}: the first run does that"
    images = load_images(DataConfig(name))
    counts = f"{len(images.train):,} + {len(images.test):,} images, {len(images.class_names)} classes"
    return f"{counts}, {images.size} x {images.size} x {images.channels}"


def _codes(name: str) -> str:
    from iar_study.data.llamagen_codes import open_splits

    train, test = open_splits(Path(name.removeprefix("codes:")).expanduser()).values()
    images, augmentations, tokens = train.codes.shape
    counts = f"{images:,} + {len(test.codes):,} images, {train.index['classes']} classes"
    return f"{counts}, {augmentations} augmentations, {tokens} tokens of {train.index['codebook_size']:,} codes"


def _inception() -> Finding:
    """Tell whether FID can be measured; only who asks for it needs it."""
    package = "torch-fidelity is here" if has_torch_fidelity() else f"torch-fidelity is not: {INSTALL}"
    weights = "its weights are here" if inception_path().is_file() else "the first use fetches its weights, 96 MB"
    return Finding("inception", True, f"optional, for FID; {package}; {weights}")


def _workspace() -> list[Finding]:
    try:
        workspace = Workspace.find()
    except InputError as error:
        return [Finding("workspace", False, str(error))]
    free = shutil.disk_usage(workspace.root).free
    findings = [
        Finding("workspace", True, str(workspace.root)),
        Finding("disk", free > DISK_NEEDED, f"{free / 1e9:.0f} GB free, {DISK_NEEDED / 1e9:.0f} GB wanted"),
    ]
    from iar_study.tracking.store import check_store, shown, store_uri

    uri = store_uri(workspace)
    try:
        check_store(uri)
    except InputError as error:
        return [*findings, Finding("store", False, str(error))]
    if uri != f"sqlite:///{workspace.store}":
        return [*findings, Finding("store", True, f"{shown(uri)} (MLFLOW_TRACKING_URI)")]
    if not workspace.store.exists():
        return [*findings, Finding("store", True, f"{uri} (made by the first run)")]
    try:
        with closing(sqlite3.connect(f"{workspace.store.as_uri()}?mode=ro", uri=True)) as connection:
            (runs,) = connection.execute("SELECT COUNT(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        return [*findings, Finding("store", False, f"{workspace.store} is no MLflow store ({error}); move it away")]
    return [*findings, Finding("store", True, f"{uri}, {runs} runs")]
