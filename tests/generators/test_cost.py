"""Costs counted from shapes: equal to what torch counts of the real model, and to the published sizes."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iar_study.config import PRESETS, ModelConfig, ParallelConfig, TrialConfig
from iar_study.generators import cost
from iar_study.generators.gpt import GPT
from iar_study.generators.sampling import generate
from iar_study.training.parallel import prepare_blocks

SMALL = ModelConfig(layers=3, heads=2, width=24, ffn_multiple=32)
VOCAB, CLASSES, GRID = 50, 7, 4
TOKENS = GRID**2


def make_gpt(device: str = "cpu", config: ModelConfig = SMALL) -> GPT:
    """In float64 no product is oneDNN's, which torch does not count; on the meta device nothing is computed."""
    with torch.device(device):
        return GPT(config, VOCAB, CLASSES, GRID).double()


def counted(call) -> int:
    # The fused kernels are counted by rules of their own.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def inputs(images: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    return labels, labels[:, None].expand(images, TOKENS - 1)


def test_forward_and_training_are_what_torch_counts():
    model, given = make_gpt("meta"), inputs(5, "meta")
    assert counted(lambda: model(*given)) == 5 * cost.forward_flops(SMALL, VOCAB, TOKENS)
    assert counted(lambda: model(*given).sum().backward()) == 5 * cost.training_flops(SMALL, VOCAB, TOKENS)


def test_recomputing_the_blocks_is_what_torch_counts():
    model, given = make_gpt(), inputs(2, "cpu")
    prepare_blocks(model, TrialConfig(model=SMALL, parallel=ParallelConfig(activation_checkpointing=True)))
    expected = 2 * cost.training_flops(SMALL, VOCAB, TOKENS, recompute=True)
    assert counted(lambda: model(*given).sum().backward()) == expected


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sampling_is_what_torch_counts(scale):
    model, labels = make_gpt().eval(), torch.zeros(3, dtype=torch.int64)
    expected = 3 * cost.sampling_flops(SMALL, VOCAB, TOKENS, guided=scale != 1)
    assert counted(lambda: generate(model, labels, cfg_scale=scale, generator=torch.Generator())) == expected


@given(
    st.builds(
        lambda layers, heads, quads, multiple: ModelConfig(layers, heads, 4 * heads * quads, multiple),
        *(st.integers(1, top) for top in (4, 5, 6, 40)),
    ),
    st.integers(2, 300),
    st.integers(1, 20),
)
def test_parameters_are_the_models(config, vocab, classes):
    with torch.device("meta"):
        model = GPT(config, vocab, classes, grid=2)
    assert cost.n_parameters(config, vocab, classes) == model.n_parameters()


@pytest.mark.parametrize(
    ("name", "published", "within"),
    [("B", 111e6, 0.5e6), ("L", 343e6, 0.5e6), ("XL", 775e6, 0.5e6), ("XXL", 1.4e9, 0.05e9), ("3B", 3.1e9, 0.05e9)],
)
def test_parameters_are_those_published(name, published, within):
    assert abs(cost.n_parameters(PRESETS[name], 16_384, 1000) - published) < within


def test_bytes_are_what_a_training_holds():
    model = GPT(SMALL, VOCAB, CLASSES, GRID)
    optimizer = torch.optim.AdamW(model.parameters())
    model(*inputs(1, "cpu")).sum().backward()
    optimizer.step()
    weights = list(model.parameters())
    moments = [optimizer.state[w][name] for w in weights for name in ("exp_avg", "exp_avg_sq")]
    held = sum(t.nbytes for t in (*weights, *moments))
    gradients = sum(w.grad.nbytes for w in weights)
    n = model.n_parameters()
    assert cost.checkpoint_bytes(n, averaged=False) == held
    assert cost.checkpoint_bytes(n, averaged=True) == held + sum(w.nbytes for w in weights)
    assert cost.state_bytes(n, averaged=False) == held + gradients


def test_torch_is_not_loaded_to_count():
    script = "import sys, iar_study.generators.cost; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
