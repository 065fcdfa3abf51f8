"""The registry as lines for a person: a line for each study, or one study with its arms."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from iar_study.reporting.needs_text import aligned
from iar_study.running.estimate import Estimate
from iar_study.running.needs import plural, span
from iar_study.study.study import Profile, Study


def registry_text(
    studies: Sequence[Study],
    planned: Sequence[Study],
    profiles: Sequence[Profile],
    profile: Profile,
    each: Sequence[Estimate],
    total: Estimate,
) -> str:
    """Return a line for each study, with its estimate at `profile`, for all together, for each plan and profile."""
    rows = [
        [study.name, f"{estimate.trials}", _time(estimate), study.question]
        for study, estimate in zip(studies, each, strict=True)
    ]
    rows.append(["all", f"{total.trials}", _time(total), "equal trials once"])
    rows += [
        [study.name, f"{study.plan.looks[-1]} pairs", f"plan, {study.plan.profile}", study.question]
        for study in planned
        if study.plan
    ]
    seeds = [[one.name, plural(len(one.seeds), "seed"), one.description] for one in profiles]
    return "\n".join(
        [
            *_fitted([["study", "trials", f"at {profile.name}", "question"], *rows]),
            *_wrapped(_told(total)),
            "",
            *_fitted([["profile", "seeds", "what it is"], *seeds]),
            "iar-study list STUDY tells its claim and its arms.",
        ]
    )


def study_text(study: Study, profile: Profile, estimate: Estimate) -> str:
    """Return a study with its question, claim and arms, and its estimate at `profile`."""
    arms = [
        [f"    {arm.name}", arm.description + (" (baseline)" if arm.name == study.baseline else "")]
        for arm in study.arms
    ]
    claim = _wrapped(f"claim: {study.claim}", "  ")
    plan = _wrapped(f"plan: {study.plan.text()}", "  ") if study.plan else []
    until = "until the first look, " if study.plan else ""
    time = f"  {until}at {profile.name}: {plural(estimate.trials, 'trial')}, {_time(estimate)}"
    return "\n".join(
        [study.name, f"  {study.question}", *claim, *plan, *aligned(arms), time, *_wrapped(_told(estimate), "  ")]
    )


def _width() -> int:
    return max(shutil.get_terminal_size((100, 24)).columns, 60)


def _fitted(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines, in columns, of which the last is shortened to the screen."""
    taken = sum(max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]) - 1))
    room = max(_width() - taken, 20)
    return aligned([[*row[:-1], textwrap.shorten(row[-1], room, placeholder=" ...")] for row in rows])


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _time(estimate: Estimate) -> str:
    return span(*estimate.hours) if estimate.hours[1] else "minutes"


def _told(total: Estimate) -> str:
    """Say what the times rest on."""
    if not total.hours[1]:
        return "No GPT is trained."
    measured = "from trials of the same size that were run here" if total.measured else ""
    assumed = f"at {total.assumed}, which is assumed, not measured" if total.assumed else ""
    how = "; other sizes ".join(filter(None, (measured, assumed)))
    return (
        f"Times: {plural(total.side_by_side, 'trial')} at once, {how}; without tokenizer, classifier and clusterings."
    )
