"""What can be said of settings before anything starts, without data or torch: whether they fit, and what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iar_study import parts
from iar_study.config import (
    TrialConfig,
    check_loss,
    check_parallel,
    check_patches,
    check_shape,
    flatten,
    is_encoded,
    parts_of,
    side_of,
    with_settings,
)
from iar_study.errors import InputError
from iar_study.study.study import Arm, Kind, Profile, Study, trial_configs

OF_CLUSTERS = (
    *(f"clustering.{name}" for name in ("n_clusters", "seed", "within", "between")),
    *(f"loss.{name}" for name in ("cluster_weight", "schedule", "first_weight")),
)
OF_THE_LOSS = tuple(f"loss.{name}" for name in ("token_weight", "smoothing", "coarse_weight", "coarse_clusters"))
OF_A_TRAINED_TOKENIZER = tuple(
    f"tokenizer.{name}" for name in ("channels", "steps", "batch_size", "lr", "commitment", "seed")
)
OF_IMAGES = ("classifier.",)
OF_SAMPLES = ("evaluation.extractor", "evaluation.metrics", "evaluation.image_size")
OF_A_GPT = (
    *(f"evaluation.{name}" for name in ("sampled_times", "guidance", "temperature", "noise", "classes")),
    *("evaluation.reference", "evaluation.image_size"),
    *("model.", "loss.", "train.", "parallel.", "compute.precision", "compute.compile"),
)
"""How the keys begin of what is read only where there are clusters, where the loss is `cluster`, where a tokenizer is
trained, where there are images, where samples are measured, where there is a GPT."""


def check_executor(name: str, address: str | None = None) -> None:
    """Raise `InputError` unless there is such an executor, and `address`, of a Ray cluster, is given to Ray's alone."""
    if address is not None and name != "ray":
        raise InputError(f"an address is for executor ray, not for {name}")
    parts.check("executor", name)


def asked(
    study: Study,
    profile: Profile,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    settings: Mapping[str, Any] | None,
    processes: int = 1,
) -> tuple[TrialConfig, list[tuple[Arm, int, TrialConfig]]]:
    """Return the config that all arms begin with, and (arm, seed, resolved config) of every trial that is asked for.

    processes : that share a trial.

    Raises
    ------
    InputError : an unknown arm or setting, or settings that are known not to fit each other.
    """
    base = with_settings(profile.config, settings or {})
    configs = trial_configs(study, base, arms, seeds or study.seeds(profile))
    for _, _, config in configs:
        check_settings(config, study.kind, processes)
    return base, configs


def check_settings(config: TrialConfig, kind: Kind = "training", processes: int = 1) -> None:
    """Raise `InputError` for settings of a trial that do not fit each other, or no data."""
    if config.evaluation.extractor == "classifier":
        raise InputError("evaluation.extractor = classifier is no more: set, the default, has five classifiers")
    for of_kind, name in parts_of(config):
        parts.check(of_kind, name)
    _check_data(config, kind)
    size, own = config.tokenizer.codebook_size, config.clustering
    wanted = {"evaluation.clusters": config.evaluation.clusters}
    if parts.has_trait("clustering", own.strategy, "equal sizes"):
        wanted["clustering.n_clusters"] = own.n_clusters
    for key, n_clusters in wanted.items():
        if size % n_clusters:
            raise InputError(
                f"equal clusters: {key} = {n_clusters} does not divide the {size} codes of tokenizer.codebook_size"
            )
    if own.strategy != "none" and own.n_clusters > size:
        raise InputError(f"clustering.n_clusters = {own.n_clusters} exceeds the {size} codes")
    check_shape(config.model)
    if kind == "training" and config.train.kept % config.sampled_times:
        raise InputError(
            f"evaluation.sampled_times = {config.evaluation.sampled_times} does not divide train.kept = "
            f"{config.train.kept}: samples are drawn where weights are kept"
        )
    if kind != "near-codes":
        check_loss(config.loss, 1 if own.strategy == "none" else own.n_clusters, size)
        check_parallel(config, processes)


def _check_reference(config: TrialConfig) -> None:
    """Raise `InputError` for a reference that has nothing to be a reference of, or nobody who looks at it."""
    if config.evaluation.reference is None:
        return
    if not is_encoded(config.data):
        raise InputError(
            f"evaluation.reference is for codes:PATH; samples of {config.data.name} are measured against its own "
            f"held-out images"
        )
    if config.evaluation.extractor == "set":
        raise InputError(
            "evaluators are trained on images, and codes:PATH has none: measure against evaluation.reference with "
            "evaluation.extractor=inception, or another one"
        )


def _check_data(config: TrialConfig, kind: Kind) -> None:
    _check_reference(config)
    name, side = config.data.name, side_of(config.data)
    if kind == "near-codes" and is_encoded(config.data):
        raise InputError(f"{name} holds no images; a study of near codes needs a data set of images")
    if kind == "near-codes" and config.evaluation.images < 2:
        raise InputError("evaluation.images = 1 is too few for a study of near codes; take 2 or more")
    if not is_encoded(config.data) and side is not None:
        check_patches(side, config.tokenizer.patch)


def check_effects(
    studies: Sequence[Study],
    profile: Profile,
    arms: Sequence[str] | None,
    settings: Mapping[str, Any],
    processes: int = 1,
) -> None:
    """Raise `InputError` for a setting that changes nothing in any of the studies, and say what to use in its place.

    One that asks for what the profile has already is fine.
    """
    for key, value in settings.items():
        reasons = [_without_effect(study, profile, arms, settings, key, processes) for study in studies]
        if all(reasons):
            of = f"study {studies[0].name}" if len(studies) == 1 else "any study"
            raise InputError(f"{key}={value} changes nothing in {of}: {reasons[0]}")


def _without_effect(
    study: Study, profile: Profile, arms: Sequence[str] | None, settings: Mapping[str, Any], key: str, processes: int
) -> str:
    """Say why a setting changes nothing in a study; "" where it does, or asks for what is there already."""
    if key in study.seeded:
        return "use --seeds, which sets it"
    alone = flatten(with_settings(profile.config, {key: settings[key]}))
    keys = [name for name in alone if name == key or name.startswith(f"{key}.")]
    others = {name: value for name, value in settings.items() if name != key}
    base, without = with_settings(profile.config, settings), with_settings(profile.config, others)
    if base == without:
        kept = all(alone[name] == flatten(base)[name] for name in keys)
        return "" if kept else "another of the settings sets it, too; give one of them"
    trials, beside = ([each[2] for each in trial_configs(study, of, arms, profile.seeds[:1])] for of in (base, without))
    unread = [_unread(config, study.kind, processes) for config in trials]
    for config, ignored, other in zip(trials, unread, beside, strict=True):
        if _read(config, ignored) != _read(other, _unread(other, study.kind, processes)):
            return ""
    # Of the trial that reads the most, the reason says what is nearest.
    least = min(unread, key=len)
    reason = next((why for begin, why in least.items() if keys[0].startswith(begin)), "")
    return reason or "every arm that reads it sets it itself; leave it out, or change the arms"


def _read(config: TrialConfig, unread: Mapping[str, str]) -> dict[str, Any]:
    return {key: value for key, value in flatten(config).items() if not key.startswith(tuple(unread))}


def _unread(config: TrialConfig, kind: Kind, processes: int) -> dict[str, str]:
    """Return how the keys begin of what a trial does not read -> what to do about it."""
    loss, strategy = config.loss, config.clustering.strategy
    found: dict[str, str] = {}
    if loss.name != "cluster":
        found |= dict.fromkeys(OF_THE_LOSS, f"it is of the loss `cluster`; the settings of {loss.name} follow its name")
    if processes == 1:
        found["parallel.strategy"] = "one process trains alone; torchrun starts several"
    if loss.schedule == "constant":
        found["loss.first_weight"] = "set loss.schedule, too"
    if not loss.smoothing:
        found["loss.smoothing_over"] = "set loss.smoothing, too"
    if not loss.coarse_weight:
        found["loss.coarse_clusters"] = "set loss.coarse_weight, too"
    if strategy != "none" and not parts.has_trait("clustering", strategy, "draws"):
        found["clustering.seed"] = f"nothing is drawn where clustering.strategy = {strategy}; leave it out"
    if strategy == "none":
        found |= dict.fromkeys(OF_CLUSTERS, "set clustering.strategy, too")
    if config.tokenizer.checkpoint is not None:
        found |= dict.fromkeys(OF_A_TRAINED_TOKENIZER, "the tokenizer is given, and not trained here; leave it out")
    if is_encoded(config.data):
        found |= dict.fromkeys(OF_IMAGES, "codes:PATH comes with its tokenizer and without images; leave it out")
        if config.evaluation.reference is None:
            found |= dict.fromkeys(
                OF_SAMPLES, "codes:PATH comes without images to compare with: set evaluation.reference"
            )
    else:
        found["evaluation.image_size"] = "it is for codes:PATH with evaluation.reference; leave it out"
    if kind == "near-codes":
        found |= dict.fromkeys(OF_A_GPT, "a study of near codes trains no GPT and draws no samples; leave it out")
    return found
