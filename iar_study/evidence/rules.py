"""The rules that answer a claim from a study's results: four answers to one question, on one scale.

Every rule has one primary comparison, which is tested alone at 5%; what other arms were run makes none harder, but that
all of them tell of the spread (see `statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import numpy as np
import pandas as pd

from iar_study.errors import InputError
from iar_study.evaluation.metrics import Metric, metric_named
from iar_study.evidence.results import Results
from iar_study.evidence.sequential import Look, look
from iar_study.evidence.statistics import (
    ALPHA,
    MARGIN,
    Effect,
    SharedSpread,
    compare_with_baseline,
    leave_one_out,
    p_text,
    paired_differences,
    values_by_seed,
)
from iar_study.study.plans import plan_of

Answer = Literal[
    "holds",
    "fails",
    "better",
    "worse",
    "equivalent",
    "equal",
    "as good",
    "the best",
    "among the best",
    "not the best",
    "undecided",
    "cannot be asked",
    "not tested",
]
YES: frozenset[Answer] = frozenset({"holds", "better", "as good", "the best"})
NO: frozenset[Answer] = frozenset({"fails", "worse", "equivalent", "equal", "not the best"})

FIXED_FROM = 3
"""Seeds from which on the same number in each is one that no seed changes; two may agree by rounding."""


@dataclass(frozen=True)
class Row:
    """One comparison of what a verdict rests on: as numbers, for tables and the plot of all effects.

    what : such as "iar / baseline". difference : of arm and baseline, or the log of their ratio where `relative`.
    pairs : seed -> difference. least, most : the mean without one pair.
    """

    what: str
    metric: str
    relative: bool
    difference: float
    low: float
    high: float
    p: float
    finding: str
    least: float = math.nan
    most: float = math.nan
    pairs: Mapping[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """Return it as a line: the change, its 95% interval, the number of pairs and the finding."""
        interval = "" if math.isnan(self.low) else f" [{self.change(self.low)}, {self.change(self.high)}]"
        count = f"{len(self.pairs)} pair{'' if len(self.pairs) == 1 else 's'}"
        what = ", ".join(filter(None, (self.what, self.metric)))
        return f"{what}: {self.change(self.difference)}{interval}, {count}: {self.finding}"

    def change(self, value: float) -> str:
        """Format a difference: in percent where it is the log of a ratio."""
        return _shown(value, "+") if not self.relative else percent(value)


@dataclass(frozen=True)
class Found:
    """What a rule says: the answer, why in a sentence, and the comparisons that it rests on."""

    answer: Answer
    evidence: str
    rows: tuple[Row, ...] = ()
    p: float = math.nan
    """Of the one comparison that decides; what Holm's correction is over."""


@dataclass(frozen=True)
class Better:
    """Is the arm better than its baseline? One comparison, paired by seed, of metric `metric` (see `Effect.finding`).

    `than`: the arm that it is compared with, the baseline of its study unless named.
    """

    arm: str
    metric: str
    than: str | None = None
    margin: float = MARGIN

    def text(self) -> str:
        """Return the rule in words, with its values."""
        than = self.than or "its baseline"
        return (
            f"{self.arm} beside {than} in {self.metric}, paired by seed, tested alone. Equivalent where the 90% "
            f"interval of a ratio lies within {self.margin:.0%}; else better or worse where the 95% interval excludes "
            f"0; else undecided."
        )

    def judge(self, results: Results) -> Found:
        """Raises `InputError` where an arm was not run, or the metric not measured or without a direction."""
        row = _row(results, self.metric, self.arm, self.than, self.margin)
        return Found(_answer_of(row.finding), row.text() + _lost(results, self.arm, self.than), (row,), row.p)


@dataclass(frozen=True)
class BetterOverAll:
    """Is the first arm of each pair better than the second, over all of these conditions together?

    One pooled estimate, with the spread between conditions and what seeds do to all of them (see `Effect.pooled`).
    """

    pairs: tuple[tuple[str, str], ...]
    metric: str
    margin: float = MARGIN

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return (
            f"The mean change in {self.metric} over {len(self.pairs)} conditions, taken for a sample of others (random "
            f"effects; what a seed does to all of them counts too). Equivalent where its 90% interval lies within "
            f"{self.margin:.0%}; else better or worse where the 95% interval excludes 0; else undecided."
        )

    def judge(self, results: Results) -> Found:
        """See `Better.judge`."""
        rows = [_row(results, self.metric, arm, than, self.margin) for arm, than in self.pairs]
        key = _measured(results, self.metric)
        about = metric_named(key)
        differences = pd.DataFrame({row.what: pd.Series(dict(row.pairs), dtype=float) for row in rows})
        pooled, (low, high) = (effect := Effect.pooled(differences)).mean, effect.interval()
        lost = _lost(results, *(arm for pair in self.pairs for arm in pair))
        finding = effect.finding(_direction(about), _within(about, self.margin))
        # Who survives where others diverge is a selection; a trial that has not ended yet makes none.
        if lost and "diverged" in lost:
            finding = "undecided"
        of_all = Row(
            f"all {len(rows)} conditions",
            about.label,
            about.relative,
            pooled,
            low,
            high,
            effect.p,
            finding,
            *leave_one_out(differences.mean()),
            pairs={str(what): float(value) for what, value in differences.mean().items()},
        )
        spread = "" if math.isnan(effect.between) else f"; between conditions {_size(about, effect.between)} (sd)"
        told = f"{of_all.what}, {about.label}: {of_all.change(pooled)}"
        told += "" if math.isnan(low) else f" [{of_all.change(low)}, {of_all.change(high)}]"
        told += f", {effect.pairs} pairs{spread}: {finding}{lost}"
        return Found(_answer_of(finding), told, (*rows, of_all), effect.p)


@dataclass(frozen=True)
class AmongBest:
    """Which arms cannot be told from the best, and is the arm among them?

    An arm is out where another one is better than it, one-sided, at 5% over the number of others: so the best one is
    out in at most 5% of studies (Hsu's comparisons with the best, with Bonferroni's bound in place of Dunnett's
    constant, as spreads are unequal).
    """

    arm: str
    metric: str
    among: tuple[str, ...]

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return (
            f"The arms of {', '.join((self.arm, *self.among))} that cannot be told from the best in {self.metric}: an "
            f"arm is out where another is better, paired by seed, at 5% over the {len(self.among)} others. {self.arm} "
            f"is the best where no other is left, among the best where it is left, undecided where all are."
        )

    def judge(self, results: Results) -> Found:
        """See `Better.judge`."""
        arms = (self.arm, *self.among)
        key = _measured(results, self.metric)
        about = metric_named(key)
        better = _direction(about)
        rows = tuple(_row(results, self.metric, other, self.arm, MARGIN) for other in self.among)
        values = values_by_seed(results.final, key, [_run(results, arm) for arm in arms])
        values = values.apply(np.log) if about.relative else values
        out = {
            arm
            for arm in arms
            for other in arms
            if arm != other and _beats(values, other, arm, better, ALPHA / len(self.among))
        }
        left = [arm for arm in arms if arm not in out]
        answer: Answer = "undecided" if not out else "among the best" if self.arm in left else "not the best"
        if left == [self.arm]:
            answer = "the best"
        if lost := _lost(results, *arms):
            answer = "undecided" if "diverged" in lost else answer
        told = f"not to be told from the best in {about.label}: {', '.join(left)}"
        return Found(answer, f"{told}; out: {', '.join(a for a in arms if a in out) or 'none'}{lost}", rows)


@dataclass(frozen=True)
class InLessTime:
    """Is the arm after a share of one undecayed training as good as its baseline at the end (non-inferiority)?

    On straight lines between the evaluated steps, of the log of a ratio. As good where the 95% upper bound of the
    change is below the margin; worse where the lower one is above it.
    """

    arm: str
    metric: str
    than: str
    share: float
    margin: float = MARGIN

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return (
            f"{self.arm} after {self.share:.0%} of one training at a constant rate, beside {self.than} at its end, in "
            f"{self.metric}, paired by seed. As good where it is worse by less than {self.margin:.0%} (one-sided, 5%); "
            f"worse where it is worse by more; else undecided."
        )

    def judge(self, results: Results) -> Found:
        """See `Better.judge`."""
        for arm in (self.arm, self.than):
            _run(results, arm)
        about = metric_named(key := _measured(results, self.metric))
        better = _direction(about)
        curves = results.curves[results.curves["metric"] == key].sort_values("step")
        ends = {(arm, seed): _on_the_way(curve, 1.0, about) for (arm, seed), curve in curves.groupby(["arm", "seed"])}
        early = {
            seed: _on_the_way(curve, self.share, about)
            for (arm, seed), curve in curves.groupby(["arm", "seed"])
            if arm == self.arm
        }
        both = (seed for seed in early if (self.than, seed) in ends)
        pairs = {str(seed): early[seed] - ends[self.than, seed] for seed in both}
        return _not_worse(results, about, better, self, f"{self.arm} at {self.share:.0%} / {self.than}", pairs)


@dataclass(frozen=True)
class InShorterTraining:
    """Is a finished shorter training of the arm as good as its baseline's whole one (non-inferiority)?

    It can be asked only of a baseline that has come to its end: where its own shorter training, `flat`, is worse than
    its whole one by more than the margin, the budget is too small for the question.
    """

    arm: str
    metric: str
    than: str
    flat: str
    margin: float = MARGIN

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return (
            f"{self.arm} beside {self.than} in {self.metric}, paired by seed. As good where it is worse by less than "
            f"{self.margin:.0%} (one-sided, 5%); worse where it is worse by more; else undecided. It cannot be asked "
            f"where {self.flat} is worse than {self.than} by more than {self.margin:.0%}: the baseline is not flat."
        )

    def judge(self, results: Results) -> Found:
        """See `Better.judge`."""
        about = metric_named(_measured(results, self.metric))
        better = _direction(about)
        flat = _row(results, self.metric, self.flat, self.than, self.margin)
        row = _row(results, self.metric, self.arm, self.than, self.margin)
        found = _not_worse(results, about, better, self, row.what, row.pairs)
        rows = (*found.rows, flat)
        if _worse_by(flat.difference, better) > (_within(about, self.margin) or 0.0):
            why = f"the baseline is not flat: {flat.text().partition(': ')[2]} for {flat.what}"
            return Found("cannot be asked", f"{why}; {found.evidence}", rows)
        return Found(found.answer, found.evidence, rows, found.p)


@dataclass(frozen=True)
class Above:
    """Is metric minus `than` above 0, seed by seed? `than` is a number, or another metric of the same trials.

    Holds where the 95% t interval lies above 0, fails where it lies below. `arm` is the study's baseline unless named.
    The same difference in three or more seeds counts as it is. The test trusts the noise to be symmetric: where it has
    a long tail, the side away from the tail is found too often.
    """

    metric: str
    than: float | str
    arm: str | None = None

    def text(self) -> str:
        """Return the rule in words, with its values."""
        arm = self.arm or "the study's baseline"
        return (
            f"Holds where the 95% interval of {self.metric} minus {_shown(self.than)}, in {arm} and seed by seed, lies "
            f"above 0; fails where it lies below; else undecided."
        )

    def judge(self, results: Results) -> Found:
        """Raises `InputError` where the arm was not run or a metric not measured."""
        arm = self.arm or results.baseline
        keys = [_measured(results, name) for name in (self.metric, self.than) if isinstance(name, str)]
        own, *other = (values_by_seed(results.final, key, [_run(results, arm)])[arm] for key in keys)
        differences = (own - (other[0] if other else float(self.than))).dropna()
        effect = Effect.of(differences, level=float(own.mean()) if len(own) else 0.0)
        rows = results.final[(results.final["arm"] == arm) & results.final["metric"].isin(keys)]
        fixed = effect.pairs >= FIXED_FROM and not effect.errors
        answer: Answer = "undecided"
        if np.isfinite(rows["value"]).all() and effect.mean and (fixed or effect.p < ALPHA):
            answer = "holds" if effect.mean > 0 else "fails"
        beside = metric_named(keys[1]).label if other else _shown(self.than)
        low, high = effect.interval()
        pairs = {str(seed): float(value) for seed, value in differences.items()}
        label = f"{metric_named(keys[0]).label} \N{MINUS SIGN} {beside}"
        spread = leave_one_out(differences)
        row = Row(self.arm or "", label, False, effect.mean, low, high, effect.p, answer, *spread, pairs=pairs)
        return Found(answer, row.text() + _lost(results, arm), (row,), effect.p)


@dataclass(frozen=True)
class Exact:
    """Holds where what no chance enters is off by at most `tolerance` (see `Results.exact`), else it fails."""

    fact: str
    tolerance: float

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return f"Holds where {self.fact} is off by at most {_shown(self.tolerance)}; else it fails."

    def judge(self, results: Results) -> Found:
        """Raises `InputError` where the fact was not measured."""
        if self.fact not in results.exact:
            raise InputError(f"{self.fact} was not measured")
        gap = results.exact[self.fact]
        answer: Answer = "holds" if gap <= self.tolerance else "fails"
        return Found(answer, f"{self.fact} is off by {_shown(gap)}; {_shown(self.tolerance)} is allowed")


@dataclass(frozen=True)
class Planned:
    """What the study's own plan says, at the first of its looks that decides (see `sequential`)."""

    def text(self) -> str:
        """Return the rule in words."""
        return (
            "The plan names arm, metric, margin and looks. A look at n pairs takes the first n that were planned. The "
            "5% of each answer are spread over the looks, nearly all of it to the last (Lan and DeMets). Equivalent, "
            "better or worse as elsewhere, at the level of the look, as are intervals; the first look that decides is "
            "the answer. Where an early look decides, the change tends to be told too large."
        )

    def judge(self, results: Results) -> Found:
        """Raises `InputError` where the study has no plan, was not run as it says, or its arm was not run."""
        if results.departures:
            raise InputError(f"not as planned: {'; '.join(results.departures)}")
        looks, plan = planned_looks(results), plan_of(results.plan or {})
        than = results.baselines[plan.arm]
        about = metric_named(_measured(results, plan.metric))
        rows = tuple(_of_look(taken, f"{plan.arm} / {than}", about) for taken in looks)
        if not looks:
            raise InputError(f"the first look is at {plan.looks[0]} pairs; fewer have ended")
        last = looks[-1]
        told = rows[-1].text() + f" (p {p_text(last.effect.p)}, level {last.level:.2g})"
        further = [pairs for pairs in plan.looks if pairs > last.pairs]
        if last.finding == "undecided":
            told += f"; the next look is at {further[0]} pairs" if further else "; it was the last look"
        return Found(_answer_of(last.finding), told + _lost(results, plan.arm, than), rows, last.effect.p)


def planned_looks(results: Results) -> list[Look]:
    """Return the looks of the study's plan that so many pairs allow, up to the first one that decides.

    Raises `InputError` where there is no plan, its arm was not run, or its metric was not measured.
    """
    if results.plan is None:
        raise InputError(f"study {results.study} has no plan")
    plan = plan_of(results.plan)
    about = metric_named(key := _measured(results, plan.metric))
    than = results.baselines[_run(results, plan.arm)]
    differences = paired_differences(results.final, key, than, [plan.arm])[plan.arm]
    unended = results.missing[results.missing["status"] != "diverged"]
    waits = unended.loc[unended["arm"].isin([plan.arm, than]), "seed"]
    return look(differences[~differences.index.isin(waits)], plan, _direction(about))


@dataclass(frozen=True)
class NotTested:
    """Not tested, for the reason that is given."""

    why: str

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return "Not tested."

    def judge(self, results: Results) -> Found:
        """Return the reason."""
        return Found("not tested", self.why)


Rule = Better | BetterOverAll | AmongBest | InLessTime | InShorterTraining | Above | Exact | Planned | NotTested


def percent(log_ratio: float) -> str:
    """Format the log of a ratio as a change in percent, with a true minus sign.

    >>> percent(0.0296), percent(0.0)
    ('+3.0%', '0.0%')
    """
    if math.isnan(log_ratio):
        return "\N{EN DASH}"
    rounded = round(100 * math.expm1(log_ratio), 1)
    return f"{rounded:{'+' if rounded else ''}.1f}%".replace("-", "\N{MINUS SIGN}" if rounded else "")


def _run(results: Results, arm: str) -> str:
    """Return the arm, if it was run."""
    if arm not in results.arms:
        raise InputError(f"arm {arm!r} was not run")
    return arm


def _measured(results: Results, metric: str) -> str:
    """Return the key that `metric` means among what was measured."""
    key = results.find(metric)
    if key is None:
        raise InputError(f"{metric} was not measured")
    return key


def _direction(about: Metric) -> Literal["lower", "higher"]:
    if about.better is None:
        raise InputError(f"of {about.label} neither more nor less is better")
    return about.better


def _within(about: Metric, margin: float) -> float | None:
    """Return the margin of a difference; only ratios have one."""
    return math.log1p(margin) if about.relative else None


def _worse_by(difference: float, better: str) -> float:
    return difference if better == "lower" else -difference


def _row(results: Results, metric: str, arm: str, than: str | None, margin: float) -> Row:
    """Compare `arm` with `than`, its baseline unless named; all arms of the study tell of the spread."""
    than = than or results.beside.get(_run(results, arm), results.baseline)
    for name in (than, arm):
        _run(results, name)
    key = _measured(results, metric)
    about = metric_named(key)
    _direction(about)
    beside = {**results.baselines, than: than, arm: than}
    arms, draws = list(results.arms), results.draws
    found = compare_with_baseline(results.final, key, beside, arms, margin, draws).loc[arm].to_dict()
    pairs = paired_differences(results.final, key, than, [arm])[arm].dropna()
    return Row(
        f"{arm} / {than}" if about.relative else f"{arm} \N{MINUS SIGN} {than}",
        about.label,
        about.relative,
        float(found["difference"]),
        float(found["difference_low"]),
        float(found["difference_high"]),
        float(found["p"]),
        str(found["finding"]),
        float(found["least"]),
        float(found["most"]),
        {str(seed): float(value) for seed, value in pairs.items()},
    )


def _of_look(taken: Look, what: str, about: Metric) -> Row:
    pairs = {str(seed): float(value) for seed, value in taken.differences.dropna().items()}
    effect, ends, without_one = taken.effect, taken.effect.interval(1 - taken.level), leave_one_out(taken.differences)
    return Row(what, about.label, about.relative, effect.mean, *ends, effect.p, taken.finding, *without_one, pairs)


def _answer_of(finding: str) -> Answer:
    return cast(Answer, finding) if finding in get_args(Answer) else "undecided"


def _beats(values: pd.DataFrame, one: str, other: str, better: str, level: float) -> bool:
    """Whether one arm is better than another, one-sided at this level, with a spread that all arms share."""
    arms = [arm for arm in values if arm != other]
    samples = {arm: (values[arm] - values[other]).dropna().to_numpy(float) for arm in arms}
    if samples[one].size < 2:
        return False
    shared = SharedSpread.of(sample for sample in samples.values() if sample.size > 1)
    sign = -1 if better == "lower" else 1
    p = Effect.of(sign * samples[one], shared, level=1.0).p_above(0.0)
    return p < level


def _on_the_way(curve: pd.DataFrame, share: float, about: Metric) -> float:
    """Return the value (of a ratio, its log) after this share of a training, on straight lines between its points."""
    steps, values = curve["step"].to_numpy(float), curve["value"].to_numpy(float)
    values = np.log(values) if about.relative else values
    at = share * steps[-1]
    return float(np.interp(at, steps, values)) if at >= steps[0] else math.nan


def _not_worse(
    results: Results,
    about: Metric,
    better: Literal["lower", "higher"],
    rule: InLessTime | InShorterTraining,
    what: str,
    pairs: Mapping[str, float],
) -> Found:
    """Return "as good" where the change is below the margin, one-sided at 5%; "worse" where it is above."""
    margin = _within(about, rule.margin)
    if margin is None:
        raise InputError(f"{about.label} is not compared by ratios: no margin is known within which it is as good")
    values = pd.Series(dict(pairs), dtype=float).dropna()
    effect = Effect.of(values, level=1.0)
    # Either end of a 90% interval is a one-sided 95% bound.
    low, high = effect.interval(1 - 2 * ALPHA)
    lower, upper = sorted((_worse_by(low, better), _worse_by(high, better)))
    lost = _lost(results, rule.arm, rule.than)
    answer: Answer = "undecided"
    if effect.errors and not lost:
        answer = "as good" if upper < margin else "worse" if lower > margin else "undecided"
    sign = 1 if better == "lower" else -1
    p = Effect.of(-sign * values, level=1.0).p_above(-margin) if effect.errors else math.nan
    decides = 1 - p if answer == "worse" else p  # of the side that the answer is on
    kept = {str(seed): float(value) for seed, value in values.items()}
    row = Row(
        what, about.label, about.relative, effect.mean, *effect.interval(), p, answer, *leave_one_out(values), kept
    )
    return Found(answer, row.text() + lost, (row,), decides)


def _lost(results: Results, *arms: str | None) -> str:
    """Say which trials of these arms a comparison is without."""
    lost = results.missing[results.missing["arm"].isin([arm for arm in arms if arm])]
    return "".join(f", seed {trial.seed} of {trial.arm} {trial.status}" for trial in lost.itertuples())


def _size(about: Metric, spread: float) -> str:
    return percent(spread).lstrip("+") if about.relative else _shown(spread)


def _shown(value: float | str, sign: str = "") -> str:
    """Format a number to four digits, with a true minus sign; a name stays as it is."""
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:{sign if value else ''}.4g}".replace("-", "\N{MINUS SIGN}")
