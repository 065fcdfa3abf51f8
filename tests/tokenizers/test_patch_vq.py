"""The small VQ autoencoder: shapes, the look-up, the gradients that pass it, and decoding of rearranged tokens."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from iar_study.config import TokenizerConfig
from iar_study.errors import InputError
from iar_study.storage import save_arrays
from iar_study.tokenizers.patch_vq import PatchVQ
from iar_study.tokenizers.vq import VectorQuantizer

CONFIG = TokenizerConfig(codebook_size=32, code_dim=6, channels=8, patch=4)


@pytest.fixture
def model() -> PatchVQ:
    torch.manual_seed(0)
    return PatchVQ(CONFIG, 3)


@pytest.mark.parametrize(("patch", "side", "channels"), [(2, 8, 1), (4, 28, 1), (4, 32, 3), (3, 9, 3)])
def test_shapes(patch: int, side: int, channels: int) -> None:
    model = PatchVQ(TokenizerConfig(codebook_size=16, channels=8, patch=patch), channels)
    images = torch.rand(2, channels, side, side) * 2 - 1
    reconstruction, losses, tokens = model(images)
    assert reconstruction.shape == images.shape
    assert tokens.shape == (2, side // patch, side // patch)
    assert tokens.dtype == torch.int64
    assert set(losses) == {"codebook", "commitment"}
    assert torch.equal(model.encode(images), tokens)
    torch.testing.assert_close(model.decode_codes(tokens), reconstruction)


def test_images_that_do_not_fit(model: PatchVQ) -> None:
    with pytest.raises(InputError, match="10x8 pixels do not divide into patches of 4x4"):
        model.encode(torch.zeros(1, 3, 10, 8))
    with pytest.raises(InputError, match="for 3 channels, the images have 1"):
        model(torch.zeros(1, 1, 8, 8))


def test_a_token_sees_its_patch_and_the_rows_of_the_image_are_rows_of_the_grid(model: PatchVQ) -> None:
    # The stem alone (no residual block mixes neighbours): a change in one patch changes that place of the grid.
    stem = model.encoder[0]
    x = torch.zeros(1, 3, 12, 8)
    y = x.clone()
    y[0, :, 10, 2] = 1  # an inner pixel of the patch at row 2, column 0
    changed = (stem(x) != stem(y)).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[2, 0]]


def test_look_up_takes_the_largest_cosine() -> None:
    torch.manual_seed(1)
    z, codebook = torch.randn(2, 6, 3, 3), torch.randn(32, 6) * torch.logspace(-2, 2, 32)[:, None]
    quantizer = VectorQuantizer(32, 6)
    quantizer.embedding.weight.data = codebook
    q, _, tokens = quantizer(z)
    cosine = F.cosine_similarity(z.permute(0, 2, 3, 1)[..., None, :], codebook, dim=-1)
    assert torch.equal(tokens, cosine.argmax(-1))
    torch.testing.assert_close(q, F.normalize(codebook, dim=1)[tokens].permute(0, 3, 1, 2))
    assert tokens.unique().numel() > 3


def test_straight_through_gradient() -> None:
    torch.manual_seed(2)
    z, upstream = torch.randn(2, 6, 3, 3, requires_grad=True), torch.randn(2, 6, 3, 3)
    quantizer = VectorQuantizer(32, 6)
    q, _, _ = quantizer(z)
    (got,) = torch.autograd.grad((q * upstream).sum(), z)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=1) * upstream).sum(), z)  # as if there were no look-up
    torch.testing.assert_close(got, expected)
    assert expected.abs().max() > 0
    with pytest.raises(RuntimeError, match=r"does not require grad|not have been used"):
        torch.autograd.grad((quantizer(z)[0] * upstream).sum(), quantizer.embedding.weight)


def test_each_loss_moves_its_own_side() -> None:
    torch.manual_seed(3)
    z = torch.randn(2, 6, 3, 3, requires_grad=True)
    quantizer = VectorQuantizer(32, 6)
    _, losses, tokens = quantizer(z)
    sides = [z, quantizer.embedding.weight]
    of_z, of_codes = torch.autograd.grad(losses["codebook"], sides, retain_graph=True, allow_unused=True)
    assert of_z is None
    assert of_codes.abs().sum(1).nonzero().ravel().tolist() == tokens.unique().tolist()
    of_z, of_codes = torch.autograd.grad(losses["commitment"], sides, allow_unused=True)
    assert of_codes is None
    assert of_z.abs().max() > 0
    error = F.normalize(z, dim=1) - F.normalize(quantizer.embedding.weight, dim=1)[tokens].permute(0, 3, 1, 2)
    for name in losses:
        torch.testing.assert_close(losses[name], error.square().mean())


def test_the_codebook_is_normalised(model: PatchVQ) -> None:
    codebook = model.codebook()
    assert codebook.shape == (32, 6)
    assert not codebook.requires_grad
    torch.testing.assert_close(codebook.norm(dim=1), torch.ones(32))
    assert "quantize.embedding.weight" in model.state_dict()  # LlamaGen's name


def test_rearranged_tokens_with_the_rearranged_codebook_decode_to_the_same_bits(model: PatchVQ) -> None:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(32, (5, 4, 4), generator=generator)
    order = torch.randperm(32, generator=generator)
    permutation = order.argsort()
    original = model.decode_codes(tokens)
    assert torch.equal(model.decode_codes(permutation[tokens], model.codebook()[order]), original)
    assert not torch.equal(model.decode_codes(permutation[tokens]), original)


def test_a_product_of_a_study_is_loaded(model: PatchVQ, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_arrays(path, arrays, {"config": asdict(CONFIG), "channels": 3})
    loaded = PatchVQ.load(path)
    assert not loaded.training
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(loaded.encode(images), model.encode(images))
    save_arrays(path, {"tokens": np.zeros(3)}, {"digest": "0"})
    with pytest.raises(InputError, match="is no tokenizer of a study"):
        PatchVQ.load(path)
