"""What a trial does: its samples are drawn part by part, and a part that was drawn is not drawn again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from iar_study.config import EvaluationConfig, TrialConfig
from iar_study.pipeline import attempt
from iar_study.storage import load_arrays


@pytest.mark.usefixtures("keeping_all")
def test_sampling_that_is_cut_off_goes_on_to_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrialConfig(evaluation=EvaluationConfig(samples=350))
    trial: Any = SimpleNamespace(config=config, shared=SimpleNamespace(evaluators=None, reference=None))
    drawn: list[int] = []

    def draw(model: Any, config: TrialConfig, part: int, classes: torch.Tensor) -> torch.Tensor:
        drawn.append(part)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return torch.randint(64, (len(classes), 4), generator=torch.Generator().manual_seed(part))

    monkeypatch.setattr(attempt, "draw", draw)
    monkeypatch.setattr(attempt, "decode", lambda shared, tokens, device: np.zeros((len(tokens), 2, 2, 1), np.uint8))

    def sample(folder: Path, step: int) -> np.ndarray:
        attempt.sample_and_measure(trial, tuple("ab"), folder, None, step)
        return load_arrays(folder / "tokens.safetensors")[0]["tokens"]

    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "cut", 5)
    again = sample(tmp_path / "cut", 5)
    assert drawn == [0, 1, 2, 2, 3]
    np.testing.assert_array_equal(again, sample(tmp_path / "whole", 5))
    drawn.clear()
    drawn += [-1, -1, -1]
    sample(tmp_path / "cut", 10)  # at another step all are drawn
    assert drawn[3:] == [0, 1, 2, 3]
