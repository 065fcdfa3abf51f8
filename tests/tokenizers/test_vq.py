"""LlamaGen's tokenizer: the network against a plain restatement, its names and sizes, checkpoints in and out."""

import argparse
import math
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from iar_study.errors import InputError
from iar_study.tokenizers import given
from iar_study.tokenizers.vq import (
    BLOCKS,
    CODEBOOK,
    RECENT_TOKENS,
    VQ_8,
    VQ_16,
    VectorQuantizer,
    VQConfig,
    VQModel,
    look_up,
    save_rearranged,
    to_float,
    to_uint8,
    to_uint8_of_size,
    unit,
)

SMALL = VQConfig(multipliers=(1, 1, 2), channels=32, z_channels=16, codebook_size=64, code_dim=4)
N = SMALL.codebook_size


@pytest.fixture(scope="module")
def model() -> VQModel:
    torch.manual_seed(0)
    model = VQModel(SMALL).eval()
    for name, parameter in model.named_parameters():  # norms and biases that are not 1 and 0, or they would hide a slip
        if parameter.ndim == 1:
            parameter.data = torch.randn(parameter.shape) * 0.1 + ("norm" in name and name.endswith("weight"))
    model.quantize.codebook_used = torch.randint(N, (65_536,)).float()
    return model


@pytest.fixture
def checkpoint(model: VQModel, tmp_path: Path) -> Path:
    """A training checkpoint as LlamaGen writes it: weights, moving average, optimizer and the options' namespace."""
    ema = {name: tensor + 1 if "codebook_used" not in name else tensor for name, tensor in model.state_dict().items()}
    content = {
        "model": model.state_dict(),
        "ema": ema,
        "optimizer": {"state": {0: {"exp_avg": torch.randn(3, 4)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "steps": 7,
        "args": argparse.Namespace(vq_model="VQ-16", codebook_size=N),
    }
    torch.save(content, tmp_path / "vq.pt")
    return tmp_path / "vq.pt"


def trusted(path: Path) -> dict:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


# The network once more, as plain equations on named weights in float64.


def conv(w, name, x, **options):
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)


def norm(w, name, x):
    groups = x.reshape(len(x), 32, -1)
    mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, unbiased=False)
    x = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
    return x * w[f"{name}.weight"].view(1, -1, 1, 1) + w[f"{name}.bias"].view(1, -1, 1, 1)


def swish(x):
    return x / (1 + (-x).exp())


def residual(w, name, x):
    h = conv(w, f"{name}.conv1", swish(norm(w, f"{name}.norm1", x)), padding=1)
    h = conv(w, f"{name}.conv2", swish(norm(w, f"{name}.norm2", h)), padding=1)
    return h + (conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def attention(w, name, x):
    b, c, height, width = x.shape
    h = norm(w, f"{name}.norm", x)
    q, k, v = (conv(w, f"{name}.{part}", h).reshape(b, c, height * width) for part in "qkv")
    weights = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(c)).softmax(-1)
    return x + conv(w, f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))


def levels(w, half, x, blocks, resample):
    for i in range(len(SMALL.multipliers)):
        for j in range(blocks):
            x = residual(w, f"{half}.conv_blocks.{i}.res.{j}", x)
            if f"{half}.conv_blocks.{i}.attn.{j}.norm.weight" in w:
                x = attention(w, f"{half}.conv_blocks.{i}.attn.{j}", x)
        if i < len(SMALL.multipliers) - 1:
            x = resample(f"{half}.conv_blocks.{i}", x)
    return x


def middle(w, half, x):
    return residual(w, f"{half}.mid.2", attention(w, f"{half}.mid.1", residual(w, f"{half}.mid.0", x)))


def end(w, half, x):
    return conv(w, f"{half}.conv_out", swish(norm(w, f"{half}.norm_out", x)), padding=1)


def encoded(w, x):
    def halved(name, x):
        bordered = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1, dtype=x.dtype)
        bordered[:, :, :-1, :-1] = x
        return conv(w, f"{name}.downsample.conv", bordered, stride=2)

    x = levels(w, "encoder", conv(w, "encoder.conv_in", x, padding=1), BLOCKS, halved)
    return conv(w, "quant_conv", end(w, "encoder", middle(w, "encoder", x)))


def decoded(w, z):
    def doubled(name, x):
        return conv(w, f"{name}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)

    x = middle(w, "decoder", conv(w, "decoder.conv_in", conv(w, "post_quant_conv", z), padding=1))
    return end(w, "decoder", levels(w, "decoder", x, BLOCKS + 1, doubled))


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


def bicubic(row: np.ndarray, size: int) -> np.ndarray:
    """Keys' cubic with a = -0.75 at the centres of pixels, edges repeated, four taps however much is shrunk."""

    def weight(distance: float) -> float:
        d, a = abs(distance), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    found = np.empty(size)
    for i in range(size):
        at = (i + 0.5) * len(row) / size - 0.5
        taps = range(int(np.floor(at)) - 1, int(np.floor(at)) + 3)
        found[i] = sum(weight(at - tap) * row[min(max(tap, 0), len(row) - 1)] for tap in taps)
    return found


def test_pictures_are_brought_to_a_size_as_llamagen_does_before_they_are_clipped() -> None:
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1.6, 1.6, (2, 3, 12, 12)))
    both = np.apply_along_axis(bicubic, 3, np.apply_along_axis(bicubic, 2, x.numpy(), 8), 8)
    expected = np.floor(np.clip(127.5 * both + 128, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)
    assert (np.abs(both) > 1).any()
    np.testing.assert_array_equal(to_uint8_of_size(x, 8), expected)
    clipped = to_uint8_of_size(x.clamp(-1, 1), 8)
    assert (clipped != expected).any()
    np.testing.assert_array_equal(to_uint8_of_size(x, 12), to_uint8(x))


def test_the_two_rules_of_levels_are_one_but_for_rounding() -> None:
    x = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    levels = (127.5 * x + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    apart = np.abs(to_uint8(x).astype(int) - levels)
    assert apart.max() <= 1
    assert apart.mean() < 1e-4


def test_tokens_are_decoded_to_a_size(model: VQModel) -> None:
    tokens = np.random.default_rng(0).integers(N, size=(3, 16))
    with torch.no_grad():
        images = model.decode_codes(torch.from_numpy(tokens).view(3, 4, 4))
    side = images.shape[-1]

    def at(size: int | None) -> np.ndarray:
        return np.concatenate(list(given.decoded(model, tokens, 3, size=size)))

    np.testing.assert_array_equal(at(side - 4), to_uint8_of_size(images, side - 4))
    np.testing.assert_array_equal(at(side), at(None))


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 1)), np.zeros((8, 8, 1), dtype=np.uint8)])
def test_to_float_wants_a_batch_of_uint8(images: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected uint8 images"):
        to_float(images)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_unit_vectors_and_their_gradients_are_those_of_normalize_to_the_bit(dim: int) -> None:
    torch.manual_seed(0)
    x, above = torch.randn(2, 64, 8, 5).exp() * torch.randn(64, 8, 5), torch.randn(2, 64, 8, 5)
    ours, plain = (x.clone().requires_grad_() for _ in range(2))
    assert torch.equal(unit(ours, dim), F.normalize(plain, dim=dim))
    unit(ours, dim).backward(above)
    F.normalize(plain, dim=dim).backward(above)
    assert torch.equal(ours.grad, plain.grad)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.float64, 1e200)])
def test_vectors_that_cannot_be_squared_have_length_one(dtype: torch.dtype, size: float) -> None:
    vectors = torch.tensor([[3, -4], [3 * size, -4 * size], [3 / size, -4 / size], [0, 0]], dtype=dtype)
    torch.testing.assert_close(unit(vectors, 1), torch.tensor([[0.6, -0.8]] * 3 + [[0, 0]], dtype=dtype))


def test_a_codebook_of_any_size_is_looked_up_by_direction() -> None:
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(16, 4), torch.randn(2, 4, 3, 3)
    _, _, tokens = quantizer(z)
    quantizer.embedding.weight.data *= torch.tensor([1e30, 1.0, 1e-30, 1e-15]).repeat(4)[:, None]
    assert torch.equal(quantizer(z * 1e30)[2], tokens)


def test_look_up_passes_no_gradient() -> None:
    z, codebook = torch.randn(1, 6, 2, 2, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    assert not look_up(z, codebook).requires_grad


def test_the_network_is_the_equations(model: VQModel) -> None:
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = encoded(w, images.double())
    assert z.shape == (2, 4, 4, 6)
    torch.testing.assert_close(model.latents(images).double(), z, rtol=1e-5, atol=1e-5)

    codes = w[CODEBOOK] / w[CODEBOOK].norm(dim=1, keepdim=True)
    unit = (z / z.norm(dim=1, keepdim=True)).permute(0, 2, 3, 1)
    tokens = (unit[..., None, :] - codes).square().sum(-1).argmin(-1)
    assert torch.equal(model.encode(images), tokens)
    assert tokens.unique().numel() > 3

    expected = decoded(w, codes[tokens].permute(0, 3, 1, 2))
    assert expected.shape == images.shape
    torch.testing.assert_close(model.decode_codes(tokens).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.decode(codes.float()[tokens].permute(0, 3, 1, 2)), model.decode_codes(tokens))
    torch.testing.assert_close(model(images)[0], model.decode_codes(tokens), rtol=1e-4, atol=1e-4)


def names(multipliers: tuple[int, ...]) -> set[str]:
    """LlamaGen's parameter names, written out from its description."""
    convs, norms, last = [], [], len(multipliers) - 1
    for half, blocks, lowest, resample in (("encoder", 2, last, "downsample"), ("decoder", 3, 0, "upsample")):
        convs += [f"{half}.conv_in", f"{half}.conv_out"]
        norms += [f"{half}.norm_out"]
        residuals, attentions = [f"{half}.mid.0", f"{half}.mid.2"], [f"{half}.mid.1"]
        order = multipliers if half == "encoder" else multipliers[::-1]
        width = 1 if half == "encoder" else multipliers[-1]
        for i in range(last + 1):
            if order[i] != width:
                convs.append(f"{half}.conv_blocks.{i}.res.0.nin_shortcut")
            width = order[i]
            residuals += [f"{half}.conv_blocks.{i}.res.{j}" for j in range(blocks)]
            attentions += [f"{half}.conv_blocks.{i}.attn.{j}" for j in range(blocks) if i == lowest]
            convs += [f"{half}.conv_blocks.{i}.{resample}.conv"] if i < last else []
        convs += [f"{name}.{part}" for name in residuals for part in ("conv1", "conv2")]
        norms += [f"{name}.{part}" for name in residuals for part in ("norm1", "norm2")]
        convs += [f"{name}.{part}" for name in attentions for part in ("q", "k", "v", "proj_out")]
        norms += [f"{name}.norm" for name in attentions]
    convs += ["quant_conv", "post_quant_conv"]
    return {f"{name}.{part}" for name in convs + norms for part in ("weight", "bias")} | {CODEBOOK, RECENT_TOKENS}


@pytest.mark.parametrize(
    ("config", "patch", "parameters"),
    [(VQ_16, 16, 71_883_403), (VQ_8, 8, 70_109_835)],  # published: 72M and 70M
    ids=["VQ-16", "VQ-8"],
)
def test_names_and_sizes_are_llamagens(config: VQConfig, patch: int, parameters: int) -> None:
    with torch.device("meta"):
        model = VQModel(config)
    state = model.state_dict()
    assert set(state) == names(config.multipliers)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.patch == patch
    assert state[CODEBOOK].shape == (16_384, 8)
    assert state["encoder.conv_in.weight"].shape == (128, 3, 3, 3)
    assert state["encoder.conv_out.weight"].shape == (256, 512, 3, 3)
    assert state["decoder.conv_in.weight"].shape == (512, 256, 3, 3)
    assert state["decoder.conv_out.weight"].shape == (3, 128, 3, 3)
    assert state["quant_conv.weight"].shape == (8, 256, 1, 1)


def test_vq16_turns_a_picture_into_a_sixteenth_of_its_side() -> None:
    with torch.device("meta"):
        model = VQModel()
        images = torch.empty(1, 3, 256, 256)
    z = model.latents(images)
    assert z.shape == (1, 8, 16, 16)
    assert model.decode(z).shape == images.shape


def test_images_and_widths_that_do_not_fit(model: VQModel) -> None:
    with pytest.raises(InputError, match="10x8 pixels do not divide into patches of 4x4; choose another image size"):
        model.encode(torch.zeros(1, 3, 10, 8))
    with pytest.raises(InputError, match="for 3 channels, the images have 1"):
        model.encode(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match=r"\[48, 96\] are not all multiples of 32"):
        VQModel(VQConfig(channels=48, multipliers=(1, 2)))


def test_save_and_load_give_the_same_weights(model: VQModel, tmp_path: Path) -> None:
    path = tmp_path / "new" / "vq.pt"
    model.save_llamagen(path)
    loaded = VQModel.load_llamagen(path)
    assert loaded.config == SMALL
    assert not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert list(trusted(path)) == ["model"]


def test_a_training_checkpoint_holds_two_sets_of_weights(model: VQModel, checkpoint: Path) -> None:
    name = "decoder.mid.1.q.weight"
    assert torch.equal(VQModel.load_llamagen(checkpoint).state_dict()[name], model.state_dict()[name])
    assert torch.equal(VQModel.load_llamagen(checkpoint, "ema").state_dict()[name], model.state_dict()[name] + 1)


def test_half_precision_weights_are_read_as_float32(model: VQModel, tmp_path: Path) -> None:
    torch.save({"model": {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}}, tmp_path / "vq.pt")
    assert {tensor.dtype for tensor in VQModel.load_llamagen(tmp_path / "vq.pt").state_dict().values()} == {
        torch.float32
    }


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("payload-ran"),))


def spoiled(state: dict[str, torch.Tensor], what: str) -> object:
    bare = {name: tensor for name, tensor in state.items() if name != what}
    return {
        "no dict": [1, 2],
        "no model": {"state_dict": state, "epoch": 3},
        "no ema": {"model": state},
        "a number": {"model": 3},
        "code": {"model": state, "args": Payload()},
        "a GPT": {"model": {"tok_embeddings.weight": torch.zeros(3, 2), "norm.weight": torch.zeros(2)}},
        "more": {"model": {**state, "loss.weight": torch.zeros(1)}},
        "other width": {"model": {**state, "decoder.mid.0.conv1.weight": torch.zeros(64, 32, 3, 3)}},
        "no width": {"model": {**state, "encoder.conv_in.weight": torch.zeros(20, 3, 3, 3)}},
    }.get(what, {"model": bare})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no dict", "holds a list, not a checkpoint with 'model'"),
        ("no model", "no weights 'model', but epoch, state_dict"),
        ("a number", "no weights 'model'"),
        ("code", "save its weights alone"),
        ("a GPT", "it has no 'encoder.conv_in.weight', but norm.weight, tok_embeddings.weight"),
        ("more", "have no loss.weight"),
        ("other width", r"mid.0.conv1.weight is of shape \(64, 32, 3, 3\), where .* ask for \(64, 64, 3, 3\)"),
        ("no width", "no whole LlamaGen tokenizer: it has no decoder.conv_blocks.2.upsample"),
        (CODEBOOK, "it has no 'quantize.embedding.weight', but decoder"),
        ("decoder.conv_out.bias", "no whole LlamaGen tokenizer: it has no decoder.conv_out.bias"),
    ],
)
def test_another_file_is_told_by_what_differs(
    model: VQModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "vq.pt"
    torch.save(spoiled(model.state_dict(), what), path)
    with pytest.raises(InputError, match=message) as caught:
        VQModel.load_llamagen(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not Path("payload-ran").exists()


def test_a_damaged_or_missing_file(model: VQModel, checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    for part in (b"", whole[:100], whole[: len(whole) // 2], whole[:-10], b"not a checkpoint at all"):
        checkpoint.write_bytes(part)
        with pytest.raises(InputError, match="damaged or no file of torch") as caught:
            VQModel.load_llamagen(checkpoint)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "nowhere.pt", tmp_path):
        with pytest.raises(InputError, match="no file at"):
            VQModel.load_llamagen(path)
    model.save_llamagen(checkpoint)
    with pytest.raises(InputError, match="no weights 'ema', but model"):
        VQModel.load_llamagen(checkpoint, "ema")


def test_a_rearranged_checkpoint_decodes_permuted_tokens_to_the_same_bits(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    order = rng.permutation(N)
    permutation = torch.from_numpy(order.argsort())
    save_rearranged(checkpoint, order, tmp_path / "rearranged.pt")
    tokens = torch.from_numpy(rng.integers(N, size=(2, 3, 3)))
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    for weights in ("model", "ema"):
        old = VQModel.load_llamagen(checkpoint, weights)
        new = VQModel.load_llamagen(tmp_path / "rearranged.pt", weights)
        assert torch.equal(new.decode_codes(permutation[tokens]), old.decode_codes(tokens))
        assert torch.equal(new.encode(images), permutation[old.encode(images)])
        assert torch.equal(new.codebook(), old.codebook()[torch.from_numpy(order)])
        assert torch.equal(new.quantize.codebook_used, permutation[old.quantize.codebook_used.long()].float())


def test_rearranging_changes_nothing_else_and_can_be_undone(checkpoint: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(N)
    save_rearranged(checkpoint, order, tmp_path / "rearranged.pt")
    save_rearranged(tmp_path / "rearranged.pt", order.argsort(), tmp_path / "back.pt")
    first, there, back = (trusted(path) for path in (checkpoint, tmp_path / "rearranged.pt", tmp_path / "back.pt"))
    assert list(first) == list(there)
    for key in ("model", "ema"):
        assert list(first[key]) == list(there[key])
        for name, tensor in first[key].items():
            assert torch.equal(tensor, back[key][name])
            assert torch.equal(tensor, there[key][name]) == (name not in (CODEBOOK, RECENT_TOKENS))
    assert (there["args"], there["steps"]) == (first["args"], first["steps"])
    assert torch.equal(there["optimizer"]["state"][0]["exp_avg"], first["optimizer"]["state"][0]["exp_avg"])


def test_averaged_weights_that_are_the_same_object_move_once(model: VQModel, tmp_path: Path) -> None:
    order = np.random.default_rng(4).permutation(N)
    torch.save({"model": model.state_dict(), "ema": model.state_dict()}, tmp_path / "equal.pt")
    state = model.state_dict()
    torch.save({"model": state, "ema": state}, tmp_path / "same.pt")
    for name in ("equal", "same"):
        save_rearranged(tmp_path / f"{name}.pt", order, tmp_path / f"{name}-new.pt")
        for weights in ("model", "ema"):
            rows = VQModel.load_llamagen(tmp_path / f"{name}-new.pt", weights).quantize.embedding.weight
            assert torch.equal(rows, state[CODEBOOK][torch.from_numpy(order)])


def test_a_usage_record_of_something_else_is_left_alone(model: VQModel, tmp_path: Path) -> None:
    state = {**model.state_dict(), RECENT_TOKENS: torch.full((65_536,), -1.0)}
    torch.save({"model": state}, tmp_path / "vq.pt")
    save_rearranged(tmp_path / "vq.pt", np.arange(N)[::-1], tmp_path / "new.pt")
    assert torch.equal(trusted(tmp_path / "new.pt")["model"][RECENT_TOKENS], state[RECENT_TOKENS])


@pytest.mark.parametrize("order", [np.arange(N - 1), np.zeros(N, int), np.arange(N) - 1, np.arange(N).reshape(2, -1)])
def test_an_order_that_is_no_permutation(checkpoint: Path, tmp_path: Path, order: np.ndarray) -> None:
    with pytest.raises(InputError, match="no permutation of the 64 codes"):
        save_rearranged(checkpoint, order, tmp_path / "new.pt")
    assert not (tmp_path / "new.pt").exists()


def test_the_source_is_never_overwritten(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match="is the source itself"):
        save_rearranged(checkpoint, np.arange(N), checkpoint.parent / "." / checkpoint.name)
    assert checkpoint.read_bytes() == before


def test_a_full_disk_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    """A file-size limit is what a full disk looks like to a process."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            save_rearranged(checkpoint, np.arange(N), tmp_path / "new.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
