"""What the trainer costs beside a bare loop over the same model and losses: side by side in one run.

Logging, checkpoints, seeds, stop requests and Fabric come on top of the bare loop, which keeps the moving average as
well: it is part of the recipe. Evaluation is left out of both. A round of the bare loop runs before every round of the
trainer, so that a busy machine slows both.
"""

import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from iar_study.codebook import Codebook, Rearrangement
from iar_study.config import PRESETS, EvaluationConfig, LossConfig, TrainConfig, TrialConfig
from iar_study.data.codes import Codes
from iar_study.losses.cluster_cross_entropy import token_and_cluster_cross_entropy
from iar_study.running.executors import WORKER_ENVIRONMENT
from iar_study.training.checkpoint import Checkpoints
from iar_study.training.journal import read_journal
from iar_study.training.train_gpt import Training, initial_model, make_optimizer, train_gpt

TOKENS = 49


def random_codes(vocabulary: int) -> Codes:
    rng = np.random.default_rng(0)
    tokens = rng.integers(vocabulary, size=(2048, 1, TOKENS)).astype(np.int32)
    labels = np.arange(2048) % 10
    codebook = Codebook(rng.normal(size=(vocabulary, 8)).astype(np.float32))
    return Codes(tokens, labels, tokens[:1, 0], labels[:1], tuple("0123456789"), codebook)


def bare_loop(config: TrialConfig, codes: Codes, clusters: Rearrangement) -> None:
    """What one would write to train the model once."""
    settings = config.train
    model = initial_model(config, codes, clusters).train()
    optimizer = make_optimizer(model, settings)
    average = [p.detach().clone() for p in model.parameters()]
    boundaries = torch.from_numpy(clusters.boundaries)
    tokens = torch.from_numpy(clusters.tokens(codes.train_tokens[:, 0])).long()
    labels = torch.from_numpy(codes.train_labels)
    for _ in range(settings.steps):
        rows = torch.randint(len(tokens), (settings.batch_size,))
        batch = tokens[rows]
        dropped = torch.rand(settings.batch_size) < config.model.class_dropout
        logits = model(torch.where(dropped, 10, labels[rows]), batch[:, :-1])
        tce, cce = token_and_cluster_cross_entropy(logits, batch, boundaries)
        loss = tce + config.loss.cluster_weight * cce
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1 - settings.ema)


def timed(call, *arguments) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def train(config: TrialConfig, codes: Codes, clusters: Rearrangement) -> tuple[float, list[float]]:
    """Train in a new folder; return the seconds that checkpoints took, and the shares of time waiting for data."""
    spent = []

    def watched(method):
        def call(*arguments):
            started = time.perf_counter()
            result = method(*arguments)
            spent.append(time.perf_counter() - started)
            return result

        return call

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "tensors", watched(Training.tensors))
        patch.setattr(Checkpoints, "save", watched(Checkpoints.save))
        train_gpt(config, codes, clusters, Path(folder))
        points = read_journal(Path(folder) / "journal.jsonl")
    return sum(spent), [point["metrics"]["speed/data_wait_share"] for point in points]


def set_up() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


@pytest.mark.bench
@pytest.mark.parametrize(("preset", "vocabulary", "batch"), [("tiny", 512, 32), ("small", 1024, 8)])
def test_trainer_beside_a_bare_loop(benchmark, monkeypatch, preset, vocabulary, batch):
    """Both in a process such as the runner trains in."""
    codes, clusters = random_codes(vocabulary), Rearrangement.from_labels(np.arange(vocabulary) % 32)
    steps = 2 * TrainConfig().checkpoint_every
    config = TrialConfig(
        model=PRESETS[preset],
        loss=LossConfig(1.0),
        train=TrainConfig(steps=steps, batch_size=batch, kept=1),
        evaluation=EvaluationConfig(images=1),
    )
    for name, value in WORKER_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    bare, of_checkpoints, waits = [], [], []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=set_up) as worker:

        def run_bare():
            bare.append(worker.submit(timed, bare_loop, config, codes, clusters).result())

        def run_ours():
            saving, shares = worker.submit(train, config, codes, clusters).result()
            of_checkpoints.append(saving)
            waits.extend(shares)

        benchmark.group = (
            f"training, {preset}, {steps} steps of {batch} images, one thread, with points and checkpoints"
        )
        benchmark.pedantic(run_ours, setup=run_bare, rounds=5, warmup_rounds=1)
    trained = benchmark.stats.stats.data
    pairs = zip(trained, bare[-len(trained) :], strict=True)
    benchmark.extra_info |= {
        "time_over_bare_loop": round(statistics.median(ours / theirs for ours, theirs in pairs), 3),
        "share_of_checkpoints": round(statistics.median(of_checkpoints) / statistics.median(trained), 4),
        "share_of_waiting_for_data": round(statistics.median(waits), 4),
    }
