"""Train the VQ tokenizer in half a minute on a CPU, and turn images into tokens and back.

Two classic troubles of a VQ autoencoder are met here: the codebook starts as encoder outputs, so every code is near
the data, and codes that fall out of use are moved onto current outputs, until the last part of the training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iar_study.config import TokenizerConfig
from iar_study.data.batches import batch_indices
from iar_study.storage import Kept
from iar_study.tokenizers.given import batch_of, decode_tokens
from iar_study.tokenizers.patch_vq import PatchVQ
from iar_study.tokenizers.vq import Tokenizer, to_float, unit
from iar_study.training.one_cycle import Progress, train_one_cycle

REVIVE_EVERY = 20
"""Steps after which a code that no token used is moved."""

REVIVE_UNTIL = 0.7
"""Share of the steps after which codes are left in place, so that encoder and decoder settle on them."""


def train_tokenizer(
    images: np.ndarray,
    config: TokenizerConfig,
    *,
    threads: int,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> PatchVQ:
    """Train by mean squared error + codebook loss + beta * commitment loss, with AdamW and a one-cycle learning rate.

    The bits of the result depend on (images, config, threads) and the machine alone. Sets torch's seed and its number
    of threads for the process.

    Parameters
    ----------
    images : uint8 (n, side, side, channels).
    threads : CPU threads.
    folder, progress : see `train_one_cycle`.

    Raises
    ------
    InputError : the images do not fit the config, or the loss is no longer finite.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    model = PatchVQ(config, images.shape[-1]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    codebook = model.quantize.embedding.weight
    unused = torch.zeros(config.codebook_size, dtype=torch.int64)  # steps since a token used the code
    seen: tuple[Tensor, Tensor]  # the images of the step, and their tokens

    def loss_of(step: int) -> Tensor:
        nonlocal seen
        x = to_float(images[batch_indices(len(images), config.batch_size, step, config.seed)])
        if step == 0:
            move_onto_outputs(model, torch.ones_like(unused, dtype=torch.bool), x)
        reconstruction, losses, tokens = model(x)
        seen = x, tokens
        return F.mse_loss(reconstruction, x) + losses["codebook"] + config.commitment * losses["commitment"]

    def revive(done: int) -> None:
        x, tokens = seen
        unused.add_(1)
        unused[tokens.unique()] = 0
        if done % REVIVE_EVERY == 0 and done <= REVIVE_UNTIL * config.steps:
            dead = unused >= REVIVE_EVERY
            move_onto_outputs(model, dead, x)
            unused[dead] = 0
            for moment in ("exp_avg", "exp_avg_sq"):  # the old place's gradients say nothing about the new one
                optimizer.state[codebook][moment][dead] = 0

    train_one_cycle(
        "tokenizer",
        model,
        optimizer,
        loss_of,
        config,
        rise=0.1,
        after=revive,
        more={"unused": unused},
        folder=folder,
        progress=progress,
    )
    return model.eval()


@torch.no_grad()
def move_onto_outputs(model: PatchVQ, codes: Tensor, images: Tensor) -> None:
    """Put the codes of a bool mask (N,) onto randomly drawn encoder outputs for float `images`, in place."""
    outputs = unit(model.latents(images), 1).permute(0, 2, 3, 1).flatten(0, 2)
    drawn = torch.randperm(len(outputs))[torch.arange(int(codes.sum())) % len(outputs)]
    model.quantize.embedding.weight[codes] = outputs[drawn]


def encode_images(
    model: Tokenizer, images: np.ndarray, batch: int | None = None, kept: Kept | None = None
) -> np.ndarray:
    """Return the tokens, int32 (n, h * w) row by row, of uint8 images (n, H, W, C); `kept` has whole batches."""
    batch = batch or batch_of(images.shape[1] * images.shape[2])
    parts = list(kept.arrays().values()) if kept else []

    def tokens() -> np.ndarray:
        return np.concatenate(parts)

    for i in range(sum(map(len, parts)), len(images), batch):
        parts.append(model.encode(to_float(images[i : i + batch])).flatten(1).to(torch.int32).numpy())
        if kept:
            kept.offer(lambda: {"tokens": tokens()})
    return tokens()


def describe_tokenizer(
    model: Tokenizer, images: np.ndarray, train_tokens: np.ndarray | None = None
) -> dict[str, float]:
    """Measure the tokenizer on held-out uint8 images (n, side, side, C).

    Returns `psnr` in dB (the mean over images of each image's PSNR, on the levels 0 ... 255, at most 100), `usage`
    (share of the codes that occur among `train_tokens`, or among the images' own tokens) and `perplexity` (the
    exponential of the entropy of those tokens; N if all codes are equally frequent).
    """
    tokens = encode_images(model, images)
    error = np.square(images.astype(np.float32) - decode_tokens(model, tokens)).mean(axis=(1, 2, 3), dtype=np.float64)
    psnr = -10 * np.log10(np.maximum(error / 255**2, 1e-10))
    counted = tokens if train_tokens is None else train_tokens
    counts = np.bincount(counted.ravel(), minlength=len(model.codebook()))
    share = counts[counts > 0] / counts.sum()
    return {
        "psnr": float(psnr.mean()),
        "usage": float(np.mean(counts > 0)),
        "perplexity": float(np.exp(-np.sum(share * np.log(share)))),
    }
