"""Study, Arm and Profile, and the registry: the files of `experiments/` that define them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from iar_study.config import TrialConfig, flatten, with_settings
from iar_study.errors import InputError, enumerated, nearest
from iar_study.evaluation.metrics import FIDELITY

Kind = Literal["training", "near-codes", "sampling"]
"""What a trial does: train a GPT; replace tokens by other codes and look at the pictures; or sample in the arm's way
from the GPT that is trained with the profile's evaluation."""

PLANS = "plans"
"""Folder of the registry for the studies that have a plan, each in a file of its name."""


@dataclass(frozen=True)
class Arm:
    """One setting of what a study varies."""

    name: str
    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of `TrialConfig`, put on top of the profile's."""
    scale: Mapping[str, float | tuple[float, str]] = field(default_factory=dict)
    """Dotted keys whose number is the profile's times this (a whole one rounded, and at least 1); with (factor, key),
    the number that the profile has for that other key, times this."""
    beside: str | None = None
    """Name of the arm that this one is compared with, where it is not the study's baseline; a baseline of its own
    (that of another size, say) names itself."""
    series: str = ""
    """Name of the line that joins this arm with others in the figure over the study's `factor`."""
    seeded: Mapping[str, int] = field(default_factory=dict)
    """Dotted keys that the seed of a trial sets for this arm -> what is added to it."""


@dataclass(frozen=True)
class Plan:
    """What a study is to answer and when it is looked at, written before its data (see `sequential`).

    Pairs are arm and baseline with the same seed, from `first_seed` on. What the seeds share is drawn anew, too: pair k
    has draw k modulo `draws` of tokenizer, classifier and clusterings, and its own training. No two trainings share a
    seed, so that pairs have nothing in common but their draw.
    """

    profile: str
    """Name of the profile that it is for."""
    arm: str
    """The arm that is compared with its baseline."""
    metric: str
    """A key or family in which a ratio is compared, such as "fd"."""
    looks: tuple[int, ...]
    """Numbers of pairs at which it is looked at, ascending; the last is the most that are trained."""
    margin: float = 0.03
    """The smallest change of the ratio that matters."""
    first_seed: int = 1000
    """Far from the seeds of what was tried before the plan."""
    draws: int = 1
    drawn: tuple[str, ...] = ("tokenizer.seed", "classifier.seed", "clustering.seed")
    """Dotted keys that a draw sets."""

    def __post_init__(self) -> None:
        """Refuse looks that cannot be taken."""
        ascending = all(one < other for one, other in zip(self.looks, self.looks[1:], strict=False))
        if not self.looks or not ascending or self.looks[0] < max(2, self.draws):
            raise InputError(
                f"a plan looks at {self.looks} pairs; give ascending numbers, the first at least 2 and {self.draws}, "
                f"the number of draws"
            )
        if not 0 < self.margin < 1 or self.draws < 1:
            raise InputError(f"a plan has margin {self.margin} and {self.draws} draws; give 0 < margin < 1, draws >= 1")
        family = FIDELITY.get(self.metric.partition("/")[0])
        if family is None or not family.relative:
            raise InputError(f"a plan is for a metric that is compared by ratios, such as fd; {self.metric!r} is not")

    def seeds(self, pairs: int) -> tuple[int, ...]:
        """Return the seeds of the first so many pairs."""
        return tuple(range(self.first_seed, self.first_seed + pairs))

    def text(self) -> str:
        """Return what is asked, how much of it, and when it is looked at."""
        drawn = f"; {self.draws} draws of tokenizer, classifier and clusterings" if self.draws > 1 else ""
        return (
            f"{self.arm} beside its baseline in {self.metric} at {self.profile}, margin {self.margin:.0%}; looks at "
            f"{enumerated(self.looks)} pairs, seeds from {self.first_seed}{drawn}"
        )

    def draw(self, seed: int) -> int:
        """Return the draw that a seed's pair has; it stands for the seed of what is drawn."""
        return self.first_seed + (seed - self.first_seed) % self.draws


@dataclass(frozen=True)
class Study:
    """A question with arms; all arms share seeds, data order and initial weights."""

    name: str
    question: str
    claim: str
    """The sentence of the paper that the study tests."""
    baseline: str
    """Name of the arm that the others are compared with, unless they name another."""
    arms: tuple[Arm, ...]
    kind: Kind = "training"
    seeded: tuple[str, ...] = ("seed",)
    """Dotted keys that the seed of a trial sets: more than its own where what is shared should vary too."""
    factor: str = ""
    """Dotted key of the number that the arms of a series differ in: the axis of a figure."""
    plan: Plan | None = None
    """Of a study of `experiments/plans`."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(f"study {self.name!r} names an arm twice: {', '.join(names)}")
        self.arm(self.baseline)
        if self.plan and self.beside(self.arm(self.plan.arm)) == self.plan.arm:
            raise InputError(f"study {self.name!r} plans to compare {self.plan.arm!r} with itself; name another arm")
        drawn_keys = {*self.plan.drawn, "seed"} if self.plan else set()
        for arm in self.arms:
            if drawn := {*arm.settings, *arm.scale} & drawn_keys:
                raise InputError(f"study {self.name!r}: arm {arm.name!r} sets {min(drawn)}, which the plan draws")
        for arm in self.arms:
            beside = self.beside(arm)
            if self.beside(self.arm(beside)) != beside:
                raise InputError(
                    f"study {self.name!r}: arm {arm.name!r} is compared with {beside!r}, which is no baseline: it is "
                    f"compared with {self.beside(self.arm(beside))!r} itself"
                )

    def beside(self, arm: Arm) -> str:
        """Return the name of the arm that `arm` is compared with: its own where it is a baseline."""
        return arm.beside or self.baseline

    def arm(self, name: str) -> Arm:
        """Return the arm called `name`; raise `InputError` that names the nearest one otherwise."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        hint = nearest(name, [arm.name for arm in self.arms])
        raise InputError(f"study {self.name!r} has no arm {name!r}; {hint}")

    def seeds(self, profile: Profile) -> tuple[int, ...]:
        """Return the seeds when none are asked for: the profile's, or those of a plan's first look."""
        return self.plan.seeds(self.plan.looks[0]) if self.plan else profile.seeds


@dataclass(frozen=True)
class Profile:
    """How big and how long: the config that a study's arms are put on, and the seeds when none are asked for."""

    name: str
    description: str
    config: TrialConfig
    seeds: tuple[int, ...]


def load_studies(experiments: Path) -> dict[str, Study]:
    """Return every study of the folder by name: each file but `profiles.py` and `claims.py` defines one, `study`.

    Those with a plan, which stand in `plans`, come last.
    """
    studies: dict[str, Study] = {}
    for path in [*sorted(experiments.glob("*.py")), *sorted((experiments / PLANS).glob("*.py"))]:
        if path.name.startswith("_") or path.name in ("profiles.py", "claims.py"):
            continue
        study = getattr(run_file(path), "study", None)
        if not isinstance(study, Study):
            raise InputError(f"{path} defines no `study = Study(...)`")
        if bool(study.plan) != (path.parent.name == PLANS):
            raise InputError(f"{path}: a study with a plan stands in {PLANS}/, and one without does not")
        if study.plan and path.stem != study.name:
            raise InputError(f"{path} defines the plan of {study.name!r}; name the file {study.name}.py")
        if study.name in studies:
            raise InputError(f"{path} defines a second study called {study.name!r}")
        studies[study.name] = study
    return studies


def load_study(experiments: Path, name: str) -> Study:
    """Return one study of the folder; raise `InputError` that names the nearest one otherwise."""
    studies = load_studies(experiments)
    if name not in studies:
        raise InputError(f"unknown study {name!r}; {nearest(name, list(studies))}")
    return studies[name]


def load_profiles(experiments: Path) -> dict[str, Profile]:
    """Return the profiles that `experiments/profiles.py` defines, by name."""
    return {profile.name: profile for profile in run_file(experiments / "profiles.py").PROFILES}


def load_profile(experiments: Path, name: str) -> Profile:
    """Return one profile; raise `InputError` that names the nearest one otherwise."""
    profiles = load_profiles(experiments)
    if name not in profiles:
        raise InputError(f"unknown profile {name!r}; {nearest(name, list(profiles))}")
    return profiles[name]


def run_file(path: Path) -> Any:
    """Import a file of the registry by its path: the folder need not be on the import path.

    Raises `InputError` for a file that cannot be read or does not run.
    """
    module = ModuleType(f"experiments.{path.stem}")
    module.__file__ = str(path)
    try:
        # Not by an import, which would leave its byte code in the registry's folder.
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} does not run: {type(error).__name__}: {error}") from error
    return module


def arm_config(study: Study, arm: Arm, base: TrialConfig, seed: int) -> TrialConfig:
    """Return the resolved config of the trial (arm, seed)."""
    own = flatten(base)
    scale = {key: value if isinstance(value, tuple) else (value, key) for key, value in arm.scale.items()}
    of_keys = [*scale, *(of for _, of in scale.values())]
    numbers = [key for key, value in own.items() if type(value) in (int, float)]
    if unknown := next((key for key in of_keys if key not in numbers), None):
        raise InputError(f"arm {arm.name!r} scales {unknown!r}, which is no number; {nearest(unknown, numbers)}")
    scaled = {key: own[of] * factor for key, (factor, of) in scale.items()}
    scaled = {key: max(1, round(value)) if type(own[key]) is int else value for key, value in scaled.items()}
    seeds = dict.fromkeys(study.seeded, seed)
    seeds |= dict.fromkeys(study.plan.drawn, study.plan.draw(seed)) if study.plan else {}
    seeds |= {key: seed + more for key, more in arm.seeded.items()}
    return with_settings(base, {**scaled, **arm.settings, **seeds})


def trial_configs(
    study: Study, base: TrialConfig, arms: Sequence[str] | None, seeds: Sequence[int]
) -> list[tuple[Arm, int, TrialConfig]]:
    """Return (arm, seed, resolved config) of every trial, seed by seed; what arms are compared with is among them."""
    asked = [study.arm(name) for name in arms] if arms else list(study.arms)
    names = dict.fromkeys([study.baseline, *map(study.beside, asked)]) | dict.fromkeys(arm.name for arm in asked)
    chosen = [arm for arm in study.arms if arm.name in names]
    return [(arm, seed, arm_config(study, arm, base, seed)) for seed in dict.fromkeys(seeds) for arm in chosen]
