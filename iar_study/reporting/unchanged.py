"""Whether a report is still what would be written: told from its sources, without reading them as results.

A report's folder remembers the digest of all that it was written from and the digest of each of its files. Where both
are the same, nothing is computed or drawn, and nothing that computes or draws is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

from iar_study.errors import InputError
from iar_study.pipeline.workspace import Workspace, near_codes_trials, read_manifest, trials_told
from iar_study.running.status import status_of
from iar_study.storage import digest, file_sha256, read_json

ABOUT = "report.json"
"""What a folder remembers."""

LIBRARIES = ("matplotlib", "seaborn", "numpy", "pandas", "scipy", "pillow", "jinja2")

RECORDS = ("result.json", "trial.json", "journal.jsonl")
"""The files of a trial that tell all of it; the others follow from the same training."""

INDEX_FILES = ("index.html", "index.md", "effects.png", "effects.svg")

CODEBOOK = "codebook"
PAPER = "paper"
"""Folders of reports that are no study's."""


@dataclass(frozen=True)
class Sources:
    """What reports of a store are written from.

    claims : the file that lists the claims.
    """

    store: Workspace
    claims: Path

    @cached_property
    def writer(self) -> str:
        """Digest of what writes: the package's code and templates, the claims and the libraries' versions."""
        return digest(_package(), file_sha256(self.claims) if self.claims.exists() else "")

    @cached_property
    def premise(self) -> list[str]:
        """Digests of what tells whether near codes look alike, which every report begins with."""
        return [file_sha256(folder / "result.json") for folder in near_codes_trials(self.store)]

    def of(self, study: str) -> str:
        """Return the digest of what the report of a study is written from; "" where some trials have not ended."""
        if not all(trial.ended for trial in status_of(self.store, study)):
            return ""
        manifest = read_manifest(self.store, study)
        folders = [self.store.trials / trial["hash"] for trial in trials_told(manifest)]
        records = [file_sha256(folder / name) for folder in folders for name in RECORDS if (folder / name).exists()]
        return digest(self.writer, manifest, records, self.premise)

    def of_codebook(self, study: str) -> str:
        """Return the digest of what the page of the codebook is written from, the study's."""
        made_from = self.of(study)
        return made_from and digest(CODEBOOK, made_from)

    def pages_told(self, studies: Sequence[str], folder: Path) -> list[Path] | None:
        """Return the pages that are written of these studies into `folder`, if they and its index are there already."""
        pages = {study: self.of(study) for study in studies}
        first, *_ = sorted(
            (path.stem for path in self.store.studies.glob("*.json")), key=lambda name: (name != "components", name)
        )
        if first in studies:
            pages[CODEBOOK] = self.of_codebook(first)
        there = all(is_unchanged(folder / page, made_from) for page, made_from in pages.items())
        if not there or not is_unchanged(folder / PAPER, of_paper()) or not _is_indexed(folder):
            return None
        return [*(folder / page / "index.html" for page in pages), folder / "index.html"]


@cache
def _package() -> str:
    """Return the digest of the package's code and templates and of the libraries' versions."""
    package = Path(__file__).parents[1]
    files = [path for path in sorted(package.rglob("*")) if path.suffix in (".py", ".html", ".md", ".css", ".js")]
    return digest([file_sha256(path) for path in files], {name: version(name) for name in LIBRARIES})


def of_paper() -> str:
    """Return the digest of what the page of the paper's own numbers is written from: no results, the package alone."""
    return digest(PAPER, _package())


def write_changed(store: Workspace, studies: Sequence[str], folder: Path, experiments: Path) -> Iterator[Path]:
    """Write the reports of studies into `folder` that are not there as they would be written; yield their pages.

    experiments : the folder that tells the claims. Raises `InputError` for a study without a finished trial.
    """
    sources = Sources(store, experiments / "claims.py")
    if (pages := sources.pages_told(studies, folder)) is not None:
        yield from pages
        return
    from joblib import cpu_count

    from iar_study.evidence.claims import load_claims
    from iar_study.reporting.site import write_site

    yield from write_site(store, studies, folder, load_claims(experiments), sources, jobs=cpu_count())


def is_unchanged(folder: Path, made_from: str) -> bool:
    """Whether the folder was written from just this, and no file of it was changed since."""
    try:
        about = read_json(folder / ABOUT)
        return bool(made_from) and about["made_from"] == made_from and about["files"] == contents(folder)
    except (InputError, OSError, KeyError, TypeError):
        return False


def contents(folder: Path) -> dict[str, str]:
    """Return file -> SHA-256 (hex), of all that lies in the folder but what it remembers."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != ABOUT}


def index_about(folder: Path) -> dict[str, object]:
    """Return what the index remembers: its own files and the reports it leads to."""
    files = {name: file_sha256(folder / name) for name in INDEX_FILES if (folder / name).exists()}
    return {"files": files, "reports": sorted(page.parent.name for page in folder.glob(f"*/{ABOUT}"))}


def _is_indexed(folder: Path) -> bool:
    try:
        return read_json(folder / ABOUT) == index_about(folder)
    except (InputError, OSError):
        return False
