"""Run a study: prepare what its trials share, then run the trials that are not finished, as many at once as fit."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median_low
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from iar_study.config import TrialConfig, flatten
from iar_study.data.images import absent
from iar_study.errors import InputError
from iar_study.pipeline.carried_over import carry_over
from iar_study.pipeline.stages import NotMade, check, prepare, stages_of
from iar_study.pipeline.trial import Trial, outdated, trial_of
from iar_study.pipeline.workspace import Workspace, ending, is_finished
from iar_study.running.display import Display
from iar_study.running.estimate import from_first_steps, training_rate
from iar_study.running.executors import LOG, Executor, make_executor
from iar_study.running.needs import plural, span
from iar_study.storage import read_json, unwritable, write_json
from iar_study.study.checks import asked
from iar_study.study.plans import record
from iar_study.study.study import Arm, Profile, Study
from iar_study.tracking.store import check_store, holds_finished, store_uri
from iar_study.training.journal import read_journal
from iar_study.training.processes import n_processes, process_rank

if TYPE_CHECKING:  # torch and MLflow take seconds to import: only where something is to be run or recorded
    from iar_study.tracking.tracker import Recorder

T = TypeVar("T")

POLL = 2.0
"""Seconds between two looks at the journals of the running trials."""

LATER = 5.0
"""Seconds until a trial that another runner is at work on is tried again."""

STOP_PATIENCE = 5.0
"""Seconds that a run that is stopped waits for MLflow to be told so; `iar-study sync` tells it the rest."""

ATTEMPTS = 2
"""How often a trial is tried that fails."""

SHOWN = 10
"""Lines of the log of a failed trial that the outcome shows."""


@dataclass(frozen=True)
class Outcome:
    """What `run_study` did."""

    trained: int
    found: int
    failed: dict[str, str]
    """Trial (arm, seed) -> the error that ended it, and below it the end of its log."""
    diverged: tuple[str, ...] = ()
    """Of those that were run or found, each that diverged (arm, seed, step)."""


def run_study(
    study: Study,
    profile: Profile,
    workspace: Workspace,
    display: Display,
    *,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    executor: str = "processes",
    address: str | None = None,
    seed_done: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run every trial of `study` at `profile` that is not finished, and record them in MLflow.

    Several may do so at once in one workspace: each trial is run by one of them. One that fails is tried once more.

    Parameters
    ----------
    seeds : default the profile's.
    arms : default all; the baseline is always among them.
    settings : dotted keys that change the profile's config.
    executor : "here", "processes" or "ray"; `address` is that of a Ray cluster. Under `torchrun`, its processes run
        one trial after the other, all together.
    seed_done : called when all arms of a seed have ended, and others have not: there is something to report.

    Raises
    ------
    InputError : bad settings or data. Trials that fail for another reason are reported in the outcome instead.
    """
    base, configs = asked(study, profile, arms, seeds, settings, n_processes())
    for data in {config.data for _, _, config in configs}:
        absent(data)  # a folder that is none is refused before a word
    display.say(_in_words(study, profile, configs))
    plan = record(study, workspace.experiments)
    write_manifest = partial(_write_manifest, study, profile, base, settings or {}, workspace, plan)
    together = n_processes() > 1
    trials = None if together else _all_finished(study, configs, workspace)
    if trials is not None:
        _tell_outdated(trials, workspace, display)
    if trials is not None and holds_finished(store_uri(workspace), write_manifest(trials)):
        return Outcome(0, len(trials), {})
    check_store(store_uri(workspace))
    if trials is not None:
        finished = {trial.hash for trial in trials}
    else:
        if together and executor == "ray":
            raise InputError("torchrun starts the processes itself; leave --executor ray out")
        # First, for it imports torch on the side.
        runs_them = make_executor("here" if together else executor, workspace.trials, base.compute, address)
        for _, _, config in configs:
            check(config)
        make = partial(_prepare, study, configs, workspace, display, write_manifest)
        trials, finished = in_first(base, make) if together else make()
        _tell_outdated(trials, workspace, display)
    # Two arms may be the same trial (n = 1 and lambda = 0, say); it is run once.
    pending = list({trial.hash: trial for trial in trials if trial.hash not in finished}.values())
    found = sum(trial.hash in finished for trial in trials)
    if process_rank():
        outcome = run_together(pending, found, workspace)  # the first process tells of it
        return replace(outcome, diverged=_diverged(trials, workspace))

    from iar_study.tracking.tracker import Recorder  # here: it brings MLflow

    recorder = Recorder(workspace, study, profile, base)
    _tell_ended(recorder, [trial for trial in trials if trial.hash in finished])
    outcome = Outcome(0, found, {})
    try:
        with Progress(pending, runs_them.at_once if pending else 0, workspace, recorder, display):
            if together:
                outcome = run_together(pending, found, workspace, recorder)
            elif pending:
                outcome = run_all(pending, found, runs_them, workspace, display, recorder.ended, seed_done)
    except BaseException:
        recorder.close(STOP_PATIENCE)
        raise
    # Of another arm that is the same trial.
    _tell_ended(recorder, [trial for trial in trials if trial not in pending and trial.hash not in finished])
    products = [Path(trials[0].shared.tokenizer), trials[0].shared.judging]
    problem = recorder.close(files=[path for path in products if path.parent == workspace.cache])
    write_manifest(trials, recorder)  # now with the ids of all runs
    if problem:
        display.say(f"MLflow lacks some of this ({problem}); nothing is lost: `iar-study sync` fills it in")
    return replace(outcome, diverged=_diverged(trials, workspace))


def _in_words(study: Study, profile: Profile, configs: Sequence[tuple[Arm, int, TrialConfig]]) -> str:
    arms, seeds = {arm.name for arm, _, _ in configs}, {seed for _, seed, _ in configs}
    return f"{study.name} at {profile.name}: {plural(len(arms), 'arm')} x {plural(len(seeds), 'seed')}"


def _tell_ended(recorder: Recorder, trials: Sequence[Trial]) -> None:
    for trial in trials:
        recorder.ended(trial)


def _tell_outdated(trials: Sequence[Trial], workspace: Workspace, display: Display) -> None:
    products = [workspace.cache / name for trial in trials for name in trial.shared.products]
    folders = [trial.folder(workspace.trials) for trial in trials]
    folders += [trial.training.folder(workspace.trials) for trial in trials if trial.training]
    if told := outdated(folders, products):
        display.say(told)


def _all_finished(
    study: Study, configs: Sequence[tuple[Arm, int, TrialConfig]], workspace: Workspace
) -> list[Trial] | None:
    """Return the trials where all that they share is made and every one has ended; else None. Nothing is made."""
    if workspace.again or any(absent(data) for data in {config.data for _, _, config in configs}):
        return None
    trials, frozen = [], replace(workspace, frozen=True)
    for arm, seed, config in configs:
        try:
            shared = stages_of(config, frozen, lambda *_: None).shared()
        except (NotMade, InputError):  # of what does not fit, the checks will say more
            return None
        trial = trial_of(arm.name, seed, config, shared, study.kind, frozen)
        # A report needs the products that tell no trials apart, too.
        made = all((workspace.cache / name).is_file() for name in shared.products)
        if not made or not is_finished(trial.folder(workspace.trials)):
            return None
        trials.append(trial)
    return trials


def _prepare(
    study: Study,
    configs: Sequence[tuple[Arm, int, TrialConfig]],
    workspace: Workspace,
    display: Display,
    write_manifest: Callable[[list[Trial]], object],
) -> tuple[list[Trial], set[str]]:
    """Make what trials share; return the trials, and the hashes of those that are finished."""
    with first_to_prepare(workspace, display):
        carry_over(workspace)
        trials = [
            trial_of(arm.name, seed, config, prepare(config, workspace, display.update), study.kind, workspace)
            for arm, seed, config in configs
        ]
        # While the lock still keeps `cache --prune` out, which leaves only what a manifest names.
        write_manifest(trials)
    return trials, {trial.hash for trial in trials if is_finished(trial.folder(workspace.trials))}


def in_first(base: TrialConfig, make: Callable[[], T]) -> T:
    """Return what `make()` gives in the first of the processes that `torchrun` started."""
    from iar_study.training.parallel import first_of, launch

    return first_of(launch(base), make)


@contextmanager
def first_to_prepare(workspace: Workspace, display: Display) -> Iterator[None]:
    """Let one runner at a time make what trials share; the others then find it."""
    lock = FileLock(workspace.cache / "lock")
    try:
        workspace.cache.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        display.say("another process prepares what trials share; waiting for it")
        lock.acquire()
    except OSError as error:
        raise unwritable(workspace.cache, error) from error
    try:
        yield
    finally:
        lock.release()


def _write_manifest(
    study: Study,
    profile: Profile,
    base: TrialConfig,
    settings: Mapping[str, Any],
    workspace: Workspace,
    plan: Mapping[str, Any] | None,
    trials: Sequence[Trial],
    recorder: Recorder | None = None,
) -> list[str]:
    """Remember what was asked for: the report of a study shows its last run. Return the ids of the trials' runs."""
    path, first = workspace.studies / f"{study.name}.json", trials[0].shared
    # Until the recorder has found a run in the store, it is known from the last time.
    before = read_json(path) if path.exists() else {"trials": []}
    known = {(trial["arm"], trial["hash"]): trial["run_id"] for trial in before["trials"]}
    manifest: dict[str, Any] = {
        "study": study.name,
        "question": study.question,
        "claim": study.claim,
        "baseline": study.baseline,
        "kind": study.kind,
        "factor": study.factor,
        "page": (recorder.page if recorder else "") or before.get("page", ""),
        "arms": [
            {"name": arm.name, "description": arm.description, "beside": study.beside(arm), "series": arm.series}
            for arm in study.arms
        ],
        "profile": profile.name,
        "plan": _since_when(plan, before.get("plan")),
        "config": flatten(base),
        "settings": {key: str(value) for key, value in settings.items()},
        "trials": [
            {
                "arm": trial.arm,
                "seed": trial.seed,
                "hash": trial.hash,
                "run_id": (recorder.run_id(trial) if recorder else "") or known.get((trial.arm, trial.hash), ""),
            }
            for trial in trials
        ],
        # Whose held-out images a report shows.
        "reference": first.reference.name if first.reference and first.evaluators else None,
        # What `iar-study cache --prune` keeps: files of the cache, and trainings.
        "products": sorted({name for trial in trials for name in trial.shared.products}),
        "trainings": sorted({trial.training.hash for trial in trials if trial.training}),
    }
    asked_for = {trial["hash"] for trial in manifest["trials"]}
    if measured := [each for each in before.get("measured", []) if each["trial"] in asked_for]:
        manifest["measured"] = measured
        for kept in ("products", "trainings"):  # of what was measured, too
            manifest[kept] = sorted({*manifest[kept], *before[kept]})
    if manifest != before:
        write_json(path, manifest)
    return [trial["run_id"] for trial in manifest["trials"]]


def _since_when(plan: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the record of a plan, the earlier one where it is of the same plan: history may be written anew."""
    same = plan and before and before["commit"] and before["digest"] == plan["digest"]
    return before if same else plan


def run_all(
    trials: Sequence[Trial],
    found: int,
    executor: Executor,
    workspace: Workspace,
    display: Display,
    ended: Callable[[Trial], None] = lambda _: None,
    seed_done: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run trials to their ends; whatever stops this stops the executor, and all can be resumed."""
    left = Counter(trial.seed for trial in trials)
    waiting, later = deque(trials), deque[tuple[float, Trial]]()
    running, trained = 0, 0
    attempts: Counter[str] = Counter()
    logged: dict[str, int] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or later or running:
            while later and later[0][0] <= time.monotonic():
                waiting.append(later.popleft()[1])
            while waiting and executor.has_room():
                trial = waiting.popleft()
                log = trial.folder(workspace.trials) / LOG
                logged[trial.hash] = log.stat().st_size if log.exists() else 0
                executor.start(trial)
                running += 1
            for trial, end in executor.ended(POLL):
                running -= 1
                if end.kind == "refused":
                    raise InputError(end.reason)
                if end.kind == "later":
                    later.append((time.monotonic() + LATER, trial))
                    continue
                attempts[trial.hash] += 1
                if end.kind == "failed" and not is_finished(trial.folder(workspace.trials)):
                    if attempts[trial.hash] < ATTEMPTS:
                        display.say(f"{_name(trial)} failed ({end.reason}); it is tried once more")
                        waiting.appendleft(trial)
                        continue
                    failed[_name(trial)] = end.reason + _log_end(trial, workspace, logged[trial.hash])
                elif end.kind == "found":
                    found += 1
                else:
                    trained += 1
                ended(trial)
                left[trial.seed] -= 1
                if not left[trial.seed] and left.total():
                    seed_done()
    except BaseException:
        executor.stop()
        raise
    return Outcome(trained, found, failed)


def run_together(
    trials: Sequence[Trial], found: int, workspace: Workspace, recorder: Recorder | None = None
) -> Outcome:
    """Run trials one after the other, each on all the processes that `torchrun` started, of which this is one.

    An error ends all processes, as `torchrun` expects; the same command goes on from the checkpoints.
    """
    from iar_study.pipeline.attempt import run_trial

    for trial in trials:
        run_trial(trial, workspace.trials)
        if recorder:
            recorder.ended(trial)
    return Outcome(len(trials), found, {})


def _diverged(trials: Sequence[Trial], workspace: Workspace) -> tuple[str, ...]:
    """Return the trials that have diverged, with their steps; one that several arms have once."""
    distinct = {trial.hash: trial for trial in trials if ending(trial.folder(workspace.trials)) == "diverged"}
    steps = {key: read_json(trial.folder(workspace.trials) / "result.json")["step"] for key, trial in distinct.items()}
    return tuple(f"{_name(trial)} at step {steps[key]}" for key, trial in distinct.items())


def _name(trial: Trial) -> str:
    return f"{trial.arm}, seed {trial.seed}"


def _log_end(trial: Trial, workspace: Workspace, begun: int) -> str:
    """Return the last lines that the trial's log has got since it had `begun` bytes, each on a line of its own."""
    path = trial.folder(workspace.trials) / LOG
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").splitlines()
    return "".join(f"\n    {line}" for line in (f"{path}:", *lines[-SHOWN:])) if lines else ""


def _is_trained(trial: Trial, workspace: Workspace) -> bool:
    return trial.training is not None and is_finished(trial.training.folder(workspace.trials))


class Progress:
    """While entered, follows the journals of trials: shows how far they are and tells the recorder what has grown."""

    def __init__(
        self, trials: Sequence[Trial], at_once: int, workspace: Workspace, recorder: Recorder | None, display: Display
    ) -> None:
        self.trials, self.at_once, self.recorder, self.display = trials, at_once, recorder, display
        self.paths = {trial.hash: trial.folder(workspace.trials) / "journal.jsonl" for trial in trials}
        self.sizes = dict.fromkeys(self.paths, 0)
        self.steps = dict.fromkeys(self.paths, 0)
        self.rates: dict[str, float] = {}
        # Of what is trained already a trial only copies the points, which tell of another time.
        self.to_train = [trial for trial in trials if not _is_trained(trial, workspace)]
        self.estimated = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if self.trials:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self.trials:
            self._thread.join()

    def _follow(self) -> None:
        self._look()
        while not self._over.wait(POLL):
            self._look()
        self._look()

    def _look(self) -> None:
        news = []
        for trial in self.trials:
            path = self.paths[trial.hash]
            size = path.stat().st_size if path.exists() else 0
            if size == self.sizes[trial.hash]:
                continue
            self.sizes[trial.hash] = size
            if self.recorder:
                self.recorder.saw(trial)
            with suppress(InputError, OSError):  # a damaged journal: its trial says so
                journal = read_journal(path)
                self.steps[trial.hash] = journal[-1]["step"] if journal else 0
                if trial in self.to_train:
                    self._time(trial, journal)
                losses = [p["metrics"]["train/token_nll"] for p in journal if "train/token_nll" in p["metrics"]]
                told = f", token NLL {losses[-1]:.2f}" if losses else ""
                news.append(f"{trial.arm}/{trial.seed}: step {self.steps[trial.hash]}{told}")
        self._estimate()
        total = sum(trial.steps for trial in self.trials)
        if news or not any(self.steps.values()):
            what = {"near-codes": "replacing tokens", "sampling": "sampling"}.get(self.trials[0].kind, "training")
            self.display.update(what, sum(self.steps.values()), total, "; ".join(news))

    def _time(self, trial: Trial, journal: Sequence[Mapping[str, Any]]) -> None:
        """Keep how many operations a second the trial has done, once it is past its first point, which warms up."""
        speeds = [point["metrics"].get("speed/tokens_per_second") for point in journal[1:]]
        if trial.hash not in self.rates and (speed := next(filter(None, speeds), None)):
            self.rates[trial.hash] = training_rate(trial.config, speed)

    def _estimate(self) -> None:
        """Say once how long the trials take on this machine, when so many have begun as run side by side."""
        side_by_side = min(self.at_once, len(self.to_train))
        if self.estimated or not 0 < side_by_side <= len(self.rates):
            return
        self.estimated = True
        rate = median_low(self.rates.values())
        times = from_first_steps([trial.config for trial in self.to_train], rate, side_by_side)
        self.display.say(
            f"{plural(len(self.to_train), 'trial')}, {side_by_side} at once: about {span(*times)} in all, by their "
            f"first steps here; longer while other programs use the machine"
        )
