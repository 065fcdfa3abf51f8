"""Train the VQ tokenizer in seconds to minutes on a CPU, and turn images into tokens and back.

The two classic troubles of a VQ autoencoder are met here: the codebook starts as encoder outputs, so all codes are
near the data, and codes that go unused are moved onto current outputs until the last part of the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iar_study.config import TokenizerConfig
from iar_study.data.batches import batch_indices
from iar_study.errors import InputError
from iar_study.models.vq import VQModel, to_float, to_uint8

WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""

REVIVE_EVERY = 20
"""Steps after which a code that no token used is re-seeded."""

REVIVE_UNTIL = 0.7
"""Share of the steps after which no code is re-seeded any more: the last part settles what there is."""

ENCODE_BATCH = 500


def train_tokenizer(
    images: np.ndarray, config: TokenizerConfig, *, threads: int, progress: Callable[[int, int, str], None] | None
) -> VQModel:
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    model = VQModel(config, images.shape[3]).train()
    codebook = model.quantize.embedding.weight
    weights = [p for p in model.parameters() if p is not codebook]
    groups = [{"params": weights, "weight_decay": 1e-4}, {"params": [codebook], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    unused = torch.zeros(config.codebook_size, dtype=torch.int64)

    for step in range(config.steps):
        x = to_float(images[batch_indices(len(images), config.batch_size, step, config.seed)])
        if step == 0:
            reseed(model, x, torch.ones(config.codebook_size, dtype=torch.bool))
        reconstruction, losses, tokens = model(x)
        mse = F.mse_loss(reconstruction, x)
        loss = mse + losses["codebook"] + config.commitment * losses["commitment"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        unused += 1
        unused[tokens.unique()] = 0
        if (step + 1) % REVIVE_EVERY == 0 and step < REVIVE_UNTIL * config.steps:
            dead = unused >= REVIVE_EVERY
            reseed(model, x, dead)
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[codebook][name][dead] = 0
            unused[dead] = 0
        if progress and ((step + 1) % 20 == 0 or step + 1 == config.steps):
            progress(step + 1, config.steps, f"loss {float(loss):.3f}")
    return model.eval()


def _rate(step: int, steps: int) -> float:
    warmup = math.ceil(WARMUP * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def reseed(model: VQModel, images: Tensor, codes: Tensor) -> None:
    """Move the codes (bool mask (N,)) onto random encoder outputs of `images`, in place."""
    outputs = F.normalize(model.latents(images), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    n = int(codes.sum())
    chosen = torch.randperm(len(outputs))[torch.arange(n) % len(outputs)]
    model.quantize.embedding.weight[codes] = outputs[chosen]


def encode_images(model: VQModel, images: np.ndarray, batch: int = ENCODE_BATCH) -> np.ndarray:
    parts = [model.encode(to_float(images[i : i + batch])).flatten(1) for i in range(0, len(images), batch)]
    return torch.cat(parts).to(torch.int32).numpy()


def decode_tokens(model, tokens, codebook=None, batch: int = ENCODE_BATCH) -> np.ndarray:
    grid = math.isqrt(tokens.shape[1])
    parts = []
    for i in range(0, len(tokens), batch):
        part = torch.from_numpy(tokens[i : i + batch]).long().unflatten(1, (grid, grid))
        parts.append(to_uint8(model.decode_codes(part, codebook)))
    return np.concatenate(parts)


def describe_tokenizer(model, images, train_tokens=None):
    tokens = encode_images(model, images)
    decoded = decode_tokens(model, tokens)
    error = (images.astype(np.float64) - decoded).__pow__(2).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(255**2 / np.maximum(error,1e-9))
    counts = np.bincount((tokens if train_tokens is None else train_tokens).ravel(), minlength=model.config.codebook_size)
    p = counts[counts > 0] / counts.sum()
    return {"psnr": float(psnr.mean()), "usage": float((counts > 0).mean()), "perplexity": float(np.exp(-(p * np.log(p)).sum()))}
