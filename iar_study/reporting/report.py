"""A study's report: one HTML page, the same as Markdown, its figures and its numbers, all made from a `Results`.

The same results give the same bytes: no dates, no machine names, and figures without metadata.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Hashable, Iterable, Mapping, Sequence
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
from iar_study.evaluation.metrics import LIKENESS, REPLACED, metric_named
from iar_study.evaluation.near_codes import paper_rank
from iar_study.reporting import figures, near_codes
from iar_study.reporting.tables import (
    BY_CHANCE,
    WRONG_TOKEN,
    comparison,
    comparison_tables,
    design_tables,
    difference_text,
    headline,
    key_of,
    seeds_of,
    target_tables,
    verdict_rows,
    wrong_tokens,
)
from iar_study.storage import write_text
from iar_study.study import published
from iar_study.study.claims import Claim, Verdict, judge_all
from iar_study.study.plan import plural
from iar_study.study.results import Results

DIFFERENCES_DRAWN = {
    "training": ("fd", "val/token_nll", "class_agreement", "val/cluster_accuracy"),
    "sampling": ("fd", "recall", "class_agreement"),
    "near-codes": ("same_cluster/feature_distance", "same_cluster/class_agreement"),
}
FACTOR_DRAWN = ("fd", "val/token_nll", "class_agreement")
CURVES_DRAWN = (
    ("val/token_nll", False),
    ("val/token_nll", True),
    ("val/cluster_accuracy", False),
    ("val/cluster_accuracy", True),
    ("train/token_nll", False),
    ("train/token_nll", True),
)
QUALITY = "fd"
"""What the samples drawn during training are judged by."""
BY_POSITION = "val/token_nll"
VERDICT_COLUMNS = ("claim", "sentence", "study", "verdict", "evidence", "rule", "source", "limits")
GENERATOR = "iar-study"


def conclusion(results: Results) -> str:
    """Say in one sentence what the comparison shows and what it does not, by rule, never beyond its intervals."""
    where = f"On {_scale_in_short(results)}, "
    limit = "none of it says anything about other data or other sizes."
    others = results.compared
    if not others:
        return f"{where}only the baseline {results.baseline} was run, so nothing is compared; {limit}"
    clauses, inconclusive = [], False
    for metric, key in headline(results):
        if key is None:
            clauses.append(f"{metric.label} was not measured")
            continue
        table = comparison(results, key).loc[others]
        clauses.append(f"{metric.label} is {_findings_in_words(table, metric.digits)}")
        inconclusive |= bool((table["finding"] == "inconclusive").any())
    caveat = "inconclusive means that no difference was shown, which does not show equality either; "
    return (
        f"{where}compared with {results.baseline_in_words} seed by seed (95% intervals in brackets): {'; '.join(clauses)}; "
        f"{caveat if inconclusive else ''}{limit}"
    )


def _scale_in_short(results: Results) -> str:
    scale = results.scale
    # "28 x 28 pixels, 1 channel" and "GPT, 0.28 M weights: 4 layers, ..." are told in full further down.
    size = str(scale.get("image size", "image size not stated")).partition(",")[0]
    model = str(scale["model"]).partition(":")[0] if "model" in scale else "no GPT"
    parts = [size, model, plural(len(seeds_of(results)), "seed")]
    if len(results.missing):
        asked = len(pd.concat([results.final, results.missing])[["arm", "seed"]].drop_duplicates())
        counts = results.missing["status"].value_counts().sort_index()
        parts.append(f"of {asked} trials " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    return f"{scale.get('data set', 'a data set not stated')} ({'; '.join(parts)})"


def _findings_in_words(table: pd.DataFrame, digits: int) -> str:
    if (table["finding"] == "inconclusive").all():
        return "inconclusive for every arm"
    parts = []
    for finding in ("better", "worse", "equal", "inconclusive"):
        rows = table[table["finding"] == finding]
        # An interval each is what makes the sentence checkable, but a sweep of ten arms would drown it.
        told = [
            arm
            if finding in ("equal", "inconclusive") or len(rows) > 3
            else f"{arm} ({' '.join(difference_text(row, digits))})"
            for arm, row in rows.iterrows()
        ]
        if finding == "inconclusive" and len(rows) > 3:
            parts.append(f"inconclusive for the other {len(rows)} arms")
        elif told:
            parts.append(f"{finding} for {_listed(map(str, told))}")
    return ", ".join(parts)


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _drawings(results: Results) -> dict[str, list[tuple[str, Figure, str, str]]]:
    """Return the figures of each section: (file name, figure, alternative text, caption)."""
    drawn = set(results.curves["metric"])
    others = results.compared
    found: dict[str, list[tuple[str, Figure, str, str]]] = {
        "factor": [],
        "differences": [],
        "curves": [],
        "positions": [],
        "near": [],
        "replaced": [],
        "samples": [],
        "stages": [],
    }
    for name in DIFFERENCES_DRAWN[results.kind]:
        metric = key_of(results, name)
        if metric and others:
            about, table = metric_named(metric), comparison(results, metric)
            said = "; ".join(
                f"{arm} {' '.join(difference_text(row, about.digits))} {row['finding']}"
                for arm, row in table.loc[others].iterrows()
            )
            alt = f"{about.label}, paired differences from {results.baseline_in_words} with 95% intervals: {said}."
            found["differences"].append((_file("difference", metric), figures.comparison(results, metric), alt, ""))
    for name in FACTOR_DRAWN if results.places else ():
        if metric := key_of(results, name):
            about = metric_named(metric)
            caption = f"{about.label} for each {results.factor}, whose values are spaced evenly."
            told = [arm for arm in results.arms if arm not in results.places and arm != results.baseline]
            caption += f" Without {_listed(told)}, which no number of it describes." if told else ""
            found["factor"].append((_file("factor", metric), figures.over_factor(results, metric), caption, caption))
    for metric, differences in CURVES_DRAWN:
        with_curve = set(results.curves.loc[results.curves["metric"] == metric, "arm"])
        pairs = [(arm, than) for arm, than in results.baselines.items() if arm != than]
        if metric not in drawn or (differences and not any({*pair} <= with_curve for pair in pairs)):
            continue
        kind = f"difference from {results.baseline_in_words}" if differences else "every arm"
        alt = f"{metric_named(metric).label} over training steps, {kind}. The numbers are in the trials' journals."
        name = _file("curve-difference" if differences else "curve", metric)
        found["curves"].append((name, figures.curves(results, metric, differences=differences), alt, ""))
    quality = key_of(results, QUALITY)
    if quality and results.curves.loc[results.curves["metric"] == quality, "step"].nunique() > 1:
        alt = f"{metric_named(quality).label} of samples over training steps, every arm."
        caption = (
            f"How soon each arm reaches a quality. Dots: samples drawn on the way; where an arm's line falls below the "
            f"dotted one, it is as good as {results.baseline} at the end of its training."
        )
        drawing = figures.quality_over_training(results, quality)
        found["curves"].append((_file("quality", quality), drawing, alt, caption))
    if BY_POSITION.partition("/")[2] in results.positions.get(results.baseline, {}):
        alt = f"{metric_named(BY_POSITION).label} by position in the image, and each arm's difference from {results.baseline_in_words}."
        caption = "Mean over seeds, by position of the token in the image"
        caption += f"; the other pictures show arm minus {results.baseline_in_words}, all on one scale." if others else "."
        found["positions"].append(("positions.png", figures.by_position(results, BY_POSITION), alt, caption))
    for name in LIKENESS if results.kind == "near-codes" else ():
        label = metric_named(f"near/{name}").label
        alt = f"{label}, over the rank r on a logarithmic scale, beside both controls. The numbers are in results.csv."
        found["near"].append(
            (f"near-{name}.png", near_codes.distance_curves(results, name, paper_rank(results.n_codes)), alt, "")
        )
    if results.replaced:
        alt = f"Held-out images with every token replaced: {', '.join(results.replaced)}."
        caption = "The first held-out images, not chosen. A row is one image."
        found["replaced"].append(("replaced.png", near_codes.replaced_pictures(results), alt, caption))
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
        alt = f"Held-out images in {plural(len(results.reconstructions), 'row')}: {', '.join(results.reconstructions)}."
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
    return f"{kind}-{re.sub('[/@]', '-', metric)}.png"


def _context(results: Results, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    tables, wrong = comparison_tables(results), wrong_tokens(results)
    shown = [entry["key"] for table in tables for entry in table["compared"]]
    shown += [WRONG_TOKEN, BY_CHANCE] if wrong else []
    if results.kind == "near-codes":
        shown += [key for kind in REPLACED for name in LIKENESS if (key := f"{kind}/{name}") not in shown]
    shown += [
        metric for metric in dict(CURVES_DRAWN) if metric in set(results.curves["metric"]) and metric not in shown
    ]
    trials = results.final[["arm", "seed", "trial", "run_id"]].drop_duplicates()
    return {
        "results": results,
        "conclusion": conclusion(results),
        "colors": {arm: to_hex(color) for arm, color in figures.arm_colors(results).items()},
        "verdicts": verdict_rows(verdicts),
        "tables": tables,
        "metrics_compared": (sum(len(table["compared"]) for table in tables) + bool(wrong)) * (len(results.arms) > 1),
        "wrong": wrong,
        "designs": design_tables(results),
        "targets": target_tables(results),
        "metrics": [{"key": key, "about": metric_named(key)} for key in shown],
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


def write_report(results: Results, folder: Path, verdicts: Sequence[Verdict] = ()) -> Path:
    """Write `folder/STUDY/` with its pages, figures, results.csv and verdicts.csv; return the path of the HTML page.

    A report that is already there is replaced as a whole, once the new one is complete. `verdicts` are those on the
    claims that this study tests.
    """
    target = _target(results, folder)
    folder.mkdir(parents=True, exist_ok=True)
    context = _context(results, verdicts)
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
        judged = pd.DataFrame(context["verdicts"], columns=list(VERDICT_COLUMNS))
        judged.to_csv(new / "verdicts.csv", index=False, lineterminator="\n")
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
    ours = {"index.html", "index.md", "results.csv", "verdicts.csv"}
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


def write_index(folder: Path, claims: Sequence[Claim] = ()) -> Path:
    """Write `folder/index.html`: the verdicts on all claims and the reports found there; return its path.

    Each report tells its own verdicts, in its verdicts.csv; a claim that none of them tells of is not tested.
    """
    found: list[dict[str, str]] = []
    judged: dict[str, dict[str, str]] = {}
    for page in sorted(folder.glob("*/index.html")):
        head = _Head()
        head.feed(page.read_text(encoding="utf-8"))
        if head.meta.get("generator") == GENERATOR:
            meta = {key: head.meta.get(key, "") for key in ("question", "description")}
            link = f"{quote(page.parent.name)}/index.html"
            found.append({"link": link, "name": page.parent.name, **meta})
            if (page.parent / "verdicts.csv").exists():
                rows = pd.read_csv(page.parent / "verdicts.csv", keep_default_na=False, dtype=str)
                # A copy of a report under another name is no study's.
                own = rows[rows["study"] == page.parent.name].to_dict("records")
                judged |= {row["claim"]: {**row, "link": link} for row in own}
    names = {report["name"] for report in found}
    verdicts = []
    for row in verdict_rows(judge_all(claims, [])):
        if row["study"] in names and row["claim"] not in judged:
            row["evidence"] = f"the report of study {row['study']} is older than the claim; write it again"
        verdicts.append({"link": "", **row, **judged.get(row["claim"], {})})
    path = folder / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, _templates().get_template("index.html").render(reports=found, verdicts=verdicts))
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
