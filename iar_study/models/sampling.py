"""Draw token grids from a GPT with classifier-free guidance and a preallocated key-value cache."""

from __future__ import annotations

import torch
from torch import Tensor

from iar_study.models.gpt import GPT


@torch.inference_mode()
def generate(model: GPT, labels: Tensor, *, guidance: float, temperature: float, generator: torch.Generator) -> Tensor:
    """Return tokens, int64 (B, grid * grid), drawn for class `labels` int64 (B,); no top-k, no top-p.

    logits = uncond + guidance * (cond - uncond), both halves in one batch; guidance 1 runs the conditional half
    alone. The same generator state gives the same tokens.
    """
    guided = guidance != 1.0
    batch = len(labels)
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.cls_embedding.n_classes)])
    length = model.grid**2
    cache = model.empty_cache(len(labels))
    tokens = labels.new_empty(batch, length)
    logits = model(labels, None, cache)
    for i in range(length):
        last = logits[:, -1].float()
        if guided:
            cond, uncond = last.chunk(2)
            last = uncond + guidance * (cond - uncond)
        probabilities = (last / temperature).softmax(-1)
        # Exponential race, argmax p_i / e_i with e_i ~ Exp(1): a draw from p whose noise belongs to the code,
        # so two models that agree on p draw the same token.
        noise = torch.empty_like(probabilities).exponential_(generator=generator)
        tokens[:, i] = (probabilities / noise).argmax(-1)
        if i + 1 < length:
            new = tokens[:, i : i + 1]
            logits = model(None, torch.cat([new, new]) if guided else new, cache, i + 1)
    return tokens
