"""LlamaGen's checkpoints of a GPT, read and written: the weights have the same names and shapes on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from iar_study.config import PRESETS, ModelConfig
from iar_study.errors import InputError, listed
from iar_study.generators.gpt import GPT, feed_forward_width, rotary_2d
from iar_study.storage import save_torch
from iar_study.tokenizers.vq import read_checkpoint

Layout = Literal["ddp", "fsdp", "ema"]
Weights = Literal["model", "ema"]

TOKENS, CLASSES, GATE = "tok_embeddings.weight", "cls_embedding.embedding_table.weight", "feed_forward.w1.weight"


def save_llamagen(model: GPT, path: Path, layout: Layout = "ddp") -> None:
    """Write the weights as a checkpoint that LlamaGen's scripts read, atomically.

    Parameters
    ----------
    layout : `ddp` is a dict with `model`, `fsdp` the bare weights, `ema` a dict with `model` and `ema`, which share
        these weights. (LlamaGen itself needs a feed-forward width that is a multiple of 256, as its presets have.)

    Raises
    ------
    InputError : an unknown layout, or a file that cannot be written.
    """
    weights = model.state_dict()
    contents = {"ddp": {"model": weights}, "fsdp": weights, "ema": {"model": weights, "ema": weights}}
    if layout not in contents:
        raise InputError(f"unknown layout {layout!r}; known: {', '.join(contents)}")
    save_torch(path, contents[layout])


def load_llamagen(path: Path, *, heads: int | None = None, grid: int = 16, weights: Weights = "model") -> GPT:
    """Return the class-conditional GPT of a LlamaGen checkpoint in any of its layouts, in float32 and evaluation mode.

    Layers, widths, vocabulary and classes are read from the weights; what else the file holds (optimizer, steps,
    arguments) is ignored, and no code in it is run.

    Parameters
    ----------
    heads : attention heads; None: those of the preset with this width and number of layers.
    grid : tokens along one side of the picture, which the weights do not tell: 16 for 256 pixels, 24 for 384.
    weights : `ema` picks the moving average of the training; `model` falls back on it where there is nothing else.

    Raises
    ------
    InputError : no such file, a damaged one, or weights of something else; the message says what differs.
    """
    found = find_weights(read_checkpoint(path), path, weights)
    config = read_config(found, path, heads)
    with torch.device("meta"):  # no initial weights: all of them are loaded
        model = GPT(config, len(found[TOKENS]), len(found[CLASSES]) - 1, grid)
    check_shapes(found, model.state_dict(), path)
    model.to_empty(device="cpu")
    model.rotary.copy_(rotary_2d(grid, config.width // config.heads))
    model.load_state_dict(dict(found))
    return model.eval()


def find_weights(checkpoint: Mapping[str, Any], path: Path, weights: Weights) -> Mapping[str, Tensor]:
    """Return the weights by name, wherever the layout has them."""
    if weights == "ema" and "ema" not in checkpoint:
        raise InputError(f"{path} has no averaged weights (`ema`)")
    found = checkpoint.get(weights, checkpoint.get("ema", checkpoint))
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} is not a LlamaGen checkpoint: it holds {listed(checkpoint)} and no weights")
    return found


def read_config(weights: Mapping[str, Tensor], path: Path, heads: int | None) -> ModelConfig:
    """Return the sizes that the weights tell, with the heads and dropout of the preset that has them."""
    needed = [TOKENS, CLASSES, f"layers.0.{GATE}"]
    missing = [name for name in needed if name not in weights or weights[name].ndim != 2 or not len(weights[name])]
    if missing:
        raise InputError(
            f"{path} is not a class-conditional GPT of LlamaGen: it lacks {listed(missing)} and holds {listed(weights)}"
        )
    layers = sum(name.startswith("layers.") and name.endswith(GATE) for name in weights)
    width, hidden = weights[TOKENS].shape[1], weights[f"layers.0.{GATE}"].shape[0]
    alike = [preset for preset in PRESETS.values() if (preset.layers, preset.width) == (layers, width)]
    if not alike and heads is None:
        raise InputError(f"{path} has {layers} layers of width {width}, which is no preset: say how many heads")
    config = alike[0] if alike else replace(PRESETS["B"], layers=layers, width=width)
    # Any hidden width is its own multiple; LlamaGen's and the study's are preferred, to give back the config saved.
    fitting = (m for m in (config.ffn_multiple, 256, 32) if feed_forward_width(width, m) == hidden)
    multiple = next(fitting, hidden)
    return replace(config, heads=heads or config.heads, ffn_multiple=multiple)


def check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise an `InputError` that names the weights which are missing, unknown or of another shape."""
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing {listed(missing)}")
    if unknown := [name for name in found if name not in expected]:
        problems.append(f"unknown {listed(unknown)}")
    if other := [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]:
        problems.append(f"of another shape {listed(other)}")
    if problems:
        raise InputError(f"the weights in {path} do not fit: {'; '.join(problems)}")
