"""Figures of what near codes do to pictures: every function takes a `Results` and returns a Matplotlib `Figure`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from iar_study.errors import InputError, nearest
from iar_study.evaluation.metrics import LIKENESS
from iar_study.evidence.results import Results
from iar_study.evidence.statistics import values_by_seed
from iar_study.reporting.figures import (
    BAND_FROM,
    FAINT,
    INK,
    add_band,
    add_columns,
    add_titles,
    arm_colors,
    chart,
    column_zoom,
    framed,
    line_styles,
    mosaic_of,
    plain,
)

LINE = 0.18
"""Height of a line of a legend, in inches."""


def distance_curves(results: Results, metric_name: str, paper_rank: int | None = None) -> Figure:
    """Draw how pictures change with the code distance r at which every token was replaced, beside the controls.

    The curve is the mean over seeds, with a 95% band from three seeds on and a thin line for each of two. Level lines
    are the means for a random code, for each arm's clusters for a random other code of the same cluster, and for the
    tokenizer's own error, which tells the picture of the true tokens from the original image.

    Parameters
    ----------
    metric_name : "psnr", "ssim", "feature_distance" or "class_agreement".
    paper_rank : the rank up to which the paper finds pictures almost unchanged; marked by a vertical line.

    Raises
    ------
    InputError : an unknown metric, or one that was not measured in this study.
    """
    if metric_name not in LIKENESS:
        raise InputError(f"unknown metric of near codes {metric_name!r}; {nearest(metric_name, list(LIKENESS))}")
    rows = results.curves[results.curves["metric"] == f"near/{metric_name}"]
    # Near codes know of no clusters: one arm is enough, and another stands in where a trial is missing.
    near = rows.drop_duplicates(["step", "seed"]).pivot(index="step", columns="seed", values="value").astype(float)
    near = near.where(np.isfinite(near)).dropna()
    if near.empty:
        raise InputError(f"study {results.study!r} has no curve of 'near/{metric_name}'")
    seeds = near.shape[1]

    figure, axes = chart(4.6, 3.8)
    curve: dict[str, Any] = {"marker": "o", "markersize": 4, "markeredgewidth": 0, "linewidth": 1.9, "zorder": 4}
    lines = axes.plot(near.index, near.mean(axis="columns"), color=INK, label="r-th nearest code", **curve)
    if seeds >= BAND_FROM:
        add_band(axes, near, INK)
    elif seeds > 1:
        axes.plot(near.index, near.to_numpy(), color=INK, linewidth=0.7, alpha=0.55)
    lines += [
        axes.axhline(value, label=label, linewidth=1.6, **look) for label, value, look in _levels(results, metric_name)
    ]
    if paper_rank is not None:
        axes.axvline(paper_rank, color=FAINT, linewidth=1, zorder=1)
        label = "paper: 12 of 16,384, to scale"
        lines.append(Line2D([], [], color=FAINT, linestyle="", marker="|", markersize=11, label=label))

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.03)
    axes.set_xlabel("code distance r", color=INK, fontsize=9)
    spread = "band: 95% interval" if seeds >= BAND_FROM else "thin: single seeds"
    note = f"thick: mean over seeds; {spread}" if seeds > 1 else "one seed: no interval"
    unit = " (dB)" if metric_name == "psnr" else ""
    add_titles(axes, f"{LIKENESS[metric_name].label}{unit} by code distance", note)
    columns = 2 if max(len(str(line.get_label())) for line in lines) <= 30 else 1
    figure.set_figheight(2.7 + LINE * math.ceil(len(lines) / columns))
    figure.legend(
        handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, handlelength=2.4
    )
    return figure


def _levels(results: Results, metric_name: str) -> list[tuple[str, float, dict[str, Any]]]:
    """Return label, mean over seeds and look of every control that was measured."""
    arms, colors, styles = list(results.arms), arm_colors(results), line_styles(results)
    random_code = values_by_seed(results.final, f"random_code/{metric_name}", arms)
    same_cluster = values_by_seed(results.final, f"same_cluster/{metric_name}", arms)
    levels = [("random code", random_code.mean(axis="columns").mean(), {"color": FAINT, "linestyle": (0, (1, 1.2))})]
    levels += [
        (f"same cluster: {plain(arm)}", same_cluster[arm].mean(), {"color": colors[arm], **styles[arm]}) for arm in arms
    ]
    own_error = values_by_seed(results.final, f"tokenizer/{metric_name}", arms).mean(axis="columns").mean()
    look: dict[str, Any] = {"color": FAINT, "linestyle": (0, (5, 1.5, 1, 1.5))}
    levels.append(("the tokenizer's own error", own_error, look))
    return [level for level in levels if np.isfinite(level[1])]


def replaced_pictures(results: Results) -> Figure:
    """Draw pictures whose tokens were replaced, one way of replacing a column, one image a row."""
    shown = results.replaced
    if not shown:
        raise InputError(f"study {results.study!r} has no pictures of replaced tokens")
    first = next(iter(shown.values()))
    if any(pictures.shape != first.shape for pictures in shown.values()):
        raise InputError(f"pictures of replaced tokens differ in shape: {[p.shape for p in shown.values()]}")
    size = first.shape[2]
    gap = max(1, size // 14)
    mosaic = mosaic_of(np.stack(list(shown.values()), axis=1), gap)
    edge, head = 12, 74
    figure, axes = framed(mosaic, column_zoom(size + gap, mosaic), edge, head, edge, edge)
    add_columns(axes, shown, size, gap)
    axes.set_yticks([])
    return figure
