"""A small data set of tokens with structure to learn, a config that trains on it in a second, and a command to do so.

    python -m tests.training.small FOLDER [key=value ...] [stop_at=STEP]

trains it with these settings, under `torchrun` on many processes, and writes the final weights to FOLDER. While samples
are drawn FOLDER/sampling exists; with `stop_at`, the sampling at that step ends the process.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from iar_study.codebook import Codebook, Rearrangement
from iar_study.config import EvaluationConfig, LossConfig, ModelConfig, TrainConfig, TrialConfig, with_settings
from iar_study.data.codes import Codes
from iar_study.generators.gpt import GPT
from iar_study.generators.sampling import generate
from iar_study.pipeline.measurement import judge_predictions
from iar_study.storage import load_arrays, save_arrays
from iar_study.training.journal import Journal, read_journal
from iar_study.training.parallel import launch
from iar_study.training.train_gpt import train_gpt

MEASURED = "measured.jsonl"
VOCABULARY = 16
CLUSTERS = Rearrangement.from_labels(np.random.default_rng(1).permutation(VOCABULARY) % 4)


def make_codes(augmentations: int = 1) -> Codes:
    """Class 0 counts up, class 1 counts down, from a random start, with a little noise that augmentations differ in."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    start = rng.integers(VOCABULARY, size=(200, 1, 1))
    walk = start + np.where(labels[:, None, None] == 0, 1, -1) * np.arange(9)
    tokens = ((walk + (rng.random((200, augmentations, 9)) < 0.1)) % VOCABULARY).astype(np.int32)
    codebook = Codebook(rng.normal(size=(VOCABULARY, 2)).astype(np.float32))
    return Codes(tokens[:160], labels[:160], tokens[160:, 0], labels[160:], ("up", "down"), codebook)


def make_config() -> TrialConfig:
    return TrialConfig(
        model=ModelConfig(layers=1, heads=2, width=16, dropout=0.1),
        loss=LossConfig(1.0),
        train=TrainConfig(steps=40, batch_size=16, warmup_steps=5, log_every=5, kept=4, checkpoint_every=7, lr=1e-2),
        evaluation=EvaluationConfig(images=40),
    )


def train(
    config: TrialConfig,
    codes: Codes,
    arranged: Rearrangement,
    folder: Path,
    sample: Callable[[GPT, int], dict[str, float]] = lambda *_: {},
    judging: Rearrangement = CLUSTERS,
) -> GPT:
    """Train, and judge the predictions as a trial does wherever weights are kept; what is sampled joins them."""
    fabric = launch(config)
    journal = Journal(folder / MEASURED) if fabric.is_global_zero else None

    def follow(step: int, told: Mapping[str, float], model: GPT | None) -> None:
        if model is not None:
            metrics = judge_predictions(model, config, codes, arranged, judging, fabric)[0] | sample(model, step)
            if journal:
                journal.write(step, metrics)

    return train_gpt(config, codes, arranged, folder, follow, fabric)


def main(folder: Path, *settings: str) -> None:
    changes = dict(item.split("=") for item in settings)
    stop_at = int(changes.pop("stop_at", "0"))

    def sample(model: GPT, step: int) -> dict[str, float]:
        (folder / "sampling").touch()
        tokens = generate(model, torch.arange(100) % 2, cfg_scale=2.0, generator=torch.Generator().manual_seed(step))
        if step == stop_at:
            os._exit(9)
        (folder / "sampling").unlink(missing_ok=True)
        return {"samples/mean_token": float(tokens.double().mean())}

    model = train(with_settings(make_config(), changes), make_codes(3), CLUSTERS, folder, sample)
    if os.environ.get("RANK", "0") == "0":
        save_arrays(folder / "weights.safetensors", {name: w.numpy() for name, w in model.state_dict().items()})


def curves(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The journal, with what was measured, and without what a clock decides."""
    measured = {point["step"]: point["metrics"] for point in read_journal(folder / MEASURED)}
    return [
        (point["step"], {k: v for k, v in told.items() if not k.startswith("speed/")})
        for point in read_journal(folder / "journal.jsonl")
        for told in [point["metrics"] | measured.get(point["step"], {})]
    ]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_arrays(folder / "weights.safetensors")[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
