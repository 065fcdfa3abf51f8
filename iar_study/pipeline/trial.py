"""One trial: an arm with a seed, what it measures of which training, and what tells both from others.

A training is named by what can change its weights; what is measured of it is named by the training and by how it is
measured. So other samples, guidance or evaluators need no new training. `attempt` runs both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from iar_study.config import TrialConfig, measuring_identity, part_identity, parts_of, training_identity
from iar_study.errors import InputError
from iar_study.parts import built_in, changed, sources, versions
from iar_study.pipeline.stages import RECIPE, Shared
from iar_study.pipeline.workspace import Workspace
from iar_study.storage import digest, load_metadata, read_json
from iar_study.study.study import Kind

RECORDS = ("trial.json", "training.json")
"""What tells in its folder how a trial or a training was made."""

HOW = ("guidance", "temperature", "noise", "classes")
"""The settings of `evaluation` that tell how samples are drawn."""

TRAINED_ON = ("codes", "rearrangement")
"""Of a trial's inputs, those that its training works on."""


@dataclass(frozen=True)
class Training:
    """What makes weights: settings, and the digests of the codes and clusters that it works on."""

    config: TrialConfig
    inputs: Mapping[str, str]
    name: str = ""
    """Its hash as it was when the run began, or the name that it was made again under."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """Maker -> digest of its source, when the run began."""

    @property
    def makers(self) -> list[str]:
        """Who makes it, beside what it is made from."""
        loss = self.config.loss
        varied = ["smoothing"] if loss.smoothing or loss.schedule != "constant" else []
        return ["training", *_own_parts(self.config, "generator"), f"loss {loss.name}", *varied]

    @property
    def hash(self) -> str:
        """Identity: what can change its weights, and its makers' versions."""
        return self.name or self.plain

    @property
    def plain(self) -> str:
        """Its name, if it was never made again."""
        made_from = [self.inputs[name] for name in TRAINED_ON]
        return digest(RECIPE, "training", training_identity(self.config), made_from, *versions(self.makers))[:16]

    def folder(self, trials: Path) -> Path:
        return trials.with_name("trainings") / self.hash


@dataclass(frozen=True)
class Trial:
    """What is run, resumed and retried: a resolved config with the content it works on."""

    arm: str
    seed: int
    config: TrialConfig
    shared: Shared
    kind: Kind = "training"
    training: Training | None = None
    """Whose weights it measures; None of near codes."""
    name: str = ""
    """As that of a training."""
    made_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def makers(self) -> list[str]:
        """Who measures it."""
        metrics = ["samples' metrics", *_own_parts(self.config, "tokenizer", "extractor", "metric")]
        if self.training is None:
            return ["near codes", *metrics]
        return [*(["predictions"] if self.kind == "training" else []), "sampling", *metrics]

    @property
    def hash(self) -> str:
        """Identity: config, content of the inputs, makers' versions; names of data sets and arms do not count."""
        return self.name or self.plain

    @property
    def plain(self) -> str:
        """Its name, if it was never made again."""
        made_by, digests = versions(self.makers), self.shared.digests
        if self.training is None:
            config = self.config.evaluation
            extractor = part_identity("evaluation.extractor", config.extractor)
            return digest(RECIPE, self.kind, self.seed, config.images, extractor, digests, *made_by)[:16]
        seen_by = {name: content for name, content in digests.items() if name not in TRAINED_ON}
        measured = measuring_identity(self.config)
        return digest(RECIPE, self.kind, self.training.hash, measured, seen_by, *made_by)[:16]

    @property
    def steps(self) -> int:
        """The last step of its journal: of training, or the farthest rank among near codes."""
        return self.config.train.steps if self.training else self.config.tokenizer.codebook_size - 1

    def folder(self, trials: Path) -> Path:
        return trials / self.hash


def trial_of(arm: str, seed: int, config: TrialConfig, shared: Shared, kind: Kind, workspace: Workspace) -> Trial:
    """Return the trial (arm, seed), `config` being its resolved config, with the names that it has in the workspace."""
    training = None
    if kind != "near-codes":
        training = _named(Training(config, shared.digests), workspace.trainings, workspace)
    return _named(Trial(arm, seed, config, shared, kind, training), workspace.trials, workspace)


T = TypeVar("T", Training, Trial)


def _named(made: T, folder: Path, workspace: Workspace) -> T:
    """Return it with its makers' source, and the name that it was made again under, or is to be."""
    made = replace(made, made_by=sources(made.makers))
    name = workspace.name(made.plain)
    if workspace.again and _other_makers(folder / name):
        name = digest(made.plain, made.made_by)[:16]
        if not workspace.frozen:
            workspace.rename(made.plain, name)
    return replace(made, name=name)


def _own_parts(config: TrialConfig, *kinds: str) -> list[str]:
    """Return the makers "KIND NAME" of these kinds that are not built in."""
    return [f"{kind} {name}" for kind, name in parts_of(config) if kind in kinds and not built_in(kind, name)]


def tokens_file(trained: Path, config: TrialConfig, step: int) -> Path:
    """Return where the tokens lie that were drawn, in the config's way, with the weights after `step` steps."""
    drawn_by = digest(*(getattr(config.evaluation, name) for name in HOW), *versions(["sampling"]))
    return trained / f"tokens-{step:09d}-{drawn_by[:16]}.safetensors"


def _other_makers(folder: Path) -> list[str]:
    """Return the makers of a trial or training whose source is another one now; older ones tell of none."""
    told = next((path for name in RECORDS if (path := folder / name).exists()), None)
    return changed(read_json(told).get("makers", {})) if told else []


def outdated(folders: Iterable[Path], products: Iterable[Path]) -> str:
    """Say what of these trials, trainings and products another source of its makers made than there is; "" if nothing.

    What is not there, or does not tell its makers, as before these were kept, is passed over.
    """
    made = [(folder.parent.name, makers) for folder in dict.fromkeys(folders) if (makers := _other_makers(folder))]
    there = [path for path in dict.fromkeys(products) if path.is_file()]
    made += [("products", makers) for path in there if (makers := changed(load_metadata(path).get("makers", {})))]
    if not made:
        return ""
    counts = Counter(kind for kind, _ in made)
    counted = [(counts[kind], kind) for kind in ("trainings", "trials", "products") if counts[kind]]
    what = " and ".join(f"{n} {kind if n != 1 else kind.removesuffix('s')}" for n, kind in counted)
    names = ", ".join(dict.fromkeys(name for _, makers in reversed(made) for name in makers))
    return f"{what} made by another source of: {names}; `iar-study run ... --again` makes them anew"


class Busy(InputError):
    """Another process is at work on this trial."""
