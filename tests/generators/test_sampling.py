"""Sampling: the drawn distribution, what guidance, top-k and top-p leave of it, and that a seed decides it all."""

import pytest
import torch

from iar_study.config import ModelConfig
from iar_study.errors import InputError
from iar_study.generators.gpt import GPT
from iar_study.generators.sampling import draw, generate, keep_likely

VOCABULARY, CLASSES, GRID = 12, 3, 3


def random_model(dtype=torch.float32) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(layers=2, heads=2, width=16), VOCABULARY, CLASSES, GRID)
    with torch.no_grad():
        for parameter in model.parameters():  # the output layer starts at zero: that would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype).eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step_by_step(model, labels, scale_of_token, generator, filtered=lambda logits: logits, temperature=1.0):
    """Without a cache: the whole sequence anew for every token, both halves apart."""
    tokens = labels.new_empty(len(labels), 0)
    for i in range(GRID**2):
        cond, uncond = (model(row, tokens)[:, -1].float() for row in (labels, torch.full_like(labels, CLASSES)))
        logits = filtered((uncond + scale_of_token(i) * (cond - uncond)) / temperature)
        noise = torch.empty_like(logits).exponential_(generator=generator)
        tokens = torch.cat([tokens, (logits.softmax(-1) / noise).argmax(-1, keepdim=True)], 1)
    return tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_equals_sampling_without_a_cache(dtype, scale):
    model, labels = random_model(dtype), torch.arange(60) % CLASSES
    found = generate(model, labels, cfg_scale=scale, temperature=0.9, generator=seeded(3))
    assert torch.equal(found, step_by_step(model, labels, lambda i: scale, seeded(3), temperature=0.9))


def test_bfloat16_draws_what_float32_draws_up_to_its_digits():
    wide, narrow, labels = random_model(), random_model(torch.bfloat16), torch.arange(600) % CLASSES
    expected, found, again, other = (
        generate(model, labels, cfg_scale=1.5, generator=seeded(s))
        for model, s in ((wide, 0), (narrow, 0), (narrow, 0), (narrow, 1))
    )
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    same = (found == expected).cumprod(1).float().mean(0)  # a sequence that leaves the other's way never comes back
    assert same[0] > 0.95
    assert same[-1] > 0.8


def test_the_same_seed_gives_the_same_tokens_and_they_follow_the_distribution():
    model, labels = random_model(), torch.full((4000,), 1)
    first, again, other = (
        generate(model, labels, cfg_scale=1.5, temperature=0.9, generator=seeded(s)) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    cond, uncond = (model(torch.tensor([label]), None)[0, -1] for label in (1, CLASSES))
    expected = ((uncond + 1.5 * (cond - uncond)) / 0.9).softmax(-1)
    found = torch.bincount(first[:, 0], minlength=VOCABULARY) / 4000
    # four standard errors of a share, at most
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt() + 1e-3).all()


@pytest.mark.parametrize("interval", [0, 1, 4, 7, 100])
def test_guidance_ends_after_the_interval_as_in_llamagen(interval):
    """There the first token is guided; then token 1 + i is, for i = 0, 1, ..., unless i > interval."""
    model, labels = random_model(torch.float64), torch.arange(60) % CLASSES
    found = generate(model, labels, cfg_scale=4.0, cfg_interval=interval, generator=seeded(3))
    expected = step_by_step(model, labels, lambda i: 1.0 if i > 0 and i - 1 > interval else 4.0, seeded(3))
    assert torch.equal(found, expected)
    if interval < 7:
        assert not torch.equal(found, generate(model, labels, cfg_scale=4.0, generator=seeded(3)))


def test_a_scale_of_one_never_runs_the_unconditional_half(monkeypatch):
    model, labels = random_model(), torch.arange(5) % CLASSES
    rows = []
    monkeypatch.setattr(
        model.tok_embeddings, "forward", lambda x, f=model.tok_embeddings.forward: rows.append(len(x)) or f(x)
    )
    generate(model, labels, cfg_scale=1.0, generator=seeded(0))
    assert set(rows) == {5}
    rows.clear()
    generate(model, labels, cfg_scale=2.0, cfg_interval=2, generator=seeded(0))
    assert rows == [10] * 3 + [5] * 5


@pytest.mark.parametrize("top_k", [0, 1, 3, VOCABULARY, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 1e-6])
def test_the_likely_tokens_are_kept(top_k, top_p):
    logits = torch.randn(50, VOCABULARY, generator=seeded(0)) * 2
    kept = keep_likely(logits, top_k, top_p)
    for row, found in zip(logits.tolist(), kept, strict=True):
        order = sorted(range(VOCABULARY), key=lambda token: -row[token])[: top_k or None]
        shares = torch.tensor([row[token] for token in order], dtype=torch.float64).softmax(0).tolist()
        wanted = {token for i, token in enumerate(order) if sum(shares[:i]) <= top_p}
        assert {token for token in range(VOCABULARY) if found[token] > -torch.inf} == wanted
        assert all(found[token] == row[token] for token in wanted) or pytest.fail("a kept logit has changed")


def test_tokens_equal_to_the_last_of_the_top_k_are_kept():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0]])
    assert (keep_likely(logits, 2, 1.0) > -torch.inf).tolist() == [[True, False, True, True]]


def test_only_kept_tokens_are_drawn_in_proportion_to_their_probability():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0]).log().repeat(9000, 1)
    counts = torch.bincount(draw(keep_likely(logits, 2, 1.0), seeded(0)), minlength=4)
    assert counts[2:].tolist() == [0, 0]
    assert counts[0] / 9000 == pytest.approx(0.6, abs=0.02)


def test_filters_reach_the_draws():
    model, labels = random_model(torch.float64), torch.arange(60) % CLASSES
    found = generate(model, labels, cfg_scale=2.0, top_k=5, top_p=0.7, generator=seeded(3))
    expected = step_by_step(model, labels, lambda i: 2.0, seeded(3), lambda logits: keep_likely(logits, 5, 0.7))
    assert torch.equal(found, expected)
    greedy = generate(model, labels, cfg_scale=2.0, top_k=1, generator=seeded(3))
    assert torch.equal(greedy, generate(model, labels, cfg_scale=2.0, top_p=1e-9, generator=seeded(4)))


def test_progress_is_told_after_every_token():
    told = []
    generate(
        random_model(),
        torch.tensor([0]),
        cfg_scale=1.0,
        generator=seeded(0),
        progress=lambda *count: told.append(count),
    )
    assert told == [(i + 1, GRID**2) for i in range(GRID**2)]


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"cfg_interval": -2}]
)
def test_a_value_out_of_range_is_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        generate(random_model(), torch.tensor([0]), cfg_scale=1.0, generator=seeded(0), **setting)
