"""The page "The paper's own numbers": Table 2 whole, its gains, what in it does not agree, and the released code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from iar_study.evidence import published
from iar_study.evidence.published import Gain, Own, Trained
from iar_study.reporting.figures import FAINT, INK, add_titles, chart
from iar_study.reporting.illustrations import Illustration
from iar_study.reporting.pages import write_pages
from iar_study.reporting.unchanged import PAPER, is_unchanged, of_paper
from iar_study.storage import digest

SIZES = ("B", "L", "XL", "XXL")
TOKENS = ("16x16", "24x24")
EPOCHS = (50, 300)
MEASURES = ("fid", "inception_score", "precision", "recall")


def gains_over_size() -> Figure:
    """Draw the gain in FID of every pair of Table 2, in percent of LlamaGen's, over the size of the model."""
    figure, axes = chart(4.6, 3.5)
    blue, orange, *_ = sns.color_palette("colorblind")
    pairs = {(gain.iar.size, gain.iar.tokens, gain.iar.epochs): gain.percent for gain in published.gains()}
    for i, tokens in enumerate(TOKENS):
        for j, epochs in enumerate(EPOCHS):
            shown = [size for size in SIZES if (size, tokens, epochs) in pairs]
            places = [SIZES.index(size) + 0.13 * (2 * i + j - 1.5) for size in shown]
            look: dict[str, Any] = {"color": (blue, orange)[i], "marker": "oD"[j], "linestyle": ((0, (1, 1.5)), "-")[j]}
            look["markerfacecolor"] = "white" if j == 0 else look["color"]
            percents = [pairs[size, tokens, epochs] for size in shown]
            axes.plot(places, percents, linewidth=1.3, markersize=6, label=f"{tokens}, {epochs} epochs", **look)
    axes.axhline(published.MEAN_PERCENT, color=FAINT, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    told = f"mean {published.MEAN_PERCENT:.1f}%"
    axes.annotate(told, (1, published.MEAN_PERCENT), (-2, 3), ("axes fraction", "data"), "offset points")
    axes.texts[-1].set(ha="right", fontsize=8, color=FAINT)
    axes.set_xticks(range(len(SIZES)), SIZES)
    axes.set_xlim(-0.4, len(SIZES) - 0.6)
    axes.set_ylim(0, 12)
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("size of the model", color=INK, fontsize=9)
    add_titles(axes, "How much lower IAR's FID is", "percent of LlamaGen's, at equal tokens and epochs; Table 2")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, handlelength=2.6)
    return figure


def _gains_in_words() -> str:
    """Say what the figure shows: which pair gains least, which most, and that no order of sizes holds."""
    found = sorted(published.gains(), key=lambda gain: gain.percent)
    least, most = (f"{_name(gain)}, {gain.percent:.1f}%" for gain in (found[0], found[-1]))
    return (
        f"All {len(found)} gains are above 0. The smallest is that of {least}; the largest is that of {most}. The "
        f"dashed line is their mean, {published.MEAN_PERCENT:.1f}%. No order by size, by tokens or by epochs holds "
        "throughout. Each is one value beside one other: no spread over seeds is told."
    )


def _name(gain: Gain) -> str:
    return f"{gain.iar.size} at {gain.iar.tokens} tokens after {gain.iar.epochs} epochs"


def _illustration() -> Illustration:
    alt = "Gain in FID of every pair, in percent: " + "; ".join(
        f"{_name(gain)} {gain.percent:.1f}" for gain in published.gains()
    )
    return Illustration("gains", gains_over_size, f"{alt}.", _gains_in_words())


def write_paper_page(folder: Path) -> Path:
    """Write `folder/paper/` with its pages, figure and table-2.csv; return the path of the HTML page.

    It depends on no results: what this package wrote is left as it is. How else, see `write_pages`.
    """
    made_from = of_paper()
    if is_unchanged(folder / PAPER, made_from):
        return folder / PAPER / "index.html"
    rows = [asdict(entry) for entry in published.TABLE_2]
    context = {
        "published": published,
        "rows": _table_2(),
        "figure_3a": _figure_3a(),
        "own": [_own(entry) for entry in published.LLAMAGEN],
    }
    figures = {"gains": [_illustration()]}
    table = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    return write_pages(folder / PAPER, "paper", context, figures, digest(rows), {"table-2.csv": table}, made_from)


def _table_2() -> list[dict[str, Any]]:
    """Return the cells of Table 2, a pair a row; of one that was not trained, no cells."""
    pairs = {(gain.iar.size, gain.iar.tokens, gain.iar.epochs): gain for gain in published.gains()}
    return [
        {"tokens": tokens, "size": size, "epochs": epochs, "cells": _cells(pairs.get((size, tokens, epochs)))}
        for tokens in TOKENS
        for size in SIZES
        for epochs in EPOCHS
    ]


def _cells(gain: Gain | None) -> list[str]:
    if gain is None:
        return []
    return [*_measures(gain.llamagen), *_measures(gain.iar), f"{gain.fid:.2f}", f"{gain.percent:.1f}%"]


def _measures(entry: Trained | Own, digits: int = 1) -> list[str]:
    """Return FID, IS, precision and recall as text."""
    values = zip(MEASURES, (2, digits, 2, 2), strict=True)
    return [_figure(getattr(entry, name), places) for name, places in values]


def _figure(value: float | None, digits: int) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def _figure_3a() -> list[dict[str, Any]]:
    """Return, for each guidance scale, FID and IS of IAR-B and of IAR-L."""
    return [
        {"guidance": str(scale), "cells": [f"{fid_b:g}", f"{is_b:g}", f"{fid_l:g}", f"{is_l:g}"]}
        for (scale, fid_b, is_b), (_, fid_l, is_l) in zip(*published.FIGURE_3A.values(), strict=True)
    ]


def _own(entry: Own) -> dict[str, Any]:
    """Return LlamaGen's own figures and those of the paper for the same model."""
    same = [
        each
        for each in published.TABLE_2
        if (each.method, each.size, each.tokens, each.epochs) == ("LlamaGen", entry.size, entry.tokens, 300)
    ]
    in_paper = _measures(same[0]) if same else ["\N{EN DASH}"] * len(MEASURES)
    name, guidance = f"{entry.size} {entry.tokens}", str(entry.guidance)
    return {"name": name, "guidance": guidance, "cells": [*_measures(entry, 2), *in_paper]}
