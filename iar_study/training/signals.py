"""SIGTERM and SIGINT ask a training to save itself and stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric


class StopRequest:
    """While entered, keeps the first SIGTERM or SIGINT as a request; a second SIGINT stops at once.

    A SIGINT that this process ignores, because its parent takes it, stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def agreed(self, fabric: Fabric) -> int:
        """Return the signal that any of the processes received, 0 for none."""
        if fabric.world_size == 1:
            return self.signal or 0
        number = torch.tensor(self.signal or 0, device=fabric.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def obey(self, number: int) -> None:
        """Stop this process the way that `number` asks for: exit code 130 for SIGINT, 143 for SIGTERM."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
