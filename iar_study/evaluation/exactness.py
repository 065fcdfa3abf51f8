"""What must hold exactly, whatever is trained: rearrangement alone changes neither a picture nor a training.

With lambda = 0 a GPT is equivariant under a permutation of its vocabulary: permute embedding rows, output rows and
tokens alike, and every loss and gradient is the same but for rounding. And codes that are reordered with their tokens
decode to the same pictures to the bit, for rows are only gathered.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from iar_study.codebook import Rearrangement
from iar_study.config import PRESETS
from iar_study.generators.gpt import GPT
from iar_study.tokenizers.layout import side_in_tokens
from iar_study.tokenizers.vq import Tokenizer

SEED = 0
"""Of the weights of the GPT that is permuted."""


def equivariance_gap(tokens: np.ndarray, labels: np.ndarray, classes: int, arranged: Rearrangement) -> float:
    """Return how far a GPT and its permuted copy are apart: the largest relative difference of loss and gradients.

    Both are computed in float64, of the same `tiny` GPT with random weights: the statement is about the vocabulary, and
    every size has the same. A gradient's difference is its largest element over the largest of the gradient.

    Parameters
    ----------
    tokens, labels : int (B, T) and (B,), in the original order of the codes.
    """
    torch.manual_seed(SEED)
    model = GPT(PRESETS["tiny"], len(arranged.permutation), classes, side_in_tokens(tokens.shape[1]))
    torch.nn.init.normal_(model.output.weight, std=0.02)  # it begins at zero, where nothing could differ
    model = model.double().eval()
    target = torch.from_numpy(labels)
    plain = _loss_and_gradients(model, target, torch.from_numpy(tokens.astype(np.int64)))
    model.rearrange_vocabulary(torch.from_numpy(arranged.order))
    moved = _loss_and_gradients(model, target, torch.from_numpy(arranged.tokens(tokens).astype(np.int64)))
    back = torch.from_numpy(arranged.permutation)
    gaps = []
    for name, a in plain.items():
        b = moved[name][back] if name in ("tok_embeddings.weight", "output.weight") else moved[name]
        gaps.append(float((a - b).abs().max() / a.abs().max()))
    return max(gaps)


def _loss_and_gradients(model: GPT, labels: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    loss = F.cross_entropy(model(labels, tokens[:, :-1]).flatten(0, 1), tokens.flatten())
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {"loss": loss.detach()} | dict(zip(parameters, gradients, strict=True))


def decoding_gap(tokenizer: Tokenizer, tokens: np.ndarray, arranged: Rearrangement) -> float:
    """Return the largest difference of a pixel, in [-1, 1], decoded before and after rearrangement: 0 when exact.

    tokens : int (B, T), in the original order of the codes.
    """
    grid = side_in_tokens(tokens.shape[1])
    original, moved = (
        torch.from_numpy(each.astype(np.int64)).view(-1, grid, grid) for each in (tokens, arranged.tokens(tokens))
    )
    rearranged = tokenizer.codebook()[torch.from_numpy(arranged.order)]
    return float((tokenizer.decode_codes(original) - tokenizer.decode_codes(moved, rearranged)).abs().max())
