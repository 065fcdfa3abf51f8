"""How big and how long a study runs. `--set key=value` changes single values of a profile."""

from dataclasses import replace

from iar_study.config import (
    PRESETS,
    ClassifierConfig,
    ClusteringConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
    TrialConfig,
)
from iar_study.study import Profile

PAPER = TrialConfig(
    data=DataConfig("codes:data/imagenet256", image_size=256),
    tokenizer=TokenizerConfig(codebook_size=16_384, code_dim=8, patch=16, checkpoint="data/vq_ds16_c2i.pt"),
    clustering=ClusteringConfig(n_clusters=128),
    model=PRESETS["B"],
    train=TrainConfig(
        steps=300 * 5004,  # epochs of 1,281,167 images, the last and incomplete batch left out
        batch_size=256,
        micro_batch=32,
        lr=1e-4,
        warmup_steps=0,
        decay="constant",
        ema=0.0,
        kept=6,
        log_every=100,
        checkpoint_every=5000,
    ),
    evaluation=EvaluationConfig(
        images=10_000,
        clusters=128,
        extractor="inception",
        samples=50_000,
        guidance=2.0,
        classes="random",
        reference="data/VIRTUAL_imagenet256_labeled.npz",
    ),
    compute=ComputeConfig("cuda", "bfloat16", compile=True),
)

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
            train=TrainConfig(steps=60, batch_size=32, warmup_steps=10, kept=3, log_every=10, checkpoint_every=30),
            evaluation=EvaluationConfig(images=300, clusters=8, samples=200),
        ),
        seeds=(0, 1),
    ),
    Profile(
        "quick",
        "Fashion-MNIST, a GPT of 0.28 M weights, 1,000 steps: minutes on a laptop without a GPU.",
        TrialConfig(),
        seeds=(0, 1, 2),
    ),
    Profile(
        "full",
        "Fashion-MNIST, 1,024 codes, a GPT of 0.35 M weights, 3,000 steps, five seeds: hours on two cores.",
        TrialConfig(
            tokenizer=TokenizerConfig(codebook_size=1024, steps=6000),
            train=TrainConfig(steps=3000, warmup_steps=150, kept=6, checkpoint_every=250),
            evaluation=EvaluationConfig(images=5000, samples=5000, sampled_times=2),
        ),
        seeds=(0, 1, 2, 3, 4),
    ),
    Profile(
        "paper",
        "LlamaGen's recipe for B at 256 px: ImageNet's codes, VQ-16, 300 epochs on some GPUs; see `iar-study plan`.",
        PAPER,
        seeds=(0, 1, 2),
    ),
    Profile(
        "paper-384",
        "The same of images of 384 px, whose samples are measured at 256 px: the paper's 24 x 24 tokens.",
        replace(
            PAPER,
            data=DataConfig("codes:data/imagenet384", image_size=384),
            evaluation=replace(PAPER.evaluation, guidance=2.25, image_size=256),
        ),
        seeds=(0, 1, 2),
    ),
]
