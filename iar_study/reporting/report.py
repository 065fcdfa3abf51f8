"""A study's report: one HTML page, the same as Markdown, its figures and its numbers, all made from a `Results`.

The same results give the same bytes: no dates, no machine names, and figures without metadata.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Hashable, Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from iar_study.errors import InputError
from iar_study.evaluation.metrics import METRICS
from iar_study.reporting import figures
from iar_study.storage import write_text
from iar_study.study import published
from iar_study.study.results import Results
from iar_study.study.statistics import compare_with_baseline

HEADLINE = ("samples/fd_classifier", "val/token_nll")
"""The metrics that the conclusion speaks of."""
COMPARED = (
    "samples/fd_classifier",
    "samples/class_agreement",
    "val/token_nll",
    "val/token_accuracy",
    "val/cluster_nll",
    "val/cluster_accuracy",
)
WRONG_TOKEN, BY_CHANCE = "val/right_cluster_if_wrong", "val/right_cluster_by_chance"
DIFFERENCES_DRAWN = ("samples/fd_classifier", "val/token_nll", "samples/class_agreement", "val/cluster_accuracy")
CURVES_DRAWN = (
    ("val/token_nll", False),
    ("val/token_nll", True),
    ("val/cluster_accuracy", False),
    ("val/cluster_accuracy", True),
    ("train/token_nll", False),
    ("train/token_nll", True),
)
QUALITY = "samples/fd_classifier"
"""What the samples drawn during training are judged by."""
GENERATOR = "iar-study"


def conclusion(results: Results) -> str:
    """Say in one sentence what the comparison shows and what it does not, by rule, never beyond its intervals."""
    where = f"On {_scale_in_short(results)}, "
    limit = "none of it says anything about other data or other sizes."
    others = [arm for arm in results.arms if arm != results.baseline]
    if not others:
        return f"{where}only the baseline {results.baseline} was run, so nothing is compared; {limit}"
    clauses, inconclusive = [], False
    for metric in HEADLINE:
        if metric not in set(results.final["metric"]):
            clauses.append(f"{METRICS[metric].label} was not measured")
            continue
        table = _comparison(results, metric).loc[others]
        clauses.append(f"{METRICS[metric].label} is {_findings_in_words(table, METRICS[metric].digits)}")
        inconclusive |= bool((table["finding"] == "inconclusive").any())
    caveat = "inconclusive means that no 95% interval excludes 0, which does not show equality either; "
    return (
        f"{where}compared with {results.baseline} seed by seed (95% intervals in brackets): {'; '.join(clauses)}; "
        f"{caveat if inconclusive else ''}{limit}"
    )


def _scale_in_short(results: Results) -> str:
    scale = results.scale
    # "28 x 28 pixels, 1 channel" and "GPT, 0.28 M weights: 4 layers, ..." are told in full further down.
    size = str(scale.get("image size", "image size not stated")).partition(",")[0]
    model = str(scale.get("model", "model size not stated")).partition(":")[0]
    parts = [size, model, _count(len(_seeds(results)), "seed")]
    if len(results.missing):
        asked = len(pd.concat([results.final, results.missing])[["arm", "seed"]].drop_duplicates())
        counts = results.missing["status"].value_counts().sort_index()
        parts.append(f"of {asked} trials " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    return f"{scale.get('data set', 'a data set not stated')} ({'; '.join(parts)})"


def _findings_in_words(table: pd.DataFrame, digits: int) -> str:
    if (table["finding"] == "inconclusive").all():
        return "inconclusive for every arm"
    parts = []
    for finding in ("better", "worse", "inconclusive"):
        rows = table[table["finding"] == finding]
        # An interval each is what makes the sentence checkable, but a sweep of ten arms would drown it.
        told = [
            arm if finding == "inconclusive" or len(rows) > 3 else f"{arm} ({_difference(row, digits)})"
            for arm, row in rows.iterrows()
        ]
        if finding == "inconclusive" and len(rows) > 3:
            parts.append(f"inconclusive for the other {len(rows)} arms")
        elif told:
            parts.append(f"{finding} for {_listed(map(str, told))}")
    return ", ".join(parts)


def _comparison(results: Results, metric: str) -> pd.DataFrame:
    return compare_with_baseline(results.final, metric, results.baseline, list(results.arms))


def _seeds(results: Results) -> list[int]:
    return sorted({*results.final["seed"], *results.missing["seed"]})


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _number(value: float, digits: int, sign: str = "") -> str:
    """Format with a true minus sign and a dash for what is not a number."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    rounded = round(value, digits)
    return f"{rounded:{sign if rounded else ''},.{digits}f}".replace("-", "\N{MINUS SIGN}" if rounded else "")


def _mean(row: pd.Series, digits: int) -> str:
    half = f" ± {_number(row['high'] - row['mean'], digits)}" if row["n"] >= 2 else ""
    return _number(row["mean"], digits) + half


def _difference(row: pd.Series, digits: int) -> str:
    return " ".join(filter(None, _difference_and_interval(row, digits)))


def _difference_and_interval(row: pd.Series, digits: int) -> tuple[str, str]:
    """Format a paired difference and its interval, exact enough that no bound is rounded to the 0 it excludes."""
    low, high = row["difference_low"], row["difference_high"]
    if row["pairs"] < 2:
        return _number(row["difference"], digits, "+"), ""
    while (low > 0 or high < 0) and digits < 9 and not (round(low, digits) and round(high, digits)):
        digits += 1
    return _number(row["difference"], digits, "+"), f"[{_number(low, digits, '+')}, {_number(high, digits, '+')}]"


def _cell(results: Results, row: pd.Series, metric: str) -> dict[str, str]:
    """Return what a table shows of one arm in one metric."""
    digits, asked = METRICS[metric].digits, len(_seeds(results))
    notes = [f"{row['n']} of {_count(asked, 'seed')}"] if row["n"] < asked else []
    notes += [f"{row['not_finite']} not finite"] if row["not_finite"] else []
    compared = row["finding"] != "baseline" and row["pairs"]
    difference, interval = _difference_and_interval(row, digits) if compared else ("", "")
    return {
        "mean": _mean(row, digits),
        "difference": difference,
        "interval": interval,
        "finding": row["finding"],
        "note": ", ".join(notes),
    }


def _tables(results: Results) -> dict[str, Any]:
    """Return the comparison of every arm in every metric, and the number of comparisons made."""
    measured = set(results.final["metric"])
    compared = [metric for metric in COMPARED if metric in measured]
    tables = {metric: _comparison(results, metric) for metric in [*compared, WRONG_TOKEN]}
    found = {metric: dict(table.iterrows()) for metric, table in tables.items()}
    rows = [
        {"arm": arm, "cells": [_cell(results, found[metric][arm], metric) for metric in compared]}
        for arm in results.arms
    ]
    wrong = []
    if {WRONG_TOKEN, BY_CHANCE} <= measured:
        chance = _comparison(results, BY_CHANCE)["mean"].to_dict()
        for arm in results.arms:
            share, by_chance = found[WRONG_TOKEN][arm], chance[arm]
            times = share["mean"] / by_chance if by_chance > 0 else math.nan
            wrong.append(
                {
                    "arm": arm,
                    **_cell(results, share, WRONG_TOKEN),
                    "chance": _number(by_chance, METRICS[BY_CHANCE].digits),
                    "times": _number(times, 1),
                }
            )
    comparisons = sum(int((table["difference_low"].notna()).sum()) for table in tables.values())
    return {
        "compared": [{"key": metric, "about": METRICS[metric]} for metric in compared],
        "rows": rows,
        "wrong": wrong,
        "comparisons": comparisons,
        "by_luck": f"{comparisons / 20:.1f}",
    }


def _drawings(results: Results) -> dict[str, list[tuple[str, Figure, str, str]]]:
    """Return the figures of each section: (file name, figure, alternative text, caption)."""
    measured, drawn = set(results.final["metric"]), set(results.curves["metric"])
    others = [arm for arm in results.arms if arm != results.baseline]
    found: dict[str, list[tuple[str, Figure, str, str]]] = {
        "differences": [],
        "curves": [],
        "samples": [],
        "stages": [],
    }
    for metric in DIFFERENCES_DRAWN:
        if metric in measured and others:
            label, digits, table = METRICS[metric].label, METRICS[metric].digits, _comparison(results, metric)
            said = "; ".join(
                f"{arm} {_difference(row, digits)} {row['finding']}" for arm, row in table.loc[others].iterrows()
            )
            alt = f"{label}, paired differences from {results.baseline} with 95% intervals: {said}."
            found["differences"].append((_file("difference", metric), figures.comparison(results, metric), alt, ""))
    for metric, differences in CURVES_DRAWN:
        with_curve = set(results.curves.loc[results.curves["metric"] == metric, "arm"])
        if metric not in drawn or (differences and not (results.baseline in with_curve and with_curve & set(others))):
            continue
        kind = f"difference from {results.baseline}" if differences else "every arm"
        alt = f"{METRICS[metric].label} over training steps, {kind}. The numbers are in the trials' journals."
        name = _file("curve-difference" if differences else "curve", metric)
        found["curves"].append((name, figures.curves(results, metric, differences=differences), alt, ""))
    if results.curves.loc[results.curves["metric"] == QUALITY, "step"].nunique() > 1:
        alt = f"{METRICS[QUALITY].label} of samples over training steps, every arm."
        caption = (
            f"How soon each arm reaches a quality. Dots: samples drawn on the way; where an arm's line falls below the "
            f"dotted one, it is as good as {results.baseline} at the end of its training."
        )
        drawing = figures.quality_over_training(results, QUALITY)
        found["curves"].append((_file("quality", QUALITY), drawing, alt, caption))
    if any(arm in results.samples for arm in results.arms):
        absent = [arm for arm in results.arms if arm not in results.samples]
        caption = (
            f"Seed {results.samples_seed}. Rows are classes; the same place has the same noise in every arm. "
            "The first samples drawn, not chosen."
        )
        caption += f" No samples of {_listed(absent)}." if absent else ""
        alt = f"Samples of {_listed([arm for arm in results.arms if arm in results.samples])}, one class a row."
        found["samples"].append(("samples.png", figures.sample_grids(results), alt, caption))
    if results.reconstructions:
        alt = f"Held-out images in {_count(len(results.reconstructions), 'row')}: {', '.join(results.reconstructions)}."
        found["stages"].append(("reconstructions.png", figures.reconstructions(results), alt, _rearranged(results)))
    return found


def _rearranged(results: Results) -> str:
    """Say whether the rearranged codebook decodes to the same pictures, as it must."""
    before, after = (results.reconstructions.get(key) for key in ("decoded", "decoded after rearrangement"))
    if before is None or after is None or before.shape != after.shape:
        return ""
    if np.array_equal(before, after):
        return "Before and after the codebook was rearranged, every pixel is the same, as it must be."
    largest = int(np.abs(before.astype(int) - after).max())
    return f"After the codebook was rearranged, pixels differ by up to {largest} of 255; they should not differ at all."


def _file(kind: str, metric: str) -> str:
    return f"{kind}-{metric.replace('/', '-')}.png"


def _context(results: Results) -> dict[str, Any]:
    tables = _tables(results)
    shown = [entry["key"] for entry in tables["compared"]]
    shown += [WRONG_TOKEN, BY_CHANCE] if tables["wrong"] else []
    shown += [
        metric for metric in dict(CURVES_DRAWN) if metric in set(results.curves["metric"]) and metric not in shown
    ]
    trials = results.final[["arm", "seed", "trial", "run_id"]].drop_duplicates()
    return {
        "results": results,
        "conclusion": conclusion(results),
        "colors": {arm: to_hex(color) for arm, color in figures.arm_colors(results).items()},
        **tables,
        "metrics": [{"key": key, "about": METRICS[key]} for key in shown],
        "scale": {"profile": results.profile, **results.scale},
        "missing": [
            {**trial, "ending": _ending(trial)} for trial in _in_order(results, results.missing).to_dict("records")
        ],
        "trials": _in_order(results, trials).to_dict("records"),
        "published": published,
    }


def _ending(trial: Mapping[Hashable, Any]) -> str:
    """Say how a missing trial ended, and where."""
    if math.isnan(trial["step"]):
        return trial["status"]
    return f"{trial['status']}{'' if trial['status'] == 'diverged' else ','} at step {trial['step']:.0f}"


def _in_order(results: Results, frame: pd.DataFrame) -> pd.DataFrame:
    """Sort by arm in the study's order, then by seed, then by metric."""
    rank = {arm: i for i, arm in enumerate(results.arms)}
    keys = ["arm", *(key for key in ("seed", "metric") if key in frame)]
    return frame.sort_values(keys, key=lambda column: column.map(rank) if column.name == "arm" else column)


def write_report(results: Results, folder: Path) -> Path:
    """Write `folder/STUDY/` with index.html, index.md, figures and results.csv; return the path of the page.

    A report that is already there is replaced as a whole, once the new one is complete.
    """
    target = _target(results, folder)
    folder.mkdir(parents=True, exist_ok=True)
    context = _context(results)
    with TemporaryDirectory(dir=folder, prefix=".report-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        context["figures"] = {
            section: [_saved(new, *drawing) for drawing in drawings] for section, drawings in _drawings(results).items()
        }
        for template, name in (("report.html", "index.html"), ("report.md", "index.md")):
            text = _templates().get_template(template).render(context)
            (new / name).write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
        _in_order(results, results.final).to_csv(new / "results.csv", index=False, lineterminator="\n")
        if target.exists():
            os.replace(target, Path(scratch) / "old")
        os.replace(new, target)
    return target / "index.html"


def _target(results: Results, folder: Path) -> Path:
    """Return the report's folder; refuse one that is outside `folder`, or that holds what no report has."""
    name = results.study
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise InputError(f"study name {name!r} cannot name a folder; rename the study")
    if results.final.empty:
        raise InputError(f"study {name!r} has no finished trial to report; `iar-study run {shlex.quote(name)}` first")
    target = folder / name
    ours = {"index.html", "index.md", "results.csv"}
    strange = (
        sorted(p.name for p in target.iterdir() if p.name not in ours and p.suffix != ".png") if target.exists() else []
    )
    if strange:
        raise InputError(f"{target} holds {strange[0]!r}, which no report wrote; move it or choose another folder")
    return target


def _saved(folder: Path, name: str, figure: Figure, alt: str, caption: str) -> dict[str, Any]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    picture = Image.fromarray(pixels)
    # A palette is all that a chart needs, at a third of the size; samples keep every shade that they have.
    if not any(axes.images for axes in figure.axes):
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    elif (pixels == pixels[..., :1]).all():
        picture = picture.convert("L")
    picture.save(folder / name, optimize=True)
    # Drawn at twice the density of a page, so that they are sharp on a phone and in print.
    return {"file": name, "alt": alt, "caption": caption, "width": picture.width // 2, "height": picture.height // 2}


def write_index(folder: Path) -> Path:
    """Write `folder/index.html`: the reports found there, each with its question and conclusion; return its path."""
    found = []
    for page in sorted(folder.glob("*/index.html")):
        head = _Head()
        head.feed(page.read_text(encoding="utf-8"))
        if head.meta.get("generator") == GENERATOR:
            meta = {key: head.meta.get(key, "") for key in ("study", "question", "description")}
            found.append({"link": f"{quote(page.parent.name)}/index.html", "name": page.parent.name, **meta})
    path = folder / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, _templates().get_template("index.html").render(reports=found))
    return path


class _Head(HTMLParser):
    """Reads the <meta name content> pairs of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.meta: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and values.get("name"):
            self.meta[str(values["name"])] = values.get("content") or ""


def markdown(text: object) -> str:
    r"""Return `text` so that Markdown shows it as it is, also inside a table.

    >>> markdown("a|b_c <script>")
    'a\\|b\\_c \\<script\\>'
    """
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~!$&])", r"\\\1", " ".join(str(text).split()))
    # At the start of a line these would make it a list.
    return re.sub(r"^([+-]|\d+[.)])(?=\s|$)", lambda start: f"{start[0][:-1]}\\{start[0][-1]}", escaped)


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("iar_study.reporting"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    environment.globals["GENERATOR"] = GENERATOR
    return environment
