"""A study's finished trials as tidy DataFrames and pictures: all that reporting may look at."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Results:
    """What a study found.

    Attributes
    ----------
    arms : arm name -> what it varies, in the study's order; the first key need not be the baseline.
    scale : label -> text or number: what was run, on what data, at which size, on which machine.
    final : tidy frame, one row per trial and metric: arm, seed, trial (hash), run_id (MLflow), metric, value.
    curves : tidy frame, one row per trial, metric and training step: arm, seed, trial, step, metric, value.
    missing : one row per trial that was asked for and is not finished: arm, seed, status.
    samples : arm -> uint8 (classes, per class, h, w, c), drawn with the same noise for every arm; one seed.
    reconstructions : "originals" | "decoded" | "decoded after rearrangement" -> uint8 (k, h, w, c).
    """

    study: str
    question: str
    claim: str
    baseline: str
    arms: dict[str, str]
    profile: str
    scale: dict[str, str | int | float]
    final: pd.DataFrame
    curves: pd.DataFrame
    missing: pd.DataFrame
    class_names: tuple[str, ...] = ()
    samples_seed: int = 0
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    reconstructions: dict[str, np.ndarray] = field(default_factory=dict)
