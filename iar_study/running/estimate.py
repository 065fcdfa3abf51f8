"""About how long the studies take here: from trials that were run here, or at an assumed speed, without torch or NumPy.

A trial's operations are counted from its shapes (`generators.cost`): training, evaluation on held-out images, sampling.
Trials of the same shapes that were run here tell how many of them a trial does in a second, all else that it does
included. What trials share (tokenizer, classifier, clusterings) is not counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import median_low
from typing import Any

from iar_study.config import TrialConfig, flatten, side_of
from iar_study.generators import cost
from iar_study.parts import built_in
from iar_study.pipeline.workspace import Workspace, config_of, read_record
from iar_study.running.needs import GPUS, same_trial
from iar_study.study.study import Profile, Study, trial_configs

PEAK = GPUS["H100"].peak_flops_per_second

ASSUMED = {
    # A core of a server with AVX-512 does 60 G in a trial of `quick`, evaluation and all; others do less.
    "cpu": ((60e9, 15e9), "15 to 60 GFLOP/s a trial"),
    "cuda": ((0.4 * PEAK, 0.2 * PEAK), "20 to 40% of an H100's peak"),
}
"""Device -> operations a second, at best and at worst, that are assumed where no trial was run here, and in words."""

STARTING = 3.0
"""Seconds that a trial takes besides, to begin and to end: seen at `smoke`, where there is little else."""

SLOWEST = 4
"""How many times longer than in training an operation takes in evaluation and sampling, at worst."""

LOOKED_AT = 40
"""Newest trials that are looked at: those tell enough of a machine's speed."""

SHAPES = ("model.", "compute.", "tokenizer.codebook_size", "tokenizer.patch", "data.")
"""How the settings begin that trials must share for one to tell the other's speed."""


@dataclass(frozen=True)
class Estimate:
    """How long a study, or several, would take if nothing of it were there."""

    trials: int
    """Arms with the same settings are one trial."""
    hours: tuple[float, float]
    """The least and the most, with so many trials side by side; 0 where no GPT is trained."""
    side_by_side: int
    measured: int
    """Trials here that it is derived from; 0: it is assumed."""
    assumed: str
    """The speed that is assumed for some or all of it, in words; "" where all is measured."""


@dataclass(frozen=True)
class _Part:
    """A trial to be run: what tells it from others, and its time."""

    key: Any
    seconds: tuple[float, float]
    measured: int
    assumed: str


def estimate(studies: Sequence[Study], profile: Profile, workspace: Workspace) -> tuple[list[Estimate], Estimate]:
    """Return an estimate for each study by itself, and one for all, in which equal trials of studies count once."""
    speeds = _speeds(workspace)
    parts = [_parts(study, profile, speeds) for study in studies]
    slots, seeds = _slots(profile.config), [len(set(study.seeds(profile))) for study in studies]
    each = [_sum(some, count, slots) for some, count in zip(parts, seeds, strict=True)]
    return each, _sum(chain(*parts), max(seeds, default=0), slots)


def _parts(study: Study, profile: Profile, speeds: dict[Any, list[float]]) -> list[_Part]:
    """Return the trials of the first seed; those of the others take as long."""
    base, parts = profile.config, []
    for _, _, config in trial_configs(study, base, None, profile.seeds[:1]):
        flops = sum(operations(config))
        if study.kind == "near-codes":
            parts.append(_Part((study.kind, same_trial(config)), (0.0, 0.0), 0, ""))
            continue
        if study.kind == "sampling":
            trained = replace(config, evaluation=base.evaluation)
            parts.append(_part(("training", same_trial(trained)), trained, operations(trained).training, speeds))
            flops = operations(config).sampling // config.sampled_times
        parts.append(_part((study.kind, same_trial(config)), config, flops, speeds))
    return parts


def _part(key: Any, config: TrialConfig, flops: int, speeds: dict[Any, list[float]]) -> _Part:
    measured = speeds.get(_shapes(flatten(config)), [])
    (best, worst), assumed = ASSUMED[config.compute.device]
    if measured:
        # Not the slowest: a trial that was interrupted for a while took as long.
        best, worst, assumed = max(measured), median_low(measured), ""
    return _Part(key, (STARTING + flops / best, STARTING + flops / worst), len(measured), assumed)


def _sum(parts: Iterable[_Part], seeds: int, slots: int) -> Estimate:
    distinct = {part.key: part for part in parts}.values()
    trials = seeds * len(distinct)
    side_by_side = max(1, min(slots, trials))
    least, most = (seeds * sum(part.seconds[end] for part in distinct) / 3600 / side_by_side for end in (0, 1))
    assumed = next((part.assumed for part in distinct if part.assumed), "")
    return Estimate(trials, (least, most), side_by_side, max((part.measured for part in distinct), default=0), assumed)


def _slots(config: TrialConfig) -> int:
    """Return how many trials run side by side, as in `executors`, whose joblib takes too long to import."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if config.compute.device == "cuda" else max(1, cores // config.compute.threads)


def operations(config: TrialConfig) -> cost.Flops:
    """Return the operations of a trial."""
    return cost.trial_flops(config, _tokens(config))


def from_first_steps(configs: Sequence[TrialConfig], rate: float, side_by_side: int) -> tuple[float, float]:
    """Return the least and the most hours that trials take, so many side by side, where training begins at `rate`.

    rate : operations of training that one trial does in a second, as its first steps tell. What comes later, evaluation
        and sampling, does as many at best, and a `SLOWEST` part of it at worst.
    """
    each = list(map(operations, configs))
    all_of_it = sum(map(sum, each))
    later = all_of_it - sum(flops.training for flops in each)
    slots = max(1, min(side_by_side, len(configs))) * 3600
    starting = STARTING * len(configs)
    return (starting + all_of_it / rate) / slots, (starting + (all_of_it + (SLOWEST - 1) * later) / rate) / slots


def training_rate(config: TrialConfig, tokens_per_second: float) -> float:
    """Return the operations a second of a trial that trains on so many tokens a second."""
    trained = config.train.steps * config.train.batch_size * _tokens(config)
    return operations(config).training / trained * tokens_per_second


def _tokens(config: TrialConfig) -> int:
    """Return the tokens of an image; the data are not looked at, but for those that only a part of one's own knows."""
    side = side_of(config.data)
    if side is None and not built_in("data", config.data.name):
        from iar_study.pipeline.stages import images_of

        side = images_of(config.data).size
    return max((side or 256) // config.tokenizer.patch, 1) ** 2


def _speeds(workspace: Workspace) -> dict[Any, list[float]]:
    """Return the operations a second of finished trainings here, by their shapes."""
    from iar_study.errors import InputError

    found: dict[Any, list[float]] = {}
    results = sorted(workspace.trials.glob("*/result.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in results[:LOOKED_AT]:
        try:
            record = read_record(path.parent)
            config, training = config_of(record), workspace.trainings / (record.get("training") or "")
            seconds = _seconds(path.parent / "journal.jsonl", training / "journal.jsonl", config.train.steps)
        except (InputError, OSError, ValueError, KeyError):
            continue  # of another version, or damaged; others tell as much
        if seconds:
            found.setdefault(_shapes(flatten(config)), []).append(sum(operations(config)) / seconds)
    return found


def _seconds(journal: Path, of_training: Path, steps: int) -> float:
    """Return how long a trial took by its journal; 0 where it does not tell, or measured what was trained before."""
    points = _points(journal)
    trained = any("speed/tokens_per_second" in point["metrics"] for point in points)  # not of near codes
    if len(points) < 2 or not trained or points[-1]["step"] != steps:
        return 0.0
    if of_training.is_file() and _points(of_training)[-1]["time_ms"] < points[0]["time_ms"]:
        return 0.0
    (first, began), (last, ended) = ((points[i]["step"], points[i]["time_ms"]) for i in (0, -1))
    # No point tells when the first steps began: they are taken to be as long as the others.
    return (ended - began) / 1000 * last / (last - first)


def _points(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def _shapes(settings: dict[str, Any]) -> tuple[Any, ...]:
    return tuple((key, value) for key, value in settings.items() if key.startswith(SHAPES))
