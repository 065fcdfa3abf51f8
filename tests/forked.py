"""Processes that are forked with all imported, so that they begin at once: what is tested takes the time."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(target: Callable[..., Any], *args: Any, **environment: str) -> multiprocessing.Process:
    """Begin `target(*args)` in the folder and the environment of now, with these variables set.

    SIGINT is heard there, whatever whoever started the tests ignores.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["iar_study.running.runner", "iar_study.training.train_gpt", "pytest"])
    process = context.Process(target=_run, args=(target, args, {**os.environ, **environment}, Path.cwd()))
    process.start()
    return process


def start_two(target: Callable[..., Any], *args: Any) -> list[multiprocessing.Process]:
    """Begin it as `torchrun --nproc-per-node 2` does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [start(target, *args, **place, RANK=rank, LOCAL_RANK=rank) for rank in "01"]


def exit_code(processes: list[multiprocessing.Process]) -> int:
    """Wait until all have ended, or one has failed, which ends them all; return its exit code, or 0."""
    while any(process.is_alive() for process in processes) and not any(process.exitcode for process in processes):
        time.sleep(0.01)
    code = next((process.exitcode for process in processes if process.exitcode), 0)
    for process in processes:
        process.kill()
        process.join()
    return code


def _run(target: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    target(*args)
