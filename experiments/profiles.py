"""How big and how long a study runs. `--set key=value` changes single values of a profile."""

from iar_study.config import (
    ClassifierConfig,
    ClusteringConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
    TrialConfig,
)
from iar_study.study import Profile

PROFILES = [
    Profile(
        "smoke",
        "8 x 8 digits and a few dozen steps: does everything run? Says nothing about the paper.",
        TrialConfig(
            data=DataConfig("digits"),
            tokenizer=TokenizerConfig(codebook_size=64, patch=2, steps=150),
            classifier=ClassifierConfig(channels=16, steps=120),
            clustering=ClusteringConfig(n_clusters=8),
            model=ModelConfig(layers=2, heads=2, width=32),
            train=TrainConfig(steps=60, batch_size=32, warmup_steps=10, log_every=10, checkpoint_every=30),
            evaluation=EvaluationConfig(every=20, images=300, clusters=8, samples=200),
        ),
        seeds=(0, 1),
    ),
    Profile(
        "quick",
        "Fashion-MNIST, a GPT of 0.28 M weights, 1,000 steps: minutes on a laptop without a GPU.",
        TrialConfig(),
        seeds=(0, 1),
    ),
    Profile(
        "full",
        "Fashion-MNIST, 1,024 codes, a GPT of 1.9 M weights, 4,000 steps, five seeds: hours on a laptop.",
        TrialConfig(
            tokenizer=TokenizerConfig(codebook_size=1024, steps=6000),
            classifier=ClassifierConfig(steps=4000),
            model=ModelConfig(layers=6, heads=8, width=128, dropout=0.1),
            train=TrainConfig(steps=4000, batch_size=64, lr=2e-3, warmup_steps=200, checkpoint_every=250),
            evaluation=EvaluationConfig(every=500, images=10_000, samples=10_000),
        ),
        seeds=(0, 1, 2, 3, 4),
    ),
]
