"""One trial: an arm with a seed, and what tells it from others. `attempt` runs it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from iar_study.config import TrialConfig, identity
from iar_study.errors import InputError
from iar_study.pipeline.stages import RECIPE, Shared
from iar_study.storage import digest
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

    @property
    def hash(self) -> str:
        """Identity: the config and the content of the inputs; names of data sets and arms do not count."""
        if self.base is not None:
            sampled = {key: value for key, value in asdict(self.config.evaluation).items() if key != "noise" or value}
            return digest(RECIPE, self.kind, self.base.hash, sampled)[:16]
        if self.kind == "near-codes":
            config = self.config.evaluation
            return digest(RECIPE, self.kind, self.seed, config.images, config.extractor, self.shared.digests)[:16]
        return digest(RECIPE, identity(self.config), self.shared.digests)[:16]

    @property
    def steps(self) -> int:
        """The last step of its journal: of training, or the farthest rank among near codes."""
        return self.config.tokenizer.codebook_size - 1 if self.kind == "near-codes" else self.config.train.steps

    def folder(self, trials: Path) -> Path:
        return trials / self.hash


def trial_of(study: Study, profile: TrialConfig, arm: str, seed: int, config: TrialConfig, shared: Shared) -> Trial:
    """Return the trial (arm, seed) of a study, `config` being its resolved config and `profile` the one it began as."""
    trial = Trial(arm, seed, config, shared, study.kind)
    if study.kind != "sampling":
        return trial
    base = replace(config, evaluation=profile.evaluation)
    return replace(trial, base=Trial(arm, seed, base, shared))


class Busy(InputError):
    """Another process is at work on this trial."""
