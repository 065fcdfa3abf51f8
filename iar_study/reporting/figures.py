"""Figures of a study's results. Every function takes a `Results` and returns a Matplotlib `Figure`.

Figures are made without pyplot, so nothing global changes and nothing stays open; as the last line of a notebook cell,
`figures.curves(results, "val/token_nll")` shows itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from io import BytesIO
from itertools import cycle
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from iar_study.errors import InputError
from iar_study.evidence.results import Results
from iar_study.evidence.statistics import (
    MARGIN,
    compare_with_baseline,
    mean_interval,
    metric_named,
    paired_differences,
    values_by_seed,
)

DPI = 200
ROOM = 2600
"""Pixels that a figure of pictures may be wide."""
COLUMN = 90
"""Pixels that a column of pictures is wide at least: room for the longest word above it."""
INK, FAINT, GRID = "#222222", "#6b6b6b", "#e4e4e4"
BASELINE_COLOR = "#333333"
BASELINE_GREYS = ("#333333", "#6e6e6e", "#8f8f8f", "#adadad")
"""Of the study's baseline, and of the baselines that some arms have of their own."""
BAND_FROM = 3
"""Seeds from which on a curve gets a 95% band: with two the t quantile is 12.7, and a band says nothing."""
CROSS: dict[str, Any] = {"marker": "x", "linestyle": "", "markersize": 7, "markeredgewidth": 1.8}
SHOWN_CLASSES, SHOWN_PER_CLASS, SHOWN_RECONSTRUCTIONS = 10, 6, 12


class Drawing(Figure):
    """A figure that a notebook shows by itself: without pyplot nothing else would tell it how."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        png = BytesIO()
        self.savefig(png, format="png")
        width, height = (round(side * DPI / 2) for side in self.get_size_inches())
        return png.getvalue(), {"width": width, "height": height}


def palette() -> list[Any]:
    """Return colour-blind-safe colours, without grey (that of baselines) and yellow (too faint on white)."""
    return [color for i, color in enumerate(sns.color_palette("colorblind")) if i not in (7, 8)]


def arm_colors(results: Results) -> dict[str, Any]:
    """Return arm -> colour, the same in every figure: greys for baselines, colour-blind-safe for the others."""
    colors, greys = cycle(palette()), cycle(BASELINE_GREYS[1:])
    return {
        arm: BASELINE_COLOR if arm == results.baseline else next(colors if arm in results.compared else greys)
        for arm in results.arms
    }


def line_styles(results: Results) -> dict[str, dict[str, Any]]:
    """Solid lines until the colours come round again; the baseline dashed and on top, to show what lies under it."""
    others = [arm for arm in results.arms if arm != results.baseline]
    styles: dict[str, dict[str, Any]] = {
        arm: {"linestyle": ("-", ":", "-.")[i // 8 % 3]} for i, arm in enumerate(others)
    }
    return styles | {results.baseline: {"linestyle": (0, (4, 2)), "zorder": 3}}


def plain(text: str) -> str:
    """Return `text` so that Matplotlib draws it as it is: no formulas."""
    return str(text).replace("$", r"\$")


def chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Drawing(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_facecolor("white")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8.5, length=3, color=FAINT)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def add_titles(axes: Axes, title: str, note: str) -> None:
    axes.annotate(title, (0, 1), (0, 20), "axes fraction", "offset points", color=INK, fontsize=10.5, weight="bold")
    axes.annotate(note, (0, 1), (0, 8), "axes fraction", "offset points", color=FAINT, fontsize=8)


def add_band(axes: Axes, values: pd.DataFrame, color: Any) -> None:
    """Shade the 95% interval of each row, a column a seed, over the rows' index."""
    intervals = [mean_interval(row) for row in values.to_numpy()]
    low, high = [i.low for i in intervals], [i.high for i in intervals]
    axes.fill_between(values.index, low, high, color=color, alpha=0.15, linewidth=0)


def add_bar(figure: Figure, image: ScalarMappable, beside: Any, ticks: MaxNLocator, **look: Any) -> Colorbar:
    """Add the scale of an image's colours below axes, and return it."""
    bar = figure.colorbar(image, ax=beside, location="bottom", **look)
    bar.ax.tick_params(labelsize=7.5, color=FAINT, labelcolor=INK)
    bar.ax.xaxis.set_major_locator(ticks)
    bar.outline.set_visible(False)
    return bar


def _curves_by_arm(results: Results, metric: str) -> dict[str, pd.DataFrame]:
    """Return arm -> frame with one row per step and one column per seed, NaN where a value is not finite.

    A seed that diverged before its first value has its column too: a mean over the others would flatter the arm.
    """
    rows = results.curves[results.curves["metric"] == metric]
    by_arm = {}
    for arm in results.arms:
        wide = rows[rows["arm"] == arm].pivot(index="step", columns="seed", values="value").astype(float)
        if wide.size:
            wide = wide.reindex(columns=wide.columns.union(_diverged(results, arm)))
            by_arm[arm] = wide.where(np.isfinite(wide)).sort_index()
    return by_arm


def _diverged(results: Results, arm: str) -> list[int]:
    """Return the seeds that diverged."""
    missing = results.missing
    return missing.loc[(missing["arm"] == arm) & (missing["status"] == "diverged"), "seed"].tolist()


def curves(results: Results, metric: str, *, differences: bool = False) -> Figure:
    """Draw a metric over training steps: each arm's mean over seeds, with a 95% band from three seeds on.

    With fewer seeds, or where a trial's value ceased to be finite, every seed is a thin line instead of the band.
    The mean is drawn only at steps that all seeds of the arm reached, and a cross marks the last value of a trial that
    diverged. With `differences`, each seed's difference from the baseline's curve of the same seed is drawn in place of
    the value.
    """
    label = metric_named(metric).label
    by_arm = _curves_by_arm(results, metric)
    if differences:
        by_arm = {
            arm: (by_arm[arm] - by_arm[than])[by_arm[arm].columns.intersection(by_arm[than].columns)]
            for arm, than in results.baselines.items()
            if arm != than and {arm, than} <= by_arm.keys()
        }
        by_arm = {arm: wide for arm, wide in by_arm.items() if wide.notna().any(axis=None)}
    if not by_arm:
        raise InputError(f"study {results.study!r} has no curve of {metric!r}{' to compare' if differences else ''}")
    colors, styles = arm_colors(results), line_styles(results)
    figure, axes = chart(4.6, 3.3)
    banded, crossed = [], False
    for arm, wide in by_arm.items():
        look = {"color": colors[arm], **styles[arm]}
        whole = wide.dropna()
        if wide.shape[1] >= BAND_FROM and len(whole) == len(wide):
            add_band(axes, whole, colors[arm])
            banded.append(arm)
        elif wide.shape[1] > 1:
            axes.plot(wide.index, wide.to_numpy(), linewidth=0.7, alpha=0.55, **look)
        axes.plot(whole.index, whole.mean(axis="columns"), linewidth=1.9, **look)
        for curve in (wide[seed].dropna() for seed in _diverged(results, arm) if seed in wide):
            if len(curve):
                axes.plot(curve.index[-1:], curve[-1:], color=colors[arm], zorder=4, **CROSS)
                crossed = True
    if differences:
        axes.axhline(0, color=BASELINE_COLOR, linewidth=1, zorder=1)
    axes.margins(x=0.02)
    axes.set_xlabel("training step", color=INK, fontsize=9)
    single = all(wide.shape[1] == 1 for wide in by_arm.values())
    thin = "thin: single seeds"
    spread = "band: 95% interval" if banded else thin
    if banded and len(banded) < len(by_arm):
        spread = f"band: 95% interval; {thin}"
    note = "one seed: no interval" if single else f"thick: mean over seeds; {spread}"
    title = f"{label}, difference from {plain(results.baseline_in_words)}" if differences else label
    add_titles(axes, title, note)
    handles = [Line2D([], [], color=colors[arm], linewidth=2.2, **styles[arm]) for arm in by_arm]
    # A leading underscore would hide an arm from the legend; a zero-width space before it does not show.
    names = [f"\u200b{plain(arm)}" if arm.startswith("_") else plain(arm) for arm in by_arm]
    if crossed:
        handles.append(Line2D([], [], color=INK, **CROSS))
        names.append("diverged")
    columns = min(len(names), max(1, 54 // (5 + max(map(len, names)))))
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, handlelength=1.8
    )
    return figure


def quality_over_training(results: Results, metric: str) -> Figure:
    """Draw how soon each arm reaches a quality: what `curves` draws, on a logarithmic scale.

    Dots are the times at which samples were drawn; the dotted line is the mean of the baseline's final values.
    """
    figure = curves(results, metric)
    axes = figure.axes[0]
    for line in axes.lines:
        if line.get_marker() == "None":
            line.set(marker="o", markersize=1.9 * line.get_linewidth(), markeredgewidth=0)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    end = values_by_seed(results.final, metric, [results.baseline])[results.baseline].mean(skipna=False)
    if np.isfinite(end):
        axes.axhline(end, color=BASELINE_COLOR, linewidth=1, linestyle=":", zorder=1)
        axes.annotate(
            f"{plain(results.baseline)} at its end",
            (0, end),
            (3, 3),
            ("axes fraction", "data"),
            "offset points",
            va="bottom",
            fontsize=8,
            color=FAINT,
        )
    return figure


def comparison(results: Results, metric: str) -> Figure:
    """Draw each arm's paired differences from its baseline: a dot per seed, their mean, and its 95% interval."""
    measured = metric_named(metric)
    others = results.compared
    if not others:
        raise InputError(f"study {results.study!r} has no arm beside its baseline {results.baseline!r}")
    table = compare_with_baseline(results.final, metric, results.baselines, list(results.arms), draws=results.draws)
    differences = paired_differences(results.final, metric, results.baselines, others)
    if measured.relative:
        shown = ["difference", "difference_low", "difference_high"]
        table[shown] = 100 * np.expm1(table[shown].astype(float))
        differences = differences.apply(lambda values: 100 * np.expm1(values))
    colors = arm_colors(results)
    figure, axes = chart(4.6, 1.3 + 0.42 * len(others))
    if measured.relative:
        axes.axvspan(100 / (1 + MARGIN) - 100, 100 * MARGIN, color=BASELINE_COLOR, alpha=0.12, linewidth=0)
    axes.axvline(0, color=BASELINE_COLOR, linewidth=1)
    for y, (arm, row) in enumerate(zip(others, table.loc[others].to_dict("records"), strict=True)):
        seeds = differences[arm].dropna()
        if row["pairs"] >= 2:
            axes.plot([row["difference_low"], row["difference_high"]], [y, y], color=colors[arm], linewidth=2)
            axes.plot(row["difference"], y, marker="D", markersize=6, color=colors[arm], markeredgecolor="white")
        axes.plot(seeds, np.full(len(seeds), y + 0.24), "o", markersize=4, color=colors[arm], alpha=0.75, mew=0)
        beside = str(row["finding"]) if row["pairs"] else "no pair of seeds"
        axes.annotate(
            beside, (1, y), (6, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8.5, color=INK
        )
    axes.set_yticks(range(len(others)), [plain(fill(arm, 20)) for arm in others], fontsize=9)
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.margins(x=0.06)
    # Small differences have long labels, and room for few of them.
    axes.xaxis.set_major_locator(MaxNLocator(5 if np.ptp(axes.get_xlim()) > 0.02 else 3))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    arrow = {"lower": "   (\u2190 better)", "higher": "   (better \u2192)", None: ""}[measured.better]
    change = "change in percent beside" if measured.relative else "arm minus"
    axes.set_xlabel(f"{change} {plain(results.baseline_in_words)}, paired by seed{arrow}", color=INK, fontsize=9)
    several = (table.loc[others, "pairs"] >= 2).any()
    note = "dots: seeds; diamond and line: mean, 95% interval" if several else "dots: seeds; no interval from one seed"
    note += f"; shaded: within {MARGIN:.0%}" if measured.relative else ""
    add_titles(axes, measured.label, note)
    return figure


def over_factor(results: Results, metric: str) -> Figure:
    """Draw a metric over what the arms of a series differ in: a dot per seed, a line through the means, 95% intervals.

    The values of the factor are spaced evenly, whatever lies between them. A dashed level line is the mean of the
    study's baseline, where that is in no series.
    """
    measured = metric_named(metric)
    values = values_by_seed(results.final, metric, list(results.arms))
    if values.notna().sum(axis=None) == 0 or not results.places:
        raise InputError(f"study {results.study!r} has no {metric!r} over a factor")
    ticks = sorted({at for _, at in results.places.values()})
    names = list(dict.fromkeys(series for series, _ in results.places.values()))
    colors, styles = arm_colors(results), line_styles(results)
    figure, axes = chart(4.6, 3.3)
    handles = []
    for i, name in enumerate(names):
        arms = sorted((at, arm) for arm, (series, at) in results.places.items() if series == name)
        # A series is drawn as its arm of the study's own size, which has its name, or else as its first.
        shown = name if name in results.arms else arms[0][1]
        if results.baseline in (arm for _, arm in arms) and len(names) > 1:
            shown = results.baseline
        elif shown == results.baseline:
            shown = next((arm for _, arm in arms if arm != results.baseline), shown)
        look: dict[str, Any] = {"color": colors[shown], "linestyle": styles[shown]["linestyle"]}
        places = np.array([ticks.index(at) for at, _ in arms]) + 0.08 * (i - (len(names) - 1) / 2)
        found = [mean_interval(values[arm]) for _, arm in arms]
        for x, (_, arm), interval in zip(places, arms, found, strict=True):
            seeds = values[arm].dropna()
            axes.plot(np.full(len(seeds), x), seeds, "o", markersize=3, color=colors[shown], alpha=0.5, mew=0)
            if np.isfinite(interval.low):
                axes.plot([x, x], [interval.low, interval.high], color=colors[shown], linewidth=1.4)
        line: dict[str, Any] = {"marker": "D", "markersize": 5, "markeredgecolor": "white", "linewidth": 1.6}
        axes.plot(places, [interval.mean for interval in found], **line, **look)
        handles.append(Line2D([], [], label=f"\u200b{plain(name)}", **line, **look))
    if results.baseline not in results.places and values[results.baseline].notna().any():
        look = {"color": BASELINE_COLOR, "linewidth": 1.2, "linestyle": (0, (4, 2))}
        axes.axhline(values[results.baseline].mean(), zorder=1, **look)
        handles.append(Line2D([], [], label=f"\u200b{plain(results.baseline)}", **look))
    axes.set_xticks(range(len(ticks)), [f"{at:,g}" for at in ticks])
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.06)
    axes.set_xlabel(plain(results.factor), color=INK, fontsize=9)
    several = (values.notna().sum() > 1).any()
    note = "dots: seeds; line: means, 95% intervals" if several else "one seed: no interval"
    add_titles(axes, measured.label, "; ".join(filter(None, (measured.direction, note))))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5, handlelength=2.4)
    return figure


def _rgb(pictures: np.ndarray) -> np.ndarray:
    if pictures.dtype != np.uint8 or pictures.shape[-1] not in (1, 3):
        raise InputError(f"pictures are {pictures.dtype} {pictures.shape}; wanted uint8, 1 or 3 channels last")
    return np.repeat(pictures, 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def mosaic_of(pictures: np.ndarray, gap: int) -> np.ndarray:
    """Return (rows, columns, h, w, c) pictures as one picture, with white gaps between them."""
    rows, columns, height, width, _ = pictures.shape
    whole = np.full((rows, height + gap, columns, width + gap, 3), 255, np.uint8)
    whole[:, :height, :, :width] = _rgb(pictures).transpose(0, 2, 1, 3, 4)
    return whole.reshape(rows * (height + gap), columns * (width + gap), 3)[: -gap or None, : -gap or None]


def _zoom(pixels: int, room: int) -> float:
    """Return how much to enlarge `pixels` to fill `room`: whole numbers, so that no picture's pixels are uneven."""
    zoom = min(4.0, room / pixels)
    return float(int(zoom)) if zoom >= 1 else zoom


def middles(count: int, size: int, gap: int) -> np.ndarray:
    """Return where the middles of so many pictures of a mosaic lie, in its pixels."""
    return (np.arange(count) + 0.5) * (size + gap) - gap / 2 - 0.5


def framed(mosaic: np.ndarray, zoom: float, left: int, top: int, right: int, bottom: int) -> tuple[Figure, Axes]:
    """Return a figure of a picture, enlarged, with so many pixels around it."""
    width, height = round(mosaic.shape[1] * zoom), round(mosaic.shape[0] * zoom)
    total = (left + width + right, top + height + bottom)
    figure = Drawing(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor="white")
    return figure, place(figure, (left, top, width, height), mosaic)


def column_zoom(column: int, mosaic: np.ndarray) -> float:
    """Return how much to enlarge pictures in columns of so many pixels, so that the words above them have room."""
    # Whole numbers, as in every figure of pictures, but as large as the words ask for.
    zoom = COLUMN / column
    return math.ceil(zoom) if zoom > 1 else min(max(zoom, 0.5), ROOM / mosaic.shape[1])


def add_columns(axes: Axes, names: Iterable[str], size: int, gap: int) -> None:
    """Write a name above each column of pictures."""
    words = [plain(name).replace(" ", "\n", 1) for name in names]
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=7.8)
    axes.set_xticks(middles(len(words), size, gap), words)


def place(figure: Figure, box: tuple[float, float, float, float], picture: np.ndarray) -> Axes:
    """Put a picture at (left, top, width, height) in pixels of the figure."""
    width, height = figure.get_size_inches() * DPI
    left, top, w, h = box
    axes = figure.add_axes((left / width, 1 - (top + h) / height, w / width, h / height))
    axes.imshow(picture, aspect="auto", interpolation="nearest" if w >= picture.shape[1] else "antialiased")
    axes.set_xticks([])
    axes.tick_params(length=0, pad=5, labelsize=8.5, labelcolor=INK)
    axes.spines[:].set_visible(False)
    return axes


def sample_grids(results: Results) -> Figure:
    """Draw every arm's samples side by side, one class a row; column k has the same noise in every arm.

    Shows the first 10 classes and 6 samples of each, and up to five arms in a row.
    """
    grids = {arm: results.samples[arm] for arm in results.arms if arm in results.samples}
    if not grids:
        raise InputError(f"study {results.study!r} has no samples")
    grids = {arm: grid[:SHOWN_CLASSES, :SHOWN_PER_CLASS] for arm, grid in grids.items()}
    classes, _, size, _, _ = next(iter(grids.values())).shape
    gap = max(1, size // 14)
    mosaics = {arm: mosaic_of(grid, gap) for arm, grid in grids.items()}
    names = [plain(results.class_names[k]) if k < len(results.class_names) else f"class {k}" for k in range(classes)]
    across = min(5, len(mosaics))
    margin, space, head, foot = 60 + 13 * max(map(len, names)), 44, 60, 24
    native = next(iter(mosaics.values()))
    zoom = _zoom(native.shape[1] * across, ROOM - margin - space * across)
    width, height = round(native.shape[1] * zoom), round(native.shape[0] * zoom)
    total = (margin + (width + space) * across, (head + height + foot) * -(-len(mosaics) // across))
    figure = Drawing(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor="white")
    for i, (arm, mosaic) in enumerate(mosaics.items()):
        row, column = divmod(i, across)
        left, top = margin + (width + space) * column, head + (head + height + foot) * row
        axes = place(figure, (left, top, width, height), mosaic)
        axes.set_title(plain(arm), fontsize=9.5, color=INK, loc="left", pad=5)
        axes.set_yticks(middles(classes, size, gap) if column == 0 else [], names if column == 0 else [])
    return figure


def nearest_images(pictures: np.ndarray, nearest: np.ndarray, distances: np.ndarray) -> Figure:
    """Draw pictures above the training images that are nearest to them, with their distances.

    pictures : uint8 (n, h, w, c). nearest : uint8 (n, k, h, w, c). distances : (n, k), see `evaluation.nearest_images`.
    """
    columns = np.concatenate([pictures[:, None], nearest], axis=1)
    rows, size = columns.shape[1], pictures.shape[1]
    gap = max(1, size // 10)
    mosaic = mosaic_of(columns.swapaxes(0, 1), gap)
    names = ["sample", *("nearest" if k == 0 else f"{k + 1}. nearest" for k in range(rows - 1))]
    margin, edge = 40 + 13 * max(map(len, names)), 24
    figure, axes = framed(mosaic, _zoom(mosaic.shape[1], ROOM - margin - edge), margin, edge, edge, 3 * edge)
    axes.set_yticks(middles(rows, size, gap), names)
    axes.set_xticks(middles(len(pictures), size, gap), [f"{distance:.0f}" for distance in distances[:, 0]])
    axes.set_xlabel("distance of the nearest, root mean square of 0 to 255", color=INK, fontsize=8.5)
    return figure


def reconstructions(results: Results) -> Figure:
    """Draw what the tokenizer makes of held-out images: one row a stage, one column an image."""
    if not results.reconstructions:
        raise InputError(f"study {results.study!r} has no reconstructions")
    shown = {name: pictures[:SHOWN_RECONSTRUCTIONS] for name, pictures in results.reconstructions.items()}
    first = next(iter(shown.values()))
    if any(pictures.shape != first.shape for pictures in shown.values()):
        raise InputError(f"reconstructions differ in shape: {[pictures.shape for pictures in shown.values()]}")
    size = first.shape[1]
    gap = max(1, size // 14)
    mosaic = mosaic_of(np.stack(list(shown.values())), gap)
    margin, edge = 40 + 13 * max(map(len, shown)), 24
    figure, axes = framed(mosaic, _zoom(mosaic.shape[1], ROOM - margin - edge), margin, edge, edge, edge)
    axes.set_yticks(middles(len(shown), size, gap), [plain(name) for name in shown])
    return figure


def by_position(results: Results, metric: str) -> Figure:
    """Draw a metric by position: the study's baseline, mean over seeds, and every arm's difference from its own."""
    label, name = metric_named(metric).label, metric.partition("/")[2]
    planes = {arm: results.positions[arm][name] for arm in results.arms if name in results.positions.get(arm, {})}
    if results.baseline not in planes:
        raise InputError(f"study {results.study!r} has no {metric!r} by position of its baseline {results.baseline!r}")
    reference = planes[results.baseline]
    # Paired by seed: over the seeds that both have.
    paired = {
        arm: planes[arm] - planes[than]
        for arm, than in results.baselines.items()
        if arm != than and {arm, than} <= planes.keys() and planes[arm].shape == planes[than].shape
    }
    others = {arm: _mean_of_seeds(each) for arm, each in paired.items() if np.isfinite(each).any()}
    largest = max((np.abs(each).max() for each in others.values()), default=0) or 1e-12
    across = min(3, 1 + len(others))
    down = -(-(1 + len(others)) // across)
    figure = Drawing(figsize=(1.9 * across, 2.3 * down), dpi=DPI, layout="constrained", facecolor="white")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    first, *places = grid.flat
    looks: list[tuple[Axes, str, np.ndarray, dict[str, Any]]] = [
        (first, f"{results.baseline}", _mean_of_seeds(reference), {"cmap": "cividis"}),
        *(
            (axes, f"{arm}: difference", each, {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest})
            for axes, (arm, each) in zip(places, others.items(), strict=False)
        ),
    ]
    for axes, title, values, look in looks:
        image = axes.imshow(values, interpolation="nearest", **look)
        axes.set_title(plain(fill(title, 24)), fontsize=8.5, color=INK, loc="left")
        add_bar(figure, image, axes, MaxNLocator(3), shrink=0.9, aspect=14, pad=0.04)
    figure.suptitle(f"{label} by position", x=0.01, ha="left", fontsize=10.5, weight="bold", color=INK)
    return figure


def _mean_of_seeds(planes: np.ndarray) -> np.ndarray:
    """Return the mean, (grid, grid), of the planes (seeds, grid, grid) that are no NaN."""
    return planes[np.isfinite(planes).all(axis=(1, 2))].mean(axis=0)
