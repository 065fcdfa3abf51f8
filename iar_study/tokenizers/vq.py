"""Image tokenizers that look codes up by cosine: what they have in common, and LlamaGen's VQ-16 and VQ-8 exactly.

`VQModel` is the network of LlamaGen's `tokenizer/tokenizer_image/vq_model.py` (in the manner of taming-transformers),
with its weight names, so its checkpoints are read as they are. `PatchVQ`, in `patch_vq`, is the study's own small one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iar_study.codebook.codebook import Lookup
from iar_study.errors import InputError, listed
from iar_study.storage import load_torch, save_torch

CODEBOOK = "quantize.embedding.weight"
RECENT_TOKENS = "quantize.codebook_used"
"""A buffer of the last tokens seen in training, as floats; LlamaGen counts its distinct values as usage."""


def to_float(images: np.ndarray) -> Tensor:
    """Turn uint8 images (B, H, W, C) into float32 (B, C, H, W) in [-1, 1]; raise `InputError` for anything else."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"expected uint8 images (n, height, width, channels), got {images.dtype} {images.shape}")
    return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn float images (B, C, H, W) into uint8 (B, H, W, C): clipped to [-1, 1], rounded to the nearest level."""
    levels = ((images.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_uint8_of_size(images: Tensor, size: int) -> np.ndarray:
    """Turn float images (B, C, H, W), about [-1, 1], into uint8 (B, size, size, C) as LlamaGen does to measure them.

    Bicubic without antialias, before anything is clipped; then 127.5 x + 128, clipped to 0 ... 255, cut to an integer
    (`sample_c2i_ddp.py`). That is the rule of `to_uint8` but for rounding: of a million values, five are a level apart.
    Images that are of this size are turned by `to_uint8`.
    """
    if images.shape[2:] == (size, size):
        return to_uint8(images)
    resized = F.interpolate(images.detach(), size=(size, size), mode="bicubic", align_corners=False)
    levels = (127.5 * resized + 128).clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def unit(x: Tensor, dim: int) -> Tensor:
    """L2-normalise along `dim`: what can be squared to the same bits as `F.normalize`, what cannot in the same way.

    The power of two that it is scaled by first is exact, as in `codebook.norms`.
    """
    most = math.frexp(torch.finfo(x.dtype).max)[1] * 3 // 4
    exponent = torch.frexp(x.detach().abs().amax(dim, keepdim=True)).exponent.clamp(-most, most)
    return F.normalize(x * x.new_tensor(2).pow(-exponent), dim=dim)


def look_up(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest row by cosine, int64 (B, h, w), for L2-normalised z (B, d, h, w) and codebook (N, d)."""
    return (z.detach().permute(0, 2, 3, 1) @ codebook.detach().T).argmax(-1)


class VectorQuantizer(nn.Module):
    """The codebook, with the straight-through estimator and the two losses of VQ-VAE (arXiv 1711.00937, eq. 3)."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    def codebook(self) -> Tensor:
        """Return the L2-normalised rows, float (N, d)."""
        return unit(self.embedding.weight, -1)

    def forward(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Replace each vector of z, float (B, d, h, w), by its code; what is returned is as in `Tokenizer.forward`."""
        z, codebook = unit(z, 1), self.codebook()
        tokens = look_up(z, codebook)
        q = F.embedding(tokens, codebook).permute(0, 3, 1, 2)
        losses = {"codebook": F.mse_loss(q, z.detach()), "commitment": F.mse_loss(z, q.detach())}
        return z + (q - z).detach(), losses, tokens  # the value is q, the gradient is z's


class Tokenizer(nn.Module):
    """Images to tokens and back: encoder, 1x1 convolution, look-up, 1x1 convolution, decoder.

    A subclass builds these five parts; one token stands for `patch` x `patch` pixels of `in_channels` channels.
    """

    encoder: nn.Module
    quant_conv: nn.Module
    quantize: VectorQuantizer
    post_quant_conv: nn.Module
    decoder: nn.Module
    in_channels: int
    patch: int
    hint: ClassVar[str]
    """What to do about images whose sides `patch` does not divide."""
    lookup: ClassVar[Lookup] = "cosine"
    """By what a vector's nearest code is meant."""

    def latents(self, images: Tensor) -> Tensor:
        """Return the encoder's output before normalisation and look-up, float (B, d, h, w).

        Raises `InputError` when the images have other channels than the model, or sides that `patch` does not divide.
        """
        _, channels, height, width = images.shape
        patch = self.patch
        if channels != self.in_channels:
            raise InputError(f"the tokenizer is for {self.in_channels} channels, the images have {channels}")
        if height % patch or width % patch:
            raise InputError(
                f"images of {height}x{width} pixels do not divide into patches of {patch}x{patch}; {self.hint}"
            )
        return self.quant_conv(self.encoder(images))

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return (reconstruction (B, C, H, W), losses, tokens int64 (B, h, w)) for float images in [-1, 1].

        `losses` holds the scalars `codebook` (moves codes to encoder outputs) and `commitment` (the reverse, to be
        weighted by beta), both means over positions and dimensions.
        """
        q, losses, tokens = self.quantize(self.latents(images))
        return self.decoder(self.post_quant_conv(q)), losses, tokens

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the tokens, int64 (B, h, w), of float images (B, C, H, W) in [-1, 1]."""
        return look_up(unit(self.latents(images), 1), self.codebook())

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return float images (B, C, H, W) of vectors in the code space, float (B, d, h, w), usually codes."""
        return self.decoder(self.post_quant_conv(z))

    @torch.no_grad()
    def decode_codes(self, tokens: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Return float images (B, C, H, W) of int64 tokens (B, h, w).

        `codebook`, float (N, d), stands in for the model's own: rearranged tokens with the rearranged codebook give
        the same bits as the original ones, for the rows are only gathered.
        """
        rows = F.embedding(tokens, self.codebook() if codebook is None else codebook)
        return self.decode(rows.permute(0, 3, 1, 2))

    @torch.no_grad()
    def codebook(self) -> Tensor:
        """Return the L2-normalised codes that decoding uses, float (N, d)."""
        return self.quantize.codebook()


@dataclass(frozen=True)
class VQConfig:
    """The widths of a `VQModel`; the defaults are VQ-16's."""

    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Of `channels`, a level each; between two levels the side is halved."""
    channels: int = 128
    z_channels: int = 256
    codebook_size: int = 16_384
    code_dim: int = 8
    in_channels: int = 3


VQ_16 = VQConfig()
VQ_8 = VQConfig(multipliers=(1, 2, 2, 4))

BLOCKS = 2
"""Residual blocks a level of the encoder; the decoder has one more."""

GROUPS = 32


class ResnetBlock(nn.Module):
    """s(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))), where s is a 1x1 convolution if the width changes."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = _norm(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """x + proj_out(softmax(q k^T / sqrt(c)) v) over all positions of the grid, with one head of c channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, 1, positions, c)
        return x + self.proj_out(attended.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded on the right and below alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # As LlamaGen's. The convolution's own padding is on all sides, and would give other latents.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel four times, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where the level `attends`."""

    def __init__(self, n_in: int, n_out: int, blocks: int, attends: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResnetBlock(n_out if j else n_in, n_out) for j in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(n_out) for _ in range(blocks if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        return x


class EncoderLevel(Level):
    """A level, then the way to the next lower one."""

    def __init__(self, n_in: int, n_out: int, lowest: bool) -> None:
        super().__init__(n_in, n_out, BLOCKS, attends=lowest)
        self.downsample = nn.Identity() if lowest else Downsample(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class DecoderLevel(Level):
    """A level, then the way to the next higher one."""

    def __init__(self, n_in: int, n_out: int, lowest: bool, highest: bool) -> None:
        super().__init__(n_in, n_out, BLOCKS + 1, attends=lowest)
        self.upsample = nn.Identity() if highest else Upsample(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


class Encoder(nn.Module):
    """Images (B, C, H, W) to (B, z_channels, h, w)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        low = widths[-1]
        self.conv_in = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            EncoderLevel(n_in, n_out, lowest=i == len(widths) - 1)
            for i, (n_in, n_out) in enumerate(zip([config.channels, *widths], widths, strict=False))
        )
        self.mid = _middle(low)
        self.norm_out = _norm(low)
        self.conv_out = nn.Conv2d(low, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in (*self.conv_blocks, *self.mid):
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, z_channels, h, w) to images (B, C, H, W): the encoder's levels in reverse."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.multipliers)]
        low, high = widths[0], widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, low, 3, padding=1)
        self.mid = _middle(low)
        self.conv_blocks = nn.ModuleList(
            DecoderLevel(n_in, n_out, lowest=i == 0, highest=i == len(widths) - 1)
            for i, (n_in, n_out) in enumerate(zip([low, *widths], widths, strict=False))
        )
        self.norm_out = _norm(high)
        self.conv_out = nn.Conv2d(high, config.in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in (*self.mid, *self.conv_blocks):
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _norm(channels: int) -> nn.GroupNorm:
    # The eps of LlamaGen's code; torch's own, 1e-5, would give other latents.
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResnetBlock(channels, channels), AttnBlock(channels), ResnetBlock(channels, channels)])


class VQModel(Tokenizer):
    """LlamaGen's tokenizer: VQ-16 by default, VQ-8 as `VQModel(VQ_8)`, or any other widths.

    Tokens are the nearest codes by cosine. The original minimises |z - e|^2 of the normalised vectors: the same code,
    but for two that are equally near within float32's rounding.
    Raises `InputError` when a level's width is not a multiple of 32, the groups of its normalisation.
    """

    hint = "choose another image size"

    def __init__(self, config: VQConfig = VQ_16) -> None:
        super().__init__()
        widths = {config.channels * multiplier for multiplier in (1, *config.multipliers)}
        if any(width < 1 or width % GROUPS for width in widths):
            raise InputError(f"the widths {sorted(widths)} are not all multiples of {GROUPS}")
        self.config, self.in_channels = config, config.in_channels
        self.patch = 2 ** (len(config.multipliers) - 1)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config.codebook_size, config.code_dim)
        nn.init.uniform_(self.quantize.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)
        # Unused here; LlamaGen's checkpoints hold it, in this size, and are read and written whole.
        self.quantize.register_buffer("codebook_used", torch.zeros(65_536))
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    @classmethod
    def load_llamagen(cls, path: Path, weights: Literal["model", "ema"] = "model") -> VQModel:
        """Return the tokenizer of LlamaGen's checkpoint at `path`, in evaluation mode and float32.

        The widths are taken from the weights. `weights` picks a training checkpoint's moving average instead.
        Raises `InputError`, which says what differs, when the file is damaged or holds something else.
        """
        return _build(_weights(read_checkpoint(path), weights, path), path)

    def save_llamagen(self, path: Path) -> None:
        """Write the weights to `path` as a checkpoint that `load_llamagen` and LlamaGen's own code read."""
        save_torch(path, {"model": self.state_dict()})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return LlamaGen's checkpoint as it was saved; raise `InputError` for a damaged file or one that is no dict."""
    content = load_torch(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint with 'model'")
    return content


def save_rearranged(source: Path, order: np.ndarray, destination: Path) -> None:
    """Copy LlamaGen's checkpoint with the rows of its codebook in another order, for the original code to read.

    Row `new` becomes old row `order[new]` (`Rearrangement.order`), so that `permutation[tokens]` decode to the same
    bits as `tokens` did. In `model`, and in `ema` where there is one, the codebook's rows move and the record of recent
    tokens is translated; everything else stays as it is, the optimizer's moments too: to train the tokenizer further,
    start from the original.

    Parameters
    ----------
    order : int (N,), a permutation of the N codes.

    Raises
    ------
    InputError : `source` is no LlamaGen tokenizer, `order` does not fit it, or `destination` is `source`.
    """
    source, destination, order = Path(source), Path(destination), np.asarray(order)
    if destination.resolve() == source.resolve():
        raise InputError(f"{destination} is the source itself; its order is still needed, so write to another file")
    checkpoint = read_checkpoint(source)
    for name in ("model", "ema"):
        if name == "ema" and name not in checkpoint:
            continue
        weights = _weights(checkpoint, name, source)
        size = _build(weights, source).config.codebook_size
        if not np.array_equal(np.sort(order.ravel()), np.arange(size)) or order.ndim != 1:
            raise InputError(f"the order is no permutation of the {size} codes of {source}")
        rows = torch.from_numpy(order.astype(np.int64))
        permutation = torch.argsort(rows)
        recent = weights[RECENT_TOKENS]
        checkpoint[name] = copy(weights)  # the two sets may be one and the same object
        checkpoint[name][CODEBOOK] = weights[CODEBOOK][rows]
        if ((recent >= 0) & (recent < size)).all():
            checkpoint[name][RECENT_TOKENS] = permutation[recent.long()].to(recent.dtype)
    save_torch(destination, checkpoint)


def _weights(checkpoint: Mapping[str, Any], name: str, path: Path) -> dict[str, Tensor]:
    """Return the named weights of a checkpoint."""
    weights = checkpoint.get(name)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path} has no weights {name!r}, but {listed(checkpoint)}; is it a LlamaGen tokenizer?")
    return weights


def _build(weights: Mapping[str, Tensor], path: Path) -> VQModel:
    """Return the model that these weights are of; raise `InputError` that names the first differences."""
    with torch.device("meta"):  # no time is spent on initial values
        try:
            model = VQModel(_config_of(weights))
        except KeyError as error:
            raise InputError(f"{path} is no LlamaGen tokenizer: it has no {error}, but {listed(weights)}") from error
        except (IndexError, ValueError):
            model = VQModel()  # they fit no widths at all: say what differs from VQ-16
    expected = model.state_dict()
    if missing := [name for name in expected if name not in weights]:
        raise InputError(f"{path} is no whole LlamaGen tokenizer: it has no {listed(missing)}")
    if unknown := [name for name in weights if name not in expected]:
        raise InputError(f"{path} is no LlamaGen tokenizer: VQ-16 and VQ-8 have no {listed(unknown)}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path}: {name} is of shape {tuple(tensor.shape)}, "
                f"where the other weights ask for {tuple(expected[name].shape)}"
            )
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return model.eval()


def _config_of(weights: Mapping[str, Tensor]) -> VQConfig:
    """Read the widths off the weights' shapes; raise `KeyError` or `IndexError` where one is missing."""
    channels, in_channels = weights["encoder.conv_in.weight"].shape[:2]
    names = (f"encoder.conv_blocks.{i}.res.0.conv1.weight" for i in range(len(weights)))
    widths = [weights[name].shape[0] for name in names if name in weights]
    codebook_size, code_dim = weights[CODEBOOK].shape
    return VQConfig(
        multipliers=tuple(width // channels for width in widths),
        channels=channels,
        z_channels=weights["encoder.conv_out.weight"].shape[0],
        codebook_size=codebook_size,
        code_dim=code_dim,
        in_channels=in_channels,
    )
