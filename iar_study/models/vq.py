"""The tokenizer: a small convolutional VQ autoencoder in LlamaGen's manner, which looks codes up by cosine.

An image of `patch * h` x `patch * w` pixels becomes a grid of h x w tokens. Every convolution but the patch stem runs
on that grid, which is what lets a CPU train it in half a minute. Weights carry LlamaGen's names where the parts are
the same (`quantize.embedding.weight`, `quant_conv`, `post_quant_conv`).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iar_study.config import TokenizerConfig
from iar_study.errors import InputError


def to_float(images: np.ndarray) -> Tensor:
    """Turn uint8 images (B, H, W, C) into float32 (B, C, H, W) in [-1, 1]; raise `InputError` for anything else."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"expected uint8 images (n, height, width, channels), got {images.dtype} {images.shape}")
    return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn float images (B, C, H, W) into uint8 (B, H, W, C): clipped to [-1, 1], rounded to the nearest level."""
    levels = ((images.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


class ResnetBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), the width unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, channels)  # one group: fits any width
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(1, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


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
        return F.normalize(self.embedding.weight, dim=-1)

    def forward(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Replace each vector of z, float (B, d, h, w), by its code; what is returned is as in `VQModel.forward`."""
        z, codebook = F.normalize(z, dim=1), self.codebook()
        tokens = look_up(z, codebook)
        q = F.embedding(tokens, codebook).permute(0, 3, 1, 2)
        losses = {"codebook": F.mse_loss(q, z.detach()), "commitment": F.mse_loss(z, q.detach())}
        return z + (q - z).detach(), losses, tokens  # the value is q, the gradient is z's


class VQModel(nn.Module):
    """Images to tokens and back.

    Parameters
    ----------
    config : codebook size N, code width d, channels and patch.
    in_channels : 1 (grey) or 3 (RGB).
    """

    def __init__(self, config: TokenizerConfig, in_channels: int) -> None:
        super().__init__()
        self.config, self.in_channels = config, in_channels
        width, patch = config.channels, config.patch
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, width, patch + 2, stride=patch, padding=1),  # sees one pixel beyond its patch
            ResnetBlock(width),
            nn.GroupNorm(1, width),
            nn.SiLU(),
        )
        self.quant_conv = nn.Conv2d(width, config.code_dim, 1)
        self.quantize = VectorQuantizer(config.codebook_size, config.code_dim)
        self.post_quant_conv = nn.Conv2d(config.code_dim, width, 1)
        self.decoder = nn.Sequential(
            ResnetBlock(width),
            nn.GroupNorm(1, width),
            nn.SiLU(),
            nn.Conv2d(width, in_channels * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    def latents(self, images: Tensor) -> Tensor:
        """Return the encoder's output before normalisation and look-up, float (B, d, h, w).

        Raises `InputError` when the images have other channels than the model, or sides that `patch` does not divide.
        """
        _, channels, height, width = images.shape
        patch = self.config.patch
        if channels != self.in_channels:
            raise InputError(f"the tokenizer is for {self.in_channels} channels, the images have {channels}")
        if height % patch or width % patch:
            raise InputError(
                f"images of {height}x{width} pixels do not divide into patches of {patch}x{patch}; set tokenizer.patch"
            )
        return self.quant_conv(self.encoder(images))

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return (reconstruction (B, C, H, W), losses, tokens int64 (B, h, w)) for float images in [-1, 1].

        `losses` holds the scalars `codebook` (moves codes to encoder outputs) and `commitment` (the reverse, to be
        weighted by `config.commitment`), both means over positions and dimensions.
        """
        q, losses, tokens = self.quantize(self.latents(images))
        return self.decoder(self.post_quant_conv(q)), losses, tokens

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the tokens, int64 (B, h, w), of float images (B, C, H, W) in [-1, 1]."""
        return look_up(F.normalize(self.latents(images), dim=1), self.codebook())

    @torch.no_grad()
    def decode_codes(self, tokens: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Return float images (B, C, H, W) of int64 tokens (B, h, w).

        `codebook`, float (N, d), stands in for the model's own: rearranged tokens with the rearranged codebook give
        the same bits as the original ones, for the rows are only gathered.
        """
        rows = F.embedding(tokens, self.codebook() if codebook is None else codebook)
        return self.decoder(self.post_quant_conv(rows.permute(0, 3, 1, 2)))

    @torch.no_grad()
    def codebook(self) -> Tensor:
        """Return the L2-normalised codes that decoding uses, float (N, d)."""
        return self.quantize.codebook()
