"""All reports together: the site of a store, its check against one, and the watch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import unified_diff
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from joblib import Parallel, delayed
from PIL import Image, UnidentifiedImageError

from iar_study.errors import InputError
from iar_study.evidence.claims import Claim, judge
from iar_study.evidence.results import load_results
from iar_study.pipeline.codebooks import codebook_product, load_codebook_results
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting.codebook_page import write_codebook_page
from iar_study.reporting.index import INDEX, write_index
from iar_study.reporting.pages import templates
from iar_study.reporting.report import write_report
from iar_study.reporting.unchanged import ABOUT, CODEBOOK, INDEX_FILES, Sources, is_unchanged
from iar_study.running.status import Status, status_of
from iar_study.storage import write_text

SHOWN = 3
"""Lines of a difference that a check shows of a file."""


def write_site(
    store: Workspace,
    studies: Sequence[str],
    folder: Path,
    claims: Sequence[Claim],
    sources: Sources | None = None,
    jobs: int = 1,
) -> Iterator[Path]:
    """Write the reports of studies into `folder`, then its index; yield the path of each page as it is done.

    The report of a study of which some trials have not ended says that it is provisional. With `sources`, what was
    written from the same is left as it is. So many processes, `jobs`, write side by side.

    Raises `InputError` for a study without a finished trial.
    """
    write = delayed(partial(_write_study, store, folder, claims, sources))
    yield from Parallel(min(jobs, len(studies)), return_as="generator")(write(study) for study in studies)
    if (shown := _study_of_codebook(store)) in studies:
        made_from = sources.of_codebook(shown) if sources else ""
        if is_unchanged(folder / CODEBOOK, made_from):
            yield folder / CODEBOOK / INDEX
        else:
            yield write_codebook_page(load_codebook_results(store, shown), folder, made_from)
    yield write_index(folder, claims)


def _write_study(store: Workspace, folder: Path, claims: Sequence[Claim], sources: Sources | None, study: str) -> Path:
    made_from = sources.of(study) if sources else ""
    if is_unchanged(folder / study, made_from):
        return folder / study / INDEX
    results, status = load_results(store, study), status_of(store, study)
    unfinished = [] if all(trial.ended for trial in status) else status
    renews = any(trial.running for trial in unfinished)
    return write_report(results, folder, judge(claims, results), unfinished, renews, made_from)


def _study_of_codebook(store: Workspace) -> str:
    """Return the study whose codebook the site shows: the first that has one here, `components` before all; else ""."""
    run = sorted((path.stem for path in store.studies.glob("*.json")), key=lambda name: (name != "components", name))
    for study in run:
        with suppress(InputError):  # its codes are no longer here
            codebook_product(store, study)
            return study
    return ""


def check_site(store: Workspace, studies: Sequence[str], folder: Path, claims: Sequence[Claim]) -> list[str]:
    """Write the site anew, elsewhere, and return in what `folder` differs from it; empty where every byte is the same.

    The index is compared where `folder` holds the reports of these studies and of no others.
    """
    with TemporaryDirectory(prefix="iar-study-") as scratch:
        anew = Path(scratch)
        for _ in write_site(store, studies, anew, claims):
            pass
        found = []
        pages = {page.parent.name for page in folder.glob(f"*/{INDEX}")}
        expected = {page.parent.name for page in anew.glob(f"*/{INDEX}")}
        names = {f"{name}/{path.name}" for name in expected for side in (folder, anew) for path in _files(side / name)}
        names -= {f"{name}/{ABOUT}" for name in expected}  # of how it was drawn, not of what it says
        if pages == expected:
            names |= {name for name in INDEX_FILES if any((side / name).exists() for side in (folder, anew))}
        for name in sorted(names):
            found += _difference(name, folder / name, anew / name)
        return found


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _difference(name: str, there: Path, anew: Path) -> list[str]:
    """Say how a file of a report differs from the one written anew; nothing where it does not."""
    if not anew.exists():
        return [f"{name}: no report writes it"]
    if not there.exists():
        return [f"{name}: missing"]
    if there.read_bytes() == anew.read_bytes():
        return []
    if there.suffix == ".png":
        return [f"{name}: {_pixels(there, anew)}"]
    try:
        before, after = (path.read_text(encoding="utf-8").splitlines() for path in (there, anew))
    except UnicodeDecodeError:
        return [f"{name}: is no text"]
    _, _, *compared = unified_diff(before, after, n=0, lineterm="")
    changed = [line for line in compared if not line.startswith("@@")]
    shown = [f"    {line[0]} {_shortened(line[1:])}" for line in changed[:SHOWN]]
    more = f"\n    and {len(changed) - SHOWN} more lines" if len(changed) > SHOWN else ""
    return [f"{name}: differs (- there, + written anew)\n" + "\n".join(shown) + more]


def _pixels(there: Path, anew: Path) -> str:
    try:
        with Image.open(there) as one, Image.open(anew) as other:
            a, b = np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB"))
    except (UnidentifiedImageError, OSError):
        return "is no picture"
    if a.shape != b.shape:
        return f"{a.shape[1]} x {a.shape[0]} pixels, and {b.shape[1]} x {b.shape[0]} written anew"
    differ = (a != b).any(axis=-1)
    if not differ.any():
        return "the same pixels, in another file"
    return f"{int(differ.sum()):,} of {differ.size:,} pixels differ"


def _shortened(line: str, most: int = 160) -> str:
    return line if len(line) <= most else f"{line[: most - 3]}..."


def watch(
    store: Workspace, study: str, folder: Path, claims: Sequence[Claim], every_s: float
) -> Iterator[Sequence[Status]]:
    """Write the report of a study again whenever a trial has got further, until all have ended; yield how far they are.

    The page then renews itself in the browser, and says how far each trial is. Before the first trial has ended it says
    nothing else.
    """
    seen: Sequence[Status] | None = None
    while True:
        status = status_of(store, study)
        if status != seen:
            seen = status
            running = () if all(trial.ended for trial in status) else status
            try:
                results = load_results(store, study)
                write_report(results, folder, judge(claims, results), running, renews=bool(running))
            except InputError:
                if any(trial.ended for trial in status):
                    raise
                text = templates().get_template("waiting.html").render(study=study, status=status, renews=True)
                write_text(folder / study / INDEX, text)
            write_index(folder, claims)
            yield status
            if not running:
                return
        time.sleep(every_s)
