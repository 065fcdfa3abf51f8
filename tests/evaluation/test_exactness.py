"""Rearrangement alone changes nothing: seen to hold, and seen to fail where it should."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.codebook import Rearrangement
from iar_study.config import TokenizerConfig
from iar_study.evaluation.exactness import decoding_gap, equivariance_gap
from iar_study.generators.gpt import GPT
from iar_study.tokenizers.patch_vq import PatchVQ

CODES = 16


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, Rearrangement]:
    rng = np.random.default_rng(seed)
    arranged = Rearrangement.from_labels(rng.permutation(CODES) % 4)
    return rng.integers(CODES, size=(3, 9)), rng.integers(2, size=3), arranged


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_a_permuted_vocabulary_gives_the_same_loss_and_gradients(seed):
    tokens, labels, arranged = problem(seed)
    assert equivariance_gap(tokens, labels, 2, arranged) < 1e-12


@pytest.mark.parametrize("table", ["tok_embeddings", "output"])
def test_a_table_that_is_not_permuted_is_seen(monkeypatch, table):
    def rearrange_one(model, order):
        weight = getattr(model, table).weight
        with torch.no_grad():
            weight.copy_(weight[order])

    monkeypatch.setattr(GPT, "rearrange_vocabulary", rearrange_one)
    tokens, labels, arranged = problem(0)
    assert equivariance_gap(tokens, labels, 2, arranged) > 1e-3


def test_rearranged_codes_decode_to_the_same_bits_and_other_codes_do_not():
    torch.manual_seed(0)
    tokenizer = PatchVQ(TokenizerConfig(codebook_size=CODES, channels=8, patch=2), 1).eval()
    tokens, _, arranged = problem(1)
    assert decoding_gap(tokenizer, tokens, arranged) == 0
    wrong = Rearrangement(np.roll(arranged.permutation, 1), arranged.boundaries)
    object.__setattr__(arranged, "tokens", wrong.tokens)
    assert decoding_gap(tokenizer, tokens, arranged) > 0
