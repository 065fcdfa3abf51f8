import re
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from iar_study.errors import InputError
from iar_study.evidence.claims import Claim, Past, judge
from iar_study.evidence.rules import Above, Better
from iar_study.reporting import near_codes_figures as near_codes
from iar_study.reporting.figures import DPI, FAINT, INK, arm_colors
from iar_study.reporting.near_codes_figures import distance_curves, replaced_pictures
from iar_study.reporting.report import conclusion, write_report
from tests.reporting.pages import Page, rendered

ARMS = {"random": "random clusters", "blocks": "by index", "balanced": "balanced k-means"}
RANKS = (1, 2, 4, 8, 16, 32, 63)
LEVELS = {"random": 8.0, "blocks": 8.2, "balanced": 19.0}
COLUMNS = ("true tokens", "rank 1", "rank 63", "same cluster", "random code")


def psnr(rank):
    return 24 - 3 * np.log2(rank)


def likeness(level, seed, rise):
    """Turn a level of PSNR into all metrics of a seed; over three seeds the noise is 0, the rise is one of a seed."""
    noise = np.sin(2 * np.pi * seed / 3 + 7 * level)
    value = level + rise * seed + 0.1 * noise
    return {
        "psnr": value,
        "ssim": value / 30 + 0.05 * noise,
        "feature_distance": 1 - value / 30 + 0.05 * noise,
        "class_agreement": value / 40 + 0.05 * noise,
    }


@pytest.fixture
def made(build):
    """Make results of a study of near codes, and pictures of uniform grey, as bright as their place."""

    def make(seeds=(0, 1, 2), size=28, channels=1):
        results = build(arms=ARMS, seeds=seeds, study="near-codes")
        curves, final = [], []
        for arm in ARMS:
            for seed in seeds:
                trial = (arm, seed, sha256(f"{arm} {seed}".encode()).hexdigest())
                near = {rank: likeness(psnr(rank), seed, 0.1) for rank in RANKS}
                curves += [(*trial, rank, f"near/{name}", v) for rank in RANKS for name, v in near[rank].items()]
                groups = {
                    "near": near[1],
                    "same_cluster": likeness(LEVELS[arm], seed, 1),
                    "random_code": likeness(7.5, seed, 1),
                    "tokenizer": likeness(22.5, seed, 1),
                }
                values = {f"{kind}/{name}": v for kind, found in groups.items() for name, v in found.items()}
                final += [(*trial, f"run {arm}", *item) for item in values.items()]
        grey = np.arange(8 * len(COLUMNS), dtype=np.uint8).reshape(len(COLUMNS), 8, 1, 1, 1)
        scale = {name: text for name, text in results.scale.items() if name not in ("model", "training")}
        return replace(
            results,
            kind="near-codes",
            baseline="random",
            n_codes=4096,
            curves=pd.DataFrame(curves, columns=results.curves.columns),
            final=pd.DataFrame(final, columns=results.final.columns),
            scale=scale | {"evaluation": "every token of 2,000 held-out images replaced; no GPT"},
            samples={},
            positions={},
            exact={},
            replaced=dict(zip(COLUMNS, np.tile(grey, (1, 1, size, size, channels)), strict=True)),
        )

    return make


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def note(figure):
    return figure.axes[0].texts[1].get_text()


def test_the_curve_is_the_mean_over_seeds_with_a_band(made):
    figure = distance_curves(made(), "psnr")
    axes = figure.axes[0]
    curve, *levels = axes.lines
    assert curve.get_xdata().tolist() == list(RANKS)
    np.testing.assert_allclose(curve.get_ydata(), [psnr(rank) + 0.1 for rank in RANKS])
    assert len(axes.collections) == 1
    assert len(levels) == 5
    assert axes.get_xscale() == "log"
    assert note(figure) == "thick: mean over seeds; band: 95% interval"
    assert axes.texts[0].get_text() == "PSNR (dB) by code distance"


def test_controls_are_level_lines_in_the_colours_of_their_arms(made):
    results = made()
    figure = distance_curves(results, "psnr")
    labels = ["r-th nearest code", "random code", *(f"same cluster: {arm}" for arm in ARMS)]
    labels.append("the tokenizer's own error")
    assert legend(figure) == labels
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == labels
    heights = [line.get_ydata()[0] for line in lines[1:]]
    np.testing.assert_allclose(heights, [8.5, *(level + 1 for level in LEVELS.values()), 23.5])
    colors = [INK, FAINT, *arm_colors(results).values()]
    assert [to_hex(line.get_color()) for line in lines[:-1]] == [to_hex(color) for color in colors]
    # No two lines look the same, also where they share a colour.
    assert len({(to_hex(line.get_color()), str(line._unscaled_dash_pattern)) for line in lines}) == 6


@pytest.mark.parametrize(
    ("seeds", "thin", "said"),
    [((0, 1), 2, "thick: mean over seeds; thin: single seeds"), ((4,), 0, "one seed: no interval")],
)
def test_few_seeds_have_no_band(made, seeds, thin, said):
    figure = distance_curves(made(seeds), "psnr")
    axes = figure.axes[0]
    assert not axes.collections
    assert sum(line.get_linewidth() == 0.7 for line in axes.lines) == thin
    assert note(figure) == said


def test_the_papers_rank_is_marked_where_it_is_given(made):
    figure = distance_curves(made(), "psnr", 4)
    assert figure.axes[0].lines[-1].get_xdata() == [4, 4]
    assert legend(figure)[-1] == "paper: 12 of 16,384, to scale"


def test_an_arm_without_its_trials_costs_its_own_line_alone(made):
    results = made()
    gone = replace(
        results,
        curves=results.curves[results.curves["arm"] != "random"],
        final=results.final[results.final["arm"] != "random"],
    )
    figure = distance_curves(gone, "psnr")
    whole = distance_curves(results, "psnr")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), whole.axes[0].lines[0].get_ydata())
    assert legend(figure) == [label for label in legend(whole) if label != "same cluster: random"]


def test_controls_that_were_not_measured_are_left_out(made):
    results = made()
    assert legend(distance_curves(replace(results, final=results.final[:0]), "psnr")) == ["r-th nearest code"]


def test_odd_names_are_drawn_as_they_are(made):
    results = made()
    names = {"random": "random", "blocks": "$x_1$ {", "balanced": "_a very long name of an arm, longer than any"}
    renamed = replace(
        results,
        arms=dict.fromkeys(names.values(), ""),
        curves=results.curves.replace({"arm": names}),
        final=results.final.replace({"arm": names}),
    )
    figure = distance_curves(renamed, "psnr", 1)
    figure.draw_without_rendering()
    assert r"same cluster: \$x_1\$ {" in legend(figure)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_nothing_is_drawn_outside_the_figure(made):
    figure = distance_curves(made(), "psnr", 1)
    figure.draw_without_rendering()
    for text in (*figure.axes[0].texts, *figure.axes[0].get_yticklabels(), figure.axes[0].xaxis.label):
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (64, 3)])
def test_replaced_pictures_place_every_pixel_in_labelled_columns(made, size, channels):
    results = made(size=size, channels=channels)
    figure = replaced_pictures(results)
    (axes,) = figure.axes
    picture = axes.images[0].get_array()
    step = size + max(1, size // 14)
    for column, pictures in enumerate(results.replaced.values()):
        for row in (0, 7):
            found = picture[row * step : row * step + size, column * step : column * step + size]
            np.testing.assert_array_equal(found, np.broadcast_to(pictures[row], (size, size, 3)))
    assert [label.get_text() for label in axes.get_xticklabels()] == [name.replace(" ", "\n") for name in COLUMNS]
    figure.draw_without_rendering()
    assert axes.get_window_extent().width / picture.shape[1] == pytest.approx(round(-(-90 // step)))


@pytest.mark.parametrize("size", [8, 28, 64, 256])
def test_names_of_columns_have_room(made, size):
    figure = replaced_pictures(made(size=size, channels=3))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert boxes[0].x0 >= 0
    assert boxes[-1].x1 <= figure.bbox.x1
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)
    assert (figure.get_size_inches() * DPI < 2700).all()


def test_nothing_to_draw_is_an_input_error(made):
    results = made()
    without = results.curves[results.curves["metric"] != "near/ssim"]
    with pytest.raises(InputError, match="has no curve of 'near/ssim'"):
        distance_curves(replace(results, curves=without), "ssim")
    with pytest.raises(InputError, match="did you mean 'psnr'"):
        distance_curves(results, "psrn")
    with pytest.raises(InputError, match="no pictures of replaced tokens"):
        replaced_pictures(replace(results, replaced={}))
    uneven = {"true tokens": np.zeros((8, 4, 4, 1), np.uint8), "rank 1": np.zeros((7, 4, 4, 1), np.uint8)}
    with pytest.raises(InputError, match="differ in shape"):
        replaced_pictures(replace(results, replaced=uneven))


def test_a_report_of_near_codes_tells_of_pictures_and_of_no_training(made, monkeypatch, tmp_path):
    results = made()
    marks = []

    def watched(results, name, paper_rank=None):
        marks.append((name, paper_rank))
        return distance_curves(results, name, paper_rank)

    monkeypatch.setattr(near_codes, "distance_curves", watched)
    past = Past("2026-11-27", after_data=True)
    claims = [
        Claim(
            "near",
            "Near codes look alike.",
            "ours",
            "observation",
            "near-codes",
            Above("near/psnr", 20.0),
            past,
            "No more.",
        ),
        Claim(
            "similar",
            "Codes do.",
            "ours",
            "observation",
            "near-codes",
            Better("balanced", "same_cluster/psnr"),
            past,
            "No more.",
        ),
        Claim("trained", "Images do.", "ours", "observation", "near-codes", Better("balanced", "fd"), past, "No more."),
    ]
    path = write_report(results, tmp_path, judge(claims, results))
    names = ("psnr", "ssim", "feature_distance", "class_agreement")
    # 12 of 16,384 are 3 of these 4,096 codes.
    assert marks == [(name, 3) for name in names]
    drawn = {f"near-{name}.png" for name in names} | {"replaced.png", "reconstructions.png"}
    drawn |= {f"difference-same_cluster-{name}.png" for name in ("feature_distance", "class_agreement")}
    assert {file.name for file in path.parent.glob("*.png")} == drawn

    said = conclusion(results)
    assert said.startswith("On fashion-mnist (28 x 28 pixels; no GPT; 3 seeds), compared with random seed by seed")
    for label in ("feature distance", "class kept"):
        assert re.search(rf"{label}, same cluster is better for balanced \([^)]*\), undecided for blocks;", said)
    for page in (Page(path.read_text()), Page(rendered(path.with_suffix(".md")))):
        assert said in page.words
        assert {"How far a code may be off", "What it looks like"} <= set(page.headings)
        told = {"During training", "How much training", "By position", "Samples", "Wrong token"}
        assert not [title for title in page.headings if title.startswith(tuple(told))]
        assert [row[1] for row in page.under("What it says of the claims")[0][1:]] == ["holds", "better", "not tested"]
        assert "fd was not measured" in page.words
        assert "this page makes 8 such comparisons" in page.words
        assert len(page.under("What these seeds can and cannot show")) == 2
        assert "every token replaced by a random other code of its cluster: mean distance" in page.words
    (rows,) = Page(path.read_text()).under("Every token replaced by another code of its cluster")
    labels = [f"{name}, same cluster" for name in ("PSNR", "SSIM", "feature distance", "class kept")]
    assert [head.rpartition(" is better")[0].rpartition(" ")[0] for head in rows[0][1:]] == labels
    assert [row[0].partition(" ")[0] for row in rows[1:]] == list(ARMS)
    assert rows[1][1].startswith("9.00 ± ")


def test_a_report_of_near_codes_with_a_trial_missing(made, tmp_path):
    results = made()
    gone = {name: getattr(results, name)[getattr(results, name)["arm"] != "random"] for name in ("curves", "final")}
    missing = pd.DataFrame({"arm": "random", "seed": [0, 1, 2], "status": "not finished", "step": np.nan})
    results = replace(results, **gone, missing=missing, replaced={}, reconstructions={})
    page = Page(write_report(results, tmp_path).read_text())
    assert "undecided for every arm" in conclusion(results)
    assert "of 9 trials 3 not finished" in page.words
    assert "How far a code may be off" in page.headings
    assert "What it looks like" not in page.headings
    assert "nan" not in page.words.lower().split()
