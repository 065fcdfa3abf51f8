"""Measure anew what a study has trained, by other evaluators or on more samples, without any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from iar_study.config import TrialConfig, is_encoded, with_settings
from iar_study.errors import InputError
from iar_study.pipeline.carried_over import carry_over, training_of
from iar_study.pipeline.stages import check, stages_of
from iar_study.pipeline.trial import TRAINED_ON, Trial, trial_of
from iar_study.pipeline.workspace import Workspace, config_of, ending, is_finished, read_manifest, read_record
from iar_study.running.display import Display
from iar_study.running.executors import make_executor
from iar_study.running.needs import plural
from iar_study.running.runner import Outcome, Progress, first_to_prepare, in_first, run_all, run_together
from iar_study.storage import write_json
from iar_study.study.checks import check_settings
from iar_study.training.kept_weights import weights_file
from iar_study.training.processes import n_processes

MAY_CHANGE = tuple(f"evaluation.{name}" for name in ("extractor", "metrics", "samples", "reference", "image_size"))
"""What a metric's name tells, or no trial has two of: by another guidance, say, it would have the same name and mean
something else."""


@dataclass(frozen=True)
class Asked:
    """A trial that a study has finished, and what is to be measured of its training."""

    trial: str
    """Its hash."""
    measured: Trial


def measure_study(
    name: str,
    workspace: Workspace,
    display: Display,
    settings: Mapping[str, Any],
    *,
    executor: str = "processes",
    address: str | None = None,
) -> Outcome:
    """Measure the end of every training of a study's last run in another way; its report then tells that, too.

    Samples that were drawn already are taken as they are; others are drawn with the weights. A measurement that is
    finished is found. What is measured is remembered in the study's manifest, beside the trial that it belongs to.

    Parameters
    ----------
    settings : those of `MAY_CHANGE`, put on top of each trial's own.

    Raises
    ------
    InputError : no such study was run here, another kind of setting, weights or inputs that are no longer here.
    """
    manifest = read_manifest(workspace, name)
    if manifest["kind"] == "near-codes":
        raise InputError(f"study {name!r} trains nothing, so there are no samples to measure")
    if wrong := sorted(set(settings) - set(MAY_CHANGE)):
        raise InputError(
            f"measure does not change {wrong[0]}, for no metric's name tells it; make it an arm of a study"
        )
    prepare = partial(_prepare, manifest, workspace, display, settings)
    together = n_processes() > 1
    trials, pending = in_first(_config(manifest, workspace), prepare) if together else prepare()
    found = trials - len(pending)
    display.say(f"{name}: {plural(trials, 'training')} to measure, {found} found measured")
    if together:
        return run_together(pending, found, workspace)
    if not pending:
        return Outcome(0, found, {})
    runs_them = make_executor(executor, workspace.trials, pending[0].config.compute, address)
    with Progress(pending, 0, workspace, None, display):
        return run_all(pending, found, runs_them, workspace, display)


def _finished(manifest: Mapping[str, Any], workspace: Workspace) -> list[Mapping[str, Any]]:
    """Return the trials of a manifest that have finished; raise `InputError` where none has."""
    endings = {trial["hash"]: ending(workspace.trials / trial["hash"]) for trial in manifest["trials"]}
    finished = [trial for trial in manifest["trials"] if endings[trial["hash"]] == "finished"]
    if not finished and all(endings.values()):
        raise InputError(f"every trial of study {manifest['study']!r} diverged; there is nothing to measure")
    if not finished:
        name = manifest["study"]
        raise InputError(f"no trial of study {name!r} is finished yet; `iar-study run {name}` goes on with them")
    return finished


def _config(manifest: Mapping[str, Any], workspace: Workspace) -> TrialConfig:
    """Return the config of some trial, which tells where and how all are computed."""
    return config_of(read_record(workspace.trials / _finished(manifest, workspace)[0]["hash"]))


def _prepare(
    manifest: Mapping[str, Any], workspace: Workspace, display: Display, settings: Mapping[str, Any]
) -> tuple[int, list[Trial]]:
    """Return how many trainings are to be measured, and those measurements that are not there yet."""
    finished = _finished(manifest, workspace)
    with first_to_prepare(workspace, display):
        carry_over(workspace)
        asked = [_asked(trial, manifest, workspace, display, settings) for trial in finished]
        distinct = list({each.measured.hash: each.measured for each in asked}.values())
        pending = [trial for trial in distinct if not is_finished(trial.folder(workspace.trials))]
        _check_there(pending, workspace)
        _remember(workspace, manifest["study"], asked)
    return len(distinct), pending


def _asked(
    trial: Mapping[str, Any],
    manifest: Mapping[str, Any],
    workspace: Workspace,
    display: Display,
    settings: Mapping[str, Any],
) -> Asked:
    record = read_record(workspace.trials / trial["hash"])
    config = with_settings(config_of(record), settings)
    check_settings(config, "sampling")
    if is_encoded(config.data) and config.evaluation.reference is None:
        raise InputError(f"{config.data.name} has no images to measure samples against; give --reference R")
    if config.evaluation.image_size and config.evaluation.reference is None:
        raise InputError("--image-size is for samples of codes:PATH, beside a --reference; leave it out")
    check(config)
    shared = stages_of(config, workspace, display.update).shared()
    measured = trial_of(trial["arm"], trial["seed"], config, shared, "sampling", workspace)
    folders = [
        trial["hash"],
        *(each["hash"] for each in manifest.get("measured", []) if each["trial"] == trial["hash"]),
    ]
    told = [read_record(path) for name in folders if is_finished(path := workspace.trials / name)]
    before = {each["inputs"]["reference"] for each in told if "reference" in each["inputs"]}
    if before - {shared.digests.get("reference")}:
        raise InputError(
            f"trial {trial['hash']} was measured against another reference, and a metric's name does not tell which; "
            f"make it an arm of a study"
        )
    differing = [part for part in TRAINED_ON if shared.digests[part] != record["inputs"][part]]
    if differing or measured.training is None:
        raise InputError(
            f"trial {trial['hash']} was trained on other {' and '.join(differing)} than there are now; import what it "
            f"was made from (`iar-study export --inputs` where it was run), or run its study again"
        )
    # Maybe not the name that it would have now: that it was made under.
    training = replace(measured.training, name=training_of(record))
    return Asked(trial["hash"], replace(measured, training=training, name=""))


def _remember(workspace: Workspace, name: str, asked: list[Asked]) -> None:
    """Note in the manifest what is measured of which trial, beside what was before."""
    manifest = read_manifest(workspace, name)
    new = [
        {"arm": each.measured.arm, "seed": each.measured.seed, "trial": each.trial, "hash": each.measured.hash}
        for each in asked
    ]
    known = {(each["trial"], each["hash"]): each for each in [*manifest.get("measured", []), *new]}
    products = {product for each in asked for product in each.measured.shared.products}
    trainings = {each.measured.training.hash for each in asked if each.measured.training}
    # What was begun, and could not be measured, is begun anew only if it is asked for again.
    done = [each for each in known.values() if each in new or is_finished(workspace.trials / each["hash"])]
    manifest["measured"] = done
    manifest["products"] = sorted({*manifest["products"], *products})
    manifest["trainings"] = sorted({*manifest.get("trainings", ()), *trainings})
    write_json(workspace.studies / f"{name}.json", manifest)


def _check_there(trials: list[Trial], workspace: Workspace) -> None:
    """Raise `InputError` for trials of whose trainings neither enough samples nor the weights are here."""
    if not trials:
        return
    from iar_study.pipeline.drawing import enough_kept  # here: it brings torch

    missing = []
    for trial in trials:
        assert trial.training is not None
        trained = trial.training.folder(workspace.trials)
        if not enough_kept(trained, trial.config, trial.steps) and not weights_file(trained, trial.steps).exists():
            missing.append(f"{trial.arm}, seed {trial.seed}")
    if missing:
        others = " and others" * (len(missing) > 1)
        raise InputError(
            f"of {plural(len(missing), 'training')} neither the weights nor {trials[0].config.evaluation.samples:,} "
            f"samples are here ({missing[0]}{others}): ask for fewer samples, or train here: `iar-study run ... --set "
            f"evaluation.samples={trials[0].config.evaluation.samples}`"
        )
