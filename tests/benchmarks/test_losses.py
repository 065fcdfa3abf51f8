"""What the losses cost in time and memory: forward and backward over 16,384 codes, side by side with their peers.

Each benchmark runs its peer before every round of its own, so that a busy machine slows both: the ratio is the median
over these pairs. Peak memory is what a fresh process holds on top of its inputs at the worst moment of one step, as the
Linux kernel counts it. Both are in `extra_info`, which `--benchmark-json` saves.
"""

import multiprocessing
import shutil
import statistics
import time
from pathlib import Path

import joblib
import pytest
import torch
import torch.nn.functional as F

from iar_study.losses.cluster_cross_entropy import (
    token_and_cluster_cross_entropy,
)

CODES, CLUSTERS = 16384, 128
BOUNDARIES = torch.arange(0, CODES + 1, CODES // CLUSTERS)
FAST_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not FAST_BFLOAT16, reason="bf16 is slow on this CPU")),
    ],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)


@pytest.fixture(autouse=True)
def _all_cores():
    threads = torch.get_num_threads()
    torch.set_num_threads(joblib.cpu_count())
    yield
    torch.set_num_threads(threads)


def cross_entropy(logits, targets):
    """The token loss alone: what training costs without IAR."""
    return F.cross_entropy(logits.float(), targets)


def released_form(logits, targets):
    """The form of the released code: cross-entropy over tokens, and again over the clusters' logsumexp."""
    logits = logits.float()
    clusters = torch.logsumexp(logits.view(len(logits), CLUSTERS, -1), -1)
    return F.cross_entropy(logits, targets) + F.cross_entropy(clusters, targets // (CODES // CLUSTERS))


def ours(logits, targets):
    return sum(token_and_cluster_cross_entropy(logits, targets, BOUNDARIES))


LOSSES = {"cross_entropy": cross_entropy, "released_form": released_form, "ours": ours}


def logits_and_targets(dtype, rows=1024):
    torch.manual_seed(0)
    return torch.randn(rows, CODES).to(dtype).requires_grad_(), torch.randint(CODES, (rows,))


def step(loss, inputs):
    for x in inputs:
        x.grad = None
    loss(*inputs).backward()


def memory_of(entry, process="self"):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def measure(name, make_inputs, dtype, threads, pipe):
    """In a process of its own: one step, and how far it rose above what was there before."""
    torch.set_num_threads(threads)
    loss = LOSSES[name]
    step(loss, make_inputs(dtype, rows=8))  # loads what is loaded once
    inputs = make_inputs(dtype)
    before = memory_of("VmRSS")
    step(loss, inputs)
    pipe.send(memory_of("VmHWM") - before)


def peak_mb(name, make_inputs, dtype):
    """Megabytes (2**20 bytes) that one step takes at most; None where there is no /proc."""
    if not Path("/proc/self/status").exists():
        return None
    spawn = multiprocessing.get_context("spawn")  # fork would start with this process's memory
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=measure, args=(name, make_inputs, dtype, torch.get_num_threads(), sender))
    process.start()
    sender.close()
    megabytes = receiver.recv()
    process.join()
    return round(megabytes)


def race(benchmark, loss, peer, inputs, rounds):
    """Benchmark `loss`, and return the median ratio of its time to that of `peer`, which runs before every round."""
    seconds_of_peer = []

    def run_peer():
        started = time.perf_counter()
        step(peer, inputs)
        seconds_of_peer.append(time.perf_counter() - started)

    step(loss, inputs)
    benchmark.pedantic(step, args=(loss, inputs), setup=run_peer, rounds=rounds, warmup_rounds=1)
    pairs = zip(benchmark.stats.stats.data, seconds_of_peer[-rounds:], strict=True)
    return round(statistics.median(own / other for own, other in pairs), 3)


@pytest.mark.bench
@DTYPES
@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("cross_entropy", "cross_entropy"),
        ("released_form", "cross_entropy"),
        ("ours", "cross_entropy"),
        ("ours", "released_form"),
    ],
)
def test_loss_forward_and_backward(benchmark, name, peer, dtype):
    inputs = logits_and_targets(dtype)
    benchmark.group = f"loss, forward and backward, {dtype}, 1,024 x 16,384, n = 128"
    benchmark.extra_info["peak_mb"] = peak_mb(name, logits_and_targets, dtype)
    benchmark.extra_info[f"time_over_{peer}"] = race(benchmark, LOSSES[name], LOSSES[peer], inputs, rounds=15)


@pytest.mark.bench
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_loss_forward_and_backward(benchmark, name):
    inputs = logits_and_targets(torch.float32)
    compiled = torch.compile(LOSSES[name], fullgraph=True)
    peer = torch.compile(cross_entropy, fullgraph=True)
    started = time.perf_counter()
    step(compiled, inputs)
    benchmark.group = "compiled loss, forward and backward, torch.float32, 1,024 x 16,384, n = 128"
    benchmark.extra_info["compile_s"] = round(time.perf_counter() - started, 1)
    benchmark.extra_info["time_over_cross_entropy"] = race(benchmark, compiled, peer, inputs, rounds=15)
