"""One training on one device or many: Lightning Fabric moves, wraps and reduces; what is ours is how GPT is sharded.

`torchrun` starts the processes and tells each its place by environment variables; without it there is one.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from iar_study.config import TrialConfig, check_parallel
from iar_study.errors import InputError
from iar_study.generators.gpt import GPT, Block
from iar_study.training.processes import n_processes


def launch(config: TrialConfig) -> Fabric:
    """Return the Fabric of this process, connected with the others.

    Raises
    ------
    InputError : the processes cannot share the parts of a batch out, or the precision does not go with the device.
    """
    compute, processes = config.compute, n_processes()
    check_parallel(config, processes)
    # Without it, cuBLAS gives other bits each time, and torch refuses to run it where determinism is asked for.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # no word about processes it starts
    precision = {
        "float32": Precision(),
        "bfloat16": MixedPrecision("bf16-mixed", compute.device),
        "float16": MixedPrecision("16-mixed", compute.device),
    }[compute.precision]
    strategy: Strategy | str = "auto"
    if processes > 1:
        sharded = partial(ModelParallelStrategy, shard, data_parallel_size=processes, tensor_parallel_size=1)
        # As a view, gradients lie in the buckets that are reduced: no second copy of them is held.
        strategy = sharded() if config.parallel.strategy == "fsdp" else DDPStrategy(gradient_as_bucket_view=True)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes)))
    fabric = Fabric(
        accelerator=compute.device,
        strategy=strategy,
        devices=here,
        num_nodes=processes // here,
        plugins=[precision, LightningEnvironment() if processes == 1 else TorchElasticEnvironment()],
    )
    fabric.launch()
    if processes > 1:
        atexit.register(_disconnect)
    return fabric


@contextmanager
def connected() -> Iterator[None]:
    """Let the processes that `torchrun` started speak with each other, each on a GPU of its own if there are some."""
    if n_processes() == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # gloo, on GPUs as well: what is told here are objects on the CPU.
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        _disconnect()


def _disconnect() -> None:
    """Leave the other processes, before Python ends."""
    if dist.is_initialized():
        # gloo's threads let go of the last tensors a moment after they are used; where Python is ending by then, that
        # aborts the process (seen in 2 of 60 runs of `fully_shard` on a busy machine).
        time.sleep(0.5)
        dist.destroy_process_group()


def shard(objective: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Share the weights of the model in `objective` out over the processes: block by block, then the rest."""
    for block in [m for m in objective.modules() if isinstance(m, Block)]:
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(objective, mesh=mesh["data_parallel"])
    return objective


def prepare_blocks(model: GPT, config: TrialConfig) -> None:
    """Let each block keep its inputs alone for the backward pass, and compile it, where the config asks for it.

    Blocks are alike, so one is compiled for all, and the processes can reduce gradients while others are computed.
    """
    for block in model.layers:
        if config.parallel.activation_checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if config.compute.compile:
            block.compile()


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be shared out; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be shared out, on the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return `whole`, which every process holds, shared out as `like` is, and on its device."""
    whole = whole.to(like.device)
    if not isinstance(like, DTensor):
        return whole
    # No source rank: each process cuts out its own part, and nothing is sent.
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def collected(value: Any) -> list[Any]:
    """Return the values of all processes, in their order."""
    if n_processes() == 1:
        return [value]
    values: list[Any] = [None] * n_processes()
    dist.all_gather_object(values, value)
    return values


def total(fabric: Fabric, tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, float64, on the CPU."""
    if fabric.world_size == 1:
        return tensor.to("cpu", torch.float64)
    # A copy in any case: `all_reduce` writes in place, and the caller's tensor is not to change.
    here = tensor.to(fabric.device, torch.float64, copy=True)
    dist.all_reduce(here)
    return here.cpu()


def first_of(fabric: Fabric, make: Any) -> Any:
    """Return what `make()` returned in the first process; an `InputError` there is raised in all."""
    answer: Any = None
    if fabric.is_global_zero:
        try:
            answer = make()
        except InputError as error:
            answer = error
    answer = fabric.broadcast(answer)
    if isinstance(answer, InputError):
        raise answer
    return answer
