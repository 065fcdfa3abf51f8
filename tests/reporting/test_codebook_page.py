"""Figures of a codebook and their page, on made-up codes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from iar_study.codebook import Codebook, Rearrangement
from iar_study.codebook.analysis import compare_strategies
from iar_study.errors import InputError
from iar_study.pipeline.codebooks import CodebookResults, Neighbours, replace_codes
from iar_study.reporting import codebook_page as codebook
from iar_study.reporting.codebook_page import conclusion, illustrations, write_codebook_page
from iar_study.reporting.site import write_index
from tests.reporting.pages import Page, rendered

ODD = "<b>$x_1$</b> 50% a_b|c"


def made(
    sizes: Sequence[int] = (16,) * 8, dimensions: int = 6, channels: int = 1, alike: float = 0.3, **changed: Any
) -> CodebookResults:
    """Return a codebook whose clusters hold codes around a centre each, in a shuffled order."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = rng.normal(size=(len(sizes), dimensions))[labels] + alike * rng.normal(size=(len(labels), dimensions))
    codes, arranged = Codebook(vectors.astype(np.float32)), Rearrangement.from_labels(labels)
    tokens = rng.integers(len(labels), size=(60, 16)) ** 2 // len(labels)
    use = 37 * codes.use(tokens)

    def decode(tokens: np.ndarray) -> np.ndarray:
        grey = (tokens % 256).reshape(-1, 4, 4).astype(np.uint8).repeat(3, 1).repeat(3, 2)
        return np.repeat(grey[..., None], channels, -1)

    strategies = compare_strategies(codes.points, len(sizes), ["plain", "agglomerative"]).drop(columns="seconds")
    values = {
        "study": "components",
        "profile": "quick",
        "data": "fashion-mnist",
        "tokenizer": "tokenizer-0123.safetensors",
        "digest": "0123456789abcdef",
        "codebook": codes,
        "arranged": arranged,
        "use": use,
        "strategies": strategies,
        "left_out": {"greedy": "equal clusters: 7 does not divide the 64 codes"},
        "neighbours": replace_codes(codes, arranged, use, tokens, decode),
        "scale": {"data set": "fashion-mnist"},
        "commands": ("iar-study run components", "iar-study inspect FILE"),
    }
    return CodebookResults(**values | changed)


@pytest.fixture(scope="module")
def results() -> CodebookResults:
    return made()


def texts(figure):
    """All words of a figure."""
    figure.draw_without_rendering()
    found = [text for axes in figure.axes for text in (*axes.texts, axes._left_title, axes.title, axes.xaxis.label)]
    found += [label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    legends = [*figure.legends, *(axes.legend_ for axes in figure.axes if axes.legend_)]
    return [text.get_text() for text in (*found, *(text for legend in legends for text in legend.get_texts()))]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_matrix_is_that_of_the_codes_in_either_order(results):
    figure = codebook.similarity_matrix(results)
    panels = [axes for axes in figure.axes if axes.images]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [
        "original order",
        "after rearrangement",
        "first 96, original order",
        "first 96, after rearrangement",
    ]
    unit = results.codebook.points
    order = results.arranged.order
    for axes, rows in zip(panels, (unit, unit[order], unit[:96], unit[order][:96]), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), rows @ rows.T, atol=1e-3)
        assert axes.images[0].get_clim() == (-1, 1)
    outlined = [[patch.get_bbox().bounds for patch in axes.patches] for axes in panels]
    assert outlined == [
        [],
        [(16 * k, 16 * k, 16, 16) for k in range(8)],
        [],
        [(16 * k, 16 * k, 16, 16) for k in range(6)],
    ]


def test_of_many_codes_the_matrix_shows_some():
    figure = codebook.similarity_matrix(made([5] * 120))
    whole, part = ([axes.images[0] for axes in figure.axes if axes.images][k] for k in (1, 3))
    assert whole.get_array().shape == (256, 256)
    assert tuple(whole.get_extent()) == (0, 600, 600, 0)
    assert part.get_array().shape == (30, 30)
    assert len(figure.axes[1].patches) == 0  # outlines of 120 clusters would be all that is seen


def test_the_map_colours_by_index_and_some_clusters():
    results = made([4, 9, 30, *[7] * 9])
    figure = codebook.codebook_map(results)
    before, after, clusters, *_ = figure.axes
    assert before.collections[0].get_array().tolist() == list(range(106))
    np.testing.assert_array_equal(after.collections[0].get_array(), results.permutation)
    np.testing.assert_array_equal(before.collections[0].get_offsets(), after.collections[0].get_offsets())
    others, *own = clusters.collections
    assert sum(len(dots.get_offsets()) for dots in (others, *own)) == 106
    assert [len(dots.get_offsets()) for dots in own[:3]] == [4, 30, 7]
    assert len({to_hex(dots.get_facecolor()[0]) for dots in (others, *own)}) == 9
    assert {"cluster 0", "cluster 11", "4 others"} <= set(texts(figure))


def test_pairs_are_told_with_their_means(results):
    figure = codebook.similarity_within_between(results)
    random = next(text for text in texts(figure) if "random" in text)
    within = next(text for text in texts(figure) if "two codes of one cluster" in text)
    assert float(within.split()[-3]) > 0.6 > float(random.split()[-3].replace("\N{MINUS SIGN}", "-"))


def test_each_row_shows_the_code_and_where_it_stands(results):
    figure = codebook.neighbours(results)
    (axes,) = figure.axes
    shown = results.neighbours
    mosaic = axes.images[0].get_array()
    np.testing.assert_array_equal(mosaic[13:25, 13:25, 0], shown.pictures[1, 1, ..., 0])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == f"{shown.codes[0, 0]}\n{results.use.max():,}"
    outlines = [each for each in axes.collections if isinstance(each, LineCollection)]
    assert len(outlines) == len(shown.codes)
    for row, each in enumerate(outlines):
        ends = np.array(each.get_segments())
        assert ends[..., 0].min() >= -0.5
        assert ends[..., 0].max() <= 11.5
        assert ends[..., 1].min() >= 13 * row - 0.5
        assert ends[..., 1].max() <= 13 * row + 11.5


def test_the_outline_goes_round_what_is_marked():
    places = np.zeros((4, 4), bool)
    places[1, 1:3] = True
    lines = {tuple(map(tuple, line)) for line in codebook._outline(places).tolist()}
    level = {((x, y), (x + 1, y)) for x in (1, 2) for y in (1, 2)}
    assert lines == level | {((x, 1), (x, 2)) for x in (1, 3)}


def test_usage_tells_dead_codes_and_perplexity(results):
    use = np.zeros_like(results.use)
    use[:4] = 10
    figure = codebook.usage(replace(results, use=use))
    assert "124 of 128 codes are never used; perplexity 4 of 128" in texts(figure)
    assert "every code is used" in str(texts(codebook.usage(replace(results, use=use + 1))))


def test_contrast_holds_each_table_against_itself_shuffled(results):
    alone = codebook.contrast(results)
    assert len(alone.axes[0].lines) == 2
    other = np.random.default_rng(0).normal(size=(300, 40))
    figure = codebook.contrast(results, other, "GPT $x$")
    ours, ours_shuffled, theirs, theirs_shuffled = (line.get_ydata() for line in figure.axes[0].lines)
    assert ours[0] > ours_shuffled[0] + 0.05
    np.testing.assert_allclose(theirs, theirs_shuffled, atol=0.03)
    assert "\u200bGPT \\$x\\$: 300 x 40" in texts(figure)
    assert "\u200bthe other table: 300 x 40" in texts(codebook.contrast(results, other))


DRAWN = (
    codebook.similarity_matrix,
    codebook.codebook_map,
    codebook.similarity_within_between,
    codebook.neighbours,
    codebook.usage,
    codebook.contrast,
)


@pytest.mark.parametrize(
    "results",
    [
        made([40]),
        made([1, 2, 90, 3]),
        made([2, 2]),
        made([3, 5], dimensions=1),
        made([700] * 4, dimensions=3),
        made(channels=3),
        made(study=ODD, data=ODD),
    ],
    ids=["one cluster", "unequal", "four codes", "one dimension", "many codes", "colour", "odd names"],
)
def test_every_figure_fits_every_codebook(results):
    for draw in DRAWN:
        figure = draw(results)
        figure.draw_without_rendering()
        for axes in figure.axes:
            box = axes.get_tightbbox()
            assert -1 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1, draw.__name__
            assert -1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1, draw.__name__


def test_what_is_not_there_is_an_input_error(results):
    with pytest.raises(InputError, match="has no pictures"):
        codebook.neighbours(replace(results, neighbours=None))
    with pytest.raises(InputError, match="no cluster of study 'components' holds two codes"):
        codebook.similarity_within_between(made([1] * 5))
    with pytest.raises(InputError, match="no code of study 'components' is used"):
        codebook.usage(replace(results, use=np.zeros_like(results.use)))


def test_the_conclusion_tells_the_numbers_and_what_they_do_not_show(results):
    text = conclusion(results)
    assert text.startswith("On fashion-mnist: 128 codes of dimension 6 in 8 clusters. Two codes of one cluster")
    assert text.endswith("that it helps training is not shown here.")
    assert "by chance" in text
    assert "different clusters" not in conclusion(made([40]))
    assert "Two codes" not in conclusion(made([1] * 9))
    assert "by index" not in conclusion(made([2, 2]))
    assert "nan" not in "".join(conclusion(made(sizes)) for sizes in ([40], [1] * 9, [2, 2], [1, 1]))


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    return write_codebook_page(results, tmp_path_factory.mktemp("reports"))


def test_the_page_shows_every_figure_and_the_table(results, page):
    seen, folder = Page(page.read_text()), page.parent
    assert folder.name == "codebook"
    drawn = [each for section in illustrations(results).values() for each in section]
    assert len(seen.alts) == len(drawn) == 6
    assert all(seen.alts)
    assert all((folder / name).exists() for name in seen.addresses if not name.startswith(("data:", "#")))
    assert all(each.caption in seen.words for each in drawn)
    (table,) = seen.under("Other ways")
    assert [row[0] for row in table] == ["strategy", "plain", "agglomerative"]
    assert "Left out: greedy. equal clusters: 7 does not divide the 64 codes" in seen.words
    assert results.digest in seen.words
    assert results.codebook.digest in seen.words
    assert "iar-study inspect FILE" in seen.text
    assert pd.read_csv(folder / "strategies.csv").columns.tolist() == results.strategies.columns.tolist()


def test_the_markdown_says_the_same(results, page):
    html, text = Page(page.read_text()), Page(rendered(page.with_name("index.md")))
    assert text.headings == html.headings
    assert len(text.alts) == len(html.alts)
    assert text.under("Other ways") == html.under("Other ways")
    assert conclusion(results) in text.words


def test_two_pages_are_the_same_bytes_and_one_replaces_the_other(results, page, tmp_path):
    assert write_codebook_page(made(study="another"), tmp_path)
    again = write_codebook_page(results, tmp_path)
    assert files(again.parent) == files(page.parent)
    assert [path.name for path in tmp_path.iterdir()] == ["codebook"]


def test_a_page_of_what_is_little(tmp_path):
    bare = made([1] * 3, neighbours=None, left_out={})
    bare = replace(bare, use=np.zeros_like(bare.use))
    seen = Page(write_codebook_page(bare, tmp_path).read_text())
    assert len(seen.alts) == 3
    assert not any(title.startswith("How similar") for title in seen.headings)
    assert "Left out" not in seen.words


def test_odd_names_are_shown_as_they_are(tmp_path):
    page = write_codebook_page(made(study=ODD, data=ODD, left_out={ODD: ODD}), tmp_path)
    for seen in (Page(page.read_text()), Page(rendered(page.with_name("index.md")))):
        assert f"The codebook of study {ODD}" in seen.words
        assert f"On {ODD}:" in seen.words
        assert "b" not in seen.tags


def test_the_index_lists_it(page):
    index = Page(write_index(page.parent.parent).read_text())
    assert "codebook/index.html" in index.addresses
    assert codebook.QUESTION in index.words


def test_a_folder_that_holds_something_else_is_left_alone(results, tmp_path):
    (tmp_path / "codebook").mkdir()
    (tmp_path / "codebook" / "results.csv").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'results\.csv', which no report wrote"):
        write_codebook_page(results, tmp_path)
    assert files(tmp_path / "codebook") == {"results.csv": b"mine"}


def test_neighbours_of_another_size_than_their_grid():
    shown = made().neighbours
    assert isinstance(shown, Neighbours)
    large = Neighbours(
        shown.columns, shown.codes, shown.pictures.repeat(20, 2).repeat(20, 3), shown.places, shown.images
    )
    figure = codebook.neighbours(made(neighbours=large))
    assert (figure.get_size_inches() * codebook.DPI < 2900).all()
