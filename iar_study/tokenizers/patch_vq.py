"""The study's own tokenizer: a small convolutional VQ autoencoder that a CPU trains in half a minute.

An image of `patch * h` x `patch * w` pixels becomes a grid of h x w tokens. Every convolution but the patch stem runs
on that grid, which is what makes it fast. It looks codes up as LlamaGen's `VQModel` does, and its weights carry
LlamaGen's names where the parts are the same (`quantize.embedding.weight`, `quant_conv`, `post_quant_conv`).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iar_study.config import TokenizerConfig
from iar_study.errors import InputError
from iar_study.storage import load_arrays
from iar_study.tokenizers.vq import CODEBOOK, Tokenizer, VectorQuantizer


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


class PatchVQ(Tokenizer):
    """The study's tokenizer, trained by `iar_study.training.train_tokenizer`.

    Parameters
    ----------
    config : codebook size N, code width d, channels and patch.
    in_channels : 1 (grey) or 3 (RGB).
    """

    hint = "set tokenizer.patch"

    def __init__(self, config: TokenizerConfig, in_channels: int) -> None:
        super().__init__()
        self.config, self.in_channels, self.patch = config, in_channels, config.patch
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

    @classmethod
    def load(cls, path: Path) -> PatchVQ:
        """Return the tokenizer that a study trained and keeps at `path`, in evaluation mode.

        Raises `InputError` when the file is damaged or another product of a study.
        """
        arrays, metadata = load_arrays(path)
        if CODEBOOK not in arrays or not {"config", "channels"} <= metadata.keys():
            raise InputError(f"{path} is no tokenizer of a study; those are runs/cache/tokenizer-*.safetensors")
        model = cls(TokenizerConfig(**metadata["config"]), metadata["channels"])
        model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return model.eval()
