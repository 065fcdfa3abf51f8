"""The tables of a report, as text in cells: what was measured, compared and judged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd

from iar_study.errors import InputError
from iar_study.evaluation.metrics import BUILT_IN, FIDELITY, Metric, extractor_in, members_of, metric_named
from iar_study.evidence.claims import Verdict
from iar_study.evidence.results import Results
from iar_study.evidence.rules import Row, percent, planned_looks
from iar_study.evidence.sequential import levels
from iar_study.evidence.statistics import ALPHA, compare_with_baseline, p_text, paired_differences, time_to_target
from iar_study.study.plans import plan_of

SAMPLES = ("fd", "fd_codes", "fd_inf", "kd", "precision", "recall", "coverage", "class_agreement")

HEADLINE = {
    "training": ("fd", "val/token_nll"),
    "sampling": ("fd", "class_agreement"),
    "near-codes": ("same_cluster/feature_distance", "same_cluster/class_agreement"),
}
"""The metrics that the conclusion speaks of, by kind of study; a family stands for its key."""

VERDICT: dict[str, Callable[[Verdict], str]] = {
    "claim": lambda verdict: verdict.claim.name,
    "kind": lambda verdict: verdict.claim.kind,
    "sentence": lambda verdict: verdict.claim.sentence,
    "source": lambda verdict: verdict.claim.source,
    "study": lambda verdict: verdict.claim.study or "",
    "answer": lambda verdict: verdict.answer,
    "counts": lambda verdict: "yes" if verdict.claim.counts else "",
    "pooled": lambda verdict: verdict.claim.pooled,
    "evidence": lambda verdict: verdict.evidence,
    "p": lambda verdict: "" if math.isnan(verdict.p) else repr(verdict.p),
    "rows": lambda verdict: json.dumps([asdict(row) for row in verdict.rows]),
    "alternatives": lambda verdict: "\n".join(verdict.alternatives),
    "rule": lambda verdict: verdict.claim.rule.text(),
    "since": lambda verdict: verdict.claim.past.text(),
    "limits": lambda verdict: verdict.claim.limits,
    "scale": lambda verdict: verdict.scale,
    "command": lambda verdict: verdict.command,
}
"""Column of `verdict_rows` -> what it says; verdicts.csv has them even where a study decides no claim."""

COMPARED: dict[str, dict[str, tuple[str, ...]]] = {
    "training": {
        "Samples": SAMPLES,
        "Predictions on held-out images": (
            "val/token_nll",
            "val/token_accuracy",
            "val/calibration_error",
            "val/cluster_nll",
            "val/within_cluster_nll",
            "val/cluster_accuracy",
            "val/code_distance_if_wrong",
        ),
    },
    "sampling": {"Samples": SAMPLES},
    "near-codes": {
        "Every token replaced by another code of its cluster": tuple(
            f"same_cluster/{name}" for name in ("psnr", "ssim", "feature_distance", "class_agreement")
        )
    },
}
"""Title -> metrics of each table that compares every arm with the baseline, by kind of study."""

ROUNDING = 1e-12
"""A log ratio that is nearer to 0 has no direction."""

COLUMNS = 8
"""Seeds that a table of pairs has a column each for; of more, the pairs stand in one cell."""


def key_of(results: Results, name: str) -> str | None:
    """Return the key that `name`, a key or a family, has among what was measured; None if it was not."""
    return results.find(name)


def headline(results: Results) -> list[tuple[Metric, str | None]]:
    """Return the metrics that the conclusion speaks of, each with its key, None where it was not measured."""
    found = [(name, key_of(results, name)) for name in HEADLINE[results.kind]]
    return [(metric_named(key or name) if key or name not in FIDELITY else FIDELITY[name], key) for name, key in found]


@lru_cache(maxsize=256)
def comparison(results: Results, key: str) -> pd.DataFrame:
    """Return `compare_with_baseline` of all arms in one metric: computed once, for many places show it."""
    return compare_with_baseline(results.final, key, results.baselines, list(results.arms), draws=results.draws)


def _rows(table: pd.DataFrame) -> dict[Any, pd.Series]:
    return dict(table.iterrows())


def ending(status: str, step: float) -> str:
    """Say how a missing trial ended, and where.

    >>> ending("diverged", 3), ending("not finished", 40.0), ending("not finished", math.nan)
    ('diverged at step 3', 'not finished, at step 40', 'not finished')
    """
    if math.isnan(step):
        return status
    return f"{status}{'' if status == 'diverged' else ','} at step {step:.0f}"


def number(value: float, digits: int, sign: str = "") -> str:
    """Format with a true minus sign and a dash for what is not a number."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    rounded = round(value, digits)
    return f"{rounded:{sign if rounded else ''},.{digits}f}".replace("-", "\N{MINUS SIGN}" if rounded else "")


def interval_text(low: float, high: float, digits: int, sign: str = "") -> tuple[str, int]:
    """Format [low, high], exact enough that no bound is rounded to the 0 it excludes; return the digits it took."""
    while (low > 0 or high < 0) and digits < 9 and not (round(low, digits) and round(high, digits)):
        digits += 1
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]", digits


def difference_text(row: pd.Series, about: Metric) -> tuple[str, str]:
    """Format a paired difference and its interval, the latter empty with fewer than two pairs; of ratios in percent."""
    low, high = row["difference_low"], row["difference_high"]
    if about.relative:
        return percent(row["difference"]), f"[{percent(low)}, {percent(high)}]" if row["pairs"] > 1 else ""
    if row["pairs"] < 2:
        return number(row["difference"], about.digits, "+"), ""
    interval, digits = interval_text(low, high, about.digits, "+")
    return number(row["difference"], digits, "+"), interval


def _mean(row: pd.Series, digits: int) -> str:
    half = f" ± {number(row['high'] - row['mean'], digits)}" if row["n"] >= 2 else ""
    return number(row["mean"], digits) + half


def _cell(results: Results, row: pd.Series, key: str) -> dict[str, str]:
    """Return what a table shows of one arm in one metric."""
    about, asked = metric_named(key), len(results.seeds)
    notes = [f"{row['n']} of {asked} seed{'s' * (asked != 1)}"] if row["n"] < asked else []
    notes += [f"{row['not_finite']} not finite"] if row["not_finite"] else []
    compared = row["finding"] != "baseline" and row["pairs"]
    difference, interval = difference_text(row, about) if compared else ("", "")
    return {
        "mean": _mean(row, about.digits),
        "difference": difference,
        "interval": interval,
        "p": p_text(row["p"]) if compared and math.isfinite(row["p"]) else "",
        "finding": row["finding"],
        "note": ", ".join(notes),
    }


def comparison_tables(results: Results) -> list[dict[str, Any]]:
    """Return the tables of every arm beside the baseline: title, compared (key, about) and rows of cells."""
    tables: list[dict[str, Any]] = []
    for title, names in COMPARED[results.kind].items():
        own = [family for family in FIDELITY if family not in BUILT_IN] if names is SAMPLES else []
        keys = [key for name in (*names, *own) if (key := key_of(results, name))]
        if keys:
            found = {key: _rows(comparison(results, key)) for key in keys}
            rows = [
                {"arm": arm, "cells": [_cell(results, found[key][arm], key) for key in keys]} for arm in results.arms
            ]
            compared = [{"key": key, "about": metric_named(key)} for key in keys]
            tables.append({"title": title, "compared": compared, "rows": rows})
    return tables


def evaluator_table(results: Results) -> dict[str, Any] | None:
    """Return FD of every compared arm by the whole set of evaluators and by each of them, and whether they agree.

    None where it was not measured by a set, or nothing is compared.
    """
    key = key_of(results, "fd")
    members = members_of(key, results.final["metric"]) if key else []
    if not members or not results.compared:
        return None
    found = {each: comparison(results, each).loc[results.compared] for each in (str(key), *members)}
    rows = [
        {"evaluator": extractor_in(each), "cells": [_cell(results, row, each) for row in _rows(table).values()]}
        for each, table in found.items()
    ]
    differences = pd.DataFrame({each: found[each]["difference"].astype(float) for each in members})
    lower, higher = (differences < -ROUNDING).sum(axis=1), (differences > ROUNDING).sum(axis=1)
    split = [f"{arm} ({lower[arm]} lower, {higher[arm]} higher)" for arm in lower.index[(lower > 0) & (higher > 0)]]
    agreement = f"All {len(members)} evaluators agree on the direction of every difference."
    if split:
        agreement = f"The {len(members)} evaluators do not agree on the direction of: {', '.join(split)}."
    return {"arms": results.compared, "rows": rows, "agreement": agreement}


def later_table(results: Results) -> dict[str, Any] | None:
    """Return what `measure` has added, of every compared arm; None where it has added nothing.

    What each evaluator of a set finds by itself is left out, as everywhere.
    """
    of_sets = [member for key in results.later for member in members_of(key, results.later)]
    keys = [key for key in results.later if key not in of_sets and metric_named(key).direction]
    if not keys or not results.compared:
        return None
    rows = []
    for key in keys:
        found = _rows(comparison(results, key).loc[results.compared])
        rows.append({"about": metric_named(key), "cells": [_cell(results, row, key) for row in found.values()]})
    return {"arms": results.compared, "rows": rows}


def design_tables(results: Results) -> list[dict[str, Any]]:
    """Return, for each headline metric, what the seeds allow one to say of every arm, and could have shown."""
    tables = []
    for metric, key in headline(results):
        if key is None or len(results.seeds) < 2:
            continue
        rows = []
        differences = paired_differences(results.final, key, results.baselines, results.compared)
        for arm, row in comparison(results, key).iterrows():
            if row["finding"] == "baseline" or row["pairs"] < 2:
                continue
            difference, interval = difference_text(row, metric)
            change = percent if metric.relative else partial(number, digits=metric.digits, sign="+")
            rows.append(
                {
                    "arm": arm,
                    "difference": difference,
                    "interval": interval,
                    "p": p_text(row["p"]),
                    "without_one": f"{change(row['least'])} to {change(row['most'])}",
                    "pairs": [change(value) for value in differences[arm]],
                    "spread": change(differences[arm].std()).lstrip("+"),
                    "detectable": change(row["detectable"]).lstrip("+"),
                    "finding": row["finding"],
                }
            )
        if rows:
            seeds = list(differences.index)
            tables.append({"about": metric, "seeds": seeds, "wide": len(seeds) > COLUMNS, "rows": rows})
    return tables


def plan_table(results: Results) -> dict[str, Any] | None:
    """Return a study's plan, since when it stands, in what the run departs from it, what its looks need and found."""
    if results.plan is None:
        return None
    plan = plan_of(results.plan)
    try:
        taken = {look.pairs: look for look in planned_looks(results)}
    except InputError:  # its arm was not run, or its metric not measured
        taken = {}
    either, equivalent = (levels(plan.looks, ALPHA, two_sided=two_sided) for two_sided in (True, False))
    rows = []
    for pairs, *needed in zip(plan.looks, either, equivalent, strict=True):
        row = {"pairs": pairs, "levels": [f"{level:.2g}" for level in needed], "change": "", "p": "", "finding": ""}
        if look := taken.get(pairs):
            row |= {"change": percent(look.effect.mean), "p": p_text(look.effect.p), "finding": look.finding}
        rows.append(row)
    return {**results.plan, "text": plan.text(), "departures": results.departures, "looks": rows}


def target_tables(results: Results) -> list[dict[str, Any]]:
    """Return, for each headline metric with curves, the training tokens until an arm is as good as the baseline."""
    tables = []
    # Where a baseline did not come to its end, there is no value at its end to reach.
    lost = set(results.missing[["arm", "seed"]].itertuples(index=False, name=None))
    of_baselines = zip(results.curves["arm"].map(results.baselines), results.curves["seed"], strict=True)
    ended = np.array([trial not in lost for trial in of_baselines], dtype=bool)
    for metric, key in headline(results):
        curves = results.curves[(results.curves["metric"] == key) & ended]
        if results.kind != "training" or key is None or metric.better is None or curves["step"].nunique() < 2:
            continue
        asked = len(results.seeds)
        rows = []
        for arm, row in time_to_target(curves, key, results.baselines, list(results.arms)).iterrows():
            millions = row[["mean", "low", "high"]] * results.tokens_per_step / 1e6
            reached = math.isfinite(row["mean"])
            interval = interval_text(max(millions["low"], 0.0), millions["high"], 2)[0] if reached else ""
            rows.append(
                {
                    "arm": arm,
                    "tokens": number(millions["mean"], 2) if reached or not row["n"] else "not reached",
                    "interval": interval if row["n"] > 1 else "",
                    "share": f"{row['share']:.0%}" if reached else "",
                    "reached": f"{row['reached']:.0f} of {asked}" if row["n"] else "",
                }
            )
        tables.append({"about": metric, "points": curves["step"].nunique(), "rows": rows})
    return tables


def verdict_rows(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """Return the claims with what is said of them, for a table or a CSV file; `rows` is JSON."""
    return [{column: told(verdict) for column, told in VERDICT.items()} for verdict in verdicts]


def comparisons_shown(rows: str) -> list[dict[str, Any]]:
    """Return the comparisons of a verdict, as `verdict_rows` keeps them, as text in cells."""
    return [
        {
            "what": row.what,
            "metric": row.metric,
            "change": row.change(row.difference),
            "interval": "" if math.isnan(row.low) else f"[{row.change(row.low)}, {row.change(row.high)}]",
            "pairs": [row.change(value) for value in row.pairs.values()],
            "without_one": "" if math.isnan(row.least) else f"{row.change(row.least)} to {row.change(row.most)}",
            "finding": row.finding,
        }
        for row in (Row(**row) for row in json.loads(rows))
    ]
