"""Run a trial. It trains, or finds its training, samples, measures and leaves a folder that tells all about it.

A trial of a study of near codes trains nothing: it replaces tokens by other codes and measures the pictures.
"""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric

from iar_study.codebook import Rearrangement
from iar_study.config import TrialConfig, flatten, training_identity
from iar_study.data.codes import Codes
from iar_study.errors import InputError
from iar_study.evaluation.evaluators import load_evaluators
from iar_study.evaluation.metrics import is_final
from iar_study.evaluation.near_codes import measure_near_codes, paper_rank
from iar_study.generators.gpt import make_generator
from iar_study.parts import edited
from iar_study.pipeline.drawing import enough_kept
from iar_study.pipeline.making import decode, facts
from iar_study.pipeline.measurement import PROGRESS, Measurement
from iar_study.pipeline.measuring import classes_told, extractors_of, looked_at, own_metrics, with_classifiers
from iar_study.pipeline.stages import Shared, images_of, load_codes
from iar_study.pipeline.trial import TRAINED_ON, Busy, Training, Trial
from iar_study.pipeline.workspace import is_finished
from iar_study.storage import Kept, read_json, save_arrays, unwritable, write_json
from iar_study.training.journal import Journal, read_journal
from iar_study.training.kept_weights import lacking
from iar_study.training.parallel import first_of, launch
from iar_study.training.processes import n_processes, process_rank
from iar_study.training.progress import Diverged
from iar_study.training.train_gpt import settle_torch, train_gpt


def run_trial(trial: Trial, trials: Path) -> bool:
    """Run or resume a trial; return False when it was finished already. Under `torchrun` every process calls it.

    Its training is run, or gone on with, unless it has ended; see `Measurement` for what is measured of it. The
    training's folder holds training.json (config, inputs, code, environment), journal.jsonl, weights, the codebook in
    the arm's order, the tokens of samples, and, written last, result.json: {"status": "finished" | "diverged"}. The
    trial's holds trial.json, journal.jsonl (curves), pictures of samples, and result.json with the metrics. One of near
    codes has the curves over the rank r in its journal, and the pictures in place of samples.

    Raises
    ------
    Busy : another process is at work on it, or on its training.
    InputError : bad input, a full disk.
    """
    made_by = {**trial.made_by, **(trial.training.made_by if trial.training else {})}
    if since := edited(made_by):
        raise InputError(f"{', '.join(since)}: the file was edited since the run began; run it again")
    with _begun(trial.folder(trials), trial.config) as begun:
        if begun and trial.training:
            _measure(trial, trial.training, trials)
        elif begun:
            _replace_tokens(trial, trial.folder(trials))
    return begun


@contextmanager
def _begun(folder: Path, config: TrialConfig, again: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold the lock of a folder, and tell whether there is something to do: it is not finished, or is to be run again.

    Raises `Busy` while another process holds it. The first of several processes decides for all.
    """
    lock = FileLock(folder / "lock", timeout=0)

    def to_do() -> bool:
        return not is_finished(folder) or again()

    def begin() -> bool:
        if not to_do():
            return False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise Busy(f"{folder} is being written by another process; wait for it") from error
        except OSError as error:
            raise unwritable(folder, error) from error
        return to_do()  # another process may have done it just before

    try:
        yield begin() if n_processes() == 1 else first_of(launch(config), begin)
    finally:
        lock.release()


def _measure(trial: Trial, training: Training, trials: Path) -> None:
    """Measure what a training leaves, while it goes on or from what it kept."""
    config, folder, trained = trial.config, trial.folder(trials), training.folder(trials)
    fabric = launch(config)
    settle_torch(config)
    codes = load_codes(trial.shared)
    measurement = Measurement(trial, training, trials, codes, fabric)
    about = describe(trial, codes) if fabric.is_global_zero else {}
    if fabric.is_global_zero:
        write_json(folder / "trial.json", about)
    ended: dict[str, Any] = {"status": "finished", "step": config.train.steps}
    try:
        # Of weights that are elsewhere, samples may be here.
        if trial.kind == "sampling" and first_of(fabric, lambda: enough_kept(trained, config, trial.steps)):
            measurement.follow(trial.steps, {}, None)
        else:
            ended = _train(training, trial.shared, codes, trained, about, fabric, measurement)
    except Diverged as error:
        ended = {"status": "diverged", "step": error.step}
    if not fabric.is_global_zero:
        return
    metrics = {}
    if ended["status"] == "finished":
        last = read_journal(folder / "journal.jsonl")[-1]["metrics"]
        metrics = {name: value for name, value in last.items() if is_final(name)}
    write_json(folder / "result.json", {**ended, "metrics": metrics})
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    for left in folder.glob(".*.tmp"):  # by a kill while it was written
        left.unlink()


def _train(
    training: Training,
    shared: Shared,
    codes: Codes,
    folder: Path,
    about: dict[str, Any],
    fabric: Fabric,
    measurement: Measurement,
) -> dict[str, Any]:
    """Train what is not trained yet, let the measurement follow all of it, and return how the training has ended.

    Where weights are to be measured that were not kept, or are gone, it is trained again, to the same bits.
    """
    config, arranged = training.config, Rearrangement.load(shared.rearrangement)
    to_measure = [step for step in measurement.wanted if step > measurement.last]

    def again() -> bool:
        return read_json(folder / "result.json")["status"] == "finished" and bool(lacking(folder, to_measure))

    with _begun(folder, config, again) as begun:
        if begun and fabric.is_global_zero:
            _prepare(folder, training, codes, arranged, about)
        for step, told in first_of(fabric, lambda: _followed(folder, to_measure, begun)):
            measurement.follow(step, told, None)
        if begun:
            ended = {"status": "finished", "step": config.train.steps}
            try:
                train_gpt(config, codes, arranged, folder, measurement.follow, fabric)
            except Diverged as error:
                ended = {"status": "diverged", "step": error.step}
            if fabric.is_global_zero:
                write_json(folder / "result.json", ended)
                # Only now: until the result is there, they are all that a kill leaves.
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return first_of(fabric, lambda: read_json(folder / "result.json"))


def _followed(folder: Path, to_measure: Sequence[int], begun: bool) -> list[tuple[int, dict[str, float]]]:
    """Return the steps of a training, with what it told, up to where weights are to be measured that are not there.

    begun : whether it trains now, and will tell the steps itself that its journal lacks.
    """
    told = {point["step"]: point["metrics"] for point in read_journal(folder / "journal.jsonl")}
    end = min(lacking(folder, to_measure), default=math.inf)
    return [(step, told.get(step, {})) for step in sorted({*told, *(() if begun else to_measure)}) if step < end]


def _prepare(folder: Path, training: Training, codes: Codes, arranged: Rearrangement, about: dict[str, Any]) -> None:
    """Write what a training's folder tells, unless it goes on: what is done was done by its makers then."""
    if any((folder / "checkpoints").glob("*.json")):
        return
    if not (folder / "journal.jsonl").exists():
        for tokens in folder.glob("tokens-*"):  # drawn elsewhere, with weights that are not these
            tokens.unlink()
    inputs = {name: training.inputs[name] for name in TRAINED_ON}
    kept = {key: about[key] for key in ("seed", "data", "parameters", "code", "environment")}
    settings = training_identity(training.config)
    of_training = {"hash": training.hash, "makers": dict(training.made_by), "inputs": inputs, "config": settings}
    write_json(folder / "training.json", {**kept, **of_training})
    save_arrays(
        folder / "codebook.safetensors",
        {
            "codebook": arranged.rows(codes.codebook.vectors),
            "permutation": arranged.permutation,
            "boundaries": arranged.boundaries,
        },
    )


def _replace_tokens(trial: Trial, folder: Path) -> None:
    """Decode held-out images with every token replaced by another code, and measure how far the pictures change."""
    shared, config = trial.shared, trial.config.evaluation
    if process_rank():
        return  # there is nothing to share out
    if shared.evaluators is None:
        raise InputError(f"{trial.config.data.name} holds no images; a study of near codes needs a data set of images")
    codes, originals = load_codes(shared), images_of(trial.config.data).test
    write_json(folder / "trial.json", describe(trial, codes))
    journal = Journal(folder / "journal.jsonl")
    evaluators = load_evaluators(shared.evaluators)
    extractors = extractors_of(trial.config, evaluators)

    def look(pictures: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return what each extractor sees, and which class each classifier tells."""
        seen = looked_at(with_classifiers(extractors, evaluators), pictures)
        return [seen[each.name].features for each in extractors], classes_told(evaluators, seen)

    found = measure_near_codes(
        codes.test_tokens[: config.images],
        originals[: config.images],
        partial(decode, shared, device="cpu"),
        codes.codebook,
        Rearrangement.load(shared.rearrangement),
        look,
        trial.seed,
        measured=lambda rank, metrics: journal.write(rank, {f"near/{name}": metrics[name] for name in metrics}),
        kept=Kept(folder / PROGRESS / "replaced.safetensors"),
    )
    save_arrays(folder / "replaced.safetensors", {"replaced": found.pictures}, {"columns": found.columns})
    groups = {
        "near": found.curve[paper_rank(len(codes.codebook.vectors))],
        "same_cluster": found.same_cluster,
        "random_code": found.random_code,
        "tokenizer": found.tokenizer,
    }
    final = {f"{kind}/{name}": value for kind, metrics in groups.items() for name, value in metrics.items()}
    write_json(folder / "result.json", {"status": "finished", "step": trial.steps, "metrics": final})
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)


def describe(trial: Trial, codes: Codes) -> dict[str, Any]:
    """Return what a reader needs to trace a number: config, inputs, code and environment."""
    commit, dirty = code_version()
    # Weights are counted, not made: of a large model they would take gigabytes.
    with torch.device("meta"):
        size, classes = trial.config.tokenizer.codebook_size, len(codes.class_names)
        model = make_generator(trial.config.model, size, classes, codes.grid)
    return {
        "hash": trial.hash,
        "training": trial.training.hash if trial.training else None,
        "seed": trial.seed,
        "config": flatten(trial.config),
        "inputs": trial.shared.digests,
        "data": trial.shared.data,
        "parameters": model.n_parameters(),
        "makers": dict(trial.made_by),
        "metrics": {family: asdict(shown) for family, (_, shown) in own_metrics(trial.config).items()},
        **facts(trial.shared),
        "code": {"commit": commit, "dirty": dirty},
        "environment": {**environment(), "processes": str(n_processes())},
    }


def code_version() -> tuple[str, bool]:
    """Return (commit, dirty) of the package's own checkout; ("unknown", False) where it is none."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists() or shutil.which("git") is None:
        return "unknown", False
    git = ["git", "-C", str(here)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return commit.stdout.strip() or "unknown", bool(status.stdout.strip())


def _processor() -> str:
    """Return the name of the processor, or "" where the system does not tell."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name"))
    return next(names, platform.processor())


def environment() -> dict[str, str]:
    """Return what the numbers were computed with: machine, Python and the libraries that touch them."""
    libraries = {"torch", "lightning-fabric", "numpy", "numba", "scipy", "scikit-learn", "mlflow"}
    installed = {found.name.lower(): found.version for found in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        **{name: installed[name] for name in sorted(libraries & installed.keys())},
    }
