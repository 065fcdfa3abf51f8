"""Draw token grids from a GPT with classifier-free guidance and a preallocated key-value cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iar_study.errors import InputError
from iar_study.generators.gpt import GPT


@torch.inference_mode()
def generate(
    model: GPT,
    labels: Tensor,
    *,
    cfg_scale: float,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    cfg_interval: int = -1,
    generator: torch.Generator,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Return tokens, int64 (B, grid * grid), drawn for each class of `labels`; the names are those of LlamaGen.

    Parameters
    ----------
    labels : int64 (B,).
    cfg_scale : s of logits = uncond + s * (cond - uncond), both halves in one batch; 1 runs the conditional half alone.
    temperature : the logits are divided by it.
    top_k, top_p : see `keep_likely`; 0 and 1.0 keep all tokens.
    cfg_interval : only the first `cfg_interval` + 2 tokens are guided, -1: all. LlamaGen counts so: its first token
        is always guided, the following ones up to and including number `cfg_interval`, from 0.
    generator : the same state gives the same tokens.
    progress : called with (tokens drawn, all tokens) of an image after each token.

    Raises
    ------
    InputError : a value out of range.
    """
    if temperature <= 0 or top_k < 0 or not 0 < top_p <= 1 or cfg_interval < -1:
        raise InputError(
            f"sampling needs temperature > 0, top_k >= 0, 0 < top_p <= 1 and cfg_interval >= -1, not {temperature=}, "
            f"{top_k=}, {top_p=}, {cfg_interval=}"
        )
    batch, length = len(labels), model.grid**2
    n_guided = 0 if cfg_scale == 1.0 else length if cfg_interval == -1 else cfg_interval + 2
    if n_guided:
        labels = torch.cat([labels, torch.full_like(labels, model.cls_embedding.n_classes)])
    cache = model.empty_cache(len(labels))
    tokens = labels.new_empty(batch, length)
    with model.packed(len(labels)):
        for i in range(length):
            guided = i < n_guided
            if i == 0:
                logits = model(labels, None, cache)
            elif guided:
                logits = model(None, tokens[:, i - 1 : i].repeat(2, 1), cache, i)
            else:
                logits = model(None, tokens[:, i - 1 : i], cache[:, :, :batch], i)
            last = logits[:, -1].float()
            if guided:
                cond, uncond = last.chunk(2)
                last = uncond + cfg_scale * (cond - uncond)
            tokens[:, i] = draw(keep_likely(last / temperature, top_k, top_p), generator)
            if progress is not None:
                progress(i + 1, length)
    return tokens


def keep_likely(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits (B, N) with -inf for all but the likely tokens.

    `top_k` keeps the k likeliest (and those equal to the k-th), 0 all. `top_p` then keeps a token when all likelier
    ones together have a probability of at most `top_p` among those that are left (arXiv 1904.09751), 1.0 all.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, token = logits.sort(descending=True)
        likelier = F.pad(ordered.softmax(-1).cumsum(-1)[:, :-1], (1, 0))
        logits = logits.scatter(-1, token, ordered.masked_fill(likelier > top_p, -torch.inf))
    return logits


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return one token of each row, int64 (B,), drawn from softmax(logits), float (B, N).

    By an exponential race, argmax p_i / e_i with e_i ~ Exp(1), whose noise belongs to the code: two models that agree
    on p draw the same token.
    """
    probabilities = logits.softmax(-1)
    noise = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / noise).argmax(-1)
