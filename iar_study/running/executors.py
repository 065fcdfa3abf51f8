"""Where trials run: in this process, in processes of this machine, or on a Ray cluster.

An executor starts attempts at trials and tells how they ended; which to start, and when, is the runner's to say. An
attempt keeps all it knows in the trial's folder: its checkpoints, its journal, and `log.txt` with what it printed and
the traceback of what ended it. So one that is killed, with its machine even, is begun again from there.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

from joblib import cpu_count

from iar_study import parts
from iar_study.config import ComputeConfig
from iar_study.errors import InputError
from iar_study.pipeline.trial import Busy, Trial
from iar_study.storage import unwritable
from iar_study.study.checks import check_executor

GRACE = 60.0
"""Seconds that a worker that is asked to stop has for its step and its checkpoint."""

LOSSES = 5
"""How often a trial may lose its machine before it is held to be what kills it."""

WORKER_ENVIRONMENT = {
    # glibc hands a freed tensor's memory back and faults it in anew in every step, unless told to keep it
    # (measured: 2,900 page faults and 8 % of a step of `quick`).
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}

LOG = "log.txt"


@dataclass(frozen=True)
class End:
    """How an attempt at a trial ended.

    trained : to its end, or it diverged, which is a result. found : it was finished already. later : nothing is wrong
    with it, but another process is at work on it, or its machine is lost. refused : bad input, which no other attempt
    will mend. failed : an error, or a kill.
    """

    kind: Literal["trained", "found", "later", "refused", "failed"]
    reason: str = ""


class Executor(Protocol):
    """Runs attempts at trials, each in its own place.

    at_once : how many run side by side; 0 where nobody knows.
    """

    at_once: int

    def has_room(self) -> bool:
        """Can one more trial be started now?"""

    def start(self, trial: Trial) -> None:
        """Begin an attempt at a trial."""

    def ended(self, timeout: float) -> list[tuple[Trial, End]]:
        """Return the attempts that ended since the last call; wait for one, `timeout` seconds at most."""

    def stop(self) -> None:
        """Ask the attempts to save themselves and stop; end those that have not after `GRACE` seconds."""


def make_executor(name: str, trials: Path, compute: ComputeConfig, address: str | None = None) -> Executor:
    """Return the executor called `name`, for trials that keep their folders in `trials`.

    address : of the Ray cluster; default RAY_ADDRESS, else a cluster that runs on this machine.

    Raises
    ------
    InputError : there is no such executor, Ray is not installed, or its cluster does not answer.
    """
    check_executor(name, address)
    if name == "ray":
        return OnRay(trials, address)
    if name == "here":
        return Here(trials)
    return Processes(trials, compute) if name == "processes" else parts.load("executor", name)(trials, compute)


def attempt(trial: Trial, trials: Path) -> End:
    """Run or resume a trial in this process and tell how that ended; the log gets the traceback of an error."""
    from iar_study.pipeline.attempt import run_trial  # here: it brings torch, which who starts trials need not wait for

    try:
        return End("trained" if run_trial(trial, trials) else "found")
    except Busy as error:
        return End("later", str(error))
    except InputError as error:
        return End("refused", str(error))
    except Exception as error:
        with open(trial.folder(trials) / LOG, "a", encoding="utf-8") as log:
            print(f"{time.strftime('%F %T')}, process {os.getpid()} of {socket.gethostname()}:", file=log)
            traceback.print_exc(file=log)
        return End("failed", f"{type(error).__name__}: {error}")


def attempt_in_worker(trial: Trial, trials: Path) -> End:
    """Do the same in a process that is there for this alone: what it prints goes to the log of the trial."""
    path = trial.folder(trials) / LOG
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as log:
            # The descriptors, not Python's streams: libraries in C print too.
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    except OSError as error:
        return End("refused", str(unwritable(path, error)))
    faulthandler.enable()  # where it was when it crashed
    return attempt(trial, trials)


class Here:
    """One trial after the other in this process: for debugging, and for trials that take the whole machine."""

    def __init__(self, trials: Path) -> None:
        self.trials, self.at_once = trials, 1
        self._ended: list[tuple[Trial, End]] = []

    def has_room(self) -> bool:
        return not self._ended

    def start(self, trial: Trial) -> None:
        self._ended.append((trial, attempt(trial, self.trials)))

    def ended(self, timeout: float) -> list[tuple[Trial, End]]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Nothing runs: what stopped the trial is what has ended `start`."""


@dataclass(frozen=True, eq=False)
class _Worker:
    trial: Trial
    process: Any
    answer: Connection
    gpu: str | None


class Processes:
    """A process for each trial, as many at once as there are GPUs, or cores for their threads.

    No process runs two trials, and none is waited for by another: one that the kernel kills, out of memory, costs its
    own trial an attempt and no more.
    """

    def __init__(self, trials: Path, compute: ComputeConfig) -> None:
        self.trials = trials
        self._free: list[str | None] = [None] * max(1, cpu_count() // compute.threads)
        if compute.device == "cuda":
            self._free = [*visible_gpus()]
        self.at_once = len(self._free)
        self._running: list[_Worker] = []
        # A fork server that has imported torch starts a worker in no time, and no worker inherits a thread or a lock.
        # It does so while the runner prepares what trials share.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "iar_study.pipeline.attempt"])
        with _environment(WORKER_ENVIRONMENT):
            forkserver.ensure_running()

    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, trial: Trial) -> None:
        gpu = self._free.pop(0)
        answer, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(trial, self.trials, theirs, gpu))
        process.start()
        theirs.close()  # so that the pipe ends with the worker
        self._running.append(_Worker(trial, process, answer, gpu))

    def ended(self, timeout: float) -> list[tuple[Trial, End]]:
        ready = multiprocessing.connection.wait([worker.answer for worker in self._running], timeout)
        ended = []
        for worker in [worker for worker in self._running if worker.answer in ready]:
            end = _received(worker.answer)
            worker.process.join()
            ended.append((worker.trial, end or End("failed", _last_words(worker.process.exitcode))))
            self._forget(worker)
        return ended

    def stop(self) -> None:
        try:
            for worker in self._running:
                worker.process.terminate()  # it writes a checkpoint first
            until, leaving = time.monotonic() + GRACE, list(self._running)
            while leaving and time.monotonic() < until:
                # The end of its pipe tells that a worker has gone, even where a signal to all processes has ended the
                # fork server, which would know of its exit code.
                ready = multiprocessing.connection.wait(
                    [worker.answer for worker in leaving], max(until - time.monotonic(), 0)
                )
                leaving = [w for w in leaving if w.answer not in ready or _received(w.answer) is not None]
        finally:
            for worker in list(self._running):
                worker.process.kill()
                worker.process.join()
                self._forget(worker)

    def _forget(self, worker: _Worker) -> None:
        worker.answer.close()
        self._running.remove(worker)
        self._free.insert(0, worker.gpu)


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine that CUDA_VISIBLE_DEVICES leaves, by the names it knows them by."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        from torch import cuda

        return [str(index) for index in range(cuda.device_count())]
    return [name.strip() for name in named.split(",") if name.strip()]


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Set variables for as long as it is entered; those that are set already are the user's and stay."""
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _work(trial: Trial, trials: Path, answer: Connection, gpu: str | None) -> None:
    """What a worker does; Ctrl-C is left to the parent, and no orphan goes on when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    # Not `sys.exit`, which in a thread would end that thread alone.
    threading.Thread(target=lambda: (multiprocessing.connection.wait([sentinel]), os._exit(1)), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it when it is first used, here
    answer.send(attempt_in_worker(trial, trials))


def _received(answer: Connection) -> End | None:
    """Return what a worker answers; None where it has gone without a word."""
    try:
        return answer.recv()
    except (EOFError, OSError):
        return None


def _last_words(exitcode: int) -> str:
    """Return in words how a process ended that could not tell itself."""
    if exitcode >= 0:
        return f"its process ended with exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"its process was killed by {name}" + (", out of memory perhaps" if name == "SIGKILL" else "")


class OnRay:
    """Tasks on a Ray cluster that runs already; Ray chooses the machine of each, and waits for room.

    Every machine needs this package, and the workspace at the same path, on a file system that all share: that is where
    a trial's checkpoints and journal are. A trial whose machine dies is started on another and goes on from there.
    """

    def __init__(self, trials: Path, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("executor ray needs Ray: pip install 'iar-study[ray]'") from error
        self.ray, self.trials, self.at_once = ray, trials, 0
        self._running: dict[Any, Trial] = {}
        self._losses: Counter[str] = Counter()
        address = address or os.environ.get("RAY_ADDRESS") or "auto"
        if not ray.is_initialized():
            host, _, port = address.removeprefix("ray://").rpartition(":")
            try:
                if port.isdigit():  # Ray would knock for three minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
            except (OSError, ValueError, RuntimeError) as error:
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise InputError(f"no Ray cluster at {address} ({why}); start one with `ray start --head`") from error
        # A process of its own for each trial. Whether it is tried again is the runner's to say, not Ray's.
        self._attempt = ray.remote(max_calls=1, max_retries=0)(attempt_in_worker)

    def has_room(self) -> bool:
        return True

    def start(self, trial: Trial) -> None:
        compute = trial.config.compute
        on_gpu = compute.device == "cuda"
        task = self._attempt.options(
            name=f"{trial.arm}, seed {trial.seed}",
            num_cpus=compute.threads,
            num_gpus=1 if on_gpu else 0,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
        )
        self._running[task.remote(trial, self.trials)] = trial

    def ended(self, timeout: float) -> list[tuple[Trial, End]]:
        if not self._running:
            time.sleep(timeout)
            return []
        ready, _ = self.ray.wait(list(self._running), timeout=timeout)
        return [(trial, self._end(task, trial)) for task in ready if (trial := self._running.pop(task))]

    def _end(self, task: Any, trial: Trial) -> End:
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:  # a trial's own error is in what `attempt` returns
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if isinstance(error, self.ray.exceptions.NodeDiedError):
                self._losses[trial.hash] += 1
                return End("later" if self._losses[trial.hash] <= LOSSES else "failed", reason)
            return End("failed", reason)

    def stop(self) -> None:
        for task in self._running:
            self.ray.cancel(task)  # a KeyboardInterrupt there: it writes a checkpoint first
        if self._running:
            self.ray.wait(list(self._running), num_returns=len(self._running), timeout=GRACE)
        for task in self._running:
            self.ray.cancel(task, force=True)
        self._running.clear()
