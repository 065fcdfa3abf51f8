"""A dry run as lines for a person: what is there, what would be made, and what is shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from iar_study.reporting.needs_text import aligned
from iar_study.running.dry_run import DryRun, FoundStage, FoundTrial
from iar_study.running.needs import plural

LATER = "known later"

STATES = {
    "finished": "finished",
    "diverged": "diverged",
    "running": "running now",
    "goes on": "goes on",
    "trained": "to be measured",
    "new": "new",
    "unknown": LATER,
}


def dry_run_text(studies: Sequence[DryRun]) -> str:
    """Return dry runs as text: of each the stages, how many trials share them, the trials, arm by seed, and a count.

    Of several studies, run one after another, there is a last line about all of them.
    """
    parts = ["\n".join([f"{found.study} at {found.profile}", *_stages(found), *_trials(found)]) for found in studies]
    if len(studies) > 1:
        parts.append(f"all {len(studies)} studies: {_count([trial for found in studies for trial in found.trials])}")
    return "\n\n".join(parts)


def _stages(found: DryRun) -> list[str]:
    rows = [
        [f"    {stage.kind}", stage.about, _state(stage), f"for {plural(stage.trials, 'trial')}"]
        + ([stage.file] if stage.made and stage.file else [])
        for stage in found.stages
    ]
    return ["  stages", *aligned(rows)]


def _state(stage: FoundStage) -> str:
    return "in the cache" if stage.made else "to be made" if stage.file else LATER


def _trials(found: DryRun) -> list[str]:
    seeds = list(dict.fromkeys(trial.seed for trial in found.trials))
    cells = {(trial.name, trial.seed): _cell(trial) for trial in found.trials}
    rows = [["  trials", *(f"seed {seed}" for seed in seeds)]]
    rows += [
        [f"    {name}", *(cells.get((name, seed), "") for seed in seeds)]
        for name in dict.fromkeys(trial.name for trial in found.trials)
    ]
    first = [f"  {LATER}: {found.first} first, and what follows is named by its content"]
    return [*aligned(rows), f"  {_count(found.trials)}", *(first if found.first else [])]


def _cell(trial: FoundTrial) -> str:
    if trial.same_as:
        return f"= {trial.same_as}"
    state = f"goes on from step {trial.step:,}" if trial.state == "goes on" else STATES[trial.state]
    return state + (f" (also {trial.also})" if trial.also else "")


def _count(trials: Sequence[FoundTrial]) -> str:
    own = [trial for trial in trials if not trial.same_as]
    counts = Counter(STATES[trial.state] for trial in own)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES.values() if counts[state])
    same = len(trials) - len(own)
    return f"{plural(len(own), 'trial')}: {states}" + (f"; {same} more are the same as others" if same else "")
