"""Samples are drawn part by part; a part that was drawn is not drawn again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iar_study.config import EvaluationConfig, TrialConfig, with_settings
from iar_study.errors import InputError
from iar_study.pipeline import drawing
from iar_study.pipeline.drawing import SAMPLED_AT_ONCE, drawn_tokens, load_model
from iar_study.training.train_gpt import train_gpt
from tests.training.small import CLUSTERS, make_codes, make_config

CONFIG = TrialConfig(evaluation=EvaluationConfig(samples=350))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parts that are drawn; the third ends it."""
    parts: list[int] = []

    def draw(model: Any, config: TrialConfig, part: int, n_classes: int) -> np.ndarray:
        parts.append(part)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return np.random.default_rng(part).integers(64, size=(SAMPLED_AT_ONCE, 4), dtype=np.uint16)

    monkeypatch.setattr(drawing, "draw", draw)
    return parts


def tokens(folder: Path, step: int, **changes: Any) -> np.ndarray:
    config = with_settings(CONFIG, {f"evaluation.{name}": value for name, value in changes.items()})
    return drawn_tokens(folder, config, 2, step, lambda: None, folder / "progress")  # type: ignore[arg-type,return-value]


@pytest.mark.usefixtures("keeping_all")
def test_sampling_that_is_cut_off_goes_on_to_the_same_tokens(tmp_path: Path, drawn: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        tokens(tmp_path / "cut", 5)
    again = tokens(tmp_path / "cut", 5)
    assert drawn == [0, 1, 2, 2, 3]
    assert again.shape == (350, 4)
    np.testing.assert_array_equal(again, tokens(tmp_path / "whole", 5))
    drawn[:] = [-1, -1, -1]
    np.testing.assert_array_equal(tokens(tmp_path / "cut", 5, samples=400)[:350], again)
    assert drawn[3:] == []  # whole parts are drawn, and kept
    np.testing.assert_array_equal(tokens(tmp_path / "cut", 5, samples=620)[:350], again)
    assert drawn[3:] == [4, 5, 6]
    del drawn[3:]
    for step, changes in ((10, {}), (5, {"guidance": 1.0}), (5, {"noise": 1}), (5, {"temperature": 0.9})):
        tokens(tmp_path / "cut", step, **changes)
        assert drawn[3:] == [0, 1, 2, 3], "another step, or another way to sample"
        del drawn[3:]


def test_weights_that_were_not_kept_are_named(tmp_path: Path) -> None:
    config = with_settings(make_config(), {"train.kept": 2, "tokenizer.codebook_size": 16})
    train_gpt(config, make_codes(), CLUSTERS, tmp_path)
    assert load_model(tmp_path, config, 2, 3, 40).n_parameters() > 0
    with pytest.raises(InputError, match=r"no weights of step 10: its weights were kept after steps 20, 40; run its"):
        load_model(tmp_path, config, 2, 3, 10)
    with pytest.raises(InputError, match=r"no weights of step 10: none of its weights are here"):
        load_model(tmp_path / "none", config, 2, 3, 10)
