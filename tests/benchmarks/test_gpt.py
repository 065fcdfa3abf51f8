"""What training and sampling cost beside the reference's manner, on the same weights, side by side in one run.

The reference's manner is re-stated here: products by `F.linear`, rotation in real numbers, attention as product, mask,
softmax and product, and for sampling a cache of full length that every token attends to through a mask.
"""

import time

import pytest
import torch
import torch.nn.functional as F

from iar_study.config import PRESETS
from iar_study.generators.gpt import GPT
from iar_study.generators.sampling import generate
from tests.benchmarks.test_losses import DTYPES

CLASSES, GRID = 1_000, 16
TOKENS = GRID**2


@pytest.fixture(autouse=True)
def _both_cores():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def make_model(preset: str, vocabulary: int = 16_384) -> GPT:
    torch.manual_seed(0)
    model = GPT(PRESETS[preset], vocabulary, CLASSES, GRID)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    return model


class Reference:
    """LlamaGen's equations, operation by operation, on a model's weights."""

    def __init__(self, model: GPT) -> None:
        self.model, self.weights, self.config = model, dict(model.named_parameters()), model.config

    def norm(self, x, name):
        wide = x.float()
        wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + 1e-5)
        return wide.type_as(x) * self.weights[f"{name}.weight"]

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"])

    def dropout(self, x):
        return F.dropout(x, self.config.dropout, self.model.training)

    @staticmethod
    def rotate(x, table):
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        cos, sin = table[:, None, :, 0], table[:, None, :, 1]
        a, b = pairs[..., 0], pairs[..., 1]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(3).type_as(x)

    def attention(self, x, name, positions, mask, cache):
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.config.heads, -1) for part in self.linear(x, f"{name}.wqkv").chunk(3, -1)
        )
        table = self.model.rotary[positions]
        q, k, v = self.rotate(q, table).transpose(1, 2), self.rotate(k, table).transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            cache[0][:, :, positions], cache[1][:, :, positions] = k, v
            k, v = cache
        k, v = k.repeat_interleave(1, dim=1), v.repeat_interleave(1, dim=1)  # its grouped queries, with groups of one
        scale = q.shape[-1] ** -0.25  # on both sides, as in torch's unfused attention
        scores = (q * scale) @ (k * scale).transpose(-2, -1)
        shares = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return self.dropout(self.linear((shares @ v).transpose(1, 2).reshape(batch, length, width), f"{name}.wo"))

    def feed_forward(self, x, name):
        return self.dropout(
            self.linear(F.silu(self.linear(x, f"{name}.w1")) * self.linear(x, f"{name}.w3"), f"{name}.w2")
        )

    def __call__(self, x, positions, mask, caches=None):
        x = self.dropout(x)
        for i in range(self.config.layers):
            name = f"layers.{i}"
            cache = None if caches is None else caches[i]
            normed = self.norm(x, f"{name}.attention_norm")
            x = x + self.attention(normed, f"{name}.attention", positions, mask, cache)
            x = x + self.feed_forward(self.norm(x, f"{name}.ffn_norm"), f"{name}.feed_forward")
        return self.linear(self.norm(x, "norm"), "output")

    def train_logits(self, labels, tokens):
        x = torch.cat([self.model.cls_embedding(labels), self.model.tok_embeddings(tokens)], 1)
        return self(x, torch.arange(TOKENS), torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())

    @torch.no_grad()
    def generate(self, labels, cfg_scale, generator):
        batch, heads, room = len(labels), self.config.heads, TOKENS + 8  # LlamaGen rounds 257 up to a multiple of 8
        shape = (2, 2 * batch, heads, room, self.config.width // heads)
        caches = [torch.zeros(shape, dtype=self.weights["output.weight"].dtype) for _ in range(self.config.layers)]
        causal = torch.ones(room, room, dtype=torch.bool).tril()
        x = self.model.cls_embedding(torch.cat([labels, torch.full_like(labels, CLASSES)]))
        drawn = []
        for i in range(TOKENS):
            logits = self(x, torch.tensor([i]), causal[i : i + 1], caches)[:, -1].float()
            cond, uncond = logits.chunk(2)
            p = (uncond + cfg_scale * (cond - uncond)).softmax(-1)
            drawn.append(torch.multinomial(p, 1, generator=generator))
            x = self.model.tok_embeddings(torch.cat([drawn[-1], drawn[-1]]))
        return torch.cat(drawn, 1)


def reference_logits(model):
    return Reference(model).train_logits


def ours_logits(model):
    return model


def compiled_logits(model):
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True)


@pytest.mark.bench
@pytest.mark.parametrize(
    ("preset", "vocabulary", "batch"), [("small", 1024, 8), ("small", 16_384, 8), ("B", 16_384, 2)]
)
@pytest.mark.parametrize("manner", [reference_logits, ours_logits, compiled_logits], ids=lambda manner: manner.__name__)
@DTYPES
def test_training_step(benchmark, manner, preset, vocabulary, batch, dtype):
    """In bfloat16 by autocast."""
    model = make_model(preset, vocabulary)
    logits_of = manner(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels, tokens = torch.randint(CLASSES, (batch,)), torch.randint(vocabulary, (batch, TOKENS))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = logits_of(labels, tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    started = time.perf_counter()
    step()
    benchmark.group = f"training step, {dtype}, {preset}, {batch} x {TOKENS} tokens, vocabulary {vocabulary:,}"
    benchmark.extra_info["first step, s"] = time.perf_counter() - started
    benchmark.pedantic(step, rounds=7, warmup_rounds=1)


def read_bandwidth() -> float:
    """Bytes per second of a sum over 256 MiB, the best of some."""
    memory = torch.ones(2**26)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        memory.sum()
        times.append(time.perf_counter() - started)
    return memory.nbytes / min(times)


def reference_samples(model, labels, generator):
    return Reference(model).generate(labels, 2.0, generator)


def our_samples(model, labels, generator):
    return generate(model, labels, cfg_scale=2.0, generator=generator)


@pytest.mark.bench
@pytest.mark.parametrize("batch", [4, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("manner", [reference_samples, our_samples], ids=lambda manner: manner.__name__)
@DTYPES
def test_sampling(benchmark, manner, batch, dtype):
    model = make_model("B").to(dtype).eval()
    labels = torch.arange(batch)
    weights = TOKENS * sum(p.nbytes for name, p in model.named_parameters() if "embed" not in name)
    bandwidth = read_bandwidth()
    benchmark.group = f"sampling, {dtype}, B, {TOKENS} tokens, guidance, batch {batch}"
    benchmark.pedantic(manner, (model, labels, torch.Generator().manual_seed(0)), rounds=2 if batch == 4 else 1)
    bandwidth = max(bandwidth, read_bandwidth())
    benchmark.extra_info |= {
        "memory bandwidth, GB/s": bandwidth / 1e9,
        "share of the floor": weights / bandwidth / benchmark.stats.stats.min,
    }
