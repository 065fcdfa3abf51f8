"""The VQ autoencoder: shapes, the look-up, the gradients that pass it, and decoding of rearranged tokens."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from iar_study.config import TokenizerConfig
from iar_study.errors import InputError
from iar_study.models.vq import VectorQuantizer, VQModel, look_up, to_float, to_uint8

CONFIG = TokenizerConfig(codebook_size=32, code_dim=6, channels=8, patch=4)


@pytest.fixture
def model() -> VQModel:
    torch.manual_seed(0)
    return VQModel(CONFIG, 3)


def test_uint8_round_trip_keeps_every_level() -> None:
    images = np.arange(256 * 3, dtype=np.int64).reshape(2, 16, 8, 3).astype(np.uint8)
    x = to_float(images)
    assert x.shape == (2, 3, 16, 8)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert x[1, 2, 3, 4] == images[1, 3, 4, 2] / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(x), images)


def test_to_uint8_clips_and_rounds() -> None:
    x = torch.tensor([-3.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 3.0]).view(1, 1, 2, 2)
    assert to_uint8(x).ravel().tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 1)), np.zeros((8, 8, 1), dtype=np.uint8)])
def test_to_float_wants_a_batch_of_uint8(images: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected uint8 images"):
        to_float(images)


@pytest.mark.parametrize(("patch", "side", "channels"), [(2, 8, 1), (4, 28, 1), (4, 32, 3), (3, 9, 3)])
def test_shapes(patch: int, side: int, channels: int) -> None:
    model = VQModel(TokenizerConfig(codebook_size=16, channels=8, patch=patch), channels)
    images = torch.rand(2, channels, side, side) * 2 - 1
    reconstruction, losses, tokens = model(images)
    assert reconstruction.shape == images.shape
    assert tokens.shape == (2, side // patch, side // patch)
    assert tokens.dtype == torch.int64
    assert set(losses) == {"codebook", "commitment"}
    assert torch.equal(model.encode(images), tokens)
    torch.testing.assert_close(model.decode_codes(tokens), reconstruction)


def test_images_that_do_not_fit(model: VQModel) -> None:
    with pytest.raises(InputError, match="10x8 pixels do not divide into patches of 4x4"):
        model.encode(torch.zeros(1, 3, 10, 8))
    with pytest.raises(InputError, match="for 3 channels, the images have 1"):
        model(torch.zeros(1, 1, 8, 8))


def test_a_token_sees_its_patch_and_the_rows_of_the_image_are_rows_of_the_grid(model: VQModel) -> None:
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


def test_the_codebook_is_normalised(model: VQModel) -> None:
    codebook = model.codebook()
    assert codebook.shape == (32, 6)
    assert not codebook.requires_grad
    torch.testing.assert_close(codebook.norm(dim=1), torch.ones(32))
    assert "quantize.embedding.weight" in model.state_dict()  # LlamaGen's name


def test_rearranged_tokens_with_the_rearranged_codebook_decode_to_the_same_bits(model: VQModel) -> None:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(32, (5, 4, 4), generator=generator)
    order = torch.randperm(32, generator=generator)
    permutation = order.argsort()
    original = model.decode_codes(tokens)
    assert torch.equal(model.decode_codes(permutation[tokens], model.codebook()[order]), original)
    assert not torch.equal(model.decode_codes(permutation[tokens]), original)


def test_look_up_passes_no_gradient() -> None:
    z, codebook = torch.randn(1, 6, 2, 2, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    assert not look_up(z, codebook).requires_grad
