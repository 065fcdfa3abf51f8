"""The index of a site: does IAR help, in a paragraph and a plot of all effects; then every claim, and the reports."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from iar_study.errors import enumerated
from iar_study.evidence import published
from iar_study.evidence.claims import Claim, counted, judge_all
from iar_study.evidence.results import trials_in_words
from iar_study.evidence.rules import Row, percent
from iar_study.evidence.statistics import MARGIN, Effect
from iar_study.reporting.figures import BASELINE_COLOR, FAINT, INK, add_titles, chart, plain
from iar_study.reporting.illustrations import save, sizes
from iar_study.reporting.pages import GENERATOR, as_json, templates
from iar_study.reporting.paper import write_paper_page
from iar_study.reporting.tables import comparisons_shown, verdict_rows
from iar_study.reporting.unchanged import ABOUT, CODEBOOK, PAPER, index_about
from iar_study.storage import read_json, write_text

INDEX = "index.html"
EFFECTS = "effects"
"""Name of the plot of all effects."""

BOXES = {
    "identity": "Identities and checks: these follow by algebra, and tell whether the code is right",
    "observation": "Observations about codes: these say nothing about a trained model's images",
    "effect": "Does IAR help? The paper's claims",
    "exploratory": "Exploratory: questions of ours, and rules made after the data",
}

CLAIMED_B = math.log1p(-published.gain_of("B", "16x16", 300).percent / 100)
"""The log of the ratio of IAR-B's published FID to LlamaGen-B's, at 16x16 tokens and 300 epochs."""


def write_index(folder: Path, claims: Sequence[Claim] = ()) -> Path:
    """Write `folder/index.html` and `.md`: the answer, all claims and the reports found there; return the path.

    Each report tells its own verdicts, in its verdicts.csv; a claim that none of them tells of is not tested. The index
    leads to the page of the paper's own numbers, which is written beside it.
    """
    found, judged, premises = _reports(folder)
    names = {report["name"] for report in found}
    verdicts = []
    for row in verdict_rows(judge_all(claims, [])):
        if row["study"] in names and row["claim"] not in judged:
            row["evidence"] = f"the report of study {row['study']} is older than the claim; write it again"
        merged = {"link": "", **row, **judged.get(row["claim"], {})}
        if merged["kind"] == "exploratory" and merged["answer"] == "not tested":
            continue  # a question of ours that nobody has run anything for
        verdicts.append({**merged, "comparisons": comparisons_shown(merged["rows"])})
    found.sort(key=lambda report: report["name"] == CODEBOOK)  # after the studies
    write_paper_page(folder)
    figure = _save_effects(folder, verdicts)
    context = {
        "answer": answer(verdicts, premises),
        "figure": figure,
        "effort": trials_in_words(_trials(folder, names)),
        "boxes": [(text, [row for row in verdicts if row["kind"] == kind]) for kind, text in BOXES.items()],
        "reports": found,
        "verdicts": verdicts,
        "published": published,
    }
    for name in ("index.html", "index.md"):
        path, template = folder / name, templates().get_template(name)
        text = re.sub(r"\n{3,}", "\n\n", template.render(context))
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    write_text(folder / ABOUT, as_json(index_about(folder)))
    return folder / INDEX


def answer(verdicts: Sequence[dict[str, Any]], premises: Sequence[str]) -> list[str]:
    """Answer "does IAR help?" in sentences, by rule, from the verdicts of all reports; empty without any.

    premises : what the reports say of near codes.
    """
    told = [row for row in verdicts if row["answer"] != "not tested" and row["kind"] in ("effect", "exploratory")]
    if not told:
        return []
    methods = dict.fromkeys(row["pooled"] for row in told if row["pooled"])
    sentences = [_method_in_words(method, [row for row in told if row["pooled"] == method]) for method in methods]
    if any("not met" in said for said in premises):
        sentences.append(
            "The premise of the method is not met by the codebooks that were trained here: by our yardstick, for the "
            "paper gives none, near codes are not interchangeable. So none of this tests the paper; it tells what the "
            "method does on such codes."
        )
    tests = [row for row in verdicts if row["counts"] and row["answer"] != "not tested"]
    said = counted([(row["claim"], row["answer"], float(row["p"] or "nan")) for row in tests])
    if said:
        answers = "; ".join(f"{name}: {verdict} here" for name, verdict in said.items())
        sentences.append(f"Rules that stood before their data, at this scale: {answers}.")
    else:
        sentences.append(
            "No result here counts as a test of the paper: each rule on what was measured was written, or written "
            "anew, after its data."
        )
    return sentences


def _method_in_words(method: str, verdicts: Sequence[dict[str, Any]]) -> str:
    """Answer for one method over all its conditions; of one alone, by the comparison that was made of it."""
    conditions = _conditions(verdicts)
    if len(conditions) == 1:
        (only,) = conditions
        return f"By {method}, in one condition: {only.text()}."
    effect = Effect.pooled(pd.DataFrame({i: pd.Series(row.pairs, dtype=float) for i, row in enumerate(conditions)}))
    low, high = effect.interval()
    over = f"over {len(conditions)} conditions ({effect.pairs} pairs of trainings)"
    if not effect.errors:
        return f"By {method} nothing can be said yet: the mean change of FD is {percent(effect.mean)} {over}."
    begin = {
        "better": "IAR helps here",
        "worse": "IAR does harm here",
        "equivalent": f"IAR makes no difference of {MARGIN:.0%} or more here",
        "undecided": "nothing here shows that IAR helps, or that it does not",
    }[effect.finding("lower", math.log1p(MARGIN))]
    gain = f"A gain of {-100 * math.expm1(CLAIMED_B):.1f}%, as the paper's for its model B at 16x16 tokens in another "
    gain += f"FID, is {'outside' if low > CLAIMED_B else 'inside'} that interval"
    return (
        f"By {method}, {begin}: FD changes by {percent(effect.mean)} [{percent(low)}, {percent(high)}] {over}; less is "
        f"better. {gain}."
    )


def _conditions(verdicts: Sequence[dict[str, Any]]) -> list[Row]:
    """Return the comparisons of ratios, each condition once."""
    found: list[Row] = []
    for verdict in verdicts:
        rows = [Row(**row) for row in json.loads(verdict["rows"])]
        for row in rows if len(rows) == 1 else rows[:-1]:  # the last of several is the pooled one
            # Studies share trials: the same pairs, or some of them, are one condition.
            if row.relative and row.pairs and not any(row.pairs.items() <= known.pairs.items() for known in found):
                found = [known for known in found if not known.pairs.items() <= row.pairs.items()]
                found.append(row)
    return found


def _save_effects(folder: Path, verdicts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Draw all effects on FD in percent beside `folder/index.html`; return what a page needs of it."""
    shown: list[tuple[str, Row]] = []
    seen = set()
    for verdict in verdicts:
        for row in (Row(**row) for row in json.loads(verdict["rows"])):
            told = (row.what, tuple(row.pairs.values()))
            if row.relative and verdict["kind"] in ("effect", "exploratory") and told not in seen:
                seen.add(told)
                shown.append((verdict["study"], row))
    for file in (folder / f"{EFFECTS}.png", folder / f"{EFFECTS}.svg"):
        file.unlink(missing_ok=True)
    if not shown:
        return None
    save(_forest(shown), folder, EFFECTS)
    words = f"Changes of FD in percent with 95% intervals, {len(shown)} comparisons of {enumerated(_studies(shown))}"
    caption = (
        f"{words}. Left is better. Shaded: within {MARGIN:.0%}. Dashed: the gain that the paper tells for B at 16x16 "
        "tokens. Diamonds: several conditions together. Each comparison is tested by itself and shown once; what lies "
        "beyond the axis is told in words."
    )
    return {"alt": words, "caption": caption, **sizes(folder, EFFECTS)}


def _studies(shown: Sequence[tuple[str, Row]]) -> list[str]:
    return list(dict.fromkeys(study for study, _ in shown))


def _forest(shown: Sequence[tuple[str, Row]]) -> Figure:
    figure, axes = chart(7.4, 1.2 + 0.25 * (len(shown) + len(_studies(shown))))
    axes.axvspan(100 / (1 + MARGIN) - 100, 100 * MARGIN, color=BASELINE_COLOR, alpha=0.14, linewidth=0)
    axes.axvline(0, color=BASELINE_COLOR, linewidth=1)
    axes.axvline(100 * math.expm1(CLAIMED_B), color=FAINT, linewidth=1, linestyle=(0, (4, 2)))
    y, ticks, names = 0.0, [], []
    for study in _studies(shown):
        ticks.append(y)
        names.append(study)
        y += 1
        for row in (row for of, row in shown if of == study):
            low, middle, high = (100 * np.expm1(value) for value in (row.low, row.difference, row.high))
            bold = row.what.startswith("all ")
            if math.isfinite(low):
                axes.plot([low, high], [y, y], color=INK, linewidth=2.4 if bold else 1.2)
            axes.plot(middle, y, marker="D" if bold else "o", markersize=6 if bold else 4.5, color=INK)
            ticks.append(y)
            names.append(f"{plain(row.what)}   {percent(row.difference)}, {row.finding}")
            y += 1
    axes.set_yticks(ticks, names, fontsize=8)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        if name in _studies(shown):
            label.set_fontweight("bold")
    axes.set_ylim(y - 0.4, -0.8)
    axes.set_xlim(-30, 40)
    axes.xaxis.set_major_formatter("{x:g}%")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("change of FD (\u2190 better)", color=INK, fontsize=9)
    add_titles(axes, "All effects on FD", "dots: means over seeds; lines: 95%")
    return figure


def _reports(folder: Path) -> tuple[list[dict[str, str]], dict[str, dict[str, str]], list[str]]:
    """Return the reports found, what they say of claims, and what they say of the premise."""
    found: list[dict[str, str]] = []
    judged: dict[str, dict[str, str]] = {}
    premises: list[str] = []
    for page in sorted(folder.glob(f"*/{INDEX}")):
        head = _Head()
        head.feed(page.read_text(encoding="utf-8"))
        if head.meta.get("generator") != GENERATOR or page.parent.name == PAPER:
            continue
        meta = {key: head.meta.get(key, "") for key in ("question", "description")}
        link = f"{quote(page.parent.name)}/{INDEX}"
        picture = head.meta.get("picture", "")
        shown = {"picture": picture and f"{quote(page.parent.name)}/{picture}", "alt": head.meta.get("picture-alt", "")}
        found.append({"link": link, "name": page.parent.name, **meta, **shown})
        premises.append(head.meta.get("premise", ""))
        if (page.parent / "verdicts.csv").exists():
            rows = pd.read_csv(page.parent / "verdicts.csv", keep_default_na=False, dtype=str)
            # A copy of a report under another name is no study's; one of an older version tells something else.
            if set(rows.columns) >= {"answer", "rows", "pooled"}:
                own = rows[rows["study"] == page.parent.name].to_dict("records")
                judged |= {row["claim"]: {**row, "link": link} for row in own}
    return found, judged, premises


def _trials(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the trials that these reports tell of; none of one from before trials told how long they took."""
    paths = [path for name in sorted(names) if (path := folder / name / "trials.json").exists()]
    return [trial for path in paths for trial in read_json(path)["trials"] if "seconds" in trial]


class _Head(HTMLParser):
    """Reads the <meta name content> pairs of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.meta: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and values.get("name"):
            self.meta[str(values["name"])] = values.get("content") or ""
