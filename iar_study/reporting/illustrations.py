"""The figures of a report: which are drawn of a study, what their captions say, and how they are saved."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from iar_study.errors import enumerated
from iar_study.evaluation.metrics import LIKENESS, Metric, metric_named
from iar_study.evaluation.near_codes import paper_rank
from iar_study.evidence.results import Results
from iar_study.reporting import figures
from iar_study.reporting import near_codes_figures as near_codes
from iar_study.reporting.tables import comparison, difference_text, key_of
from iar_study.running.needs import plural

OVER_FACTOR = ("fd", "val/token_nll", "class_agreement")
DIFFERENCES = {
    "training": ("fd", "val/token_nll", "class_agreement", "val/cluster_accuracy"),
    "sampling": ("fd", "recall", "class_agreement"),
    "near-codes": ("same_cluster/feature_distance", "same_cluster/class_agreement"),
}
CURVES = (
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

SALT = "iar_study"
"""Makes the ids inside of an SVG the same each time."""


@dataclass(frozen=True)
class Illustration:
    """A figure of a report, not drawn yet.

    name : of its files, without an ending. alt : what it shows, for those who cannot see it. caption : what it shows
    and what follows from it, enough for a reader who reads nothing else.
    """

    name: str
    draw: Callable[[], Figure]
    alt: str
    caption: str


def illustrations(results: Results) -> dict[str, list[Illustration]]:
    """Return the figures of each section of a study's report; a section without any has an empty list."""
    return {
        "factor": _over_factor(results),
        "differences": _differences(results),
        "curves": _curves(results),
        "positions": _positions(results),
        "near": _near(results),
        "replaced": _replaced(results),
        "samples": _samples(results),
        "stages": _stages(results),
    }


def findings_in_words(table: pd.DataFrame, about: Metric) -> str:
    """Say which arms of a comparison are better, worse, equivalent, equal or undecided, with the numbers."""
    if (table["finding"] == "no direction").all():
        return "neither better nor worse, for it has no direction"
    if (table["finding"] == "undecided").all():
        return "undecided for every arm"
    parts = []
    for finding in ("better", "worse", "equivalent", "equal", "undecided"):
        rows = table[table["finding"] == finding]
        # An interval each is what makes the sentence checkable, but a sweep of ten arms would drown it.
        told = [
            arm
            if finding in ("equal", "undecided") or len(rows) > 3
            else f"{arm} ({' '.join(difference_text(row, about))})"
            for arm, row in rows.iterrows()
        ]
        if finding == "undecided" and len(rows) > 3:
            parts.append(f"undecided for the other {len(rows)} arms")
        elif told:
            parts.append(f"{finding} for {enumerated(told)}")
    return ", ".join(parts)


def _finding(results: Results, metric: str) -> str:
    """Say in a sentence what the comparison in a metric found."""
    table = comparison(results, metric).loc[results.compared]
    found = findings_in_words(table, metric_named(metric))
    said = results.compared_in_words
    return f"{said[0].upper()}{said[1:]}: {found}." if found else ""


def _better(metric: Metric) -> str:
    return f"{metric.direction.capitalize()}." if metric.better else ""


def _over_factor(results: Results) -> list[Illustration]:
    found = []
    placed = results.final[results.final["arm"].isin(list(results.places))].dropna(subset="value")
    for name in OVER_FACTOR:
        metric = key_of(results, name)
        if metric is None or metric not in set(placed["metric"]):  # each trial of the series may have diverged
            continue
        about = metric_named(metric)
        said = [f"{about.label} over {results.factor}, whose values are spaced evenly.", _better(about)]
        aside = [arm for arm in results.compared if arm not in results.places]
        said += [f"Without {enumerated(aside)}, which no number of it describes."] if aside else []
        said += [_finding(results, metric)] if results.compared else []
        caption = " ".join(filter(None, said))
        drawing = partial(figures.over_factor, results, metric)
        found.append(Illustration(_name("factor", metric), drawing, caption, caption))
    return found


def _differences(results: Results) -> list[Illustration]:
    found = []
    for name in DIFFERENCES[results.kind]:
        metric = key_of(results, name)
        if metric and results.compared:
            about, table = metric_named(metric), comparison(results, metric)
            said = "; ".join(
                f"{arm} {' '.join(difference_text(row, about))} {row['finding']}"
                for arm, row in table.loc[results.compared].iterrows()
            )
            alt = f"{about.label}, paired differences from {results.baseline_in_words} with 95% intervals: {said}."
            caption = (
                f"{about.label}. {_finding(results, metric)} An interval around 0 does not show that there is "
                "no difference. Each arm is tested by itself."
            )
            drawing = partial(figures.comparison, results, metric)
            found.append(Illustration(_name("difference", metric), drawing, alt, caption))
    return found


def _curves(results: Results) -> list[Illustration]:
    found = []
    pairs = [(arm, than) for arm, than in results.baselines.items() if arm != than]
    for metric, differences in CURVES:
        drawn = set(results.curves.loc[results.curves["metric"] == metric, "arm"])
        if not drawn or (differences and not any({*pair} <= drawn for pair in pairs)):
            continue
        about = metric_named(metric)
        kind = f"difference from {results.baseline_in_words}, seed by seed" if differences else "every arm"
        alt = f"{about.label} over training steps, {kind}. The numbers are in the trials' journals."
        on = "held-out" if metric.startswith("val/") else "training"
        caption = f"{about.label} on {on} images during training, {kind}. {_better(about)}"
        caption += " Where a band holds 0, the arm cannot be told from its baseline." if differences else ""
        name = _name("curve-difference" if differences else "curve", metric)
        drawing = partial(figures.curves, results, metric, differences=differences)
        found.append(Illustration(name, drawing, alt, caption))
    quality = key_of(results, QUALITY)
    if quality and results.curves.loc[results.curves["metric"] == quality, "step"].nunique() > 1:
        alt = f"{metric_named(quality).label} of samples over training steps, every arm."
        caption = (
            f"How soon each arm reaches a quality. Dots: samples drawn on the way; where an arm's line falls below the "
            f"dotted one, it is as good as {results.baseline} at the end of its training."
        )
        drawing = partial(figures.quality_over_training, results, quality)
        found.append(Illustration(_name("quality", quality), drawing, alt, caption))
    return found


def _positions(results: Results) -> list[Illustration]:
    if BY_POSITION.partition("/")[2] not in results.positions.get(results.baseline, {}):
        return []
    about, than = metric_named(BY_POSITION), results.baseline_in_words
    alt = f"{about.label} by position in the image, and each arm's difference from {than}."
    caption = f"{about.label} by position of the token in the image, mean over seeds"
    caption += f"; the other pictures show arm minus {than}, all on one scale." if results.compared else "."
    return [Illustration("positions", partial(figures.by_position, results, BY_POSITION), alt, caption)]


def _near(results: Results) -> list[Illustration]:
    found = []
    for name in LIKENESS if results.kind == "near-codes" else ():
        about, rank = metric_named(f"near/{name}"), paper_rank(results.n_codes)
        alt = f"{about.label}, over the rank r on a logarithmic scale, beside both controls. See results.csv."
        caption = (
            f"{LIKENESS[name].label} between the pictures of true and of replaced tokens, over the rank of the code "
            f"that replaces each. {_better(about)} The upright line is the rank up to which the paper finds pictures "
            f"almost unchanged, to scale: {rank} of {results.n_codes:,}."
        )
        drawing = partial(near_codes.distance_curves, results, name, rank)
        found.append(Illustration(f"near-{name}", drawing, alt, caption))
    return found


def _replaced(results: Results) -> list[Illustration]:
    if not results.replaced:
        return []
    alt = f"Held-out images with every token replaced: {', '.join(results.replaced)}."
    caption = "The first held-out images, not chosen. A row is one image; from left to right the codes are further off."
    return [Illustration("replaced", partial(near_codes.replaced_pictures, results), alt, caption)]


def _samples(results: Results) -> list[Illustration]:
    shown = [arm for arm in results.arms if arm in results.samples]
    if not shown:
        return []
    caption = (
        f"Seed {results.samples_seed}. Rows are classes; the same place has the same noise in every arm. "
        "The first samples drawn, not chosen."
    )
    absent = [arm for arm in results.arms if arm not in results.samples]
    caption += f" No samples of {enumerated(absent)}." if absent else ""
    alt = f"Samples of {enumerated(shown)}, one class a row."
    return [Illustration("samples", partial(figures.sample_grids, results), alt, caption)]


def _stages(results: Results) -> list[Illustration]:
    if not results.reconstructions:
        return []
    alt = f"Held-out images in {plural(len(results.reconstructions), 'row')}: {', '.join(results.reconstructions)}."
    caption = " ".join(
        filter(None, [f"By the tokenizer of {results.n_codes:,} codes.", _same_when_rearranged(results)])
    )
    return [Illustration("reconstructions", partial(figures.reconstructions, results), alt, caption)]


def _same_when_rearranged(results: Results) -> str:
    """Say whether the rearranged codebook decodes to the same pictures, as it must."""
    before, after = (results.reconstructions.get(key) for key in ("decoded", "decoded after rearrangement"))
    if before is None or after is None or before.shape != after.shape:
        return ""
    if np.array_equal(before, after):
        return "Before and after the codebook was rearranged, every pixel is the same, as it must be."
    largest = int(np.abs(before.astype(int) - after).max())
    return f"After the codebook was rearranged, pixels differ by up to {largest} of 255; they should not differ at all."


def _name(kind: str, metric: str) -> str:
    return f"{kind}-{re.sub('[/@]', '-', metric)}"


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as folder/name.png and, if it is a chart and no picture, as .svg too: always the same bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    picture = Image.fromarray(pixels)
    # A palette is all that a chart needs, at a third of the size; samples keep every shade that they have.
    if is_chart := not any(axes.images for axes in figure.axes):
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    elif (pixels == pixels[..., :1]).all():
        picture = picture.convert("L")
    picture.save(folder / f"{name}.png", optimize=True)
    if is_chart:
        figure.set_layout_engine("none")  # the places found for the PNG; to find them again takes as long as to draw
        with mpl.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "path"}):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        _round(folder / f"{name}.svg")


def _round(svg: Path) -> None:
    """Round the numbers of a drawing, coordinates to a hundredth of a point: processors differ in the last digits."""

    def rounded(number: re.Match[str]) -> str:
        # Small ones may be scales, of which a hundredth is much.
        digits = 2 if abs(float(number[0])) >= 10 else 4
        return f"{float(number[0]):.{digits}f}".rstrip("0").rstrip(".")

    svg.write_text(re.sub(r"-?\d+\.\d{3,}", rounded, svg.read_text(encoding="utf-8")), encoding="utf-8")


def sizes(folder: Path, name: str) -> dict[str, int | str | None]:
    """Return what a page needs of saved figures: their files, and width and height in pixels of the page."""
    with Image.open(folder / f"{name}.png") as picture:
        # Drawn at twice the density of a page, so that they are sharp on a phone and in print.
        width, height = picture.width // 2, picture.height // 2
    svg = f"{name}.svg" if (folder / f"{name}.svg").exists() else None
    return {"png": f"{name}.png", "svg": svg, "width": width, "height": height}
