"""Run a trial. It trains, samples, measures and leaves a folder that tells all about it.

A trial of a study of near codes trains nothing: it replaces tokens by other codes and measures the pictures.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from iar_study.codebook import Rearrangement
from iar_study.config import TrialConfig, flatten
from iar_study.data.codes import Codes
from iar_study.errors import InputError
from iar_study.evaluation.evaluators import load_evaluators
from iar_study.evaluation.metrics import is_final
from iar_study.evaluation.near_codes import measure_near_codes, paper_rank
from iar_study.generators.gpt import GPT, make_generator
from iar_study.generators.sampling import generate
from iar_study.parts import edited
from iar_study.pipeline.making import decode, facts
from iar_study.pipeline.measuring import (
    classes_told,
    extractors_of,
    load_references,
    looked_at,
    measure_pictures,
    own_metrics,
    with_classifiers,
)
from iar_study.pipeline.stages import images_of, load_codes
from iar_study.pipeline.trial import Busy, Trial
from iar_study.pipeline.workspace import is_finished
from iar_study.storage import Kept, load_arrays, read_json, replacing, save_arrays, unwritable, write_json
from iar_study.training.journal import Journal, read_journal
from iar_study.training.parallel import collected, first_of, launch
from iar_study.training.processes import n_processes, process_rank
from iar_study.training.progress import Diverged
from iar_study.training.train_gpt import PROGRESS, noise_seed, original_order, step_seed, train_gpt

GRID_ROWS, GRID_COLUMNS = 10, 8
"""Classes, the first ones, and pictures of each that a trial keeps for the sample grids."""

SAMPLED_AT_ONCE = 100
"""Samples that are drawn together, with noise of their own: what a GPU holds of XXL, and as fast as more on a CPU."""


def run_trial(trial: Trial, trials: Path) -> bool:
    """Run or resume a trial; return False when it was finished already. Under `torchrun` every process calls it.

    The folder then holds trial.json (config, inputs, code, environment), journal.jsonl (curves), weights and codebook
    in the arm's order, samples, and, written last, result.json: {"status": "finished" | "diverged", "metrics"}. One of
    near codes has the curves over the rank r in its journal, and the pictures in place of samples.

    Raises
    ------
    Busy : another process is at work on it, or on the trial that it samples from.
    InputError : bad input, a full disk.
    """
    if since := edited(trial.made_by):
        raise InputError(f"{', '.join(since)}: the file was edited since the run began; run it again")
    folder = trial.folder(trials)
    lock = FileLock(folder / "lock", timeout=0)

    def begin() -> bool:
        """Take the lock, unless the trial is finished, which another process may have done just before."""
        if is_finished(folder):
            return False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise Busy(f"{folder} is being written by another process; wait for it") from error
        except OSError as error:
            raise unwritable(folder, error) from error
        return not is_finished(folder)

    try:
        # The first of several processes decides for all.
        begun = begin() if n_processes() == 1 else first_of(launch(trial.config), begin)
        if begun:
            if trial.kind == "near-codes":
                _replace_tokens(trial, folder)
            elif trial.base is not None:
                _sample(trial, trial.base, trials)
            else:
                _train(trial, folder)
    finally:
        lock.release()
    return begun


def _train(trial: Trial, folder: Path) -> None:
    config, shared = trial.config, trial.shared
    fabric = launch(config)
    codes, rearrangement = load_codes(shared), Rearrangement.load(shared.rearrangement)
    if fabric.is_global_zero:
        about = describe(trial, codes)
        if any((folder / "checkpoints").glob("*.json")):  # what is done was done by these, and stays so
            about["makers"] = read_json(folder / "trial.json").get("makers", {})
        write_json(folder / "trial.json", about)
    measure = partial(sample_and_measure, trial, codes.class_names, folder)
    try:
        model = train_gpt(config, codes, rearrangement, Rearrangement.load(shared.judging), folder, measure, fabric)
    except Diverged as error:
        if fabric.is_global_zero:
            write_json(folder / "result.json", {"status": "diverged", "step": error.step, "metrics": {}})
            shutil.rmtree(folder / PROGRESS, ignore_errors=True)
        return
    if not fabric.is_global_zero:
        return
    weights = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
    save_arrays(folder / "weights.safetensors", weights)
    codebook = rearrangement.rows(codes.codebook.vectors)
    save_arrays(
        folder / "codebook.safetensors",
        {"codebook": codebook, "permutation": rearrangement.permutation, "boundaries": rearrangement.boundaries},
    )
    last = read_journal(folder / "journal.jsonl")[-1]["metrics"]
    metrics = {name: value for name, value in last.items() if is_final(name)}
    write_json(folder / "result.json", {"status": "finished", "step": config.train.steps, "metrics": metrics})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


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
        return [seen[each.name][0] for each in extractors], classes_told(evaluators, seen)

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


def _sample(trial: Trial, base: Trial, trials: Path) -> None:
    """Sample from the GPT of `base`, which is trained first where it is not yet."""
    run_trial(base, trials)
    folder, ended = trial.folder(trials), base.folder(trials) / "result.json"
    # The first of several processes has written it.
    of_base = read_json(ended) if n_processes() == 1 else first_of(launch(trial.config), lambda: read_json(ended))
    codes = load_codes(trial.shared)
    metrics: dict[str, float] = {}
    if of_base["status"] == "finished":
        torch.set_num_threads(trial.config.compute.threads)
        model = load_model(base.folder(trials), trial.config, len(codes.class_names), codes.grid)
        metrics = sample_and_measure(trial, codes.class_names, folder, model, trial.steps)
    if process_rank():
        return
    write_json(folder / "trial.json", describe(trial, codes))
    if metrics:
        Journal(folder / "journal.jsonl").write(trial.steps, metrics)
    write_json(folder / "result.json", {**of_base, "metrics": metrics})
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)


def weights_of(folder: Path) -> Path:
    """Return the file of a finished trial's weights; raise `InputError` where it has none."""
    path = folder / "weights.safetensors"
    if not path.exists():
        raise InputError(
            f"trial {folder.name} has no weights here: it diverged, trained nothing, or was imported without them; "
            f"where they are needed, remove {folder} and run its study again"
        )
    return path


def load_model(folder: Path, config: TrialConfig, classes: int, grid: int) -> GPT:
    """Return the GPT of a finished trial's folder, in the original order of the codes, on the trial's device."""
    rearrangement = Rearrangement.load(folder / "codebook.safetensors")
    model = make_generator(config.model, len(rearrangement.permutation), classes, grid)
    weights = load_arrays(weights_of(folder))[0]
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return original_order(model, rearrangement).to(config.compute.device).eval()


def sample_and_measure(
    trial: Trial, class_names: tuple[str, ...], folder: Path, model: GPT, step: int
) -> dict[str, float]:
    """Draw samples, classes in turn, keep the first of each class, and return their `family/extractor@count` metrics.

    `model` indexes the original codebook, so with the same seed every arm samples with the same noise per code, at any
    step. The processes share the samples out; the first one measures.
    """
    config, shared, device = trial.config.evaluation, trial.shared, trial.config.compute.device
    parts = (torch.arange(config.samples) % len(class_names)).split(SAMPLED_AT_ONCE)
    kept = Kept(folder / PROGRESS / f"drawn-{step}-{process_rank()}.safetensors")
    drawn = {int(part): torch.from_numpy(tokens) for part, tokens in kept.arrays().items()}
    for part in range(process_rank(), len(parts), n_processes()):
        if part not in drawn:
            drawn[part] = draw(model, trial.config, part, parts[part])
            kept.offer(lambda: {str(part): tokens.numpy() for part, tokens in drawn.items()})
    everyone: dict[int, torch.Tensor] = {}
    for some in collected(drawn):
        everyone |= some
    if process_rank():
        return {}
    tokens = torch.cat([everyone[part] for part in range(len(parts))]).numpy().astype(np.int32)
    shown = np.arange(min(len(class_names), GRID_ROWS))[:, None] + len(class_names) * np.arange(GRID_COLUMNS)
    if shown.max() < len(tokens):
        grid = decode(shared, tokens[shown.flatten()], device)
        grid = grid.reshape(*shown.shape, *grid.shape[1:])
        save_arrays(folder / "samples.safetensors", {"samples": grid})
        save_grid(folder / "samples.png", grid)
    if shared.evaluators is None or shared.reference is None:
        save_arrays(folder / "tokens.safetensors", {"tokens": tokens}, {"step": step})
        return {}
    labels = torch.cat(parts).numpy()
    pictures = decode(shared, tokens, device)
    reference, evaluators = load_references(shared.reference), load_evaluators(shared.evaluators)
    return measure_pictures(pictures, labels, reference, evaluators, trial.config)


def draw(model: GPT, config: TrialConfig, part: int, classes: torch.Tensor) -> torch.Tensor:
    """Draw the tokens, int64 (b, T) on the CPU, of one part of a trial's samples, with its own noise; classes (b,)."""
    device, seed = config.compute.device, noise_seed(config.seed, config.evaluation.noise)
    sample = getattr(model, "sample", None) or partial(generate, model)  # one's own may not draw token by token
    return sample(
        classes.to(device),
        cfg_scale=config.evaluation.guidance,
        temperature=config.evaluation.temperature,
        generator=torch.Generator(device).manual_seed(step_seed(seed, part)),
    ).cpu()


def save_grid(path: Path, grid: np.ndarray) -> None:
    """Write uint8 (rows, columns, h, w, c) as one PNG; small pictures are enlarged."""
    rows, columns, height, width, channels = grid.shape
    scale = max(96 // height, 1)
    sheet = grid.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    with replacing(path) as temporary:
        picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(
            temporary, format="PNG"
        )


def describe(trial: Trial, codes: Codes) -> dict[str, Any]:
    """Return what a reader needs to trace a number: config, inputs, code and environment."""
    commit, dirty = code_version()
    with torch.device("meta"):
        size, classes = trial.config.tokenizer.codebook_size, len(codes.class_names)
        model = make_generator(trial.config.model, size, classes, codes.grid)
    return {
        "hash": trial.hash,
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
