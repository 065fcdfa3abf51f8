"""Run a study: prepare what its trials share, then run the trials that are not finished, as many at once as fit."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from joblib import cpu_count

from iar_study.config import with_settings
from iar_study.errors import InputError
from iar_study.storage import write_json
from iar_study.study.display import Display
from iar_study.study.stages import check, prepare
from iar_study.study.study import Profile, Study, trial_configs
from iar_study.study.tracking import Tracker
from iar_study.study.trial import Trial, run_trial
from iar_study.study.workspace import Workspace, is_finished
from iar_study.training.journal import read_journal
from iar_study.training.parallel import check_parallel, first_of, launch, n_processes

POLL = 2.0
"""Seconds between two looks at the journals of the running trials."""

GRACE = 60.0
"""Seconds that a worker that is asked to stop has for its step and its checkpoint."""

WORKER_ENVIRONMENT = {
    # glibc hands a freed tensor's memory back and faults it in anew in every step, unless told to keep it
    # (measured: 2,900 page faults and 8 % of a step of `quick`).
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


@dataclass(frozen=True)
class Outcome:
    """What `run_study` did."""

    trained: int
    found: int
    failed: dict[str, str]
    """Trial (arm, seed) -> the error that ended it."""


def run_study(
    study: Study,
    profile: Profile,
    workspace: Workspace,
    display: Display,
    *,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run every trial of `study` at `profile` that is not finished, and record them in MLflow.

    seeds : default the profile's. arms : default all; the baseline is always among them. settings : dotted keys that
    change the profile's config.

    Raises
    ------
    InputError : bad settings or data. Trials that fail for another reason are reported in the outcome instead.
    """
    base = with_settings(profile.config, settings or {})
    # Every config is checked before the first stage runs.
    configs = trial_configs(study, base, arms, seeds or profile.seeds)
    for _, _, config in configs:
        check(config)
        check_parallel(config, n_processes())

    def prepare_all() -> list[Trial]:
        return [
            Trial(arm.name, seed, config, prepare(config, workspace, display.update), study.kind)
            for arm, seed, config in configs
        ]

    if n_processes() > 1:
        fabric = launch(base)
        trials = first_of(fabric, prepare_all)
        if not fabric.is_global_zero:
            return _follow(trials, workspace)
    else:
        trials = prepare_all()
    tracker = Tracker(workspace, study, profile, base)
    write_manifest = partial(_write_manifest, study, profile, trials, tracker, settings or {}, workspace)
    write_manifest()

    finished = [trial for trial in trials if is_finished(trial.folder(workspace.trials))]
    for trial in finished:
        if not tracker.is_complete(trial):
            tracker.finish(trial, trial.folder(workspace.trials))
    # Two arms may be the same trial (n = 1 and lambda = 0, say); it is run once.
    pending = list({trial.hash: trial for trial in trials if trial not in finished}.values())
    run_all = _run_together if n_processes() > 1 else _run_pool
    failed = run_all(pending, workspace, tracker, display)
    for trial in trials:
        if trial not in pending and trial not in finished:
            tracker.finish(trial, trial.folder(workspace.trials))
    write_manifest()  # now with the ids of all runs
    products = [trials[0].shared.tokenizer, trials[0].shared.judging]
    tracker.finish_study([path for path in products if path.parent == workspace.cache])
    if tracker.problem:
        display.say(f"MLflow lacks some of this ({tracker.problem}); nothing is lost: run again to fill it in")
    return Outcome(len(pending) - len(failed), len(finished), failed)


def _write_manifest(
    study: Study,
    profile: Profile,
    trials: Sequence[Trial],
    tracker: Tracker,
    settings: Mapping[str, Any],
    workspace: Workspace,
) -> None:
    """Remember what was asked for: the report of a study shows its last run."""
    manifest = {
        "study": study.name,
        "question": study.question,
        "claim": study.claim,
        "baseline": study.baseline,
        "kind": study.kind,
        "arms": [[arm.name, arm.description] for arm in study.arms],
        "profile": profile.name,
        "settings": {key: str(value) for key, value in settings.items()},
        "trials": [
            {"arm": trial.arm, "seed": trial.seed, "hash": trial.hash, "run_id": tracker.run_id(trial)}
            for trial in trials
        ],
        "reference": trials[0].shared.reference.name if trials[0].shared.reference else None,
    }
    write_json(workspace.studies / f"{study.name}.json", manifest)


def _run_pool(trials: Sequence[Trial], workspace: Workspace, tracker: Tracker, display: Display) -> dict[str, str]:
    """Run trials in a pool of processes; return the errors by trial. Ctrl-C stops the workers; all can be resumed."""
    if not trials:
        return {}
    compute = trials[0].config.compute
    slots = 1 if compute.device == "cuda" else max(1, cpu_count() // compute.threads)
    # A fork server that has imported torch starts a worker in no time, and no worker inherits a thread or a lock.
    os.environ.update(WORKER_ENVIRONMENT | os.environ)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["iar_study.study.trial"])
    failed: dict[str, str] = {}
    with ProcessPoolExecutor(min(slots, len(trials)), mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(_run_in_worker, trial, workspace.trials): trial for trial in trials}
        watch = _Watch(trials, workspace.trials, tracker, display)
        try:
            waiting: set[Future[None]] = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=POLL)
                watch.look()
                for future in done:
                    trial = futures[future]
                    error = future.exception()
                    tracker.finish(trial, trial.folder(workspace.trials))
                    if isinstance(error, InputError):
                        raise error
                    if error is not None:
                        failed[f"{trial.arm}, seed {trial.seed}"] = f"{type(error).__name__}: {error}"
        except BaseException:
            workers = list((pool._processes or {}).values())
            for process in workers:
                process.terminate()  # each writes a checkpoint first
            for process in workers:
                process.join(GRACE)
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _run_in_worker(trial: Trial, folder: Path) -> None:
    try:
        run_trial(trial, folder)
    except SystemExit as stopped:  # the pool would take it for the trial's error, and go on with the next one
        os._exit(int(stopped.code or 0))


def _run_together(trials: Sequence[Trial], workspace: Workspace, tracker: Tracker, display: Display) -> dict[str, str]:
    """Run trials one after the other, each on all the processes that `torchrun` started; this is the first of them.

    An error ends all processes, as `torchrun` expects; the same command goes on from the checkpoints.
    """
    watch = _Watch(trials, workspace.trials, tracker, display)
    ended, lock = threading.Event(), threading.Lock()

    def look_now_and_then() -> None:
        while not ended.wait(POLL):
            with lock:
                watch.look()

    watcher = threading.Thread(target=look_now_and_then, daemon=True)
    watcher.start()
    try:
        for trial in trials:
            run_trial(trial, workspace.trials)
            with lock:
                watch.look()
                tracker.finish(trial, trial.folder(workspace.trials))
    finally:
        ended.set()
        watcher.join()
    return {}


def _follow(trials: Sequence[Trial], workspace: Workspace) -> Outcome:
    """Run the trials that the first process runs, with it; it alone tells of them."""
    pending = {trial.hash: trial for trial in trials if not is_finished(trial.folder(workspace.trials))}
    for trial in pending.values():
        run_trial(trial, workspace.trials)
    return Outcome(len(pending), len(trials) - len(pending), {})


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone, so that no orphan writes into a trial's folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (multiprocessing.connection.wait([sentinel]), os._exit(1)), daemon=True).start()


class _Watch:
    """Follows the journals of running trials: shows their progress and passes new points on to MLflow."""

    def __init__(self, trials: Sequence[Trial], folder: Path, tracker: Tracker, display: Display) -> None:
        self.trials, self.folder, self.tracker, self.display = trials, folder, tracker, display
        self.steps = {trial.hash: 0 for trial in trials}
        self.sizes = {trial.hash: 0 for trial in trials}
        self.look()

    def look(self) -> None:
        news = []
        for trial in self.trials:
            path = trial.folder(self.folder) / "journal.jsonl"
            size = path.stat().st_size if path.exists() else 0
            if size == self.sizes[trial.hash]:
                continue
            self.sizes[trial.hash] = size
            if journal := read_journal(path):
                self.steps[trial.hash] = journal[-1]["step"]
                self.tracker.sync(trial, trial.folder(self.folder))
                losses = [p["metrics"]["train/token_nll"] for p in journal if "train/token_nll" in p["metrics"]]
                told = f", token NLL {losses[-1]:.2f}" if losses else ""
                news.append(f"{trial.arm}/{trial.seed}: step {journal[-1]['step']}{told}")
        total = sum(trial.steps for trial in self.trials)
        if news or not any(self.steps.values()):
            what = "replacing tokens" if self.trials and self.trials[0].kind == "near-codes" else "training"
            self.display.update(what, sum(self.steps.values()), total, "; ".join(news))
