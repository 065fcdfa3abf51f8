"""Encoded images: the tokens that a GPT is trained on, with their classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from iar_study.tokenizers.layout import side_in_tokens

if TYPE_CHECKING:
    from iar_study.codebook import Codebook  # scikit-learn takes a second, and who lists studies need not wait


@dataclass(frozen=True)
class Codes:
    """Tokens of a data set, in the original order of the codebook.

    Attributes
    ----------
    train_tokens : int (n, augmentations, grid * grid), row by row; may be memory-mapped: only what is indexed is read.
    test_tokens : int (n, grid * grid).
    train_labels, test_labels : int64 (n,).
    class_names : one name per class.
    codebook : the codes as decoding uses them, with the rule by which they are looked up.
    """

    train_tokens: np.ndarray
    train_labels: np.ndarray
    test_tokens: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    codebook: Codebook

    @property
    def grid(self) -> int:
        """Tokens along one side of a picture."""
        return side_in_tokens(self.train_tokens.shape[-1])
