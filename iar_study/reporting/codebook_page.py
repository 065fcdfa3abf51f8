"""Figures of a codebook and the page that shows them. Each figure's function takes a `CodebookResults`.

Every number that is drawn is rounded before it becomes a colour or a place, so that the last digits, in which
processors differ, do not show.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from iar_study.codebook import Rearrangement
from iar_study.codebook.analysis import neighbour_agreement
from iar_study.errors import InputError
from iar_study.pipeline.codebooks import (
    PAIRS,
    CodebookResults,
    evenly,
    pair_similarities,
    principal_plane,
    shuffled,
    similarities,
    similarity_by_rank,
)
from iar_study.reporting.figures import (
    DPI,
    FAINT,
    INK,
    Drawing,
    add_bar,
    add_columns,
    add_titles,
    chart,
    column_zoom,
    framed,
    middles,
    mosaic_of,
    palette,
    plain,
)
from iar_study.reporting.illustrations import Illustration
from iar_study.reporting.pages import write_pages
from iar_study.reporting.tables import number
from iar_study.reporting.unchanged import CODEBOOK
from iar_study.running.needs import plural
from iar_study.storage import digest

WIDTH = 4.6
"""Inches of a figure, as of all charts: on a phone its words can still be read."""

DRAWN = 256
"""Codes that a matrix shows, at most: of more, a page has no room to tell one from the next."""

SHADES = 20
"""Of a matrix, a tenth of similarity each."""

LARGEST_OUTLINED = 64
"""Clusters that are outlined one by one; of more, only lines would be seen."""

CLOSE_UP = 6
"""Clusters that are shown large: the first ones."""

HIGHLIGHTED = 8
"""Clusters that have a colour and a marker of their own in the map: more, no eye tells apart."""

MARKERS = "osD^vPX*"
LARGEST_DOTTED = 2048
OUTLINE = "#de8f05"
"""The orange of seaborn's colour-blind-safe palette: seen on black, on grey and on white."""

NEAREST = 8
"""Neighbours by index of which it is told how many are neighbours in space."""

QUESTION = "Are near codes alike, and do the clusters gather them?"


def similarity_matrix(results: CodebookResults) -> Figure:
    """Draw the cosine similarity of every two codes, in the original order and after rearrangement.

    Below, the same of the first indices alone: as many as the first `CLOSE_UP` clusters hold. Clusters are outlined.
    Of a large codebook, `DRAWN` codes stand for all.
    """
    size, arranged = len(results.use), results.arranged
    near = int(arranged.boundaries[: CLOSE_UP + 1][-1])
    extents = [size] if near == size else [size, near]
    figure = Drawing(figsize=(WIDTH, 0.95 + 2.15 * len(extents)), dpi=DPI, layout="constrained", facecolor="white")
    panels = figure.subplots(len(extents), 2, squeeze=False)
    orders = {"original order": np.arange(size), "after rearrangement": arranged.order}
    look: dict[str, Any] = {"cmap": colormaps["cividis"].resampled(SHADES), "vmin": -1, "vmax": 1}
    look["interpolation"] = "nearest"
    for row, extent in zip(panels, extents, strict=True):
        for axes, (title, order) in zip(row, orders.items(), strict=True):
            some = order[evenly(extent, DRAWN)]
            matrix = similarities(results.vectors, some, some)
            image = axes.imshow(matrix, extent=(0, extent, extent, 0), **look)
            axes.tick_params(colors=INK, labelsize=7.5, length=2, color=FAINT)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.spines[:].set_visible(False)
            part = "" if extent == size else f"first {extent:,}, "
            axes.set_title(f"{part}{title}", fontsize=8.8, color=INK, loc="left", pad=4)
        within = arranged.boundaries[arranged.boundaries <= extent]
        if 2 < len(within) <= LARGEST_OUTLINED + 1:
            for first, end in pairwise(within):
                side = end - first
                row[1].add_patch(Rectangle((first, first), side, side, fill=False, edgecolor="white", linewidth=0.6))
    bar = add_bar(figure, image, panels, MaxNLocator(4), shrink=0.6, aspect=28, pad=0.02)
    bar.set_label("cosine similarity of two codes", fontsize=8, color=INK)
    return figure


def codebook_map(results: CodebookResults) -> Figure:
    """Draw the codes on their two principal axes: by index, by index after rearrangement, and by cluster."""
    plane, shares = principal_plane(results.codebook.points)
    size, labels = len(plane), results.labels
    figure = Drawing(figsize=(WIDTH, 4.7), dpi=DPI, layout="constrained", facecolor="white")
    before, after, clusters, aside = figure.subplots(2, 2).flat
    # In an SVG, thousands of dots are megabytes: there they are a picture.
    dot = {"s": float(np.clip(4000 / size, 0.6, 9)), "linewidths": 0, "rasterized": size > LARGEST_DOTTED}
    for axes, index, title in (
        (before, np.arange(size), "by original index"),
        (after, results.permutation, "by index after rearrangement"),
    ):
        points = axes.scatter(*plane.T, c=index, cmap="cividis", vmin=0, vmax=size - 1, **dot)
        axes.set_title(title, fontsize=8.8, color=INK, loc="left", pad=4)
    own = evenly(results.n_clusters, HIGHLIGHTED)
    clusters.scatter(*plane[~np.isin(labels, own)].T, color="#cfcfcf", **dot)
    handles = []
    for cluster, color, marker in zip(own, palette(), MARKERS, strict=False):
        look = {**dot, "s": dot["s"] * 2.2, "linewidths": 0.3, "edgecolors": "white"}
        clusters.scatter(*plane[labels == cluster].T, color=color, marker=marker, **look)
        label = f"cluster {cluster}"
        handles.append(Line2D([], [], color=color, marker=marker, markersize=5, linestyle="", label=label))
    if others := results.n_clusters - len(own):
        label = f"{others:,} other{'s' * (others > 1)}"
        handles.append(Line2D([], [], color="#cfcfcf", marker="o", markersize=4, linestyle="", label=label))
    clusters.set_title("by cluster", fontsize=8.8, color=INK, loc="left", pad=4)
    for axes in (before, after, clusters):
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#cfcfcf")
    aside.set_axis_off()
    aside.legend(handles=handles, loc="upper left", frameon=False, fontsize=8, handletextpad=0.3, borderaxespad=0)
    aside.annotate(f"this plane: {shares.sum():.0%}\nof the variance", (0, 0), color=FAINT, fontsize=8)
    bar = add_bar(figure, points, [before, after], MaxNLocator(4, integer=True), shrink=0.6, aspect=28, pad=0.02)
    bar.set_label("index", fontsize=8, color=INK, labelpad=1)
    return figure


def similarity_within_between(results: CodebookResults) -> Figure:
    """Draw how similar two codes are: of one cluster, of different clusters, and of one random cluster."""
    found = pair_similarities(results)
    if not len(found["within"]):
        raise InputError(f"no cluster of study {results.study!r} holds two codes: nothing is within one")
    colors = palette()
    looks: dict[str, dict[str, Any]] = {
        "within": {"color": colors[0]},
        "between": {"color": INK, "linestyle": (0, (4, 2))},
        "within random": {"color": colors[3], "linestyle": (0, (1, 1.2))},
    }
    named = {"within": "one cluster", "between": "different clusters", "within random": "one random cluster"}
    edges = np.linspace(-1, 1, 51)
    figure, axes = chart(WIDTH, 3.5)
    for name, look in looks.items():
        if len(found[name]):
            density, _ = np.histogram(found[name], edges, density=True)
            label = f"two codes of {named[name]}: {number(found[name].mean(), 2)} on average"
            axes.stairs(density, edges, linewidth=1.8, label=label, **look)
    density, _ = np.histogram(found["within"], edges, density=True)
    axes.stairs(density, edges, fill=True, alpha=0.2, color=colors[0])
    axes.set_xlim(min(pairs.min() for pairs in found.values() if len(pairs)) - 0.05, 1.02)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("cosine similarity of two codes", color=INK, fontsize=9)
    add_titles(axes, "How similar two codes are", "how often, among all such pairs; every area is 1")
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8.5, handlelength=2.2)
    return figure


def neighbours(results: CodebookResults) -> Figure:
    """Draw held-out images in which one code was replaced: one code a row, one way of replacing it a column."""
    shown = results.neighbours
    if shown is None:
        raise InputError(f"study {results.study!r} has no pictures: its tokenizer or its images' codes were not there")
    size = shown.pictures.shape[2]
    gap = max(1, size // 14)
    mosaic = mosaic_of(shown.pictures, gap)
    used = [f"{codes[0]}\n{results.use[codes[0]]:,}" for codes in shown.codes]
    margin, edge, head = 30 + 14 * max(len(line) for text in ("code", *used) for line in text.split("\n")), 12, 74
    figure, axes = framed(mosaic, column_zoom(size + gap, mosaic), margin, head, edge, edge)
    add_columns(axes, shown.columns, size, gap)
    width, height = figure.get_size_inches() * DPI
    corner = ((margin - 14) / width, 1 - 10 / height)
    figure.text(*corner, "code,\nuses", fontsize=7.8, color=FAINT, ha="right", va="top")
    axes.set_yticks(middles(len(used), size, gap), used)
    patch = size / shown.places.shape[1]
    for row, places in enumerate(shown.places):
        first = np.array([0, row * (size + gap)]) - 0.5
        axes.add_collection(LineCollection(_outline(places) * patch + first, colors=OUTLINE, linewidths=0.9))
    return figure


def _outline(places: np.ndarray) -> np.ndarray:
    """Return the border around the places that are True, as lines (k, 2, 2) from (x, y) to (x, y)."""
    padded = np.pad(places, 1)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, ::-1]
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, ::-1]
    across, down = np.array([1, 0]), np.array([0, 1])
    lines = [np.stack([level, level + across], 1), np.stack([upright, upright + down], 1)]
    return np.concatenate(lines).astype(float)


def usage(results: CodebookResults) -> Figure:
    """Draw how often each code occurs among the tokens of the training images, from the most to the least used one."""
    use = np.sort(results.use)[::-1]
    figure, axes = chart(WIDTH, 2.9)
    living = use[use > 0]
    if not len(living):
        raise InputError(f"no code of study {results.study!r} is used: there is nothing to draw")
    share = living / living.sum()
    perplexity = np.exp(-np.sum(share * np.log(share)))
    axes.stairs(share, np.arange(len(living) + 1), color=palette()[0], linewidth=1.6, baseline=None)
    axes.axhline(1 / len(use), color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate("if all were equal", (1, 1 / len(use)), (-4, 4), ("axes fraction", "data"), "offset points")
    axes.texts[-1].set(ha="right", fontsize=8, color=FAINT)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if share[0] < 100 * share[-1] else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.set_xlim(0, len(use))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("codes, from the most to the least used one", color=INK, fontsize=9)
    dead = len(use) - len(living)
    told = "every code is used" if not dead else f"{dead:,} of {len(use):,} codes are never used"
    add_titles(axes, "Share of all training tokens", f"{told}; perplexity {perplexity:,.0f} of {len(use):,}")
    return figure


def contrast(results: CodebookResults, other: np.ndarray | None = None, name: str = "") -> Figure:
    """Draw how similar the r-th nearest vector is: of this codebook and, beside it, of another table of embeddings.

    Tables differ in length and dimension, so r is told as a share of the table, and each table has its own control: the
    same numbers, shuffled within each dimension. Only what lies above the control is structure.

    Parameters
    ----------
    other : float (M, d'), such as the token embeddings of a language model.
    name : what to call it.
    """
    tables = {"this codebook": results.codebook.points}
    if other is not None:
        tables[plain(name) or "the other table"] = other
    blue, orange, *_ = palette()
    figure, axes = chart(WIDTH, 3.3)
    looks = ((blue, (0, (4, 2))), (orange, (0, (1, 1.2))))
    for (label, table), (color, dashes) in zip(tables.items(), looks, strict=False):
        length, dimensions = table.shape
        told = f"\u200b{label}: {length:,} x {dimensions:,}"
        found, by_chance = similarity_by_rank(table), similarity_by_rank(shuffled(table))
        axes.plot(found.index, found, color=color, linewidth=2.2, label=told)
        axes.plot(by_chance.index, by_chance, color=INK, linewidth=1.1, linestyle=dashes, label="the same, shuffled")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.set_xlabel("rank r, as a share of the other codes", color=INK, fontsize=9)
    axes.margins(x=0.02)
    add_titles(axes, "Similarity of the r-th nearest code", "mean over codes; shuffled: each dimension by itself")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.2, handlelength=2.2)
    return figure


def conclusion(results: CodebookResults) -> str:
    """Say in a few sentences how similar the codes are, by rule, and what that does not show."""
    size, dimensions = results.vectors.shape
    means = {name: number(found.mean(), 2) for name, found in pair_similarities(results).items() if len(found)}
    said = [f"On {results.data}: {size:,} codes of dimension {dimensions} in {plural(results.n_clusters, 'cluster')}."]
    if "within" in means:
        between = f"two of different clusters {means['between']}, " if "between" in means else ""
        said.append(
            f"Two codes of one cluster have a mean cosine similarity of {means['within']}, {between}two of one random "
            f"cluster {means['within random']}."
        )
    orders = (Rearrangement.identity(size), results.arranged)
    before, after = (neighbour_agreement(results.codebook.points, order, [NEAREST]) for order in orders)
    if len(before):
        said.append(
            f"Of the {NEAREST} codes nearest to a code by index, {before['agreement'][0]:.1%} are among the {NEAREST} "
            f"nearest in space in the original order, {after['agreement'][0]:.1%} after rearrangement, and "
            f"{before['chance'][0]:.1%} by chance."
        )
    said.append("A cluster-oriented loss builds on near codes being alike; that it helps training is not shown here.")
    return " ".join(said)


def illustrations(results: CodebookResults) -> dict[str, list[Illustration]]:
    """Return the figures of each section of the page; a section without any has an empty list."""
    return {
        "order": [_similarity(results), _map(results)],
        "clusters": [*_pairs(results), *_use(results)],
        "near": [*_replaced(results), _ranks(results)],
    }


def _similarity(results: CodebookResults) -> Illustration:
    below = "; below, the first indices alone" if results.n_clusters > CLOSE_UP else ""
    caption = (
        f"Cosine similarity of every two codes{_of_all(len(results.use), DRAWN)}: on the left in the original "
        f"order, on the right after rearrangement{below}."
    )
    if results.n_clusters > 1:
        caption += (
            " Outlined squares on the diagonal are clusters: the brighter, the more alike their codes. Bright fields "
            "beside the diagonal are clusters that are like each other: the codes are gathered, but the clusters "
            "themselves stand in no order."
        )
    alt = "Cosine similarity of every two codes as matrices, before and after rearrangement."
    return Illustration("similarity", partial(similarity_matrix, results), alt, caption)


def _map(results: CodebookResults) -> Illustration:
    some = "some clusters, evenly spaced over their numbers" if results.n_clusters > HIGHLIGHTED else "the clusters"
    caption = (
        "Each dot is a code, on the codebook's two principal axes. Above, dark codes have the first indices and "
        "bright ones the last: where dots that are close together share a shade, near indices mean similar codes. "
        f"Below, {some}. Clusters that overlap here may lie apart on the axes not shown."
    )
    alt = "The codes as dots on two axes, coloured by index, by index after rearrangement, and by cluster."
    return Illustration("map", partial(codebook_map, results), alt, caption)


def _pairs(results: CodebookResults) -> list[Illustration]:
    sizes_of, size = results.sizes, len(results.use)
    if sizes_of.max() == 1:
        return []
    told = f"{sizes_of.min()} to {sizes_of.max()}" if np.ptp(sizes_of) else f"{sizes_of[0]}"
    caption = (
        f"How similar two codes are{_of_all(size, PAIRS // size)}: of one cluster (of {told} codes), of different "
        "ones, and of one cluster drawn at random, which is what any grouping reaches. The further the filled area "
        "lies to the right of the dotted line, the more the clusters gather similar codes."
    )
    alt = "Histograms of the similarity of two codes: of one cluster, of different ones, of one random cluster."
    return [Illustration("pairs", partial(similarity_within_between, results), alt, caption)]


def _ranks(results: CodebookResults) -> Illustration:
    caption = (
        "How similar a code is to its r-th most similar one, mean over the codes; dashed, in a table of the same "
        "numbers shuffled within each dimension. In few dimensions even a shuffled table has near codes: only what "
        "lies between the two lines is owed to how the codes lie to each other."
    )
    alt = "Mean similarity of a code to its r-th most similar one, falling with r, beside that of a shuffled table."
    return Illustration("ranks", partial(contrast, results), alt, caption)


def _replaced(results: CodebookResults) -> list[Illustration]:
    if results.neighbours is None:
        return []
    caption = (
        "In each row one code, where it is outlined in a held-out image, is replaced: by its r-th nearest code "
        "(rank r), by a random other code of its cluster, and by any other code. The rows are not chosen by eye: "
        "codes evenly spaced from the most to the least used one, each in the image that has it most often."
    )
    alt = f"Held-out images with the tokens of one code replaced: {', '.join(results.neighbours.columns)}."
    return [Illustration("neighbours", partial(neighbours, results), alt, caption)]


def _use(results: CodebookResults) -> list[Illustration]:
    if not results.use.any():
        return []
    caption = (
        "How often each code occurs among the tokens of all training images. The perplexity is the number of "
        "equally frequent codes that would be as hard to guess."
    )
    alt = "Each code's share of all training tokens, from the most to the least used code, on a logarithmic scale."
    return [Illustration("use", partial(usage, results), alt, caption)]


def _of_all(size: int, shown: int) -> str:
    return f" ({shown:,} of {size:,}, evenly spaced)" if shown < size else ""


def write_codebook_page(results: CodebookResults, folder: Path, made_from: str = "") -> Path:
    """Write `folder/codebook/` with its pages, figures and strategies.csv; return the path of the HTML page.

    How, and what becomes of a page that is already there, see `write_pages`.
    """
    context = {
        "results": results,
        "question": QUESTION,
        "conclusion": conclusion(results),
        "strategies": _strategy_rows(results),
    }
    arrays = [results.vectors, results.arranged.permutation, results.arranged.boundaries, results.use]
    shown = vars(results.neighbours) if results.neighbours else {}
    seen = digest(*arrays, results.metric, *(list(v) if isinstance(v, tuple) else v for v in shown.values()))
    files = {"strategies.csv": results.strategies.to_csv(index=False, lineterminator="\n")}
    return write_pages(folder / CODEBOOK, "codebook", context, illustrations(results), seen, files, made_from)


def _strategy_rows(results: CodebookResults) -> list[dict[str, str]]:
    """Return the cells of the table of strategies."""
    return [
        {
            "strategy": str(row["strategy"]),
            "sizes": str(row["smallest"])
            if row["smallest"] == row["largest"]
            else f"{row['smallest']} to {row['largest']}",
            "within": number(row["within_similarity"], 3),
            "between": number(row["between_similarity"], 3),
            "inertia": number(row["inertia"], 1),
            "gap": f"{number(100 * row['gap'], 1)}%",
            "neighbours": f"{number(100 * row['neighbours'], 1)}%",
            "path": f"{number(100 * row['path'], 0)}%",
        }
        for row in results.strategies.to_dict("records")
    ]
