"""The GPT against a plain re-statement of LlamaGen's equations, its cache, and its behaviour under permutation."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iar_study.config import PRESETS, ModelConfig
from iar_study.errors import InputError
from iar_study.generators.gpt import GPT, Linear, attend, rotary_2d
from iar_study.losses.cluster_cross_entropy import token_and_cluster_cross_entropy

CONFIG = ModelConfig(layers=2, heads=2, width=16, ffn_multiple=8, dropout=0.1)
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


def plain_llamagen(model: GPT, label: int, tokens: list[int], drop=lambda x: x) -> torch.Tensor:
    """One sequence through the equations of the paper's baseline, position by position, with an explicit mask."""
    weights = {name: weight.double() for name, weight in model.named_parameters()}
    heads, width = CONFIG.heads, CONFIG.width
    size = width // heads
    x = torch.stack(
        [weights["cls_embedding.embedding_table.weight"][label]] + [weights["tok_embeddings.weight"][t] for t in tokens]
    )
    x = drop(x)

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
        x = x + drop(mixed @ weights[f"{name}.attention.wo.weight"].T)
        h = norm(x, weights[f"{name}.ffn_norm.weight"])
        gate, up = (h @ weights[f"{name}.feed_forward.{w}.weight"].T for w in ("w1", "w3"))
        x = x + drop((gate * torch.sigmoid(gate) * up) @ weights[f"{name}.feed_forward.w2.weight"].T)
    return norm(x, weights["norm.weight"]) @ weights["output.weight"].T


def test_equals_a_plain_restatement_of_llamagen():
    model = random_model()
    labels, tokens = random_batch()
    found = model(labels, tokens[:, :-1])
    for row, label, sequence in zip(found, labels, tokens[:, :-1], strict=True):
        # The rotation table is float32, as in LlamaGen; the restatement's angles are float64.
        torch.testing.assert_close(row, plain_llamagen(model, int(label), sequence.tolist()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_logits_in_float32_are_those_of_llamagen_in_training_and_from_the_cache(packed):
    model = random_model().float()
    labels, tokens = random_batch()
    expected = torch.stack(
        [plain_llamagen(model, int(label), row.tolist()) for label, row in zip(labels, tokens[:, :-1], strict=True)]
    ).float()
    torch.testing.assert_close(model(labels, tokens[:, :-1]), expected, atol=1e-5, rtol=1e-5)
    cache = model.empty_cache(len(labels))
    with torch.no_grad(), model.packed(len(labels)) if packed else nullcontext():
        steps = [model(labels, None, cache)]
        steps += [model(None, tokens[:, i : i + 1], cache, i + 1) for i in range(GRID**2 - 1)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-5)
    assert all(product.packed is None for product in model.modules() if isinstance(product, Linear))


@pytest.mark.parametrize("autocast", [False, True])
def test_logits_in_bfloat16_are_those_in_float32_up_to_its_digits(autocast):
    model = random_model().float()
    labels, tokens = random_batch()
    expected = model(labels, tokens[:, :-1])
    model = model if autocast else model.bfloat16()
    cache = model.empty_cache(len(labels))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast), model.packed(len(labels)):
        whole = model(labels, tokens[:, :-1])
        steps = [model(labels, None, cache)]
        steps += [model(None, tokens[:, i : i + 1], cache, i + 1) for i in range(GRID**2 - 1)]
    for found in (whole, torch.cat(steps, 1)):
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() < 0.04 * expected.norm()  # it keeps 8 bits


@pytest.mark.parametrize(
    "cast",
    [
        GPT.bfloat16,
        GPT.double,
        lambda model: model.to(torch.float16),
        lambda model: model.to("meta", torch.bfloat16).to_empty(device="cpu"),
        lambda model: nn.Sequential(model).bfloat16()[0],
    ],
    ids=["bfloat16", "double", "to float16", "meta", "inside another module"],
)
def test_the_rotation_table_stays_as_it_is_whatever_the_weights_are_cast_to(cast):
    model = cast(GPT(CONFIG, VOCABULARY, CLASSES, GRID))
    assert model.output.weight.dtype != torch.float32
    assert model.rotary.dtype == torch.float32
    assert torch.equal(model.rotary, rotary_2d(GRID, CONFIG.width // CONFIG.heads))
    assert "rotary" not in model.state_dict()


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 300), (5, 5), (128, 128), (300, 300)])
def test_attention_in_bfloat16_has_the_values_and_gradients_of_torchs_in_float32(queries, keys):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, n, 8).bfloat16().requires_grad_() for n in (queries, keys, keys)]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    found, expected = attend(*inputs), F.scaled_dot_product_attention(*wide, is_causal=queries > 1)
    upstream = torch.randn_like(expected)
    found.backward(upstream.bfloat16())
    expected.backward(upstream)
    for a, b in [(found, expected), *((x.grad, y.grad) for x, y in zip(inputs, wide, strict=True))]:
        assert a.dtype == torch.bfloat16
        assert (a - b).norm() <= 0.02 * b.norm() + 1e-6


def test_dropout_acts_on_tokens_residuals_and_feed_forward_outputs(monkeypatch):
    model = random_model().train()
    labels, tokens = random_batch()
    asked = []

    def doubled(x, p, training):
        asked.append((p, training))
        return 2 * x

    monkeypatch.setattr(F, "dropout", doubled)
    found = model(labels[:1], tokens[:1, :-1])[0]
    expected = plain_llamagen(model, int(labels[0]), tokens[0, :-1].tolist(), drop=lambda x: 2 * x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert asked == [(0.1, True)] * (1 + 2 * CONFIG.layers)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("B", 111), ("L", 343), ("XL", 775), ("XXL", 1411), ("3B", 3097), ("tiny", 2.4), ("small", 5.5)],
)
def test_presets_have_the_published_numbers_of_weights(name, millions):
    with torch.device("meta"):
        model = GPT(PRESETS[name], vocab_size=16_384, n_classes=1_000, grid=16)
    assert model.n_parameters() / 1e6 == pytest.approx(millions, abs=0.5 if millions > 100 else 0.05)


def test_initial_weights_are_those_of_llamagen():
    torch.manual_seed(0)
    model = GPT(PRESETS["small"], 1024, 10, GRID)
    for name, weight in model.state_dict().items():
        mean, deviation = (1.0, 0.0) if "norm" in name else (0.0, 0.0 if name == "output.weight" else 0.02)
        assert float(weight.mean()) == pytest.approx(mean, abs=2e-3), name
        assert float(weight.std()) == pytest.approx(deviation, rel=0.1), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_through_onednn_have_the_values_and_gradients_of_plain_ones(dtype):
    torch.manual_seed(0)
    product = Linear(24, 40).to(dtype)
    x = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
    plain = x.detach().clone().requires_grad_()
    weight = product.weight.detach().clone().requires_grad_()
    product(x).sin().sum().backward()
    F.linear(plain, weight).sin().sum().backward()
    torch.testing.assert_close(product(x), F.linear(plain, weight))
    torch.testing.assert_close(x.grad, plain.grad)
    torch.testing.assert_close(product.weight.grad, weight.grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_without_a_graph_break(training, dtype):
    torch.compiler.reset()
    model = random_model().to(dtype).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    labels, tokens = random_batch()
    found = compiled(labels, tokens[:, :-1])
    found.logsumexp(-1).sum().backward()
    if not training:
        torch.testing.assert_close(found, model(labels, tokens[:, :-1]))
        cache = model.empty_cache(len(labels))
        with torch.no_grad():
            torch.testing.assert_close(compiled(labels, None, cache), found[:, :1])


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


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(InputError, match=r"model\.width = 20"):
        GPT(ModelConfig(width=20, heads=2), VOCABULARY, CLASSES, GRID)
