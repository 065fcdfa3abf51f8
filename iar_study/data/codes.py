"""Encoded images: the tokens that a GPT is trained on, with their classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Codes:
    """Tokens of a data set, in the original order of the codebook.

    Attributes
    ----------
    train_tokens : int (n, augmentations, grid * grid), row by row; may be memory-mapped: only what is indexed is read.
    test_tokens : int (n, grid * grid).
    train_labels, test_labels : int64 (n,).
    class_names : one name per class.
    codebook : float32 (N, d), the vectors of the codes as the tokenizer looks them up, by Euclidean distance.
    """

    train_tokens: np.ndarray
    train_labels: np.ndarray
    test_tokens: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    codebook: np.ndarray

    @property
    def grid(self) -> int:
        """Tokens along one side of a picture."""
        return round(self.train_tokens.shape[-1] ** 0.5)
