"""Training of the tokenizer on small digits: repeatable, useful, every code in use."""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from iar_study.config import TokenizerConfig
from iar_study.errors import InputError
from iar_study.storage import Kept
from iar_study.tokenizers.given import decode_tokens
from iar_study.tokenizers.patch_vq import PatchVQ
from iar_study.tokenizers.vq import to_float
from iar_study.training import train_tokenizer as module
from iar_study.training.train_tokenizer import (
    describe_tokenizer,
    encode_images,
    move_onto_outputs,
    train_tokenizer,
)

DIGITS = np.rint(load_digits().images[..., None] * (255 / 16)).astype(np.uint8)
TRAIN, TEST = DIGITS[:1437], DIGITS[1437:]
CONFIG = TokenizerConfig(codebook_size=64, channels=16, patch=2, steps=100, batch_size=32, lr=6e-3)
SHORT = replace(CONFIG, steps=8)


@pytest.fixture(scope="module")
def model() -> PatchVQ:
    return train_tokenizer(TRAIN, CONFIG, threads=1)


def test_training_makes_a_useful_tokenizer(model: PatchVQ) -> None:
    metrics = describe_tokenizer(model, TEST)
    assert metrics["psnr"] > describe_tokenizer(train_tokenizer(TRAIN, SHORT, threads=1), TEST)["psnr"] + 2
    assert metrics["psnr"] > 15
    assert metrics["usage"] > 0.9
    assert metrics["perplexity"] > 20


@pytest.mark.parametrize("threads", [1, 2])
def test_training_again_gives_the_same_bits(threads: int) -> None:
    config = replace(CONFIG, steps=30)  # beyond the first revival
    first = train_tokenizer(TRAIN, config, threads=threads).state_dict()
    torch.rand(7)  # whatever else draws random numbers
    second = train_tokenizer(TRAIN, config, threads=threads).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train_tokenizer(TRAIN, replace(config, seed=1), threads=threads).state_dict()
    assert not torch.equal(first["quantize.embedding.weight"], other["quantize.embedding.weight"])


def test_the_codebook_starts_on_encoder_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []

    def recorded(model: PatchVQ, codes: torch.Tensor, images: torch.Tensor) -> None:
        move_onto_outputs(model, codes, images)
        moved.append(codes.clone())

    monkeypatch.setattr(module, "move_onto_outputs", recorded)
    train_tokenizer(TRAIN, replace(SHORT, steps=1), threads=1)
    assert len(moved) == 1
    assert moved[0].all()


def test_moved_codes_lie_on_encoder_outputs_and_the_others_stay() -> None:
    torch.manual_seed(0)
    model, images = PatchVQ(CONFIG, 1), to_float(TRAIN[:8])
    before = model.quantize.embedding.weight.detach().clone()
    codes = torch.arange(64) % 3 == 0
    move_onto_outputs(model, codes, images)
    after = model.codebook()
    assert torch.equal(model.quantize.embedding.weight[~codes], before[~codes])
    outputs = F.normalize(model.latents(images), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close((after[codes] @ outputs.T).amax(1), torch.ones(int(codes.sum())))
    assert len(after[codes].unique(dim=0)) > 1


def test_more_codes_than_outputs_can_be_moved() -> None:
    model = PatchVQ(replace(CONFIG, codebook_size=100), 1)
    move_onto_outputs(model, torch.ones(100, dtype=torch.bool), to_float(TRAIN[:2]))  # 2 * 16 outputs
    assert torch.isfinite(model.codebook()).all()


def test_revival_brings_back_dead_codes_and_then_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    # All codes start in one point, so that all but one are dead until they are revived.
    calls: list[int] = []
    steps = [0]
    batch_indices = module.batch_indices

    def counted(*args: int) -> np.ndarray:
        steps[0] += 1
        return batch_indices(*args)

    def collapsed_start(model: PatchVQ, codes: torch.Tensor, images: torch.Tensor) -> None:
        calls.append(steps[0])
        if codes.all() and steps[0] == 1:
            model.quantize.embedding.weight.data[:] = 1
        else:
            move_onto_outputs(model, codes, images)

    monkeypatch.setattr(module, "batch_indices", counted)
    monkeypatch.setattr(module, "move_onto_outputs", collapsed_start)
    usage = describe_tokenizer(train_tokenizer(TRAIN, CONFIG, threads=1), TEST)["usage"]
    assert usage > 0.8
    assert calls == [1, 20, 40, 60]  # the last 30 of 100 steps are left alone

    steps[0] = 0
    monkeypatch.setattr(module, "REVIVE_UNTIL", 0.0)
    assert describe_tokenizer(train_tokenizer(TRAIN, CONFIG, threads=1), TEST)["usage"] < 0.3


def test_tokens_and_images(model: PatchVQ) -> None:
    tokens = encode_images(model, TEST)
    assert tokens.shape == (len(TEST), 16)
    assert tokens.dtype == np.int32
    assert 0 <= tokens.min() <= tokens.max() < 64
    np.testing.assert_array_equal(tokens[:3], model.encode(to_float(TEST[:3])).flatten(1).numpy())
    images = decode_tokens(model, tokens)
    assert images.shape == TEST.shape
    assert images.dtype == np.uint8
    order = np.random.default_rng(0).permutation(64)
    rearranged = decode_tokens(model, np.argsort(order)[tokens], model.codebook()[torch.from_numpy(order)])
    np.testing.assert_array_equal(rearranged, images)


def test_description_is_what_it_says(model: PatchVQ) -> None:
    decoded = decode_tokens(model, encode_images(model, TEST[:20])).astype(float)
    each = [20 * math.log10(255) - 10 * math.log10(((a - b) ** 2).mean()) for a, b in zip(TEST, decoded, strict=False)]
    metrics = describe_tokenizer(model, TEST[:20], train_tokens=np.array([[0, 0, 1, 1], [2, 2, 3, 3]]))
    assert metrics["psnr"] == pytest.approx(np.mean(each), rel=1e-6)
    assert metrics["usage"] == 4 / 64
    assert metrics["perplexity"] == pytest.approx(4)


def test_progress_ends_with_the_last_step() -> None:
    seen: list[tuple[int, int, str]] = []
    train_tokenizer(TRAIN, replace(SHORT, steps=23), threads=1, progress=lambda *at: seen.append(at))
    assert [at[:2] for at in seen] == [(20, 23), (23, 23)]
    assert all(at[2].startswith("loss 0.") for at in seen)


def test_colour_images_of_32_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    config = TokenizerConfig(codebook_size=16, channels=8, patch=4, steps=2, batch_size=4)
    model = train_tokenizer(images, config, threads=1)
    tokens = encode_images(model, images)
    assert tokens.shape == (40, 64)
    assert decode_tokens(model, tokens).shape == images.shape


def test_bad_input(model: PatchVQ) -> None:
    with pytest.raises(InputError, match="do not divide"):
        train_tokenizer(TRAIN, replace(SHORT, patch=3), threads=1)
    with pytest.raises(InputError, match=r"not finite at step 20; lower tokenizer\.lr"):
        train_tokenizer(TRAIN, replace(SHORT, steps=20, lr=1e30), threads=1)
    with pytest.raises(InputError, match="15 tokens an image do not form a square"):
        decode_tokens(model, np.zeros((2, 15), dtype=np.int32))
    with pytest.raises(InputError, match=r"0 \.\.\. 64, the codebook has 64 codes"):
        decode_tokens(model, np.array([[0, 1, 2, 64]]))


@pytest.mark.usefixtures("keeping_all")
def test_a_training_that_is_cut_off_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = replace(CONFIG, codebook_size=256, steps=70)  # codes are revived after 20 and 40 steps
    whole = train_tokenizer(TRAIN, config, threads=1).state_dict()
    begun = []

    def cut(done: int, steps: int, detail: str) -> None:
        begun.append(done)
        if done < 70 and len(begun) % 2:  # it goes on from the step before, and comes 20 steps further
            raise KeyboardInterrupt

    again = None
    while again is None:
        torch.rand(7)
        with suppress(KeyboardInterrupt):
            again = train_tokenizer(TRAIN, config, threads=1, folder=tmp_path, progress=cut).state_dict()
    assert begun == [20, 20, 40, 40, 60, 60, 70]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.usefixtures("keeping_all")
def test_encoding_that_is_cut_off_goes_on_to_the_same_tokens(
    model: PatchVQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, encode, batches = encode_images(model, TEST, batch=50), model.encode, []

    def cut_off(images: torch.Tensor) -> torch.Tensor:
        batches.append(len(images))
        if len(batches) == 4:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(model, "encode", cut_off)
    with pytest.raises(KeyboardInterrupt):
        encode_images(model, TEST, 50, Kept(tmp_path / "kept.safetensors"))
    again = encode_images(model, TEST, 50, Kept(tmp_path / "kept.safetensors"))
    assert batches == [50] * 8 + [10]  # of 360 images the fourth batch twice, the others once
    np.testing.assert_array_equal(again, whole)
