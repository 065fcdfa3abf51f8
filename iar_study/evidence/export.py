"""The results of studies as one file: `export` writes it, `open_store` reads it, `take_in` adds it to a workspace.

It is a .tar.xz of the small files of `runs/`: the manifests of the studies and, of every finished trial, its config,
journal, figures, pictures, and the tokens of the samples that were drawn at its end; and the evaluators that measured
them, unless the package ships these. Weights and checkpoints stay behind. The same results give the same bytes.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from iar_study.errors import InputError
from iar_study.pipeline.trial import tokens_file
from iar_study.pipeline.workspace import (
    PICTURES_OF,
    Workspace,
    config_of,
    is_finished,
    pictures_of,
    read_manifest,
    read_record,
    studies_run,
    trials_told,
)
from iar_study.storage import load_arrays, load_metadata, replacing, save_arrays

OF_TRIAL = ("trial.json", "journal.jsonl", "result.json", "predictions.safetensors", "replaced.safetensors")
PICTURES = "samples.safetensors"
"""Of a trial too, but only of the study's first seed: no report shows those of another."""

INPUTS = ("tokenizer", "codes", "evaluators", "clustering", "exactness", "reference")
"""Kinds of products that a trial is made from."""

_KEPT: list[TemporaryDirectory] = []
"""Folders of unpacked examples, each of which goes when this process ends."""


def export(workspace: Workspace, studies: Sequence[str], path: Path, inputs: bool = False) -> int:
    """Write what reports need of the last run of `studies` to the file `path`; return how many trials are in it.

    inputs : add the tokenizers, codes and references, so that a run elsewhere can go on with the same ones.

    Raises
    ------
    InputError : a study that was not run here, or of which no trial is finished; a path that cannot be written.
    """
    files: dict[str, Path] = {}
    with TemporaryDirectory() as scratch:
        for study in studies:
            files |= _of_study(workspace, study, inputs, Path(scratch))
        with replacing(path) as temporary:
            temporary.write_bytes(_packed(files))
    return sum(name.endswith("/result.json") for name in files)


def _of_study(workspace: Workspace, study: str, inputs: bool, scratch: Path) -> dict[str, Path]:
    """Return name in the file -> path of all that belongs to a study."""
    # Here, not on top: to open a file that is there needs neither torch nor pandas.
    from iar_study.evidence.results import STAGES
    from iar_study.pipeline.codebooks import codebook_product
    from iar_study.pipeline.stages import SHIPPED

    manifest = read_manifest(workspace, study)
    first = min(trial["seed"] for trial in manifest["trials"])
    found = {f"runs/studies/{study}.json": workspace.studies / f"{study}.json"}
    for trial in trials_told(manifest):
        folder = workspace.trials / trial["hash"]
        if is_finished(folder):
            names = [*OF_TRIAL, *([PICTURES] if trial["seed"] == first else [])]
            found |= {f"runs/trials/{folder.name}/{name}": folder / name for name in names if (folder / name).exists()}
            found |= _of_training(workspace, read_record(folder))
    if len(found) == 1:
        raise InputError(f"no trial of study {study!r} is finished yet; `iar-study run {study}` goes on with them")
    with suppress(InputError):  # a study whose codes are no longer here is exported without
        product = codebook_product(workspace, study)
        found[f"runs/cache/{product.name}"] = product
    of_package = {load_metadata(file)["digest"] for file in SHIPPED.glob("*.safetensors")}
    for name in manifest.get("products", ()):
        product = workspace.cache / name
        if name.startswith("evaluators") and product.exists() and load_metadata(product)["digest"] not in of_package:
            found[f"runs/cache/{name}"] = product
    if inputs:
        kept = [name for name in manifest["products"] if name.startswith(INPUTS)]
        found |= {f"runs/cache/{name}": workspace.cache / name for name in kept if (workspace.cache / name).exists()}
    elif manifest["reference"] and (pictures := pictures_of(manifest["reference"], workspace)):
        # The pictures alone: what samples are compared with takes megabytes.
        arrays = load_arrays(pictures)[0]
        slim = scratch / manifest["reference"]
        # Without metadata, whose order in the file is left to chance.
        save_arrays(slim, {name: arrays[name] for name in STAGES.values()})
        found[f"runs/cache/{slim.name}"] = slim
    return found


def _of_training(workspace: Workspace, record: dict[str, Any]) -> dict[str, Path]:
    """Return name in the file -> path of how a trial's training was made, and of the samples drawn at its end."""
    if not record.get("training"):
        return {}
    trained, config = workspace.trainings / record["training"], config_of(record)
    drawn = tokens_file(trained, config, config.train.steps)
    there = [path for path in (trained / "training.json", drawn) if path.exists()]
    return {f"runs/trainings/{trained.name}/{path.name}": path for path in there}


def _packed(files: dict[str, Path]) -> bytes:
    """Return the .tar.xz of files, in the order of their names and without dates, owners and modes."""
    packed = BytesIO()
    with lzma.open(packed, "wb", preset=9) as compressed, tarfile.open(fileobj=compressed, mode="w") as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            content = files[name].read_bytes()
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return packed.getvalue()


@contextmanager
def open_store(path: Path) -> Iterator[Workspace]:
    """Give a workspace with the results at `path`: a folder that holds `runs/studies`, or a file of `export`.

    A file is unpacked into a temporary folder, which is removed at the end.

    Raises
    ------
    InputError : there is neither, or the file is damaged.
    """
    if path.is_dir():
        workspace = Workspace(path.resolve(), frozen=True)
        if not workspace.studies.is_dir():
            raise InputError(f"{path} holds no results: it has no folder runs/studies")
        yield workspace
        return
    if not path.is_file():
        raise InputError(f"no results at {path}: name a workspace's folder, or a file that `iar-study export` wrote")
    with TemporaryDirectory(prefix="iar-study-") as scratch:
        _unpack(path, Path(scratch))
        yield Workspace(Path(scratch), frozen=True)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with tarfile.open(path, "r:xz") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                content = archive.extractfile(member) if member.isfile() else None  # a link may lead anywhere
                if parts[:1] != ("runs",) or ".." in parts or content is None:
                    raise InputError(f"{path} is no export of results: it holds {member.name!r}")
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise InputError(f"{path} is damaged or no file of `iar-study export` ({error}); fetch it again") from error


def find_store(study: str | None = None) -> Workspace:
    """Return where a notebook finds results: those of this workspace, else the committed example; say which.

    study : what must be among them. Raises `InputError` where neither has it.
    """
    workspace = Workspace.find()
    own = [path.stem for path in workspace.studies.glob("*.json")]
    if own and study in (None, *own):
        print(f"your own results, in {workspace.root}")
        return workspace
    if not workspace.example.exists():
        studies_run(workspace, study)  # raises
    folder = TemporaryDirectory(prefix="iar-study-")
    _KEPT.append(folder)
    _unpack(workspace.example, Path(folder.name))
    store = Workspace(Path(folder.name), frozen=True)
    if study is not None:
        studies_run(store, study)
    print("the committed example: a real run, but not yours; `make study` makes your own")
    return store


def take_in(path: Path, workspace: Workspace) -> tuple[int, int]:
    """Add the results of a store to a workspace; return how many trials are new, and how many it had.

    What the workspace has is kept: a trial that is finished in both is its own, and so is the manifest of a study. A
    product is taken where it is whole: the evaluators, by which runs then measure, and of `inputs` all.

    Raises
    ------
    InputError : see `open_store`; a workspace that cannot be written.
    """
    new = had = 0
    with open_store(path) as store:
        for folder in sorted(path for path in store.trials.glob("*") if is_finished(path)):
            target = workspace.trials / folder.name
            if is_finished(target):
                had += 1
                continue
            # The result last: with it the trial is finished.
            for name in sorted((file.name for file in folder.iterdir()), key=lambda name: name == "result.json"):
                _copy(folder / name, target / name)
            new += 1
        for file in sorted(store.trainings.glob("*/*")):
            # Beside weights of one's own, samples of others' would be taken for theirs.
            target = workspace.trainings / file.parent.name
            if not (target / "journal.jsonl").exists() and not (target / file.name).exists():
                _copy(file, target / file.name)
        for product in sorted(store.cache.glob("*.safetensors")):
            load_metadata(product)  # raises where it is damaged
            slim = product.name.startswith("reference") and "reference.mean" not in load_arrays(product)[0]
            target = workspace.cache / f"{PICTURES_OF if slim else ''}{product.name}"
            if not target.exists():
                _copy(product, target)
        for manifest in sorted(store.studies.glob("*.json")):
            if not (workspace.studies / manifest.name).exists():
                _copy(manifest, workspace.studies / manifest.name)
    return new, had


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
