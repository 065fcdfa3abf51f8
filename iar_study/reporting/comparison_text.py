"""Two stores side by side at a terminal: what was asked, whether values are the same, and whether findings agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from iar_study.evaluation.metrics import Metric, metric_named
from iar_study.evidence.comparison import DIFFER, OPPOSITE, Comparison, Stores
from iar_study.evidence.results import Results
from iar_study.evidence.rules import percent
from iar_study.evidence.statistics import p_text
from iar_study.reporting.needs_text import aligned
from iar_study.reporting.results_text import write_csv
from iar_study.reporting.tables import interval_text, number
from iar_study.running.needs import plural

SHORT = {"input": 16, "code": 10}
"""Characters of a digest and of a commit that are shown."""

MINUS = "B \N{MINUS SIGN} A"

REASONS = {
    "": "ran with the same code and environment, as far as recorded: on one machine that is a broken promise",
    "code": "ran in the same environment, but with other or uncommitted code",
    "environment": "ran in another environment: rounding by other hardware or libraries may be all of it",
    "code, environment": "ran with other or uncommitted code, in another environment",
}
"""What was not the same when trials of the same hash ran -> what their different values then mean."""

HOW_TO_READ = f"""\
[ ]: 95% intervals. {MINUS}: the difference from the baseline in B minus that in A, with Welch's interval, over the
trials that are not the same in both. differ: p below 5%, corrected by Holm for the arms. agree within noise: not shown
to differ; the interval says by how much they may. !: a disagreement (exit code 1), of verdicts only where one store
supports what the other contradicts; <: verdicts that differ otherwise."""


def comparison_text(found: Stores, a: str, b: str) -> str:
    """Return two stores, called `a` and `b`, as text: study by study, and last whether they agree."""
    named = [["A", a], ["B", b]]
    named += [[f"only {store}", ", ".join(only)] for store, only in (("A", found.only_a), ("B", found.only_b)) if only]
    named += [["not compared", f"{study}: {reason}"] for study, reason in found.unread.items()]
    parts = ["\n".join(aligned(named)), *("\n".join(_study(comparison)) for comparison in found.both)]
    return "\n\n".join([*parts, HOW_TO_READ, _conclusion(found)])


def export_comparison(found: Stores, path: str) -> int:
    """Write the table of arms of all studies as CSV, atomically, and return its rows.

    path : "-" prints it.

    Raises
    ------
    InputError : the file cannot be written.
    """
    tables = {comparison.study: comparison.arms for comparison in found.both}
    return write_csv(pd.concat(tables, names=["study"]).reset_index("study").reset_index(drop=True), path)


def _study(comparison: Comparison) -> list[str]:
    return [
        comparison.study,
        *_asked(comparison),
        *_recorded(comparison),
        *_trials(comparison),
        *_arms(comparison),
        *_verdicts(comparison),
    ]


def _asked(comparison: Comparison) -> list[str]:
    ended = "; ".join(f"{store} {_ended(of)}" for store, of in (("A", comparison.a), ("B", comparison.b)))
    if not len(comparison.asked):
        return [f"  asked: the same, at {comparison.a.profile}; ended: {ended}"]
    rows = [
        [f"    {row['name']}", f"A: {row['a'] or 'none'}", f"B: {row['b'] or 'none'}"]
        for row in comparison.asked.to_dict("records")
    ]
    return [f"  asked: not the same; ended: {ended}", *aligned(rows)]


def _ended(results: Results) -> str:
    ended = len(results.final.drop_duplicates(["arm", "seed"]))
    unfinished = int((results.missing["status"] == "not finished").sum())
    return f"{ended} of {plural(ended + unfinished, 'trial')}"


def _recorded(comparison: Comparison) -> list[str]:
    if not comparison.a.trials or not comparison.b.trials:
        return []
    if not len(comparison.recorded):
        return ["  recorded: the same settings, inputs, code and environment"]
    everywhere = ", ".join(arm for arm in comparison.a.arms if arm in comparison.b.arms)
    rows = []
    for row in comparison.recorded.to_dict("records"):
        values = [_short(row["what"], row[of]) for of in ("a", "b")]
        where = "" if row["arms"] == everywhere else f"({row['arms']})"
        rows.append([f"    {row['what']}", row["name"], f"A: {values[0]}", f"B: {values[1]}", where])
    return ["  recorded: not the same", *aligned(rows)]


def _short(what: str, value: str) -> str:
    """Shorten the digests and commits of a fact, each of which is a word without its end."""
    if what not in SHORT:
        return value
    return ", ".join(
        " ".join([word[: SHORT[what]], *more]) for word, *more in (part.split(" ") for part in value.split(", "))
    )


def _trials(comparison: Comparison) -> list[str]:
    trials = comparison.trials
    if not len(trials):
        return ["  trials of the same hash: none"]
    broken = trials[trials["differing"] > 0]
    same = len(trials) - len(broken)
    head = f"  trials of the same hash: {len(trials)}; final values the same to the bit in {same}"
    if not len(broken):
        return [head]
    worst = max(broken.to_dict("records"), key=lambda row: row["largest"])
    where = f"{worst['metric']} of {worst['arm']}, seed {worst['seed']} ({worst['trial'][:16]})"
    lines = [
        f"{head}, not in {len(broken)}",
        f"  ! {broken['differing'].sum()} of their {plural(int(broken['values'].sum()), 'value')} differ",
        f"    the largest relative difference is {worst['largest']:.2g}: {where}",
    ]
    counts = broken["apart"].value_counts().to_dict()
    return lines + [f"    {plural(counts[apart], 'trial')} {why}" for apart, why in REASONS.items() if apart in counts]


def _arms(comparison: Comparison) -> list[str]:
    lines = [
        f"  {name}: not compared; A measured {a or 'none'}, B measured {b or 'none'}"
        for name, (a, b) in comparison.unmatched.items()
    ]
    if not len(comparison.arms):
        return [*lines, "  arms: none in both that were measured alike"]
    for key, table in comparison.arms.groupby("metric", sort=False):
        about = metric_named(str(key), table["metric"])
        rows = table.to_dict("records")
        head = ", ".join(filter(None, (about.label, about.direction)))
        lines += [f"  {head}", *aligned(_means(rows, about)), *aligned(_differences(rows, about))]
    return lines


def _means(rows: Sequence[Mapping[Any, Any]], about: Metric) -> list[list[str]]:
    cells = [["    mean (* is a baseline)", "A", "B"]]
    for row in rows:
        mark = " *" if row["finding"] == "baseline" else ""
        each = [f"{_estimate(row, f'{of}_mean', f'{of}_', about)} (n={row[f'{of}_n']})" for of in ("a", "b")]
        cells.append([f"      {row['arm']}{mark}", *each])
    return cells


def _differences(rows: Sequence[Mapping[Any, Any]], about: Metric) -> list[list[str]]:
    cells = [["    difference from baseline", "A", "B", MINUS]]
    for row in rows:
        if row["finding"] == "baseline":
            continue
        each = [
            f"{_estimate(row, f'{of}_difference', f'{of}_difference_', about, '+')} {row[f'{of}_finding']}"
            for of in ("a", "b")
        ]
        gap = f"{_estimate(row, 'gap', 'gap_', about, '+')} " if pd.notna(row["gap"]) else ""
        p = f" (p {p_text(row['p_holm'])})" if pd.notna(row["p_holm"]) else ""
        mark = "! " if row["finding"] == DIFFER else ""
        cells.append([f"      {row['arm']}", *each, f"{gap}{mark}{row['finding']}{p}"])
    return cells if len(cells) > 1 else [["    difference from baseline: no other arm is in both"]]


def _estimate(row: Mapping[Any, Any], name: str, bounds: str, about: Metric, sign: str = "") -> str:
    """Format a number of a row and its interval, if it has one."""
    low, high = row[f"{bounds}low"], row[f"{bounds}high"]
    if about.relative and sign:
        return percent(row[name]) + (f" [{percent(low)}, {percent(high)}]" if math.isfinite(low) else "")
    interval = f" {interval_text(low, high, about.digits, sign)[0]}" if math.isfinite(low) else ""
    return number(row[name], about.digits, sign) + interval


def _verdicts(comparison: Comparison) -> list[str]:
    marks = {"same": "", "differ": "<", OPPOSITE: "!"}
    rows = [
        [f"    {row['claim']}", row["a"], row["b"], marks[row["agreement"]]]
        for row in comparison.verdicts.to_dict("records")
    ]
    return aligned([["  verdicts", "A", "B"], *rows]) if rows else ["  verdicts: no claim is about this study"]


def _conclusion(found: Stores) -> str:
    if found.agree:
        return "A and B agree"
    told = [
        f"{comparison.study} ({', '.join(plural(count, what) for what, count in comparison.disagreements.items())})"
        for comparison in found.both
        if comparison.disagreements
    ]
    return f"A and B do not agree: {'; '.join(told)}"
