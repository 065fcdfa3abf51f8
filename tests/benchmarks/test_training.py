"""What the trainer costs beside a bare loop over the same model, batches and losses: side by side in one run.

Logging, checkpoints, the moving average, stop requests and Fabric come on top of the bare loop; evaluation is left out
of both. A round of the bare loop runs before every round of the trainer, so that a busy machine slows both.
"""

import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from iar_study.codebook import Rearrangement
from iar_study.config import PRESETS, EvaluationConfig, LossConfig, TrainConfig, TrialConfig
from iar_study.data.codes import Codes
from iar_study.models.losses import token_and_cluster_cross_entropy
from iar_study.training.checkpoint import Checkpoints
from iar_study.training.gpt import Training, initial_model, make_optimizer, train_gpt
from iar_study.training.journal import read_journal

TOKENS = 49


def random_codes(vocabulary: int) -> Codes:
    rng = np.random.default_rng(0)
    tokens = rng.integers(vocabulary, size=(2048, 1, TOKENS)).astype(np.int32)
    labels = np.arange(2048) % 10
    return Codes(tokens, labels, tokens[:1, 0], labels[:1], tuple("0123456789"))


def bare_loop(config: TrialConfig, codes: Codes, clusters: Rearrangement) -> None:
    """What one would write to train the model once."""
    settings = config.train
    model = initial_model(config, codes, clusters).train()
    optimizer = make_optimizer(model, settings)
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


@pytest.mark.bench
@pytest.mark.parametrize(("preset", "vocabulary", "batch"), [("tiny", 512, 32), ("small", 1024, 8)])
def test_trainer_beside_a_bare_loop(benchmark, tmp_path, monkeypatch, preset, vocabulary, batch):
    codes, clusters = random_codes(vocabulary), Rearrangement.from_labels(np.arange(vocabulary) % 32)
    steps = TrainConfig().checkpoint_every
    config = TrialConfig(
        model=PRESETS[preset],
        loss=LossConfig(1.0),
        train=TrainConfig(steps=steps, batch_size=batch),
        evaluation=EvaluationConfig(every=10 * steps, images=1),
    )
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    bare, saving, folders = [], [], []

    def timed(method, into):
        def call(*arguments):
            started = time.perf_counter()
            result = method(*arguments)
            into.append(time.perf_counter() - started)
            return result

        return call

    run_bare = timed(bare_loop, bare)
    monkeypatch.setattr(Training, "tensors", timed(Training.tensors, saving))
    monkeypatch.setattr(Checkpoints, "save", timed(Checkpoints.save, saving))

    def next_round():
        run_bare(config, codes, clusters)
        folders.append(tmp_path / str(len(folders)))
        return (replace(config, seed=len(folders)), codes, clusters, clusters, folders[-1]), {}

    benchmark.group = (
        f"training, {preset}, {steps} steps of {batch} images, one thread, a checkpoint and {steps // 25} points"
    )
    benchmark.pedantic(train_gpt, setup=next_round, rounds=5, warmup_rounds=1)
    trained = benchmark.stats.stats.data
    pairs = zip(trained, bare[-len(trained) :], strict=True)
    waits = [
        point["metrics"]["speed/data_wait_share"]
        for folder in folders
        for point in read_journal(folder / "journal.jsonl")
    ]
    benchmark.extra_info |= {
        "time_over_bare_loop": round(statistics.median(ours / theirs for ours, theirs in pairs), 3),
        "share_of_checkpoints": round(2 * statistics.median(saving) / statistics.median(trained), 4),
        "share_of_waiting_for_data": round(statistics.median(waits), 4),
    }
