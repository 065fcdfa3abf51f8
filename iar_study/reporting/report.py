"""A study's report: one HTML page, the same as Markdown, tables in LaTeX, figures and numbers, all from a `Results`.

The same results give the same bytes: no dates, no machine names, and figures without metadata.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from iar_study.errors import InputError
from iar_study.evaluation.metrics import LIKENESS, REPLACED, metric_named
from iar_study.evidence import published
from iar_study.evidence.claims import Verdict
from iar_study.evidence.results import PREMISE, Results
from iar_study.reporting import figures
from iar_study.reporting.illustrations import CURVES, findings_in_words, illustrations
from iar_study.reporting.latex import latex_tables
from iar_study.reporting.pages import as_json, write_pages
from iar_study.reporting.tables import (
    VERDICT,
    comparison,
    comparison_tables,
    comparisons_shown,
    design_tables,
    ending,
    evaluator_table,
    headline,
    later_table,
    plan_table,
    target_tables,
    verdict_rows,
)
from iar_study.reporting.unchanged import CODEBOOK, PAPER
from iar_study.running.needs import plural
from iar_study.running.status import Status
from iar_study.storage import digest


def conclusion(results: Results) -> str:
    """Say in one sentence what the comparison shows and what it does not, by rule, never beyond its intervals."""
    where = f"On {_scale_in_short(results)}, "
    limit = "none of it says anything about other data or other sizes."
    if results.final["value"].isna().all():
        return f"{where}nothing is compared: every trial that has ended diverged; {limit}"
    others = results.compared
    if not others:
        return f"{where}only the baseline {results.baseline} was run, so nothing is compared; {limit}"
    clauses, undecided = [], False
    for metric, key in headline(results):
        if key is None:
            clauses.append(f"{metric.label} was not measured")
            continue
        table = comparison(results, key).loc[others]
        clauses.append(f"{metric.label} is {findings_in_words(table, metric)}")
        undecided |= bool((table["finding"] == "undecided").any())
    unadjusted = "none of it is adjusted for the looks of the plan, whose answer stands below; " if results.plan else ""
    caveat = "undecided means that these seeds can tell neither a difference nor that there is none that matters; "
    return (
        f"{where}{results.compared_in_words} seed by seed (95% intervals in brackets): "
        f"{'; '.join(clauses)}; {caveat if undecided else ''}{unadjusted}{limit}"
    )


def shown(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return them without questions of ours that nobody has run anything for."""
    return [told for told in verdicts if told.claim.kind != "exploratory" or told.answer != "not tested"]


def in_short(verdicts: Sequence[Verdict], results: Results) -> str:
    """Answer the question of a study by the first of its claims that were tested; without any, by what its arms move.

    "" where neither can be told.
    """
    tested = [told for told in verdicts if told.answer not in ("not tested", "cannot be asked")]
    for kind in ("effect", "exploratory", "observation"):
        for told in tested:
            if told.claim.kind == kind:
                return f"In short: {told.claim.name}: {told.answer} ({told.evidence})."
    for table in [] if verdicts else design_tables(results)[:1]:
        moved = ", ".join(f"{row['arm']} {row['spread']}" for row in table["rows"])
        pairs = "arm and baseline of the same seed"
        return f"In short: {table['about'].label} of {pairs} differs by this much (standard deviation): {moved}."
    return ""


def premise(results: Results) -> str:
    """Say whether near codes are interchangeable here, as the method supposes, or that nobody has measured it."""
    if not results.premise:
        return (
            "Premise not asked: whether near codes look alike was not measured of this tokenizer. "
            "The study code-distance with the same profile and seeds tells."
        )
    met = all(results.premise[key] >= least for key, least in PREMISE.items())
    ssim, kept, own_ssim, own_kept = results.premise.values()
    told = (
        f"with each token replaced by a near code, at the paper's relative rank, SSIM is {ssim:.3f} and {kept:.1%} of "
        "the images keep their class, beside the image of the true tokens. The tokenizer itself, beside the original, "
        f"has {own_ssim:.3f} and {own_kept:.1%}"
    )
    if met:
        return f"Premise met: near codes are interchangeable here: {told}."
    return (
        f"Premise not met here: {told}. 0.98 and 98% are wanted; the paper gives no number. What follows does not test "
        "the paper."
    )


def _scale_in_short(results: Results) -> str:
    scale = results.scale
    # "28 x 28 pixels, 1 channel" and "GPT, 0.28 M weights: 4 layers, ..." are told in full further down.
    size = str(scale.get("image size", "image size not stated")).partition(",")[0]
    model = str(scale["model"]).partition(":")[0] if "model" in scale else "no GPT"
    parts = [size, model, plural(len(results.seeds), "seed")]
    if len(results.missing):
        asked = len(pd.concat([results.final, results.missing])[["arm", "seed"]].drop_duplicates())
        counts = results.missing["status"].value_counts().sort_index()
        parts.append(f"of {asked} trials " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    return f"{scale.get('data set', 'a data set not stated')} ({'; '.join(parts)})"


def _context(results: Results, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    tables = comparison_tables(results)
    shown = [entry["key"] for table in tables for entry in table["compared"]]
    if results.kind == "near-codes":
        shown += [key for kind in REPLACED for name in LIKENESS if (key := f"{kind}/{name}") not in shown]
    shown += [metric for metric in dict(CURVES) if metric in set(results.curves["metric"]) and metric not in shown]
    arms = _arms(results)
    return {
        "results": results,
        "conclusion": conclusion(results),
        "colors": {arm: to_hex(color) for arm, color in figures.arm_colors(results).items()},
        "in_short": in_short(verdicts, results),
        "premise": premise(results),
        "plan": plan_table(results),
        "verdicts": [{**row, "comparisons": comparisons_shown(row["rows"])} for row in verdict_rows(verdicts)],
        "tables": tables,
        "metrics_compared": sum(len(table["compared"]) for table in tables) * bool(results.compared),
        "evaluators": evaluator_table(results),
        "later": later_table(results),
        "designs": design_tables(results),
        "targets": target_tables(results),
        "metrics": [{"key": key, "about": metric_named(key)} for key in shown],
        "scale": {"profile": results.profile, **results.scale},
        "missing": [
            {**trial, "ending": ending(trial["status"], trial["step"])}
            for trial in _in_order(results, results.missing).to_dict("records")
        ],
        "arms": arms,
        "anchors": {arm["name"]: arm["id"] for arm in arms},
        "published": published,
    }


def _in_order(results: Results, frame: pd.DataFrame) -> pd.DataFrame:
    """Sort by arm in the study's order, then by seed, then by metric."""
    rank = {arm: i for i, arm in enumerate(results.arms)}
    keys = ["arm", *(key for key in ("seed", "metric") if key in frame)]
    return frame.sort_values(keys, key=lambda column: column.map(rank) if column.name == "arm" else column)


def _origin(results: Results) -> dict[str, Any]:
    """Return what a number can be followed to: the settings that all trials share, and of each its own and the rest."""
    configs = [trial["config"] for trial in results.trials]
    first = configs[0] if configs else {}
    common = {key: value for key, value in first.items() if all(config.get(key) == value for config in configs)}
    trials = [
        {**trial, "config": {key: value for key, value in trial["config"].items() if key not in common}}
        for trial in sorted(results.trials, key=lambda trial: (list(results.arms).index(trial["arm"]), trial["seed"]))
    ]
    return {"study": results.study, "config": common, "trials": trials}


def _arms(results: Results) -> list[dict[str, Any]]:
    """Return, for every arm, its anchor on the page, the settings that not all arms share, and its trials."""
    origin = _origin(results)
    arms = []
    for i, arm in enumerate(results.arms):
        trials = [
            {
                **trial,
                "commit": trial["code"]["commit"][:10] + (" (changed)" if trial["code"]["dirty"] else ""),
                "digest": trial["data"]["digest"][:10],
                "machine": f"{trial['environment']['machine']}, {trial['environment']['cpu_capability']}",
                "versions": f"Python {trial['environment']['python']}, torch {trial['environment']['torch']}",
            }
            for trial in origin["trials"]
            if trial["arm"] == arm
        ]
        own = {key: value for trial in trials for key, value in trial["config"].items()}
        settings = {key: value for key, value in own.items() if not key.endswith("seed")}
        arms.append({"name": arm, "id": f"arm-{i + 1}", "settings": settings, "trials": trials})
    return arms


def write_report(
    results: Results,
    folder: Path,
    verdicts: Sequence[Verdict] = (),
    status: Sequence[Status] = (),
    renews: bool = False,
    made_from: str = "",
) -> Path:
    """Write `folder/STUDY/` with its pages, figures, tables and numbers; return the path of the HTML page.

    How, and what becomes of a report that is already there, see `write_pages`.

    Parameters
    ----------
    verdicts : on the claims that this study tests.
    status : how far its trials are, where some have not ended: the page then says that it is provisional.
    made_from : see `write_pages`.
    renews : whether the page loads itself anew in a browser, as while the study runs.
    """
    verdicts = shown(verdicts)
    judged = pd.DataFrame(verdict_rows(verdicts), columns=list(VERDICT))
    return write_pages(
        _target(results, folder),
        "report",
        _context(results, verdicts) | {"status": status, "renews": renews},
        illustrations(results),
        _seen(results),
        {
            "tables.tex": latex_tables(results),
            "results.csv": _in_order(results, results.final).to_csv(index=False, lineterminator="\n"),
            "verdicts.csv": judged.to_csv(index=False, lineterminator="\n"),
            "trials.json": as_json(_origin(results)),
        },
        made_from,
    )


def _seen(results: Results) -> str:
    """Return the digest of all that figures and their captions may show of results."""
    parts: list[Any] = []
    for name, value in sorted(vars(results).items()):
        if isinstance(value, pd.DataFrame):
            parts += [name, list(value.columns), np.sort(pd.util.hash_pandas_object(value, index=False).to_numpy())]
        elif name in ("samples", "reconstructions", "replaced"):
            parts += [name, *(part for key in value for part in (key, value[key]))]
        elif name == "positions":
            parts += [name, *(part for arm in value for key in value[arm] for part in (arm, key, value[arm][key]))]
        elif name not in ("trials", "scale", "command", "settings", "exact", "data"):
            # Of arms, the order tells too.
            parts += [name, list(value.items()) if isinstance(value, dict) else value]
    return digest(*parts)


def _target(results: Results, folder: Path) -> Path:
    """Return the report's folder; refuse one that is outside `folder`, and a study without results."""
    name = results.study
    if not name or name.startswith(".") or "/" in name or "\0" in name or name in (CODEBOOK, PAPER):
        raise InputError(f"study name {name!r} cannot name a folder; rename the study")
    if results.final.empty:
        raise InputError(f"study {name!r} has no finished trial to report; `iar-study run {shlex.quote(name)}` first")
    return folder / name
