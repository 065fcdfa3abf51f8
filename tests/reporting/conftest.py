"""A made-up study: what the runner would hand to reporting, without a run."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from iar_study.evaluation.metrics import metric_named
from iar_study.evidence.results import Results

ARMS = {
    "baseline": "L_TCE alone, codes in their original order",
    "rearranged": "L_TCE alone, codes rearranged by balanced k-means",
    "blocks": "cluster loss over blocks of the original order",
    "random": "cluster loss over random clusters",
    "iar": "cluster loss over balanced k-means clusters (the paper's method)",
}
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FINAL = {
    "fd/classifier@2k": (41.0, 1.5),
    "fd_inf/classifier@2k": (36.5, 1.6),
    "kd/classifier@2k": (0.02113, 0.0004),
    "precision/classifier@2k": (0.712, 0.006),
    "recall/classifier@2k": (0.488, 0.008),
    "coverage/classifier@2k": (0.655, 0.007),
    "class_agreement/classifier@2k": (0.83, 0.01),
    "val/token_nll": (3.412, 0.004),
    "val/token_accuracy": (0.231, 0.002),
    "val/calibration_error": (0.0124, 0.0006),
    "val/cluster_nll": (1.904, 0.003),
    "val/within_cluster_nll": (1.508, 0.002),
    "val/cluster_accuracy": (0.452, 0.002),
    "val/code_distance_if_wrong": (0.7613, 0.002),
    "val/right_cluster_if_wrong": (0.287, 0.003),
    "val/right_cluster_by_chance": (0.0294, 0.0),
}
"""Final metric -> level, and the unit of its noise and of what an arm gains."""
GAIN = {"rearranged": 0.0, "blocks": -0.5, "random": -2.0, "iar": 4.0}
FALL = {"val/token_nll": (2.83, 110), "val/cluster_accuracy": (-0.42, 120)}
"""Metric -> how far above its end its curve begins, and the steps in which that falls to a third."""


def make_results(
    arms: dict[str, str] | None = None, seeds: tuple[int, ...] = (0, 1, 2), study: str = "components", channels: int = 1
) -> Results:
    """Return made-up results; of five arms the fourth is worse, the last one better, the others hardly differ."""
    arms = ARMS if arms is None else arms
    rng = np.random.default_rng(0)
    final, curves, positions = [], [], {}
    late = np.linspace(0.3, -0.3, 49).reshape(7, 7)
    for index, arm in enumerate(arms):
        gain = list(GAIN.values())[index - 1] if 0 < index <= len(GAIN) else 0.0
        of_seeds = []
        for seed in seeds:
            shared = np.random.default_rng(seed).normal()
            trial, run_id = _ids(arm, seed)
            ends = {}
            for metric, (level, spread) in FINAL.items():
                better = -1 if metric_named(metric).better == "lower" else 1
                noise = 1.5 * shared + better * gain + 0.15 * rng.normal() if spread else 0
                ends[metric] = level + spread * noise
            final += [(arm, seed, trial, run_id, *end) for end in ends.items()]
            for step in range(0, 501, 100):
                for metric, (height, steps) in FALL.items():
                    value = ends[metric] + height * (np.exp(-step / steps) - np.exp(-500 / steps))
                    value += 0.002 * rng.normal() * (step < 500)
                    curves.append((arm, seed, trial, step, metric, value))
                value = 3.41 + 2.83 * np.exp(-step / 110) - 0.004 * gain * step / 500
                value += 0.004 * shared + 0.002 * rng.normal()
                curves.append((arm, seed, trial, step, "train/token_nll", value))
            for step in (125, 250, 375, 500):
                value = ends["fd/classifier@2k"] + 180 * (np.exp(-step / 90) - np.exp(-500 / 90))
                curves.append((arm, seed, trial, step, "fd/classifier@2k", value))
            each = late * (1 + 0.02 * gain) + 0.004 * rng.normal(size=(7, 7))
            of_seeds.append(ends["val/token_nll"] + each - each.mean())
        positions[arm] = {"token_nll": np.stack(of_seeds), "cluster_accuracy": 0.4 - np.stack(of_seeds) / 100}

    def pictures(*shape: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (*shape, 7, 7, channels), dtype=np.uint8)
        return coarse.repeat(4, axis=-3).repeat(4, axis=-2)

    trials = [
        {
            **{"arm": arm, "seed": seed, "trial": trial, "run_id": run_id, "page": "", "status": "finished"},
            "seconds": 90.0,
            "config": {"train.steps": 500, "loss.cluster_weight": float(index > 1), "seed": seed},
            "inputs": {"codes": "c0de" * 16},
            "data": {"name": "fashion-mnist", "digest": "da7a" * 16},
            "code": {"commit": "0123456789abcdef", "dirty": False},
            "environment": {"machine": "x86_64", "cpu_capability": "AVX512", "python": "3.11.7", "torch": "2.13.0"},
        }
        for index, arm in enumerate(arms)
        for seed in seeds
        for trial, run_id in [_ids(arm, seed)]
    ]
    decoded = pictures(12)
    return Results(
        study=study,
        question="Which part of IAR does the work: the order of the codes, the cluster loss, or both together?",
        claim="The cluster-oriented loss over similar codes significantly enhances the generation quality.",
        baseline=next(iter(arms)),
        arms=arms,
        profile="quick",
        command=f"iar-study run {study} --profile quick --seeds {' '.join(map(str, seeds))}",
        scale={
            "data set": "fashion-mnist",
            "images": "60,000 for training, 10,000 held out, 10 classes",
            "image size": "28 x 28 pixels, grey",
            "tokenizer": "512 codes of dimension 8, 7 x 7 = 49 tokens an image",
            "model": "GPT, 0.28 M weights: 4 layers, 4 heads, width 64",
            "training": "500 steps of 64 images (1.6 M tokens), learning rate 0.004, cosine decay",
            "evaluation": "2,000 held-out images; 2,000 samples, guidance 2, no top-k or top-p; judged by 32 balanced "
            "clusters",
            "seeds": ", ".join(map(str, seeds)),
            "computed in": "float32 on cpu, one thread a trial",
            "code": "commit 0123456789",
        },
        final=pd.DataFrame(final, columns=["arm", "seed", "trial", "run_id", "metric", "value"]),
        curves=pd.DataFrame(curves, columns=["arm", "seed", "trial", "step", "metric", "value"]),
        missing=pd.DataFrame([], columns=["arm", "seed", "status", "step"]),
        class_names=CLASSES,
        n_codes=512,
        tokens_per_step=64 * 49,
        samples_seed=seeds[0],
        samples={arm: pictures(10, 6) for arm in arms},
        reconstructions={
            "originals": pictures(12),
            "decoded": decoded,
            "decoded after rearrangement": decoded.copy(),
        },
        exact={"equivariance": 3.1e-16, "decoding": 0.0},
        positions=positions,
        trials=trials,
    )


def _ids(arm: str, seed: int) -> tuple[str, str]:
    """Return the hash of a trial and the id of its run."""
    trial = sha256(f"{arm} {seed}".encode()).hexdigest()
    return trial, trial[32:]


@pytest.fixture(scope="session")
def build() -> Callable[..., Results]:
    """The builder itself, for tests that change something."""
    return make_results


@pytest.fixture(scope="session")
def results() -> Results:
    return make_results()
