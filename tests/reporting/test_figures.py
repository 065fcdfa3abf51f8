import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from iar_study.errors import InputError
from iar_study.reporting import figures

FD, NLL = "fd/classifier@2k", "val/token_nll"


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels(), axes.title)]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_colors_belong_to_arms(results):
    colors = figures.arm_colors(results)
    assert list(colors) == list(results.arms)
    assert len({to_hex(color) for color in colors.values()}) == 5
    fewer = replace(results, arms={arm: results.arms[arm] for arm in ("baseline", "rearranged", "blocks")})
    assert figures.arm_colors(fewer) == {arm: colors[arm] for arm in fewer.arms}


def test_curves_of_two_seeds_show_the_seeds_and_no_band(build):
    results = build(seeds=(0, 1))
    figure = figures.curves(results, NLL)
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert len(axes.lines) == 5 * 3
    assert not axes.collections
    assert legend(figure) == list(results.arms)
    assert "thick: mean over seeds; thin: single seeds" in texts(figure)
    rows = results.curves[(results.curves["metric"] == NLL) & (results.curves["arm"] == "baseline")]
    mean = rows.groupby("step")["value"].mean()
    np.testing.assert_allclose(axes.lines[2].get_ydata(), mean)


def test_curves_of_three_seeds_have_a_band(results):
    figure = figures.curves(results, NLL)
    assert len(figure.axes[0].collections) == 5
    assert len(figure.axes[0].lines) == 5
    assert "thick: mean over seeds; band: 95% interval" in texts(figure)


def test_curves_of_one_seed_say_so(build):
    figure = figures.curves(build(seeds=(4,)), NLL)
    assert len(figure.axes[0].lines) == 5
    assert "one seed: no interval" in texts(figure)


def test_a_diverged_seed_ends_the_mean_and_the_band(results):
    curves = results.curves.copy()
    curves.loc[(curves["arm"] == "iar") & (curves["seed"] == 1) & (curves["step"] > 200), "value"] = np.nan
    figure = figures.curves(replace(results, curves=curves), NLL)
    axes = figure.axes[0]
    assert len(axes.collections) == 4
    assert axes.lines[-1].get_xdata().tolist() == [0, 100, 200]
    assert "thick: mean over seeds; band: 95% interval; thin: single seeds" in texts(figure)


def test_a_diverged_trial_keeps_its_curve_and_its_end_is_marked(results):
    curves, missing = results.curves, pd.DataFrame([("iar", 1, "diverged", 237)], columns=results.missing.columns)
    curves = curves[~((curves["arm"] == "iar") & (curves["seed"] == 1) & (curves["step"] > 200))]
    results = replace(results, curves=curves, missing=missing)
    for differences in (False, True):
        figure = figures.curves(results, NLL, differences=differences)
        (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
        assert cross.get_xdata().tolist() == [200]
        assert legend(figure)[-1] == "diverged"
        (mean,) = [line for line in figure.axes[0].lines if line.get_linewidth() == 1.9 and len(line.get_xdata()) == 3]
        assert to_hex(mean.get_color()) == to_hex(figures.arm_colors(results)["iar"])


@pytest.mark.parametrize("differences", [False, True])
def test_a_seed_lost_before_its_first_value_leaves_no_mean_of_the_others(build, differences):
    results = build(arms={"baseline": "", "iar": ""})
    curves, missing = results.curves, pd.DataFrame([("iar", 1, "diverged", 3)], columns=results.missing.columns)
    curves = curves[~((curves["arm"] == "iar") & (curves["seed"] == 1))]
    figure = figures.curves(replace(results, curves=curves, missing=missing), NLL, differences=differences)
    lines = [line for line in figure.axes[0].lines if to_hex(line.get_color()) != to_hex(figures.BASELINE_COLOR)]
    assert sorted(np.isfinite(line.get_ydata()).sum() for line in lines) == [0, 0, 6, 6]
    assert "diverged" not in legend(figure)  # there is no value to mark


def test_quality_over_training_is_held_against_the_baselines_end(results):
    figure = figures.quality_over_training(results, FD)
    axes = figure.axes[0]
    *curves, end = axes.lines
    final = results.final[(results.final["metric"] == FD) & (results.final["arm"] == "baseline")]["value"]
    np.testing.assert_allclose(end.get_ydata(), final.mean())
    assert {line.get_marker() for line in curves} == {"o"}
    assert curves[0].get_xdata().tolist() == [125, 250, 375, 500]
    assert axes.get_yscale() == "log"
    assert {"baseline at its end", "40", "50"} <= set(texts(figure))


def test_a_baseline_that_lost_a_seed_has_no_end_to_hold_against(results):
    final = results.final.copy()
    final.loc[(final["arm"] == "baseline") & (final["seed"] == 1), "value"] = np.nan
    assert "baseline at its end" not in texts(figures.quality_over_training(replace(results, final=final), FD))


def test_curves_of_differences_are_paired(results):
    figure = figures.curves(results, NLL, differences=True)
    assert legend(figure) == ["rearranged", "blocks", "random", "iar"]
    wide = results.curves[results.curves["metric"] == NLL].pivot(index="step", columns=["arm", "seed"], values="value")
    expected = (wide["iar"] - wide["baseline"]).mean(axis=1)
    np.testing.assert_allclose(figure.axes[0].lines[-2].get_ydata(), expected)


def test_comparison_shows_seeds_means_and_findings(results):
    figure = figures.comparison(results, FD)
    axes = figure.axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [3] * 4
    assert sum(line.get_marker() == "D" for line in axes.lines) == 4
    assert {"FD (classifier, 2k)", "better", "worse", "equivalent", "iar", "random"} <= set(texts(figure))
    assert "(\N{LEFTWARDS ARROW} better)" in axes.get_xlabel()
    assert "(better \N{RIGHTWARDS ARROW})" in figures.comparison(results, "recall/classifier@2k").axes[0].get_xlabel()


def test_comparison_of_the_same_numbers_says_equal(results):
    final = results.final.copy()
    of = {arm: (final["metric"] == FD) & (final["arm"] == arm) for arm in ("baseline", "blocks")}
    final.loc[of["blocks"], "value"] = final.loc[of["baseline"], "value"].to_numpy()
    beside = texts(figures.comparison(replace(results, final=final), FD))
    assert beside.count("equal") == 1


def test_comparison_of_one_seed_draws_no_interval(build):
    figure = figures.comparison(build(seeds=(0,)), NLL)
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert "dots: seeds; no interval from one seed" in texts(figure)


def test_comparison_without_a_trial_says_so(results):
    final = results.final[results.final["arm"] != "blocks"]
    assert "no pair of seeds" in texts(figures.comparison(replace(results, final=final), NLL))


@pytest.fixture
def sweep(build):
    """Two series over three widths, each arm with the baseline of its own."""
    arms = dict.fromkeys(("baseline", "iar", "baseline-half", "iar-half", "baseline-double", "iar-double"), "")
    places = {arm: (arm.partition("-")[0], {"": 64, "half": 32, "double": 128}[arm.partition("-")[2]]) for arm in arms}
    beside = {arm: arm.replace("iar", "baseline") for arm in arms if "-" in arm}
    return replace(build(arms=arms), beside=beside, factor="model.width", places=places)


def test_over_factor_draws_a_line_a_series_with_seeds_and_intervals(sweep):
    axes = figures.over_factor(sweep, FD).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32", "64", "128"]
    values = sweep.final[sweep.final["metric"] == FD].groupby("arm")["value"]
    lines = [line for line in axes.lines if line.get_marker() == "D"]
    for line, series in zip(lines, ("baseline", "iar"), strict=True):
        expected = [values.mean()[series + size] for size in ("-half", "", "-double")]
        np.testing.assert_allclose(line.get_ydata(), expected)
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert sorted(y for line in dots for y in line.get_ydata()) == pytest.approx(
        sorted(sweep.final.loc[sweep.final["metric"] == FD, "value"])
    )
    assert sum(line.get_marker() == "None" for line in axes.lines) == 6  # intervals
    assert to_hex(lines[0].get_color()) == figures.BASELINE_COLOR


def test_over_factor_shows_a_baseline_that_is_in_no_series_as_a_level(build):
    results = build(arms=dict.fromkeys(("baseline", "n=2", "n=8"), ""))
    results = replace(results, factor="clustering.n_clusters", places={"n=2": ("iar", 2), "n=8": ("iar", 8)})
    figure = figures.over_factor(results, FD)
    assert [name.strip("\u200b") for name in legend(figure)] == ["iar", "baseline"]
    level = figure.axes[0].lines[-1].get_ydata()
    final = results.final
    assert set(level) == {final.loc[(final["metric"] == FD) & (final["arm"] == "baseline"), "value"].mean()}


def test_over_factor_of_one_seed_draws_no_interval(sweep):
    one = replace(sweep, final=sweep.final[sweep.final["seed"] == 0])
    figure = figures.over_factor(one, FD)
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert any("one seed: no interval" in text for text in texts(figure))


def test_over_factor_without_a_factor_is_an_input_error(results):
    with pytest.raises(InputError, match="over a factor"):
        figures.over_factor(results, FD)


def test_comparisons_and_curves_are_with_the_baseline_of_ones_own(sweep):
    axes = figures.comparison(sweep, FD).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["iar", "iar-half", "iar-double"]
    values = sweep.final[sweep.final["metric"] == FD].pivot(index="seed", columns="arm", values="value")
    half = 100 * np.expm1(np.log(values["iar-half"] / values["baseline-half"]).mean())  # percent
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"][1] == pytest.approx(half)
    assert legend(figures.curves(sweep, NLL, differences=True)) == ["iar", "iar-half", "iar-double"]
    colors = figures.arm_colors(sweep)
    assert [to_hex(colors[arm]) for arm in ("baseline", "baseline-half", "baseline-double")] == list(
        figures.BASELINE_GREYS[:3]
    )


def test_nearest_images_stand_below_their_pictures():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    nearest = rng.integers(0, 256, (4, 2, 8, 8, 1), dtype=np.uint8)
    axes = figures.nearest_images(pictures, nearest, np.array([[1.2, 3.0]] * 4)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sample", "nearest", "2. nearest"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1"] * 4
    shown = np.asarray(axes.images[0].get_array())
    np.testing.assert_array_equal(shown[:8, 9:17, 0], pictures[1, :, :, 0])
    np.testing.assert_array_equal(shown[9:17, :8, 0], nearest[0, 0, :, :, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_grids_place_every_pixel(build, channels):
    results = build(channels=channels)
    figure = figures.sample_grids(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(results.arms)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(results.class_names)
    mosaic = figure.axes[1].images[0].get_array()
    first = results.samples["rearranged"][0, 0]
    np.testing.assert_array_equal(mosaic[:28, :28], np.broadcast_to(first, (28, 28, 3)))
    np.testing.assert_array_equal(
        mosaic[30:58, 60:88], np.broadcast_to(results.samples["rearranged"][1, 2], (28, 28, 3))
    )
    figure.draw_without_rendering()
    box = figure.axes[1].get_window_extent()
    assert box.width / mosaic.shape[1] == pytest.approx(round(box.width / mosaic.shape[1]))


def test_sample_grids_bound_the_size_of_large_pictures(results):
    samples = {arm: np.zeros((20, 9, 256, 256, 3), np.uint8) for arm in ("baseline", "iar")}
    figure = figures.sample_grids(replace(results, samples=samples))
    assert figure.axes[0].images[0].get_array().shape[0] < 11 * 280
    assert (figure.get_size_inches() * figures.DPI <= 2900).all()
    assert figure.axes[0].get_yticklabels()[9].get_text() == "Ankle boot"


def test_sample_grids_name_classes_without_a_name(results):
    figure = figures.sample_grids(replace(results, class_names=()))
    assert figure.axes[0].get_yticklabels()[3].get_text() == "class 3"


def test_reconstructions(results):
    figure = figures.reconstructions(results)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["originals", "decoded", "decoded after rearrangement"]
    picture = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(picture[30:58], picture[60:88])


def panels(figure):
    """Return title -> picture, in the order of the panels; their colour bars are axes too."""
    return {axes.get_title(loc="left"): axes.images[0] for axes in figure.axes if axes.images}


def test_by_position_shows_the_baseline_and_every_arms_difference_from_it(results):
    shown = panels(figures.by_position(results, NLL))
    means = {arm: of["token_nll"].mean(axis=0) for arm, of in results.positions.items()}
    others = ("rearranged", "blocks", "random", "iar")
    assert list(shown) == ["baseline", *(f"{arm}: difference" for arm in others)]
    np.testing.assert_allclose(shown["baseline"].get_array(), means["baseline"])
    for arm in others:
        np.testing.assert_allclose(shown[f"{arm}: difference"].get_array(), means[arm] - means["baseline"])


def test_by_position_differences_have_one_scale_around_zero(results):
    first, *others = panels(figures.by_position(results, NLL)).values()
    largest = max(np.abs(image.get_array()).max() for image in others)
    assert [image.get_clim() for image in others] == [(-largest, largest)] * 4
    assert {image.get_cmap().name for image in others} == {"RdBu_r"}
    assert first.get_clim() == (first.get_array().min(), first.get_array().max())
    assert first.get_cmap().name != "RdBu_r"


def test_by_position_draws_the_metric_that_is_asked_for(results):
    figure = figures.by_position(results, "val/cluster_accuracy")
    expected = results.positions["baseline"]["cluster_accuracy"].mean(axis=0)
    np.testing.assert_allclose(panels(figure)["baseline"].get_array(), expected)
    assert figure.get_suptitle() == "cluster accuracy by position"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_by_position_fits_any_number_of_arms(build, count):
    arms = {f"a name of an arm that is not short, {i}": "" for i in range(count)}
    figure = figures.by_position(build(arms=arms), NLL)
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == count
    assert len({(round(axes.bbox.width), round(axes.bbox.height)) for axes in shown}) == 1
    boxes = [axes.get_tightbbox() for axes in shown]
    for box in (figure._suptitle.get_window_extent(), *boxes):
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 <= box.y1 <= figure.bbox.y1
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_by_position_leaves_out_arms_without_positions(results):
    positions = {arm: of for arm, of in results.positions.items() if arm != "blocks"}
    positions["random"] = {"cluster_accuracy": positions["random"]["cluster_accuracy"]}
    shown = panels(figures.by_position(replace(results, positions=positions), NLL))
    assert list(shown) == ["baseline", "rearranged: difference", "iar: difference"]


def test_by_position_of_arms_that_do_not_differ(results):
    same = {arm: results.positions["baseline"] for arm in ("baseline", "iar")}
    figure = figures.by_position(replace(results, positions=same), NLL)
    figure.draw_without_rendering()
    image = panels(figure)["iar: difference"]
    np.testing.assert_array_equal(image.get_array(), 0)
    low, high = image.get_clim()
    assert low < 0 < high


def test_odd_names_are_drawn_as_they_are(build):
    names = {"_base": "", "$x_1$ {": "", "50% <script>": ""}
    results = build(arms=names)
    drawings = (figures.curves, figures.comparison, figures.quality_over_training, figures.by_position)
    for figure in (
        *(draw(results, FD if draw is drawings[2] else NLL) for draw in drawings),
        figures.sample_grids(results),
    ):
        figure.draw_without_rendering()
    assert len(legend(figures.curves(results, NLL))) == 3
    assert r"\$x_1\$ {" in texts(figures.comparison(results, NLL))
    assert figures.by_position(results, NLL).axes[1].get_title(loc="left") == r"\$x_1\$ {: difference"


def test_many_arms_have_styles_of_their_own(build):
    results = build(arms={f"k{i}": "" for i in range(14)})
    axes = figures.curves(results, NLL).axes[0]
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines}) == 14


def test_nothing_to_draw_is_an_input_error(results):
    with pytest.raises(InputError, match="no curve of 'train/loss'"):
        figures.curves(results, "train/loss")
    with pytest.raises(InputError, match="unknown metric"):
        figures.comparison(results, "val/nll")
    with pytest.raises(InputError, match="no arm beside its baseline"):
        figures.comparison(replace(results, arms={"baseline": ""}), NLL)
    with pytest.raises(InputError, match="no samples"):
        figures.sample_grids(replace(results, samples={}))
    for gone in ({}, {"iar": results.positions["iar"]}, {"baseline": {"cluster_accuracy": np.zeros((3, 7, 7))}}):
        with pytest.raises(InputError, match="no 'val/token_nll' by position of its baseline 'baseline'"):
            figures.by_position(replace(results, positions=gone), NLL)
    with pytest.raises(InputError, match="unknown metric"):
        figures.by_position(results, "val/nll")
    with pytest.raises(InputError, match="no reconstructions"):
        figures.reconstructions(replace(results, reconstructions={}))
    with pytest.raises(InputError, match="wanted uint8"):
        figures.reconstructions(replace(results, reconstructions={"a": np.zeros((2, 4, 4, 1))}))


def test_a_notebook_can_show_it(results):
    png, size = figures.reconstructions(results)._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert 500 < size["width"] < 1300


def test_no_figure_stays_open():
    code = (
        "import matplotlib as m; before = dict(m.rcParams); import iar_study.reporting.figures, matplotlib.pyplot as p"
    )
    code += "; assert not p.get_fignums() and dict(m.rcParams) == before"
    subprocess.run([sys.executable, "-c", code], check=True)
