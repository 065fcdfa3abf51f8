"""The paper's claims as data, and the rules that decide them from a study's results.

Every claim is judged at 5% by itself, and nothing is corrected for the number of claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from iar_study.errors import InputError
from iar_study.evaluation.metrics import find_metric, metric_named
from iar_study.study.results import Results
from iar_study.study.statistics import ALPHA, called, compare_with_baseline, holm, p_text, paired_test, values_by_seed
from iar_study.study.study import run_file

Answer = Literal["supported", "contradicted", "inconclusive", "not tested"]

FIXED_FROM = 3
"""Seeds from which on the same number in each is one that no seed changes; two may agree by rounding."""

_ANSWERS: dict[str, Answer] = {"better": "supported", "worse": "contradicted"}
"""What a finding says of the claim that the arm is better; any other finding: inconclusive."""


@dataclass(frozen=True)
class Better:
    """Supported where the arm's finding against the study's baseline is "better" (see `compare_with_baseline`; Holm
    over all arms of the study), contradicted where it is "worse". With `than`, that arm takes the baseline's place,
    and the comparison is the only one, so that nothing is corrected.
    """

    arm: str
    metric: str
    than: str | None = None

    def text(self) -> str:
        """Return the rule in words, with its values."""
        than = self.than or "the study's baseline"
        family = "" if self.than else ", corrected by Holm for all arms of the study"
        return (
            f"Supported where {self.arm} is better in {self.metric} than {than}, paired by seed (t test at 5%{family}, "
            f"and a bootstrap interval without 0); contradicted where it is worse."
        )

    def judge(self, results: Results) -> tuple[Answer, str]:
        """Return the answer and its evidence.

        Raises `InputError` where an arm was not run, or the metric not measured or without a direction.
        """
        family = [] if self.than else list(results.arms)
        than = self.than or results.beside.get(self.arm, results.baseline)
        row, evidence = _pair(results, self.metric, self.arm, than, family)
        return _ANSWERS.get(row["finding"], "inconclusive"), evidence


@dataclass(frozen=True)
class AsGoodAs:
    """Supported where the 95% interval of arm minus `than` lies on the better side of 0, or is 0 itself: the same
    number in every one of two or more seeds. Contradicted where it lies on the worse side. An interval around 0 shows
    neither, for there is no margin within which worse would count as good.
    """

    arm: str
    metric: str
    than: str

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return (
            f"Supported where the 95% interval of {self.arm} minus {self.than} in {self.metric}, paired by seed, lies "
            f"on the better side of 0 or is 0 itself; contradicted where it lies on the worse side."
        )

    def judge(self, results: Results) -> tuple[Answer, str]:
        """See `Better.judge`."""
        row, evidence = _pair(results, self.metric, self.arm, self.than)
        equal = row["finding"] == "equal" and row["pairs"] > 1
        return "supported" if equal else _ANSWERS.get(row["finding"], "inconclusive"), evidence


@dataclass(frozen=True)
class BetterInEvery:
    """Supported where in every pair the first arm is better than the second, each at 5%: as all must hold, nothing
    needs correction. Contradicted where in any pair it is worse, after Holm's correction for the number of pairs.
    """

    pairs: tuple[tuple[str, str], ...]
    metric: str

    def text(self) -> str:
        """Return the rule in words, with its values."""
        pairs = ", ".join(f"{arm} than {than}" for arm, than in self.pairs)
        return (
            f"Supported where all of these are better in {self.metric}, paired by seed (each at 5%): {pairs}; "
            f"contradicted where any is worse (corrected by Holm for the {len(self.pairs)} pairs)."
        )

    def judge(self, results: Results) -> tuple[Answer, str]:
        """See `Better.judge`."""
        rows, evidence = zip(*(_pair(results, self.metric, arm, than) for arm, than in self.pairs), strict=True)
        findings = np.array([row["finding"] for row in rows])
        answer: Answer = "inconclusive"
        if (findings == "better").all():
            answer = "supported"
        elif ((findings == "worse") & (holm([row["p"] for row in rows]) < ALPHA)).any():
            answer = "contradicted"
        return answer, "; ".join(evidence)


@dataclass(frozen=True)
class Best:
    """Supported where the arm is better than every one of `among`, each at 5%. Contradicted where any of them is better
    than it, after Holm's correction for their number.
    """

    arm: str
    metric: str
    among: tuple[str, ...]

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return (
            f"Supported where {self.arm} is better in {self.metric} than each of {', '.join(self.among)}, paired by "
            f"seed (each at 5%); contradicted where any of them is better than it (corrected by Holm for their number)."
        )

    def judge(self, results: Results) -> tuple[Answer, str]:
        """See `Better.judge`."""
        return BetterInEvery(tuple((self.arm, other) for other in self.among), self.metric).judge(results)


@dataclass(frozen=True)
class Above:
    """Supported where the 95% t interval of metric minus `than` lies above 0 (and the bootstrap's too), contradicted
    where it lies below. `than` is a number, or another metric of the same trials; `arm` is the study's baseline unless
    named. The same difference in three or more seeds counts as it is. The test trusts the noise to be symmetric: where
    it has a long tail, the side away from the tail is found too often (exponential noise, three seeds: in 11% of
    studies in place of 2.5%).
    """

    metric: str
    than: float | str
    arm: str | None = None

    def text(self) -> str:
        """Return the rule in words, with its values."""
        arm = self.arm or "the study's baseline"
        return (
            f"Supported where the 95% interval of {self.metric} minus {_shown(self.than)}, in {arm} and seed by seed, "
            f"lies above 0; contradicted where it lies below."
        )

    def judge(self, results: Results) -> tuple[Answer, str]:
        """Return the answer and its evidence.

        Raises `InputError` where the arm was not run or a metric not measured.
        """
        arm = self.arm or results.baseline
        keys = [_measured(results, name) for name in (self.metric, self.than) if isinstance(name, str)]
        own, *other = (values_by_seed(results.final, key, [_run(results, arm)])[arm] for key in keys)
        found = paired_test(own - (other[0] if other else float(self.than)), own.mean())
        rows = results.final[(results.final["arm"] == arm) & results.final["metric"].isin(keys)]
        differs = called(*(np.array(found[name]) for name in ("p", "bootstrap_low", "bootstrap_high")))
        fixed = found["pairs"] >= FIXED_FROM and np.isnan(found["p"])
        answer: Answer = "inconclusive"
        if np.isfinite(rows["value"]).all() and (differs or fixed) and found["difference"]:
            answer = "supported" if found["difference"] > 0 else "contradicted"
        beside = metric_named(keys[1]).label if other else _shown(self.than)
        return answer, f"{metric_named(keys[0]).label} minus {beside}, in {arm}: {_told(results, found, [arm])}"


@dataclass(frozen=True)
class Exact:
    """Supported where what no chance enters is off by at most `tolerance` (see `Results.exact`), else contradicted."""

    fact: str
    tolerance: float

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return f"Supported where {self.fact} is off by at most {_shown(self.tolerance)}; else contradicted."

    def judge(self, results: Results) -> tuple[Answer, str]:
        """Return the answer and its evidence; raises `InputError` where the fact was not measured."""
        if self.fact not in results.exact:
            raise InputError(f"{self.fact} was not measured")
        gap = results.exact[self.fact]
        answer: Answer = "supported" if gap <= self.tolerance else "contradicted"
        return answer, f"{self.fact} is off by {_shown(gap)}; {_shown(self.tolerance)} is allowed"


@dataclass(frozen=True)
class NotTested:
    """Not tested, for the reason that is given."""

    why: str

    def text(self) -> str:
        """Return the rule in words, with its values."""
        return "Not tested."

    def judge(self, results: Results) -> tuple[Answer, str]:
        """Return the reason."""
        return "not tested", self.why


Rule = Better | AsGoodAs | BetterInEvery | Best | Above | Exact | NotTested


@dataclass(frozen=True)
class Alternative:
    """Another explanation of what supports a claim, and what tells of it: arms of the same study, its controls.

    It is ruled out where `ruled_out_by` is supported, a test of the claim's own arm against the control, or `shown_by`
    contradicted, the claim's test of the control alone. Else it stands where `shown_by` is supported, and is not ruled
    out otherwise. As all of a claim's alternatives have to be ruled out, each is tested at 5%.
    """

    explanation: str
    shown_by: Rule | None = None
    ruled_out_by: Rule | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The tests that there are."""
        return tuple(rule for rule in (self.ruled_out_by, self.shown_by) if rule)

    def judge(self, verdict: Answer, results: Results) -> str:
        """Return the explanation, whether it is ruled out, and the numbers, in one line.

        verdict : on the claim; one that is not supported shows nothing that had to be explained.
        """
        found = {rule: _answer(rule, results) for rule in self.rules}
        against, by_itself = (found[rule][0] if rule else None for rule in (self.ruled_out_by, self.shown_by))
        said = "not ruled out"
        if verdict != "supported":
            said = "no effect to explain"
        elif {against, by_itself} <= {None, "not tested"}:
            said = "not tested"
        elif against == "supported" or by_itself == "contradicted":
            said = "ruled out"
        elif by_itself == "supported":
            said = "stands"
        return f"{self.explanation}: {said} ({'; '.join(numbers for _, numbers in found.values())})"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, or ours of what it says, and the measurable test that decides it."""

    name: str
    sentence: str
    source: str
    """Where the sentence is from, and whether in the paper's words or in ours."""
    study: str | None
    """Name of the study that tests it; None where no study does."""
    rule: Rule
    limits: str
    """What even a decided verdict does not cover."""
    alternatives: tuple[Alternative, ...] = ()
    """What else could be behind it, as far as arms of the same study can tell."""


@dataclass(frozen=True)
class Verdict:
    """What a study's results say of a claim."""

    claim: Claim
    verdict: Answer
    evidence: str
    """The numbers: difference, 95% interval, seeds; or why there are none."""
    alternatives: tuple[str, ...] = ()
    """See `Alternative.judge`."""
    scale: str = ""
    """On what, and how large; "" where nothing was run."""
    command: str = ""
    """What runs it again."""


def load_claims(experiments: Path) -> list[Claim]:
    """Return the claims that `experiments/claims.py` lists as `CLAIMS`, in order; none without such a file.

    Raises `InputError` for a file that does not run, lists no claims, or names one twice.
    """
    path = experiments / "claims.py"
    if not path.exists():
        return []
    claims = getattr(run_file(path), "CLAIMS", None)
    if not isinstance(claims, Sequence) or not all(isinstance(claim, Claim) for claim in claims):
        raise InputError(f"{path} defines no `CLAIMS = [Claim(...), ...]`")
    names = [claim.name for claim in claims]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path} defines a second claim called {twice!r}")
    return list(claims)


def judge(claims: Iterable[Claim], results: Results) -> list[Verdict]:
    """Return the verdicts on the claims that the study of `results` tests, in order.

    A claim whose arm was not run or whose metric was not measured is "not tested", and the evidence says why.
    """
    return [_verdict(claim, results) for claim in claims if claim.study == results.study]


def judge_all(claims: Iterable[Claim], studies: Iterable[Results]) -> list[Verdict]:
    """Return one verdict on every claim, in order; "not tested" where its study is not among `studies`."""
    by_study: dict[str | None, Results] = {results.study: results for results in studies}
    return [_verdict(claim, by_study.get(claim.study)) for claim in claims]


def _verdict(claim: Claim, results: Results | None) -> Verdict:
    if isinstance(claim.rule, NotTested):
        return Verdict(claim, "not tested", claim.rule.why)
    if results is None:
        return Verdict(claim, "not tested", f"study {claim.study} was not run")
    answer, evidence = _answer(claim.rule, results)
    alternatives = tuple(other.judge(answer, results) for other in claim.alternatives)
    scale = results.data_in_words if isinstance(claim.rule, Exact) else results.scale_in_words
    return Verdict(claim, answer, evidence, alternatives, scale, results.command)


def _answer(rule: Rule, results: Results) -> tuple[Answer, str]:
    try:
        return rule.judge(results)
    except InputError as reason:
        return "not tested", str(reason)


def _run(results: Results, arm: str) -> str:
    """Return the arm, if it was run."""
    if arm not in results.arms:
        raise InputError(f"arm {arm!r} was not run")
    return arm


def _measured(results: Results, metric: str) -> str:
    """Return the key that `metric` means among what was measured."""
    key = find_metric(metric, results.final["metric"])
    if key is None:
        raise InputError(f"{metric} was not measured")
    return key


def _pair(results: Results, metric: str, arm: str, than: str, family: Sequence[str] = ()) -> tuple[pd.Series, str]:
    """Compare `arm` with `than`; return the row of `compare_with_baseline`, and the same in words.

    family : the arms, each compared with its baseline, that Holm corrects for; empty: the one comparison.
    """
    arms = [_run(results, name) for name in dict.fromkeys([than, arm, *family])]
    key = _measured(results, metric)
    if metric_named(key).better is None:
        raise InputError(f"of {key} neither more nor less is better")
    table = compare_with_baseline(results.final, key, results.baselines if family else than, arms)
    row = cast(pd.Series, table.loc[arm])
    tested = int(table["p"].notna().sum())
    corrected = f" ({p_text(row['p_holm'])} by Holm over {tested} arms)" if tested > 1 and row["p"] >= 0 else ""
    told = f"{arm} minus {than} in {metric_named(key).label}: {_told(results, row, [arm, than])}{corrected}"
    seen = f" (could be seen from {_shown(row['detectable'])})" if row["detectable"] > 0 else ""
    return row, f"{told}: {row['finding']}{seen if row['finding'] == 'inconclusive' else ''}"


def _told(results: Results, found: Mapping[Any, Any] | pd.Series, arms: Sequence[str]) -> str:
    """Say a paired difference with its interval and seeds, and which trials of the arms it is without."""
    pairs, lost = int(found["pairs"]), results.missing[results.missing["arm"].isin(arms)]
    without = "".join(f", seed {trial.seed} of {trial.arm} {trial.status}" for trial in lost.itertuples())
    if not pairs:
        return f"no seed has a value to compare{without}"
    interval = ""
    if pairs > 1:
        interval = f" [{_shown(found['difference_low'], '+')}, {_shown(found['difference_high'], '+')}]"
    p = f", p {_relation(p_text(found['p']))}" if found["p"] >= 0 else ""
    return f"{_shown(found['difference'], '+')}{interval}, {pairs} seed{'' if pairs == 1 else 's'}{without}{p}"


def _relation(p: str) -> str:
    return f"< {p[1:]}" if p.startswith("<") else f"= {p}"


def _shown(value: float | str, sign: str = "") -> str:
    """Format a number to four digits, with a true minus sign; a name stays as it is."""
    if isinstance(value, str):
        return value
    return f"{value:{sign if value else ''}.4g}".replace("-", "\N{MINUS SIGN}")
