from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from iar_study.errors import InputError
from iar_study.reporting.figures import DPI, FAINT, INK, arm_colors
from iar_study.reporting.near_codes import distance_curves, replaced_pictures

ARMS = {"random": "random clusters", "blocks": "by index", "balanced": "balanced k-means"}
RANKS = (1, 2, 4, 8, 16, 32, 63)
LEVELS = {"random": 8.0, "blocks": 8.2, "balanced": 19.0}
COLUMNS = ("true tokens", "rank 1", "rank 63", "same cluster", "random code")


def psnr(rank, seed):
    return 24 - 3 * np.log2(rank) + 0.1 * seed


@pytest.fixture
def made(build):
    """Make results of a study of near codes: PSNR alone, and pictures of uniform grey, as bright as their place."""

    def make(seeds=(0, 1, 2), size=28, channels=1):
        results = build(arms=ARMS, seeds=seeds, study="near-codes")
        trials = [(arm, seed, f"{arm} {seed}") for arm in ARMS for seed in seeds]
        curves = [(*trial, rank, "near/psnr", psnr(rank, trial[1])) for trial in trials for rank in RANKS]
        final = [(*trial, "run", "same_cluster/psnr", LEVELS[trial[0]] + trial[1]) for trial in trials]
        final += [(*trial, "run", "random_code/psnr", 7.5 + trial[1]) for trial in trials]
        grey = np.arange(8 * len(COLUMNS), dtype=np.uint8).reshape(len(COLUMNS), 8, 1, 1, 1)
        return replace(
            results,
            curves=pd.DataFrame(curves, columns=results.curves.columns),
            final=pd.DataFrame(final, columns=results.final.columns),
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
    np.testing.assert_allclose(curve.get_ydata(), [psnr(rank, 1) for rank in RANKS])
    assert len(axes.collections) == 1
    assert len(levels) == 4
    assert axes.get_xscale() == "log"
    assert note(figure) == "thick: mean over seeds; band: 95% interval"
    assert axes.texts[0].get_text() == "PSNR (dB) by code distance"


def test_controls_are_level_lines_in_the_colours_of_their_arms(made):
    results = made()
    figure = distance_curves(results, "psnr")
    labels = ["r-th nearest code", "random code", *(f"same cluster: {arm}" for arm in ARMS)]
    assert legend(figure) == labels
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == labels
    heights = [line.get_ydata()[0] for line in lines[1:]]
    np.testing.assert_allclose(heights, [8.5, *(level + 1 for level in LEVELS.values())])
    colors = [INK, FAINT, *arm_colors(results).values()]
    assert [to_hex(line.get_color()) for line in lines] == [to_hex(color) for color in colors]


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
    figure.canvas.draw()
    assert r"same cluster: \$x_1\$ {" in legend(figure)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_nothing_is_drawn_outside_the_figure(made):
    figure = distance_curves(made(), "psnr", 1)
    figure.canvas.draw()
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
    figure.canvas.draw()
    assert axes.get_window_extent().width / picture.shape[1] == pytest.approx(round(-(-90 // step)))


@pytest.mark.parametrize("size", [8, 28, 64, 256])
def test_names_of_columns_have_room(made, size):
    figure = replaced_pictures(made(size=size, channels=3))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert boxes[0].x0 >= 0
    assert boxes[-1].x1 <= figure.bbox.x1
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)
    assert (figure.get_size_inches() * DPI < 2700).all()


def test_nothing_to_draw_is_an_input_error(made):
    results = made()
    with pytest.raises(InputError, match="has no curve of 'near/ssim'"):
        distance_curves(results, "ssim")
    with pytest.raises(InputError, match="did you mean 'psnr'"):
        distance_curves(results, "psrn")
    with pytest.raises(InputError, match="no pictures of replaced tokens"):
        replaced_pictures(replace(results, replaced={}))
    uneven = {"true tokens": np.zeros((8, 4, 4, 1), np.uint8), "rank 1": np.zeros((7, 4, 4, 1), np.uint8)}
    with pytest.raises(InputError, match="differ in shape"):
        replaced_pictures(replace(results, replaced=uneven))
