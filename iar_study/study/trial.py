"""One trial: an arm with a seed. It trains, samples, measures and leaves a folder that tells all about it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from iar_study.config import TrialConfig, flatten
from iar_study.data.codes import Codes
from iar_study.evaluation.classifier import classify
from iar_study.evaluation.fidelity import frechet_distance
from iar_study.models.gpt import GPT
from iar_study.models.sampling import generate
from iar_study.storage import digest, load_arrays, replacing, save_arrays, write_json
from iar_study.study.stages import (
    RECIPE,
    Shared,
    load_classifier,
    load_codebook,
    load_codes,
    load_rearrangement,
    load_tokenizer,
)
from iar_study.study.workspace import is_finished
from iar_study.training.gpt import Diverged, original_order, train_gpt
from iar_study.training.journal import read_journal
from iar_study.training.tokenizer import decode_tokens

GRID_COLUMNS = 8
"""Pictures of each class that a trial keeps for the sample grids."""


@dataclass(frozen=True)
class Trial:
    """What is run, resumed and retried: a resolved config with the content it works on."""

    arm: str
    seed: int
    config: TrialConfig
    shared: Shared

    @property
    def hash(self) -> str:
        """Identity: the config and the content of the inputs; names of data sets and arms do not count."""
        settings = asdict(self.config)
        # These act on the trial through the content of their products alone.
        for section in ("data", "tokenizer", "classifier", "clustering"):
            del settings[section]
        return digest(RECIPE, settings, self.shared.digests)[:16]

    def folder(self, trials: Path) -> Path:
        return trials / self.hash


def run_trial(trial: Trial, trials: Path) -> None:
    """Run or resume a trial; do nothing when it is finished.

    The folder then holds trial.json (config, inputs, code, environment), journal.jsonl (curves), weights and codebook
    in the arm's order, samples, and, written last, result.json: {"status": "finished" | "diverged", "metrics"}.
    """
    folder = trial.folder(trials)
    if is_finished(folder):
        return
    config, shared = trial.config, trial.shared
    codes, rearrangement = load_codes(shared.codes), load_rearrangement(shared.rearrangement)
    write_json(folder / "trial.json", describe(trial, codes))
    try:
        model = train_gpt(config, codes, rearrangement, load_rearrangement(shared.judging), folder)
    except Diverged as error:
        write_json(folder / "result.json", {"status": "diverged", "step": error.step, "metrics": {}})
        return
    weights = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
    save_arrays(folder / "weights.safetensors", weights)
    codebook = rearrangement.rows(load_codebook(shared.codes))
    save_arrays(
        folder / "codebook.safetensors",
        {"codebook": codebook, "permutation": rearrangement.permutation, "boundaries": rearrangement.boundaries},
    )
    metrics = sample_and_measure(original_order(model, rearrangement), trial, codes.class_names, folder)
    last = read_journal(folder / "journal.jsonl")[-1]["metrics"]
    metrics |= {name: value for name, value in last.items() if name.startswith("val/")}
    write_json(folder / "result.json", {"status": "finished", "step": config.train.steps, "metrics": metrics})
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def sample_and_measure(model: GPT, trial: Trial, class_names: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Draw samples, classes in turn, keep the first of each class, and return the `samples/*` metrics.

    `model` indexes the original codebook, so with the same seed every arm samples with the same noise per code.
    """
    config, shared = trial.config.evaluation, trial.shared
    model.eval()
    generator = torch.Generator(trial.config.compute.device).manual_seed(trial.config.seed)
    labels = torch.arange(config.samples, device=trial.config.compute.device) % len(class_names)
    tokens = torch.cat(
        [
            generate(model, part, cfg_scale=config.guidance, temperature=config.temperature, generator=generator)
            for part in labels.split(500)
        ]
    )
    pictures = decode_tokens(load_tokenizer(shared.tokenizer), tokens.cpu().numpy().astype(np.int32))
    features, classified = classify(load_classifier(shared.classifier), pictures)
    kept = len(class_names) * GRID_COLUMNS
    if len(pictures) >= kept:
        grid = pictures[:kept].reshape(GRID_COLUMNS, len(class_names), *pictures.shape[1:]).swapaxes(0, 1)
        save_arrays(folder / "samples.safetensors", {"samples": grid})
        save_grid(folder / "samples.png", grid)
    return {
        "samples/fd_classifier": frechet_distance(load_arrays(shared.reference)[0]["features"], features),
        "samples/class_agreement": float((classified == labels.cpu().numpy()).mean()),
    }


def save_grid(path: Path, grid: np.ndarray, scale: int = 3) -> None:
    """Write uint8 (rows, columns, h, w, c) as one PNG, each pixel `scale` pixels wide."""
    rows, columns, height, width, channels = grid.shape
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
        model = GPT(trial.config.model, trial.config.tokenizer.codebook_size, len(codes.class_names), codes.grid)
    tokenizer = load_arrays(trial.shared.tokenizer)[1]["metrics"]
    classifier = load_arrays(trial.shared.classifier)[1]["accuracy"]
    floor = load_arrays(trial.shared.reference)[1]
    return {
        "hash": trial.hash,
        "seed": trial.seed,
        "config": flatten(trial.config),
        "inputs": trial.shared.digests,
        "data": trial.shared.data,
        "parameters": model.n_parameters(),
        "tokenizer": tokenizer,
        "classifier_accuracy": classifier,
        "reconstruction": {key: floor[key] for key in ("fd_reconstruction", "class_agreement")},
        "code": {"commit": commit, "dirty": dirty},
        "environment": environment(),
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


def environment() -> dict[str, str]:
    """Return what the numbers were computed with: machine, Python and the libraries that touch them."""
    libraries = {"torch", "numpy", "scipy", "scikit-learn", "k-means-constrained", "mlflow"}
    installed = {found.name.lower(): found.version for found in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **{name: installed[name] for name in sorted(libraries & installed.keys())},
    }
