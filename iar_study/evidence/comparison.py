"""Two stores side by side: a study as two machines, or two commits, found it, and whether they agree.

Three questions, apart from each other. Was the same asked, on the same inputs, by the same code and machine? Do trials
of the same hash have the same values, as promised? And does the science agree: is what an arm differs from its baseline
the same in both, but for the noise of seeds?
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from iar_study.errors import InputError, listed, nearest
from iar_study.evaluation.metrics import metric_named
from iar_study.evidence.claims import Claim, judge
from iar_study.evidence.results import Results, load_results
from iar_study.evidence.rules import NO, YES
from iar_study.evidence.statistics import ALPHA, COMPARISON_COLUMNS, compare_with_baseline, holm
from iar_study.pipeline.workspace import Workspace

AGREE, DIFFER, TOO_FEW, SAME_TRIALS = "agree within noise", "differ", "too few seeds", "the same trials"
OPPOSITE = "opposite"

OF_EACH = tuple(name for name in COMPARISON_COLUMNS if name not in ("p", "least", "most", "detectable"))
"""What the table of arms has of A and of B, out of `compare_with_baseline`."""

ARM_COLUMNS = (
    "metric",
    "arm",
    "baseline",
    *(f"{store}_{name}" for store in "ab" for name in OF_EACH),
    "shared",
    "gap",
    "gap_low",
    "gap_high",
    "p",
    "p_holm",
    "finding",
)

Pairs = dict[tuple[str, str], tuple[int, float, float]]
"""Hashes of an arm's trial and of its baseline's -> their seed and their values in one metric."""


@dataclass(frozen=True)
class Comparison:
    """A study as two stores, A and B, have it.

    Attributes
    ----------
    a, b : what each found.
    asked : what was asked for that is not the same: name, a, b. Empty where both asked the same.
    recorded : what trials of the same arm and seed say of themselves that is not the same: what ("setting", "input",
        "code" or "environment"), name, a, b, arms (those it holds for). Where an arm has no seed in both, all its
        seeds are taken together, and settings that are seeds left out.
    trials : one row per trial (hash) that both have: trial, arm, seed, values, differing (how many of the values are
        not the same to the bit), largest (relative difference; inf where one alone is finite or measured), metric
        (of the largest), apart ("code", "environment", both or none: what was not the same when they ran, uncommitted
        changes being unknown code).
    arms : one row per metric and arm that both have, see `compare_arms`.
    unmatched : metric -> its key in A and in B (None: not measured), where these are not the same.
    verdicts : one row per claim: claim, a, b, agreement ("same", "differ"; "opposite" where one store supports what the
        other contradicts), a_evidence, b_evidence.
    """

    a: Results
    b: Results
    asked: pd.DataFrame
    recorded: pd.DataFrame
    trials: pd.DataFrame
    arms: pd.DataFrame
    unmatched: dict[str, tuple[str | None, str | None]]
    verdicts: pd.DataFrame

    @property
    def study(self) -> str:
        return self.a.study

    @property
    def disagreements(self) -> dict[str, int]:
        """What is in the way of agreement -> how often. An answer that is undecided in one store is not: of two
        stores that agree one may have just enough seeds, and the other just not."""
        found = {
            "trial": int((self.trials["differing"] > 0).sum()),
            "arm": int((self.arms["finding"] == DIFFER).sum()),
            "verdict": int((self.verdicts["agreement"] == OPPOSITE).sum()),
        }
        return {what: count for what, count in found.items() if count}


@dataclass(frozen=True)
class Stores:
    """All studies of two stores: those that both have compared, the others named."""

    both: list[Comparison]
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    """Study that both have -> why it could not be compared."""

    @property
    def agree(self) -> bool:
        return not any(comparison.disagreements for comparison in self.both)


def compare_stores(
    a: Workspace,
    b: Workspace,
    claims: Iterable[Claim],
    metrics: Mapping[str, Sequence[str]],
    study: str | None = None,
) -> Stores:
    """Compare the last run of every study that both stores have, or of one.

    metrics : kind of study -> the metrics, keys or families, that arms are compared in.

    Raises
    ------
    InputError : the stores have no study in common, or not this one; or none of them can be read.
    """
    names_a, names_b = ({path.stem for path in store.studies.glob("*.json")} for store in (a, b))
    common = sorted(names_a & names_b)
    if not common:
        raise InputError(f"nothing to compare: of studies, A has {listed(names_a)} and B has {listed(names_b)}")
    if study is not None and study not in common:
        lack = " and ".join(store for store, names in (("A", names_a), ("B", names_b)) if study not in names)
        raise InputError(f"study {study!r} is not in {lack}; of those in both, {nearest(study, common)}")
    both, unread, claims = [], {}, list(claims)
    for name in common if study is None else [study]:
        try:
            of_a, of_b = _load(a, name, "A"), _load(b, name, "B")
            both.append(compare(of_a, of_b, metrics[of_a.kind], claims))
        except InputError as reason:
            unread[name] = str(reason)
    if not both:
        raise InputError("; ".join(unread.values()))
    if study is not None:
        return Stores(both)
    return Stores(both, sorted(names_a - names_b), sorted(names_b - names_a), unread)


def _load(store: Workspace, study: str, name: str) -> Results:
    try:
        return load_results(store, study)
    except InputError as reason:
        raise InputError(f"in {name}: {reason}") from reason


def compare(a: Results, b: Results, metrics: Sequence[str], claims: Iterable[Claim] = ()) -> Comparison:
    """Compare what two stores found in a study.

    metrics : keys or families that arms are compared in. claims : judged by the same rules in both.
    """
    keys = {name: (a.find(name), b.find(name)) for name in metrics}
    tables = [compare_arms(a, b, key) for key, other in keys.values() if key is not None and key == other]
    filled = [table for table in tables if len(table)]
    return Comparison(
        a=a,
        b=b,
        asked=_asked(a, b),
        recorded=_recorded(a, b),
        trials=_same_hash(a, b),
        arms=pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(ARM_COLUMNS)),
        unmatched={name: both for name, both in keys.items() if both[0] != both[1] or both[0] is None},
        verdicts=_verdicts(a, b, list(claims)),
    )


def _asked(a: Results, b: Results) -> pd.DataFrame:
    told = [
        {
            "profile": results.profile,
            "kind": results.kind,
            "baseline": results.baseline,
            "arms of one alone": ", ".join(arm for arm in results.arms if arm not in other.arms),
            "seeds": ", ".join(map(str, results.seeds)),
            **{f"--set {key}": value for key, value in results.settings.items()},
        }
        for results, other in ((a, b), (b, a))
    ]
    rows = [(name, *(of.get(name, "") for of in told)) for name in dict.fromkeys([*told[0], *told[1]])]
    return pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["name", "a", "b"])


def _recorded(a: Results, b: Results) -> pd.DataFrame:
    said = [_said(results) for results in (a, b)]
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for arm in (arm for arm in a.arms if arm in said[0] and arm in said[1]):
        common = said[0][arm].keys() & said[1][arm].keys()
        facts = [[of[arm][seed] for seed in sorted(common or of[arm])] for of in said]
        for what, name in dict.fromkeys(key for of in facts for trial in of for key in trial):
            if not common and name.rpartition(".")[2] == "seed":
                continue
            in_a, in_b = ([trial.get((what, name), "absent") for trial in of] for of in facts)
            # Without a seed in both, what differs by seed has no partner to be compared with.
            if in_a != in_b if common else set(in_a) != set(in_b):
                shown_a, shown_b = (", ".join(dict.fromkeys(values)) for values in (in_a, in_b))
                found.setdefault((what, name, shown_a, shown_b), []).append(arm)
    rows = [(*key, ", ".join(arms)) for key, arms in found.items()]
    return pd.DataFrame(rows, columns=["what", "name", "a", "b", "arms"])


def _said(results: Results) -> dict[str, dict[int, dict[tuple[str, str], str]]]:
    """Return arm -> seed -> what the trial says of itself, each fact as text."""
    said: dict[str, dict[int, dict[tuple[str, str], str]]] = {}
    for trial in results.trials:
        dirty = " with uncommitted changes" if trial["code"]["dirty"] else ""
        parts = {
            "setting": trial["config"],
            "input": {"data": trial["data"]["digest"]} | trial["inputs"],
            "code": {"commit": trial["code"]["commit"] + dirty},
            "environment": trial["environment"],
        }
        facts = {(what, name): str(value) for what, part in parts.items() for name, value in part.items()}
        said.setdefault(trial["arm"], {})[trial["seed"]] = facts
    return said


def _same_hash(a: Results, b: Results) -> pd.DataFrame:
    """Compare the final values of the trials that both have; an arm of two names is one trial."""
    columns = ["trial", "arm", "seed", "values", "differing", "largest", "metric", "apart"]
    values = [_values(results.final) for results in (a, b)]
    records = [{trial["trial"]: trial for trial in results.trials} for results in (a, b)]
    first = a.final.drop_duplicates("trial")
    first = first[first["trial"].isin(values[1])]
    rows = []
    for arm, seed, trial in zip(first["arm"], first["seed"], first["trial"], strict=True):
        of_a, of_b = values[0][trial], values[1][trial]
        keys = list(of_a | of_b)
        # Of a diverged trial there is NaN for what the others have, so that what is absent is the same as NaN.
        gaps = relative_difference(*([of.get(key, np.nan) for key in keys] for of in (of_a, of_b)))
        largest = int(gaps.argmax())
        where = keys[largest] if gaps[largest] else ""
        apart = _apart(records[0].get(trial), records[1].get(trial))
        rows.append((trial, arm, seed, len(keys), int((gaps > 0).sum()), float(gaps[largest]), where, apart))
    return pd.DataFrame(rows, columns=columns)


def _values(final: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return trial -> metric -> value."""
    by_trial = final.astype({"value": float}).groupby("trial")
    return {str(trial): dict(zip(of["metric"], of["value"], strict=True)) for trial, of in by_trial}


def _apart(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> str:
    """Return what of code and environment was not the same when two trials ran, as far as they recorded it."""
    if a is None or b is None:
        return "code, environment"
    code = a["code"] != b["code"] or a["code"]["dirty"]
    environment = a["environment"] != b["environment"]
    return ", ".join(name for name, differs in (("code", code), ("environment", environment)) if differs)


def relative_difference(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Return, elementwise, the difference as a share of the larger of the two; 0 for the same bits alone.

    NaN is the same as NaN; a number that is not finite is infinitely far from any other.

    >>> relative_difference([2.0, 1.0, float("nan"), 1.0], [1.0, 1.0, float("nan"), float("inf")]).tolist()
    [0.5, 0.0, 0.0, inf]
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    finite = np.isfinite(x) & np.isfinite(y)
    size = np.where(finite & ~same, np.maximum(np.abs(x), np.abs(y)), 1.0)
    # Divided first: the difference of two large numbers may be too large for a float.
    share = np.abs(np.where(finite, x, 0) / size - np.where(finite, y, 0) / size)
    return np.where(same, 0.0, np.where(finite, share, np.inf))


def compare_arms(a: Results, b: Results, metric: str) -> pd.DataFrame:
    """Compare, arm by arm, two stores in one metric: its values, and whether it differs from the baseline as much.

    Returns
    -------
    DataFrame, one row per arm that both have: `metric`, `arm`, the `baseline` it is compared with (in A); of each store
    (`a_mean`, `b_mean`, ...) what `compare_with_baseline` says; how many pairs of arm and baseline are `shared`, the
    same trials with the same values; and, of the pairs that are not, the `gap`: the mean paired difference in B minus
    that in A (of a relative metric, of logs of ratios), with its 95% Welch interval (`gap_low`, `gap_high`), `p`,
    `p_holm` (corrected for all arms that are tested in this metric), and the `finding`:

    - "baseline" for a baseline itself; "other baseline" where the arm is not compared with the same one in both;
    - "the same trials" where all pairs of one store are in the other too: that they agree says nothing;
    - "equal" where the differences are the same numbers (but for a rounding of 1e-12), seed by seed or, without any
      spread, whatever the seed. A statement about these numbers, so that one seed suffices for it;
    - "too few seeds" where either store has fewer than two pairs that are its own;
    - "differ" where `p_holm` is below 0.05;
    - "agree within noise" otherwise: no difference could be shown, and `gap_low` and `gap_high` say how large one may
      be all the same;
    - "undecided" where a value is not finite, for the seeds that survived are then a selection; and where two
      different numbers have no spread, for no interval can be drawn from them.

    What all seeds of a store have in common, such as its tokenizer, is no part of the noise: where it is another one in
    the other store (see `Comparison.recorded`), "differ" may be due to it.

    Where the stores have seeds in common, whose differences are then not quite independent, the test is cautious.
    """
    of_a, of_b = (
        compare_with_baseline(results.final, metric, results.baselines, list(results.arms), draws=results.draws)
        for results in (a, b)
    )
    rows = []
    for arm in (arm for arm in a.arms if arm in b.arms):
        row: dict[str, Any] = {"metric": metric, "arm": arm, "baseline": a.baselines[arm]}
        for store, table in (("a", of_a), ("b", of_b)):
            row |= {f"{store}_{name}": table[name][arm] for name in OF_EACH}
        rows.append(row | _compare_pairs(a, b, metric, arm))
    table = pd.DataFrame(rows).reindex(columns=list(ARM_COLUMNS))
    corrected = holm(table["p"].astype(float))
    finding = table["finding"].mask(corrected < ALPHA, DIFFER)
    return table.assign(shared=table["shared"].astype("Int64"), p_holm=corrected, finding=finding)


def _compare_pairs(a: Results, b: Results, metric: str, arm: str) -> dict[str, Any]:
    """Return what `compare_arms` says of one arm, "differ" being left to the correction for all arms."""
    than = [results.baselines[arm] for results in (a, b)]
    if than[0] != than[1]:
        return {"finding": "other baseline"}
    if arm == than[0]:
        return {"finding": "baseline"}
    pairs_a, pairs_b = (_pairs(results, metric, arm) for results in (a, b))
    shared = {
        trials
        for trials in pairs_a.keys() & pairs_b.keys()
        if not relative_difference(pairs_a[trials][1:], pairs_b[trials][1:]).any()
    }
    own_a, own_b = (
        {seed: (value, other) for trials, (seed, value, other) in pairs.items() if trials not in shared}
        for pairs in (pairs_a, pairs_b)
    )
    if not (own_a and own_b):
        return {"shared": len(shared), "finding": SAME_TRIALS if shared else TOO_FEW}
    return {"shared": len(shared), **_gap(own_a, own_b)}


def _gap(a: Mapping[int, tuple[float, float]], b: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    """Compare the paired differences of two stores, seed -> values of arm and baseline, in order of seeds."""
    values_a, values_b = np.array(list(a.values())), np.array(list(b.values()))
    if not (np.isfinite(values_a).all() and np.isfinite(values_b).all()):
        return {"finding": "undecided"}
    x, y = values_a[:, 0] - values_a[:, 1], values_b[:, 0] - values_b[:, 1]
    rounding = 1e-12 * max(np.abs(values_a).max(), np.abs(values_b).max())
    gap = float(y.mean() - x.mean())
    if a.keys() == b.keys() and np.abs(x - y).max() <= rounding:
        return {"gap": gap, "finding": "equal"}
    if min(x.size, y.size) < 2:
        return {"gap": gap, "finding": TOO_FEW}
    if max(np.ptp(x), np.ptp(y)) <= rounding:
        return {"gap": gap, "finding": "equal" if abs(gap) <= rounding else "undecided"}
    found = stats.ttest_ind(y, x, equal_var=False)
    low, high = map(float, found.confidence_interval())
    return {"gap": gap, "gap_low": low, "gap_high": high, "p": float(found.pvalue), "finding": AGREE}


def _pairs(results: Results, metric: str, arm: str) -> Pairs:
    rows = results.final[results.final["metric"] == metric].sort_values("seed")
    if metric_named(metric, results.final["metric"]).relative:
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = rows.assign(value=np.log(rows["value"].astype(float)))
    of, than = (rows[rows["arm"] == name] for name in (arm, results.baselines[arm]))
    both = of.merge(than, on="seed", suffixes=("", "_than"))
    columns = (both[name] for name in ("trial", "trial_than", "seed", "value", "value_than"))
    return {(one, other): (seed, float(a), float(b)) for one, other, seed, a, b in zip(*columns, strict=True)}


def _verdicts(a: Results, b: Results, claims: Sequence[Claim]) -> pd.DataFrame:
    rows = []
    for of_a, of_b in zip(judge(claims, a), judge(claims, b), strict=True):
        answers = {of_a.answer, of_b.answer}
        opposite = bool(answers & YES) and bool(answers & NO)
        agreement = "same" if len(answers) == 1 else OPPOSITE if opposite else "differ"
        rows.append((of_a.claim.name, of_a.answer, of_b.answer, agreement, of_a.evidence, of_b.evidence))
    return pd.DataFrame(rows, columns=["claim", "a", "b", "agreement", "a_evidence", "b_evidence"])
