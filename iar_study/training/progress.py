"""What a training tells of itself: the losses since the last point, how fast it is, and when it will end."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor

from iar_study.training.parallel import total


class Diverged(ArithmeticError):
    """The training loss is no longer finite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the training loss is not finite at step {step}")
        self.step = step


class Losses:
    """The terms of the loss in the steps since the last point of the journal; on their device until looked at.

    `sums` and `count` are what was seen of them before; every step has the same terms.
    """

    def __init__(self, fabric: Fabric, sums: Mapping[str, float] | list[float] | None = None, count: int = 0) -> None:
        self.fabric = fabric
        # A checkpoint of before has them without names: the mean over its few steps begins anew.
        self.sums, self.count = (dict(sums), count) if isinstance(sums, Mapping) else ({}, 0)
        self.unseen: list[dict[str, Tensor]] = []

    def settle(self, done: int) -> None:
        """Add up the losses of the last steps before `done`; raise `Diverged` at the first that is not finite."""
        if not self.unseen:
            return
        names = list(self.unseen[0])
        stacked = torch.stack([torch.stack([terms[name] for name in names]) for terms in self.unseen])
        seen = total(self.fabric, stacked) / self.fabric.world_size
        for step, values in enumerate(seen.tolist(), start=done - len(seen) + 1):
            if not all(map(math.isfinite, values)):
                raise Diverged(step)
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in zip(names, values, strict=True)}
            self.count += 1
        self.unseen.clear()

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the steps, and begin anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Pace:
    """How fast a training is, what it waits for, and when it will end."""

    def __init__(self, first: int, steps: int, device: torch.device) -> None:
        self.first, self.steps, self.device = first, steps, device
        self.began = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Begin to measure anew: evaluations and checkpoints are not in the pace of training."""
        self.since, self.tokens, self.waited = time.perf_counter(), 0, 0.0

    def batches(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass batches on, and time the waiting for them."""
        for _ in range(self.first, self.steps):
            asked = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - asked
            yield batch

    def metrics(self, done: int) -> dict[str, float]:
        now = time.perf_counter()
        spent = now - self.since
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device)
        else:  # kilobytes, but bytes on a Mac
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        left = (now - self.began) / (done - self.first) * (self.steps - done)
        return {
            "speed/tokens_per_second": self.tokens / spent,
            "speed/data_wait_share": self.waited / spent,
            "speed/peak_memory_gb": memory / 1e9,
            "speed/hours_left": left / 3600,
        }
