"""The GPT against a plain re-statement of LlamaGen's equations, its cache, and its behaviour under permutation."""

import math

import pytest
import torch

from iar_study.config import ModelConfig
from iar_study.errors import InputError
from iar_study.models.gpt import GPT
from iar_study.models.losses import token_and_cluster_cross_entropy
from iar_study.models.sampling import generate

CONFIG = ModelConfig(layers=2, heads=2, width=16, ffn_multiple=8, dropout=0.0)
VOCABULARY, CLASSES, GRID = 12, 3, 3


def random_model(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(CONFIG, VOCABULARY, CLASSES, GRID).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the output layer starts at zero: that would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def random_batch(seed: int = 1, batch: int = 4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES + 1, (batch,), generator=generator)
    return labels, torch.randint(VOCABULARY, (batch, GRID**2), generator=generator)


def plain_llamagen(model: GPT, label: int, tokens: list[int]) -> torch.Tensor:
    """One sequence through the equations of the paper's baseline, position by position, with an explicit mask."""
    weights = dict(model.named_parameters())
    heads, width = CONFIG.heads, CONFIG.width
    size = width // heads
    x = torch.stack(
        [weights["cls_embedding.embedding_table.weight"][label]] + [weights["tok_embeddings.weight"][t] for t in tokens]
    )

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def turn(vector, position):
        if position == 0:
            return torch.zeros_like(vector)
        row, column = divmod(position - 1, GRID)
        out = vector.clone()
        for pair in range(size // 2):
            quarter = size // 4
            coordinate, power = (row, pair) if pair < quarter else (column, pair - quarter)
            angle = coordinate / 10_000 ** (power / quarter)
            a, b = vector[2 * pair], vector[2 * pair + 1]
            out[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
        return out

    for i in range(CONFIG.layers):
        name = f"layers.{i}"
        h = norm(x, weights[f"{name}.attention_norm.weight"]) @ weights[f"{name}.attention.wqkv.weight"].T
        q, k, v = h.split(width, dim=-1)
        mixed = torch.zeros_like(x)
        for head in range(heads):
            span = slice(head * size, (head + 1) * size)
            qs = torch.stack([turn(q[p, span], p) for p in range(len(x))])
            ks = torch.stack([turn(k[p, span], p) for p in range(len(x))])
            scores = (qs @ ks.T / math.sqrt(size)).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
            mixed[:, span] = scores.softmax(-1) @ v[:, span]
        x = x + mixed @ weights[f"{name}.attention.wo.weight"].T
        h = norm(x, weights[f"{name}.ffn_norm.weight"])
        gate, up = (h @ weights[f"{name}.feed_forward.{w}.weight"].T for w in ("w1", "w3"))
        x = x + (gate * torch.sigmoid(gate) * up) @ weights[f"{name}.feed_forward.w2.weight"].T
    return norm(x, weights["norm.weight"]) @ weights["output.weight"].T


def test_equals_a_plain_restatement_of_llamagen():
    model = random_model()
    labels, tokens = random_batch()
    found = model(labels, tokens[:, :-1])
    for row, label, sequence in zip(found, labels, tokens[:, :-1], strict=True):
        # The rotation table is float32, as in LlamaGen; the restatement's angles are float64.
        torch.testing.assert_close(row, plain_llamagen(model, int(label), sequence.tolist()), atol=1e-6, rtol=1e-6)


def test_cached_steps_equal_the_full_forward():
    model = random_model()
    labels, tokens = random_batch()
    cache = model.empty_cache(len(labels))
    steps = [model(labels, None, cache)]
    steps += [model(None, tokens[:, i : i + 1], cache, i + 1) for i in range(GRID**2 - 1)]
    torch.testing.assert_close(torch.cat(steps, 1), model(labels, tokens[:, :-1]))


def test_no_token_sees_what_follows_it():
    model = random_model()
    labels, tokens = random_batch()
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCABULARY
    before, after = model(labels, tokens[:, :-1]), model(labels, changed[:, :-1])
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_permuting_the_vocabulary_permutes_the_logits():
    model, permuted = random_model(), random_model()
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2))
    permuted.rearrange_vocabulary(order)
    labels, tokens = random_batch()
    torch.testing.assert_close(permuted(labels, order.argsort()[tokens]), model(labels, tokens)[..., order])


def test_a_new_model_gives_every_token_the_same_probability():
    torch.manual_seed(0)
    model = GPT(CONFIG, VOCABULARY, CLASSES, GRID)
    labels, tokens = random_batch()
    with torch.no_grad():
        tce, _ = token_and_cluster_cross_entropy(model(labels, tokens[:, :-1]), tokens, torch.tensor([0, VOCABULARY]))
    assert float(tce) == pytest.approx(math.log(VOCABULARY))


def test_sampling_is_the_same_for_the_same_seed_and_follows_the_distribution():
    model = random_model()
    labels = torch.full((4000,), 1)
    draw = [
        generate(model, labels, guidance=1.5, temperature=0.9, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    cond, uncond = (model(torch.tensor([label]), None)[0, -1] for label in (1, CLASSES))
    expected = ((uncond + 1.5 * (cond - uncond)) / 0.9).softmax(-1)
    found = torch.bincount(draw[0][:, 0], minlength=VOCABULARY).double() / 4000
    # four standard errors of a share, at most
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt() + 1e-3).all()


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(InputError, match=r"model\.width = 20"):
        GPT(ModelConfig(width=20, heads=2), VOCABULARY, CLASSES, GRID)
