"""The registry as lines for a person: each study with its question, claim, arms, trials and estimated time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from iar_study.reporting.plan import aligned
from iar_study.study.estimate import Estimate
from iar_study.study.plan import duration, plural
from iar_study.study.study import Profile, Study

WIDTH = 118


def registry_text(
    studies: Sequence[Study], profiles: Sequence[Profile], profile: Profile, each: Sequence[Estimate], total: Estimate
) -> str:
    """Return all studies, `each` with its estimate at `profile`, what all take together, and the profiles."""
    parts = [_study(study, profile, estimate) for study, estimate in zip(studies, each, strict=True)]
    seeds = [f"{name.description} Seeds {', '.join(map(str, name.seeds))}." for name in profiles]
    rows = [[f"    {name.name}", text] for name, text in zip(profiles, seeds, strict=True)]
    parts.append(
        [
            f"all {len(studies)} studies at {profile.name}, equal trials once: {_time(total)}",
            *textwrap.wrap(_told(total), WIDTH, initial_indent="    ", subsequent_indent="    "),
        ]
    )
    parts.append(["profiles", *aligned(rows)])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _study(study: Study, profile: Profile, estimate: Estimate) -> list[str]:
    rows = [
        [f"    {arm.name}", arm.description + (" (baseline)" if arm.name == study.baseline else "")]
        for arm in study.arms
    ]
    claim = textwrap.wrap(f"claim: {study.claim}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    return [study.name, f"  {study.question}", *claim, *aligned(rows), f"  at {profile.name}: {_time(estimate)}"]


def _time(estimate: Estimate) -> str:
    if not estimate.hours:
        return f"{plural(estimate.trials, 'trial')}, minutes: no GPT is trained"
    partly = "partly " if estimate.assumed and estimate.measured else ""
    how = f"{partly}at an assumed speed" if estimate.assumed else "by the trials run here"
    return f"{plural(estimate.trials, 'trial')}, about {duration(estimate.hours)} {how}"


def _told(total: Estimate) -> str:
    """Say what the times rest on."""
    measured = "from trials of the same size that were run here" if total.measured else ""
    assumed = f"at {total.assumed}, which is assumed, not measured" if total.assumed else ""
    how = "; other sizes ".join(filter(None, (measured, assumed)))
    return (
        f"Times: {plural(total.side_by_side, 'trial')} at once, {how}; without what trials share (tokenizer, "
        f"classifier, clusterings), and as if nothing was there."
    )
