"""One trial: an arm with a seed, and what tells it from others. `attempt` runs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iar_study.config import TrialConfig, identity, part_identity, parts_of
from iar_study.errors import InputError
from iar_study.parts import built_in, changed, sources, versions
from iar_study.pipeline.stages import RECIPE, Shared
from iar_study.pipeline.workspace import Workspace
from iar_study.storage import digest, load_metadata, read_json
from iar_study.study.study import Kind, Study


@dataclass(frozen=True)
class Trial:
    """What is run, resumed and retried: a resolved config with the content it works on."""

    arm: str
    seed: int
    config: TrialConfig
    shared: Shared
    kind: Kind = "training"
    base: Trial | None = None
    """Of a trial that samples: the one that trains the GPT."""
    name: str = ""
    """Its hash as it was when the run began, or the name that it was made again under."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """Maker -> digest of its source, when the run began."""

    @property
    def makers(self) -> list[str]:
        """Who makes it, beside what it is made from."""
        measuring = ["samples' metrics", *self.own_parts("tokenizer", "extractor", "metric")]
        if self.kind == "near-codes":
            return ["near codes", *measuring]
        if self.base is not None:
            return ["sampling", *measuring]
        loss = self.config.loss
        varied = ["smoothing"] if loss.smoothing or loss.schedule != "constant" else []
        training = ["training", *self.own_parts("generator"), f"loss {loss.name}", *varied]
        return [*training, "predictions", "sampling", *measuring]

    def own_parts(self, *kinds: str) -> list[str]:
        """Return the makers "KIND NAME" of these kinds that are not built in."""
        named = parts_of(self.config)
        return [f"{kind} {name}" for kind, name in named if kind in kinds and not built_in(kind, name)]

    @property
    def hash(self) -> str:
        """Identity: config, content of the inputs, makers' versions; names of data sets and arms do not count."""
        return self.name or self.plain

    @property
    def plain(self) -> str:
        """Its name, if it was never made again."""
        return self._digest(identity(self.config))

    @property
    def before(self) -> str:
        """Its name while that still told how often a training logs and saves."""
        return self._digest(identity(self.config, left_out=()))

    def _digest(self, identity: Mapping[str, Any]) -> str:
        made_by = versions(self.makers)
        if self.base is not None:
            sampled = {
                key.removeprefix("evaluation."): value
                for key, value in identity.items()
                if key.startswith("evaluation.")
            }
            return digest(RECIPE, self.kind, self.base.hash, sampled, *made_by)[:16]
        if self.kind == "near-codes":
            config = self.config.evaluation
            extractor = part_identity("evaluation.extractor", config.extractor)
            made_from = (self.seed, config.images, extractor, self.shared.digests)
            return digest(RECIPE, self.kind, *made_from, *made_by)[:16]
        return digest(RECIPE, dict(identity), self.shared.digests, *made_by)[:16]

    @property
    def steps(self) -> int:
        """The last step of its journal: of training, or the farthest rank among near codes."""
        return self.config.tokenizer.codebook_size - 1 if self.kind == "near-codes" else self.config.train.steps

    def folder(self, trials: Path) -> Path:
        return trials / self.hash


def trial_of(
    study: Study, profile: TrialConfig, arm: str, seed: int, config: TrialConfig, shared: Shared, workspace: Workspace
) -> Trial:
    """Return the trial (arm, seed) of a study, `config` being its resolved config and `profile` the one it began as."""
    trial = Trial(arm, seed, config, shared, study.kind)
    if study.kind == "sampling":
        base = replace(config, evaluation=profile.evaluation)
        trial = replace(trial, base=_named(Trial(arm, seed, base, shared), workspace))
    return _named(trial, workspace)


def _named(trial: Trial, workspace: Workspace) -> Trial:
    """Return the trial with its makers' source, and the name that it was made again under, or is to be."""
    trial = replace(trial, made_by=sources(trial.makers))
    name = workspace.name(trial.plain)
    if not (workspace.trials / name).exists() and (workspace.trials / trial.before).exists():
        name = trial.before
    if workspace.again and _other_makers(workspace.trials / name):
        name = digest(trial.plain, trial.made_by)[:16]
        if not workspace.frozen:
            workspace.rename(trial.plain, name)
    return replace(trial, name=name)


def _other_makers(folder: Path) -> list[str]:
    """Return the makers of a trial, begun or finished, whose source is another one now; older trials tell of none."""
    path = folder / "trial.json"
    return changed(read_json(path).get("makers", {})) if path.exists() else []


def outdated(folders: Iterable[Path], products: Iterable[Path]) -> str:
    """Say what of these trials and products was made by another source of its makers than there is now; "" if nothing.

    What is not there, or does not tell its makers, as before these were kept, is passed over.
    """
    trials = [makers for folder in dict.fromkeys(folders) if (makers := _other_makers(folder))]
    there = [path for path in dict.fromkeys(products) if path.is_file()]
    made = [makers for path in there if (makers := changed(load_metadata(path).get("makers", {})))]
    if not trials and not made:
        return ""
    counts = {"trial": len(trials), "product": len(made)}
    what = " and ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items() if n)
    names = ", ".join(dict.fromkeys(name for makers in (*made, *trials) for name in makers))
    return f"{what} made by another source of: {names}; `iar-study run ... --again` makes them anew"


class Busy(InputError):
    """Another process is at work on this trial."""
