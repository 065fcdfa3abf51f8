"""Tokenizers by where they come from: a study's own file, LlamaGen's checkpoint, or a part of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from iar_study import parts
from iar_study.codebook import Codebook
from iar_study.errors import InputError
from iar_study.storage import digest
from iar_study.tokenizers.layout import side_in_tokens
from iar_study.tokenizers.patch_vq import PatchVQ
from iar_study.tokenizers.vq import Tokenizer, VQModel, to_uint8, to_uint8_of_size

DECODED_AT_ONCE = 2**20
"""Pixels that are decoded at a time: 16 pictures of 256 x 256, of which VQ-16 needs some GB."""

SMALL_AT_ONCE = 500
"""Small pictures that are encoded, or decoded to be measured, at a time."""

CODE = "iar_study_code"
"""Attribute of a tokenizer of one's own: its name, the digest of its file, and its settings."""

NEEDED = ("encode", "decode_codes", "codebook", "patch", "in_channels", "lookup")
"""What a tokenizer of one's own has, beside being a `torch.nn.Module`; see `vq.Tokenizer`."""


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """Return the tokenizer of a study's `tokenizer-*.safetensors`, of LlamaGen's .pt, or of `FILE.py:NAME`.

    Raises `InputError` for a file that is missing, damaged or another, and a part that is no tokenizer.
    """
    if ".py:" in str(spec):
        found = parts.load("tokenizer", str(spec))()
        missing = [name for name in NEEDED if not hasattr(found, name)]
        if not isinstance(found, torch.nn.Module) or missing:
            raise InputError(f"tokenizer {spec} is to return a torch.nn.Module with {', '.join(missing or NEEDED)}")
        setattr(found, CODE, parts.identity("tokenizer", str(spec)))
        return cast(Tokenizer, found.eval())
    path = Path(spec).expanduser()
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(f"{path} cannot be read (no such file); check the path")
        return PatchVQ.load(path)
    return VQModel.load_llamagen(path)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 (hex) of the weights, and of code of one's own, by which codes name what made them."""
    weights = tokenizer.state_dict()
    # Sorted: a class that defines its layers in another order has the same weights.
    content = [part for name in sorted(weights) for part in (name, weights[name].cpu().numpy())]
    return digest(*content, *([getattr(tokenizer, CODE)] if hasattr(tokenizer, CODE) else []))


def codebook_of(tokenizer: Tokenizer) -> Codebook:
    """Return the codes as decoding uses them, float32 (N, d), with the rule by which they are looked up."""
    return Codebook(tokenizer.codebook().detach().float().cpu().numpy(), tokenizer.lookup)


def decoded(
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    at_once: int | None = None,
    codebook: Tensor | None = None,
    size: int | None = None,
) -> Iterator[np.ndarray]:
    """Give the pictures, uint8 (b, h, w, c), of tokens, int (n, T), some at a time, on the tokenizer's device.

    Parameters
    ----------
    at_once : pictures that are decoded together, on which the last bits may depend; by default `DECODED_AT_ONCE`.
    codebook : float (N, d), replaces the tokenizer's own, as for rearranged tokens.
    size : pixels a side, to which the decoder's output is brought; by default it stays as it is.

    Raises
    ------
    InputError : the tokens form no square grid, or name a code that does not exist.
    """
    grid, rows = side_in_tokens(tokens.shape[1]), tokenizer.codebook() if codebook is None else codebook
    if tokens.size and (tokens.min() < 0 or tokens.max() >= len(rows)):
        raise InputError(f"tokens lie in {tokens.min()} ... {tokens.max()}, the codebook has {len(rows)} codes")
    grids = torch.from_numpy(tokens.astype(np.int64)).view(-1, grid, grid)
    for some in grids.split(at_once or max(1, DECODED_AT_ONCE // (grid * tokenizer.patch) ** 2)):
        images = tokenizer.decode_codes(some.to(rows.device), codebook)
        yield to_uint8(images) if size is None else to_uint8_of_size(images, size)


def batch_of(pixels: int) -> int:
    """Return how many pictures of so many pixels are taken together."""
    return min(SMALL_AT_ONCE, max(1, DECODED_AT_ONCE // pixels))


def decode_tokens(tokenizer: Tokenizer, tokens: np.ndarray, codebook: Tensor | None = None) -> np.ndarray:
    """Return all that `decoded` gives, uint8 (n, h, w, c), `batch_of` the pictures' size together."""
    batch = batch_of(tokens.shape[1] * tokenizer.patch**2)
    return np.concatenate(list(decoded(tokenizer, tokens, batch, codebook)))
