"""The class-conditional GPT of LlamaGen: Llama blocks with a 2-D rotary embedding over a grid of tokens.

Weights carry LlamaGen's names (`tok_embeddings`, `cls_embedding.embedding_table`, `layers.{i}.attention.wqkv`, ...).
The model knows nothing of clusters: rearrangement permutes its embedding and output rows, the loss does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iar_study import parts
from iar_study.config import ModelConfig, check_shape


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; leave float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def rotary_2d(grid: int, head_width: int, base: float = 10_000.0) -> Tensor:
    """Return cos and sin of the 2-D rotary embedding, float32 (1 + grid * grid, head_width / 2, 2).

    Half of the rotated pairs turn with the row, half with the column. Position 0 is the class token, whose rotation
    is all zeros in LlamaGen: its query and key vanish.
    """
    quarter = head_width // 4
    frequency = base ** (-torch.arange(quarter).float() / quarter)
    angle = torch.arange(grid).float()[:, None] * frequency  # (grid, quarter)
    rows = angle[:, None, :].expand(grid, grid, quarter)
    columns = angle[None, :, :].expand(grid, grid, quarter)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros(1, head_width // 2, 2), table])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate interleaved pairs: x (..., T, head_width), table (T, head_width / 2, 2)."""
    # As complex numbers: one product in place of four, a quarter of the time on a CPU.
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(table)).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32 (or wider), eps 1e-5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        # The weight comes after the cast, as in LlamaGen: in bf16 the other order has other bits.
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight


class Linear(nn.Linear):
    """x @ weight.T without bias: x (..., inputs) -> (..., outputs), weight (outputs, inputs).

    In float32 on a CPU it goes through oneDNN. torch would call MKL, which leaves half of an AMD CPU's vector width
    unused: 1.3 to 2.6 times the time measured in training, 2 to 3 times in sampling.
    """

    packed: Tensor | None = None
    """The weight in oneDNN's own layout, while `GPT.packed` holds it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return onednn_product(x, self.packed)
        if onednn_serves(x, self.weight):
            return OneDNNLinear.apply(x, self.weight)
        return F.linear(x, self.weight)


class OneDNNLinear(torch.autograd.Function):
    """x @ weight.T and its gradients g @ weight and g.T @ x, all by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        return onednn_product(grad, weight.T), onednn_product(grad.flatten(0, -2).T, x.flatten(0, -2).T)


def onednn_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T by the operator that torch's compiler calls; `weight` may be in oneDNN's layout."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def onednn_serves(*tensors: Tensor) -> bool:
    """Whether products of `tensors` can go through oneDNN: of one dtype, on a CPU, not autocast, not being compiled."""
    (dtype, *others) = {x.dtype for x in tensors}
    return (
        not torch.compiler.is_compiling()  # the compiler picks operators itself
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and all(x.device.type == "cpu" for x in tensors)
        and not others
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q @ k.T / sqrt(head_width)) @ v, (B, heads, T, head_width); one query sees all, several the past.

    In bfloat16 on a CPU by plain products, 128 queries with what they can see at a time: there torch's fused attention
    takes 2 to 3 times as long, in training and in sampling.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[-2] > 1)
    shape, scale = q.shape, q.shape[-1] ** -0.5
    if shape[-2] == 1:
        return (k @ (q * scale).mT).mT.softmax(-1) @ v  # in this order keys and values are read as they lie
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    parts, end = [], 0
    for some in q.split(128, dim=1):
        start, end = end, end + some.shape[1]
        unseen = torch.full((end - start, end), -torch.inf, dtype=q.dtype).triu(start + 1)
        scores = torch.baddbmm(unseen, some, k[:, :end].mT, alpha=scale)
        parts.append(scores.softmax(-1) @ v[:, :end])
    return torch.cat(parts, 1).view(shape)


class Attention(nn.Module):
    """Causal self-attention with fused `wqkv`, rotary embedding and an optional cache of keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.wqkv = Linear(config.width, 3 * config.width)
        self.wo = Linear(config.width, config.width)

    def forward(self, x: Tensor, table: Tensor, cache: Tensor | None, position: int) -> Tensor:
        batch, length, width = x.shape
        qkv = self.wqkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], table)
        v = qkv[2]
        if cache is not None:  # (2, B, heads, T, head_width), filled up to `position`
            end = position + length
            cache[0, :, :, position:end] = k
            cache[1, :, :, position:end] = v
            k, v = cache[0, :, :, :end], cache[1, :, :, :end]
        out = self.wo(attend(q, k, v).transpose(1, 2).reshape(batch, length, width))
        return F.dropout(out, self.dropout, self.training)


def feed_forward_width(width: int, multiple: int) -> int:
    """Return int(2/3 * 4 * width) rounded up to `multiple`."""
    hidden = int(2 / 3 * 4 * width)
    return -(-hidden // multiple) * multiple


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = feed_forward_width(config.width, config.ffn_multiple)
        self.dropout = config.dropout
        self.w1 = Linear(config.width, hidden)
        self.w3 = Linear(config.width, hidden)
        self.w2 = Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.width)
        self.ffn_norm = RMSNorm(config.width)

    def forward(self, x: Tensor, table: Tensor, cache: Tensor | None, position: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, cache, position)
        return x + self.feed_forward(self.ffn_norm(x))


class ClassEmbedding(nn.Module):
    """A row for every class and one more for "no class", which classifier-free guidance needs."""

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.embedding_table = nn.Embedding(n_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels).unsqueeze(1)


def make_generator(config: ModelConfig, vocab_size: int, n_classes: int, grid: int) -> GPT:
    """Return the generator that `config` names, with new weights: the GPT, or a part of one's own made like it."""
    return parts.load("generator", config.name)(config, vocab_size, n_classes, grid)


class GPT(nn.Module):
    """Class label and grid of tokens -> logits of the next token.

    Parameters
    ----------
    config : widths and depths.
    vocab_size : number of codes N.
    n_classes : number of classes; label `n_classes` stands for "no class".
    grid : tokens along one side of the picture.
    """

    rotary: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, n_classes: int, grid: int) -> None:
        super().__init__()
        check_shape(config)
        self.config, self.vocab_size, self.grid = config, vocab_size, grid
        self.tok_embeddings = nn.Embedding(vocab_size, config.width)
        self.cls_embedding = ClassEmbedding(n_classes, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.output = Linear(config.width, vocab_size)
        self.register_buffer("rotary", rotary_2d(grid, config.width // config.heads), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        # As LlamaGen: all codes are equally likely at first, so the loss begins at ln N.
        nn.init.zeros_(self.output.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPT:
        """Cast and move the weights, and move the rotation table, which stays float32, as in LlamaGen."""
        super()._apply(fn, recurse)
        self.rotary = rotary_2d(self.grid, self.config.width // self.config.heads).to(self.rotary.device)
        return self

    def forward(
        self, labels: Tensor | None, tokens: Tensor | None, cache: Tensor | None = None, position: int = 0
    ) -> Tensor:
        """Return logits, float (B, T, N), of the token that follows each of the T inputs.

        Parameters
        ----------
        labels : int64 (B,), put in front of the tokens; None when the sequence goes on from a cache.
        tokens : int64 (B, T'), the tokens so far; None for the class alone.
        cache : float (layers, 2, B, heads, 1 + grid * grid, head_width), from `empty_cache`; written in place.
        position : how many inputs the cache holds already.
        """
        parts = []
        if labels is not None:
            parts.append(self.cls_embedding(labels))
        if tokens is not None:
            parts.append(self.tok_embeddings(tokens))
        x = F.dropout(torch.cat(parts, dim=1), self.config.dropout, self.training)
        table = self.rotary[position : position + x.shape[1]]
        for i, layer in enumerate(self.layers):
            x = layer(x, table, None if cache is None else cache[i], position)
        return self.output(self.norm(x))

    def empty_cache(self, batch: int) -> Tensor:
        """Return room for the keys and values of `batch` whole sequences."""
        heads = self.config.heads
        weight = self.output.weight
        return weight.new_empty((self.config.layers, 2, batch, heads, 1 + self.grid**2, self.config.width // heads))

    @contextmanager
    def packed(self, rows: int) -> Iterator[None]:
        """Hold a copy of the weights in oneDNN's own layout for batches of `rows` inputs; others work as well.

        For sampling, without gradients: a few rows take as long as reading the weights, and oneDNN would repack them
        for every token (1.4 times the time measured). Without effect where oneDNN does not serve.
        """
        products = [m for m in self.modules() if isinstance(m, Linear) and onednn_serves(m.weight)]
        try:
            for product in products:
                product.packed = torch.ops.mkldnn._reorder_linear_weight(product.weight.detach(), rows)
            yield
        finally:
            for product in products:
                product.packed = None

    @torch.no_grad()
    def rearrange_vocabulary(self, order: Tensor) -> None:
        """Permute the embedding and output rows in place: row i becomes the old row `order[i]`."""
        for table in (self.tok_embeddings.weight, self.output.weight):
            table.copy_(table[order])

    def n_parameters(self) -> int:
        """Number of trained weights."""
        return sum(p.numel() for p in self.parameters())
