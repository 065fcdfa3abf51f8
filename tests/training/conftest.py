"""A small data set of tokens with structure to learn, and a config that trains on it in a second."""

import numpy as np
import pytest

from iar_study.config import EvaluationConfig, ModelConfig, TrainConfig, TrialConfig
from iar_study.data.codes import Codes

VOCABULARY = 16


@pytest.fixture(scope="session")
def codes() -> Codes:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    # Class 0 counts up, class 1 counts down, from a random start, with a little noise.
    start = rng.integers(VOCABULARY, size=(200, 1))
    walk = start + np.where(labels[:, None] == 0, 1, -1) * np.arange(9)
    tokens = ((walk + (rng.random((200, 9)) < 0.1)) % VOCABULARY).astype(np.int32)
    return Codes(tokens[:160], labels[:160], tokens[160:], labels[160:], ("up", "down"))


@pytest.fixture
def config() -> TrialConfig:
    return TrialConfig(
        model=ModelConfig(layers=1, heads=2, width=16, dropout=0.1),
        train=TrainConfig(steps=40, batch_size=16, warmup_steps=5, log_every=5, checkpoint_every=7, lr=1e-2),
        evaluation=EvaluationConfig(every=10, images=40),
    )
