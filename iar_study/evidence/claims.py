"""The paper's claims as data, with their past, and what a study's results say of each.

What counts as a test of the paper is a sentence of the paper whose rule stood before the data: over these, and over
nothing else, Holm's correction goes (`counted`). The rest is shown beside, as exploratory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, get_args

from iar_study.errors import InputError
from iar_study.evidence.results import Results
from iar_study.evidence.rules import NO, YES, Answer, Exact, Found, NotTested, Row, Rule
from iar_study.evidence.statistics import ALPHA, MARGIN, holm
from iar_study.study.study import run_file

Kind = Literal["identity", "observation", "effect", "exploratory"]
"""What a claim is about: what holds by algebra, the codes alone, whether IAR helps, or a question that data raised."""


@dataclass(frozen=True)
class Alternative:
    """Another explanation of an effect, and the test of the claim's own arm against its control.

    It is asked only where the claim's answer is yes, and makes no claim harder. Ruled out where the test says yes; else
    it stands where `shown_by`, the same test of the control alone, says yes; else it is not ruled out.
    """

    explanation: str
    ruled_out_by: Rule
    shown_by: Rule | None = None

    def judge(self, answer: Answer, results: Results) -> str:
        """Return the explanation, whether it is ruled out, and the numbers, in one line.

        answer : to the claim; one that is not yes shows nothing that had to be explained.
        """
        against = _found(self.ruled_out_by, results)
        by_itself = _found(self.shown_by, results) if self.shown_by else None
        said = "not ruled out"
        if answer not in YES:
            said = "no effect to explain"
        elif against.answer == "not tested":
            said = "not tested"
        elif against.answer in YES:
            said = "ruled out"
        elif by_itself and by_itself.answer in YES:
            said = "stands"
        numbers = "; ".join(found.evidence for found in (against, by_itself) if found)
        return f"{self.explanation}: {said} ({numbers})"


@dataclass(frozen=True)
class Past:
    """Since when a rule stands as it is (an ISO date), and whether whoever made it could have seen the study's data."""

    since: str
    after_data: bool

    def __post_init__(self) -> None:
        """Refuse what is no date, and what is neither yes nor no."""
        try:
            date.fromisoformat(self.since)
        except (TypeError, ValueError):
            raise InputError(f"a rule stands since {self.since!r}; give a date such as 2026-11-27") from None
        if not isinstance(self.after_data, bool):
            raise InputError(f"whether data existed before the rule is {self.after_data!r}; say True or False")

    def text(self) -> str:
        """Return it in words."""
        return f"{self.since}, {'after' if self.after_data else 'before'} the data"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, or ours of what it says, and the measurable test that decides it.

    Attributes
    ----------
    source : where the sentence stands in the paper, or "ours".
    kind : what it is about.
    study : the name of the study that tests it; None where no study does.
    past : since when the rule stands as it is, and whether data of that study existed then.
    limits : what even a decided answer does not cover.
    alternatives : what else could be behind it, as far as arms of the same study can tell.
    pooled : of which method its comparisons are conditions, which "does IAR help?" is answered over; "": of none.
    """

    name: str
    sentence: str
    source: str
    kind: Kind
    study: str | None
    rule: Rule
    past: Past
    limits: str
    alternatives: tuple[Alternative, ...] = ()
    pooled: str = ""

    def __post_init__(self) -> None:
        """Refuse an entry that does not tell where it is from, what it is about and what it does not cover."""
        if self.kind not in get_args(Kind):
            raise InputError(f"claim {self.name!r}: its kind is {self.kind!r}; known: {', '.join(get_args(Kind))}")
        if not (self.sentence.strip() and self.source.strip() and self.limits.strip()):
            raise InputError(f"claim {self.name!r} lacks its sentence, its source or its limits; tell them")
        if not isinstance(self.past, Past):
            raise InputError(f"claim {self.name!r} does not tell since when its rule stands: give a Past")

    @property
    def counts(self) -> bool:
        """Whether its answer is a test of the paper: the paper's sentence, and a rule that stood before the data."""
        asked = self.kind in ("observation", "effect") and not isinstance(self.rule, NotTested)
        return asked and self.source != "ours" and not self.past.after_data


@dataclass(frozen=True)
class Verdict:
    """What a study's results say of a claim."""

    claim: Claim
    answer: Answer
    evidence: str
    """The numbers: change, 95% interval, pairs; or why there are none."""
    rows: tuple[Row, ...] = ()
    p: float = math.nan
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


def counted(claims: Sequence[tuple[str, Answer, float]]) -> dict[str, str]:
    """Return what is said of the claims that count, by Holm over them: "supported", "contradicted", "undecided", ...

    claims : of each its name, answer and p (NaN where no single comparison decides it).
    """
    adjusted: list[float] = holm([p for _, _, p in claims]).tolist() if claims else []
    said = {}
    for (name, answer, _), p in zip(claims, adjusted, strict=True):
        if answer in YES:
            said[name] = "undecided" if p >= ALPHA else "supported"
        elif answer == "equivalent":
            said[name] = f"no gain of {MARGIN:.0%} or more"
        elif answer in NO:
            said[name] = "undecided" if answer == "worse" and p >= ALPHA else "contradicted"
        else:
            said[name] = "undecided" if answer == "among the best" else answer
    return said


def _verdict(claim: Claim, results: Results | None) -> Verdict:
    if isinstance(claim.rule, NotTested):
        return Verdict(claim, "not tested", claim.rule.why)
    if results is None:
        return Verdict(claim, "not tested", f"study {claim.study} was not run")
    found = _found(claim.rule, results)
    alternatives = tuple(other.judge(found.answer, results) for other in claim.alternatives)
    scale = results.data_in_words if isinstance(claim.rule, Exact) else results.scale_in_words
    return Verdict(claim, found.answer, found.evidence, found.rows, found.p, alternatives, scale, results.command)


def _found(rule: Rule, results: Results) -> Found:
    try:
        return rule.judge(results)
    except InputError as reason:
        return Found("not tested", str(reason))
