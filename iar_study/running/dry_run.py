"""What a run would do here: which stages and trials are there, which are to be made. Nothing is made or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from iar_study.config import ClusteringConfig, TrialConfig, times_of
from iar_study.data.images import absent
from iar_study.pipeline.stages import NotMade, Shared, Stages, check, stages_of
from iar_study.pipeline.trial import Training, Trial, trial_of
from iar_study.pipeline.workspace import Workspace, ending, is_running
from iar_study.running.needs import same_trial
from iar_study.storage import read_json
from iar_study.study.checks import asked
from iar_study.study.study import Profile, Study
from iar_study.training.kept_weights import lacking
from iar_study.training.processes import n_processes

State = Literal["finished", "diverged", "running", "goes on", "trained", "new", "unknown"]

Known = dict[Any, str]
"""What tells a trial (its hash, or its config where that is not known yet) -> the "STUDY: ARM" that it was met as."""


@dataclass(frozen=True)
class FoundStage:
    """A product that trials share."""

    kind: str
    about: str
    """What it is made with, in words."""
    made: bool
    file: str | None
    """None while the name is not known, for it depends on the content of what is not made yet."""
    trials: int
    """How many of the study's trials need it; arms that are one trial count once."""


@dataclass(frozen=True)
class FoundTrial:
    """An arm with a seed, or the training of the GPT that it samples from."""

    name: str
    seed: int
    state: State
    step: int
    """Of the newest checkpoint, where it goes on."""
    hash: str | None
    same_as: str
    """The arm, or "STUDY: ARM", before it that is the same trial and is run in its place; "" where there is none."""
    also: str
    """The "STUDY: ARM" of another study, run here earlier, that has the same trial; "" where there is none."""


@dataclass(frozen=True)
class DryRun:
    """What `run_study` would do."""

    study: str
    profile: str
    stages: tuple[FoundStage, ...]
    trials: tuple[FoundTrial, ...]
    first: str
    """What comes first, before all stages and trials can be known; "" where they are."""


def look(
    study: Study,
    profile: Profile,
    workspace: Workspace,
    *,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    known: Known | None = None,
) -> DryRun:
    """Return what `runner.run_study` would do with the same study, profile, seeds, arms and settings.

    known : trials of the studies that are run before it; those of this one are added.

    Raises `InputError` as `run_study` does, but not for weights of a large extractor, which are not loaded.
    """
    known, frozen = {} if known is None else known, replace(workspace, frozen=True)
    others = _trials_run_here(workspace, study.name)
    base, configs = asked(study, profile, arms, seeds, settings, n_processes())
    needed: dict[Any, tuple[int, FoundStage, set[Any]]] = {}
    trials: list[FoundTrial] = []
    trained_here: set[Any] = set()
    first = ""
    for arm, seed, config in configs:
        missing = absent(config.data)
        if not missing:
            check(config, load=False)
        stages = stages_of(config, frozen, lambda *_: None)
        shared = NotMade("images") if missing else _shared(stages)
        trial = None
        if isinstance(shared, NotMade):
            first = first or missing or f"the {shared.kind} {'are' if shared.kind.endswith('s') else 'is'} to be made"
        else:
            trial = trial_of(arm.name, seed, config, shared, study.kind, frozen)

        identity = trial.hash if trial else (study.kind, same_trial(config))
        rows: list[tuple[str, Any, Trial | Training | None]] = [(arm.name, identity, trial)]
        if study.kind == "sampling":
            trained = ("training", same_trial(replace(config, evaluation=base.evaluation)))
            training = trial.training if trial else None
            rows.insert(0, (f"GPT of {arm.name}", training.hash if training else trained, training))
        for name, told, each in rows:
            same_as = known.setdefault(told, f"{study.name}: {name}")
            if name != arm.name and told in trained_here:
                continue  # the GPT that several arms sample from is told once
            trained_here.add(told)
            same_as = "" if same_as == f"{study.name}: {name}" else same_as.removeprefix(f"{study.name}: ")
            trials.append(_found(each, name, seed, workspace, same_as, others.get(told, "")))

        for order, (product, path, made) in enumerate(_look_for(stages, bool(missing))):
            file = path.name if path else None
            about = FoundStage(stages.products[product], _about(product, config), made, file, 0)
            key = path or (stages.products[product], _made_from(product, config))
            needed.setdefault(key, (order, about, set()))[2].add(identity)
    found = [
        replace(about, trials=len(users)) for _, about, users in sorted(needed.values(), key=lambda stage: stage[0])
    ]
    return DryRun(study.name, profile.name, tuple(found), tuple(trials), first)


def _trials_run_here(workspace: Workspace, but: str) -> dict[Any, str]:
    """Return the trials, by hash, that the last runs of other studies asked for -> "STUDY: ARM"."""
    found: dict[Any, str] = {}
    for path in sorted(workspace.studies.glob("*.json")):
        if path.stem != but:
            for trial in read_json(path)["trials"]:
                found.setdefault(trial["hash"], f"{path.stem}: {trial['arm']}")
    return found


def _shared(stages: Stages) -> Shared | NotMade:
    try:
        return stages.shared()
    except NotMade as missing:
        return missing


def _found(
    trial: Trial | Training | None, name: str, seed: int, workspace: Workspace, same_as: str, also: str
) -> FoundTrial:
    if trial is None:
        return FoundTrial(name, seed, "unknown", 0, None, same_as, also)
    folder = trial.folder(workspace.trials)
    trained = trial.training.folder(workspace.trials) if isinstance(trial, Trial) and trial.training else folder
    step = max((int(path.stem) for path in trained.glob("checkpoints/*.json")), default=0)
    # In this order: one that ends meanwhile is finished.
    running = is_running(folder)
    trained_already = isinstance(trial, Trial) and _is_trained(trial, trained)
    begun: State = "goes on" if step else "trained" if trained_already else "new"
    state: State = ending(folder) or ("running" if running else begun)
    return FoundTrial(name, seed, state, step if state == "goes on" else 0, trial.hash, same_as, also)


def _is_trained(trial: Trial, trained: Path) -> bool:
    """Whether all that is to be measured of a training is there; of samples, their tokens may be."""
    whole, config = trial.kind == "training", trial.config
    wanted = times_of(config.train.steps, config.train.kept if whole else 1)
    drawn = not whole and any(trained.glob(f"tokens-{config.train.steps:09d}-*"))
    return ending(trained) == "diverged" or drawn or (ending(trained) != "" and not lacking(trained, wanted))


def _look_for(stages: Stages, missing: bool) -> list[tuple[str, Path | None, bool]]:
    """Return each product, its path if that is known, and whether it is there; nothing is known if images miss."""
    found: list[tuple[str, Path | None, bool]] = []
    for name, kind in stages.products.items():
        try:
            found.append((name, None, False) if missing else (name, getattr(stages, name), True))
        except NotMade as error:
            found.append((name, error.path if error.kind == kind else None, False))
    return found


def _made_from(product: str, config: TrialConfig) -> tuple[Any, ...]:
    """Return what tells a product from others of its kind while its name is not known."""
    data, tokenizer, evaluation = config.data, config.tokenizer, config.evaluation
    parts: dict[str, tuple[Any, ...]] = {
        "evaluators": (data, config.classifier),
        "rearrangement": (data, tokenizer, same_trial(config).clustering),
        "judging": (data, tokenizer, ClusteringConfig("balanced", evaluation.clusters)),
        "reference": (
            data,
            tokenizer,
            config.classifier,
            evaluation.clusters,
            evaluation.extractor,
            evaluation.samples,
        ),
        "exactness": (data, tokenizer, evaluation.clusters),
    }
    return parts.get(product, (data, tokenizer))


def _about(product: str, config: TrialConfig) -> str:
    """Return what a product is made with, in words."""
    own, evaluation = config.clustering, config.evaluation
    judging = f"balanced, {evaluation.clusters}"
    seeds = {"tokenizer": config.tokenizer.seed, "evaluators": config.classifier.seed, "rearrangement": own.seed}
    texts = {
        "tokenizer": f"{config.tokenizer.codebook_size:,} codes, {config.tokenizer.steps:,} steps",
        "codes": config.data.name,
        "evaluators": f"five classifiers, {config.classifier.steps:,} steps",
        "rearrangement": "none" if own.strategy == "none" else f"{own.strategy}, {own.n_clusters}",
        "judging": judging,
        "reference": f"{evaluation.extractor}, {evaluation.samples:,} samples",
        "exactness": judging,
    }
    return texts[product] + (f", seed {seed}" if (seed := seeds.get(product)) else "")
