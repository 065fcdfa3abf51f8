"""What a GPT costs: its weights, floating-point operations and bytes, counted from its shapes, without torch.

A product of (m, k) with (k, n) is 2 m k n operations. Products are all that is counted: those with weights, and
attention's scores and values. Embedding look-ups, norms, activations, softmax and losses are free. An image of T tokens
is T inputs, the class and the tokens but the last, and T rows of logits.

The causal mask saves nothing here: attention is counted over all T x T pairs, as torch's `FlopCounterMode` and most
reports of a GPU's utilisation count it. Sampling with a cache of keys and values meets half of the pairs, and counts
those.
"""

from __future__ import annotations

from typing import NamedTuple

from iar_study.config import ModelConfig, TrialConfig

FLOAT32 = 4
"""Bytes of a weight, a gradient, a moment."""


def hidden_width(model: ModelConfig) -> int:
    """Return the width of the feed-forward, as `gpt.feed_forward_width`."""
    return -(-int(2 / 3 * 4 * model.width) // model.ffn_multiple) * model.ffn_multiple


def block_weights(model: ModelConfig) -> int:
    """Return the weights of one block's products: wqkv and wo, then w1, w2 and w3."""
    return 4 * model.width**2 + 3 * model.width * hidden_width(model)


def n_parameters(model: ModelConfig, vocab_size: int, n_classes: int) -> int:
    """Return the number of trained weights; the class embedding has one row more, for "no class"."""
    tables = (2 * vocab_size + n_classes + 1) * model.width  # tokens, output layer, classes
    norms = (2 * model.layers + 1) * model.width
    return tables + norms + model.layers * block_weights(model)


def blocks_flops(model: ModelConfig, tokens: int) -> int:
    """Return the operations of all blocks for one image of `tokens` tokens."""
    attention = 4 * model.width * tokens**2  # scores, then values
    return model.layers * (2 * tokens * block_weights(model) + attention)


def forward_flops(model: ModelConfig, vocab_size: int, tokens: int) -> int:
    """Return the operations of one image of `tokens` tokens, logits included."""
    return blocks_flops(model, tokens) + 2 * tokens * model.width * vocab_size


def training_flops(model: ModelConfig, vocab_size: int, tokens: int, recompute: bool = False) -> int:
    """Return the operations of one image, forward and backward (twice the forward).

    recompute : whether the blocks' forward is computed again (activation checkpointing), up to the last product, w2,
        whose result the backward pass does not need.
    """
    last = 2 * tokens * model.layers * model.width * hidden_width(model)
    again = blocks_flops(model, tokens) - last if recompute else 0
    return 3 * forward_flops(model, vocab_size, tokens) + again


def sampling_flops(model: ModelConfig, vocab_size: int, tokens: int, guided: bool) -> int:
    """Return the operations of drawing one image token by token with a cache; guidance computes everything twice."""
    weights = model.layers * block_weights(model) + model.width * vocab_size
    pairs = tokens * (tokens + 1) // 2
    return (2 if guided else 1) * (2 * tokens * weights + 4 * model.layers * model.width * pairs)


class Flops(NamedTuple):
    """Operations of a trial: its training, its evaluation on held-out images, and sampling."""

    training: int
    evaluation: int
    sampling: int


def trial_flops(config: TrialConfig, tokens: int, held_out: int | None = None) -> Flops:
    """Return the operations of a trial on images of `tokens` tokens; `held_out` : as many held-out images there are."""
    model, train, evaluation, size = config.model, config.train, config.evaluation, config.tokenizer.codebook_size
    validated = train.kept * min(evaluation.images, held_out or evaluation.images)
    drawn = config.sampled_times * evaluation.samples
    return Flops(
        train.steps * train.batch_size * training_flops(model, size, tokens, config.parallel.activation_checkpointing),
        validated * forward_flops(model, size, tokens),
        drawn * sampling_flops(model, size, tokens, evaluation.guidance != 1),
    )


def checkpoint_bytes(parameters: int, averaged: bool) -> int:
    """Return the bytes of weights, AdamW's two moments and, if `averaged`, the moving average, all in float32."""
    return (4 if averaged else 3) * FLOAT32 * parameters


def state_bytes(parameters: int, averaged: bool) -> int:
    """Return the bytes that a training holds whatever its batch: a checkpoint's content and the gradients."""
    return checkpoint_bytes(parameters, averaged) + FLOAT32 * parameters
